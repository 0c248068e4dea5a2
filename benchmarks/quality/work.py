"""Makes what a row needs, and only what is missing: data set, teacher, run, figures.

WORK/DATASET/dataset/     the prepared data
WORK/DATASET/teacher/     the fine-tuned base, and in test.npy its ranks of the whole test split
WORK/DATASET/run-SEED/    one run folder for all recipes of a seed: what does not depend on the recipe
                          (cached signals, the teacher's figures) is made once, and what does not depend
                          on the seed either is taken from the teacher and the run of seed 0
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.quality import plan
from benchmarks.quality.budget import (
    steps_for,
    steps_of_pass,
    tokens_of,
    tokens_read,
    tokens_restored,
    training_windows,
)
from benchmarks.quality.plan import SHAPES, Shapes, Size
from benchmarks.quality.rows import Bounds, Method, Row, TestRows, keep
from benchmarks.quality.sasrec import sasrec_ranks
from benchmarks.records import commit, described, machine_in_words
from pruning.checkpoint import load_checkpoint
from pruning.data.prepare import PrepareOptions, prepare
from pruning.evaluation import RankingTask
from pruning.folder import claim
from pruning.pipeline.quality import kept_ranks
from pruning.pipeline.recipe import Recipe
from pruning.pipeline.record import SETTINGS_FILE, RunSettings
from pruning.pipeline.results import RunReport
from pruning.pipeline.run import TEST_FOLDER, PruneConfig, prune
from pruning.progress import Reporter
from pruning.surgery.shape import Shape
from pruning.teacher.folder import MODEL_FOLDER, TeacherRecord
from pruning.teacher.train import train_teacher
from pruning.training.precision import Precision
from pruning.training.windows import Window
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder
from recommender.ranking import RankArray, UserBootstrap, gains, hits
from recommender.storage import write_file

PEERS: tuple[Method, ...] = ("popularity", "sasrec", "teacher")
"""Methods that prune nothing."""


@dataclass(frozen=True)
class Asked:
    """One row that somebody wants.

    Attributes:
        dataset: what the data set is called in all rows.
        source: its interactions, items and splits.
        base: the pretrained model.
        work: where everything is made.
        results: where the row is kept.
        trials: how many settings were tried on the validation split before.
        precision: of all products, the teacher's too, so one work folder has one.
        shapes: the final shapes; those of SmolLM2-135M suit no other base.
    """

    dataset: str
    source: Path
    base: Path
    work: Path
    results: Path
    method: Method
    size: Size = 95
    seed: int = 0
    budget: float = 1.0
    trials: int = 1
    precision: Precision = "float32"
    shapes: Shapes = field(default_factory=lambda: SHAPES)

    @property
    def command(self) -> str:
        """What makes the row again, without the folders of the machine that made it."""
        return shlex.join([*self.words("run"), "--trials", str(self.trials)])

    def words(self, what: str) -> list[str]:
        """A command of this benchmark for what is asked."""
        words = ["python", "-m", "benchmarks.quality", what, self.dataset]
        words += ["--source", self.source.resolve().name, "--base", self.base.resolve().name]
        words += ["--method", self.method, "--seed", str(self.seed)]
        if self.method not in PEERS:
            words += ["--size", str(self.size), "--budget", f"{self.budget:g}"]
        if self.precision != "float32":
            words += ["--precision", self.precision]
        return words


@dataclass(frozen=True)
class Bench:
    """A data set and its teacher, made or found."""

    folder: Path
    dataset: Dataset
    record: TeacherRecord
    task: RankingTask
    encoder: PromptEncoder

    @property
    def dataset_folder(self) -> Path:
        return self.folder / "dataset"

    @property
    def teacher_folder(self) -> Path:
        return self.folder / "teacher"

    @property
    def teacher_ranks(self) -> Path:
        return self.teacher_folder / "test.npy"

    def run_folder(self, seed: int) -> Path:
        return self.folder / f"run-{seed}"

    def windows(self, recipe: Recipe | None = None, seed: int = 0) -> list[Window]:
        """What a recipe trains on; of none, the training histories as they are."""
        more = None if recipe is None else recipe.augmentation
        return training_windows(self.dataset, self.encoder, more, seed)


def make_row(asked: Asked, reporter: Reporter) -> Row:
    """Makes the row and keeps it; repeated after an interruption it goes on.

    Raises:
        RecipeError: the method has no shape that small.
    """
    bench = make_bench(asked, reporter)
    if asked.method in PEERS:
        ranks_R, row = _peer(bench, asked, reporter)
    else:
        ranks_R, row = _pruned(bench, asked, reporter)
    keep(asked.results, row, test_rows(bench.task), ranks_R)
    return row


def test_rows(task: RankingTask) -> TestRows:
    """Whose the task's rows are, and how often their target titles were trained on."""
    _, users_R = np.unique(np.asarray(task.rows.user_ids, dtype=object), return_inverse=True)
    return TestRows(users_R.astype(np.int32), task.popularity_of_titles()[task.target_leaves_R])


def make_bench(asked: Asked, reporter: Reporter) -> Bench:
    """The data set and its teacher."""
    folder = asked.work / asked.dataset
    prepare(asked.source, folder / "dataset", PrepareOptions(name=asked.dataset), reporter.say)
    config = plan.teacher_config(asked.base, asked.precision)
    record = train_teacher(folder / "dataset", folder / "teacher", config, reporter)
    teacher = load_checkpoint(folder / "teacher" / MODEL_FOLDER)
    dataset = Dataset(folder / "dataset")
    encoder = PromptEncoder(teacher.template, teacher.tokenizer)
    task = RankingTask(dataset.catalogue, encoder, dataset.rows("test"))
    return Bench(folder, dataset, record, task, encoder)


def recipe_for(bench: Bench, asked: Asked, recipe: Recipe) -> Recipe:
    """The recipe at the asked share of the full budget."""
    windows, training = bench.windows(recipe, asked.seed), recipe.stages[-1].training
    assert training is not None  # a recipe's last stage has one
    tokens = round(asked.budget * plan.PASSES * tokens_of(bench.windows()))
    steps, per_pass = steps_for(tokens, windows, training), steps_of_pass(windows, training)
    return plan.budgeted(recipe, steps, per_pass, asked.precision)


def config_for(asked: Asked, recipe: Recipe) -> PruneConfig:
    """A run of the recipe, as every row and every trial has it."""
    return PruneConfig(
        recipe=recipe,
        target=plan.target_of(asked.method, asked.size, asked.shapes),
        seed=asked.seed,
        validation_rows=1000,
    )


def _pruned(bench: Bench, asked: Asked, reporter: Reporter) -> tuple[RankArray, Row]:
    recipe = recipe_for(bench, asked, plan.recipe_of(asked.method))
    config = config_for(asked, recipe)
    _rank_teacher(bench, reporter)
    run = begin_run(bench, config)
    report = prune(bench.dataset_folder, bench.teacher_folder, run, config, reporter)
    ranks_R = np.load(run / TEST_FOLDER / f"student-{report.stages[-1].key}.npy")
    tokens = tokens_restored(bench.dataset, bench.encoder, recipe, report.stages, asked.seed)
    return ranks_R, _row(bench, asked, ranks_R, report=report, tokens=tokens)


def _peer(bench: Bench, asked: Asked, reporter: Reporter) -> tuple[RankArray, Row]:
    """What is not pruned: the teacher, and the two that know no titles."""
    tokens = None
    if asked.method == "popularity":
        ranks_R = bench.task.popularity_ranks()
    elif asked.method == "sasrec":
        ranks_R = sasrec_ranks(bench.dataset, bench.task, asked.seed, reporter.say)
    else:
        ranks_R = _rank_teacher(bench, reporter)
        windows, training = bench.windows(), plan.teacher_config(asked.base, asked.precision).training
        tokens = tokens_read(windows, training, bench.record.fit.steps)
    return ranks_R, _row(bench, asked, ranks_R, report=None, tokens=tokens)


def _rank_teacher(bench: Bench, reporter: Reporter) -> RankArray:
    """The teacher's ranks of the test split; measured once, whatever is pruned from it."""
    if not bench.teacher_ranks.exists():
        reporter.say(f"ranking the whole test split with the teacher: {len(bench.task.rows):,} rows")
    model = load_checkpoint(bench.teacher_folder / MODEL_FOLDER).model
    return kept_ranks(bench.task, model, bench.teacher_ranks, reporter)


def begin_run(bench: Bench, config: PruneConfig) -> Path:
    """Begins the seed's run folder as `prune` would, with what seed 0 or the teacher has already.

    The teacher's figures are not among it: they are measured on validation rows that the seed draws.
    Signals of augmented histories have the seed in their name, and so are found by their own seed only.
    """
    settings = RunSettings(
        dataset_sha256=bench.dataset.digest,
        teacher_sha256=bench.record.model_sha256,
        seed=config.seed,
        validation_rows=config.validation_rows,
    )
    run = bench.run_folder(config.seed)
    claim(run, SETTINGS_FILE, settings)
    ranks = run / TEST_FOLDER / "teacher.npy"
    if bench.teacher_ranks.exists() and not ranks.exists():
        write_file(ranks, bench.teacher_ranks.read_bytes())
    for signals in bench.run_folder(0).glob("signals-*"):
        if not (run / signals.name).exists():
            (run / signals.name).symlink_to(os.path.relpath(signals.resolve(), run.resolve()))
    return run


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
        training_tokens=tokens,
        trials=asked.trials,
        command=asked.command,
        commit=commit(),
        date=date.today().isoformat(),
        machine=machine_in_words(described(("torch", "transformers"))["machine"]),
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
