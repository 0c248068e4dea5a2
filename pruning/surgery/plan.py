"""Which target shapes can be cut from which models, and what to propose instead.

Three forms of pruned attention are legal: the same number of query heads from every kept group;
whole groups, a special case of it; or keys and values copied to one per query head, which changes
nothing, after which any heads may go.
"""

from __future__ import annotations

from enum import StrEnum

from pruning.errors import RecipeError
from pruning.surgery.shape import Shape

_SHRINKABLE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_FIXED = (
    "model_type",
    "vocab_size",
    "head_dim",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
)


class HeadForm(StrEnum):
    """How the heads of a layer are cut."""

    GROUPS = "groups"  # as many query heads from every kept group
    COPIED = "copied"  # keys and values copied to one per query head, then any heads


def legal_key_value_heads(shape: Shape, num_attention_heads: int) -> tuple[int, ...]:
    """The numbers of key/value heads that `num_attention_heads` query heads can go with."""
    whole = shape.num_attention_heads // shape.num_key_value_heads
    grouped = {
        groups
        for groups in range(1, shape.num_key_value_heads + 1)
        if num_attention_heads % groups == 0 and num_attention_heads // groups <= whole
    }
    return tuple(sorted(grouped | {num_attention_heads}))


def head_form(shape: Shape, target: Shape) -> HeadForm:
    """How the heads of `target` are cut from `shape`.

    Raises:
        RecipeError: no legal form gives these numbers; the message lists those that do.
    """
    query, key_value = target.num_attention_heads, target.num_key_value_heads
    if query > shape.num_attention_heads:
        raise RecipeError(
            f"num_attention_heads {query} exceeds the model's {shape.num_attention_heads}; "
            "pruning only removes"
        )
    legal = legal_key_value_heads(shape, query)
    if key_value not in legal:
        proposals = ", ".join(f"{query}/{count}" for count in legal)
        raise RecipeError(
            f"{query}/{key_value} query/key-value heads cannot be cut from "
            f"{shape.num_attention_heads}/{shape.num_key_value_heads}; legal are {proposals}"
        )
    grouped = key_value <= shape.num_key_value_heads and query // key_value <= shape.query_heads_per_group
    return HeadForm.GROUPS if grouped else HeadForm.COPIED


def check_loadable(shape: Shape) -> None:
    """Checks what Hugging Face demands of a shape.

    Raises:
        RecipeError: a Llama whose `hidden_size` is no multiple of `num_attention_heads`; Qwen3 does
            not mind.
    """
    hidden, heads = shape.hidden_size, shape.num_attention_heads
    if shape.model_type == "qwen3" or hidden % heads == 0:
        return
    below = hidden // heads * heads
    proposals = [str(width) for width in (below, below + heads) if width > 0]
    raise RecipeError(
        f"hidden_size {hidden} is no multiple of num_attention_heads {heads}, which Llama "
        f"configurations demand; nearest are {' and '.join(proposals)}"
    )


def check_target(shape: Shape, target: Shape) -> None:
    """Checks that `target` can be cut from `shape` and loaded afterwards.

    Raises:
        RecipeError: a size grows, something changes that pruning does not change, the heads have no
            legal form, or Hugging Face would refuse the result.
    """
    for key in _FIXED:
        before, after = getattr(shape, key), getattr(target, key)
        if before != after:
            raise RecipeError(f"a target cannot change {key} from {before} to {after}; leave it")
    for key in _SHRINKABLE:
        before, after = getattr(shape, key), getattr(target, key)
        if after > before:
            raise RecipeError(f"{key} {after} exceeds the model's {before}; pruning only removes")
    head_form(shape, target)
    check_loadable(target)
