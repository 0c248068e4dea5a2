"""Makes the smaller model: the tensors are sliced, the configuration is cut to match.

Heads, neurons and layers that go are gone as if they had been masked or skipped, exactly. Hidden
channels are not: the denominator of RMSNorm loses their share.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2ForCausalLM

from pruning.surgery.adapter import CausalModel, Dimension, Place, build, check_supported, locate
from pruning.surgery.plan import check_target
from pruning.surgery.retained import (
    Cut,
    RetainedHeads,
    RetainedHidden,
    RetainedLayers,
    RetainedNeurons,
)
from pruning.surgery.shape import Shape
from recommender.errors import UnsupportedModelError


def apply_cut(model: CausalModel, cut: Cut) -> CausalModel:
    """A new model of the same class that holds what `cut` keeps; the given one is untouched.

    All axes are cut at once, so a shape between two axes need not be legal, only the last.

    Args:
        model: a canonical model, of any type and on any device; both are kept.
        cut: indices into `model`.

    Raises:
        UnsupportedModelError: the model cannot be cut exactly, or is a Qwen2 that is not canonical.
        RecipeError: the cut does not fit the model, or leaves a shape that nothing can load.
    """
    check_supported(model)
    if isinstance(model, Qwen2ForCausalLM):
        raise UnsupportedModelError(
            "a Qwen2 does not spell head_dim out, so its widths cannot be cut; "
            "bring it through canonical() first"
        )
    shape = Shape.of(model.config)
    target = cut.applied_to(shape)
    check_target(shape, target)
    kept = cut.layers.layers if cut.layers else tuple(range(shape.num_hidden_layers))
    number = {old: new for new, old in enumerate(kept)}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        place = locate(name)
        if place.layer is None:
            tensors[name] = _sliced(tensor, place, cut, shape)
        elif place.layer in number:
            tensors[place.name(number[place.layer])] = _sliced(tensor, place, cut, shape)
    config = type(model.config).from_dict(_cut_config(model.config.to_dict(), target, kept))
    return build(config, tensors, like=model)


def slice_heads(model: CausalModel, retained: RetainedHeads) -> CausalModel:
    """`apply_cut` on attention heads alone."""
    return apply_cut(model, Cut(heads=retained))


def slice_hidden(model: CausalModel, retained: RetainedHidden) -> CausalModel:
    """`apply_cut` on hidden channels alone."""
    return apply_cut(model, Cut(hidden=retained))


def slice_mlp(model: CausalModel, retained: RetainedNeurons) -> CausalModel:
    """`apply_cut` on MLP neurons alone."""
    return apply_cut(model, Cut(mlp=retained))


def slice_layers(model: CausalModel, retained: RetainedLayers) -> CausalModel:
    """`apply_cut` on layers alone."""
    return apply_cut(model, Cut(layers=retained))


def _cut_config(keys: dict[str, Any], target: Shape, kept: tuple[int, ...]) -> dict[str, Any]:
    """The configuration's keys for `target`, those with one entry a layer included."""
    changed = keys | target.model_dump(
        include={
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
        }
    )
    if keys.get("layer_types") is not None:
        changed["layer_types"] = [keys["layer_types"][layer] for layer in kept]
    if "max_window_layers" in keys:
        # From which layer on a window slides. None does, so it stands behind the last.
        changed["max_window_layers"] = target.num_hidden_layers
    return changed


def _sliced(tensor: Tensor, place: Place, cut: Cut, shape: Shape) -> Tensor:
    for axis, dimension in enumerate(place.dimensions):
        indices = _retained_along(dimension, place.layer, cut, shape)
        if indices is not None:
            tensor = tensor.index_select(axis, indices.to(tensor.device))
    return tensor


def _retained_along(dimension: Dimension, layer: int | None, cut: Cut, shape: Shape) -> Tensor | None:
    """The entries kept along an axis, or None where all are."""
    if dimension is Dimension.HIDDEN and cut.hidden is not None:
        return torch.tensor(cut.hidden.channels)
    if layer is None:
        return None
    if dimension is Dimension.NEURON and cut.mlp is not None:
        return torch.tensor(cut.mlp.neurons[layer])
    if dimension is Dimension.QUERY and cut.heads is not None:
        return _head_entries(cut.heads.query[layer], shape.head_dim)
    if dimension is Dimension.KEY_VALUE and cut.heads is not None:
        return _head_entries(cut.heads.key_value[layer], shape.head_dim)
    return None


def _head_entries(heads: tuple[int, ...], head_dim: int) -> Tensor:
    """The rows of whole heads, `head_dim` each."""
    return (torch.tensor(heads)[:, None] * head_dim + torch.arange(head_dim)).flatten()
