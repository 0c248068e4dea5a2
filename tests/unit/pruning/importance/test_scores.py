"""Scores on disk: the same selection comes back, and damage is named."""

import pytest
import torch

from pruning.errors import RunError, TrainingError
from pruning.importance.activation import ActivationImportance
from pruning.importance.paper import PaperImportance
from pruning.importance.scores import Scores, load_scores, save_scores
from pruning.importance.selection import select
from pruning.surgery.shape import Shape

AXES = ("heads", "hidden", "mlp", "layers")


@pytest.mark.parametrize("method", [PaperImportance(), ActivationImportance()])
def test_cached_scores_select_the_same(make_model, calibration, tmp_path, steps, method):
    model = make_model()
    shape = Shape.of(model.config)
    target = shape.resized(
        num_attention_heads=2,
        num_key_value_heads=1,
        hidden_size=10,
        intermediate_size=7,
        num_hidden_layers=2,
    )
    scores = method.score(model, calibration, AXES, target, steps)
    assert set(scores) == set(AXES)
    again = {}
    for axis, found in scores.items():
        save_scores(found, tmp_path / f"{axis}.safetensors")
        again[axis] = load_scores(tmp_path / f"{axis}.safetensors")
        assert again[axis].method == method.name
        assert again[axis].parameters == method.parameters(axis, target)
        assert torch.equal(again[axis].values, found.values)
    cut = select(scores, shape, target)
    assert cut.applied_to(shape) == target
    assert select(again, shape, target) == cut


def test_what_the_papers_scores_depend_on(make_model):
    target = Shape.of(make_model().config)
    assert PaperImportance().parameters("heads", target) == {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    assert PaperImportance().parameters("mlp", target) == {"intermediate_size": 20}
    assert PaperImportance().parameters("hidden", target) == {}
    assert PaperImportance().parameters("layers", target) == {}


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "heads.safetensors"
    save_scores(Scores("paper", "heads", torch.rand(2, 3)), path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunError, match=r"heads\.safetensors .* score again"):
        load_scores(path)


def test_scores_must_be_finite():
    with pytest.raises(TrainingError, match="paper scores of mlp are not finite"):
        Scores("paper", "mlp", torch.tensor([[0.0, float("nan")]]))
