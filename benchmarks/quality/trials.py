"""The log of all trials: what was tried on the validation split, whether it helped or not."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from benchmarks.quality import plan
from benchmarks.quality.budget import tokens_restored
from benchmarks.quality.work import Asked, begin_run, config_for, make_bench, recipe_for
from benchmarks.records import commit
from pruning.pipeline.results import StageResult
from pruning.pipeline.run import try_out
from pruning.progress import Reporter
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
    "command",
)


def make_trial(
    asked: Asked, training: Mapping[str, str], note: str, reporter: Reporter
) -> dict[str, object]:
    """Trains as asked, but for other settings of the training, and adds the validation figures to the log.

    No row of the test split is looked at. Interrupted, the same call goes on.

    Args:
        asked: a row of a method that has a recipe.
        training: fields of `TrainingConfig`, as one writes them; none: the recipe as it stands.
        note: what is tried, in words.
        reporter: of the progress.

    Returns:
        The line of the log.

    Raises:
        InputError: there is no such setting.
    """
    recipe = plan.changed(plan.recipe_of(asked.method), training)
    bench = make_bench(asked, reporter)
    recipe = recipe_for(bench, asked, recipe)
    config = config_for(asked, recipe)
    results = try_out(
        bench.dataset_folder, bench.teacher_folder, begin_run(bench, config), config, reporter
    )
    tokens = tokens_restored(bench.dataset, bench.encoder, recipe, results, asked.seed)
    changes = [word for name, value in training.items() for word in ("--set", f"{name}={value}")]
    line = {
        "date": date.today().isoformat(),
        "commit": commit(),
        "dataset": bench.dataset.card.name,
        "note": note,
        "recipe": recipe.name,
        "seed": asked.seed,
        **trial_figures(results, tokens),
        "command": shlex.join([*asked.words("trial"), *changes]),
    }
    _add_line(asked.results / TRIALS_FILE, line)
    return line


def trial_figures(results: Sequence[StageResult], training_tokens: int) -> dict[str, object]:
    """What a run's stages say on the validation split; None where they have no such figure.

    The key is a digest of recipe, shape, data, teacher and seed: recipes of one name differ in it.
    """
    last = results[-1].after_restoration
    return {
        "key": results[-1].key,
        "nonembedding": results[-1].shape.nonembedding_parameters,
        "parameters": results[-1].shape.total_parameters,
        "steps": sum(stage.restoration_steps for stage in results),
        "training_tokens": training_tokens,
        "loss": round(last.loss, 4),
        "catalogue_loss": None if last.catalogue_loss is None else round(last.catalogue_loss, 4),
        "hr10": round(last.hr10, 4),
        "ndcg10": round(last.ndcg10, 4),
        **_bounds("hr10", last.hr10_interval),
        **_bounds("ndcg10", last.ndcg10_interval),
    }


def _add_line(file: Path, line: Mapping[str, object]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if not file.exists():
        writer.writeheader()
    writer.writerow(line)
    write_file(file, (file.read_text("utf-8") if file.exists() else "") + text.getvalue())


def _bounds(name: str, one: Interval | None) -> dict[str, float | None]:
    return {
        f"{name}_low": None if one is None else round(one.low, 4),
        f"{name}_high": None if one is None else round(one.high, 4),
    }
