"""Training where the search decides: at the catalogue's forks, among the tokens that may follow there.

Serving renormalises probabilities over the children of a trie node, and a token that has no alternative
costs nothing. So what a student needs from its teacher is the distribution over the children at each
*decision* on a title's path; the tokens between are read, but never predicted.

Shapes: P decisions of a batch, V vocabulary, X children of all their nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from pruning.training.batches import Batch
from pruning.training.windows import Window
from recommender.trie import TitleTrie

# A log-probability that is none: its exponential is 0 in every type, and 0 times it is still a number.
NEVER = -1e4


def at_decisions(windows: Sequence[Window], trie: TitleTrie) -> list[Window]:
    """The same windows with only the decisions of their target titles as targets.

    Args:
        windows: packed sequences whose titles are all in the trie.
        trie: of the same encoder's tokens.
    """
    paths = _Paths(trie)
    return [replace(window, decisions=_decisions_of(window, paths)) for window in windows]


def _decisions_of(window: Window, paths: _Paths) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for begin, end in zip(window.target_from, window.target_to, strict=True):
        found.extend((begin + depth, node) for depth, node in paths.forks(window.tokens[begin:end]))
    return tuple(found)


class _Paths:
    """Where the titles' paths fork; each title is followed once."""

    def __init__(self, trie: TitleTrie) -> None:
        self._trie = trie
        self._known: dict[tuple[int, ...], list[tuple[int, int]]] = {}

    def forks(self, title: tuple[int, ...]) -> list[tuple[int, int]]:
        """Depth in tokens and node of every fork on a title's path."""
        if title not in self._known:
            self._known[title] = list(self._follow(title))
        return self._known[title]

    def _follow(self, title: tuple[int, ...]) -> list[tuple[int, int]]:
        trie, node, depth = self._trie, 0, 0
        found = []
        while depth < len(title):
            children = trie.children(node)
            if len(children) > 1:
                found.append((depth, node))
            node = next(child for child in children if trie.label(child)[0] == title[depth])
            depth += len(trie.label(node))
        return found


class Children:
    """The tokens that may follow at a trie's nodes, as a mask over the vocabulary."""

    def __init__(self, trie: TitleTrie) -> None:
        # Edge e leads to node e + 1, so the first label tokens of nodes 1 … are the edges' tokens.
        self._offsets = torch.from_numpy(trie.child_offsets.astype(np.int64))
        self._tokens = torch.from_numpy(trie.label_tokens[trie.label_offsets[1:-1]].astype(np.int64))

    def among_catalogue(self, logits_PV: Tensor, batch: Batch) -> Tensor:
        """`log_probs` at a batch's decisions."""
        assert batch.nodes_P is not None, "windows without decisions"
        return self.log_probs(logits_PV, batch.nodes_P)

    def log_probs(self, logits_PV: Tensor, nodes_P: Tensor) -> Tensor:
        """(P, V) log-probabilities renormalised over each node's children, `NEVER` elsewhere."""
        rows_X, tokens_X, _ = self.edges(nodes_P.cpu())
        others_PV = torch.ones_like(logits_PV, dtype=torch.bool)
        others_PV[rows_X.to(logits_PV.device), tokens_X.to(logits_PV.device)] = False
        # Twice: the first keeps them out of the sum, the second makes the rest one number.
        masked_PV = logits_PV.masked_fill(others_PV, NEVER).log_softmax(dim=-1)
        return masked_PV.masked_fill(others_PV, NEVER)

    def edges(self, nodes_P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(X,) each: of every edge that leaves the nodes, row of the batch, token, and the child."""
        first_P = self._offsets[nodes_P]
        counts_P = self._offsets[nodes_P + 1] - first_P
        rows_X = torch.repeat_interleave(torch.arange(len(nodes_P)), counts_P)
        before_P = counts_P.cumsum(0) - counts_P
        edges_X = torch.arange(len(rows_X)) + (first_P - before_P)[rows_X]
        return rows_X, self._tokens[edges_X], edges_X + 1


class NextDecision:
    """Cross-entropy of the next token at a trie's decisions, among the tokens that may follow there."""

    def __init__(self, children: Children) -> None:
        self._children = children

    def __call__(self, logits_PV: Tensor, batch: Batch) -> Tensor:
        return F.nll_loss(self._children.among_catalogue(logits_PV, batch), batch.labels_P)
