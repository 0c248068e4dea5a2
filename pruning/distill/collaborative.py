"""What the teacher does not know of who liked what, mixed into its signals.

A language model that was fine-tuned on a few ten thousand histories knows words well and habits less
well than a small sequence model that knows nothing else (`sasrec.py`). A mixture of both distributions
over titles is better than either, and a student can learn it as it learns its teacher's.

With a share s of the teacher, the mixture gives a title s·T(title) + (1 - s)·S(title). Of a trie's node n
and its child c, T(n) and S(n) being the sums over the titles below, it is therefore exactly

    p(c | n) = (s·T(n)·T(c | n) + (1 - s)·S(n)·S(c | n)) / (s·T(n) + (1 - s)·S(n)),

and T(n) is the product of the teacher's choices on the way to n. S has a millionth of its mass spread
evenly over all titles, so that a sum over few of them is never lost in the rounding of the sum over all.

Shapes: P decisions, V vocabulary, X children of all their nodes, Q target titles, L leaves (titles).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from pruning import processes
from pruning.distill.sasrec import EPOCHS, PartlyPredicted, SasRec, fit_sasrec, parts
from pruning.distill.signals import DenseSignal
from pruning.errors import RunError
from pruning.progress import Reporter
from pruning.training.batches import Batch, batches_in_order
from pruning.training.decisions import NEVER, Children, at_decisions
from pruning.training.logits import target_logits
from pruning.training.precision import Precision, multiplying_in
from pruning.training.windows import Window
from recommender.ranking import DEPTH, gains
from recommender.storage import write_file
from recommender.trie import TitleTrie

_TOKENS_PER_BATCH = 4096
# Steps hold the scores of all titles at some thousand places, several times over.
_MOST_TITLES = 50_000
_SPREAD = 1e-6
_LESSONS = "lessons"
"""In a model's file, the digest of what it has learnt."""


class TitleSequences:
    """Windows as sequences of leaves, each behind a beginning that stands before every first title."""

    def __init__(self, trie: TitleTrie) -> None:
        self._leaf_I = trie.leaf_of_items()
        self.leaves = trie.leaf_count

    @property
    def ids(self) -> int:
        """How many ids there are: the leaves, and the beginning."""
        return self.leaves + 1

    def of(self, windows: Sequence[Window]) -> list[PartlyPredicted]:
        """The windows' titles, of which those that are targets there are predicted."""
        return [
            PartlyPredicted(
                (self.leaves, *self._leaf_I[list(window.items)].tolist()), len(window.target_from)
            )
            for window in windows
        ]

    def probs(self, model: SasRec, windows: Sequence[Window]) -> Tensor:
        """(Q, L) float64: of every title, where the windows' targets are."""
        probs_QL = model.scores(self.of(windows))[:, : self.leaves].double().softmax(-1)
        return probs_QL.mul_(1 - _SPREAD).add_(_SPREAD / self.leaves)


@dataclass(frozen=True)
class TitleLessons:
    """What a sequence model learns from, which decides what becomes of it.

    Attributes:
        training: windows that are learned from.
        validation: those that choose the epoch.
        seed: of weights, order and dropout.
    """

    titles: TitleSequences
    training: Sequence[Window]
    validation: Sequence[Window]
    seed: int

    def digest(self) -> str:
        """Names these lessons: a model of the same ones is the same."""
        read = [
            [(sequence.ids, sequence.predicted) for sequence in self.titles.of(windows)]
            for windows in (self.training, self.validation)
        ]
        return hashlib.sha256(json.dumps([self.titles.ids, read, self.seed]).encode()).hexdigest()


def fit_on_titles(lessons: TitleLessons, reporter: Reporter) -> SasRec:
    """Learns them.

    Raises:
        RunError: so many titles that their scores would not fit in memory.
    """
    titles = lessons.titles
    if titles.leaves > _MOST_TITLES:
        raise RunError(
            f"{titles.leaves:,} titles are too many for a sequence model that scores all of them at once "
            f"(at most {_MOST_TITLES:,}); do without `collaborative`"
        )
    learned, held_out = titles.of(lessons.training), titles.of(lessons.validation)
    longest = max(len(sequence.ids) - 1 for sequence in (*learned, *held_out))

    def ndcg10(model: SasRec) -> float:
        ranks = []
        for part in parts(len(held_out)):
            scores_QL = model.scores(held_out[part])[:, : titles.leaves]
            target_Q1 = torch.tensor([leaf for s in held_out[part] for leaf in s.targets])[:, None]
            ranks.append((scores_QL >= scores_QL.gather(1, target_Q1)).sum(1).numpy())
        ranks_Q = np.concatenate(ranks)
        return float(gains(np.where(ranks_Q <= DEPTH, ranks_Q, 0), 10).mean())

    count = reporter.counter("training a sequence model of the histories' titles")
    reached: list[float] = []

    def told(epoch: int, quality: float) -> None:
        reached.append(quality)
        count(epoch, EPOCHS)

    model = fit_sasrec(titles.ids, longest, learned, ndcg10, lessons.seed, told)
    count(EPOCHS, EPOCHS)
    best = max(reached)
    reporter.say(f"sequence model: validation NDCG@10 {best:.4f} after {reached.index(best) + 1} epochs")
    return model


def kept_on_titles(
    file: Path, lessons: TitleLessons, reporter: Reporter, known: Path | None = None
) -> SasRec:
    """The model that stands in `file`, or one that learns the lessons now, and then stands there.

    Args:
        file: where it is kept.
        lessons: what it learns, or has learnt.
        reporter: told of the training.
        known: where another may stand, which is taken if it has learnt the same.

    Raises:
        RunError: the file is damaged, or of other titles.
    """

    def make() -> None:
        if file.exists():
            return
        digest = lessons.digest()
        if known is not None and _has_learnt(known) == digest:
            write_file(file, known.read_bytes())
            reporter.say(f"sequence model: that of {known}, which has learnt the same")
        else:
            weights = fit_on_titles(lessons, reporter).state_dict()
            write_file(file, save(weights, {_LESSONS: digest}))

    processes.once(make)
    try:
        weights = load_file(file)
        model = SasRec(lessons.titles.ids, len(weights["positions.weight"]))
        model.load_state_dict(weights)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise RunError(f"{file}: damaged ({error}); remove it and run again") from error
    return model.eval()


def _has_learnt(file: Path) -> str | None:
    """The digest of the lessons of the model in a file, if there is one and it says so."""
    try:
        with safe_open(file, "pt") as model:
            return (model.metadata() or {}).get(_LESSONS)
    except (OSError, SafetensorError):
        return None


class Mixture:
    """Mixes a sequence model's distribution over titles into the teacher's, decision by decision."""

    def __init__(
        self, trie: TitleTrie, model: SasRec, windows: Sequence[Window], teachers_share: float
    ) -> None:
        """Of the windows of all batches to come, which have `decisions`."""
        self._children = Children(trie)
        self._start_N = torch.from_numpy(trie.leaf_start.astype(np.int64))
        self._stop_N = torch.from_numpy(trie.leaf_stop.astype(np.int64))
        self._model, self._windows, self._share = model, windows, teachers_share
        self._titles = TitleSequences(trie)

    @torch.inference_mode()
    def log_probs(self, logits_PV: Tensor, batch: Batch) -> Tensor:
        """(P, V) `LogProbs` of the mixture, from the teacher's logits at a batch's decisions."""
        assert batch.nodes_P is not None, "windows without decisions"
        teacher_PV = self._children.log_probs(logits_PV, batch.nodes_P)
        nodes_P = batch.nodes_P.cpu()
        members = [self._windows[index] for index in batch.windows]
        title_P = _title_of_decisions(members)
        probs_QL = self._titles.probs(self._model, members)
        below_QL = torch.cat((torch.zeros(len(probs_QL), 1), probs_QL.cumsum(-1)), dim=1)

        def mass(title: Tensor, node: Tensor) -> Tensor:
            return below_QL[title, self._stop_N[node]] - below_QL[title, self._start_N[node]]

        chosen_P = teacher_PV.gather(1, batch.labels_P[:, None])[:, 0].double().cpu()
        teachers_P = self._share * _before(chosen_P, title_P).exp()
        others_P = (1 - self._share) * mass(title_P, nodes_P)
        rows_X, tokens_X, child_X = self._children.edges(nodes_P)
        on_device = rows_X.to(logits_PV.device), tokens_X.to(logits_PV.device)
        teacher_X = teacher_PV[on_device].double().cpu().exp()
        other_X = (1 - self._share) * mass(title_P[rows_X], child_X)
        mixed_X = (teachers_P[rows_X] * teacher_X + other_X) / (teachers_P + others_P)[rows_X]
        mixed_PV = torch.full_like(teacher_PV, NEVER)
        # A child that both give nothing is still one that may follow.
        mixed_PV[on_device] = mixed_X.log().clamp_min(NEVER / 2).to(teacher_PV)
        return mixed_PV


class SequenceSignal:
    """What the sequence model alone says of a batch's decisions: a `SignalSource` that asks no teacher."""

    def __init__(self, trie: TitleTrie, model: SasRec, windows: Sequence[Window], vocabulary: int) -> None:
        self._mixture = Mixture(trie, model, windows, teachers_share=0.0)
        self._vocabulary = vocabulary

    def signal(self, batch: Batch) -> DenseSignal:
        unread_PV = torch.zeros(len(batch.labels_P), self._vocabulary, device=batch.labels_P.device)
        return DenseSignal(self._mixture.log_probs(unread_PV, batch))


def _title_of_decisions(windows: Sequence[Window]) -> Tensor:
    """(P,) which of the windows' target titles, counted through, each of their decisions belongs to."""
    numbers: list[int] = []
    first = 0
    for window in windows:
        places = [position for position, _ in window.decisions or ()]
        numbers.extend((first + np.searchsorted(window.target_to, places, side="right")).tolist())
        first += len(window.target_from)
    return torch.tensor(numbers)


def _before(log_probs_P: Tensor, title_P: Tensor) -> Tensor:
    """(P,) the sums of what stands before each place within its title."""
    sums_P = log_probs_P.cumsum(0) - log_probs_P
    return sums_P - sums_P[torch.searchsorted(title_P, title_P)]


@torch.inference_mode()
def held_out_log_probs(
    teacher: PreTrainedModel,
    model: SasRec,
    windows: Sequence[Window],
    trie: TitleTrie,
    precision: Precision,
) -> tuple[Tensor, Tensor]:
    """(Q,) each, float64: both models' log-probabilities of the windows' target titles."""
    children, titles, decisions = Children(trie), TitleSequences(trie), at_decisions(windows, trie)
    teachers: list[Tensor] = []
    others: list[Tensor] = []
    for on_cpu in batches_in_order(decisions, _TOKENS_PER_BATCH):
        batch = on_cpu.to(teacher.device)
        assert batch.nodes_P is not None
        with multiplying_in(precision, teacher.device):
            logits_PV = target_logits(teacher, batch).float()
        chosen_P = children.log_probs(logits_PV, batch.nodes_P).gather(1, batch.labels_P[:, None])[:, 0]
        members = [decisions[index] for index in batch.windows]
        sums_Q = torch.zeros(batch.titles, dtype=torch.float64)
        teachers.append(sums_Q.index_add(0, _title_of_decisions(members), chosen_P.double().cpu()))
        target_Q1 = torch.tensor([leaf for s in titles.of(members) for leaf in s.targets])[:, None]
        others.append(titles.probs(model, members).gather(1, target_Q1)[:, 0].log())
    return torch.cat(teachers), torch.cat(others)


def best_share(teacher_Q: Tensor, other_Q: Tensor, rounds: int = 100) -> float:
    """The teacher's share that gives held-out titles the highest likelihood in the mixture.

    Expectation maximisation of one weight, which rises to the only maximum there is.

    Args:
        teacher_Q: (Q,) its log-probabilities of the titles.
        other_Q: (Q,) those of the other model.
        rounds: of it.
    """
    share = 0.5
    for _ in range(rounds):
        odds_Q = teacher_Q - other_Q + np.log(share) - np.log1p(-share)
        share = float(odds_Q.sigmoid().mean().clamp(1e-6, 1 - 1e-6))
    return share
