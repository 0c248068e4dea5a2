"""Tiny decoders of every family whose every tensor is random, biases and norms included."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from pruning.surgery.adapter import CausalModel

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
MakeModel = Callable[..., CausalModel]


@pytest.fixture
def make_model() -> MakeModel:
    def make(family: str, **overrides: object) -> CausalModel:
        sizes = {
            "vocab_size": 40,
            "hidden_size": 32,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }
        if family == "qwen3":
            sizes["head_dim"] = 6
        config = CONFIGS[family](**{**sizes, **overrides})
        model = AutoModelForCausalLM.from_config(config).eval()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        return model

    return make


@pytest.fixture(name="tokens_BT")
def tokens() -> torch.Tensor:
    return torch.randint(1, 40, (2, 11), generator=torch.Generator().manual_seed(3))
