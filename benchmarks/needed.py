"""How much of a trie a search reads, and how much of that no exact search can leave out.

A node's score bounds everything below it. So whatever order a search takes, it has to read every node
whose score beats the last of the titles that it gives: only then is it known that none below comes first.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from benchmarks.records import Record
from recommender.ranker import Ranker
from recommender.search.architecture import Architecture
from recommender.search.frontier import Query
from recommender.search.key_values import KeyValueCache
from recommender.search.reading import Children, Float32Array, Float64Array, Reading, Transformer
from recommender.trie import Int32Array, TitleTrie


@dataclass
class _Noting:
    """A model that notes which nodes are read, and with which scores; the root, score 0, among them."""

    model: Transformer
    nodes: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def architecture(self) -> Architecture:
        return self.model.architecture

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def nbytes(self) -> int:
        return self.model.nbytes

    def new_cache(self) -> KeyValueCache:
        return self.model.new_cache()

    def read(self, reading: Reading, cache: KeyValueCache) -> Float32Array:
        return self.model.read(reading, cache)

    def score(
        self, hidden_SH: Float32Array, trie: TitleTrie, nodes_S: Int32Array, scores_S: Float64Array
    ) -> Children:
        self.nodes.extend(nodes_S.tolist())
        self.scores.extend(scores_S.tolist())
        return self.model.score(hidden_SH, trie, nodes_S, scores_S)


def tokens_of_nodes(ranker: Ranker, queries: Sequence[Query]) -> Record:
    """Mean tokens of the nodes that are read for a query, and of those that have to be; the root has none.

    The ranker's search must be idle, and its answers proven.
    """
    search, trie = ranker.search, ranker.trie
    model, read, needed = search.model, [], []
    try:
        for query in queries:
            search.model = noting = _Noting(model)
            (found,) = search.rank([query])
            nodes_N, scores_N = np.array(noting.nodes), np.array(noting.scores)
            tokens_N = trie.label_offsets[nodes_N + 1] - trie.label_offsets[nodes_N]
            read.append(int(tokens_N.sum()))
            needed.append(int(tokens_N[scores_N > found.scores[-1]].sum()))
    finally:
        search.model = model
    return {
        "node_tokens_read": round(statistics.fmean(read), 1),
        "node_tokens_needed": round(statistics.fmean(needed), 1),
    }
