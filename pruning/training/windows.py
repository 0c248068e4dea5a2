"""Packed users: a user's titles as one sequence in which every title is a target, once.

The windows are the ones that serving uses (`PromptTemplate.window_start`): the title at position t is
predicted from the titles since `window_start(t)`. Targets with the same start share a window, so a long
history becomes a few sequences that overlap on context, and no interaction is dropped or counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from recommender.dataset import Dataset, Split, UserSequence
from recommender.prompt import PromptEncoder


@dataclass(frozen=True)
class Window:
    """One packed sequence.

    Attributes:
        tokens: instruction and titles.
        target_from: positions of the first tokens of the titles that are targets here; …
        target_to: … and one past their last (the separator's). Same length as `target_from`.
        decisions: position and trie node of the tokens that are predicted; None: all of the target titles
            (`pruning.training.decisions`).
        items: the items whose titles stand in `tokens`, in their order; the targets are the last
            `len(target_from)` of them.
    """

    tokens: tuple[int, ...]
    target_from: tuple[int, ...]
    target_to: tuple[int, ...]
    decisions: tuple[tuple[int, int], ...] | None = None
    items: tuple[int, ...] = ()

    @property
    def target_tokens(self) -> int:
        """How many tokens are predicted."""
        if self.decisions is not None:
            return len(self.decisions)
        return sum(self.target_to) - sum(self.target_from)

    def targets(self) -> list[int]:
        """The positions of the predicted tokens."""
        if self.decisions is not None:
            return [position for position, _ in self.decisions]
        spans = zip(self.target_from, self.target_to, strict=True)
        return [position for begin, end in spans for position in range(begin, end)]


class Augmentation(BaseModel):
    """More histories to distil on: the teacher labels any.

    Attributes:
        copies: so many more readings of every training history.
        dropout: the probability with which each of its items is left out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    copies: Annotated[int, Field(ge=1)]
    dropout: Annotated[float, Field(gt=0, lt=1)] = 0.25


class UserPacker:
    """Packs users with one encoder; item tokens are made once."""

    def __init__(self, encoder: PromptEncoder, titles: Sequence[str]) -> None:
        self._encoder = encoder
        self._tokens_of = encoder.encode_titles(titles)

    def training(self, dataset: Dataset) -> list[Window]:
        """Every training interaction as a target; later ones are no context and no target."""
        windows: list[Window] = []
        for user in dataset.users:
            items = user.training_items
            windows.extend(self._pack(items, range(len(items))))
        return windows

    def augmented(self, dataset: Dataset, augmentation: Augmentation, seed: int) -> list[Window]:
        """Training histories with gaps: what is left of each is packed as if it had been all.

        No item is added, so nothing held out becomes a context or a target. Histories of which fewer
        than two titles are left say nothing that the whole ones do not, and are left out.
        """
        windows: list[Window] = []
        for copy in range(augmentation.copies):
            generator = np.random.default_rng((seed, copy))
            for user in dataset.users:
                stays = generator.random(len(user.training_items)) >= augmentation.dropout
                items = [item for item, kept in zip(user.training_items, stays, strict=True) if kept]
                if len(items) > 1:
                    windows.extend(self._pack(items, range(len(items))))
        return windows

    def held_out(self, dataset: Dataset, split: Split) -> list[Window]:
        """The targets of a split's rows, each after the history that serving would show."""
        windows: list[Window] = []
        for user in dataset.users:
            windows.extend(self._pack(user.items, _positions(user, split)))
        return windows

    def _pack(self, items: Sequence[int], targets: Sequence[int]) -> list[Window]:
        by_start: dict[int, list[int]] = {}
        for position in targets:
            start = self._encoder.template.window_start(position)
            by_start.setdefault(start, []).append(position)
        return [self._window(items, start, positions) for start, positions in by_start.items()]

    def _window(self, items: Sequence[int], start: int, targets: Sequence[int]) -> Window:
        wanted, stop = set(targets), max(targets) + 1
        tokens = list(self._encoder.instruction_ids)
        begins, ends = [], []
        for position in range(start, stop):
            title = self._tokens_of[items[position]]
            if position in wanted:
                begins.append(len(tokens))
                ends.append(len(tokens) + len(title))
            tokens.extend(title)
        return Window(tuple(tokens), tuple(begins), tuple(ends), items=tuple(items[start:stop]))


def _positions(user: UserSequence, split: Split) -> list[int]:
    return [position for position, of_split in enumerate(user.splits) if of_split == split]
