"""Exact top-k over the catalogue, many requests in one step.

`admit` reads the prompts and scores the root; every `step` expands the best open nodes of all requests
in flight in one forward pass and hands back the requests that are done. A step's cost is one pass over
the weights whatever the number of requests, and new ones may join between any two steps.

Shapes: as in `reading`; B requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recommender.search.frontier import Found, Frontier, Query, SearchLimits
from recommender.search.prefix_cache import PrefixCache
from recommender.search.reading import Children, Reading, Transformer, prompts_reading
from recommender.trie import Int32Array, TitleTrie


@dataclass
class _Request:
    """A request in flight; its position in the list is its slot in the cache.

    Attributes:
        columns: how many of its slot hold something: the prompt, then the nodes read so far.
    """

    ticket: int
    frontier: Frontier
    columns: int

    @property
    def prompt_tokens(self) -> int:
        return len(self.frontier.query.prompt)


class TrieSearch:
    """Searches one trie with one model. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        model: Transformer,
        trie: TitleTrie,
        limits: SearchLimits | None = None,
        prefix_cache_bytes: int = 0,
    ) -> None:
        """`prefix_cache_bytes` bounds what is remembered of prompts once their answer is given."""
        self.model = model
        self.trie = trie
        self.cache = model.new_cache()
        self.prefixes = PrefixCache(model.architecture, model.dtype, prefix_cache_bytes)
        self._limits = limits or SearchLimits()
        self._requests: list[_Request] = []
        self._next_ticket = 0

    @property
    def in_flight(self) -> int:
        return len(self._requests)

    def admit(self, queries: Sequence[Query]) -> list[int]:
        """Reads the prompts and scores the root's children. Returns a ticket for each query."""
        if not queries:
            return []
        first_slot = len(self._requests)
        longest = max(len(query.prompt) for query in queries)
        self.cache.reserve(first_slot + len(queries), longest)
        prompts = [query.prompt for query in queries]
        slots = self.cache.buffer_SPKCD[first_slot:]
        known = [self.prefixes.restore(prompt, slot) for prompt, slot in zip(prompts, slots, strict=False)]
        hidden_BH = self.model.read(prompts_reading(prompts, first_slot, known), self.cache)
        for prompt, slot in zip(prompts, slots, strict=False):
            self.prefixes.keep(prompt, slot)
        tickets = []
        for query, cached in zip(queries, known, strict=True):
            self.cache.positions_SC[len(self._requests), len(query.prompt) - 1] = len(query.prompt) - 1
            frontier = Frontier(query, self.trie, self._limits, cached)
            self._requests.append(_Request(self._next_ticket, frontier, len(query.prompt)))
            tickets.append(self._next_ticket)
            self._next_ticket += 1
        joined = self._requests[first_slot:]
        roots_B = np.zeros(len(joined), np.int32)
        children = self.model.score(hidden_BH, self.trie, roots_B, np.zeros(len(joined)))
        last_columns_B = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
        _hand_over(joined, np.ones(len(joined), np.int64), children, last_columns_B)
        return tickets

    def step(self) -> list[tuple[int, Found]]:
        """One forward pass for all requests in flight. Returns those that are done, by ticket."""
        finished = self._take_finished()
        if self._requests:
            self._expand()
            finished += self._take_finished()
        return finished

    def discard(self, tickets: Sequence[int]) -> None:
        """Forgets requests whose answer nobody waits for any more."""
        for slot in reversed(range(len(self._requests))):
            if self._requests[slot].ticket in tickets:
                self._release(slot)

    def rank(self, queries: Sequence[Query], batch: int = 32) -> list[Found]:
        """Ranks all queries, `batch` of them in flight at a time. Must not be mixed with `admit`."""
        results: list[Found | None] = [None] * len(queries)
        places: dict[int, int] = {}
        waiting = 0
        while waiting < len(queries) or self._requests:
            room = batch - len(self._requests)
            if waiting < len(queries) and room >= batch // 2:
                joining = queries[waiting : waiting + room]
                for ticket in self.admit(joining):
                    places[ticket] = waiting
                    waiting += 1
            for ticket, found in self.step():
                results[places.pop(ticket)] = found
        return [found for found in results if found is not None]

    def _take_finished(self) -> list[tuple[int, Found]]:
        finished = []
        for slot in reversed(range(len(self._requests))):
            request = self._requests[slot]
            if request.frontier.done:
                finished.append((request.ticket, request.frontier.result()))
                self._release(slot)
        return finished

    def _release(self, slot: int) -> None:
        last = self._requests.pop()
        if slot < len(self._requests):  # keep the slots in use together: the last one moves in
            self.cache.move(len(self._requests), slot, last.columns)
            self._requests[slot] = last

    def _expand(self) -> None:
        selections = [request.frontier.select() for request in self._requests]
        nodes_S = np.concatenate([selection.nodes_S for selection in selections])
        scores_S = np.concatenate([selection.scores_S for selection in selections])
        above_S = np.concatenate([selection.origins_S for selection in selections])
        counts_B = np.array([len(selection.nodes_S) for selection in selections])
        reading, columns_S = self._lay_out(nodes_S, above_S, counts_B)
        hidden_SH = self.model.read(reading, self.cache)
        children = self.model.score(hidden_SH, self.trie, nodes_S, scores_S)
        _hand_over(self._requests, counts_B, children, columns_S)

    def _lay_out(
        self, nodes_S: Int32Array, above_S: Int32Array, counts_B: npt.NDArray[np.integer]
    ) -> tuple[Reading, Int32Array]:
        """Gives the nodes' tokens their columns and positions, below the columns `above_S`.

        `counts_B` says how many of the nodes are each request's. The last token of each node is wanted;
        its column comes second.
        """
        label_start_S = self.trie.label_offsets[nodes_S]
        lengths_S = self.trie.label_offsets[nodes_S + 1] - label_start_S
        slots_S = np.repeat(np.arange(len(counts_B)), counts_B)
        stops_S = np.cumsum(lengths_S)
        starts_S = stops_S - lengths_S
        within_T = np.arange(stops_S[-1]) - np.repeat(starts_S, lengths_S)
        slots_T = np.repeat(slots_S, lengths_S)

        stops_B = stops_S[np.cumsum(counts_B) - 1]
        tokens_B = np.diff(stops_B, prepend=0)
        begins_B = np.array([request.columns for request in self._requests])
        columns_T = np.arange(stops_S[-1]) + (begins_B - stops_B + tokens_B)[slots_T]
        self.cache.reserve(len(counts_B), int((begins_B + tokens_B).max()))
        for request, tokens in zip(self._requests, tokens_B.tolist(), strict=True):
            request.columns += tokens

        above_T = columns_T - 1
        above_T[starts_S] = above_S
        positions_S = self.cache.positions_SC[slots_S, above_S]
        positions_T = np.repeat(positions_S, lengths_S) + 1 + within_T
        self.cache.above_SC[slots_T, columns_T] = above_T
        self.cache.positions_SC[slots_T, columns_T] = positions_T
        prompts_B = np.array([request.prompt_tokens for request in self._requests])
        tokens_T = self.trie.label_tokens[np.repeat(label_start_S, lengths_S) + within_T]
        reading = Reading.of(tokens_T, positions_T, slots_T, columns_T, prompts_B[slots_T], stops_S - 1)
        return reading, columns_T[stops_S - 1].astype(np.int32)


def _hand_over(
    requests: Sequence[_Request],
    counts_B: npt.NDArray[np.integer],
    children: Children,
    columns_S: Int32Array,
) -> None:
    """Tells each request its nodes' children, which hang from the nodes' last columns, `columns_S`."""
    columns_E = np.repeat(columns_S, np.diff(children.offsets))
    edges = [0, *children.offsets[np.cumsum(counts_B)].tolist()]
    for request, start, stop in zip(requests, edges[:-1], edges[1:], strict=True):
        request.frontier.add_children(
            children.nodes_E[start:stop], children.scores_E[start:stop], columns_E[start:stop]
        )
        request.frontier.stay_within_limits()
