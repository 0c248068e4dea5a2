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
weights W₀, it is the W that minimises ‖X Wᵀ - Y‖² + Σ_i λ_i ‖W_i - W₀_i‖² over the inputs i, λ_i relative
to the diagonal of XᵀX, so that an input of huge values does not stiffen all others. Where the goal is
scaled, as below, so is W₀, by the mean factor.

A pretrained stream grows from layer to layer, and for some tokens it is a hundred times as large as for
others (massive activations, arXiv 2402.17762). A student of a few layers that aims at that stream inherits
weights which hardly move at the rate that the rest learns at. But what reads the stream is a norm, which
sees each token's direction alone. So a goal may be made equally large for all tokens of a place, and not
larger than a few times the embeddings.

Shapes: B rows, T positions, S real tokens of all batches, C kept channels, I inputs of a projection.
"""

from __future__ import annotations

import math
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
class _Goal:
    """What the stream is to come to at one place, on the kept channels.

    Attributes:
        of_batches: (S, C) each.
        scale: the mean over tokens of what the teacher's stream was multiplied by.
    """

    of_batches: tuple[Tensor, ...]
    scale: float


@dataclass(frozen=True)
class _Goals:
    """Of one layer: after its attention, and at its end."""

    middle: _Goal
    end: _Goal


def repair(
    before: CausalModel,
    after: CausalModel,
    cut: Cut,
    calibration: Sequence[CalibrationBatch],
    ridge: float,
    progress: Progress,
    largest: float | None = None,
) -> None:
    """Refits `after`, which `cut` made from `before`, in place.

    Args:
        before: the model that was cut; untouched.
        after: the cut model, already sliced.
        cut: what was kept, which says which channels and layers correspond.
        calibration: the users whose tokens are fitted.
        ridge: λ_i as a share of the diagonal of XᵀX, above 0.
        progress: told of every layer.
        largest: make all tokens' streams equally large, at most so many times as large as the embeddings;
            None: as large as they are in `before`.
    """
    kept = cut.layers.layers if cut.layers else tuple(range(before.config.num_hidden_layers))
    mine = processes.share(calibration)
    channels = torch.tensor(cut.hidden.channels) if cut.hidden else slice(None)
    with measuring(before) as whole, measuring(after) as small:
        if cut.hidden is not None:
            _match_gains(before, whole, small, kept, torch.tensor(cut.hidden.channels), mine)
        limit = None if largest is None else largest * _size_of_embeddings(before, whole, mine)
        goals = _goals(before, whole, kept, channels, mine, limit)
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
    """(I, C): argmin_D ‖X D - R‖² + Σ_i λ_i ‖D_i‖² from XᵀX and XᵀR, with λ = ridge · diagonal of XᵀX."""
    strengths_I = ridge * gram_II.diagonal().clamp_min(1e-12)
    solution: Tensor = torch.linalg.solve(gram_II + torch.diag(strengths_I), cross_IC)
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
    limit: float | None,
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
                middles[position].append(middle[0][stream.real_RT])
                ends[position].append(hidden[stream.real_RT])
            elif position >= 0:  # a layer that goes: the last kept one before it aims beyond it
                ends[position][-1] = hidden[stream.real_RT]
    return [
        _Goals(_goal(middle, channels, limit), _goal(end, channels, limit))
        for middle, end in zip(middles, ends, strict=True)
    ]


def _goal(streams: Sequence[Tensor], channels: Tensor | slice, limit: float | None) -> _Goal:
    """The (S, C) streams on the kept channels; with a limit, all tokens equally large, and not beyond it.

    Equally large is as the geometric mean of all, which the few huge ones hardly move.
    """
    if limit is None:
        return _Goal(tuple(stream_SC[:, channels] for stream_SC in streams), 1.0)
    sizes = [_sizes(stream_SC[:, channels]) for stream_SC in streams]  # as the student's norms will read
    size = min(limit, math.exp(_mean([size_S.log() for size_S in sizes])))
    factors = [size / size_S for size_S in sizes]
    goals = (
        factor_S[:, None] * stream_SC[:, channels]
        for factor_S, stream_SC in zip(factors, streams, strict=True)
    )
    return _Goal(tuple(goals), _mean(factors))


def _size_of_embeddings(
    model: CausalModel, decoder: DecoderModules, calibration: Sequence[CalibrationBatch]
) -> float:
    """The mean size of the stream before the first layer."""
    streams = (enter(model, decoder, batch) for batch in calibration)
    return _mean([_sizes(stream.hidden_RTC[stream.real_RT]) for stream in streams])


def _sizes(stream_SC: Tensor) -> Tensor:
    """(S,) root mean squares, as a norm reads them."""
    return stream_SC.square().mean(-1).sqrt().clamp_min(1e-6)


def _mean(values: Sequence[Tensor]) -> float:
    """Over all tokens of all processes."""
    here = [float(sum(value_S.double().sum() for value_S in values)), sum(map(len, values))]
    total, count = processes.total(torch.tensor(here, dtype=torch.float64))
    return float(total / count)


def _refit(
    layer: LayerModules,
    projection: nn.Module,
    streams: Sequence[Stream],
    goal: _Goal,
    ridge: float,
) -> None:
    """Moves the projection's weights so that the stream behind it comes nearest to the goal."""
    weight = projection.get_parameter("weight")
    weight.mul_(goal.scale)
    inputs = weight.shape[1]
    gram_II = torch.zeros(inputs, inputs, dtype=torch.float64, device=weight.device)
    cross_IC = torch.zeros(inputs, weight.shape[0], dtype=torch.float64, device=weight.device)
    at_middle = projection is layer.attention_output
    for stream, goal_SC in zip(streams, goal.of_batches, strict=True):
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
