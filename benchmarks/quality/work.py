"""Makes what a row needs, and only what is missing: data set, teacher, run, figures.

WORK/DATASET/dataset/     the prepared data
WORK/DATASET/teacher/     the fine-tuned base
WORK/DATASET/run-SEED/    one run folder for all recipes of a seed: what does not depend on the recipe
                          (cached signals, the teacher's figures and test ranks) is made once
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.quality import plan
from benchmarks.quality.plan import Size
from benchmarks.quality.rows import Bounds, Method, Row, keep
from benchmarks.quality.sasrec import sasrec_ranks
from benchmarks.records import commit
from pruning.checkpoint import load_checkpoint
from pruning.data.prepare import PrepareOptions, prepare
from pruning.evaluation import RankingTask
from pruning.pipeline.recipe import Recipe
from pruning.pipeline.results import RunReport
from pruning.pipeline.run import FIGURES_FILE, TEST_FOLDER, PruneConfig, prune
from pruning.progress import Reporter
from pruning.surgery.shape import Shape
from pruning.teacher.folder import MODEL_FOLDER, TeacherRecord
from pruning.teacher.train import train_teacher
from pruning.training.batches import TokenBudgetSampler
from pruning.training.windows import UserPacker, Window
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder
from recommender.ranking import RankArray, UserBootstrap, gains, hits

_TEACHER_RANKS = "teacher.npy"


@dataclass(frozen=True)
class Asked:
    """One row that somebody wants."""

    source: Path
    base: Path
    work: Path
    results: Path
    method: Method
    size: Size
    seed: int
    budget: float
    trials: int
    command: str


@dataclass(frozen=True)
class Bench:
    """A data set and its teacher, made or found."""

    folder: Path
    dataset: Dataset
    record: TeacherRecord
    task: RankingTask
    encoder: PromptEncoder

    @property
    def teacher_folder(self) -> Path:
        return self.folder / "teacher"

    def run_folder(self, seed: int) -> Path:
        return self.folder / f"run-{seed}"


def make_row(asked: Asked, reporter: Reporter) -> Row:
    """Makes the row and keeps it; repeated after an interruption it goes on."""
    bench = make_bench(asked, reporter)
    if asked.method in ("popularity", "sasrec", "teacher"):
        ranks_R, row = _peer(bench, asked, reporter)
    else:
        ranks_R, row = _pruned(bench, asked, reporter)
    _, users_R = np.unique(np.asarray(bench.task.rows.user_ids, dtype=object), return_inverse=True)
    keep(asked.results, row, users_R.astype(np.int32), ranks_R)
    return row


def make_bench(asked: Asked, reporter: Reporter) -> Bench:
    """The data set and its teacher."""
    name = asked.source.resolve().name
    folder = asked.work / name
    if not (folder / "dataset").exists():
        prepare(asked.source, folder / "dataset", PrepareOptions(name=name), reporter.say)
    record = train_teacher(
        folder / "dataset", folder / "teacher", plan.teacher_config(asked.base), reporter
    )
    teacher = load_checkpoint(folder / "teacher" / MODEL_FOLDER)
    dataset = Dataset(folder / "dataset")
    encoder = PromptEncoder(teacher.template, teacher.tokenizer)
    task = RankingTask(dataset.catalogue, encoder, dataset.rows("test"))
    return Bench(folder, dataset, record, task, encoder)


def recipe_for(bench: Bench, method: Method, seed: int, budget: float) -> Recipe:
    """The method's recipe at a share of the full budget."""
    recipe = plan.recipe_of(method)
    per_pass = len(_sampler(_windows(bench, None, seed), recipe))
    steps = round(budget * plan.PASSES * per_pass)
    return plan.budgeted(recipe, steps, len(_sampler(_windows(bench, recipe, seed), recipe)))


def _pruned(bench: Bench, asked: Asked, reporter: Reporter) -> tuple[RankArray, Row]:
    run = bench.run_folder(asked.seed)
    _share_with(bench.run_folder(0), run)
    recipe = recipe_for(bench, asked.method, asked.seed, asked.budget)
    config = PruneConfig(
        recipe=recipe,
        target=plan.target_of(asked.method, asked.size),
        seed=asked.seed,
        validation_rows=1000,
    )
    report = prune(bench.folder / "dataset", bench.teacher_folder, run, config, reporter)
    ranks_R = np.load(run / TEST_FOLDER / f"student-{report.stages[-1].key}.npy")
    windows = _windows(bench, recipe, asked.seed)
    per_step = sum(len(window.tokens) for window in windows) / len(_sampler(windows, recipe))
    steps = sum(stage.restoration_steps for stage in report.stages)
    return ranks_R, _row(bench, asked, ranks_R, report=report, tokens=round(steps * per_step))


def _peer(bench: Bench, asked: Asked, reporter: Reporter) -> tuple[RankArray, Row]:
    """What is not pruned: the teacher, and the two that know no titles."""
    if asked.method == "popularity":
        ranks_R = bench.task.popularity_ranks()
    elif asked.method == "sasrec":
        ranks_R = sasrec_ranks(bench.dataset, bench.task, asked.seed, reporter.say)
    else:
        ranks_R = _teacher_ranks(bench)
    return ranks_R, _row(bench, asked, ranks_R, report=None, tokens=None)


def _teacher_ranks(bench: Bench) -> RankArray:
    """As the first run of seed 0 measured them.

    Raises:
        FileNotFoundError: there was none yet.
    """
    ranks_R: RankArray = np.load(bench.run_folder(0) / TEST_FOLDER / _TEACHER_RANKS)
    return ranks_R


def _row(
    bench: Bench, asked: Asked, ranks_R: RankArray, report: RunReport | None, tokens: int | None
) -> Row:
    bootstrap = UserBootstrap(bench.task.rows.user_ids)
    hr10, ndcg10 = bootstrap.mean(hits(ranks_R, 10)), bootstrap.mean(gains(ranks_R, 10))
    test = None if report is None else report.test
    shape = _shape_of(bench, asked.method, report)
    teacher = bench.record.shape
    retained = None if test is None else test.retention_ndcg10
    return Row(
        dataset=bench.dataset.card.name,
        base=bench.record.base.name if shape else None,
        method=asked.method,
        recipe=None if report is None else report.recipe,
        seed=asked.seed,
        size=None if report is None else asked.size,
        budget=None if report is None else asked.budget,
        pruned_nonembedding=shape
        and round(1 - shape.nonembedding_parameters / teacher.nonembedding_parameters, 4),
        parameters_nonembedding=shape and shape.nonembedding_parameters,
        parameters_total=shape and shape.total_parameters,
        bytes=_bytes_of(bench, asked.method, report),
        hr10=hr10.value,
        ndcg10=ndcg10.value,
        hr10_interval=(hr10.low, hr10.high),
        ndcg10_interval=(ndcg10.low, ndcg10.high),
        retention_hr10=None if test is None else test.retention_hr10.value,
        retention_ndcg10=retained and retained.value,
        retention_ndcg10_interval=_bounds(retained.low, retained.high) if retained else None,
        teacher_hr10=None if test is None else test.teacher.hr10.value,
        teacher_ndcg10=None if test is None else test.teacher.ndcg10.value,
        training_tokens=tokens if asked.method != "teacher" else _teacher_tokens(bench),
        trials=asked.trials,
        command=asked.command,
        commit=commit(),
        date=date.today().isoformat(),
    )


def _bounds(low: float, high: float) -> Bounds:
    return low, high


def _shape_of(bench: Bench, method: Method, report: RunReport | None) -> Shape | None:
    if report is not None:
        return report.student_shape
    return bench.record.shape if method == "teacher" else None


def _bytes_of(bench: Bench, method: Method, report: RunReport | None) -> int | None:
    if report is not None:
        return report.stages[-1].bytes
    model = bench.teacher_folder / MODEL_FOLDER / "model.safetensors"
    return model.stat().st_size if method == "teacher" else None


def _teacher_tokens(bench: Bench) -> int:
    windows = UserPacker(bench.encoder, bench.dataset.catalogue.titles).training(bench.dataset)
    training = plan.teacher_config(bench.folder).training
    steps_of_pass = len(TokenBudgetSampler(windows, training.tokens_per_batch, training.seed))
    return round(sum(len(w.tokens) for w in windows) * bench.record.fit.steps / steps_of_pass)


def _windows(bench: Bench, recipe: Recipe | None, seed: int) -> Sequence[Window]:
    """What a recipe trains on; of none, the training histories as they are."""
    packer = UserPacker(bench.encoder, bench.dataset.catalogue.titles)
    more = recipe.augmentation if recipe else None
    windows = packer.training(bench.dataset)
    return windows if more is None else [*windows, *packer.augmented(bench.dataset, more, seed)]


def _sampler(windows: Sequence[Window], recipe: Recipe) -> TokenBudgetSampler:
    return TokenBudgetSampler(windows, recipe.stages[-1].training.tokens_per_batch, seed=0)


def _share_with(first: Path, run: Path) -> None:
    """Spares a seed's run the teacher's figures, which do not depend on the seed that prunes."""
    for name in (FIGURES_FILE, f"{TEST_FOLDER}/{_TEACHER_RANKS}"):
        if (first / name).exists() and not (run / name).exists():
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first / name, run / name)
