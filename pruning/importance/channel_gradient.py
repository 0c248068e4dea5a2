"""The paper's score of hidden channels: gradient times activation of the last hidden state.

Shapes: N predictions, C hidden channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pruning import processes
from pruning.importance.calibration import CalibrationBatch, count_predictions
from pruning.importance.forward import (
    enter,
    log_probabilities,
    measuring,
    predicting_states,
    run_layers,
    spans,
)
from pruning.importance.scores import Progress
from pruning.surgery.adapter import CausalModel


def score_channels(
    model: CausalModel, calibration: Sequence[CalibrationBatch], progress: Progress
) -> Tensor:
    """Importance of every hidden channel, (C,), float64; higher is worth more.

    arXiv 2507.07064: the L2 norm over tokens of |gradient × activation| of the last hidden state h
    (after the final norm, as it enters the vocabulary head) for the predicted token y. The gradient
    of its log-probability needs no backward pass: `∂ log p(y) / ∂h = W_y - Σ_v p(v) W_v`.

    The published code takes one calibration user and the logit of the likeliest token at one
    position; here all predictions of all users count, for the token that really came.

    Raises:
        RecipeError: nothing is to predict.
    """
    count_predictions(calibration)
    mine = processes.share(calibration)
    with measuring(model) as decoder:
        weight_VC = decoder.head.get_parameter("weight")
        squares_C = torch.zeros(weight_VC.shape[1], dtype=torch.float64, device=weight_VC.device)
        for index, batch in enumerate(mine):
            stream = enter(model, decoder, batch)
            hidden_BTC = run_layers(decoder.layers, stream.hidden_RTC, stream)
            states_NC = predicting_states(decoder, hidden_BTC, stream)
            for span in spans(len(states_NC), 1, len(weight_VC)):
                probabilities_NV = log_probabilities(decoder, states_NC[span]).exp()
                expected_NC = probabilities_NV.to(weight_VC.dtype) @ weight_VC
                gradient_NC = weight_VC[stream.labels_N[span]] - expected_NC
                squares_C += (gradient_NC * states_NC[span]).double().square().sum(dim=0)
            progress(index + 1, len(mine))
    return processes.total(squares_C).sqrt().cpu()
