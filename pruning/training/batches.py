"""Batches of windows under a token budget, with little padding, new for every epoch.

Shapes: B windows of a batch, T padded tokens, P target tokens of the batch (positions to predict).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pruning.training.windows import Window


@dataclass(frozen=True)
class Batch:
    """Padded windows and where their targets are predicted.

    Attributes:
        input_ids_BT: tokens, right-padded with 0.
        attention_mask_BT: 1 on real tokens.
        row_P, column_P: where the logits of each target token are read: the place before it.
        labels_P: the target tokens.
        nodes_P: the trie nodes whose children they are among; None: they are among all tokens.
        windows: the windows' indices; their targets stand in this order, each window's in its own.
        titles: how many titles the targets make up.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    row_P: Tensor
    column_P: Tensor
    labels_P: Tensor
    nodes_P: Tensor | None
    windows: tuple[int, ...]
    titles: int

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved: dict[str, Any] = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def places_P(self) -> Tensor:  # noqa: N802 - a tensor's name
        """(P,) ascending numbers, one for each place in the batch where a target is predicted."""
        return self.row_P * self.input_ids_BT.shape[1] + self.column_P

    def target_mask(self) -> Tensor:
        """(B, T) True at target tokens."""
        mask_BT = torch.zeros_like(self.input_ids_BT, dtype=torch.bool)
        mask_BT[self.row_P, self.column_P + 1] = True
        return mask_BT

    def read(self, states_BTX: Tensor) -> Tensor:
        """(P, X): what a (B, T, X) tensor, hidden states or logits, has where the targets are predicted."""
        return states_BTX[self.row_P, self.column_P]


def collate(windows: Sequence[Window], indices: Sequence[int]) -> Batch:
    """Pads the windows named by `indices`."""
    chosen = [windows[index] for index in indices]
    longest = max(len(window.tokens) for window in chosen)
    input_ids = torch.zeros(len(chosen), longest, dtype=torch.long)
    mask = torch.zeros(len(chosen), longest, dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    labels: list[int] = []
    nodes: list[int] = []
    for row, window in enumerate(chosen):
        input_ids[row, : len(window.tokens)] = torch.tensor(window.tokens)
        mask[row, : len(window.tokens)] = 1
        targets = window.targets()
        rows.extend([row] * len(targets))
        columns.extend(position - 1 for position in targets)
        labels.extend(window.tokens[position] for position in targets)
        nodes.extend(node for _, node in window.decisions or ())
    return Batch(
        input_ids,
        mask,
        torch.tensor(rows, dtype=torch.long),
        torch.tensor(columns, dtype=torch.long),
        torch.tensor(labels, dtype=torch.long),
        torch.tensor(nodes, dtype=torch.long) if chosen[0].decisions is not None else None,
        tuple(indices),
        sum(len(window.target_from) for window in chosen),
    )


class WindowIndices(Dataset[int]):
    """The data set that a `DataLoader` samples from: a window is named by its index."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._count = len(windows)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


class TokenBudgetSampler(Sampler[list[int]]):
    """Groups windows of like length so that a batch's padded size stays near a token budget.

    Lengths are jittered anew in every epoch, so windows meet different neighbours, while the number
    of batches and their sizes stay, as a resumed run needs.
    """

    def __init__(self, windows: Sequence[Window], tokens: int, seed: int) -> None:
        self._lengths = np.array([len(window.tokens) for window in windows])
        self._seed = seed
        self._epoch = 0
        self._cuts = _cuts(np.sort(self._lengths), tokens)

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        generator = np.random.default_rng((self._seed, self._epoch))
        jitter = generator.uniform(0.9, 1.1, len(self._lengths))
        order = np.argsort(self._lengths * jitter, kind="stable")
        for batch in generator.permutation(len(self)):
            yield order[self._cuts[batch] : self._cuts[batch + 1]].tolist()


def batches_in_order(
    windows: Sequence[Window], tokens: int, members: range | None = None
) -> Iterator[Batch]:
    """Every window once, by length: for validation, calibration and caching.

    Of `members` alone, if they are given; a batch names its windows by their places in `windows` still.
    """
    chosen = np.array(range(len(windows)) if members is None else members, dtype=np.int64)
    lengths = np.array([len(windows[index].tokens) for index in chosen])
    order = np.argsort(lengths, kind="stable")
    cuts = _cuts(lengths[order], tokens)
    for begin, end in pairwise(cuts):
        yield collate(windows, chosen[order[begin:end]].tolist())


def _cuts(sorted_lengths: np.ndarray[tuple[int], np.dtype[np.int64]], tokens: int) -> list[int]:
    """Where to cut windows sorted by length into batches of about `tokens` padded tokens."""
    cuts = [0]
    for index, length in enumerate(sorted_lengths.tolist()):
        if index > cuts[-1] and (index - cuts[-1] + 1) * length > tokens:
            cuts.append(index)
    cuts.append(len(sorted_lengths))
    return cuts
