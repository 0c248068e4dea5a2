"""What the teacher says about each target token, and the divergences measured against it.

A signal is either the whole distribution, or its k likeliest tokens; the rest of the vocabulary is
then one bucket that holds the remaining probability, so the student still learns how much mass lies
outside the list.

Shapes: P target tokens, V vocabulary, K tokens kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from pruning.training.decisions import NEVER

_TINY = 1e-9


@dataclass(frozen=True)
class DenseSignal:
    """The teacher's log-probabilities of every token, (P, V)."""

    log_probs_PV: Tensor

    def forward_kl(self, student_PV: Tensor) -> Tensor:
        """(P,) KL(teacher ‖ student) = Σ_v p_v (log p_v - log q_v), nats, of the student's log q (P, V)."""
        return F.kl_div(student_PV, self.log_probs_PV, log_target=True, reduction="none").sum(-1)


@dataclass(frozen=True)
class TopSignal:
    """The teacher's k likeliest tokens, ids and log-probabilities, (P, K) each.

    Where fewer than K tokens may follow, the rest of the row is filled up with `NEVER`, whatever the id.
    """

    ids_PK: Tensor
    log_probs_PK: Tensor

    @classmethod
    def of(cls, log_probs_PV: Tensor, k: int) -> TopSignal:
        """The k likeliest tokens of the teacher's log-probabilities."""
        top = log_probs_PV.topk(min(k, log_probs_PV.shape[-1]), dim=-1)
        return cls(top.indices, top.values)

    def forward_kl(self, student_PV: Tensor) -> Tensor:
        """(P,) KL(teacher ‖ student) over the k tokens and one bucket for the rest, nats.

        `student_PV` are the student's log-probabilities of every token.
        Merging tokens into a bucket never increases a divergence (data processing inequality), so
        this is a lower bound of the dense one, and equal to it when k is the vocabulary.
        """
        teacher_PK = self.log_probs_PK
        student_PK = student_PV.gather(-1, self.ids_PK).where(teacher_PK > NEVER, NEVER)
        listed_P = (teacher_PK.exp() * (teacher_PK - student_PK)).sum(-1)
        rest_teacher_P = (1 - teacher_PK.exp().sum(-1)).clamp_min(0)
        rest_student_P = (1 - student_PK.exp().sum(-1)).clamp_min(_TINY)
        ratio_P = rest_teacher_P.clamp_min(_TINY).log() - rest_student_P.log()
        return listed_P + torch.where(rest_teacher_P > _TINY, rest_teacher_P * ratio_P, 0.0)


Signal = DenseSignal | TopSignal
