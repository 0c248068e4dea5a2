"""The paper's order of layers: remove the one whose absence hurts least, again and again.

Shapes: L layers, B rows, T positions, C hidden channels, N predictions.
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
    measuring,
    predicting_states,
    run_layer,
    run_layers,
    spans,
)
from pruning.importance.scores import Progress
from pruning.surgery.adapter import CausalModel, DecoderModules


def search_layers(
    model: CausalModel, calibration: Sequence[CalibrationBatch], progress: Progress
) -> tuple[Tensor, Tensor]:
    """The order in which layers go, (L - 1,), and the loss with 0 … L-1 of them gone, (L,).

    arXiv 2507.07064 after BlockPruner: greedy search by perplexity. The loss is the mean negative
    log-likelihood (nats) of the calibration users' title tokens; perplexity is its exponential, so
    both give the same order. The published default calibrates on general instructions, this on
    recommendation. Between equals the lower layer goes.

    A layer is removed by skipping it. Candidates share the stream below them, so a step over k
    layers costs k²/2 layer passes; the search goes down to one layer, whose last steps are nearly
    free, and so holds for every target.

    Raises:
        RecipeError: nothing is to predict.
    """
    predictions = count_predictions(calibration)
    mine = processes.share(calibration)
    order: list[int] = []
    losses: list[float] = []
    with measuring(model) as decoder:
        alive = list(range(len(decoder.layers)))
        steps = len(alive) - 1
        intact = torch.zeros((), dtype=torch.float64)
        for batch in mine:
            stream = enter(model, decoder, batch)
            hidden_BTC = run_layers(decoder.layers, stream.hidden_RTC, stream)
            intact += _summed_loss(decoder, hidden_BTC, stream)
        losses.append(float(processes.total(intact)) / predictions)
        while len(alive) > 1:
            sums = torch.zeros(len(alive), dtype=torch.float64)
            for batch in mine:
                sums += _losses_without_each(decoder, alive, enter(model, decoder, batch))
            sums = processes.total(sums)
            place = int(sums.argmin())
            order.append(alive.pop(place))
            losses.append(float(sums[place]) / predictions)
            progress(len(order), steps)
    return torch.tensor(order, dtype=torch.int64), torch.tensor(losses, dtype=torch.float64)


def _losses_without_each(decoder: DecoderModules, alive: list[int], stream: Stream) -> Tensor:
    """The summed loss of one batch without each of the `alive` layers in turn."""
    layers = [decoder.layers[index] for index in alive]
    hidden_BTC = stream.hidden_RTC
    losses: list[float] = []
    for place, layer in enumerate(layers):
        without_BTC = run_layers(layers[place + 1 :], hidden_BTC, stream)
        losses.append(_summed_loss(decoder, without_BTC, stream))
        if place + 1 < len(layers):
            hidden_BTC = run_layer(layer, hidden_BTC, stream)
    return torch.tensor(losses, dtype=torch.float64)


def _summed_loss(decoder: DecoderModules, hidden_BTC: Tensor, stream: Stream) -> float:
    states_NC = predicting_states(decoder, hidden_BTC, stream)
    vocab_size = len(decoder.head.get_parameter("weight"))
    total = 0.0
    for span in spans(len(states_NC), 1, vocab_size):
        logprobs_NV = log_probabilities(decoder, states_NC[span])
        chosen_N = logprobs_NV.gather(1, stream.labels_N[span, None])[:, 0]
        total -= float(chosen_N.double().sum())
    return total
