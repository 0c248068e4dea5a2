"""The log of trials: a line a run, of validation figures alone. `test_quality_work` makes a real one."""

import pytest

from benchmarks.quality.plan import changed
from benchmarks.quality.trials import COLUMNS, trial_figures
from pruning.pipeline.recipe import load_recipe
from pruning.pipeline.results import Figures, StageResult
from pruning.surgery.shape import Shape
from recommender.errors import InputError
from recommender.ranking import Interval

SHAPE = Shape(
    model_type="llama",
    vocab_size=400,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
)
BEFORE = Figures(loss=30.0, hr10=0.01, ndcg10=0.005)
AFTER = Figures(
    loss=8.61239,
    catalogue_loss=6.5,
    hr10=0.15,
    ndcg10=0.11,
    hr10_interval=Interval(value=0.15, low=0.13, high=0.17),
    ndcg10_interval=Interval(value=0.11, low=0.095, high=0.125),
)


def stage(name: str, layers: int, after: Figures, steps: int) -> StageResult:
    return StageResult(
        name=name,
        key=name,
        importance="activation",
        shape=SHAPE.model_copy(update={"num_hidden_layers": layers}),
        bytes=1000,
        after_cut=BEFORE,
        after_restoration=after,
        restoration_steps=steps,
    )


def test_a_trial_is_the_last_stage_on_the_validation_split() -> None:
    figures = trial_figures((stage("width", 3, BEFORE, 10), stage("depth", 1, AFTER, 32)), 86_000)
    told_by_the_caller = {"date", "commit", "dataset", "note", "recipe", "seed", "command"}
    assert figures.keys() | told_by_the_caller == set(COLUMNS)
    assert (figures["key"], figures["steps"], figures["training_tokens"]) == ("depth", 42, 86_000)
    one_layer = SHAPE.model_copy(update={"num_hidden_layers": 1})
    assert figures["nonembedding"] == one_layer.nonembedding_parameters
    assert (figures["loss"], figures["catalogue_loss"]) == (8.6124, 6.5)
    assert (figures["ndcg10"], figures["ndcg10_low"], figures["ndcg10_high"]) == (0.11, 0.095, 0.125)


def test_a_trial_changes_all_trainings_and_nothing_else() -> None:
    recipe = load_recipe("paper")
    other = changed(recipe, {"learning_rate": "7e-4", "best_by": "ndcg10"})
    for stage_before, stage_after in zip(recipe.stages, other.stages, strict=True):
        assert stage_before.training is not None
        update = {"learning_rate": 7e-4, "best_by": "ndcg10"}
        training = stage_before.training.model_copy(update=update)
        assert stage_after == stage_before.model_copy(update={"training": training})
    assert changed(recipe, {}) == recipe


@pytest.mark.parametrize(
    "setting", [{"learning_rat": "1e-3"}, {"warmup": "much"}, {"learning_rate": "0"}, {"epochs": "3"}]
)
def test_a_setting_that_is_none_is_refused(setting: dict[str, str]) -> None:
    with pytest.raises(InputError, match=next(iter(setting))):
        changed(load_recipe("espalier"), setting)
