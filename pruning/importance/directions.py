"""The directions of the residual stream along which most of what is read from it lies.

Shapes: C hidden channels, S real tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from pruning import processes
from pruning.importance.activation import reading_input
from pruning.importance.calibration import CalibrationBatch
from pruning.importance.forward import enter, measuring, run_layers
from pruning.importance.scores import Progress
from pruning.surgery.adapter import CausalModel


def principal_directions(
    model: CausalModel, calibration: Sequence[CalibrationBatch], progress: Progress
) -> Tensor:
    """(C, C) orthonormal columns, the direction with most energy first, float64.

    They are the eigenvectors of the second moment of the normalised stream, summed over all norms that
    read it and all real tokens; normalised, so that the few tokens of huge norm count as any other.

    Args:
        model: a canonical model; the same afterwards.
        calibration: the users whose tokens are read.
        progress: told of every batch.
    """
    channels = model.config.hidden_size
    moment_CC = torch.zeros(channels, channels, dtype=torch.float64, device=model.device)
    mine = processes.share(calibration)
    with measuring(model) as decoder:
        norms = [decoder.final_norm]
        for layer in decoder.layers:
            norms += [layer.input_norm, layer.post_attention_norm]
        for index, batch in enumerate(mine):
            stream = enter(model, decoder, batch)
            add = _adding(moment_CC, stream.real_RT, model.config.rms_norm_eps)
            with ExitStack() as hooks:
                for norm in norms:
                    hooks.enter_context(reading_input(norm, add))
                decoder.final_norm(run_layers(decoder.layers, stream.hidden_RTC, stream))
            progress(index + 1, len(mine))
    _, ascending_CC = torch.linalg.eigh(processes.total(moment_CC).cpu())
    basis_CC: Tensor = ascending_CC.flip(-1)
    # A direction has no sign; this one makes equal inputs give equal files.
    largest_1C = basis_CC.abs().argmax(dim=0, keepdim=True)
    return basis_CC * basis_CC.gather(0, largest_1C).sign()


def _adding(moment_CC: Tensor, real_RT: Tensor, epsilon: float) -> Callable[[Tensor], None]:
    def add(stream_RTC: Tensor) -> None:
        read_SC = stream_RTC[real_RT].double()
        unit_SC = read_SC * (read_SC.square().mean(dim=-1, keepdim=True) + epsilon).rsqrt()
        moment_CC.add_(unit_SC.T @ unit_SC)

    return add
