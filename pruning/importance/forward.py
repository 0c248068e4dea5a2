"""Runs a decoder piece by piece, so that a score re-runs only what its change reaches.

Shapes: R rows (B, or B for each of M variants), T positions, C hidden channels, N predictions,
V vocabulary, E entries of all heads side by side (heads · head_dim).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from pruning.importance.calibration import CalibrationBatch
from pruning.surgery.adapter import CausalModel, DecoderModules, LayerModules, modules_of

# Vocabulary-wide intermediates are cut so that none holds more numbers than this (256 MB).
_LOGITS_AT_ONCE = 1 << 26


@dataclass(frozen=True)
class Stream:
    """One batch on its way through the layers.

    Attributes:
        hidden_RTC: the residual stream before the next layer.
        mask_1_1_TT: additive causal mask, or None where the attention knows causality itself.
            Padding needs none: it comes after every real token.
        rotary: cosines and sines, (1, T, head_dim) each.
        positions_1T: 0 … T-1.
        rows_N: row of each prediction.
        columns_N: position at which it is read.
        labels_N: the true token.
        real_RT: True at real tokens.
    """

    hidden_RTC: Tensor
    mask_1_1_TT: Tensor | None
    rotary: tuple[Tensor, Tensor]
    positions_1T: Tensor
    rows_N: Tensor
    columns_N: Tensor
    labels_N: Tensor
    real_RT: Tensor


@contextmanager
def measuring(model: CausalModel) -> Iterator[DecoderModules]:
    """Evaluation mode without gradients; the mode before comes back afterwards."""
    training = model.training
    model.train(False)
    try:
        with torch.no_grad():
            yield modules_of(model)
    finally:
        model.train(training)


def enter(model: CausalModel, decoder: DecoderModules, batch: CalibrationBatch) -> Stream:
    """Embeds a batch and prepares what all layers share."""
    batch = batch.to(model.device)
    hidden_BTC: Tensor = decoder.embedding(batch.tokens_BT)
    positions_1T = torch.arange(hidden_BTC.shape[1], device=hidden_BTC.device)[None]
    mask = create_causal_mask(
        config=model.config,
        inputs_embeds=hidden_BTC[:1],
        attention_mask=None,
        past_key_values=None,
        position_ids=positions_1T,
    )
    assert mask is None or isinstance(mask, Tensor)
    rows_N, columns_N, labels_N = batch.predictions()
    return Stream(
        hidden_RTC=hidden_BTC,
        mask_1_1_TT=mask,
        rotary=decoder.rotary(hidden_BTC, positions_1T),
        positions_1T=positions_1T,
        rows_N=rows_N,
        columns_N=columns_N,
        labels_N=labels_N,
        real_RT=batch.attention_mask_BT,
    )


def run_layer(layer: LayerModules, hidden_RTC: Tensor, stream: Stream) -> Tensor:
    """The residual stream after one layer, (R, T, C); rows may be more than the stream's own."""
    output_RTC: Tensor = layer.whole(
        hidden_RTC,
        attention_mask=stream.mask_1_1_TT,
        position_ids=stream.positions_1T,
        position_embeddings=stream.rotary,
        use_cache=False,
    )
    return output_RTC


def run_layers(layers: Sequence[LayerModules], hidden_RTC: Tensor, stream: Stream) -> Tensor:
    """The residual stream after several layers."""
    for layer in layers:
        hidden_RTC = run_layer(layer, hidden_RTC, stream)
    return hidden_RTC


def predicting_states(decoder: DecoderModules, hidden_BTC: Tensor, stream: Stream) -> Tensor:
    """What enters the vocabulary head for each prediction, (N, C)."""
    states_NC: Tensor = decoder.final_norm(hidden_BTC[stream.rows_N, stream.columns_N])
    return states_NC


def log_probabilities(decoder: DecoderModules, states: Tensor) -> Tensor:
    """Log-probabilities over the vocabulary in float32, (..., V), of states (..., C)."""
    logits: Tensor = decoder.head(states)
    return logits.float().log_softmax(dim=-1)


def spans(count: int, rows_each: int, vocab_size: int) -> Iterator[slice]:
    """Cuts `count` predictions, of `rows_each` variants each, into spans that fit in memory."""
    step = max(1, _LOGITS_AT_ONCE // (rows_each * vocab_size))
    for start in range(0, count, step):
        yield slice(start, start + step)


@contextmanager
def masked_heads(attention_output: nn.Module, keep_RE: Tensor) -> Iterator[None]:
    """Zeroes heads' outputs before they are mixed, row by row.

    Args:
        attention_output: the projection that reads the heads' outputs.
        keep_RE: one where an entry stays and zero where it goes, (R, E), or (1, E) for all rows.
    """

    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        heads_RTE, *rest = arguments
        return (heads_RTE * keep_RE[:, None, :].to(heads_RTE.dtype), *rest)

    handle = attention_output.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()
