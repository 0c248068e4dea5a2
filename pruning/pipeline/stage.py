"""One stage of a recipe: score → select → slice; repair, distil, round if asked to; all kept as files.

    RUN/scores/AXIS-METHOD-KEY.safetensors importance scores
    RUN/signals-K-KEY/, collaborative/     see `labels.py`
    RUN/stages/N-NAME-KEY/cut.json         what was kept
                         /after_cut.json   figures of the student before restoration
                         /training/        the Trainer's checkpoints and learning curves
                         /student/         the student as the stage leaves it, a plain Hugging Face folder
                         /result.json      `StageResult`, written last: the stage is done

A key is a digest of all that a file depends on: teacher, data, seed, and the stages so far. So what is
done is never done again, and changing a later stage's target finds the earlier stages and scores.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pruning import processes
from pruning.checkpoint import load_checkpoint, save_checkpoint
from pruning.importance.activation import ActivationImportance
from pruning.importance.paper import PaperImportance
from pruning.importance.random_choice import RandomImportance
from pruning.importance.scores import Axis, ImportanceMethod, Scores, load_scores, save_scores
from pruning.importance.selection import select
from pruning.pipeline.bench import Bench
from pruning.pipeline.files import digest, kept, read_record, store_record
from pruning.pipeline.labels import labelled
from pruning.pipeline.recipe import Calibration, Recipe, Stage
from pruning.pipeline.results import Figures, StageResult
from pruning.repair import repair
from pruning.surgery.adapter import CausalModel, redrawn
from pruning.surgery.retained import Cut
from pruning.surgery.shape import Shape
from pruning.surgery.slicing import apply_cut
from pruning.training.loop import TrainingConfig, fit
from recommender.storage import new_directory

STUDENT_FOLDER = "student"
TRAINING_FOLDER = "training"
CUT_FILE = "cut.json"
AFTER_CUT_FILE = "after_cut.json"
RESULT_FILE = "result.json"


def stage_folder(run: Path, number: int, stage: StageResult) -> Path:
    """Where a finished stage's files are; `number` counts from 1."""
    return run / "stages" / f"{number}-{stage.name}-{stage.key}"


@dataclass(frozen=True)
class PlannedStage:
    """A stage, the shape it leaves, and the keys of what it starts from and of what it gives."""

    number: int
    stage: Stage
    calibration: Calibration
    shape: Shape
    before: str
    key: str

    @property
    def title(self) -> str:
        return f"stage {self.number} {self.stage.name}"

    def folder(self, run: Path) -> Path:
        """Where the stage's files are, or will be."""
        return run / "stages" / f"{self.number}-{self.stage.name}-{self.key}"

    def score_files(self, run: Path, seed: int) -> dict[Axis, Path]:
        """Where the scores of each axis that the stage cuts are, or will be."""
        method = _method(self.stage.importance, seed)
        files: dict[Axis, Path] = {}
        for axis in self.stage.keep:
            depends = digest(
                self.before, self.calibration.model_dump(), method.parameters(axis, self.shape)
            )
            files[axis] = run / "scores" / f"{axis}-{method.name}-{depends}.safetensors"
        return files


def plan_stages(recipe: Recipe, shapes: Sequence[Shape], first: str) -> list[PlannedStage]:
    """The recipe's stages with their shapes; `first` is the key of what the first one cuts."""
    planned: list[PlannedStage] = []
    before = first
    more = [] if recipe.augmentation is None else [recipe.augmentation.model_dump()]
    for number, (stage, shape) in enumerate(zip(recipe.stages, shapes, strict=True), start=1):
        key = digest(before, recipe.calibration.model_dump(), *more, _asked(stage), shape.model_dump())
        planned.append(PlannedStage(number, stage, recipe.calibration, shape, before, key))
        before = key
    return planned


def _asked(stage: Stage) -> dict[str, Any]:
    """The stage's words.

    Rounding and collaborative signals, left out, do not move the keys of runs from before there were such.
    `largest` does, left out or not: with it came another meaning of a repair's ridge.
    """
    asked = stage.model_dump()
    if stage.rounding is None:
        del asked["rounding"]
    signal = asked["distillation"]["signal"]
    if not signal.get("collaborative"):
        signal.pop("collaborative", None)
    return asked


def run_stage(bench: Bench, planned: PlannedStage, student: CausalModel) -> tuple[StageResult, CausalModel]:
    """Cuts `student`, and restores it if asked to; what stands from an earlier call is not done again."""
    stage, shape, title = planned.stage, planned.shape, planned.title
    folder = planned.folder(bench.folder)
    result_file = folder / RESULT_FILE
    if processes.once(result_file.exists):
        bench.reporter.say(f"{title}: done already")
        restored = load_checkpoint(folder / STUDENT_FOLDER)
        return read_record(result_file, StageResult), restored.model

    bench.reporter.say(f"{title}: choosing {', '.join(sorted(stage.keep))}")
    cut = kept(
        folder / CUT_FILE,
        Cut,
        lambda: select(_scores(bench, planned, student), Shape.of(student.config), shape),
    )
    student = _cut_student(bench, stage, student, cut)
    assert Shape.of(student.config) == shape
    after_cut = kept(folder / AFTER_CUT_FILE, Figures, lambda: bench.figures(student))
    bench.reporter.say(
        f"{title}: cut to {shape.nonembedding_parameters:,} non-embedding parameters, "
        f"validation {after_cut.nats:.2f} nats per title" + ("; restoring" if stage.training else "")
    )
    steps = _restore(bench, stage, stage.training, student, folder) if stage.training else 0
    dtype = torch.bfloat16 if stage.rounding == "bfloat16" else torch.float32
    _round(student, dtype)
    student_folder = folder / STUDENT_FOLDER
    processes.once(lambda: _keep_student(bench, student, dtype, student_folder))
    result = StageResult(
        name=stage.name,
        key=planned.key,
        importance=stage.importance,
        shape=shape,
        bytes=(student_folder / "model.safetensors").stat().st_size,
        after_cut=after_cut,
        after_restoration=bench.figures(student) if steps or stage.rounding else after_cut,
        restoration_steps=steps,
    )
    store_record(result_file, result)
    return result, student


def _round(student: CausalModel, dtype: torch.dtype) -> None:
    """Rounds the weights in place; they are float32 still."""
    with torch.no_grad():
        for weight in student.parameters():
            weight.copy_(weight.to(dtype))


def _keep_student(bench: Bench, student: CausalModel, dtype: torch.dtype, folder: Path) -> None:
    if not folder.exists():
        rounded = copy.deepcopy(student).to(dtype=dtype)  # type: ignore[call-arg]
        with new_directory(folder) as unfinished:
            save_checkpoint(unfinished, rounded, bench.teacher.tokenizer, bench.teacher.template)


def _cut_student(bench: Bench, stage: Stage, before: CausalModel, cut: Cut) -> CausalModel:
    after = apply_cut(before, cut)
    if stage.weights == "drawn":
        return redrawn(after, bench.seed)
    if stage.repair is not None:
        counter = bench.reporter.counter("repairing")
        asked = stage.repair
        repair(before, after, cut, bench.calibration, asked.ridge, counter, asked.largest)
    return after


def _method(name: str, seed: int) -> ImportanceMethod:
    methods: tuple[ImportanceMethod, ...] = (
        PaperImportance(),
        ActivationImportance(),
        RandomImportance(seed),
    )
    return next(method for method in methods if method.name == name)


def _scores(bench: Bench, planned: PlannedStage, student: CausalModel) -> dict[Axis, Scores]:
    stage, target = planned.stage, planned.shape
    method = _method(stage.importance, bench.seed)
    files = planned.score_files(bench.folder, bench.seed)
    missing = processes.once(lambda: [axis for axis, file in files.items() if not file.exists()])
    if missing:
        counter = bench.reporter.counter(f"scoring {', '.join(sorted(missing))}")
        scored = method.score(student, bench.calibration, missing, target, counter)
        for axis, scores in scored.items():
            processes.once(partial(save_scores, scores, files[axis]))
    return {axis: load_scores(file) for axis, file in files.items()}


def _restore(
    bench: Bench, stage: Stage, training: TrainingConfig, student: CausalModel, folder: Path
) -> int:
    """Trains `student` in place. Returns the steps."""
    training = training.model_copy(update={"seed": bench.seed})
    windows, objective = labelled(bench, stage.distillation)
    result = fit(
        student,
        windows,
        objective,
        bench.validation,
        training,
        folder / TRAINING_FOLDER,
        bench.reporter,
    )
    student.eval()  # type: ignore[no-untyped-call]
    return result.steps
