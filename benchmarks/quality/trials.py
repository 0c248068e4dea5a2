"""The log of all trials: what was tried on the validation split, whether it helped or not."""

from __future__ import annotations

import csv
import io
from datetime import date
from pathlib import Path

from pruning.export import read_report
from recommender.storage import write_file

TRIALS_FILE = "quality_trials.csv"
_COLUMNS = (
    "date",
    "dataset",
    "note",
    "recipe",
    "seed",
    "nonembedding",
    "steps",
    "loss",
    "catalogue_loss",
    "hr10",
    "ndcg10",
)


def log_trial(run: Path, results: Path, note: str) -> None:
    """Adds a finished run's validation figures to the log.

    Raises:
        RunError: the run is not finished.
    """
    report = read_report(run)
    last = report.stages[-1].after_restoration
    line = {
        "date": date.today().isoformat(),
        "dataset": report.dataset,
        "note": note,
        "recipe": report.recipe,
        "seed": report.seed,
        "nonembedding": report.student_shape.nonembedding_parameters,
        "steps": sum(stage.restoration_steps for stage in report.stages),
        "loss": round(last.loss, 4),
        "catalogue_loss": None if last.catalogue_loss is None else round(last.catalogue_loss, 4),
        "hr10": round(last.hr10, 4),
        "ndcg10": round(last.ndcg10, 4),
    }
    file = results / TRIALS_FILE
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    if not file.exists():
        writer.writeheader()
    writer.writerow(line)
    write_file(file, (file.read_text("utf-8") if file.exists() else "") + text.getvalue())
