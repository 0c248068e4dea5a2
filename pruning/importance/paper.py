"""The importance family of *Boosting Parameter Efficiency …* (arXiv 2507.07064), all four axes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pruning.importance.calibration import CalibrationBatch
from pruning.importance.channel_gradient import score_channels
from pruning.importance.layer_search import search_layers
from pruning.importance.masked_kl import score_heads
from pruning.importance.neuron_frequency import score_neurons
from pruning.importance.scores import Axis, Progress, Scores
from pruning.surgery.adapter import CausalModel
from pruning.surgery.shape import Shape


class PaperImportance:
    """Masked KL, gradient × activation, top-n frequency and greedy search; see their modules.

    Layer scores hold the loss with 0, 1, … L-1 layers gone as `values`.
    """

    name = "paper"

    def parameters(self, axis: Axis, target: Shape) -> dict[str, int]:
        """Heads depend on the numbers of heads kept, neurons on how many are kept."""
        if axis == "heads":
            return {
                "num_attention_heads": target.num_attention_heads,
                "num_key_value_heads": target.num_key_value_heads,
            }
        return {"intermediate_size": target.intermediate_size} if axis == "mlp" else {}

    def score(
        self,
        model: CausalModel,
        calibration: Sequence[CalibrationBatch],
        axes: Collection[Axis],
        target: Shape,
        progress: Progress,
    ) -> dict[Axis, Scores]:
        """Scores each axis on the given model, one after the other.

        `progress` starts again with each axis.

        Raises:
            RecipeError: an illegal number of heads, or nothing to predict.
            TrainingError: scores that are not finite.
        """
        return {axis: self._score_axis(model, calibration, axis, target, progress) for axis in sorted(axes)}

    def _score_axis(
        self,
        model: CausalModel,
        calibration: Sequence[CalibrationBatch],
        axis: Axis,
        target: Shape,
        progress: Progress,
    ) -> Scores:
        order = None
        if axis == "heads":
            values = score_heads(model, calibration, target, progress)
        elif axis == "hidden":
            values = score_channels(model, calibration, progress)
        elif axis == "mlp":
            values = score_neurons(model, calibration, target.intermediate_size, progress)
        else:
            order, values = search_layers(model, calibration, progress)
        return Scores(self.name, axis, values, order, self.parameters(axis, target))
