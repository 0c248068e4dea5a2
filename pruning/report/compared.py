"""A comparison for people: a table for the terminal, and a page with Pareto plots."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from pruning.report.compare import ComparedRun, Comparison
from pruning.report.page import render
from pruning.report.plots import Spot, scatter
from recommender.ranking import Interval
from recommender.storage import write_file

_COLUMNS = (
    *("recipe", "seed", "gone", "non-embedding", "total", "MB"),
    *("HR@10", "NDCG@10", "HR@10 kept", "NDCG@10 kept", "NDCG@10 − first", "p50 ms"),
)
_ON_THE_PAGE = ("total", "HR@10 kept")


def comparison_table(comparison: Comparison) -> Table:
    """One row a run; what would not fit 160 characters is on the page and in the JSON."""
    table = Table(title=escape(_title(comparison)), title_justify="left")
    table.add_column("run")
    shown = [place for place, column in enumerate(_COLUMNS) if column not in _ON_THE_PAGE]
    for place in shown:
        table.add_column(_COLUMNS[place], justify="right", no_wrap=True)
    for run in comparison.runs:
        name, *cells = _cells(run)
        table.add_row(escape(name), *(escape(cells[place]) for place in shown))
    return table


def write_comparison(comparison: Comparison, file: Path) -> None:
    """Writes the page, whole or not at all."""
    teachers = {run.teacher_sha256 for run in comparison.runs}
    page = render(
        "compare.html",
        title=_title(comparison),
        comparison=comparison,
        several_teachers=len(teachers) > 1,
        columns=("run", *_COLUMNS),
        rows=[_cells(run) for run in comparison.runs],
        parameters=scatter(
            [_spot(run, run.parameters_nonembedding, at) for at, run in enumerate(comparison.runs)],
            "non-embedding parameters",
            "NDCG@10",
            f"NDCG@10 against non-embedding parameters of {len(comparison.runs)} runs; the table has both.",
        ),
        latency=scatter(
            [_spot(run, run.latency.p50_ms, at) for at, run in enumerate(comparison.runs)],
            "milliseconds a request (median)",
            "NDCG@10",
            f"NDCG@10 against latency of {len(comparison.runs)} runs; the table has both.",
        ),
    )
    write_file(file, page)


def _title(comparison: Comparison) -> str:
    return f"{len(comparison.runs)} runs on {comparison.dataset}: test split, {comparison.rows:,} rows"


def _spot(run: ComparedRun, x: float, number: int) -> Spot:
    return Spot(run.name, x, run.ndcg10, number)


def _cells(run: ComparedRun) -> tuple[str, ...]:
    def words(interval: Interval, digits: int = 4) -> str:
        low, high = f"{interval.low:.{digits}f}", f"{interval.high:.{digits}f}"
        return f"{interval.value:.{digits}f}\n[{low}, {high}]"

    difference = run.difference_ndcg10
    return (
        run.name,
        run.recipe,
        str(run.seed),
        f"{run.pruned_nonembedding:.1%}",
        f"{run.parameters_nonembedding:,}",
        f"{run.parameters_total:,}",
        f"{run.bytes / 1e6:.1f}",
        words(run.hr10),
        words(run.ndcg10),
        words(run.retention_hr10, 3),
        words(run.retention_ndcg10, 3),
        "" if difference is None else words(difference),
        f"{run.latency.p50_ms:.1f}",
    )
