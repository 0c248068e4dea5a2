"""The picture of quality against training tokens, a file of its own that any page can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources

from markupsafe import Markup

from pruning.report.plots import Line, Point, line_chart
from pruning.report.svg import tag


def curve_svg(points: Mapping[str, Sequence[Point]], teacher: float | None) -> str:
    """NDCG@10 of each method against training tokens, in millions; the teacher's as a level."""
    lines = [Line(name, series, style, dots=True) for style, (name, series) in enumerate(points.items())]
    chart = line_chart(
        lines,
        "training tokens, millions",
        "NDCG@10 on the test split",
        "Quality against training tokens: " + ", ".join(points),
        size=(640, 340),
        level=None if teacher is None else ("teacher", teacher),
        logarithmic=True,
        key_within=True,
    )
    style = resources.files("pruning.report").joinpath("templates/style.css").read_text("utf-8")
    ground = "svg { background: var(--card); }\n"
    # A file of its own needs what the page would give it: a namespace, the colours and a ground.
    opened = str(chart).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    at = opened.index(">") + 1
    return f"{opened[:at]}{tag('style', Markup(style + ground))}{opened[at:]}\n"
