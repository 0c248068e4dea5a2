"""Brings a model into a form whose every width can be cut and exported.

Qwen2's classes compute `head_dim` from `hidden_size`, so a width-pruned Qwen2 loads nowhere. But a
Qwen2 is a Llama with biases on q, k and v; Llama reads `head_dim`, and its o bias may be zero.
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, Qwen2ForCausalLM

from pruning.surgery.adapter import CausalModel, build, check_supported, locate
from pruning.surgery.plan import check_loadable
from pruning.surgery.shape import Shape

_QWEN2_ONLY = {
    "model_type",
    "architectures",
    "layer_types",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
}


def canonical(model: CausalModel) -> CausalModel:
    """The same function in a class that reads `head_dim`.

    Args:
        model: a Llama or Qwen3, which comes back as it is (both spell `head_dim` out), or a Qwen2,
            which comes back as a new Llama with `attention_bias` and a zero o bias.

    Raises:
        UnsupportedModelError: the model cannot be cut exactly; see `check_supported`.
        RecipeError: a Qwen2 whose `hidden_size` is no multiple of its heads.
    """
    check_supported(model)
    if not isinstance(model, Qwen2ForCausalLM):
        return model
    shape = Shape.of(model.config)
    check_loadable(shape)
    keys = {key: value for key, value in model.config.to_dict().items() if key not in _QWEN2_ONLY}
    config = LlamaConfig.from_dict(keys | {"attention_bias": True, "head_dim": shape.head_dim})
    tensors = dict(model.state_dict())
    for name in model.state_dict():
        place = locate(name)
        if place.suffix == "self_attn.o_proj.weight":
            bias = name.removesuffix("weight") + "bias"
            tensors[bias] = torch.zeros(shape.hidden_size, dtype=model.dtype)
    return build(config, tensors, like=model)
