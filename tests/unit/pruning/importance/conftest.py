"""Tiny random decoders and calibration users, one of them shorter than the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from pruning.importance.calibration import CalibrationBatch
from pruning.surgery.adapter import CausalModel
from pruning.surgery.canonical import canonical

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}


@pytest.fixture
def make_model() -> Callable[..., CausalModel]:
    def make(family: str = "llama", **overrides: object) -> CausalModel:
        sizes = {
            "vocab_size": 30,
            "hidden_size": 24,
            "intermediate_size": 20,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 0,
            "pad_token_id": 0,
        }
        model = AutoModelForCausalLM.from_config(CONFIGS[family](**{**sizes, **overrides})).eval()
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        return canonical(model)

    return make


def batch_of(lengths: list[int], width: int, seed: int, padding: int = 0) -> CalibrationBatch:
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.full((len(lengths), width), padding)
    real_BT = torch.zeros(len(lengths), width, dtype=torch.bool)
    targets_BT = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        tokens_BT[row, :length] = torch.randint(1, 30, (length,), generator=generator)
        real_BT[row, :length] = True
        targets_BT[row, 3:length] = True
        targets_BT[row, 5] = False
    return CalibrationBatch(tokens_BT, real_BT, targets_BT)


@pytest.fixture
def calibration() -> list[CalibrationBatch]:
    return [batch_of([9, 6], 9, seed=1), batch_of([7, 8, 7], 8, seed=2)]


@pytest.fixture
def padded() -> list[CalibrationBatch]:
    """The same users, padded further with a token that is no padding token."""
    return [batch_of([9, 6], 14, seed=1, padding=17), batch_of([7, 8, 7], 11, seed=2, padding=3)]


class Steps:
    """A progress callback that remembers what it was told."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.seen.append((done, total))


@pytest.fixture
def steps() -> Steps:
    return Steps()
