"""The constrained search as vLLM runs it: one request a frontier row, one token a request.

A row asks for the n best children of one trie node, log-probabilities renormalised over all of the
node's children. Tokens that leave no choice need no row: they stand in the prompt of the next one.
What a row did not list is one open node of the frontier, bounded by the last one listed; the search
comes back to it only when that bound is among the best, and asks for more.

Searches do not wait for each other: each goes on when the last of its own rows is back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from recommender.search.frontier import Float64Array, Found, Frontier, Query, SearchLimits
from recommender.trie import Int32Array, TitleTrie

FIRST_LISTED = 64
_MORE = 16  # a row that did not list enough asks for this many times as many


@dataclass(frozen=True)
class Row:
    """One request to the model.

    Attributes:
        prompt: token ids: the query's prompt and the path to the node.
        node: the trie node whose children are asked for.
        listed: how many of them, the best.
    """

    prompt: tuple[int, ...]
    node: int
    listed: int


@dataclass(frozen=True)
class Listing:
    """A row's answer: first tokens of the best children and their log-probabilities, in any order.

    `cached_tokens` of the prompt were found in a cache.
    """

    tokens: Sequence[int]
    scores: Sequence[float]
    cached_tokens: int


class Model(Protocol):
    """Answers rows, many at a time."""

    def add(self, ticket: int, row: Row) -> None:
        """Takes a row."""
        ...

    def abort(self, tickets: Iterable[int]) -> None:
        """Forgets rows."""
        ...

    def step(self) -> list[tuple[int, Listing]]:
        """Works for a while. Returns the rows that are done."""
        ...


@dataclass(frozen=True)
class _Origin:
    """What a frontier entry hangs from: the path up to its node's label, and what is listed already.

    For the unlisted rest of a node's children: `path` is the one to the node, and `score` the node's.
    """

    path: tuple[int, ...]
    rest_of: float | None = None
    listed: frozenset[int] = frozenset()


@dataclass(frozen=True)
class _Asked:
    """A row on its way, its node's score, and the children that an earlier row listed."""

    row: Row
    score: float
    before: frozenset[int]


@dataclass
class _Search:
    frontier: Frontier
    origins: list[_Origin]
    rows: dict[int, _Asked] = field(default_factory=dict)
    answers: list[tuple[_Asked, Listing]] = field(default_factory=list)
    cached_tokens: int = 0


@dataclass(frozen=True)
class Progress:
    """What a step brought: searches whose prompt was read, and those that are done."""

    prefilled: tuple[int, ...]
    found: tuple[tuple[int, Found, int], ...]  # key, result, cached tokens of the prompt


class StepLoop:
    """Searches of one trie with one model. Not thread-safe."""

    def __init__(
        self,
        model: Model,
        trie: TitleTrie,
        limits: SearchLimits | None = None,
        first_listed: int = FIRST_LISTED,
    ) -> None:
        self._model = model
        self._trie = trie
        self._limits = limits or SearchLimits()
        self._first_listed = first_listed
        self._searches: dict[int, _Search] = {}
        self._search_of_row: dict[int, int] = {}
        self._next_row = 0

    @property
    def in_flight(self) -> int:
        return len(self._searches)

    def admit(self, key: int, query: Query) -> None:
        """Begins a search under a key of the caller's."""
        search = _Search(Frontier(query, self._trie, self._limits), [])
        self._searches[key] = search
        self._ask(key, search, 0, 0.0, query.prompt, frozenset())

    def discard(self, key: int) -> None:
        """Forgets a search, if it is still there."""
        search = self._searches.pop(key, None)
        if search is not None:
            self._model.abort(search.rows)
            for row in search.rows:
                del self._search_of_row[row]

    def step(self) -> Progress:
        """Lets the model work, and every search whose rows are all back go on."""
        prefilled, found = [], []
        for ticket, listing in self._model.step():
            key = self._search_of_row.pop(ticket)
            search = self._searches[key]
            asked = search.rows.pop(ticket)
            search.answers.append((asked, listing))
            if search.rows:
                continue
            if not search.frontier.steps:
                search.cached_tokens = listing.cached_tokens
                prefilled.append(key)
            self._take(search)
            if search.frontier.done:
                found.append((key, search.frontier.result(), search.cached_tokens))
                del self._searches[key]
            else:
                self._expand(key, search)
        return Progress(tuple(prefilled), tuple(found))

    def _take(self, search: _Search) -> None:
        """Hands the frontier what the rows listed, and an open node for what they did not."""
        prompt_length = len(search.frontier.query.prompt)
        for asked, listing in search.answers:
            children, scores = self._listed(asked.row, listing)
            path = asked.row.prompt[prompt_length:]
            fresh = ~np.isin(
                children, list(asked.before)
            )  # among equals, a longer list may begin otherwise
            origin = np.full(int(fresh.sum()), len(search.origins), np.int32)
            search.origins.append(_Origin(path))
            search.frontier.add_children(children[fresh], asked.score + scores[fresh], origin)
            if len(children) < len(self._trie.children(asked.row.node)):
                bound = asked.score + float(scores[-1])
                search.frontier.add_rest(asked.row.node, bound, len(search.origins))
                listed = asked.before.union(children.tolist())
                search.origins.append(_Origin(path, asked.score, listed))
        search.answers.clear()
        search.frontier.stay_within_limits()

    def _listed(self, row: Row, listing: Listing) -> tuple[Int32Array, Float64Array]:
        """The listed children as nodes, best first; among equals the first in the trie first."""
        children = np.asarray(self._trie.children(row.node), np.int32)
        tokens = self._trie.label_tokens[self._trie.label_offsets[children]]
        order = np.argsort(tokens)
        places = order[np.searchsorted(tokens, np.asarray(listing.tokens, np.int32), sorter=order)]
        scores = np.asarray(listing.scores, np.float64)
        best = np.lexsort((places, -scores))
        return children[places[best]], scores[best]

    def _expand(self, key: int, search: _Search) -> None:
        selection = search.frontier.select()
        prompt = search.frontier.query.prompt
        chosen = zip(
            selection.nodes_S.tolist(),
            selection.scores_S.tolist(),
            selection.origins_S.tolist(),
            strict=True,
        )
        for node, score, row in chosen:
            origin = search.origins[row]
            if origin.rest_of is None:
                path = (*origin.path, *self._trie.label(node).tolist())
                self._ask(key, search, node, score, (*prompt, *path), frozenset())
            else:
                self._ask(key, search, node, origin.rest_of, (*prompt, *origin.path), origin.listed)

    def _ask(
        self,
        key: int,
        search: _Search,
        node: int,
        score: float,
        prompt: tuple[int, ...],
        before: frozenset[int],
    ) -> None:
        wanted = len(before) * _MORE or max(self._first_listed, search.frontier.query.k)
        row = Row(prompt, node, min(wanted, len(self._trie.children(node))))
        search.rows[self._next_row] = _Asked(row, score, before)
        self._search_of_row[self._next_row] = key
        self._model.add(self._next_row, row)
        self._next_row += 1
