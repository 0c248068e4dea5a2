"""The users on whom importance is measured, as token batches.

Rows are padded on the right. Attention is causal, so a real token never sees padding, and scores read
real tokens only: padding cannot change a score.

Shapes: B rows, T positions, N predictions (title tokens of the whole batch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import RecipeError


@dataclass(frozen=True)
class CalibrationBatch:
    """Users' sequences, and which of their tokens the model is to predict.

    Attributes:
        tokens_BT: token ids, int64.
        attention_mask_BT: True at real tokens, which come first in every row.
        target_mask_BT: True at title tokens to be predicted. The prediction of the token at t is
            read at t - 1, so no row starts with one.
    """

    tokens_BT: Tensor
    attention_mask_BT: Tensor
    target_mask_BT: Tensor

    def __post_init__(self) -> None:
        shape = self.tokens_BT.shape
        assert self.attention_mask_BT.shape == shape, "attention mask of another shape"
        assert self.target_mask_BT.shape == shape, "target mask of another shape"
        assert self.attention_mask_BT.dtype == self.target_mask_BT.dtype == torch.bool
        real_BT = self.attention_mask_BT
        assert bool((real_BT[:, :-1] | ~real_BT[:, 1:]).all()), "rows are padded on the right"
        assert not bool((self.target_mask_BT & ~real_BT).any()), "padding is no target"
        assert not bool(self.target_mask_BT[:, 0].any()), "nothing predicts a row's first token"

    def to(self, device: torch.device) -> CalibrationBatch:
        """The same batch on `device`."""
        return CalibrationBatch(
            self.tokens_BT.to(device),
            self.attention_mask_BT.to(device),
            self.target_mask_BT.to(device),
        )

    def predictions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row (N,) and position (N,) at which each prediction is read, and the true token (N,)."""
        rows_N, columns_N = self.target_mask_BT.nonzero(as_tuple=True)
        return rows_N, columns_N - 1, self.tokens_BT[rows_N, columns_N]


def count_predictions(calibration: Sequence[CalibrationBatch]) -> int:
    """How many title tokens the calibration users have.

    Raises:
        RecipeError: none at all, so there is nothing to measure importance on.
    """
    count = sum(int(batch.target_mask_BT.sum()) for batch in calibration)
    if count == 0:
        raise RecipeError(
            "the calibration users have no title token to predict; take users with two items or more"
        )
    return count
