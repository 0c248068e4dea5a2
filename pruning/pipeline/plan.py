"""Which shape each stage leaves: a recipe's shares of a given teacher, rounded to legal sizes.

A target (a number of parameters, or sizes given by hand) moves the last shape; the stages before it
keep what the recipe says, but never less than the end needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from pruning.errors import RecipeError
from pruning.importance.scores import Axis
from pruning.pipeline.recipe import Recipe, Stage
from pruning.surgery.plan import check_target, legal_key_value_heads
from pruning.surgery.shape import Shape

SIZES: tuple[str, ...] = (
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
)
_SIZES_OF: Mapping[Axis, tuple[str, ...]] = {
    "heads": ("num_attention_heads", "num_key_value_heads"),
    "hidden": ("hidden_size",),
    "mlp": ("intermediate_size",),
    "layers": ("num_hidden_layers",),
}
_MULTIPLE = 8  # widths in multiples of this suit every vector unit


class Target(BaseModel):
    """What the last stage should leave; all None: what the recipe says.

    Attributes:
        nonembedding_parameters: at most so many.
        removed_share: at least this share of the teacher's non-embedding parameters must go.
        sizes: Hugging Face keys of `SIZES` and their values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    nonembedding_parameters: PositiveInt | None = None
    removed_share: Annotated[float, Field(ge=0, lt=1)] | None = None
    sizes: dict[str, PositiveInt] = {}

    def budget(self, whole: int) -> int | None:
        """How many of a teacher's `whole` non-embedding parameters may stay; None: nothing is said."""
        budgets = [] if self.nonembedding_parameters is None else [self.nonembedding_parameters]
        if self.removed_share is not None:
            budgets.append(int(whole * (1 - self.removed_share)))
        return min(budgets, default=None)


def plan_shapes(
    teacher: Shape, recipe: Recipe, target: Target, whole: int | None = None
) -> tuple[Shape, ...]:
    """The shape after each stage.

    Args:
        teacher: what is cut, in canonical form.
        recipe: the shares to keep.
        target: moves the last shape.
        whole: the non-embedding parameters that a removed share counts; the teacher's when None.
            A canonical teacher has a few more than the one that was trained.

    Raises:
        RecipeError: sizes that no stage cuts or that cannot be cut, or a target below any legal shape.
    """
    shares: dict[Axis, float] = {}
    for stage in recipe.stages:
        shares.update(stage.keep)
    final = _sized(teacher, shares)
    if target.sizes:
        final = _given_by_hand(teacher, final, target.sizes, recipe)
    budget = target.budget(whole or teacher.nonembedding_parameters)
    if budget is not None:
        if target.sizes:
            raise RecipeError("give either final sizes or a number of parameters, not both")
        final = _within(teacher, final, budget, recipe)
    check_target(teacher, final)
    shapes = tuple(_toward(teacher, recipe, final))
    assert shapes[-1] == final, (shapes[-1], final)
    return shapes


def _sized(teacher: Shape, shares: Mapping[Axis, float]) -> Shape:
    """The shares of the teacher's sizes, rounded; a size that is not among them is not touched."""
    heads, width, neurons = teacher.num_attention_heads, teacher.hidden_size, teacher.intermediate_size
    if "heads" in shares:
        heads = max(1, round(heads * shares["heads"]))
        if "hidden" not in shares:
            wanted = heads
            heads = min(_heads_of(teacher, width), key=lambda count: abs(math.log(count / wanted)))
    if "hidden" in shares:
        width = _rounded_width(teacher, width * shares["hidden"], heads)
    if "mlp" in shares:
        neurons = _rounded(neurons * shares["mlp"], neurons)
    return teacher.resized(
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads_for(teacher, heads),
        hidden_size=width,
        intermediate_size=neurons,
        num_hidden_layers=max(1, round(teacher.num_hidden_layers * shares.get("layers", 1.0))),
    )


def _heads_of(teacher: Shape, width: int) -> list[int]:
    """How many of the teacher's heads may stay beside a hidden width."""
    return [count for count in range(1, teacher.num_attention_heads + 1) if _fits(teacher, count, width)]


def _fits(shape: Shape, heads: int, width: int) -> bool:
    # Llama configurations demand a multiple of the heads; Qwen3 does not mind.
    return shape.model_type == "qwen3" or width % heads == 0


def key_value_heads_for(shape: Shape, num_attention_heads: int) -> int:
    """The legal number of key/value heads whose groups are nearest in size to the shape's."""
    each = shape.query_heads_per_group
    return min(
        legal_key_value_heads(shape, num_attention_heads),
        key=lambda count: (abs(math.log(num_attention_heads / count / each)), count),
    )


def _rounded(size: float, whole: int) -> int:
    return min(whole, max(_MULTIPLE, _MULTIPLE * round(size / _MULTIPLE)))


def _width_step(shape: Shape, heads: int) -> int:
    return _MULTIPLE if shape.model_type == "qwen3" else math.lcm(heads, _MULTIPLE)


def _rounded_width(shape: Shape, width: float, heads: int) -> int:
    step = _width_step(shape, heads)
    rounded = step * max(1, round(width / step))
    return rounded if rounded <= shape.hidden_size else shape.hidden_size // heads * heads


def _given_by_hand(teacher: Shape, final: Shape, sizes: Mapping[str, int], recipe: Recipe) -> Shape:
    cut = {size for stage in recipe.stages for axis in stage.keep for size in _SIZES_OF[axis]}
    for name, value in sizes.items():
        if name not in SIZES:
            raise RecipeError(f"no size {name!r}; name one of {', '.join(SIZES)}")
        if name not in cut and value != getattr(teacher, name):
            raise RecipeError(f"no stage of recipe {recipe.name} cuts {name}; choose another recipe")
    chosen = dict(sizes)
    if "num_attention_heads" in chosen and "num_key_value_heads" not in chosen:
        chosen["num_key_value_heads"] = key_value_heads_for(teacher, chosen["num_attention_heads"])
    if "num_attention_heads" in chosen and "hidden_size" in cut - chosen.keys():
        heads = chosen["num_attention_heads"]  # the recipe's width was rounded for other heads
        chosen["hidden_size"] = _rounded_width(teacher, final.hidden_size, heads)
    return final.resized(**chosen)


def _within(teacher: Shape, wanted: Shape, budget: int, recipe: Recipe) -> Shape:
    """The legal shape under `budget` that is nearest to the recipe's proportions.

    Nearest in the sum of squared logarithms of the ratios of the four sizes, so halving one size
    counts as much as doubling another.
    """
    axes = {axis for stage in recipe.stages for axis in stage.keep}
    fitting = [
        shape
        for shape in _candidates(teacher, wanted, budget, axes)
        if shape.nonembedding_parameters <= budget
    ]
    if not fitting:
        raise RecipeError(
            f"no legal shape of this teacher has at most {budget:,} non-embedding parameters; "
            "raise the target"
        )
    return min(fitting, key=lambda shape: (_distance(shape, wanted), -shape.nonembedding_parameters))


def _candidates(teacher: Shape, wanted: Shape, budget: int, axes: set[Axis]) -> Iterator[Shape]:
    all_heads = range(1, teacher.num_attention_heads + 1)
    all_layers = range(1, teacher.num_hidden_layers + 1)
    for heads in all_heads if "heads" in axes else (wanted.num_attention_heads,):
        step = _width_step(teacher, heads)
        widths = range(step, teacher.hidden_size + 1, step)
        for width in widths if "hidden" in axes else (wanted.hidden_size,):
            if not _fits(teacher, heads, width):
                continue
            for layers in all_layers if "layers" in axes else (wanted.num_hidden_layers,):
                narrow = wanted.resized(
                    num_attention_heads=heads,
                    num_key_value_heads=key_value_heads_for(teacher, heads),
                    hidden_size=width,
                    num_hidden_layers=layers,
                    intermediate_size=_MULTIPLE,
                )
                if "mlp" not in axes:
                    yield narrow.resized(intermediate_size=wanted.intermediate_size)
                    continue
                # The widest MLP that the budget leaves, but no wider than the recipe's.
                each = layers * (3 * width + (2 if teacher.mlp_bias else 0))
                room = (budget - narrow.nonembedding_parameters) // each
                neurons = min(wanted.intermediate_size, _MULTIPLE * (1 + room // _MULTIPLE))
                if neurons >= _MULTIPLE:
                    yield narrow.resized(intermediate_size=neurons)


def _distance(shape: Shape, wanted: Shape) -> float:
    sizes = ("num_attention_heads", "hidden_size", "intermediate_size", "num_hidden_layers")
    return sum(math.log(getattr(shape, size) / getattr(wanted, size)) ** 2 for size in sizes)


def _toward(teacher: Shape, recipe: Recipe, final: Shape) -> Iterator[Shape]:
    last_stage = {axis: stage.name for stage in recipe.stages for axis in stage.keep}
    shape = teacher
    for stage in recipe.stages:
        ends = {axis for axis in stage.keep if last_stage[axis] == stage.name}
        sizes = {size: getattr(final, size) for axis in ends for size in _SIZES_OF[axis]}
        target = _on_the_way(teacher, shape.resized(**sizes), final, stage, ends)
        try:
            check_target(shape, target)
        except RecipeError as error:
            raise RecipeError(f"stage {stage.name}: {error}") from error
        shape = target
        yield shape


def _on_the_way(teacher: Shape, shape: Shape, final: Shape, stage: Stage, ends: set[Axis]) -> Shape:
    """`shape` with the stage's other axes cut to its shares, never below `final`."""
    keep = {axis: share for axis, share in stage.keep.items() if axis not in ends}
    if "heads" in keep:
        wanted = teacher.num_attention_heads * keep["heads"]
        query, key_value = _heads_on_the_way(shape, final, wanted, width_stays="hidden" not in keep)
        shape = shape.resized(num_attention_heads=query, num_key_value_heads=key_value)
    if "hidden" in keep:
        width = _rounded_width(shape, teacher.hidden_size * keep["hidden"], shape.num_attention_heads)
        if (
            width < final.hidden_size
        ):  # the least that the heads on the way divide and the final width fits in
            step = 1 if shape.model_type == "qwen3" else shape.num_attention_heads
            width = step * math.ceil(final.hidden_size / step)
        shape = shape.resized(hidden_size=width)
    if "mlp" in keep:
        neurons = _rounded(teacher.intermediate_size * keep["mlp"], teacher.intermediate_size)
        shape = shape.resized(intermediate_size=max(neurons, final.intermediate_size))
    if "layers" in keep:
        layers = max(1, round(teacher.num_hidden_layers * keep["layers"]))
        shape = shape.resized(num_hidden_layers=max(layers, final.num_hidden_layers))
    return shape


def _heads_on_the_way(shape: Shape, final: Shape, wanted: float, *, width_stays: bool) -> tuple[int, int]:
    """The heads nearest to `wanted` that can be cut from `shape`, and from which the final ones can."""

    def distance(heads: tuple[int, int]) -> tuple[bool, float, float, int]:
        query, key_value = heads
        widest = shape.hidden_size if shape.model_type == "qwen3" else shape.hidden_size // query * query
        misfit = widest < (shape.hidden_size if width_stays else final.hidden_size)
        groups = abs(math.log(query / key_value / shape.query_heads_per_group))
        return misfit, abs(math.log(query / wanted)), groups, key_value

    def leads_on(query: int, key_value: int) -> bool:
        between = shape.resized(num_attention_heads=query, num_key_value_heads=key_value)
        return final.num_key_value_heads in legal_key_value_heads(between, final.num_attention_heads)

    return min(
        (
            (query, key_value)
            for query in range(final.num_attention_heads, shape.num_attention_heads + 1)
            for key_value in legal_key_value_heads(shape, query)
            if leads_on(query, key_value)
        ),
        key=distance,
    )
