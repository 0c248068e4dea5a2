"""At which stage each part of the teacher went.

A stage's cut counts in the model that it cuts; here the cuts are composed, so that everything is told in
the teacher's own indices. 0 stands for what is still there, n for what went in stage n.

Shapes: L layers, H query heads, C hidden channels, F MLP neurons, all of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pruning.surgery.retained import Cut
from pruning.surgery.shape import Shape

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fates:
    """Stage numbers, 0 where the part is still there.

    Heads and neurons of a layer that went keep the fate they had before, so that one can see what the
    earlier stages chose in it.
    """

    layers_L: IntArray
    heads_LH: IntArray
    hidden_C: IntArray
    mlp_LF: IntArray


def fates_of(teacher: Shape, cuts: Sequence[Cut]) -> Fates:
    """Composes the cuts of stages 1, 2, … of a teacher in canonical form."""
    layers = teacher.num_hidden_layers
    fates = Fates(
        np.zeros(layers, np.int64),
        np.zeros((layers, teacher.num_attention_heads), np.int64),
        np.zeros(teacher.hidden_size, np.int64),
        np.zeros((layers, teacher.intermediate_size), np.int64),
    )
    for number, cut in enumerate(cuts, start=1):
        alive = np.flatnonzero(fates.layers_L == 0)
        if cut.heads is not None:
            for layer, kept in zip(alive, cut.heads.query, strict=True):
                _drop(fates.heads_LH[layer], kept, number)
        if cut.hidden is not None:
            _drop(fates.hidden_C, cut.hidden.channels, number)
        if cut.mlp is not None:
            for layer, kept in zip(alive, cut.mlp.neurons, strict=True):
                _drop(fates.mlp_LF[layer], kept, number)
        if cut.layers is not None:
            _drop(fates.layers_L, cut.layers.layers, number)
    return fates


def _drop(fate_X: IntArray, kept: Sequence[int], number: int) -> None:
    """Marks what is alive and not kept; `kept` counts among the living."""
    alive = np.flatnonzero(fate_X == 0)
    fate_X[np.delete(alive, list(kept))] = number
