"""The paper's score of attention heads: what masking one does to the next-token distribution.

Shapes: L layers, H heads, E = H · head_dim entries, M heads masked at once (one variant of the batch
each), B rows, T positions, C hidden channels, N predictions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pruning import processes
from pruning.importance.calibration import CalibrationBatch, count_predictions
from pruning.importance.forward import (
    Stream,
    enter,
    log_probabilities,
    masked_heads,
    measuring,
    predicting_states,
    run_layer,
    run_layers,
    spans,
)
from pruning.importance.scores import Progress
from pruning.importance.selection import select_layer_heads
from pruning.surgery.adapter import CausalModel, DecoderModules
from pruning.surgery.shape import Shape

PREVIOUS_WEIGHT = 0.7
# Variants share a forward pass as long as it has no more tokens than this.
_TOKENS_AT_ONCE = 16_384


def score_heads(
    model: CausalModel,
    calibration: Sequence[CalibrationBatch],
    target: Shape,
    progress: Progress,
) -> Tensor:
    """Importance of every query head, (L, H), float64; higher is worth more.

    arXiv 2507.07064, section on attention heads. Layer by layer, each head is masked in turn on top
    of the heads that earlier layers have already given up. Its harm is the KL divergence
    `KL(unmasked ‖ masked)` of the next-token distribution, averaged over all predictions of the
    calibration users, min-max scaled within the layer, and smoothed over the layers:
    `score_l = 0.7 · score_{l-1} + 0.3 · harm_l`. The heads that `target` does not keep are then
    masked for all later layers, so the scores depend on the target's numbers of heads.

    Two things differ from the published code. It reads the distribution at the last position of
    padded rows, which can be padding; here only title tokens count. And it masks a head by scaling
    its queries to almost zero, which leaves a head that averages its values; here the head's output
    is zeroed, which is what removing it does.

    The residual stream before the layer at hand is kept, so masking re-runs only that layer and
    those above, with several heads as variants in one pass.

    Raises:
        RecipeError: no legal form gives the target's numbers of heads, or nothing is to predict.
    """
    shape = Shape.of(model.config)
    predictions = count_predictions(calibration)
    scores: list[Tensor] = []
    with measuring(model) as decoder:
        streams = [enter(model, decoder, batch) for batch in processes.share(calibration)]
        before = [stream.hidden_RTC for stream in streams]
        intact = [
            predicting_states(decoder, run_layers(decoder.layers, hidden, stream), stream)
            for hidden, stream in zip(before, streams, strict=True)
        ]
        for index, layer in enumerate(decoder.layers):
            harm_H = torch.zeros(shape.num_attention_heads, dtype=torch.float64)
            for hidden_BTC, stream, intact_NC in zip(before, streams, intact, strict=True):
                harm_H += _summed_divergence(decoder, index, hidden_BTC, stream, intact_NC, shape)
            scaled_H = min_max(processes.total(harm_H) / predictions)
            scores.append(
                PREVIOUS_WEIGHT * scores[-1] + (1 - PREVIOUS_WEIGHT) * scaled_H if scores else scaled_H
            )
            kept, _ = select_layer_heads(scores[-1], shape, target)
            keep_H = torch.zeros(shape.num_attention_heads)
            keep_H[list(kept)] = 1
            keep_1E = keep_H.repeat_interleave(shape.head_dim)[None].to(model.device)
            with masked_heads(layer.attention_output, keep_1E):
                before = [
                    run_layer(layer, hidden, stream) for hidden, stream in zip(before, streams, strict=True)
                ]
            progress(index + 1, len(decoder.layers))
    return torch.stack(scores)


def min_max(harm_H: Tensor) -> Tensor:
    """Scales to 0 … 1; zeros where all are equal."""
    low, high = harm_H.min(), harm_H.max()
    return torch.zeros_like(harm_H) if low == high else (harm_H - low) / (high - low)


def _summed_divergence(
    decoder: DecoderModules,
    index: int,
    hidden_BTC: Tensor,
    stream: Stream,
    intact_NC: Tensor,
    shape: Shape,
) -> Tensor:
    """KL from the intact model with each head of layer `index` masked, summed over N: (H,)."""
    rows, positions, _ = hidden_BTC.shape
    heads = shape.num_attention_heads
    at_once = min(heads, max(1, _TOKENS_AT_ONCE // (rows * positions)))
    layer, above = decoder.layers[index], decoder.layers[index + 1 :]
    keep_HE = (1 - torch.eye(heads, device=hidden_BTC.device)).repeat_interleave(shape.head_dim, dim=1)
    sums: list[Tensor] = []
    for keep_ME in torch.split(keep_HE, at_once):
        variants = len(keep_ME)
        with masked_heads(layer.attention_output, keep_ME.repeat_interleave(rows, dim=0)):
            hidden_RTC = run_layer(layer, hidden_BTC.repeat(variants, 1, 1), stream)
        hidden_RTC = run_layers(above, hidden_RTC, stream)
        hidden_MBTC = torch.unflatten(hidden_RTC, 0, (variants, rows))
        masked_MNC = decoder.final_norm(hidden_MBTC[:, stream.rows_N, stream.columns_N])
        sum_M = torch.zeros(variants, dtype=torch.float64, device=hidden_BTC.device)
        for span in spans(len(intact_NC), variants + 1, shape.vocab_size):
            intact_NV = log_probabilities(decoder, intact_NC[span])
            masked_MNV = log_probabilities(decoder, masked_MNC[:, span])
            divergence_MN = (intact_NV.exp() * (intact_NV - masked_MNV)).sum(dim=-1)
            sum_M += divergence_MN.double().sum(dim=-1)
        sums.append(sum_M)
    return torch.cat(sums).cpu()
