"""From findings to one self-contained page: no network, no script, one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined

from pruning.pipeline.results import Figures
from pruning.report.choice import reasons
from pruning.report.findings import Findings
from pruning.report.pictures import (
    anatomy,
    curves,
    importance_curves,
    journey,
    quality_picture,
    redundancy_pictures,
    size_pictures,
)
from pruning.report.plots import interval_words
from pruning.report.redundancy import mean_similarity, share_needed
from recommender.ranking import Interval


def render(template: str, **values: object) -> str:
    """A template of this folder, filled in; it holds its own styles."""
    environment = Environment(
        loader=PackageLoader("pruning.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0")
    return environment.get_template(template).render(
        interval=interval_words, made=made, version=version("espalier"), **values
    )


def report_page(findings: Findings) -> str:
    """The whole page as HTML."""
    view = findings.view
    return render(
        "report.html",
        view=view,
        missing=findings.missing,
        tiles=_tiles(findings),
        stage_rows=_stage_rows(findings),
        quality=quality_picture(view),
        reasons=reasons(view.plan),
        anatomy=anatomy(view),
        rotate=view.plan.recipe.rotate,
        redundancy=redundancy_pictures(findings.redundancy),
        redundancy_words=_redundancy_words(findings),
        importance=importance_curves(view, findings.redundancy),
        journey=journey(view),
        curves=curves(view, findings.teacher),
        examples=findings.examples,
        sizes=size_pictures(view),
        latency=findings.latency,
        latency_rows=_latency_rows(findings),
        drawn=any(stage.weights == "drawn" for stage in view.plan.recipe.stages),
        size_rows=_size_rows(findings),
    )


def _tiles(findings: Findings) -> list[tuple[str, str, str]]:
    """Name, figure and small print of what matters most."""
    view, plan = findings.view, findings.view.plan
    before = plan.teacher_shape
    newest = view.newest
    shape = before if newest is None else newest.planned.shape
    gone = 1 - shape.nonembedding_parameters / before.nonembedding_parameters
    counts = f"{before.nonembedding_parameters:,} → {shape.nonembedding_parameters:,}"
    tiles = [("non-embedding parameters gone", f"{gone:.1%}", counts)]
    if view.report is not None:
        test = view.report.test
        tiles.append(("of the teacher's NDCG@10 kept", *_ratio(test.retention_ndcg10)))
        tiles.append(("of the teacher's HR@10 kept", *_ratio(test.retention_hr10)))
        sizes = f"{view.report.teacher_bytes / 1e6:.1f} MB → {view.report.stages[-1].bytes / 1e6:.1f} MB"
        tiles.append(
            ("smaller on disk", f"{_times(view.report.teacher_bytes, view.report.stages[-1].bytes)}", sizes)
        )
    if findings.latency is not None and len(findings.latency.models) == 2:
        teacher, student = findings.latency.models["teacher"], findings.latency.models["student"]
        small = f"{teacher.p50_ms:.1f} ms → {student.p50_ms:.1f} ms at the median"
        tiles.append(("faster at one request", _times(teacher.p50_ms, student.p50_ms), small))
    return tiles


def _ratio(interval: Interval) -> tuple[str, str]:
    return f"{interval.value:.1%}", f"95 % interval {interval.low:.1%} to {interval.high:.1%}"


def _times(before: float, after: float) -> str:
    return f"{before / after:.1f} ×"


def _stage_rows(findings: Findings) -> list[tuple[str, ...]]:
    """The validation table: the teacher, and each stage before and after its restoration."""
    view = findings.view
    rows: list[tuple[str, ...]] = []
    if view.teacher is not None:
        rows.append(_figure_row("teacher", view.teacher, view.teacher))
    for stage in view.stages:
        if stage.after_cut is not None:
            rows.append(_figure_row(f"{stage.name}: cut", stage.after_cut, view.teacher))
        if stage.result is not None and stage.result.restored:
            rows.append(
                _figure_row(f"{stage.name}: restored", stage.result.after_restoration, view.teacher)
            )
    return rows


def _figure_row(name: str, figures: Figures, teacher: Figures | None) -> tuple[str, ...]:
    def words(value: float, interval: Interval | None) -> str:
        return f"{value:.4f}" if interval is None else interval_words(interval)

    return (
        name,
        f"{figures.nats:.2f}",
        words(figures.hr10, figures.hr10_interval),
        words(figures.ndcg10, figures.ndcg10_interval),
        "" if teacher is None or not teacher.ndcg10 else f"{figures.ndcg10 / teacher.ndcg10:.1%}",
    )


def _latency_rows(findings: Findings) -> list[tuple[str, ...]]:
    models = findings.latency.models if findings.latency else {}
    return [(name, f"{one.p50_ms:.1f}", f"{one.p95_ms:.1f}") for name, one in models.items()]


def _redundancy_words(findings: Findings) -> Mapping[str, object] | None:
    """The figures that the text of the redundancy section names."""
    found = findings.redundancy
    if found is None:
        return None
    similar = [mean_similarity(one) for one in found.heads_LHH]
    neurons = [share_needed(layer, 0.8) for layer in found.mlp_LF]
    neighbours = found.stream_MM.diagonal(offset=1).tolist()
    return {
        "heads_mean": sum(similar) / len(similar),
        "heads_most": max(similar),
        "heads_where": similar.index(max(similar)) + 1,
        "heads": len(found.heads_LHH[0]),
        "neighbours": sum(neighbours) / len(neighbours),
        "influence_least": float(found.influence_L.min()),
        "influence_where": int(found.influence_L.argmin()) + 1,
        "channels": "principal directions of the stream" if findings.turned else "hidden channels",
        "channels_80": share_needed(found.hidden_C, 0.8),
        "neurons_80": sum(neurons) / len(neurons),
        "predictions": found.predictions,
    }


def _size_rows(findings: Findings) -> list[Sequence[str]]:
    """Name, shape, parameters and bytes of the teacher and of each stage that is done."""
    view = findings.view
    shapes = [("teacher", view.plan.teacher_shape, view.report.teacher_bytes if view.report else None)]
    shapes += [(stage.name, stage.shape, stage.bytes) for stage in view.finished_stages]
    return [
        (
            name,
            f"{shape.hidden_size}",
            f"{shape.num_attention_heads}/{shape.num_key_value_heads}",
            f"{shape.intermediate_size}",
            f"{shape.num_hidden_layers}",
            f"{shape.nonembedding_parameters:,}",
            f"{shape.total_parameters:,}",
            "" if size is None else f"{size / 1e6:.1f}",
        )
        for name, shape, size in shapes
    ]
