"""Keys and values of the requests in flight, one buffer for all layers.

Shapes: S slots (a request each), P planes (two a layer: its keys, then its values), K key/value heads,
C columns (tokens), D head_dim.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recommender.search.architecture import Architecture
from recommender.trie import Int32Array

_COLUMN_STEP = 64
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits_of(tensor: Tensor) -> npt.NDArray[np.signedinteger]:
    """The tensor's memory as whole numbers, for copies by numpy.

    torch copies with all its threads, each of which must be running; on a busy machine that takes
    milliseconds where one thread needs microseconds.
    """
    bits: npt.NDArray[np.signedinteger] = tensor.view(_BITS[tensor.element_size()]).numpy()
    return bits


class KeyValueCache:
    """A buffer that grows; a slot's first columns are its prompt's.

    Attributes:
        buffer_SPKCD: all there is. Zeros where nothing was written: a masked column still enters a
            product, and 0 · NaN is NaN.
        above_SC: the column before each on its path, for columns below a prompt.
        positions_SC: the rotary position of each of those.
    """

    def __init__(self, architecture: Architecture, dtype: torch.dtype) -> None:
        heads, width = architecture.num_key_value_heads, architecture.head_dim
        self.buffer_SPKCD = torch.zeros(0, 2 * architecture.num_hidden_layers, heads, 0, width, dtype=dtype)
        self.above_SC: Int32Array = np.zeros((0, 0), np.int32)
        self.positions_SC: Int32Array = np.zeros((0, 0), np.int32)

    @property
    def nbytes(self) -> int:
        return self.buffer_SPKCD.nbytes

    @property
    def slots(self) -> int:
        return self.buffer_SPKCD.shape[0]

    @property
    def columns(self) -> int:
        return self.buffer_SPKCD.shape[3]

    def keys(self, layer: int) -> Tensor:
        """(S, K, C, D): a layer's keys, to read and to write."""
        return self.buffer_SPKCD[:, 2 * layer]

    def values(self, layer: int) -> Tensor:
        """(S, K, C, D): a layer's values, to read and to write."""
        return self.buffer_SPKCD[:, 2 * layer + 1]

    def reserve(self, slots: int, columns: int) -> None:
        """Grows the buffer to at least this size; what stands in it stays."""
        if slots <= self.slots and columns <= self.columns:
            return
        old = self.buffer_SPKCD
        _, planes, heads, _, width = old.shape
        slots = max(slots, self.slots)
        columns = max(-(-columns // _COLUMN_STEP) * _COLUMN_STEP, self.columns)
        self.buffer_SPKCD = torch.zeros(slots, planes, heads, columns, width, dtype=old.dtype)
        bits_of(self.buffer_SPKCD)[: old.shape[0], :, :, : old.shape[3]] = bits_of(old)
        room = ((0, slots - old.shape[0]), (0, columns - old.shape[3]))
        self.above_SC, self.positions_SC = np.pad(self.above_SC, room), np.pad(self.positions_SC, room)

    def move(self, source: int, target: int, columns: int) -> None:
        """Copies the first `columns` of one slot over another."""
        bits = bits_of(self.buffer_SPKCD)
        bits[target, :, :, :columns] = bits[source, :, :, :columns]
        self.above_SC[target, :columns] = self.above_SC[source, :columns]
        self.positions_SC[target, :columns] = self.positions_SC[source, :columns]
