"""One stage of a recipe: score → select → slice; repair, distil, round if asked to; all kept as files.

    RUN/scores/AXIS-METHOD-KEY.safetensors importance scores
    RUN/signals-K-KEY/                     the teacher's K likeliest tokens, cached
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
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from transformers import PreTrainedModel

from pruning import processes
from pruning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pruning.distill.objective import Distillation, among_vocabulary
from pruning.distill.sources import (
    LAYOUT,
    CachedSignal,
    CachedTeacher,
    LiveTeacher,
    LogProbs,
    SignalSource,
    cache_signals,
)
from pruning.errors import RunError
from pruning.evaluation import ModelValidation
from pruning.importance.activation import ActivationImportance
from pruning.importance.calibration import CalibrationBatch
from pruning.importance.paper import PaperImportance
from pruning.importance.random_choice import RandomImportance
from pruning.importance.scores import Axis, ImportanceMethod, Scores, load_scores, save_scores
from pruning.importance.selection import select
from pruning.pipeline.recipe import Calibration, Recipe, Stage
from pruning.pipeline.results import Figures, StageResult
from pruning.progress import Reporter
from pruning.repair import repair
from pruning.surgery.adapter import CausalModel, redrawn
from pruning.surgery.retained import Cut
from pruning.surgery.shape import Shape
from pruning.surgery.slicing import apply_cut
from pruning.training.decisions import Children, at_decisions
from pruning.training.loop import TrainingConfig, fit
from pruning.training.windows import Augmentation, Window
from recommender.errors import first_problem
from recommender.ranking import UserBootstrap, gains, hits
from recommender.storage import new_directory, write_file

STUDENT_FOLDER = "student"
TRAINING_FOLDER = "training"
CUT_FILE = "cut.json"
AFTER_CUT_FILE = "after_cut.json"
RESULT_FILE = "result.json"
_RecordT = TypeVar("_RecordT", bound=BaseModel)


@dataclass(frozen=True)
class Bench:
    """What every stage works with; the last of `windows` are those of `augmentation`."""

    folder: Path
    teacher: Checkpoint
    windows: Sequence[Window]
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
        # What a recipe leaves out must not move the keys of runs from before there was a word for it.
        asked = stage.model_dump(exclude=None if stage.rounding else {"rounding"})
        key = digest(before, recipe.calibration.model_dump(), *more, asked, shape.model_dump())
        planned.append(PlannedStage(number, stage, recipe.calibration, shape, before, key))
        before = key
    return planned


def run_stage(bench: Bench, planned: PlannedStage, student: CausalModel) -> tuple[StageResult, CausalModel]:
    """Cuts `student`, and restores it if asked to; what stands from an earlier call is not done again."""
    stage, shape, title = planned.stage, planned.shape, planned.title
    folder = planned.folder(bench.folder)
    result_file = folder / RESULT_FILE
    if processes.once(result_file.exists):
        bench.reporter.say(f"{title}: done already")
        restored = load_checkpoint(folder / STUDENT_FOLDER)
        return read_record(result_file, StageResult), restored.model

    bench.reporter.say(f"{title}: scoring {', '.join(sorted(stage.keep))}")
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
    _write_record(result_file, result)
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
        repair(before, after, cut, bench.calibration, stage.repair.ridge, counter)
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
    windows, log_probs = _targets(bench, stage)
    source = _signal_source(bench, stage, windows, log_probs)
    objective = Distillation(stage.distillation, source, log_probs)
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


def _targets(bench: Bench, stage: Stage) -> tuple[Sequence[Window], LogProbs]:
    """The windows with the targets that the stage is restored on, and what those are chosen among."""
    if stage.distillation.among == "vocabulary":
        return bench.windows, among_vocabulary
    trie = bench.validation.trie
    return at_decisions(bench.windows, trie), Children(trie).among_catalogue


def _signal_source(
    bench: Bench, stage: Stage, windows: Sequence[Window], log_probs: LogProbs
) -> SignalSource | None:
    signal = stage.distillation.signal
    if not stage.distillation.forward_kl:
        return None
    if not isinstance(signal, CachedSignal):
        return LiveTeacher(bench.teacher.model, log_probs)
    # All that the signals depend on; the data set and the teacher are the run's own.
    augmentation = None if bench.augmentation is None else (bench.augmentation.model_dump(), bench.seed)
    depends = digest(stage.distillation.among, signal.precision, augmentation, LAYOUT)
    folder = bench.folder / f"signals-{signal.top_k}-{depends}"
    counter = bench.reporter.counter("caching the teacher's signals")
    cache_signals(bench.teacher.model, windows, log_probs, signal, folder, counter)
    return CachedTeacher(folder, windows)


def kept(file: Path, kind: type[_RecordT], make: Callable[[], _RecordT]) -> _RecordT:
    """The record that stands in `file`, or the one that `make` gives, which then stands there."""
    if processes.once(file.exists):
        return read_record(file, kind)
    record = make()
    _write_record(file, record)
    return record


def _write_record(file: Path, record: BaseModel) -> None:
    text = record.model_dump_json(indent=2) + "\n"
    processes.once(lambda: write_file(file, text))


def read_record(file: Path, kind: type[_RecordT]) -> _RecordT:
    """The record in a file of the run.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return kind.model_validate_json(file.read_bytes())
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror}); repeat the prune command") from error
    except ValidationError as error:
        raise RunError(f"{file}: damaged ({first_problem(error)}); remove it and run again") from error


def digest(*parts: Any) -> str:
    """Twelve hex digits that name these JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
