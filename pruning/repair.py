"""Closed-form repair: after a cut, the two projections that write to the residual stream are refitted.

A cut takes contributions out of the stream. What is left can partly stand in for them: for each layer
that stays, `o_proj` and then `down_proj` are fitted by ridge regression so that the student's stream
after them comes nearest to the teacher's at the same place, on the kept channels, over calibration
tokens. The place after a layer is the teacher's stream *before the next layer that stays*, so the last
kept layer before a gap also stands in for the layers that went. Layers are fitted in order, each on what
the repaired ones before it give; so errors are compensated, not piled up.

Where hidden channels went, the norms' gains are matched first: a norm now divides by the root mean square
of the kept channels alone, which is another number.

The fit stays near the weights that were cut: with inputs X, the stream that is still missing Y and the cut
weights W₀, it is the W that minimises ‖X Wᵀ - Y‖² + λ ‖W - W₀‖², λ relative to the mean diagonal of XᵀX.

Shapes: B rows, T positions, S real tokens of all batches, C kept channels, I inputs of a projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pruning import processes
from pruning.importance.calibration import CalibrationBatch
from pruning.importance.forward import Stream, enter, measuring, run_layer, run_layers
from pruning.importance.scores import Progress
from pruning.surgery.adapter import CausalModel, DecoderModules, LayerModules
from pruning.surgery.retained import Cut


@dataclass(frozen=True)
class _Goals:
    """The teacher's stream on the kept channels, per batch: after attention and at the end of a layer."""

    middle: tuple[Tensor, ...]
    end: tuple[Tensor, ...]


def repair(
    before: CausalModel,
    after: CausalModel,
    cut: Cut,
    calibration: Sequence[CalibrationBatch],
    ridge: float,
    progress: Progress,
) -> None:
    """Refits `after`, which `cut` made from `before`, in place.

    Args:
        before: the model that was cut; untouched.
        after: the cut model, already sliced.
        cut: what was kept, which says which channels and layers correspond.
        calibration: the users whose tokens are fitted.
        ridge: λ as a share of the mean diagonal of XᵀX, above 0.
        progress: told of every layer.
    """
    kept = cut.layers.layers if cut.layers else tuple(range(before.config.num_hidden_layers))
    mine = processes.share(calibration)
    channels = torch.tensor(cut.hidden.channels) if cut.hidden else slice(None)
    with measuring(before) as whole, measuring(after) as small:
        if cut.hidden is not None:
            _match_gains(before, whole, small, kept, torch.tensor(cut.hidden.channels), mine)
        goals = _goals(before, whole, kept, channels, mine)
        streams = [enter(after, small, batch) for batch in mine]
        for position, (layer, goal) in enumerate(zip(small.layers, goals, strict=True)):
            _refit(layer, layer.attention_output, streams, goal.middle, ridge)
            _refit(layer, layer.down, streams, goal.end, ridge)
            streams = [
                replace(stream, hidden_RTC=run_layer(layer, stream.hidden_RTC, stream))
                for stream in streams
            ]
            progress(position + 1, len(goals))


def ridge_fit(gram_II: Tensor, cross_IC: Tensor, ridge: float) -> Tensor:
    """(I, C): argmin_D ‖X D - R‖² + λ ‖D‖² from XᵀX and XᵀR, with λ = ridge · mean diagonal."""
    strength = ridge * gram_II.diagonal().mean().clamp_min(1e-12)
    identity = torch.eye(len(gram_II), dtype=gram_II.dtype, device=gram_II.device)
    solution: Tensor = torch.linalg.solve(gram_II + strength * identity, cross_IC)
    return solution


def _match_gains(
    model: CausalModel,
    whole: DecoderModules,
    small: DecoderModules,
    kept: Sequence[int],
    channels: Tensor,
    calibration: Sequence[CalibrationBatch],
) -> None:
    """Scales the cut norms' gains so that what they give comes nearest to what it was on the kept channels.

    A norm now divides by the root mean square over the kept channels; wanted is that over all of them.
    The mean over tokens of the first over the second is the factor of least squared error, since each
    token's kept part, once normalised, is equally long.
    """
    epsilon = model.config.rms_norm_eps
    norms = [norm for index in kept for norm in _norms_of(whole.layers[index])] + [whole.final_norm]
    cut_norms = [norm for layer in small.layers for norm in _norms_of(layer)] + [small.final_norm]
    sums = torch.zeros(len(norms), dtype=torch.float64, device=model.device)
    tokens = torch.zeros((), dtype=torch.float64, device=model.device)
    for batch in calibration:
        stream = enter(model, whole, batch)
        with ExitStack() as hooks:
            reads = [hooks.enter_context(_input_of(norm)) for norm in norms]
            whole.final_norm(run_layers(whole.layers, stream.hidden_RTC, stream))
        for place, read in enumerate(reads):
            squares_SC = read[0][stream.real_RT].double().square()
            kept_S, whole_S = squares_SC[:, channels].mean(-1), squares_SC.mean(-1)
            sums[place] += ((kept_S + epsilon) / (whole_S + epsilon)).sqrt().sum()
        tokens += stream.real_RT.sum()
    sums, tokens = processes.total(sums), processes.total(tokens)
    for norm, ratio in zip(cut_norms, (sums / tokens).tolist(), strict=True):
        norm.get_parameter("weight").mul_(ratio)


def _norms_of(layer: LayerModules) -> tuple[nn.Module, nn.Module]:
    return layer.input_norm, layer.post_attention_norm


def _goals(
    model: CausalModel,
    decoder: DecoderModules,
    kept: Sequence[int],
    channels: Tensor | slice,
    calibration: Sequence[CalibrationBatch],
) -> list[_Goals]:
    """For each kept layer the teacher's stream after its attention, and before the next kept layer."""
    middles: list[list[Tensor]] = [[] for _ in kept]
    ends: list[list[Tensor]] = [[] for _ in kept]
    for batch in calibration:
        stream = enter(model, decoder, batch)
        hidden = stream.hidden_RTC
        position = -1
        for index, layer in enumerate(decoder.layers):
            with _input_of(layer.post_attention_norm) as middle:
                hidden = run_layer(layer, hidden, stream)
            if index in kept:
                position += 1
                middles[position].append(middle[0][stream.real_RT][:, channels])
                ends[position].append(hidden[stream.real_RT][:, channels])
            elif position >= 0:  # a layer that goes: the last kept one before it aims beyond it
                ends[position][-1] = hidden[stream.real_RT][:, channels]
    return [_Goals(tuple(middle), tuple(end)) for middle, end in zip(middles, ends, strict=True)]


def _refit(
    layer: LayerModules,
    projection: nn.Module,
    streams: Sequence[Stream],
    goals: Sequence[Tensor],
    ridge: float,
) -> None:
    """Moves the projection's weights so that the stream behind it comes nearest to the goals."""
    weight = projection.get_parameter("weight")
    inputs = weight.shape[1]
    gram_II = torch.zeros(inputs, inputs, dtype=torch.float64, device=weight.device)
    cross_IC = torch.zeros(inputs, weight.shape[0], dtype=torch.float64, device=weight.device)
    at_middle = projection is layer.attention_output
    for stream, goal_SC in zip(streams, goals, strict=True):
        with _input_of(projection) as read, _input_of(layer.post_attention_norm) as middle:
            end = run_layer(layer, stream.hidden_RTC, stream)
        reached_SC = (middle[0] if at_middle else end)[stream.real_RT]
        x_SI = read[0][stream.real_RT].double()
        gram_II += x_SI.T @ x_SI
        cross_IC += x_SI.T @ (goal_SC - reached_SC).double()
    gram_II, cross_IC = processes.total(gram_II), processes.total(cross_IC)
    weight.add_(ridge_fit(gram_II, cross_IC, ridge).T.to(weight.dtype))


@contextmanager
def _input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """What the module reads while the block runs."""
    seen: list[Tensor] = []

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])

    handle = module.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
