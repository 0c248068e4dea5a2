"""What every method is allowed: the teacher's training, the final shapes, and equal training tokens.

A control differs from `espalier` in one thing and has all else in common: objective, histories, batches,
schedule, validation; only that drawn weights warm up longer, which they need. All final weights are rounded
alike. `depth-only` differs in what it cuts: whole layers, of which so few fit that it has fewer parameters.
`paper` is the published method, with its own objective, histories, signals and rates, in batches like ours,
so that it makes as many steps. The teacher is trained at the trie's decisions, so what it says of tokens
that cannot follow means nothing, and `paper`, too, is restored among those that can. Its scores still read
the whole vocabulary, for which such a teacher is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from benchmarks.quality.rows import Method
from pruning.distill.objective import DistillationConfig
from pruning.pipeline.plan import Target
from pruning.pipeline.recipe import Recipe, Stage, load_recipe
from pruning.teacher.train import TeacherConfig
from pruning.training.loop import TrainingConfig
from pruning.training.precision import Precision
from recommender.errors import InputError, first_problem

Size = Literal[95, 98]
Shapes = Mapping[Size, Mapping[str, int]]
PASSES = 12
"""The full budget: as many tokens as so many readings of the training histories."""

# Of SmolLM2-135M: at most 5,310,172 and 2,124,069 non-embedding parameters. The whole width stays:
# cut narrower this teacher's students began worse than drawn ones, and embeddings are no part of the limit.
SHAPES: Shapes = {
    95: {
        "hidden_size": 576,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "intermediate_size": 592,
        "num_hidden_layers": 4,
    },
    98: {
        "hidden_size": 576,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "intermediate_size": 232,
        "num_hidden_layers": 3,
    },
}
_LIMITS: Mapping[Size, float] = {95: 0.95, 98: 0.98}
_VALIDATIONS = 4
_NEVER_STALE = 10_000
_NOT_TRIED = frozenset(
    ("epochs", "max_steps", "stop_after", "patience", "validations", "precision", "seed")
)


def teacher_config(base: Path, precision: Precision) -> TeacherConfig:
    """How the teacher of every data set is fine-tuned; chosen on the validation split of movies_and_tv.

    There the second pass of three was the best, so the third is not trained, on no set. Half of the loss is
    the divergence from a sequence model, beside which it became better than without it (decision 18).
    """
    training = TrainingConfig(
        epochs=3, stop_after=2, learning_rate=3e-4, weight_decay=0.1, best_by="hr10", precision=precision
    )
    # A teacher is known by its base: however the path was spelt, it is the same one.
    return TeacherConfig(
        base=base.resolve(), training=training, among="catalogue", collaborative=0.5, validation_rows=500
    )


def recipe_of(method: Method) -> Recipe:
    """The recipe of a method that makes a small model; sizes and budget are still to be set.

    Raises:
        ValueError: the method makes none.
    """
    ours, drawn = load_recipe("espalier"), load_recipe("scratch-distilled")
    recipes: dict[Method, Callable[[], Recipe]] = {
        "espalier": lambda: ours,
        "paper": lambda: _among_catalogue(load_recipe("paper"), ours),
        "scratch-distilled": lambda: drawn,
        "scratch": lambda: _stages(drawn, distillation=_truth_alone(drawn.stages[-1].distillation)),
        "random": lambda: _stages(ours, importance="random"),
        "depth-only": lambda: _at_once(ours, keep={"layers": 1.0}, repair=ours.stages[0].repair),
    }
    if method not in recipes:
        raise ValueError(f"{method} has no recipe; choose one of {', '.join(recipes)}")
    recipe = recipes[method]()
    last = recipe.stages[-1].model_copy(update={"rounding": ours.stages[-1].rounding})
    return recipe.model_copy(update={"name": method, "stages": (*recipe.stages[:-1], last)})


def changed(recipe: Recipe, training: Mapping[str, str]) -> Recipe:
    """The recipe with other settings in all its trainings: what a trial tries.

    Args:
        recipe: any.
        training: fields of `TrainingConfig`, as one writes them.

    Raises:
        InputError: there is no such setting, or not such a value of it, or the budget or the row says it.
    """
    said_already = sorted(_NOT_TRIED & set(training))
    if said_already:
        raise InputError(
            f"{', '.join(said_already)}: no setting to try; the budget, --precision and --seed say it"
        )
    stages = []
    for stage in recipe.stages:
        if stage.training is not None:
            try:
                other = TrainingConfig.model_validate(stage.training.model_dump() | dict(training))
            except ValidationError as error:
                raise InputError(f"no such training: {first_problem(error)}") from error
            stage = stage.model_copy(update={"training": other})
        stages.append(stage)
    return recipe.model_copy(update={"stages": tuple(stages)})


def target_of(method: Method, size: Size, shapes: Shapes) -> Target:
    """The final shape, the same for all; whole layers of full width have but a limit to fit in."""
    if method == "depth-only":
        return Target(removed_share=_LIMITS[size])
    return Target(sizes=dict(shapes[size]))


def budgeted(recipe: Recipe, steps: int, per_pass: int, precision: Precision) -> Recipe:
    """The recipe with its stages' trainings scaled to `steps` in all, in its own proportions.

    Nothing ends a training early, so contenders read equally many tokens, and all multiply alike.

    Args:
        recipe: any.
        steps: of all stages together.
        per_pass: the steps of one reading of the windows that the recipe trains on.
        precision: of all products.
    """
    epochs = sum(stage.training.epochs for stage in recipe.stages if stage.training is not None)
    stages = []
    for stage in recipe.stages:
        if stage.training is None:
            stages.append(stage)
            continue
        share = max(1, round(steps * stage.training.epochs / epochs))
        training = stage.training.model_copy(
            update={
                "epochs": math.ceil(share / per_pass),
                "max_steps": share,
                "patience": _NEVER_STALE,
                "validations": max(1, round(_VALIDATIONS * per_pass / share)),
                "precision": precision,
            }
        )
        signal = stage.distillation.signal
        if signal.kind == "cached":
            signal = signal.model_copy(update={"precision": precision})
        distillation = stage.distillation.model_copy(update={"signal": signal})
        stages.append(stage.model_copy(update={"training": training, "distillation": distillation}))
    return recipe.model_copy(update={"stages": tuple(stages)})


def _at_once(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe's last stage, changed, as its only one, which keeps what all of them keep."""
    keep = {axis: share for stage in recipe.stages for axis, share in stage.keep.items()}
    last = recipe.stages[-1].model_copy(update={"keep": keep})
    return _stages(recipe.model_copy(update={"stages": (last,)}), **changes)


def _stages(recipe: Recipe, **changes: object) -> Recipe:
    """The recipe with the same change in all its stages, which must still make sense."""
    stages = [Stage.model_validate(stage.model_dump() | _dumped(changes)) for stage in recipe.stages]
    return recipe.model_copy(update={"stages": tuple(stages)})


def _among_catalogue(recipe: Recipe, ours: Recipe) -> Recipe:
    (distillation,) = {stage.distillation for stage in recipe.stages}
    among = _stages(recipe, distillation=distillation.model_copy(update={"among": "catalogue"}))
    last = ours.stages[-1].training
    assert last is not None  # a recipe's last stage has one
    alike = {"best_by": last.best_by, "tokens_per_batch": last.tokens_per_batch}
    stages = [
        stage.model_copy(update={"training": stage.training.model_copy(update=alike)})
        for stage in among.stages
        if stage.training is not None
    ]
    return among.model_copy(update={"stages": tuple(stages)})


def _dumped(changes: Mapping[str, object]) -> dict[str, object]:
    return {
        name: change.model_dump() if isinstance(change, DistillationConfig) else change
        for name, change in changes.items()
    }


def _truth_alone(distillation: DistillationConfig) -> DistillationConfig:
    return distillation.model_copy(update={"cross_entropy": 1.0, "forward_kl": 0.0})
