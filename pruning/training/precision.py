"""What matrices are multiplied in; weights, gradients and losses stay float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

Precision = Literal["float32", "bfloat16"]

_STOCK = "sdpa"
_IN_FLOAT32 = "sdpa_in_float32"


def multiplying_in(precision: Precision, device: torch.device) -> torch.autocast:
    """A block in which the forward pass multiplies in this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@contextmanager
def attending_in_float32(config: PretrainedConfig) -> Iterator[None]:
    """A block in which a model of this config attends in float32 on a CPU, whatever it multiplies in.

    Short sequences make small products, for which torch has no fast bfloat16 backward pass on a CPU: on
    an AMD EPYC it took two and a half times as long as in float32, a fifth of a teacher's whole step.
    """
    stock = config._attn_implementation
    if stock == _STOCK and not torch.accelerator.is_available():
        config._attn_implementation = _IN_FLOAT32
    try:
        yield
    finally:
        config._attn_implementation = stock


def _attend_in_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    with torch.autocast(query.device.type, enabled=False):
        states, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), mask, **kwargs
        )
    return states.to(query.dtype), None


AttentionInterface.register(_IN_FLOAT32, _attend_in_float32)
AttentionMaskInterface.register(_IN_FLOAT32, sdpa_mask)
