"""What a searched model can do, whoever computes it: read tokens, and score trie nodes' children.

Shapes: T tokens, W of them wanted, H hidden, S nodes, E their children, B slots, C columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from recommender.search.architecture import Architecture
from recommender.search.key_values import KeyValueCache
from recommender.trie import Int32Array, TitleTrie

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """Tokens to be read in one pass, those of a slot one after the other.

    A token sees the first `prefix` columns of its slot, and besides these its own column and the chain of
    columns above it (`KeyValueCache.above_SC`). A prompt's token at column c has the prefix c + 1; a trie
    node's has the whole prompt, so a prompt's keys and values are read once a request, not once a beam.

    Attributes:
        rows_5T: token ids, rotary positions, slots, columns, prefixes.
        wanted_W: which tokens' hidden states are asked for, in ascending order.
    """

    rows_5T: Int32Array
    wanted_W: Int32Array

    @classmethod
    def of(
        cls,
        tokens_T: npt.NDArray[np.integer],
        positions_T: npt.NDArray[np.integer],
        slots_T: npt.NDArray[np.integer],
        columns_T: npt.NDArray[np.integer],
        prefixes_T: npt.NDArray[np.integer],
        wanted_W: npt.NDArray[np.integer],
    ) -> Reading:
        """Takes the rows one by one, and integers of any width."""
        rows_5T = np.array((tokens_T, positions_T, slots_T, columns_T, prefixes_T), np.int32)
        return cls(rows_5T, wanted_W.astype(np.int32))


@dataclass(frozen=True)
class Children:
    """The children of S nodes.

    Attributes:
        nodes_E: trie nodes, those of one parent one after the other.
        scores_E: their parents' scores plus their log-probabilities among their siblings.
        offsets: (S + 1,) where each parent's children stand.
    """

    nodes_E: Int32Array
    scores_E: Float64Array
    offsets: Int32Array


class Transformer(Protocol):
    """A causal language model, read-only."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        ...

    def new_cache(self) -> KeyValueCache: ...

    def read(self, reading: Reading, cache: KeyValueCache) -> Float32Array:
        """(W, H): the normed hidden states that are wanted; keys and values go to the cache."""
        ...

    def score(
        self, hidden_SH: Float32Array, trie: TitleTrie, nodes_S: Int32Array, scores_S: Float64Array
    ) -> Children:
        """Scores the children of inner nodes, whose hidden states and scores are given."""
        ...


def prompts_reading(
    prompts: Sequence[Sequence[int]], first_slot: int, known: Sequence[int] | None = None
) -> Reading:
    """Whole prompts, one a slot from `first_slot` on; each one's last hidden state is wanted.

    Args:
        prompts: token ids.
        first_slot: where the first one goes.
        known: how many of each prompt's first tokens stand in its slot already, never all of them.
    """
    begins = [0] * len(prompts) if known is None else known
    new = [len(prompt) - begin for prompt, begin in zip(prompts, begins, strict=True)]
    tokens_T = np.array([t for prompt, begin in zip(prompts, begins, strict=True) for t in prompt[begin:]])
    columns_T = np.concatenate([np.arange(b, b + n) for b, n in zip(begins, new, strict=True)])
    slots_T = np.repeat(np.arange(first_slot, first_slot + len(prompts)), new)
    return Reading.of(tokens_T, columns_T, slots_T, columns_T, columns_T + 1, np.cumsum(new) - 1)


def child_edges(trie: TitleTrie, nodes_S: Int32Array) -> Int32Array:
    """(S + 1,) where each node's children stand among those of all."""
    offsets = np.zeros(len(nodes_S) + 1, np.int32)
    np.cumsum(trie.child_offsets[nodes_S + 1] - trie.child_offsets[nodes_S], out=offsets[1:])
    return offsets
