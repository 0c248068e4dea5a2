"""The restoration loss: cross-entropy with the truth and forward KL from the teacher, weighted."""

from __future__ import annotations

from typing import Annotated, Literal

import torch.nn.functional as F  # noqa: N812 - the field's name for it
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from pruning.distill.sources import CachedSignal, LiveSignal, LogProbs, SignalSource
from pruning.training.batches import Batch


class DistillationConfig(BaseModel):
    """Weights of the two losses (the paper: 0.2 and 0.8, temperature 1), and the signal's source.

    Attributes:
        among: what probabilities are renormalised over: the whole vocabulary at every token of a title,
            as in the paper, or the catalogue's tokens at the trie's decisions, as in the search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cross_entropy: Annotated[float, Field(ge=0)] = 0.2
    forward_kl: Annotated[float, Field(ge=0)] = 0.8
    among: Literal["vocabulary", "catalogue"] = "vocabulary"
    signal: Annotated[LiveSignal | CachedSignal, Field(discriminator="kind")] = CachedSignal(kind="cached")

    @model_validator(mode="after")
    def _only_titles_are_mixed(self) -> DistillationConfig:
        if (
            isinstance(self.signal, CachedSignal)
            and self.signal.collaborative
            and self.among != "catalogue"
        ):
            raise ValueError('a collaborative signal knows titles only: it needs among = "catalogue"')
        return self


def among_vocabulary(logits_PV: Tensor, batch: Batch) -> Tensor:  # noqa: ARG001 - as `LogProbs`
    """(P, V) log-probabilities of every token."""
    return F.log_softmax(logits_PV, dim=-1)


class Distillation:
    """`a · CE + b · KL(teacher ‖ student)`, the mean over target tokens (arXiv 2507.07064)."""

    def __init__(
        self, config: DistillationConfig, source: SignalSource | None, log_probs: LogProbs
    ) -> None:
        """`source` may be None where the divergence has no weight: nobody is asked then."""
        self._config = config
        self._source = source
        self._log_probs = log_probs

    def __call__(self, logits_PV: Tensor, batch: Batch) -> Tensor:
        student_PV = self._log_probs(logits_PV, batch)  # once for both: it is as large as the logits
        loss = self._config.cross_entropy * F.nll_loss(student_PV, batch.labels_P)
        if self._source is not None:
            divergence_P = self._source.signal(batch).forward_kl(student_PV)
            loss = loss + self._config.forward_kl * divergence_P.mean()
        return loss
