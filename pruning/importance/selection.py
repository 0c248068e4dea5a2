"""From scores and a target to what is kept.

Ties go to the lower index, so the same scores always give the same selection.

Shapes: L layers, H query heads, G key/value heads (groups), C channels, F neurons.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pruning.importance.scores import Axis, Scores
from pruning.surgery.plan import HeadForm, check_target, head_form
from pruning.surgery.retained import (
    Cut,
    RetainedHeads,
    RetainedHidden,
    RetainedLayers,
    RetainedNeurons,
)
from pruning.surgery.shape import Shape


def select(scores: Mapping[Axis, Scores], shape: Shape, target: Shape) -> Cut:
    """What to keep of `shape` along every scored axis to reach `target`.

    Raises:
        RecipeError: `target` cannot be cut from `shape`.
    """
    check_target(shape, target)
    heads, hidden, mlp, layers = (scores.get(a) for a in ("heads", "hidden", "mlp", "layers"))
    return Cut(
        heads=None if heads is None else select_heads(heads.values, shape, target),
        hidden=None if hidden is None else select_hidden(hidden.values, target.hidden_size),
        mlp=None if mlp is None else select_neurons(mlp.values, target.intermediate_size),
        layers=None if layers is None else select_layers(layers, target.num_hidden_layers),
    )


def select_heads(scores_LH: Tensor, shape: Shape, target: Shape) -> RetainedHeads:
    """The best heads of each layer in the legal form that `target` asks for.

    Raises:
        RecipeError: no legal form gives the target's numbers of heads.
    """
    chosen = [select_layer_heads(scores_H, shape, target) for scores_H in scores_LH]
    return RetainedHeads(
        query=tuple(query for query, _ in chosen), key_value=tuple(source for _, source in chosen)
    )


def select_layer_heads(
    scores_H: Tensor, shape: Shape, target: Shape
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The query heads that one layer keeps, and the old key/value head behind each new one.

    In groups, each kept group gives its best heads, and those groups stay whose best heads add up
    to most; this is the best selection of its form. With keys and values copied, simply the best
    heads stay.

    Args:
        scores_H: the layer's scores.
        shape: the model that is cut.
        target: gives the numbers of heads.

    Raises:
        RecipeError: no legal form gives these numbers.
    """
    each = shape.query_heads_per_group
    if head_form(shape, target) is HeadForm.COPIED:
        heads = _best(scores_H, target.num_attention_heads)
        return heads, tuple(head // each for head in heads)
    served = target.query_heads_per_group
    scores_GH = scores_H.reshape(shape.num_key_value_heads, each)
    sums_G = scores_GH.sort(dim=1, descending=True).values[:, :served].sum(dim=1)
    groups = _best(sums_G, target.num_key_value_heads)
    query = tuple(group * each + head for group in groups for head in _best(scores_GH[group], served))
    return query, groups


def select_hidden(scores_C: Tensor, count: int) -> RetainedHidden:
    """The `count` best channels."""
    return RetainedHidden(channels=_best(scores_C, count))


def select_neurons(scores_LF: Tensor, count: int) -> RetainedNeurons:
    """The `count` best neurons of each layer."""
    return RetainedNeurons(neurons=tuple(_best(scores_F, count) for scores_F in scores_LF))


def select_layers(scores: Scores, count: int) -> RetainedLayers:
    """What is left when all but `count` layers have gone in their order."""
    assert scores.removal_order is not None, "layer scores carry a removal order"
    layers = len(scores.removal_order) + 1
    gone = set(scores.removal_order[: layers - count].tolist())
    return RetainedLayers(layers=tuple(layer for layer in range(layers) if layer not in gone))


def _best(scores: Tensor, count: int) -> tuple[int, ...]:
    """The indices of the `count` highest scores, ascending."""
    order = torch.sort(scores, descending=True, stable=True).indices[:count]
    return tuple(sorted(order.tolist()))
