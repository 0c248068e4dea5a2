"""The loop that runs a recipe: for each stage score → select → slice → distil, all kept as files.

    RUN/settings.json                      data set, teacher and seed; other ones are refused
    RUN/scores/AXIS-METHOD-KEY.safetensors importance scores
    RUN/signals-K/                         the teacher's cached signals
    RUN/stages/N-NAME-KEY/cut.json         what was kept
                         /after_cut.json   figures of the student before restoration
                         /training/        the Trainer's checkpoints and learning curves
                         /student/         the restored student, a plain Hugging Face folder
                         /result.json      `StageResult`, written last: the stage is done
    RUN/test/*.npy                         ranks of the whole test split
    RUN/catalogue.parquet, histories.json  what an export needs of the data set
    RUN/report.json                        `RunReport`, written last: the run is done

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

import numpy as np
from pydantic import BaseModel, ConfigDict
from transformers import PreTrainedModel

from pruning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pruning.distill.objective import CachedSignal, Distillation
from pruning.distill.sources import CachedTeacher, LiveTeacher, SignalSource, cache_signals
from pruning.evaluation import ModelValidation, RankingTask
from pruning.folder import claim
from pruning.importance.activation import ActivationImportance
from pruning.importance.calibration import CalibrationBatch
from pruning.importance.paper import PaperImportance
from pruning.importance.scores import Axis, ImportanceMethod, Scores, load_scores, save_scores
from pruning.importance.selection import select
from pruning.pipeline.plan import Target, plan_shapes
from pruning.pipeline.quality import judge, kept_ranks
from pruning.pipeline.recipe import Recipe, Stage
from pruning.pipeline.results import Figures, RunReport, StageResult, TestResult
from pruning.progress import Reporter
from pruning.surgery.adapter import CausalModel
from pruning.surgery.canonical import canonical
from pruning.surgery.retained import Cut
from pruning.surgery.shape import Shape
from pruning.surgery.slicing import apply_cut
from pruning.teacher.folder import open_teacher
from pruning.training.batches import batches_in_order
from pruning.training.loop import FitResult, fit
from pruning.training.windows import UserPacker, Window
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder
from recommender.storage import new_directory, write_file

REPORT_FILE = "report.json"
CATALOGUE_FILE = "catalogue.parquet"
HISTORIES_FILE = "histories.json"
STUDENT_FOLDER = "student"
_REFERENCE_HISTORIES = 8
_METHODS: dict[str, ImportanceMethod] = {
    method.name: method for method in (PaperImportance(), ActivationImportance())
}
_RecordT = TypeVar("_RecordT", bound=BaseModel)


class PruneConfig(BaseModel):
    """What to prune to, and how.

    Attributes:
        validation_rows: so many rows of the validation split are ranked for each stage's figures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    target: Target = Target()
    seed: int = 0
    validation_rows: int = 1000


class ReferenceHistories(BaseModel):
    """Real histories (item ids) whose answers an artifact carries as its reference."""

    histories: tuple[tuple[str, ...], ...]


class _Settings(BaseModel):
    dataset_sha256: str
    teacher_sha256: str
    seed: int
    validation_rows: int


@dataclass(frozen=True)
class _Bench:
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


def prune(
    dataset_path: Path, teacher_path: Path, out: Path, config: PruneConfig, reporter: Reporter
) -> RunReport:
    """Prunes a teacher in the run folder `out`; on the same folder it resumes, or says it is done.

    Raises:
        InputError: inputs that do not fit, a target that is no legal shape, a folder of another run.
        TrainingError: a restoration whose loss is not finite.
    """
    dataset = Dataset(dataset_path)
    record, model_folder = open_teacher(teacher_path, dataset)
    claim(
        out,
        "settings.json",
        _Settings(
            dataset_sha256=dataset.digest,
            teacher_sha256=record.model_sha256,
            seed=config.seed,
            validation_rows=config.validation_rows,
        ),
    )
    teacher = load_checkpoint(model_folder)
    whole = canonical(teacher.model)
    shapes = plan_shapes(Shape.of(whole.config), config.recipe, config.target)
    reporter.say(_plan_line(Shape.of(whole.config), shapes[-1]))

    _keep_for_export(dataset, out, config.seed)
    bench = _prepare(dataset, teacher, out, config, reporter)
    reporter.say("measuring the teacher on the validation split")
    teacher_figures = _kept(out / "teacher.json", Figures, lambda: bench.figures(teacher.model))
    student: CausalModel = whole
    key = _digest(record.model_sha256, dataset.digest, config.seed)
    results: list[StageResult] = []
    for number, (stage, shape) in enumerate(zip(config.recipe.stages, shapes, strict=True), start=1):
        result, student, key = _run_stage(bench, config.recipe, stage, shape, number, student, key)
        results.append(result)
    report = RunReport(
        dataset=dataset.card.name,
        dataset_sha256=dataset.digest,
        base=record.base.name,
        teacher_sha256=record.model_sha256,
        recipe=config.recipe.name,
        seed=config.seed,
        validation_rows=config.validation_rows,
        teacher_shape=Shape.of(teacher.model.config),
        teacher_bytes=(model_folder / "model.safetensors").stat().st_size,
        teacher=teacher_figures,
        stages=tuple(results),
        test=_test(bench, dataset, student, key),
    )
    write_file(out / REPORT_FILE, report.model_dump_json(indent=2) + "\n")
    return report


def stage_folder(run: Path, number: int, stage: StageResult) -> Path:
    """Where a finished stage's files are; `number` counts from 1."""
    return run / "stages" / f"{number}-{stage.name}-{stage.key}"


def _keep_for_export(dataset: Dataset, out: Path, seed: int) -> None:
    catalogue = dataset.catalogue
    if not (out / CATALOGUE_FILE).exists():
        partial = out / f".{CATALOGUE_FILE}.partial"
        catalogue.to_parquet(partial)
        partial.replace(out / CATALOGUE_FILE)
    rows = dataset.rows("valid").sample(_REFERENCE_HISTORIES, seed)
    histories = tuple(tuple(catalogue.item_ids[i] for i in history) for history in rows.histories)
    record = ReferenceHistories(histories=histories)
    write_file(out / HISTORIES_FILE, record.model_dump_json() + "\n")


def _prepare(
    dataset: Dataset, teacher: Checkpoint, out: Path, config: PruneConfig, reporter: Reporter
) -> _Bench:
    encoder = PromptEncoder(teacher.template, teacher.tokenizer)
    windows = UserPacker(encoder, dataset.catalogue.titles).training(dataset)
    drawn = np.random.default_rng(config.seed).permutation(len(windows))
    calibration = [windows[index] for index in drawn[: config.recipe.calibration.windows]]
    return _Bench(
        folder=out,
        teacher=teacher,
        windows=windows,
        calibration=[
            CalibrationBatch(batch.input_ids_BT, batch.attention_mask_BT.bool(), batch.target_mask())
            for batch in batches_in_order(calibration, 4096)
        ],
        validation=ModelValidation(dataset, encoder, config.validation_rows, config.seed),
        seed=config.seed,
        reporter=reporter,
    )


def _run_stage(
    bench: _Bench,
    recipe: Recipe,
    stage: Stage,
    shape: Shape,
    number: int,
    student: CausalModel,
    before: str,
) -> tuple[StageResult, CausalModel, str]:
    """Cuts and restores; returns the restored student and the key that the next stage builds on."""
    wanted = shape.model_dump(include=set(Shape.model_fields))
    key = _digest(before, recipe.calibration.model_dump(), stage.model_dump(), wanted)
    folder = bench.folder / "stages" / f"{number}-{stage.name}-{key}"
    result_file = folder / "result.json"
    if result_file.exists():
        bench.reporter.say(f"stage {number} {stage.name}: done already")
        restored = load_checkpoint(folder / STUDENT_FOLDER)
        return StageResult.model_validate_json(result_file.read_bytes()), restored.model, key

    bench.reporter.say(f"stage {number} {stage.name}: scoring {', '.join(sorted(stage.keep))}")
    cut = _kept(
        folder / "cut.json",
        Cut,
        lambda: select(
            _scores(bench, recipe, stage, shape, student, before), Shape.of(student.config), shape
        ),
    )
    student = apply_cut(student, cut)
    assert Shape.of(student.config) == shape
    after_cut = _kept(folder / "after_cut.json", Figures, lambda: bench.figures(student))
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


def _scores(
    bench: _Bench, recipe: Recipe, stage: Stage, target: Shape, student: CausalModel, before: str
) -> dict[Axis, Scores]:
    method = _METHODS[stage.importance]
    files: dict[Axis, Path] = {}
    for axis in stage.keep:
        depends = _digest(before, recipe.calibration.model_dump(), method.parameters(axis, target))
        files[axis] = bench.folder / "scores" / f"{axis}-{method.name}-{depends}.safetensors"
    missing = [axis for axis, file in files.items() if not file.exists()]
    if missing:
        counter = bench.reporter.counter(f"scoring {', '.join(sorted(missing))}")
        scored = method.score(student, bench.calibration, missing, target, counter)
        for axis, scores in scored.items():
            save_scores(scores, files[axis])
    return {axis: load_scores(file) for axis, file in files.items()}


def _restore(bench: _Bench, stage: Stage, student: CausalModel, folder: Path) -> FitResult:
    training = stage.training.model_copy(update={"seed": bench.seed})
    objective = Distillation(stage.distillation, _signal_source(bench, stage))
    result = fit(
        student, bench.windows, objective, bench.validation, training, folder / "training", bench.reporter
    )
    student.eval()  # type: ignore[no-untyped-call]
    return result


def _signal_source(bench: _Bench, stage: Stage) -> SignalSource:
    signal = stage.distillation.signal
    if not isinstance(signal, CachedSignal):
        return LiveTeacher(bench.teacher.model)
    folder = bench.folder / f"signals-{signal.top_k}"
    counter = bench.reporter.counter("caching the teacher's signals")
    cache_signals(bench.teacher.model, bench.windows, signal.top_k, folder, counter)
    return CachedTeacher(folder, bench.windows)


def _test(bench: _Bench, dataset: Dataset, student: PreTrainedModel, key: str) -> TestResult:
    rows = dataset.rows("test")
    encoder = PromptEncoder(bench.teacher.template, bench.teacher.tokenizer)
    task = RankingTask(dataset.catalogue, encoder, rows)
    folder = bench.folder / "test"
    bench.reporter.say(f"ranking the whole test split: {len(rows):,} rows with teacher and student")
    teacher_R = kept_ranks(task, bench.teacher.model, folder / "teacher.npy", bench.reporter)
    student_R = kept_ranks(task, student, folder / f"student-{key}.npy", bench.reporter)
    return judge(teacher_R, student_R, task)


def _kept(file: Path, kind: type[_RecordT], make: Callable[[], _RecordT]) -> _RecordT:
    """Reads the record, or makes it and writes it."""
    if file.exists():
        return kind.model_validate_json(file.read_bytes())
    record = make()
    write_file(file, record.model_dump_json(indent=2) + "\n")
    return record


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _plan_line(teacher: Shape, final: Shape) -> str:
    gone = 1 - final.nonembedding_parameters / teacher.nonembedding_parameters
    return (
        f"from {teacher.nonembedding_parameters:,} to {final.nonembedding_parameters:,} non-embedding "
        f"parameters ({gone:.1%} gone): hidden {final.hidden_size}, heads "
        f"{final.num_attention_heads}/{final.num_key_value_heads}, MLP {final.intermediate_size}, "
        f"layers {final.num_hidden_layers}"
    )
