"""Equal training tokens and final shapes: what makes the rows of a table comparable."""

from pathlib import Path

import numpy as np
import pytest
from small_run import TITLES, Silent, teacher_config, write_dataset
from torch import Tensor

from benchmarks.quality import plan
from benchmarks.quality.budget import steps_for, steps_of_pass, tokens_of, tokens_read
from benchmarks.quality.plan import SHAPES, Size
from benchmarks.quality.rows import Method
from pruning.errors import RecipeError
from pruning.evaluation import ModelValidation
from pruning.pipeline.plan import plan_shapes
from pruning.surgery.rotation import rotated_shape
from pruning.surgery.shape import Shape
from pruning.teacher.scratch import base_from_scratch
from pruning.training.batches import Batch
from pruning.training.loop import TrainingConfig, fit
from pruning.training.objective import NextToken
from pruning.training.windows import UserPacker, Window
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder, PromptTemplate

SMOLLM2 = Shape(
    model_type="llama",
    vocab_size=5000,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    tie_word_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
)
LIMITS = {95: 5_310_172, 98: 2_124_069}
METHODS: tuple[Method, ...] = ("espalier", "paper", "scratch", "scratch-distilled", "random", "depth-only")


def final_shape(method: Method, size: Size) -> Shape:
    recipe = plan.recipe_of(method)
    whole = rotated_shape(SMOLLM2) if recipe.rotate else SMOLLM2
    target = plan.target_of(method, size, SHAPES)
    return plan_shapes(whole, recipe, target, SMOLLM2.nonembedding_parameters)[-1]


@pytest.mark.parametrize("size", [95, 98])
def test_all_methods_of_a_size_have_one_shape_below_the_limit(size: Size) -> None:
    shapes = [final_shape(method, size) for method in METHODS if method != "depth-only"]
    assert {shape.nonembedding_parameters for shape in shapes} == {shapes[0].nonembedding_parameters}
    assert LIMITS[size] * 0.98 < shapes[0].nonembedding_parameters <= LIMITS[size]
    assert all(shape.total_parameters < 0.1 * SMOLLM2.total_parameters for shape in shapes)


def test_whole_layers_fit_once_at_95_and_never_at_98() -> None:
    shape = final_shape("depth-only", 95)
    assert (shape.num_hidden_layers, shape.hidden_size) == (1, SMOLLM2.hidden_size)
    assert shape.nonembedding_parameters <= LIMITS[95]
    with pytest.raises(RecipeError, match="no legal shape of this teacher"):
        final_shape("depth-only", 98)


def window(length: int) -> Window:
    return Window(tuple(range(length)), (0,), (length,))


def test_a_budget_buys_tokens_and_not_batches() -> None:
    training = TrainingConfig(epochs=1, tokens_per_batch=64)
    full = [window(32) for _ in range(40)]
    # Three of 20 fit in a batch, so it holds 60 tokens, not 64.
    short = [window(20) for _ in range(60)]
    assert (steps_of_pass(full, training), steps_of_pass(short, training)) == (20, 20)
    assert steps_for(6400, full, training) == 100
    assert steps_for(6400, short, training) == 107
    for windows in (full, short):
        steps = steps_for(6400, windows, training)
        assert tokens_read(windows, training, steps) == pytest.approx(6400, abs=32)


class Counting(NextToken):
    """Plain training that counts what it was shown."""

    tokens = 0

    def __call__(self, logits_PV: Tensor, batch: Batch) -> Tensor:
        self.tokens += int(batch.attention_mask_BT.sum())
        return super().__call__(logits_PV, batch)


def test_tokens_read_are_those_that_a_training_reads(tmp_path: Path) -> None:
    dataset = Dataset(write_dataset(tmp_path, users=20))
    base = base_from_scratch(teacher_config().scratch, TITLES, PromptTemplate())
    encoder = PromptEncoder(PromptTemplate(), base.tokenizer)
    windows = UserPacker(encoder, dataset.catalogue.titles).training(dataset)
    per_pass = steps_of_pass(windows, TrainingConfig(epochs=1, tokens_per_batch=128, seed=3))
    steps = per_pass + per_pass // 3
    training = TrainingConfig(epochs=2, tokens_per_batch=128, max_steps=steps, patience=100, seed=3)
    counting = Counting()
    validation = ModelValidation(dataset, encoder, 10, 0)
    done = fit(base.model, windows, counting, validation, training, tmp_path / "run", Silent())
    assert done.steps == steps
    assert np.ptp([len(w.tokens) for w in windows]) > 0  # or any count of batches would do
    assert counting.tokens == tokens_read(windows, training, steps)
    assert tokens_of(windows) < counting.tokens < 2 * tokens_of(windows)
