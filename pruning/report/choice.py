"""Why the run has the shapes it has, in sentences: what was asked, what it allows, what was rounded."""

from __future__ import annotations

from pruning.importance.scores import Axis
from pruning.pipeline.plan import Target
from pruning.pipeline.recipe import Stage
from pruning.pipeline.record import RunPlan
from pruning.surgery.plan import HeadForm, head_form
from pruning.surgery.shape import Shape

_AXIS_WORDS: dict[Axis, str] = {
    "heads": "attention heads",
    "hidden": "hidden channels",
    "mlp": "MLP neurons",
    "layers": "layers",
}
_METHOD_WORDS = {
    "paper": "the paper's scores (masked KL for heads, gradient × activation for channels, top-n frequency "
    "for neurons, greedy perplexity search for layers)",
    "activation": "mean activations (Minitron) and Block Influence for layers (ShortGPT)",
    "random": "random numbers, as a control",
}


def reasons(plan: RunPlan) -> list[str]:
    """One sentence a reason, in the order in which the plan was made."""
    recipe, final = plan.recipe, plan.shapes[-1]
    before = plan.teacher_shape.nonembedding_parameters
    shares: dict[Axis, float] = {}
    for stage in recipe.stages:
        shares.update(stage.keep)
    asked = ", ".join(f"{share:.0%} of the {_AXIS_WORDS[axis]}" for axis, share in shares.items())
    found = [f"Recipe {recipe.name} asks to keep {asked}."]
    found.append(_target_words(plan.target, before, final))
    found.append(
        f"The last student keeps {final.nonembedding_parameters:,} of {before:,} non-embedding parameters "
        f"({1 - final.nonembedding_parameters / before:.2%} are gone)."
    )
    found.append(_heads_words(plan.whole_shape, plan.shapes))
    if final.hidden_size % 8 == 0 and final.intermediate_size % 8 == 0:
        found.append(
            f"Hidden width {final.hidden_size} and MLP width {final.intermediate_size} are multiples of 8, "
            "which suits every vector unit."
        )
    if recipe.rotate:
        found.append(
            "Before the first cut the residual stream is turned into its principal directions, so a hidden "
            "channel is one of them, the strongest first. A tied vocabulary head is untied by that."
        )
    for number, stage in enumerate(recipe.stages, start=1):
        axes = " and ".join(_AXIS_WORDS[axis] for axis in stage.keep)
        drawn = "" if stage.weights == "inherited" else " Its weights are then drawn anew: a control."
        found.append(
            f"Stage {number} ({stage.name}) chooses {axes} by {_METHOD_WORDS[stage.importance]}, and "
            f"{_training_words(stage)}.{drawn}"
        )
    return found


def _training_words(stage: Stage) -> str:
    if stage.training is None:
        return "leaves the training to a later stage"
    return f"trains for {stage.training.epochs} epochs at most"


def _target_words(target: Target, before: int, final: Shape) -> str:
    if target.sizes:
        sizes = ", ".join(f"{name} {value}" for name, value in target.sizes.items())
        return f"Its last sizes were given by hand where named: {sizes}."
    budget = target.budget(before)
    if budget is None:
        return "No target was given, so these shares, rounded to legal sizes, are the last shape."
    room = budget - final.nonembedding_parameters
    return (
        f"At most {budget:,} non-embedding parameters may stay ({1 - budget / before:.1%} must go). Of all "
        "legal shapes within that, this one is nearest to the recipe's proportions (smallest sum of "
        f"squared logarithms of the ratios of heads, widths and layers); {room:,} parameters are left over."
    )


def _heads_words(whole: Shape, shapes: tuple[Shape, ...]) -> str:
    shape, words = whole, []
    for after in shapes:
        query, key_value = after.num_attention_heads, after.num_key_value_heads
        if (query, key_value) != (shape.num_attention_heads, shape.num_key_value_heads):
            copied = head_form(shape, after) is HeadForm.COPIED
            form = (
                "keys and values are copied to one per query head, so any heads may stay"
                if copied
                else "every kept group gives the same number of query heads"
            )
            words.append(f"{query} query and {key_value} key/value heads ({form})")
        shape = after
    if not words:
        return "The attention heads all stay."
    return (
        f"Of {whole.num_attention_heads}/{whole.num_key_value_heads} heads stay "
        + ", then ".join(words)
        + "."
    )
