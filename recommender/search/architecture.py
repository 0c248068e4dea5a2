"""What the lean transformer must know of a Hugging Face config: Llama, Qwen2 and Qwen3, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from recommender.errors import UnsupportedModelError, first_problem

FAMILIES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}


class Llama3Rope(BaseModel):
    """Llama 3.1's stretch of the slow frequencies (its config's `rope_parameters`)."""

    model_config = ConfigDict(frozen=True)

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


class Architecture(BaseModel):
    """The function that the weights compute, in Hugging Face's words."""

    model_config = ConfigDict(frozen=True)

    family: Literal["llama", "qwen2", "qwen3"]
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    llama3_rope: Llama3Rope | None = None
    tie_word_embeddings: bool
    attention_bias: bool = False
    max_position_embeddings: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """Reads the content of a `config.json`.

        Raises:
            UnsupportedModelError: another family, activation, rotary scaling or attention pattern.
        """
        named = (config.get("architectures") or ["none"])[0]
        if named not in FAMILIES:
            raise UnsupportedModelError(
                f"architecture {named!r} is not supported; use one of {', '.join(FAMILIES)}"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise UnsupportedModelError(f"hidden_act {config['hidden_act']!r}: only silu is supported")
        if config.get("mlp_bias"):
            raise UnsupportedModelError("mlp_bias: true is not supported")
        if config.get("use_sliding_window"):
            raise UnsupportedModelError("use_sliding_window: true is not supported")
        rope = config.get("rope_parameters") or {
            "rope_theta": config.get("rope_theta", 10_000.0),
            **(config.get("rope_scaling") or {}),
        }
        kind = rope.get("rope_type") or rope.get("type") or "default"  # `type`: older configs
        if kind not in ("default", "llama3"):
            raise UnsupportedModelError(f"rope_type {kind!r}: only default and llama3 are supported")
        try:
            heads = config["num_attention_heads"]
            return cls.model_validate(
                {
                    **config,
                    "family": FAMILIES[named],
                    "num_key_value_heads": config.get("num_key_value_heads") or heads,
                    "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
                    "rope_theta": rope["rope_theta"],
                    "llama3_rope": rope if kind == "llama3" else None,
                    "tie_word_embeddings": config.get("tie_word_embeddings", False),
                }
            )
        except KeyError as error:
            raise UnsupportedModelError(f"config.json is incomplete: it lacks {error}") from error
        except ValidationError as error:
            raise UnsupportedModelError(f"config.json is incomplete: {first_problem(error)}") from error

    @property
    def qkv_bias(self) -> bool:
        """Whether the query, key and value projections have biases; Qwen2's always do."""
        return self.attention_bias or self.family == "qwen2"

    @property
    def o_bias(self) -> bool:
        """Whether the output projection has a bias; Qwen2's never does."""
        return self.attention_bias and self.family != "qwen2"

    def inverse_frequencies(self) -> torch.Tensor:
        """Rotary frequencies, float32, shape (head_dim / 2,)."""
        exponent = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        frequency = 1.0 / (self.rope_theta**exponent)
        if self.llama3_rope is None:
            return frequency
        rope = self.llama3_rope
        wavelength = 2 * math.pi / frequency
        original = rope.original_max_position_embeddings
        blend = (original / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        blend = blend.clamp(0, 1)
        return (1 - blend) * frequency / rope.factor + blend * frequency
