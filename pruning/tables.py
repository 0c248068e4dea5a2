"""What a person reads at the end: tables of runs and metrics for a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from pruning.pipeline.results import Contender, Figures, RunReport
from pruning.surgery.shape import Shape
from recommender.dataset import DatasetCard
from recommender.ranking import Interval, Metrics


def dataset_table(card: DatasetCard) -> Table:
    """Counts of a prepared data set."""
    table = Table(title=f"Data set {card.name} ({card.source_format})", title_justify="left")
    for column in ("users", "items", "titles", "interactions", "train", "valid", "test"):
        table.add_column(column, justify="right")
    counts = (card.users, card.items, card.titles.distinct, card.interactions)
    rows = (card.rows.train, card.rows.valid, card.rows.test)
    table.add_row(*(f"{count:,}" for count in (*counts, *rows)))
    return table


def stage_table(report: RunReport) -> Table:
    """Each stage before and after its restoration, if it has one, on the validation split."""
    table = Table(
        title=(
            f"Recipe {report.recipe} on {report.dataset}: validation split, "
            f"ranking on {report.validation_rows:,} rows at most"
        ),
        title_justify="left",
    )
    table.add_column("model")
    columns = (
        *("hidden", "heads", "MLP", "layers", "non-embedding", "total", "MB"),
        *("nats/title", "HR@10", "NDCG@10", "retention"),
    )
    for column in columns:
        table.add_column(column, justify="right")
    table.add_row(
        "teacher",
        *_shape_cells(report.teacher_shape, report.teacher_bytes),
        *_figure_cells(report.teacher, report.teacher),
    )
    for stage in report.stages:
        *shape, size = _shape_cells(stage.shape, stage.bytes)
        cut = _figure_cells(stage.after_cut, report.teacher)
        if not stage.restored:
            table.add_row(f"{stage.name}: cut", *shape, size, *cut)
            continue
        table.add_row(f"{stage.name}: cut", *shape, "", *cut)
        restored = _figure_cells(stage.after_restoration, report.teacher)
        table.add_row(f"{stage.name}: restored", *([""] * len(shape)), size, *restored)
    return table


def test_table(report: RunReport) -> Table:
    """Teacher, pruned model and popularity on the whole test split."""
    test = report.test
    rows = test.student.metrics.rows
    table = Table(title=f"The whole test split: {rows:,} rows", title_justify="left")
    table.add_column("model")
    for column in ("HR@10", "NDCG@10", "HR@10 kept", "NDCG@10 kept", "NDCG@10 / popularity's"):
        table.add_column(column, justify="right")
    table.add_row(
        "teacher", *_quality_cells(test.teacher), "", "", _ratio(test.teacher_over_popularity_ndcg10)
    )
    table.add_row(
        f"pruned ({report.pruned_nonembedding:.1%} gone)",
        *_quality_cells(test.student),
        _ratio(test.retention_hr10),
        _ratio(test.retention_ndcg10),
        _ratio(test.student_over_popularity_ndcg10),
    )
    table.add_row("popularity", *_quality_cells(test.popularity), "", "", "")
    return table


def metrics_table(
    models: Mapping[str, tuple[Metrics, Interval | None, Interval | None]], split: str
) -> Table:
    """All metrics of some models on one split, with intervals for HR@10 and NDCG@10 where known."""
    rows = next(iter(models.values()))[0].rows
    table = Table(title=f"Split {split}: {rows:,} rows", title_justify="left")
    table.add_column("model")
    names = [name for name in Metrics.model_fields if name != "rows"]
    for name in names:
        table.add_column(name.upper().replace("HR", "HR@").replace("NDCG", "NDCG@"), justify="right")
    for model, (metrics, hr10, ndcg10) in models.items():
        intervals = {"hr10": hr10, "ndcg10": ndcg10}
        cells = [
            _interval(known) if (known := intervals.get(name)) else f"{getattr(metrics, name):.4f}"
            for name in names
        ]
        table.add_row(model, *cells)
    return table


def _shape_cells(shape: Shape, size: int) -> list[str]:
    return [
        str(shape.hidden_size),
        f"{shape.num_attention_heads}/{shape.num_key_value_heads}",
        str(shape.intermediate_size),
        str(shape.num_hidden_layers),
        f"{shape.nonembedding_parameters:,}",
        f"{shape.total_parameters:,}",
        f"{size / 1e6:.1f}",
    ]


def _figure_cells(figures: Figures, teacher: Figures) -> list[str]:
    retention = figures.ndcg10 / teacher.ndcg10 if teacher.ndcg10 else float("nan")
    return [
        f"{figures.nats:.2f}",
        f"{figures.hr10:.4f}",
        f"{figures.ndcg10:.4f}",
        f"{retention:.3f}",
    ]


def _quality_cells(contender: Contender) -> list[str]:
    return [_interval(contender.hr10), _interval(contender.ndcg10)]


def _interval(interval: Interval) -> str:
    # Escaped, since rich would take "[nan, nan]" for a style.
    return escape(f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]")


def _ratio(interval: Interval) -> str:
    return escape(f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]")
