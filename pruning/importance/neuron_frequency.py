"""The paper's score of MLP neurons: how often one is among the layer's strongest.

Shapes: L layers, F neurons, N predictions, B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from pruning import processes
from pruning.importance.calibration import CalibrationBatch, count_predictions
from pruning.importance.forward import Stream, enter, measuring, run_layers
from pruning.importance.scores import Progress
from pruning.surgery.adapter import CausalModel


def score_neurons(
    model: CausalModel,
    calibration: Sequence[CalibrationBatch],
    kept: int,
    progress: Progress,
) -> Tensor:
    """Importance of every neuron, (L, F), float64, 0 … 1; higher is worth more.

    arXiv 2507.07064: the share of predictions at which a neuron's output of the up projection is
    among the layer's `kept` highest. As published, the raw value counts, without the gate and with
    its sign, so a strongly negative output counts as weak; `activation` scores read the gated
    magnitude instead. The published code reads every position of one padded user; here the
    positions that predict title tokens of all users are read.

    Args:
        model: a canonical model.
        calibration: the users.
        kept: neurons that the target keeps.
        progress: told of every batch.

    Raises:
        RecipeError: nothing is to predict.
    """
    predictions = count_predictions(calibration)
    mine = processes.share(calibration)
    sizes = (model.config.num_hidden_layers, model.config.intermediate_size)
    counts_LF = torch.zeros(sizes, dtype=torch.float64, device=model.device)
    with measuring(model) as decoder:
        for index, batch in enumerate(mine):
            stream = enter(model, decoder, batch)
            with ExitStack() as hooks:
                for counts_F, layer in zip(counts_LF, decoder.layers, strict=True):
                    hook = _counting(counts_F, stream, kept)
                    hooks.callback(layer.up.register_forward_hook(hook).remove)
                run_layers(decoder.layers, stream.hidden_RTC, stream)
            progress(index + 1, len(mine))
    return (processes.total(counts_LF) / predictions).cpu()


def _counting(
    counts_F: Tensor, stream: Stream, kept: int
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(_: nn.Module, __: tuple[Tensor, ...], output_BTF: Tensor) -> None:
        strongest_NK = output_BTF[stream.rows_N, stream.columns_N].topk(kept, dim=-1).indices
        counts_F.add_(torch.bincount(strongest_NK.flatten(), minlength=len(counts_F)))

    return hook
