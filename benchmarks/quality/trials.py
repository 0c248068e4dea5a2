"""The log of all trials: what was tried on the validation split, whether it helped or not."""

from __future__ import annotations

import csv
import io
from datetime import date
from pathlib import Path

from benchmarks.quality.budget import tokens_restored
from benchmarks.records import commit
from pruning.checkpoint import load_checkpoint
from pruning.export import read_report
from pruning.pipeline.files import read_record
from pruning.pipeline.record import SOURCES_FILE, RunSources, read_plan
from pruning.pipeline.results import RunReport
from pruning.teacher.folder import MODEL_FOLDER
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder
from recommender.ranking import Interval
from recommender.storage import write_file

TRIALS_FILE = "quality_trials.csv"
COLUMNS = (
    "date",
    "commit",
    "dataset",
    "note",
    "recipe",
    "key",
    "seed",
    "nonembedding",
    "parameters",
    "steps",
    "training_tokens",
    "loss",
    "catalogue_loss",
    "hr10",
    "hr10_low",
    "hr10_high",
    "ndcg10",
    "ndcg10_low",
    "ndcg10_high",
)


def log_trial(run: Path, results: Path, note: str) -> None:
    """Adds a finished run's validation figures to the log, with this day and this commit.

    Raises:
        RunError: the run is not finished.
        InputError: its data set or teacher is gone.
    """
    report = read_report(run)
    figures = trial_figures(report, _tokens(run, report))
    line = {"date": date.today().isoformat(), "commit": commit(), "note": note} | figures
    file = results / TRIALS_FILE
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if not file.exists():
        writer.writeheader()
    writer.writerow(line)
    write_file(file, (file.read_text("utf-8") if file.exists() else "") + text.getvalue())


def trial_figures(report: RunReport, training_tokens: int) -> dict[str, object]:
    """What a run says of itself: nothing of the test split; None where it has no such figure.

    The key is a digest of recipe, shape, data, teacher and seed: recipes of one name differ in it.
    """
    last = report.stages[-1].after_restoration
    return {
        "dataset": report.dataset,
        "recipe": report.recipe,
        "key": report.stages[-1].key,
        "seed": report.seed,
        "nonembedding": report.student_shape.nonembedding_parameters,
        "parameters": report.student_shape.total_parameters,
        "steps": sum(stage.restoration_steps for stage in report.stages),
        "training_tokens": training_tokens,
        "loss": round(last.loss, 4),
        "catalogue_loss": None if last.catalogue_loss is None else round(last.catalogue_loss, 4),
        "hr10": round(last.hr10, 4),
        "ndcg10": round(last.ndcg10, 4),
        **_bounds("hr10", last.hr10_interval),
        **_bounds("ndcg10", last.ndcg10_interval),
    }


def _tokens(run: Path, report: RunReport) -> int:
    sources = read_record(run / SOURCES_FILE, RunSources)
    teacher = load_checkpoint(run / sources.teacher / MODEL_FOLDER)
    encoder = PromptEncoder(teacher.template, teacher.tokenizer)
    return tokens_restored(Dataset(run / sources.dataset), encoder, read_plan(run).recipe, report)


def _bounds(name: str, one: Interval | None) -> dict[str, float | None]:
    return {
        f"{name}_low": None if one is None else round(one.low, 4),
        f"{name}_high": None if one is None else round(one.high, 4),
    }
