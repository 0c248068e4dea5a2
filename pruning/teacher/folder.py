"""A finished teacher on disk: its record and its model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pruning.errors import RunError
from pruning.surgery.shape import Shape
from pruning.teacher.base import BaseLineage
from pruning.training.loop import FitResult
from recommender.dataset import Dataset
from recommender.errors import first_problem
from recommender.ranking import Interval, Metrics

MODEL_FOLDER = "model"
RECORD_FILE = "teacher.json"
COLLABORATIVE_FILE = "collaborative.safetensors"
"""The sequence model that helped to train it, if one did."""


class TeacherRecord(BaseModel):
    """What a training came to.

    Attributes:
        model_sha256: digest of the weights file.
        among: `TeacherConfig.among`; None: trained before this was recorded.
        quality, popularity: on the sampled validation rows.
        gain_ndcg10: the teacher's NDCG@10 over popularity's on them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    dataset: str
    dataset_sha256: str
    base: BaseLineage
    among: Literal["vocabulary", "catalogue"] | None = None
    model_sha256: str
    shape: Shape
    fit: FitResult
    quality: Metrics
    popularity: Metrics
    gain_ndcg10: Interval

    @property
    def beats_popularity(self) -> bool:
        return self.gain_ndcg10.low > 1.0


def read_record(file: Path) -> TeacherRecord:
    """The record in a teacher's folder.

    Raises:
        RunError: it is damaged.
    """
    try:
        return TeacherRecord.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise RunError(f"{file}: damaged ({first_problem(error)}); remove it and train again") from error


def open_teacher(folder: Path, dataset: Dataset) -> tuple[TeacherRecord, Path]:
    """A finished teacher's record and model folder.

    Raises:
        RunError: there is no finished teacher, or it was trained on another data set, so that it may
            have seen this one's test rows.
    """
    file = folder / RECORD_FILE
    if not file.is_file():
        raise RunError(
            f"{folder}: no finished teacher; train it with `espalier train DATASET --out {folder}`"
        )
    record = read_record(file)
    if record.dataset_sha256 != dataset.digest:
        raise RunError(
            f"{folder} was trained on another data set ({record.dataset}) than {dataset.path}; "
            "prune on the one it was trained on"
        )
    return record, folder / MODEL_FOLDER
