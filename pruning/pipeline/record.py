"""What a run folder says of itself before anything is done in it, so that it can be read at any moment.

RUN/settings.json   `RunSettings`: what the folder is bound to; other inputs are refused
RUN/plan.json       `RunPlan`: the recipe and shapes that were last asked for
RUN/sources.json    `RunSources`: where data set and teacher were, seen from the run
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pruning.errors import RunError
from pruning.pipeline.files import digest, read_record
from pruning.pipeline.plan import Target
from pruning.pipeline.recipe import Recipe
from pruning.pipeline.stage import PlannedStage, plan_stages
from pruning.surgery.shape import Shape
from recommender.storage import write_file

SETTINGS_FILE = "settings.json"
PLAN_FILE = "plan.json"
SOURCES_FILE = "sources.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunSettings(_Record):
    """What a folder is bound to; another data set, teacher or seed is another run."""

    dataset_sha256: str
    teacher_sha256: str
    seed: int
    validation_rows: int

    @property
    def first_key(self) -> str:
        """The key of the teacher as it is."""
        return digest(self.teacher_sha256, self.dataset_sha256, self.seed)


class RunPlan(_Record):
    """What was asked for, and the shapes that came of it.

    Attributes:
        base: what the teacher was trained from.
        teacher_shape: as it was trained.
        whole_shape: the same in the form that is cut: canonical, and rotated where the recipe says so.
        shapes: what each stage leaves.
    """

    dataset: str
    base: str
    recipe: Recipe
    target: Target
    teacher_shape: Shape
    whole_shape: Shape
    shapes: tuple[Shape, ...]

    def stages(self, settings: RunSettings) -> list[PlannedStage]:
        """The stages with their keys, and so with their files."""
        return plan_stages(self.recipe, self.shapes, self.first_key(settings))

    def first_key(self, settings: RunSettings) -> str:
        """The key of what the first stage cuts."""
        if not self.recipe.rotate:
            return settings.first_key
        return digest(settings.first_key, self.recipe.calibration.model_dump(), "rotated")

    def directions_file(self, run: Path, settings: RunSettings) -> Path:
        """Where the basis of a rotated run is, or will be."""
        return run / f"directions-{self.first_key(settings)}.safetensors"


class RunSources(_Record):
    """Paths seen from the run's folder, so that the three can move together."""

    dataset: str
    teacher: str

    @classmethod
    def seen_from(cls, run: Path, dataset: Path, teacher: Path) -> RunSources:
        """The paths of a data set and a teacher, seen from a run."""
        return cls(
            dataset=os.path.relpath(dataset.resolve(), run.resolve()),
            teacher=os.path.relpath(teacher.resolve(), run.resolve()),
        )


def write_record(run: Path, plan: RunPlan, sources: RunSources) -> None:
    """Writes both where they say something new."""
    for name, record in ((PLAN_FILE, plan), (SOURCES_FILE, sources)):
        text = record.model_dump_json(indent=2) + "\n"
        file = run / name
        if not file.is_file() or file.read_text("utf-8") != text:
            write_file(file, text)


def read_settings(run: Path) -> RunSettings:
    """What a run is bound to.

    Raises:
        RunError: the folder is no run, or the file is damaged.
    """
    if not (run / SETTINGS_FILE).is_file():
        raise RunError(f"{run}: no run here; make one with `espalier prune DATASET TEACHER --out {run}`")
    return read_record(run / SETTINGS_FILE, RunSettings)


def read_plan(run: Path) -> RunPlan:
    """What was asked of a run.

    Raises:
        RunError: it is missing, as in a run that an older version began, or damaged.
    """
    if not (run / PLAN_FILE).is_file():
        raise RunError(
            f"{run}: no {PLAN_FILE}; repeat the prune command, which writes it and does nothing twice"
        )
    return read_record(run / PLAN_FILE, RunPlan)
