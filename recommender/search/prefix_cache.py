"""Keys and values of prompts read before, so that a returning user's prompt is read from its news on.

Prompts only grow at their end (`recommender/prompt.py`), and all begin with the instruction. So a
prompt is remembered in blocks of a few tokens, each under the block before it: a tree whose paths are
prefixes, keyed by the token ids themselves. What was not met for the longest time goes first; a block is
met whenever one below it is, so only ends of paths go, and the instruction stays.

Shapes: as in `key_values`; M blocks of a prefix, N places in the pool, W tokens of a block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recommender.search.architecture import Architecture
from recommender.search.key_values import bits_of

BLOCK = 8


@dataclass(eq=False, slots=True)
class _Block:
    """A prefix that ends with these tokens; its keys and values stand at `place` in the pool."""

    tokens: tuple[int, ...]
    place: int
    parent: _Block | None = None
    below: dict[tuple[int, ...], _Block] = field(default_factory=dict)


class PrefixCache:
    """Remembers within a bound of bytes. With room for no block it remembers nothing."""

    def __init__(self, architecture: Architecture, dtype: torch.dtype, max_bytes: int) -> None:
        planes, heads = 2 * architecture.num_hidden_layers, architecture.num_key_value_heads
        shape = (planes, heads, BLOCK, architecture.head_dim)
        one = bits_of(torch.empty(shape, dtype=dtype))
        self._block_bytes = one.nbytes
        places = max_bytes // self._block_bytes
        # Untouched pages of it take no memory yet.
        self._pool_NPKWD = np.empty((places, *shape), one.dtype)
        self._free = list(reversed(range(places)))
        self._root = _Block((), place=-1)
        self._by_age: OrderedDict[_Block, None] = OrderedDict()  # what was met longest ago comes first

    @property
    def nbytes(self) -> int:
        """Bytes of what is remembered."""
        return len(self._by_age) * self._block_bytes

    def restore(self, prompt: Sequence[int], slot_PKCD: Tensor) -> int:
        """Copies the longest remembered prefix into a slot. Returns its length in tokens.

        The prompt's last token is always left to read: its hidden state is what is asked for.
        """
        path = self._path(prompt, (len(prompt) - 1) // BLOCK)
        if not path:
            return 0
        self._meet(path)
        slot_PKMWD = _in_blocks(slot_PKCD, 0, len(path))
        for at, block in enumerate(path):
            slot_PKMWD[:, :, at] = self._pool_NPKWD[block.place]
        return len(path) * BLOCK

    def keep(self, prompt: Sequence[int], slot_PKCD: Tensor) -> None:
        """Remembers the prompt's whole blocks from a slot that holds all of it."""
        blocks = len(prompt) // BLOCK
        path = self._path(prompt, blocks)
        known = len(path)
        self._meet(path)
        while len(path) < blocks and (place := self._place(path)) is not None:
            above = path[-1] if path else self._root
            tokens = tuple(prompt[len(path) * BLOCK : (len(path) + 1) * BLOCK])
            above.below[tokens] = block = _Block(tokens, place, above)
            path.append(block)
            self._by_age[block] = None
        if len(path) > known:
            slot_PKMWD = _in_blocks(slot_PKCD, known, len(path))
            for at, block in enumerate(path[known:]):
                self._pool_NPKWD[block.place] = slot_PKMWD[:, :, at]
            self._meet(path)

    def _path(self, prompt: Sequence[int], blocks: int) -> list[_Block]:
        path: list[_Block] = []
        at = self._root
        for start in range(0, blocks * BLOCK, BLOCK):
            following = at.below.get(tuple(prompt[start : start + BLOCK]))
            if following is None:
                break
            path.append(following)
            at = following
        return path

    def _meet(self, path: Sequence[_Block]) -> None:
        """The end first: a block is never older than those below it."""
        for block in reversed(path):
            self._by_age.move_to_end(block)

    def _place(self, path: Sequence[_Block]) -> int | None:
        """A free place; the oldest block's when all are taken, unless the path itself needs that one."""
        if self._free:
            return self._free.pop()
        oldest = next(iter(self._by_age), None)
        if oldest is None or oldest in path:
            return None
        assert oldest.parent is not None
        del self._by_age[oldest]
        del oldest.parent.below[oldest.tokens]
        return oldest.place


def _in_blocks(slot_PKCD: Tensor, first: int, stop: int) -> npt.NDArray[np.signedinteger]:
    """(P, K, stop - first, W, D) these blocks of a slot, in place."""
    planes, heads, _, width = slot_PKCD.shape
    columns = bits_of(slot_PKCD)[:, :, first * BLOCK : stop * BLOCK]
    # A view, since an axis is only split; the tests write through it.
    return columns.reshape(planes, heads, stop - first, BLOCK, width)
