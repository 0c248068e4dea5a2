"""Turns the residual stream into another orthonormal basis; the model's function stays the same.

Width pruning removes channels. In the basis that training happened to leave, every channel carries a
little of everything; in one ordered by importance, the last channels carry next to nothing (SliceGPT,
arXiv 2401.15024, section 3). RMSNorm commutes with a rotation once its gains are ones, so they are folded
into what reads the normalised stream. The vocabulary head reads it behind another gain than the embedding
writes it with, so a tied head is untied.

Shapes: C hidden channels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pruning.surgery.adapter import CausalModel, Dimension, Place, build, check_supported, locate
from pruning.surgery.shape import Shape


def rotated(model: CausalModel, basis_CC: Tensor) -> CausalModel:
    """A new model with the same function whose channel i is direction i of the basis.

    Args:
        model: a canonical model; untouched.
        basis_CC: orthonormal columns, each a direction of the model's stream.

    Raises:
        UnsupportedModelError: the model is no plain Llama, Qwen2 or Qwen3.
    """
    check_supported(model)
    basis_CC = basis_CC.to(model.device, torch.float64)
    before = model.state_dict()
    tensors = {
        name: _turned(tensor, locate(name), before, basis_CC).to(tensor.dtype)
        for name, tensor in before.items()
    }
    config = type(model.config).from_dict(model.config.to_dict() | {"tie_word_embeddings": False})
    return build(config, tensors, like=model)


def rotated_shape(shape: Shape) -> Shape:
    """The shape of a model after `rotated`."""
    return shape.model_copy(update={"tie_word_embeddings": False})


def _turned(tensor: Tensor, place: Place, before: Mapping[str, Tensor], basis_CC: Tensor) -> Tensor:
    tensor = tensor.double()
    if place.is_stream_gain:
        return torch.ones_like(tensor)
    first, *rest = place.dimensions
    if rest == [Dimension.HIDDEN]:  # its rows are read against the stream, or written into it
        gain = place.gain
        read = tensor if gain is None else tensor * before[gain].double()
        return read @ basis_CC
    if first is Dimension.HIDDEN:  # an output, or its bias
        return basis_CC.T @ tensor
    return tensor
