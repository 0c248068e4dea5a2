"""Hugging Face's names for the parts of a decoder: the only file that spells them.

Llama, Qwen2 and Qwen3 share one layout. The table says which axes each tensor has, so surgery is an
index per axis and never a case per tensor. Biases and query/key norms are in the table too; a model
has them or has not.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    PretrainedConfig,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.initialization import no_init_weights

from recommender.errors import UnsupportedModelError

CausalModel: TypeAlias = LlamaForCausalLM | Qwen2ForCausalLM | Qwen3ForCausalLM


class Dimension(Enum):
    """What runs along one axis of a tensor."""

    VOCABULARY = auto()
    HIDDEN = auto()
    QUERY = auto()  # query heads, head_dim entries each
    KEY_VALUE = auto()  # key/value heads, head_dim entries each
    HEAD = auto()  # the entries of one head
    NEURON = auto()


_D = Dimension
_MODEL_TENSORS: Final = {
    "model.embed_tokens.weight": (_D.VOCABULARY, _D.HIDDEN),
    "model.norm.weight": (_D.HIDDEN,),
    "lm_head.weight": (_D.VOCABULARY, _D.HIDDEN),
}
_LAYER_TENSORS: Final = {
    "self_attn.q_proj.weight": (_D.QUERY, _D.HIDDEN),
    "self_attn.q_proj.bias": (_D.QUERY,),
    "self_attn.k_proj.weight": (_D.KEY_VALUE, _D.HIDDEN),
    "self_attn.k_proj.bias": (_D.KEY_VALUE,),
    "self_attn.v_proj.weight": (_D.KEY_VALUE, _D.HIDDEN),
    "self_attn.v_proj.bias": (_D.KEY_VALUE,),
    "self_attn.o_proj.weight": (_D.HIDDEN, _D.QUERY),
    "self_attn.o_proj.bias": (_D.HIDDEN,),
    "self_attn.q_norm.weight": (_D.HEAD,),
    "self_attn.k_norm.weight": (_D.HEAD,),
    "mlp.gate_proj.weight": (_D.NEURON, _D.HIDDEN),
    "mlp.gate_proj.bias": (_D.NEURON,),
    "mlp.up_proj.weight": (_D.NEURON, _D.HIDDEN),
    "mlp.up_proj.bias": (_D.NEURON,),
    "mlp.down_proj.weight": (_D.HIDDEN, _D.NEURON),
    "mlp.down_proj.bias": (_D.HIDDEN,),
    "input_layernorm.weight": (_D.HIDDEN,),
    "post_attention_layernorm.weight": (_D.HIDDEN,),
}
# Whose gain stands between the stream and each tensor that reads it.
_GAINS: Final = {
    "lm_head.weight": "model.norm.weight",
    "self_attn.q_proj.weight": "input_layernorm.weight",
    "self_attn.k_proj.weight": "input_layernorm.weight",
    "self_attn.v_proj.weight": "input_layernorm.weight",
    "mlp.gate_proj.weight": "post_attention_layernorm.weight",
    "mlp.up_proj.weight": "post_attention_layernorm.weight",
}
_LAYER_NAME: Final = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: its layer (None outside the layers), its name there, its axes."""

    layer: int | None
    suffix: str
    dimensions: tuple[Dimension, ...]

    def name(self, layer: int | None) -> str:
        """The tensor's full name when its layer bears the number `layer`."""
        return self.suffix if layer is None else f"model.layers.{layer}.{self.suffix}"

    @property
    def is_stream_gain(self) -> bool:
        """Whether it scales the normalised residual stream."""
        return self.suffix in _GAINS.values()

    @property
    def gain(self) -> str | None:
        """The full name of the gain through which it reads the stream; None: it reads no such thing."""
        suffix = _GAINS.get(self.suffix)
        if suffix is None or self.layer is None:
            return suffix
        return f"model.layers.{self.layer}.{suffix}"


def locate(name: str) -> Place:
    """The place of a tensor by its name in the state dict.

    Raises:
        UnsupportedModelError: the table has no such tensor.
    """
    match = _LAYER_NAME.fullmatch(name)
    layer, suffix = (int(match[1]), match[2]) if match else (None, name)
    dimensions = (_MODEL_TENSORS if layer is None else _LAYER_TENSORS).get(suffix)
    if dimensions is None:
        raise UnsupportedModelError(
            f"the tensor {name} is none of a plain Llama, Qwen2 or Qwen3 decoder; "
            "merge adapters and give the plain model"
        )
    return Place(layer, suffix, dimensions)


@dataclass(frozen=True)
class LayerModules:
    """One decoder layer and the points inside it where scores are read."""

    whole: nn.Module
    input_norm: nn.Module
    attention_output: nn.Module  # reads the heads' outputs side by side
    post_attention_norm: nn.Module
    up: nn.Module
    down: nn.Module  # reads the neurons


@dataclass(frozen=True)
class DecoderModules:
    """A decoder's modules, in the order in which tokens pass them."""

    embedding: nn.Module
    rotary: nn.Module
    layers: tuple[LayerModules, ...]
    final_norm: nn.Module
    head: nn.Module


def modules_of(model: CausalModel) -> DecoderModules:
    """The modules of `model` by what they do."""
    count = model.config.num_hidden_layers
    layers = [model.get_submodule(f"model.layers.{index}") for index in range(count)]
    return DecoderModules(
        embedding=model.get_submodule("model.embed_tokens"),
        rotary=model.get_submodule("model.rotary_emb"),
        layers=tuple(
            LayerModules(
                whole=layer,
                input_norm=layer.get_submodule("input_layernorm"),
                attention_output=layer.get_submodule("self_attn.o_proj"),
                post_attention_norm=layer.get_submodule("post_attention_layernorm"),
                up=layer.get_submodule("mlp.up_proj"),
                down=layer.get_submodule("mlp.down_proj"),
            )
            for layer in layers
        ),
        final_norm=model.get_submodule("model.norm"),
        head=model.get_submodule("lm_head"),
    )


def check_supported(model: CausalModel) -> None:
    """Refuses what cannot be cut exactly.

    Every kind of rotary embedding passes: its frequencies follow `head_dim`, which is never cut.

    Raises:
        UnsupportedModelError: another class, a sliding window in use, quantised weights, or a
            tensor that the table does not know (an adapter, experts).
    """
    if type(model) not in (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be pruned; "
            "give a LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM"
        )
    if "sliding_attention" in (getattr(model.config, "layer_types", None) or ()):
        raise UnsupportedModelError(
            f"{type(model).__name__} with sliding-window layers cannot be pruned; "
            "give a model whose config has use_sliding_window false"
        )
    if getattr(model, "is_quantized", False):
        raise UnsupportedModelError(
            "a quantised model cannot be pruned; load its weights into a plain model first"
        )
    for name in model.state_dict():
        locate(name)


def redrawn(model: CausalModel, seed: int) -> CausalModel:
    """A model of the same configuration with freshly drawn weights, the same for the same seed.

    The global random generator stays as it was.
    """
    make = cast(Callable[..., CausalModel], AutoModelForCausalLM.from_config)  # it has no types
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = make(
            copy.deepcopy(model.config),
            dtype=model.dtype,
            attn_implementation=model.config._attn_implementation,
        )
    fresh.train(model.training)
    return fresh


def build(config: PretrainedConfig, tensors: Mapping[str, Tensor], like: CausalModel) -> CausalModel:
    """A fresh model of `config` that holds copies of `tensors`.

    Type, device, attention implementation, training mode and generation defaults are those of
    `like`. The global random state stays untouched, since nothing is initialised in vain.

    Args:
        config: the whole configuration, already checked.
        tensors: every tensor by its full name; shapes must be those of `config`.
        like: the model it descends from.
    """
    make = cast(Callable[..., CausalModel], AutoModelForCausalLM.from_config)  # it has no types
    with no_init_weights():
        model = make(config, dtype=like.dtype, attn_implementation=like.config._attn_implementation)
    model.tie_weights()
    model.load_state_dict(tensors, strict=True)
    model.generation_config = copy.deepcopy(like.generation_config)
    nn.Module.to(model, like.device)
    model.train(like.training)
    return model
