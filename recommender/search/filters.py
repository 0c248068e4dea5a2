"""Which items may come out. Filters act on leaves only: they never change a score.

A branch of the trie without a surviving item below it need not be searched; since the leaves below a
node are one interval, that is two binary searches in a short sorted list, whatever the catalogue's size.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from recommender.trie import Int32Array, TitleTrie


class ItemFilter:
    """Items that survive `exclude` and, when given, stand among `candidates`."""

    def __init__(
        self,
        trie: TitleTrie,
        leaf_of_items: Int32Array,
        exclude: Collection[int] = (),
        candidates: Collection[int] | None = None,
    ) -> None:
        """Takes item indices; `leaf_of_items` is `trie.leaf_of_items()`, made once a catalogue."""
        self._trie = trie
        self._excluded = frozenset(exclude)
        self._candidates = None if candidates is None else frozenset(candidates) - self._excluded
        named = self._excluded if self._candidates is None else self._candidates
        touched, counts = np.unique(leaf_of_items[list(named)], return_counts=True)
        if self._candidates is None:
            # Dead are the leaves all of whose items are excluded.
            sizes = trie.item_offsets[touched + 1] - trie.item_offsets[touched]
            self._leaves = touched[counts == sizes]
        else:
            self._leaves = touched
        self._counts = dict(zip(touched.tolist(), counts.tolist(), strict=True))

    def alive(self, start_X: Int32Array, stop_X: Int32Array) -> npt.NDArray[np.bool_]:
        """Whether any item survives in each of the leaf intervals `[start, stop)`."""
        inside = np.searchsorted(self._leaves, stop_X) - np.searchsorted(self._leaves, start_X)
        alive: npt.NDArray[np.bool_] = (
            inside > 0 if self._candidates is not None else inside < stop_X - start_X
        )
        return alive

    def count(self, leaf: int) -> int:
        """How many of the leaf's items survive."""
        named = int(self._counts.get(leaf, 0))
        return named if self._candidates is not None else len(self._trie.items_of(leaf)) - named

    def survivors(self, leaf: int) -> list[int]:
        """The leaf's surviving items, most popular first."""
        items: list[int] = self._trie.items_of(leaf).tolist()
        if self._candidates is not None:
            return [item for item in items if item in self._candidates]
        return [item for item in items if item not in self._excluded]
