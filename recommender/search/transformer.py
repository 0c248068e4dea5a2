"""A lean forward pass of Llama, Qwen2 and Qwen3 for searching a trie.

Two calls: `prefill` reads prompts, and `extend` reads the tokens of trie nodes that hang below
them. Linear layers see all tokens of all requests in one flat batch without padding. Keys and values
stand in one buffer, a row (*slot*) a request: the prompt's first, then one column a token of each node
read so far. A node's token attends to the prompt and to its own path, which a boolean mask
says; so a prompt's keys and values are read once a request, not once a beam.

Shapes: T tokens of all requests, B slots in use, Q queries of a slot (padded), C columns, H hidden,
N query heads, K key/value heads, X = N + K, G = N / K, D head_dim, F intermediate, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from recommender.errors import UnsupportedModelError
from recommender.search.architecture import Architecture
from recommender.search.key_values import KeyValueCache


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


@dataclass(frozen=True)
class NodeTokens:
    """The tokens of the trie nodes to be read in one step, grouped by slot.

    Attributes:
        tokens_T: token ids.
        positions_T: rotary positions.
        slots_T: each token's slot, ascending.
        queries_T: the token's place among its slot's queries, 0 … Q - 1.
        columns_T: the column its keys and values go to: a slot's last ones, in order.
        visible_BQC: True where a query may attend; padding queries may attend to column 0.
    """

    tokens_T: Tensor
    positions_T: Tensor
    slots_T: Tensor
    queries_T: Tensor
    columns_T: Tensor
    visible_BQC: Tensor


class LeanTransformer:
    """The model's weights and its two forward calls, without gradients."""

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

    def new_cache(self) -> KeyValueCache:
        return KeyValueCache(self.architecture, self.dtype)

    @torch.inference_mode()
    def prefill(
        self,
        prompts: Sequence[Sequence[int]],
        first_slot: int,
        cache: KeyValueCache,
        known: Sequence[int] | None = None,
    ) -> Tensor:
        """Reads prompts into the slots `first_slot, …`.

        Args:
            prompts: token ids.
            first_slot: where the first one goes.
            cache: has room for them.
            known: how many of each prompt's first tokens stand in its slot already, never all of them.

        Returns:
            (len(prompts), H): the normed hidden state behind each prompt's last token.
        """
        begins = [0] * len(prompts) if known is None else known
        parts = [
            _Part(slot, begin, len(prompt))
            for slot, (prompt, begin) in enumerate(zip(prompts, begins, strict=True), start=first_slot)
        ]
        tokens = [prompt[part.begin :] for prompt, part in zip(prompts, parts, strict=True)]
        stops = list(accumulate(map(len, tokens)))
        spans = [slice(stop - len(new), stop) for stop, new in zip(stops, tokens, strict=True)]
        tokens_T = torch.tensor([token for new in tokens for token in new])
        positions_T = torch.cat([torch.arange(part.begin, part.end) for part in parts])
        rotation = self._rotation(positions_T, cache.columns)
        hidden_TH = self.embedding_VH[tokens_T]
        for index, layer in enumerate(self.layers):
            q_TND, k_TKD, v_TKD = self._qkv(layer, hidden_TH, rotation)
            mixed = [
                _attend_to_prompt(
                    part, cache.keys(index), cache.values(index), q_TND[new], k_TKD[new], v_TKD[new]
                )
                for part, new in zip(parts, spans, strict=True)
            ]
            hidden_TH = self._finish_layer(layer, hidden_TH, torch.cat(mixed))
        return self._norm(hidden_TH[torch.tensor(stops) - 1], self.norm_H)

    @torch.inference_mode()
    def extend(self, nodes: NodeTokens, wanted_W: Tensor, cache: KeyValueCache) -> Tensor:
        """Reads tokens of trie nodes.

        Args:
            nodes: the tokens and where they stand.
            wanted_W: indices into T whose hidden state is asked for.
            cache: where the prompts and earlier nodes stand; this step's tokens are added.

        Returns:
            (W, H): the normed hidden states of `wanted_W`.
        """
        slots, queries, columns = nodes.visible_BQC.shape
        heads_k, width = self.architecture.num_key_value_heads, self.architecture.head_dim
        group = self.architecture.num_attention_heads // heads_k
        # The query heads of a group share their keys, so they stand as further queries of one head.
        visible = nodes.visible_BQC[:, None, None].expand(slots, 1, group, queries, columns)
        visible = visible.reshape(slots, 1, group * queries, columns)
        # Attention would make this of a boolean mask in every layer.
        mask = torch.zeros(visible.shape, dtype=self.dtype).masked_fill_(~visible, -torch.inf)
        # A request alone needs no scattering: its columns follow each other, and none of its queries pads.
        alone = slice(columns - queries, columns) if slots == 1 else None
        rotation = self._rotation(nodes.positions_T, cache.columns)
        hidden_TH = self.embedding_VH[nodes.tokens_T]
        for index, layer in enumerate(self.layers):
            q_TND, k_TKD, v_TKD = self._qkv(layer, hidden_TH, rotation)
            keys_SKCD, values_SKCD = cache.keys(index), cache.values(index)
            q_TKGD = q_TND.view(-1, heads_k, group, width)
            if alone is None:
                keys_SKCD[nodes.slots_T, :, nodes.columns_T] = k_TKD
                values_SKCD[nodes.slots_T, :, nodes.columns_T] = v_TKD
                q_BQKGD = q_TND.new_zeros(slots, queries, heads_k, group, width)
                q_BQKGD[nodes.slots_T, nodes.queries_T] = q_TKGD
            else:
                keys_SKCD[0, :, alone] = k_TKD.transpose(0, 1)
                values_SKCD[0, :, alone] = v_TKD.transpose(0, 1)
                q_BQKGD = q_TKGD[None]
            out = F.scaled_dot_product_attention(
                q_BQKGD.permute(0, 2, 3, 1, 4).reshape(slots, heads_k, group * queries, width),
                keys_SKCD[:slots, :, :columns],
                values_SKCD[:slots, :, :columns],
                attn_mask=mask,
            )
            out_BQKGD = out.view(slots, heads_k, group, queries, width).permute(0, 3, 1, 2, 4)
            mixed_TX = (
                out_BQKGD[nodes.slots_T, nodes.queries_T] if alone is None else out_BQKGD[0]
            ).flatten(1)
            hidden_TH = self._finish_layer(layer, hidden_TH, mixed_TX)
        return self._norm(hidden_TH[wanted_W], self.norm_H)

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


class _Part(NamedTuple):
    """What is read of a prompt: its tokens from `begin` to `end`."""

    slot: int
    begin: int
    end: int


def _attend_to_prompt(
    part: _Part, keys_SKCD: Tensor, values_SKCD: Tensor, q_TND: Tensor, k_TKD: Tensor, v_TKD: Tensor
) -> Tensor:
    """(T, N · D): causal attention of one prompt's new tokens, whose keys and values are written."""
    slot, begin, end = part
    q, k, v = (x.transpose(0, 1) for x in (q_TND, k_TKD, v_TKD))
    keys_SKCD[slot, :, begin:end] = k
    values_SKCD[slot, :, begin:end] = v
    mask = None
    if begin:
        k, v = keys_SKCD[slot, :, :end], values_SKCD[slot, :, :end]
        mask = torch.ones(end - begin, end, dtype=torch.bool).tril(begin)
    out = F.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    return out[0].transpose(0, 1).reshape(end - begin, -1)


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
