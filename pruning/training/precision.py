"""What matrices are multiplied in; weights, gradients and losses stay float32."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def multiplying_in(precision: Precision, device: torch.device) -> torch.autocast:
    """A block in which the forward pass multiplies in this precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
