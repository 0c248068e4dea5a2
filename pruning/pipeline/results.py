"""What a run measured: per stage on the validation split, and at the end on the whole test split."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from pruning.surgery.shape import Shape
from recommender.ranking import Interval, Metrics


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figures(_Record):
    """Validation: nats per title over all its windows, HR@10 and NDCG@10 over the sampled rows.

    `loss` is among all strings of tokens, `catalogue_loss` among the catalogue's titles; a student that
    learned at decisions only has no use for the former. The intervals are over the rows' users. What is
    None was not kept when the file was written.
    """

    loss: float
    catalogue_loss: float | None = None
    hr10: float
    ndcg10: float
    hr10_interval: Interval | None = None
    ndcg10_interval: Interval | None = None

    @property
    def nats(self) -> float:
        """What is shown: the loss that a served score is made of, where it was kept."""
        return self.loss if self.catalogue_loss is None else self.catalogue_loss


class StageResult(_Record):
    """One stage: the shape it left, and the figures around its restoration."""

    name: str
    key: str
    importance: str
    shape: Shape
    bytes: int
    after_cut: Figures
    after_restoration: Figures
    restoration_steps: int

    @property
    def restored(self) -> bool:
        """Whether anything was trained; else the figures after it differ by a rounding at most."""
        return self.restoration_steps > 0


class Contender(_Record):
    """One model on the whole test split."""

    metrics: Metrics
    hr10: Interval
    ndcg10: Interval


class TestResult(_Record):
    """The whole test split: teacher, student, popularity, and the ratios that matter."""

    __test__ = False  # pytest would collect it for its name

    teacher: Contender
    student: Contender
    popularity: Contender
    retention_hr10: Interval
    retention_ndcg10: Interval
    teacher_over_popularity_ndcg10: Interval
    student_over_popularity_ndcg10: Interval


class RunReport(_Record):
    """The whole run, as `report.json` has it."""

    dataset: str
    dataset_sha256: str
    base: str
    teacher_sha256: str
    recipe: str
    seed: int
    validation_rows: int
    teacher_shape: Shape
    teacher_bytes: int
    teacher: Figures
    stages: tuple[StageResult, ...]
    test: TestResult

    @property
    def student_shape(self) -> Shape:
        return self.stages[-1].shape

    @property
    def pruned_nonembedding(self) -> float:
        """The share of the teacher's non-embedding parameters that is gone."""
        left = self.student_shape.nonembedding_parameters
        return 1 - left / self.teacher_shape.nonembedding_parameters
