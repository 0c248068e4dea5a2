"""What a training minimises: a small interface, and the plain language-model loss."""

from __future__ import annotations

from typing import Protocol

import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from pruning.training.batches import Batch


class Objective(Protocol):
    """A loss over the target tokens of a batch."""

    def __call__(self, logits_PV: Tensor, batch: Batch) -> Tensor:
        """The mean loss per target token, a scalar; `logits_PV` predict `batch.labels_P`."""
        ...


class NextToken:
    """Cross-entropy of the next token, with optional label smoothing."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self._smoothing = label_smoothing

    def __call__(self, logits_PV: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits_PV, batch.labels_P, label_smoothing=self._smoothing)
