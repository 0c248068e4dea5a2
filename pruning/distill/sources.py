"""Where a training gets its teacher's signals: from the teacher itself, or from a cache on disk.

The cache is made once a run and serves every stage: the teacher reads the training windows a single
time instead of once an epoch. It is written in parts, each whole or absent, so a killed run goes on
with the part that is missing.

Shapes: as in `signals`; T targets of a window, X tokens of all targets, end to end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from pruning import processes
from pruning.distill.signals import DenseSignal, Signal, TopSignal
from pruning.errors import RunError
from pruning.training.batches import Batch, batches_in_order
from pruning.training.decisions import NEVER
from pruning.training.logits import target_logits
from pruning.training.precision import Precision, multiplying_in
from pruning.training.windows import Window
from recommender.storage import write_file

LAYOUT = 2
"""Of the parts: signals that are laid out otherwise are to stand in another folder."""
_WINDOWS_PER_PART = 512
_TOKENS_PER_BATCH = 4096


class LiveSignal(BaseModel):
    """The teacher runs in every step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["live"]


class CachedSignal(BaseModel):
    """The teacher's `top_k` likeliest tokens are cached once a run.

    Attributes:
        precision: what the teacher multiplies in.
        collaborative: mix a sequence model of the training histories into them (`collaborative.py`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cached"]
    top_k: Annotated[int, Field(ge=1)] = 64
    precision: Precision = "float32"
    collaborative: bool = False


LogProbs = Callable[[Tensor, Batch], Tensor]
"""(P, V) logits of a batch's targets → their log-probabilities among whatever may follow there."""


class SignalSource(Protocol):
    """Gives the teacher's signal for a batch."""

    def signal(self, batch: Batch) -> Signal:
        """The signal of every target token of the batch, in its order."""
        ...


class LiveTeacher:
    """Asks the teacher at every step: exact, and as slow as the teacher."""

    def __init__(self, teacher: PreTrainedModel, log_probs: LogProbs) -> None:
        self._teacher = teacher.eval()
        self._log_probs = log_probs

    @torch.no_grad()
    def signal(self, batch: Batch) -> DenseSignal:
        self._teacher.to(batch.labels_P.device)  # where the student trains
        return DenseSignal(self._log_probs(target_logits(self._teacher, batch), batch))


class CachedTeacher:
    """Looks the k likeliest tokens up."""

    def __init__(self, folder: Path, windows: Sequence[Window]) -> None:
        """Opens what `cache_signals` wrote for the same windows.

        Raises:
            RunError: a part is missing, damaged, or belongs to other windows.
        """
        self._counts: list[Tensor] = []  # of the tokens that each target of a window has
        self._ids: list[Tensor] = []
        self._log_probs: list[Tensor] = []
        for part, first in enumerate(range(0, len(windows), _WINDOWS_PER_PART)):
            members = windows[first : first + _WINDOWS_PER_PART]
            targets = [window.target_tokens for window in members]
            file = _part_file(folder, part)
            try:
                tensors = load_file(file)
                counts = torch.split(tensors["counts"], targets)
                tokens = [int(count_T.sum()) for count_T in counts]
                self._counts.extend(counts)
                self._ids.extend(torch.split(tensors["ids"], tokens))
                self._log_probs.extend(torch.split(tensors["log_probs"], tokens))
            except (OSError, SafetensorError, KeyError, RuntimeError) as error:
                raise RunError(
                    f"{file}: not the teacher's signals ({error}); remove the folder, it is made again"
                ) from error

    def signal(self, batch: Batch) -> TopSignal:
        device = batch.labels_P.device
        count_P, ids_X, log_probs_X = (
            torch.cat([of_window[window] for window in batch.windows])
            for of_window in (self._counts, self._ids, self._log_probs)
        )
        there_PK = torch.arange(int(count_P.max())) < count_P[:, None]
        ids_PK = torch.zeros(there_PK.shape, dtype=torch.long)
        log_probs_PK = torch.full(there_PK.shape, NEVER)
        ids_PK[there_PK], log_probs_PK[there_PK] = ids_X.long(), log_probs_X.float()
        return TopSignal(ids_PK.to(device), log_probs_PK.to(device))


def cache_signals(
    teacher: PreTrainedModel,
    windows: Sequence[Window],
    log_probs: LogProbs,
    config: CachedSignal,
    folder: Path,
    progress: Callable[[int, int], None],
) -> None:
    """Writes the teacher's likeliest tokens for every target; parts that stand are kept.

    Each process writes its share of the parts; all return when all stand.

    Log-probabilities are kept in 16 bits (a relative error of 0.05 %), ids in 32.
    """
    teacher.eval()
    parts = processes.share(range(-(-len(windows) // _WINDOWS_PER_PART)))
    for done, part in enumerate(parts, start=1):
        if not _part_file(folder, part).exists():
            first = part * _WINDOWS_PER_PART
            members = range(first, min(first + _WINDOWS_PER_PART, len(windows)))
            tensors = _signals_of(teacher, windows, members, log_probs, config)
            write_file(_part_file(folder, part), save(tensors))
        progress(done, len(parts))
    processes.wait()


@torch.inference_mode()
def _signals_of(
    teacher: PreTrainedModel,
    windows: Sequence[Window],
    members: range,
    log_probs: LogProbs,
    config: CachedSignal,
) -> dict[str, Tensor]:
    """The top k of every target token that may follow there, end to end in the order of the members."""
    counts, ids, log_probs_of = ([torch.empty(0)] * len(members) for _ in range(3))
    for on_cpu in batches_in_order(windows, _TOKENS_PER_BATCH, members):
        batch = on_cpu.to(teacher.device)
        with multiplying_in(config.precision, teacher.device):
            logits_PV = target_logits(teacher, batch)
        top = TopSignal.of(log_probs(logits_PV.float(), batch), config.top_k)
        there_PK = top.log_probs_PK > NEVER
        stops = np.cumsum([windows[index].target_tokens for index in batch.windows]).tolist()
        for index, stop in zip(batch.windows, stops, strict=True):
            rows = slice(stop - windows[index].target_tokens, stop)
            there_TK, place = there_PK[rows], members.index(index)
            counts[place] = there_TK.sum(-1).cpu()
            ids[place] = top.ids_PK[rows][there_TK].cpu()
            log_probs_of[place] = top.log_probs_PK[rows][there_TK].cpu()
    return {
        "counts": torch.cat(counts).to(torch.int32),
        "ids": torch.cat(ids).to(torch.int32),
        "log_probs": torch.cat(log_probs_of).to(torch.float16),
    }


def _part_file(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.safetensors"
