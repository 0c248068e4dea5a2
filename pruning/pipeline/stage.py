"""One stage of a recipe: score → select → slice → distil, every step kept as a file.

    RUN/scores/AXIS-METHOD-KEY.safetensors importance scores
    RUN/signals-K/                         the teacher's cached signals
    RUN/stages/N-NAME-KEY/cut.json         what was kept
                         /after_cut.json   figures of the student before restoration
                         /training/        the Trainer's checkpoints and learning curves
                         /student/         the restored student, a plain Hugging Face folder
                         /result.json      `StageResult`, written last: the stage is done

A key is a digest of all that a file depends on: teacher, data, seed, and the stages so far. So what is
done is never done again, and changing a later stage's target finds the earlier stages and scores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from transformers import PreTrainedModel

from pruning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pruning.distill.objective import CachedSignal, Distillation
from pruning.distill.sources import CachedTeacher, LiveTeacher, SignalSource, cache_signals
from pruning.evaluation import ModelValidation
from pruning.importance.activation import ActivationImportance
from pruning.importance.calibration import CalibrationBatch
from pruning.importance.paper import PaperImportance
from pruning.importance.random_choice import RandomImportance
from pruning.importance.scores import Axis, ImportanceMethod, Scores, load_scores, save_scores
from pruning.importance.selection import select
from pruning.pipeline.recipe import Recipe, Stage
from pruning.pipeline.results import Figures, StageResult
from pruning.progress import Reporter
from pruning.repair import repair
from pruning.surgery.adapter import CausalModel, redrawn
from pruning.surgery.retained import Cut
from pruning.surgery.shape import Shape
from pruning.surgery.slicing import apply_cut
from pruning.training.loop import FitResult, fit
from pruning.training.windows import Window
from recommender.storage import new_directory, write_file

STUDENT_FOLDER = "student"
_RecordT = TypeVar("_RecordT", bound=BaseModel)


@dataclass(frozen=True)
class Bench:
    """What every stage works with."""

    folder: Path
    teacher: Checkpoint
    windows: Sequence[Window]
    calibration: Sequence[CalibrationBatch]
    validation: ModelValidation
    seed: int
    reporter: Reporter

    def figures(self, model: PreTrainedModel) -> Figures:
        return Figures.model_validate(self.validation(model))


def stage_folder(run: Path, number: int, stage: StageResult) -> Path:
    """Where a finished stage's files are; `number` counts from 1."""
    return run / "stages" / f"{number}-{stage.name}-{stage.key}"


def run_stage(
    bench: Bench,
    recipe: Recipe,
    stage: Stage,
    shape: Shape,
    number: int,
    student: CausalModel,
    before: str,
) -> tuple[StageResult, CausalModel, str]:
    """Cuts and restores; returns the restored student and the key that the next stage builds on."""
    wanted = shape.model_dump(include=set(Shape.model_fields))
    key = digest(before, recipe.calibration.model_dump(), stage.model_dump(), wanted)
    folder = bench.folder / "stages" / f"{number}-{stage.name}-{key}"
    result_file = folder / "result.json"
    if result_file.exists():
        bench.reporter.say(f"stage {number} {stage.name}: done already")
        restored = load_checkpoint(folder / STUDENT_FOLDER)
        return StageResult.model_validate_json(result_file.read_bytes()), restored.model, key

    bench.reporter.say(f"stage {number} {stage.name}: scoring {', '.join(sorted(stage.keep))}")
    cut = kept(
        folder / "cut.json",
        Cut,
        lambda: select(
            _scores(bench, recipe, stage, shape, student, before), Shape.of(student.config), shape
        ),
    )
    student = _cut_student(bench, stage, student, cut)
    assert Shape.of(student.config) == shape
    after_cut = kept(folder / "after_cut.json", Figures, lambda: bench.figures(student))
    bench.reporter.say(
        f"stage {number} {stage.name}: cut to {shape.nonembedding_parameters:,} non-embedding parameters, "
        f"validation {after_cut.loss:.2f} nats per title; restoring"
    )
    fitted = _restore(bench, stage, student, folder)
    student_folder = folder / STUDENT_FOLDER
    if not student_folder.exists():
        with new_directory(student_folder) as partial:
            save_checkpoint(partial, student, bench.teacher.tokenizer, bench.teacher.template)
    result = StageResult(
        name=stage.name,
        key=key,
        importance=stage.importance,
        shape=shape,
        bytes=(student_folder / "model.safetensors").stat().st_size,
        after_cut=after_cut,
        after_restoration=bench.figures(student),
        restoration_steps=fitted.steps,
    )
    write_file(result_file, result.model_dump_json(indent=2) + "\n")
    return result, student, key


def _cut_student(bench: Bench, stage: Stage, before: CausalModel, cut: Cut) -> CausalModel:
    after = apply_cut(before, cut)
    if stage.weights == "drawn":
        return redrawn(after, bench.seed)
    if stage.repair is not None:
        counter = bench.reporter.counter("repairing")
        repair(before, after, cut, bench.calibration, stage.repair.ridge, counter)
    return after


def _method(name: str, seed: int) -> ImportanceMethod:
    methods: tuple[ImportanceMethod, ...] = (
        PaperImportance(),
        ActivationImportance(),
        RandomImportance(seed),
    )
    return next(method for method in methods if method.name == name)


def _scores(
    bench: Bench, recipe: Recipe, stage: Stage, target: Shape, student: CausalModel, before: str
) -> dict[Axis, Scores]:
    method = _method(stage.importance, bench.seed)
    files: dict[Axis, Path] = {}
    for axis in stage.keep:
        depends = digest(before, recipe.calibration.model_dump(), method.parameters(axis, target))
        files[axis] = bench.folder / "scores" / f"{axis}-{method.name}-{depends}.safetensors"
    missing = [axis for axis, file in files.items() if not file.exists()]
    if missing:
        counter = bench.reporter.counter(f"scoring {', '.join(sorted(missing))}")
        scored = method.score(student, bench.calibration, missing, target, counter)
        for axis, scores in scored.items():
            save_scores(scores, files[axis])
    return {axis: load_scores(file) for axis, file in files.items()}


def _restore(bench: Bench, stage: Stage, student: CausalModel, folder: Path) -> FitResult:
    training = stage.training.model_copy(update={"seed": bench.seed})
    objective = Distillation(stage.distillation, _signal_source(bench, stage))
    result = fit(
        student, bench.windows, objective, bench.validation, training, folder / "training", bench.reporter
    )
    student.eval()  # type: ignore[no-untyped-call]
    return result


def _signal_source(bench: Bench, stage: Stage) -> SignalSource:
    signal = stage.distillation.signal
    if not isinstance(signal, CachedSignal):
        return LiveTeacher(bench.teacher.model)
    folder = bench.folder / f"signals-{signal.top_k}"
    counter = bench.reporter.counter("caching the teacher's signals")
    cache_signals(bench.teacher.model, bench.windows, signal.top_k, folder, counter)
    return CachedTeacher(folder, bench.windows)


def kept(file: Path, kind: type[_RecordT], make: Callable[[], _RecordT]) -> _RecordT:
    """The record that stands in `file`, or the one that `make` gives, which then stands there."""
    if file.exists():
        return kind.model_validate_json(file.read_bytes())
    record = make()
    write_file(file, record.model_dump_json(indent=2) + "\n")
    return record


def digest(*parts: Any) -> str:
    """Twelve hex digits that name these JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
