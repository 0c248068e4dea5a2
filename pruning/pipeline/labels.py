"""What a stage is restored on: windows with their targets, and the teacher's word on each of them.

RUN/signals-K-KEY/                     the teacher's K likeliest tokens, cached
RUN/collaborative/model.safetensors    the sequence model that is mixed into them, if it is asked for
/share-PRECISION.json                  `TeachersShare`: how much of the mixture is the teacher's
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from pruning import processes
from pruning.distill.collaborative import (
    Mixture,
    TitleLessons,
    TitleSequences,
    best_share,
    held_out_log_probs,
    kept_on_titles,
)
from pruning.distill.objective import Distillation, DistillationConfig, among_vocabulary
from pruning.distill.sasrec import SasRec
from pruning.distill.sources import (
    LAYOUT,
    CachedSignal,
    CachedTeacher,
    LiveTeacher,
    LogProbs,
    SignalSource,
    cache_signals,
)
from pruning.pipeline.bench import Bench
from pruning.pipeline.files import digest, kept
from pruning.teacher.folder import COLLABORATIVE_FILE
from pruning.training.decisions import Children, at_decisions
from pruning.training.precision import Precision
from pruning.training.windows import Window
from recommender.storage import sha256_of

_COLLABORATIVE_FOLDER = "collaborative"
_HELD_OUT_WINDOWS = 2000


class TeachersShare(BaseModel):
    """How much of the mixture is the teacher's, and what is known of both where neither was trained.

    Attributes:
        teacher, collaborative, mixture: nats per title of the validation split, or of 2,000 windows of it,
            among the catalogue.
        share: the teacher's, that with the fewest nats of the mixture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: float
    collaborative: float
    mixture: float
    share: float


def share_file(run: Path, config: DistillationConfig) -> Path | None:
    """Where the `TeachersShare` of such a restoration is, or will be; None: nothing is mixed."""
    signal = config.signal
    if isinstance(signal, CachedSignal) and signal.collaborative:
        return _share_file(run, signal.precision)
    return None


def _share_file(run: Path, precision: Precision) -> Path:
    return run / _COLLABORATIVE_FOLDER / f"share-{precision}.json"


def _model_file(run: Path) -> Path:
    return run / _COLLABORATIVE_FOLDER / "model.safetensors"


def labelled(bench: Bench, config: DistillationConfig) -> tuple[Sequence[Window], Distillation]:
    """The windows with the targets that a stage is restored on, and the loss of a student on them.

    Raises:
        RunError: signals or the sequence model of an earlier call are damaged.
    """
    windows: Sequence[Window] = [*bench.training, *bench.augmented]
    log_probs: LogProbs = among_vocabulary
    if config.among == "catalogue":
        trie = bench.validation.trie
        windows, log_probs = at_decisions(windows, trie), Children(trie).among_catalogue
    source = _source(bench, config, windows, log_probs) if config.forward_kl else None
    return windows, Distillation(config, source, log_probs)


def _source(
    bench: Bench, config: DistillationConfig, windows: Sequence[Window], log_probs: LogProbs
) -> SignalSource:
    signal = config.signal
    if not isinstance(signal, CachedSignal):
        return LiveTeacher(bench.teacher.model, log_probs)
    # All that the signals depend on; the data set and the teacher are the run's own.
    augmentation = None if bench.augmentation is None else (bench.augmentation.model_dump(), bench.seed)
    depends: list[object] = [config.among, signal.precision, augmentation, LAYOUT]
    if signal.collaborative:
        model, share = _second_teacher(bench, signal.precision)
        log_probs = Mixture(bench.validation.trie, model, windows, share.share).log_probs
        # Trained again it is another one, be it in the last bits.
        depends += [sha256_of(_model_file(bench.folder)), share.share]
    folder = bench.folder / f"signals-{signal.top_k}-{digest(*depends)}"
    counter = bench.reporter.counter("caching the teacher's signals")
    cache_signals(bench.teacher.model, windows, log_probs, signal, folder, counter)
    return CachedTeacher(folder, windows)


def _second_teacher(bench: Bench, precision: Precision) -> tuple[SasRec, TeachersShare]:
    """The sequence model, and the first teacher's share that suits titles of the validation split."""
    validation = bench.validation
    lessons = TitleLessons(TitleSequences(validation.trie), bench.training, validation.windows, bench.seed)
    known = bench.teacher_folder / COLLABORATIVE_FILE
    model = kept_on_titles(_model_file(bench.folder), lessons, bench.reporter, known)

    def measured() -> TeachersShare:
        return processes.once(lambda: _share(bench, model, precision))

    share = kept(_share_file(bench.folder, precision), TeachersShare, measured)
    bench.reporter.say(
        f"collaborative signal: {share.collaborative:.2f} nats per title on the validation split, the "
        f"teacher {share.teacher:.2f}, both {share.mixture:.2f} with {share.share:.0%} of the teacher"
    )
    return model, share


def _share(bench: Bench, model: SasRec, precision: Precision) -> TeachersShare:
    windows = bench.validation.windows
    drawn = np.random.default_rng(bench.seed).permutation(len(windows))[:_HELD_OUT_WINDOWS]
    teacher_Q, other_Q = held_out_log_probs(
        bench.teacher.model, model, [windows[index] for index in drawn], bench.validation.trie, precision
    )
    share = best_share(teacher_Q, other_Q)
    mixture_Q = torch.logaddexp(teacher_Q + np.log(share), other_Q + np.log1p(-share))
    return TeachersShare(
        teacher=-teacher_Q.mean().item(),
        collaborative=-other_Q.mean().item(),
        mixture=-mixture_Q.mean().item(),
        share=share,
    )
