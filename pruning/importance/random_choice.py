"""Random scores: the control that shows what choosing well is worth."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from pruning.importance.calibration import CalibrationBatch
from pruning.importance.scores import Axis, Progress, Scores
from pruning.surgery.adapter import CausalModel
from pruning.surgery.shape import Shape


class RandomImportance:
    """Uniform scores, the same ones for the same seed and model shape."""

    name = "random"

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def parameters(self, axis: Axis, target: Shape) -> dict[str, int]:  # noqa: ARG002
        """The seed; no size of the target."""
        return {"seed": self._seed}

    def score(
        self,
        model: CausalModel,
        calibration: Sequence[CalibrationBatch],  # noqa: ARG002
        axes: Collection[Axis],
        target: Shape,
        progress: Progress,
    ) -> dict[Axis, Scores]:
        """Draws the scores of each axis; nothing is measured."""
        shape = Shape.of(model.config)
        sizes: dict[Axis, tuple[int, ...]] = {
            "heads": (shape.num_hidden_layers, shape.num_attention_heads),
            "hidden": (shape.hidden_size,),
            "mlp": (shape.num_hidden_layers, shape.intermediate_size),
            "layers": (shape.num_hidden_layers,),
        }
        found: dict[Axis, Scores] = {}
        for number, axis in enumerate(sorted(axes), start=1):
            generator = torch.Generator().manual_seed(self._seed)
            values = torch.rand(sizes[axis], generator=generator)
            order = values.argsort()[:-1] if axis == "layers" else None
            found[axis] = Scores(self.name, axis, values, order, self.parameters(axis, target))
            progress(number, len(axes))
        return found
