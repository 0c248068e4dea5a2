"""Exact top-k over the catalogue, many requests in one step.

`admit` reads the prompts and scores the root; every `step` expands the best open nodes of all requests
in flight in one forward pass and hands back the requests that are done. A step's cost is one pass over
the weights whatever the number of requests, and new ones may join between any two steps.

Shapes: as in `transformer`; S selected nodes of all requests, E their children (edges).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recommender.search.frontier import Found, Frontier, Query, SearchLimits, Selection
from recommender.search.prefix_cache import PrefixCache
from recommender.search.transformer import LeanTransformer, NodeTokens
from recommender.trie import Int32Array, TitleTrie


@dataclass
class _Request:
    """A request in flight; its position in the list is its slot in the cache.

    Suffix row r is the r-th token read below the prompt: its depth below the prompt (1: the first)
    and which suffix rows it attends to.
    """

    ticket: int
    frontier: Frontier
    depths_R: Int32Array
    visible_RR: npt.NDArray[np.bool_]

    @property
    def prompt_tokens(self) -> int:
        return len(self.frontier.query.prompt)

    @property
    def columns(self) -> int:
        return self.prompt_tokens + len(self.depths_R)


class TrieSearch:
    """Searches one trie with one model. Not thread-safe: one thread owns it."""

    def __init__(
        self,
        model: LeanTransformer,
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
        first_tokens = trie.label_tokens[trie.label_offsets[np.asarray(trie.children(0), np.int64)]]
        # The root's children are scored for every request: their rows stand together.
        self._root_head_EH = model.head_VH[torch.from_numpy(first_tokens.astype(np.int64))]
        self._root_children_E = np.asarray(trie.children(0), np.int32)

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
        hidden_BH = self.model.prefill(prompts, first_slot, self.cache, known)
        for prompt, slot in zip(prompts, slots, strict=False):
            self.prefixes.keep(prompt, slot)
        scores_BE = torch.log_softmax((hidden_BH @ self._root_head_EH.T).double(), dim=-1).numpy()
        tickets = []
        for query, scores_E, cached in zip(queries, scores_BE, known, strict=True):
            frontier = Frontier(query, self.trie, self._limits, cached)
            frontier.add_children(self._root_children_E, scores_E, np.full(len(scores_E), -1, np.int32))
            self._requests.append(
                _Request(self._next_ticket, frontier, np.zeros(0, np.int32), np.zeros((0, 0), np.bool_))
            )
            tickets.append(self._next_ticket)
            self._next_ticket += 1
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
        tokens, wanted_S, last_rows_S = self._lay_out(selections)
        hidden_SH = self.model.extend(tokens, torch.from_numpy(wanted_S), self.cache)
        nodes_S = np.concatenate([selection.nodes_S for selection in selections])
        scores_S = np.concatenate([selection.scores_S for selection in selections])

        first, stop = self.trie.child_offsets[nodes_S], self.trie.child_offsets[nodes_S + 1]
        counts_S = stop - first
        parents_E = np.repeat(np.arange(len(nodes_S)), counts_S)
        children_E = (first + 1)[parents_E] + _count_up(counts_S)
        tokens_E = self.trie.label_tokens[self.trie.label_offsets[children_E]]
        scores_E = _child_log_probabilities(hidden_SH, self.model.head_VH, tokens_E, parents_E, counts_S)
        scores_E += scores_S[parents_E]

        stops = np.cumsum([len(selection.nodes_S) for selection in selections])
        edge_stops = np.cumsum(counts_S)[stops - 1]
        edge_start = 0
        for request, edge_stop in zip(self._requests, edge_stops.tolist(), strict=True):
            edges = slice(edge_start, edge_stop)
            request.frontier.add_children(
                children_E[edges].astype(np.int32), scores_E[edges], last_rows_S[parents_E[edges]]
            )
            edge_start = edge_stop

    def _lay_out(
        self, selections: Sequence[Selection]
    ) -> tuple[NodeTokens, npt.NDArray[np.int64], Int32Array]:
        """Gives the selected nodes' tokens their rows, columns, positions and masks.

        Returns:
            The tokens, the index into T of each node's last token, and that token's suffix row.
        """
        laid = [
            _append_rows(request, selection, self.trie)
            for request, selection in zip(self._requests, selections, strict=True)
        ]
        tokens_of = [len(rows.tokens) for rows in laid]
        starts = np.cumsum([0, *tokens_of])
        prompts = np.array([request.prompt_tokens for request in self._requests])
        slots_T = np.repeat(np.arange(len(laid)), tokens_of)
        columns = max(request.columns for request in self._requests)
        self.cache.reserve(len(laid), columns)
        visible_BQC = np.zeros((len(laid), max(tokens_of), columns), np.bool_)
        visible_BQC[:, :, 0] = True  # padding queries need something to attend to
        for slot, (request, rows) in enumerate(zip(self._requests, laid, strict=True)):
            prompt = request.prompt_tokens
            visible_BQC[slot, : len(rows.tokens), :prompt] = True
            visible_BQC[slot, : len(rows.tokens), prompt : request.columns] = rows.visible
        rows_T = np.concatenate([rows.rows for rows in laid])
        depths_T = np.concatenate([rows.depths for rows in laid])
        nodes = NodeTokens(
            tokens_T=torch.from_numpy(np.concatenate([rows.tokens for rows in laid])),
            positions_T=torch.from_numpy(prompts[slots_T] + depths_T - 1),
            slots_T=torch.from_numpy(slots_T),
            queries_T=torch.from_numpy(_count_up(np.array(tokens_of))),
            columns_T=torch.from_numpy(prompts[slots_T] + rows_T),
            visible_BQC=torch.from_numpy(visible_BQC),
        )
        wanted_S = np.concatenate(
            [rows.last + start for rows, start in zip(laid, starts[:-1], strict=True)]
        )
        return nodes, wanted_S, rows_T[wanted_S].astype(np.int32)


@dataclass(frozen=True)
class _Rows:
    """One request's new suffix rows; `last` indexes each node's last token among them."""

    tokens: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    depths: Int32Array
    visible: npt.NDArray[np.bool_]
    last: npt.NDArray[np.int64]


def _append_rows(request: _Request, selection: Selection, trie: TitleTrie) -> _Rows:
    """Adds the selected nodes' tokens to the request's suffix rows."""
    label_start = trie.label_offsets[selection.nodes_S].astype(np.int64)
    lengths_S = trie.label_offsets[selection.nodes_S + 1] - label_start
    node_T = np.repeat(np.arange(len(lengths_S)), lengths_S)
    within_T = _count_up(lengths_S)
    old, new = len(request.depths_R), len(node_T)

    above_S = selection.rows_S
    hangs = above_S >= 0
    depth_above_S = np.zeros(len(above_S), np.int32)
    depth_above_S[hangs] = request.depths_R[above_S[hangs]]
    seen_S = np.zeros((len(above_S), old), np.bool_)
    seen_S[hangs] = request.visible_RR[above_S[hangs], :old]

    visible = np.zeros((new, old + new), np.bool_)
    visible[:, :old] = seen_S[node_T]
    same_node = node_T[:, None] == node_T[None, :]
    visible[:, old:] = same_node & (within_T[:, None] >= within_T[None, :])
    depths = (depth_above_S[node_T] + within_T + 1).astype(np.int32)

    grown = np.zeros((old + new, old + new), np.bool_)
    grown[:old, :old] = request.visible_RR
    grown[old:] = visible
    request.visible_RR = grown
    request.depths_R = np.concatenate((request.depths_R, depths))
    return _Rows(
        tokens=trie.label_tokens[label_start[node_T] + within_T].astype(np.int64),
        rows=np.arange(old, old + new),
        depths=depths,
        visible=visible,
        last=np.cumsum(lengths_S) - 1,
    )


def _count_up(lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """[2, 3] becomes [0, 1, 0, 1, 2]."""
    stops = np.cumsum(lengths)
    total = int(stops[-1]) if len(stops) else 0
    result: npt.NDArray[np.int64] = np.arange(total) - np.repeat(stops - lengths, lengths)
    return result


def _child_log_probabilities(
    hidden_SH: Tensor,
    head_VH: Tensor,
    tokens_E: Int32Array,
    parents_E: npt.NDArray[np.int64],
    counts_S: npt.NDArray[np.integer],
) -> npt.NDArray[np.float64]:
    """(E,) log-probability of each child among its siblings; only the children's rows are scored."""
    # index_select and a product in place: indexing takes three times as long where children are many.
    products_EH = head_VH.index_select(0, torch.from_numpy(tokens_E.astype(np.int64)))
    products_EH *= hidden_SH.index_select(0, torch.from_numpy(parents_E))
    logits_E = products_EH.sum(-1).double().numpy()
    first_S = np.cumsum(counts_S) - counts_S
    highest_S = np.maximum.reduceat(logits_E, first_S)
    shifted_E = logits_E - highest_S[parents_E]
    sums_S = np.add.reduceat(np.exp(shifted_E), first_S)
    result: npt.NDArray[np.float64] = shifted_E - np.log(sums_S)[parents_E]
    return result
