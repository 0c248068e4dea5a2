"""What every stage of a run works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from pruning import processes
from pruning.checkpoint import Checkpoint
from pruning.evaluation import ModelValidation
from pruning.importance.calibration import CalibrationBatch
from pruning.pipeline.results import Figures
from pruning.progress import Reporter
from pruning.training.windows import Augmentation, Window
from recommender.ranking import UserBootstrap, gains, hits


@dataclass(frozen=True)
class Bench:
    """What every stage works with.

    Attributes:
        folder: the run's.
        teacher_folder: where the teacher was trained.
        training: the training histories as they are.
        augmented: those that `augmentation` adds.
    """

    folder: Path
    teacher_folder: Path
    teacher: Checkpoint
    training: Sequence[Window]
    augmented: Sequence[Window]
    augmentation: Augmentation | None
    calibration: Sequence[CalibrationBatch]
    validation: ModelValidation
    seed: int
    reporter: Reporter

    def figures(self, model: PreTrainedModel) -> Figures:
        measured = processes.once(lambda: self.validation.measure(model))
        ranks_R = measured.ranks_R
        bootstrap = UserBootstrap(self.validation.user_ids)
        hr10, ndcg10 = bootstrap.mean(hits(ranks_R, 10)), bootstrap.mean(gains(ranks_R, 10))
        return Figures(
            loss=measured.loss,
            catalogue_loss=measured.catalogue_loss,
            hr10=hr10.value,
            ndcg10=ndcg10.value,
            hr10_interval=hr10,
            ndcg10_interval=ndcg10,
        )
