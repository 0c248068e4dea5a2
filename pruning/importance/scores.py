"""What an importance method gives: scores of one axis, kept on disk so that nothing is scored twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, cast

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pruning.errors import RunError, TrainingError
from pruning.importance.calibration import CalibrationBatch
from pruning.surgery.adapter import CausalModel
from pruning.surgery.shape import Shape
from recommender.storage import write_file

Axis = Literal["heads", "hidden", "mlp", "layers"]
Progress: TypeAlias = Callable[[int, int], None]
"""Called with the steps done and the steps in all."""


@dataclass(frozen=True)
class Scores:
    """Importance along one axis.

    Attributes:
        method: name of the method.
        axis: what is scored.
        values: higher is worth more. heads: (layers, query heads); hidden: (channels,);
            mlp: (layers, neurons). layers: what the order was made from, as the method says.
        removal_order: for layers only, int64, (layers - 1,): the layer to go first comes first.
        parameters: the sizes of the target that these scores depend on.
    """

    method: str
    axis: Axis
    values: Tensor
    removal_order: Tensor | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert (self.removal_order is not None) == (self.axis == "layers")
        if not bool(self.values.isfinite().all()):
            raise TrainingError(
                f"{self.method} scores of {self.axis} are not finite; the model's weights or "
                "activations overflow, so train it again or calibrate in float32"
            )


class ImportanceMethod(Protocol):
    """One family of scores for all four axes."""

    @property
    def name(self) -> str:
        """The family's name in recipes."""

    def parameters(self, axis: Axis, target: Shape) -> dict[str, int]:
        """The sizes of `target` that the scores of `axis` depend on.

        With the model and the calibration set they identify the scores: as long as these stay,
        cached ones hold for another target.
        """

    def score(
        self,
        model: CausalModel,
        calibration: Sequence[CalibrationBatch],
        axes: Collection[Axis],
        target: Shape,
        progress: Progress,
    ) -> dict[Axis, Scores]:
        """Scores the axes that a stage cuts; the model is the same afterwards.

        Args:
            model: a canonical model.
            calibration: users with at least one title token to predict.
            axes: what to score.
            target: the shape that the stage aims at.
            progress: told of every step.
        """


def save_scores(scores: Scores, path: Path) -> None:
    """Writes scores to a safetensors file, in one step."""
    tensors = {"values": scores.values.contiguous()}
    if scores.removal_order is not None:
        tensors["removal_order"] = scores.removal_order.contiguous()
    metadata = {
        "method": scores.method,
        "axis": scores.axis,
        "parameters": json.dumps(dict(scores.parameters), sort_keys=True),
    }
    write_file(path, safetensors.torch.save(tensors, metadata))


def load_scores(path: Path) -> Scores:
    """Reads what `save_scores` wrote.

    Raises:
        RunError: the file is damaged or holds something else.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            names = set(file.keys())
            return Scores(
                method=metadata["method"],
                axis=cast(Axis, metadata["axis"]),
                values=file.get_tensor("values"),
                removal_order=(file.get_tensor("removal_order") if "removal_order" in names else None),
                parameters=json.loads(metadata["parameters"]),
            )
    except (SafetensorError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} is no file of importance scores ({error}); remove it and score again"
        ) from error
