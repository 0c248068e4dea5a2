"""Batches refuse what the scores could not read; predictions stand one before their token."""

import pytest
import torch

from pruning.errors import RecipeError
from pruning.importance.calibration import CalibrationBatch, count_predictions

TOKENS = torch.tensor([[5, 6, 7, 0], [8, 9, 0, 0]])
REAL = TOKENS != 0


def targets(*places):
    mask = torch.zeros(2, 4, dtype=torch.bool)
    for row, column in places:
        mask[row, column] = True
    return mask


def test_predictions_are_read_one_before():
    batch = CalibrationBatch(TOKENS, REAL, targets((0, 1), (0, 2), (1, 1)))
    rows_N, columns_N, labels_N = batch.predictions()
    assert rows_N.tolist() == [0, 0, 1]
    assert columns_N.tolist() == [0, 1, 0]
    assert labels_N.tolist() == [6, 7, 9]
    assert count_predictions([batch, batch]) == 6


@pytest.mark.parametrize(
    ("real", "target", "why"),
    [
        (REAL, targets((0, 0)), "first token"),
        (REAL, targets((0, 3)), "padding is no target"),
        (REAL.flip(1), targets((0, 2)), "padded on the right"),
        (REAL[:, :3], targets((0, 2)), "another shape"),
    ],
)
def test_impossible_batches(real, target, why):
    with pytest.raises(AssertionError, match=why):
        CalibrationBatch(TOKENS, real, target)


def test_nothing_to_predict_is_an_error():
    with pytest.raises(RecipeError, match="no title token"):
        count_predictions([CalibrationBatch(TOKENS, REAL, targets())])
