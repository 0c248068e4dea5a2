"""A lean forward pass of Llama, Qwen2 and Qwen3 for searching a trie, in torch.

It is the reference for the kernels of `native`, and what runs where there are none. Linear layers see
all tokens of all requests in one flat batch without padding. Keys and values stand in one buffer, a row
(*slot*) a request: the prompt's first, then one column a token of each trie node read so far.

Shapes: T tokens of all requests, W wanted, S slots or trie nodes, Q tokens of a slot, C columns, H hidden,
N query heads, K key/value heads, X = N + K, D head_dim, F intermediate, V vocabulary.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from recommender.errors import UnsupportedModelError
from recommender.search.architecture import Architecture
from recommender.search.key_values import KeyValueCache
from recommender.search.reading import Children, Float32Array, Float64Array, Reading, child_edges
from recommender.trie import Int32Array, TitleTrie

_ROWS = 1024


@dataclass(frozen=True)
class Layer:
    """One decoder layer; projections that share an input are fused."""

    input_norm_H: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    qk_norm_XD: Tensor | None
    o_weight: Tensor
    o_bias: Tensor | None
    mlp_norm_H: Tensor
    gate_up_weight: Tensor
    down_weight: Tensor


class LeanTransformer:
    """The model's weights and its two calls, without gradients."""

    def __init__(
        self, architecture: Architecture, tensors: Mapping[str, Tensor], dtype: torch.dtype
    ) -> None:
        """Takes Hugging Face's tensors by their names.

        Raises:
            UnsupportedModelError: a tensor is missing or of another shape than the config says, or the
                weights hold one that we would not use.
        """
        weights = _Tensors(tensors, dtype)
        vocabulary, hidden = architecture.vocab_size, architecture.hidden_size
        self.architecture = architecture
        self.dtype = dtype
        self.embedding_VH = weights.take("model.embed_tokens.weight", vocabulary, hidden)
        self.layers = [
            _layer(weights, f"model.layers.{i}", architecture)
            for i in range(architecture.num_hidden_layers)
        ]
        self.norm_H = weights.take("model.norm.weight", hidden)
        if architecture.tie_word_embeddings:
            weights.ignore("lm_head.weight")  # some writers repeat the embedding
            self.head_VH = self.embedding_VH
        else:
            self.head_VH = weights.take("lm_head.weight", vocabulary, hidden)
        weights.refuse_leftovers()
        self._frequencies = architecture.inverse_frequencies()
        self._cos_C1D = self._sin_C1D = torch.empty(0, 1, architecture.head_dim, dtype=dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights held, fused copies included, shared ones once."""
        held = [self.embedding_VH, self.norm_H, self.head_VH]
        for layer in self.layers:
            held.extend(t for t in vars(layer).values() if t is not None)
        return sum({t.data_ptr(): t.nbytes for t in held if t is not None}.values())

    @property
    def matrices(self) -> list[Tensor]:
        """Every weight that is no vector; embedding and head may be the same."""
        of_layers = [
            (layer.qkv_weight, layer.o_weight, layer.gate_up_weight, layer.down_weight)
            for layer in self.layers
        ]
        return [self.embedding_VH, self.head_VH, *itertools.chain.from_iterable(of_layers)]

    @functools.cached_property
    def fits_bfloat16(self) -> bool:
        """Whether every matrix is of bfloat16s, so that half its bytes say all."""
        rows = (
            matrix[first : first + _ROWS]  # their copies are small
            for matrix in self.matrices
            for first in range(0, len(matrix), _ROWS)
        )
        return all(torch.equal(some.bfloat16().to(some.dtype), some) for some in rows)

    def new_cache(self) -> KeyValueCache:
        return KeyValueCache(self.architecture, self.dtype)

    @torch.inference_mode()
    def read(self, reading: Reading, cache: KeyValueCache) -> Float32Array:
        """See `Transformer`: (W, H) in float32, whatever the weights' type."""
        runs = _runs(reading, cache)
        tokens_T, positions_T, slots_T, columns_T, _ = torch.from_numpy(reading.rows_5T).long()
        rotation = self._rotation(positions_T, cache.columns)
        hidden_TH = self.embedding_VH[tokens_T]
        for index, layer in enumerate(self.layers):
            q_TND, k_TKD, v_TKD = self._qkv(layer, hidden_TH, rotation)
            keys_SKCD, values_SKCD = cache.keys(index), cache.values(index)
            keys_SKCD[slots_T, :, columns_T] = k_TKD
            values_SKCD[slots_T, :, columns_T] = v_TKD
            if layer is self.layers[-1]:  # the others' keys and values are all that is needed of them
                wanted_W = torch.from_numpy(reading.wanted_W).long()
                q_TND, hidden_TH = q_TND[wanted_W], hidden_TH[wanted_W]
                runs = _narrowed(runs, reading.wanted_W)
            mixed = [run.attend(q_TND, keys_SKCD, values_SKCD) for run in runs]
            hidden_TH = self._finish_layer(layer, hidden_TH, torch.cat(mixed))
        normed: Float32Array = self._norm(hidden_TH, self.norm_H).float().numpy()
        return normed

    @torch.inference_mode()
    def score(
        self, hidden_SH: Float32Array, trie: TitleTrie, nodes_S: Int32Array, scores_S: Float64Array
    ) -> Children:
        """See `Transformer`; only the children's rows of the head are read."""
        offsets = child_edges(trie, nodes_S)
        if not offsets[-1]:  # the root of no titles
            return Children(np.zeros(0, np.int32), np.zeros(0), offsets)
        counts_S = np.diff(offsets)
        parents_E = np.repeat(np.arange(len(nodes_S)), counts_S)
        within_E = np.arange(offsets[-1]) - offsets[:-1][parents_E]
        children_E = (trie.child_offsets[nodes_S][parents_E] + 1 + within_E).astype(np.int32)
        tokens_E = trie.label_tokens[trie.label_offsets[children_E]]
        # index_select and a product in place: indexing takes three times as long where children are many.
        products_EH = self.head_VH.index_select(0, torch.from_numpy(tokens_E.astype(np.int64)))
        products_EH *= torch.from_numpy(hidden_SH[parents_E]).to(self.dtype)
        logits_E = products_EH.sum(-1).double().numpy()
        shifted_E = logits_E - np.maximum.reduceat(logits_E, offsets[:-1])[parents_E]
        sums_S = np.add.reduceat(np.exp(shifted_E), offsets[:-1])
        return Children(children_E, scores_S[parents_E] + shifted_E - np.log(sums_S)[parents_E], offsets)

    def _qkv(
        self, layer: Layer, hidden_TH: Tensor, rotation: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        arch = self.architecture
        fused = F.linear(self._norm(hidden_TH, layer.input_norm_H), layer.qkv_weight, layer.qkv_bias)
        heads = fused.view(len(hidden_TH), -1, arch.head_dim)
        keys_from = arch.num_attention_heads
        values_from = keys_from + arch.num_key_value_heads
        # Slices: `torch.split` goes through Python, and costs as much as a product of a small model.
        rotated, v_TKD = heads[:, :values_from], heads[:, values_from:]
        if layer.qk_norm_XD is not None:
            rotated = self._norm(rotated, None) * layer.qk_norm_XD
        rotated = _rotate(rotated, *rotation)
        return rotated[:, :keys_from], rotated[:, keys_from:], v_TKD

    def _finish_layer(self, layer: Layer, hidden_TH: Tensor, mixed_TX: Tensor) -> Tensor:
        hidden_TH = hidden_TH + F.linear(mixed_TX, layer.o_weight, layer.o_bias)
        gate_TF, up_TF = F.linear(self._norm(hidden_TH, layer.mlp_norm_H), layer.gate_up_weight).chunk(
            2, dim=-1
        )
        return hidden_TH + F.linear(F.silu(gate_TF) * up_TF, layer.down_weight)

    def _norm(self, x: Tensor, gain: Tensor | None) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), gain, self.architecture.rms_norm_eps)

    def _rotation(self, positions_T: Tensor, columns: int) -> tuple[Tensor, Tensor]:
        """(T, 1, D) twice: cosines, and sines whose first half is negated; `columns` bounds positions."""
        if columns > len(self._cos_C1D):
            angles = torch.outer(torch.arange(columns).float(), self._frequencies)[:, None]
            self._cos_C1D = torch.cat((angles, angles), dim=-1).cos().to(self.dtype)
            self._sin_C1D = torch.cat((-angles, angles), dim=-1).sin().to(self.dtype)
        return self._cos_C1D[positions_T], self._sin_C1D[positions_T]


@dataclass(frozen=True)
class _Run:
    """The tokens of one slot: which of T they are, and which columns each of them sees."""

    slot: int
    tokens: slice
    visible_QC: Tensor

    def attend(self, q_TND: Tensor, keys_SKCD: Tensor, values_SKCD: Tensor) -> Tensor:
        """(Q, N · D)."""
        columns = self.visible_QC.shape[1]
        mixed_NQD = F.scaled_dot_product_attention(
            q_TND[self.tokens].transpose(0, 1)[None],
            keys_SKCD[self.slot : self.slot + 1, :, :columns],
            values_SKCD[self.slot : self.slot + 1, :, :columns],
            attn_mask=self.visible_QC,
            enable_gqa=True,
        )[0]
        return mixed_NQD.transpose(0, 1).flatten(1)


def _runs(reading: Reading, cache: KeyValueCache) -> list[_Run]:
    _, _, slots_T, columns_T, prefixes_T = reading.rows_5T
    starts = np.flatnonzero(np.diff(slots_T, prepend=-1))
    runs = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(slots_T)], strict=True):
        tokens = slice(start, stop)
        slot, columns_Q, prefixes_Q = int(slots_T[start]), columns_T[tokens], prefixes_T[tokens]
        visible_QC = np.arange(columns_Q.max() + 1) < prefixes_Q[:, None]
        path_Q = columns_Q
        while (below := path_Q >= prefixes_Q).any():
            visible_QC[below, path_Q[below]] = True
            path_Q = np.where(below, cache.above_SC[slot, path_Q], path_Q)
        runs.append(_Run(slot, tokens, torch.from_numpy(visible_QC)))
    return runs


def _narrowed(runs: Sequence[_Run], wanted_W: Int32Array) -> list[_Run]:
    """The runs of the wanted tokens alone, which are numbered anew."""
    narrowed = []
    for run in runs:
        start, stop = np.searchsorted(wanted_W, (run.tokens.start, run.tokens.stop)).tolist()
        if start < stop:
            rows = torch.from_numpy(wanted_W[start:stop] - run.tokens.start).long()
            narrowed.append(_Run(run.slot, slice(start, stop), run.visible_QC[rows]))
    return narrowed


class _Tensors:
    """Hugging Face's tensors by name, counting which were used."""

    def __init__(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        self._left = dict(tensors)
        self._dtype = dtype

    def take(self, name: str, *shape: int) -> Tensor:
        tensor = self._left.pop(name, None)
        if tensor is None:
            raise UnsupportedModelError(f"the weights lack {name}, which the config asks for")
        if tensor.shape != shape:
            raise UnsupportedModelError(
                f"{name} has the shape {tuple(tensor.shape)}; the config says {shape}"
            )
        return tensor.detach().to(self._dtype).contiguous()

    def ignore(self, name: str) -> None:
        self._left.pop(name, None)

    def refuse_leftovers(self) -> None:
        if self._left:
            raise UnsupportedModelError(
                f"the weights hold {sorted(self._left)[0]}, which this architecture does not use"
            )


def _layer(weights: _Tensors, name: str, arch: Architecture) -> Layer:
    attention, mlp = f"{name}.self_attn", f"{name}.mlp"
    hidden, inner, width = arch.hidden_size, arch.intermediate_size, arch.head_dim
    q_width, kv_width = arch.num_attention_heads * width, arch.num_key_value_heads * width
    widths = {"q": q_width, "k": kv_width, "v": kv_width}
    qkv_weights = [weights.take(f"{attention}.{x}_proj.weight", n, hidden) for x, n in widths.items()]
    qkv_bias = o_bias = qk_norm_XD = None
    if arch.qkv_bias:
        qkv_bias = torch.cat([weights.take(f"{attention}.{x}_proj.bias", n) for x, n in widths.items()])
    if arch.o_bias:
        o_bias = weights.take(f"{attention}.o_proj.bias", hidden)
    if arch.family == "qwen3":
        q_norm_D = weights.take(f"{attention}.q_norm.weight", width)
        k_norm_D = weights.take(f"{attention}.k_norm.weight", width)
        heads, heads_k = arch.num_attention_heads, arch.num_key_value_heads
        qk_norm_XD = torch.cat((q_norm_D.expand(heads, width), k_norm_D.expand(heads_k, width)))
    return Layer(
        input_norm_H=weights.take(f"{name}.input_layernorm.weight", hidden),
        qkv_weight=torch.cat(qkv_weights),
        qkv_bias=qkv_bias,
        qk_norm_XD=qk_norm_XD,
        o_weight=weights.take(f"{attention}.o_proj.weight", hidden, q_width),
        o_bias=o_bias,
        mlp_norm_H=weights.take(f"{name}.post_attention_layernorm.weight", hidden),
        gate_up_weight=torch.cat(
            [weights.take(f"{mlp}.{x}_proj.weight", inner, hidden) for x in ("gate", "up")]
        ),
        down_weight=weights.take(f"{mlp}.down_proj.weight", hidden, inner),
    )


def _rotate(x_TXD: Tensor, cos_T1D: Tensor, sin_T1D: Tensor) -> Tensor:
    """Rotary embedding, in Hugging Face's split-halves layout; `sin_T1D` has the signs."""
    return torch.addcmul(x_TXD * cos_T1D, x_TXD.roll(x_TXD.shape[-1] // 2, -1), sin_T1D)
