"""How much of a teacher says the same twice: the ground on which the paper cuts inside layers.

Similarity is linear CKA (Kornblith et al., arXiv 1905.00414) with the unbiased estimator of HSIC (Song et
al., JMLR 13, 2012): 1 for features that are the same up to rotation and scale, 0 on average for
unrelated ones, however many dimensions they have. It is read where titles are predicted.

Shapes: N predictions, L layers, H query heads, D head_dim, C hidden channels, F neurons, M sets of
features that are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.importance.activation import ActivationImportance, reading_input
from pruning.importance.calibration import CalibrationBatch, count_predictions
from pruning.importance.forward import Stream, enter, measuring, run_layer
from pruning.importance.scores import Axis, Progress
from pruning.surgery.adapter import CausalModel, DecoderModules
from pruning.surgery.shape import Shape

_PREDICTIONS = 1024  # CKA compares them pair by pair
_AXES: tuple[Axis, ...] = ("heads", "hidden", "mlp", "layers")


@dataclass(frozen=True)
class Redundancy:
    """What a teacher repeats.

    Attributes:
        heads_LHH: similarity of the heads' outputs within each layer.
        stream_MM: similarity of the residual stream at M = L + 1 places: as the first layer reads it,
            and after each layer.
        influence_L: Block Influence, `1 - cos(input, output)` of each layer (ShortGPT, 2403.03853).
        hidden_C, mlp_LF: mean magnitudes of channels and neurons (Minitron, 2407.14679).
        predictions: how many predictions the similarities are read at.
    """

    heads_LHH: Tensor
    stream_MM: Tensor
    influence_L: Tensor
    hidden_C: Tensor
    mlp_LF: Tensor
    predictions: int


def measure_redundancy(
    teacher: CausalModel, calibration: Sequence[CalibrationBatch], progress: Progress
) -> Redundancy:
    """Measures a canonical teacher on calibration users; the model is the same afterwards.

    Raises:
        RecipeError: nothing is to predict.
        TrainingError: activations that are not finite.
    """
    shape = Shape.of(teacher.config)
    scores = ActivationImportance().score(teacher, calibration, _AXES, shape, progress)
    heads_LHNxD, stream_MxNxC = _read_features(teacher, calibration, shape)
    return Redundancy(
        heads_LHH=torch.stack([linear_cka(heads) for heads in heads_LHNxD]),
        stream_MM=linear_cka(stream_MxNxC),
        influence_L=scores["layers"].values,
        hidden_C=scores["hidden"].values,
        mlp_LF=scores["mlp"].values,
        predictions=len(stream_MxNxC[0]),
    )


def linear_cka(features: Sequence[Tensor]) -> Tensor:
    """(M, M) similarities of M sets of features, each (N, its own width), on the same N ≥ 4 rows.

    Sets without variance are like nothing, themselves included: 0.
    """
    grams_MK = torch.stack([_centred_gram(one).flatten() for one in features])
    products_MM = grams_MK @ grams_MK.T
    norms_M = products_MM.diagonal().clamp_min(0).sqrt()
    scale_MM = norms_M[:, None] * norms_M[None]
    similar_MM: Tensor = products_MM / scale_MM.clamp_min(1e-30)
    return torch.clamp(similar_MM, -1, 1)


def mean_similarity(similar_HH: Tensor) -> float:
    """The mean over pairs of different ones; NaN where there is no pair."""
    count = len(similar_HH)
    pairs = count * (count - 1)
    return float(similar_HH.sum() - similar_HH.diagonal().sum()) / pairs if pairs else float("nan")


def share_needed(scores_X: Tensor, share: float) -> float:
    """The smallest part of the scored things whose scores add up to `share` of all."""
    cumulative_X = scores_X.double().sort(descending=True).values.cumsum(0)
    enough = int((cumulative_X < share * cumulative_X[-1]).sum()) + 1
    return min(1.0, enough / len(scores_X))


def _centred_gram(features: Tensor) -> Tensor:
    """(N, N) U-centred Gram matrix; inner products of two are unbiased estimates of HSIC."""
    centred = features.double() - features.double().mean(dim=0)
    centred = centred / centred.norm().clamp_min(1e-30)  # float32 holds what follows
    gram_NN: Tensor = (centred @ centred.T).float()
    gram_NN.fill_diagonal_(0)
    rows = len(gram_NN)
    sums_N = gram_NN.sum(dim=0) / (rows - 2)
    total = gram_NN.sum() / ((rows - 1) * (rows - 2))
    centred_NN: Tensor = gram_NN - sums_N[:, None] - sums_N[None] + total
    return centred_NN.fill_diagonal_(0)


def _read_features(
    model: CausalModel, calibration: Sequence[CalibrationBatch], shape: Shape
) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Each layer's head outputs and the stream at L + 1 places, at evenly spread predictions."""
    total = count_predictions(calibration)
    chosen = torch.linspace(0, total - 1, min(total, _PREDICTIONS)).long()
    heads: list[list[Tensor]] = [[] for _ in range(shape.num_hidden_layers)]
    stream: list[list[Tensor]] = [[] for _ in range(shape.num_hidden_layers + 1)]
    before = 0
    with measuring(model) as decoder:
        for batch in calibration:
            entered = enter(model, decoder, batch)
            here = chosen[(chosen >= before) & (chosen < before + len(entered.labels_N))] - before
            _read_batch(decoder, entered, here, heads, stream)
            before += len(entered.labels_N)
    heads_LNE = [torch.cat(parts) for parts in heads]
    return [list(torch.split(one, shape.head_dim, dim=1)) for one in heads_LNE], [
        torch.cat(p) for p in stream
    ]


def _read_batch(
    decoder: DecoderModules,
    entered: Stream,
    chosen: Tensor,
    heads: list[list[Tensor]],
    stream: list[list[Tensor]],
) -> None:
    rows, columns = entered.rows_N[chosen], entered.columns_N[chosen]
    hidden_BTC = entered.hidden_RTC
    stream[0].append(hidden_BTC[rows, columns].cpu())
    with ExitStack() as hooks:
        for parts, layer in zip(heads, decoder.layers, strict=True):

            def keep(read_BTE: Tensor, parts: list[Tensor] = parts) -> None:
                parts.append(read_BTE[rows, columns].cpu())

            hooks.enter_context(reading_input(layer.attention_output, keep))
        for place, layer in enumerate(decoder.layers, start=1):
            hidden_BTC = run_layer(layer, hidden_BTC, entered)
            stream[place].append(hidden_BTC[rows, columns].cpu())
