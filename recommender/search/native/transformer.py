"""A `LeanTransformer`'s weights, packed for the kernels, and the two calls that the search makes of them.

A pass over a small model is a hundred small operations; called one by one from Python they take twice the
time of their products. The kernels do a pass in one call, on as many threads as torch has, and a token's
hidden state does not depend, to the last bit, on what is read beside it.

A pass reads every weight, and few tokens are little work for so many bytes. So weights that are bfloat16
anyhow stand in memory as such; all arithmetic is float32.
"""

from __future__ import annotations

import ctypes
import weakref

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from recommender.search.key_values import KeyValueCache
from recommender.search.native import library
from recommender.search.reading import (
    Children,
    Float32Array,
    Float64Array,
    Reading,
    Transformer,
    child_edges,
)
from recommender.search.transformer import Layer, LeanTransformer
from recommender.trie import Int32Array, TitleTrie


def fastest(model: LeanTransformer) -> Transformer:
    """The same model by the kernels, where there are any for this processor and its type of number."""
    levels = library.levels()
    if not levels or model.dtype != torch.float32:
        return model
    return NativeTransformer(model, library.load(levels[0]))


class NativeTransformer:
    """See the module. Not thread-safe."""

    def __init__(self, model: LeanTransformer, kernels: ctypes.CDLL) -> None:
        """Packs the weights; `kernels`: what `library.load` gave.

        Raises:
            MemoryError: there is no memory for the threads.
        """
        arch = model.architecture
        self.architecture = arch
        self.dtype = model.dtype
        self._kernels = kernels
        self._lanes: int = kernels.espalier_lanes()
        self._frequencies = arch.inverse_frequencies()
        self._cosines = self._sines = torch.empty(0, arch.head_dim // 2)
        self._held: list[Tensor] = []
        self._halves = model.fits_bfloat16
        embedding = self._kept(self._narrow(model.embedding_VH))
        tied = model.head_VH is model.embedding_VH
        self._head = embedding if tied else self._kept(self._narrow(model.head_VH))
        layers = (library.Layer * arch.num_hidden_layers)(*map(self._layer, model.layers))
        self._model = library.Model(
            hidden=arch.hidden_size,
            heads=arch.num_attention_heads,
            kv_heads=arch.num_key_value_heads,
            head_dim=arch.head_dim,
            inner=arch.intermediate_size,
            layers=arch.num_hidden_layers,
            halves=self._halves,
            epsilon=arch.rms_norm_eps,
            embedding=embedding,
            norm=self._kept(model.norm_H),
            layer=layers,
        )
        self._pool = kernels.espalier_pool(torch.get_num_threads(), arch.num_hidden_layers)
        if not self._pool:
            raise MemoryError("no memory for the kernels' threads")
        closing = weakref.finalize(self, kernels.espalier_close_pool, self._pool)
        closing.atexit = False  # a daemon thread may be in the middle of a pass when the interpreter ends

    @property
    def nbytes(self) -> int:
        """Bytes of the weights held, shared ones once."""
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in self._held}.values())

    def new_cache(self) -> KeyValueCache:
        return KeyValueCache(self.architecture, self.dtype)

    def read(self, reading: Reading, cache: KeyValueCache) -> Float32Array:
        """See `Transformer`.

        Raises:
            MemoryError: there is no memory for the pass.
        """
        self._rotations(cache.columns)
        tokens = reading.rows_5T.shape[1]
        first = reading.rows_5T.ctypes.data
        out_WH = np.empty((len(reading.wanted_W), self.architecture.hidden_size), np.float32)
        asked = library.Reading(
            tokens,
            len(reading.wanted_W),
            *(first + row * 4 * tokens for row in range(5)),
            reading.wanted_W.ctypes.data,
            cache.above_SC.ctypes.data,
            cache.buffer_SPKCD.data_ptr(),
            cache.columns,
            self._cosines.data_ptr(),
            self._sines.data_ptr(),
            out_WH.ctypes.data,
        )
        if self._kernels.espalier_read(self._model, asked, self._pool):
            raise MemoryError(f"no memory to read {tokens} tokens")
        return out_WH

    def score(
        self, hidden_SH: Float32Array, trie: TitleTrie, nodes_S: Int32Array, scores_S: Float64Array
    ) -> Children:
        """See `Transformer`."""
        offsets = child_edges(trie, nodes_S)
        nodes_E, scores_E = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.float64)
        nodes_S, scores_S, hidden_SH = map(np.ascontiguousarray, (nodes_S, scores_S, hidden_SH))
        asked = library.Scoring(
            len(nodes_S),
            self.architecture.hidden_size,
            self._halves,
            nodes_S.ctypes.data,
            offsets.ctypes.data,
            trie.child_offsets.ctypes.data,
            trie.label_offsets.ctypes.data,
            trie.label_tokens.ctypes.data,
            self._head,
            hidden_SH.ctypes.data,
            scores_S.ctypes.data,
            nodes_E.ctypes.data,
            scores_E.ctypes.data,
        )
        self._kernels.espalier_score(asked, self._pool)
        return Children(nodes_E, scores_E, offsets)

    def _rotations(self, columns: int) -> None:
        """Cosines and sines of every position below `columns`, which bounds them."""
        if columns > len(self._cosines):
            angles = torch.outer(torch.arange(columns).float(), self._frequencies)
            self._cosines, self._sines = angles.cos(), angles.sin()

    def _layer(self, layer: Layer) -> library.Layer:
        inner = self.architecture.intermediate_size
        padded = -(-inner // self._lanes) * self._lanes
        # In turns of a vector each, so that a gate meets its up in the registers.
        halves_2FH = layer.gate_up_weight.view(2, inner, -1)
        padded_2FH = F.pad(halves_2FH, (0, 0, 0, padded - inner))
        turns = padded_2FH.view(2, padded // self._lanes, self._lanes, -1).transpose(0, 1).flatten(0, 2)
        return library.Layer(
            input_norm=self._kept(layer.input_norm_H),
            qkv=self._packed(layer.qkv_weight),
            qkv_bias=self._padded(layer.qkv_bias),
            qk_norm=self._kept(layer.qk_norm_XD),
            o=self._packed(layer.o_weight),
            o_bias=self._padded(layer.o_bias),
            mlp_norm=self._kept(layer.mlp_norm_H),
            gate_up=self._packed(turns),
            down=self._packed(layer.down_weight, depth=padded),
        )

    def _packed(self, weight: Tensor, depth: int | None = None) -> int:
        rows, own = weight.shape
        depth = depth or own
        packed = torch.empty(
            -(-rows // (2 * self._lanes)) * 2 * self._lanes * depth,
            dtype=torch.bfloat16 if self._halves else torch.float32,
        )
        weight = weight.contiguous()
        self._kernels.espalier_pack(weight.data_ptr(), rows, own, depth, self._halves, packed.data_ptr())
        return self._kept(packed) or 0

    def _narrow(self, weight: Tensor) -> Tensor:
        return weight.bfloat16() if self._halves else weight

    def _padded(self, bias: Tensor | None) -> int | None:
        return None if bias is None else self._kept(F.pad(bias, (0, -len(bias) % (2 * self._lanes))))

    def _kept(self, tensor: Tensor | None) -> int | None:
        """The address of a tensor that from now on lives as long as this."""
        if tensor is None:
            return None
        tensor = tensor.contiguous()
        self._held.append(tensor)
        return tensor.data_ptr()
