"""The loop that runs a recipe, stage by stage, and judges what comes out.

RUN/settings.json, plan.json, sources.json  see `record.py`
RUN/teacher_figures.json               the teacher's figures on the validation split
RUN/directions-KEY.safetensors         what the recipe's rotation turns the channels into
RUN/scores/, stages/                   see `stage.py`
RUN/signals-K-KEY/, collaborative/     see `labels.py`
RUN/test/*.npy                         ranks of the whole test split
RUN/catalogue.parquet, histories.json  what an export needs of the data set
RUN/report.json                        `RunReport`, written last: the run is done
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import PreTrainedModel

from pruning import processes
from pruning.checkpoint import Checkpoint, load_checkpoint
from pruning.errors import RunError
from pruning.evaluation import ModelValidation, RankingTask
from pruning.folder import claim
from pruning.importance.calibration import CalibrationBatch
from pruning.importance.directions import principal_directions
from pruning.pipeline.bench import Bench
from pruning.pipeline.files import kept, read_record
from pruning.pipeline.plan import Target, plan_shapes
from pruning.pipeline.quality import judge, kept_ranks
from pruning.pipeline.recipe import Recipe
from pruning.pipeline.record import SETTINGS_FILE, RunPlan, RunSettings, RunSources, write_record
from pruning.pipeline.results import Figures, RunReport, StageResult, TestResult
from pruning.pipeline.stage import PlannedStage, run_stage
from pruning.progress import Reporter
from pruning.surgery.adapter import CausalModel
from pruning.surgery.canonical import canonical
from pruning.surgery.rotation import rotated, rotated_shape
from pruning.surgery.shape import Shape
from pruning.teacher.folder import MODEL_FOLDER, TeacherRecord, open_teacher
from pruning.training.batches import batches_in_order
from pruning.training.windows import UserPacker, Window
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder
from recommender.storage import write_file

REPORT_FILE = "report.json"
FIGURES_FILE = "teacher_figures.json"
TEST_FOLDER = "test"
CATALOGUE_FILE = "catalogue.parquet"
HISTORIES_FILE = "histories.json"
_REFERENCE_HISTORIES = 8


class PruneConfig(BaseModel):
    """What to prune to, and how.

    Attributes:
        validation_rows: so many rows of the validation split are ranked for each stage's figures.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    target: Target = Target()
    seed: Annotated[int, Field(ge=0)] = 0
    validation_rows: int = 1000


class ReferenceHistories(BaseModel):
    """Real histories (item ids) whose answers an artifact carries as its reference."""

    histories: tuple[tuple[str, ...], ...]


def prune(
    dataset_path: Path, teacher_path: Path, out: Path, config: PruneConfig, reporter: Reporter
) -> RunReport:
    """Prunes a teacher in the run folder `out`; on the same folder it resumes, or says it is done.

    Raises:
        InputError: inputs that do not fit, a target that is no legal shape, a folder of another run.
        TrainingError: a restoration whose loss is not finite.
    """
    opened = _open(dataset_path, teacher_path, out, config)
    report = processes.once(lambda: _finished(out, config.recipe.name, opened.planned))
    if report is not None:
        reporter.say(f"{out}: pruned already")
        return report
    bench, teacher_figures, results, student = _through_stages(opened, out, config, reporter)
    report = RunReport(
        dataset=opened.dataset.card.name,
        dataset_sha256=opened.dataset.digest,
        base=opened.record.base.name,
        teacher_sha256=opened.record.model_sha256,
        recipe=config.recipe.name,
        seed=config.seed,
        validation_rows=config.validation_rows,
        teacher_shape=opened.plan.teacher_shape,
        teacher_bytes=(opened.teacher_folder / MODEL_FOLDER / "model.safetensors").stat().st_size,
        teacher=teacher_figures,
        stages=results,
        test=processes.once(lambda: _test(bench, opened.dataset, student, opened.planned[-1].key)),
    )
    text = report.model_dump_json(indent=2) + "\n"
    processes.once(lambda: write_file(out / REPORT_FILE, text))
    return report


def try_out(
    dataset_path: Path, teacher_path: Path, out: Path, config: PruneConfig, reporter: Reporter
) -> tuple[StageResult, ...]:
    """Runs a recipe's stages as `prune` would, and looks at no row of the test split: a trial.

    No report is written; `prune`, asked for the same afterwards, finds the stages done.

    Raises:
        InputError, TrainingError: as `prune`.
    """
    _, _, results, _ = _through_stages(
        _open(dataset_path, teacher_path, out, config), out, config, reporter
    )
    return results


@dataclass(frozen=True)
class _Opened:
    """A run folder that is claimed, with what its stages begin from."""

    dataset: Dataset
    record: TeacherRecord
    teacher: Checkpoint
    teacher_folder: Path
    whole: CausalModel
    plan: RunPlan
    settings: RunSettings
    planned: Sequence[PlannedStage]


def _open(dataset_path: Path, teacher_path: Path, out: Path, config: PruneConfig) -> _Opened:
    dataset = Dataset(dataset_path)
    record, model_folder = open_teacher(teacher_path, dataset)
    teacher = load_checkpoint(model_folder)
    whole, teacher_shape = canonical(teacher.model), Shape.of(teacher.model.config)
    whole_shape = Shape.of(whole.config)
    if config.recipe.rotate:
        whole_shape = rotated_shape(whole_shape)
    counted = teacher_shape.nonembedding_parameters
    shapes = plan_shapes(whole_shape, config.recipe, config.target, counted)
    settings = RunSettings(
        dataset_sha256=dataset.digest,
        teacher_sha256=record.model_sha256,
        seed=config.seed,
        validation_rows=config.validation_rows,
    )
    processes.once(lambda: claim(out, SETTINGS_FILE, settings))
    plan = RunPlan(
        dataset=dataset.card.name,
        base=record.base.name,
        recipe=config.recipe,
        target=config.target,
        teacher_shape=teacher_shape,
        whole_shape=whole_shape,
        shapes=shapes,
    )
    sources = RunSources.seen_from(out, dataset_path, teacher_path)
    processes.once(lambda: write_record(out, plan, sources))
    return _Opened(dataset, record, teacher, teacher_path, whole, plan, settings, plan.stages(settings))


def _through_stages(
    opened: _Opened, out: Path, config: PruneConfig, reporter: Reporter
) -> tuple[Bench, Figures, tuple[StageResult, ...], CausalModel]:
    """What the test needs, the teacher's figures, the stages' results and the student they leave."""
    reporter.say(_plan_line(opened.plan.teacher_shape, opened.plan.shapes[-1]))
    if opened.record.among == "catalogue" and config.recipe.distils_vocabulary:
        reporter.say(
            "careful: the teacher was trained among the catalogue's titles, and recipe "
            f"{config.recipe.name} distils over the whole vocabulary, of which it knows nothing; train it "
            'with --among vocabulary, or give the recipe\'s distillation among = "catalogue"'
        )
    processes.once(lambda: _begin(opened.dataset, out, config.seed))
    bench = _prepare(opened, out, config, reporter)
    reporter.say("measuring the teacher on the validation split")
    teacher_figures = kept(out / FIGURES_FILE, Figures, lambda: bench.figures(opened.teacher.model))
    student = opened.whole
    if config.recipe.rotate:
        student = _turned(bench, student, opened.plan.directions_file(out, opened.settings))
    results: list[StageResult] = []
    for stage in opened.planned:
        result, student = run_stage(bench, stage, student)
        results.append(result)
    return bench, teacher_figures, tuple(results), student


def _finished(out: Path, recipe: str, planned: Sequence[PlannedStage]) -> RunReport | None:
    """The report that stands, if it is of these very stages."""
    file = out / REPORT_FILE
    if not file.is_file():
        return None
    report = read_record(file, RunReport)
    keys = [stage.key for stage in report.stages]
    return report if report.recipe == recipe and keys == [stage.key for stage in planned] else None


def _begin(dataset: Dataset, out: Path, seed: int) -> None:
    """Puts the folder under work again, with what an export needs of the data set."""
    (out / REPORT_FILE).unlink(missing_ok=True)
    catalogue = dataset.catalogue
    if not (out / CATALOGUE_FILE).exists():
        partial = out / f".{CATALOGUE_FILE}.partial"
        catalogue.to_parquet(partial)
        partial.replace(out / CATALOGUE_FILE)
    rows = dataset.rows("valid").sample(_REFERENCE_HISTORIES, seed)
    histories = tuple(tuple(catalogue.item_ids[i] for i in history) for history in rows.histories)
    record = ReferenceHistories(histories=histories)
    write_file(out / HISTORIES_FILE, record.model_dump_json() + "\n")


def _prepare(opened: _Opened, out: Path, config: PruneConfig, reporter: Reporter) -> Bench:
    dataset, teacher = opened.dataset, opened.teacher
    encoder = PromptEncoder(teacher.template, teacher.tokenizer)
    packer = UserPacker(encoder, dataset.catalogue.titles)
    training, augmentation = packer.training(dataset), config.recipe.augmentation
    augmented = [] if augmentation is None else packer.augmented(dataset, augmentation, config.seed)
    return Bench(
        folder=out,
        teacher_folder=opened.teacher_folder,
        teacher=teacher,
        training=training,
        augmented=augmented,
        augmentation=augmentation,
        calibration=calibration_batches(training, config.recipe.calibration.windows, config.seed),
        validation=ModelValidation(dataset, encoder, config.validation_rows, config.seed),
        seed=config.seed,
        reporter=reporter,
    )


def _turned(bench: Bench, whole: CausalModel, file: Path) -> CausalModel:
    """The whole model in its principal directions, which stand in a file once they are known."""
    if not processes.once(file.exists):
        counter = bench.reporter.counter("finding the stream's principal directions")
        found_CC = principal_directions(whole, bench.calibration, counter)
        processes.once(lambda: write_file(file, save({"basis": found_CC.contiguous()})))
    return rotated(whole, read_directions(file))


def read_directions(file: Path) -> Tensor:
    """(C, C) the basis that a rotated run stands in.

    Raises:
        RunError: the file is damaged.
    """
    try:
        return load_file(file)["basis"]
    except (OSError, SafetensorError, KeyError) as error:
        raise RunError(f"{file}: damaged ({error}); remove it and run again") from error


def calibration_batches(windows: Sequence[Window], count: int, seed: int) -> list[CalibrationBatch]:
    """`count` windows drawn from those that are trained on, as the scores read them."""
    drawn = np.random.default_rng(seed).permutation(len(windows))[:count]
    return [
        CalibrationBatch(batch.input_ids_BT, batch.attention_mask_BT.bool(), batch.target_mask())
        for batch in batches_in_order([windows[index] for index in drawn], 4096)
    ]


def _test(bench: Bench, dataset: Dataset, student: PreTrainedModel, key: str) -> TestResult:
    rows = dataset.rows("test")
    encoder = PromptEncoder(bench.teacher.template, bench.teacher.tokenizer)
    task = RankingTask(dataset.catalogue, encoder, rows)
    folder = bench.folder / TEST_FOLDER
    bench.reporter.say(f"ranking the whole test split: {len(rows):,} rows with teacher and student")
    teacher_R = kept_ranks(task, bench.teacher.model, folder / "teacher.npy", bench.reporter)
    student_R = kept_ranks(task, student, folder / f"student-{key}.npy", bench.reporter)
    return judge(teacher_R, student_R, task)


def _plan_line(teacher: Shape, final: Shape) -> str:
    gone = 1 - final.nonembedding_parameters / teacher.nonembedding_parameters
    return (
        f"from {teacher.nonembedding_parameters:,} to {final.nonembedding_parameters:,} non-embedding "
        f"parameters ({gone:.1%} gone): hidden {final.hidden_size}, heads "
        f"{final.num_attention_heads}/{final.num_key_value_heads}, MLP {final.intermediate_size}, "
        f"layers {final.num_hidden_layers}"
    )
