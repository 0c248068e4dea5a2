"""One request's search: the open nodes with their scores, and the titles found so far.

Scores are sums of log-probabilities, so they only fall along a path: an open node's score bounds
everything below it. The search may stop as soon as the k-th best finished item beats every open node;
what it has then is the exact top k.

Among very many titles the proof costs far more than the titles do: most of the nodes that could still
hold a better one hold none. So a search may give its proof up, and go on with the most hopeful nodes alone.

Shapes: O open nodes, S nodes selected for a step, X children.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recommender.search.filters import ItemFilter
from recommender.trie import Int32Array, TitleTrie

Float64Array = npt.NDArray[np.float64]

# The best title under a node scores less than the node by .40 times the logarithm of how many titles it
# has, in the mean, alike for two and for hundreds (docs/results/search_steps_202611.md). Half of that, so
# that few nodes are given up which hold a title of the top k.
_DROP = 0.2


@dataclass(frozen=True)
class Query:
    """What to rank.

    Attributes:
        prompt: token ids, never empty.
        k: how many items are wanted (titles, with `distinct_titles`), at least 1.
        items: which items may come out; None: all.
        distinct_titles: count a title once, however many items bear it (evaluation ranks titles).
    """

    prompt: tuple[int, ...]
    k: int
    items: ItemFilter | None = None
    distinct_titles: bool = False


@dataclass(frozen=True)
class Found:
    """The best leaves, best first, with at least k items between them if so many survive.

    Attributes:
        leaves: leaf numbers of the trie.
        scores: natural logarithms of the titles' trie-renormalised probabilities.
        exact: the ranking is proven; False: the proof would have cost too much.
        prompt_tokens: tokens of the prompt.
        cached_tokens: how many of them were remembered, and not read again.
        steps: model steps after the prefill.
    """

    leaves: tuple[int, ...]
    scores: tuple[float, ...]
    exact: bool
    prompt_tokens: int
    cached_tokens: int
    steps: int


@dataclass(frozen=True)
class SearchLimits:
    """How wide a step is and what a proof may cost.

    Attributes:
        width: open nodes expanded in a step (k of them when k is larger).
        proof_nodes: when more nodes than this (plus 8 · k) would have to be expanded to prove the result,
            it stays unproven: only the `width` most hopeful open nodes are kept, now and after each step,
            which ends the search within the depth of the trie.
    """

    width: int = 24
    proof_nodes: int = 384


@dataclass(frozen=True)
class Selection:
    """Open nodes to read now: trie nodes, their scores, and what each hangs from, in the caller's terms."""

    nodes_S: Int32Array
    scores_S: Float64Array
    origins_S: Int32Array


class Frontier:
    """Open nodes and finished titles of one query."""

    def __init__(self, query: Query, trie: TitleTrie, limits: SearchLimits, cached_tokens: int = 0) -> None:
        self.query = query
        self._cached_tokens = cached_tokens
        self.steps = 0
        self._trie = trie
        self._width = max(limits.width, query.k)
        self._proof_nodes = limits.proof_nodes + 8 * query.k  # that may still be expanded
        self._proving = True
        self._exact = True
        self._nodes = np.zeros(0, np.int32)
        self._scores = np.zeros(0, np.float64)
        self._origins = np.zeros(0, np.int32)
        self._finished: list[tuple[float, int]] = []  # (-score, leaf), the best first, trimmed to k items
        self._threshold = -np.inf  # the k-th finished item's score once there are k

    @property
    def done(self) -> bool:
        return not len(self._nodes)

    def add_children(self, nodes_X: Int32Array, scores_X: Float64Array, origins_X: Int32Array) -> None:
        """Takes children that were just scored: leaves are finished, the rest opens, the hopeless go."""
        # First of all, since what is looked up below lies all over a large trie.
        hopeful = np.flatnonzero(scores_X > self._threshold)
        nodes_X, scores_X = nodes_X[hopeful], scores_X[hopeful]
        leaf = self._trie.child_offsets[nodes_X] == self._trie.child_offsets[nodes_X + 1]
        alive = np.ones(len(nodes_X), np.bool_)
        if self.query.items is not None:
            start, stop = self._trie.leaf_start[nodes_X], self._trie.leaf_stop[nodes_X]
            alive = self.query.items.alive(start, stop)
        finished = leaf & alive
        if finished.any():
            self._finish(self._trie.leaf_start[nodes_X[finished]], scores_X[finished])
            self._prune(self._scores > self._threshold)
        opened = ~leaf & alive & (scores_X > self._threshold)
        self._open(nodes_X[opened], scores_X[opened], origins_X[hopeful[opened]])

    def add_rest(self, node: int, bound: float, origin: int) -> None:
        """Takes the children of `node` that were not handed over, as one open node: none beats `bound`.

        It comes out of `select` as `node` again, with the origin given here.
        """
        survives = self.query.items is None or self.query.items.alive(
            self._trie.leaf_start[[node]], self._trie.leaf_stop[[node]]
        )
        if survives and bound > self._threshold:
            self._open(np.array([node], np.int32), np.array([bound]), np.array([origin], np.int32))

    def stay_within_limits(self) -> None:
        """Gives the proof up if it would cost too much. To be called when a step's children are all in."""
        if self._proving and len(self._nodes) <= self._proof_nodes:
            return  # even if all of them have to be expanded
        expected = self._scores - _DROP * np.log(self._titles_below(self._nodes))
        if self._proving and np.count_nonzero(self._scores > self._foreseen(expected)) <= self._proof_nodes:
            return
        self._proving = False
        hopeful = expected > self._threshold
        if np.count_nonzero(hopeful) > self._width:
            hopeful = np.zeros(len(self._nodes), np.bool_)
            hopeful[np.argpartition(-expected, self._width - 1)[: self._width]] = True
        if not hopeful.all():
            self._exact = False
            self._prune(hopeful)

    def select(self) -> Selection:
        """Takes the nodes to expand next out of the open ones."""
        if len(self._nodes) > self._width:
            chosen = np.argpartition(-self._scores, self._width - 1)[: self._width]
        else:
            chosen = np.arange(len(self._nodes))
        selection = Selection(self._nodes[chosen], self._scores[chosen], self._origins[chosen])
        left = np.ones(len(self._nodes), np.bool_)
        left[chosen] = False
        self._prune(left)
        self._proof_nodes -= len(chosen)
        self.steps += 1
        return selection

    def result(self) -> Found:
        return Found(
            leaves=tuple(leaf for _, leaf in self._finished),
            scores=tuple(-negated for negated, _ in self._finished),
            exact=self._exact,
            prompt_tokens=len(self.query.prompt),
            cached_tokens=self._cached_tokens,
            steps=self.steps,
        )

    def _foreseen(self, expected_O: Float64Array) -> float:
        """The score that the k-th title may be expected to have in the end."""
        titles = np.concatenate((expected_O, [-negated for negated, _ in self._finished]))
        if len(titles) < self.query.k:
            return -np.inf
        return float(np.partition(titles, -self.query.k)[-self.query.k])

    def _titles_below(self, nodes_O: Int32Array) -> Int32Array:
        return self._trie.leaf_stop[nodes_O] - self._trie.leaf_start[nodes_O]

    def _open(self, nodes_X: Int32Array, scores_X: Float64Array, origins_X: Int32Array) -> None:
        self._nodes = np.concatenate((self._nodes, nodes_X))
        self._scores = np.concatenate((self._scores, scores_X))
        self._origins = np.concatenate((self._origins, origins_X))

    def _finish(self, leaves: Int32Array, scores: Float64Array) -> None:
        if len(scores) > self.query.k:  # each has an item at least
            within = scores >= np.partition(scores, -self.query.k)[-self.query.k]
            leaves, scores = leaves[within], scores[within]
        found = zip((-scores).tolist(), leaves.tolist(), strict=True)
        self._finished = sorted([*self._finished, *found])
        items = 0
        for position, (negated, leaf) in enumerate(self._finished):
            items += self._count(leaf)
            if items >= self.query.k:
                del self._finished[position + 1 :]
                self._threshold = -negated
                return

    def _count(self, leaf: int) -> int:
        if self.query.distinct_titles:
            return 1
        if self.query.items is not None:
            return self.query.items.count(leaf)
        return len(self._trie.items_of(leaf))

    def _prune(self, keep_O: npt.NDArray[np.bool_]) -> None:
        self._nodes, self._scores, self._origins = (
            self._nodes[keep_O],
            self._scores[keep_O],
            self._origins[keep_O],
        )
