"""Charts with axes: lines, points with intervals, bars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pruning.report.svg import Scale, compact, drawing, hint, spread, tag, text
from recommender.ranking import Interval

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 44
_MARKERS = ("circle", "square", "diamond", "triangle")

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A named series; `style` picks colour, dashes and marker together.

    Attributes:
        dots: mark the points.
    """

    name: str
    points: Sequence[Point]
    style: int = 0
    dots: bool = False


@dataclass(frozen=True)
class Band:
    """What lies between two lines, (x, low, high)."""

    edges: Sequence[tuple[float, float, float]]
    style: int = 0


@dataclass(frozen=True)
class Spot:
    """A labelled point with an interval up and down."""

    label: str
    x: float
    value: Interval
    style: int = 0


def line_chart(
    lines: Sequence[Line],
    x_name: str,
    y_name: str,
    alt: str,
    *,
    size: tuple[int, int] = (520, 260),
    bands: Sequence[Band] = (),
    level: tuple[str, float] | None = None,
    mark: tuple[str, float] | None = None,
    places: Sequence[str] = (),
    from_zero: bool = False,
    logarithmic: bool = False,
    key_within: bool = False,
) -> Markup:
    """Lines over a common x.

    Args:
        lines: the series.
        x_name: what runs across.
        y_name: what runs up.
        alt: what the chart shows, in a sentence.
        size: width and height.
        bands: areas behind the lines.
        level: a named horizontal line.
        mark: a named vertical line.
        places: names of x = 0, 1, 2, … instead of numbers.
        from_zero: the y axis begins at zero.
        logarithmic: equal ratios of x are equally far apart.
        key_within: the names stand in the picture, at the bottom right, for a file of its own.
    """
    width, height = size
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + ([level[1]] if level else [])
    ys += [edge for band in bands for _, *edges in band.edges for edge in edges]
    whole = all(float(x).is_integer() for x in xs)
    ends = min(xs, default=0), max(xs, default=1)
    across = Scale(*ends, _LEFT, width - _RIGHT, logarithmic=logarithmic, whole=whole)
    up = Scale(*spread(ys, from_zero=from_zero), height - _BOTTOM, _TOP)
    drawn: list[Markup] = [_axes(across, up, size, x_name, y_name, places)]
    for band in bands:
        outline = [(x, high) for x, _, high in band.edges] + [(x, low) for x, low, _ in band.edges][::-1]
        drawn.append(tag("polygon", points=_path(outline, across, up), class_=f"band s{band.style}"))
    if level is not None:
        y = up(level[1])
        drawn.append(tag("line", x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y, class_="level"))
        drawn.append(text(width - _RIGHT, y - 5, level[0], "end", class_="ink"))
    if mark is not None:
        x = across(mark[1])
        drawn.append(tag("line", x1=x, x2=x, y1=_TOP, y2=height - _BOTTOM, class_="level"))
        drawn.append(text(x + 6, _TOP + 10, mark[0], class_="ink"))
    drawn.extend(_line(line, across, up) for line in lines)
    legend = [line for line in lines if line.name]
    if key_within:
        return drawing(width, height, alt, *drawn, _key_within(legend, size))
    return drawing(width, height, alt, *drawn) + (key(legend) if len(legend) > 1 else Markup(""))


def key(lines: Sequence[Line]) -> Markup:
    """Which name belongs to which line."""
    return tag("ul", *(tag("li", _sample(line), tag("span", line.name)) for line in lines), class_="key")


def _key_within(lines: Sequence[Line], size: tuple[int, int]) -> Markup:
    x, bottom = size[0] - 170, size[1] - _BOTTOM - 14
    rows = []
    for row, line in enumerate(reversed(lines)):
        y = bottom - 18 * row
        stroke = tag("polyline", points=f"{x},{y} {x + 28},{y}", class_="line")
        dot = _marker(x + 14, y, line.style, 3.5) if line.dots else Markup("")
        name = text(x + 36, y + 4, line.name, class_="ink")
        rows.append(tag("g", stroke, dot, name, class_=f"s{line.style % 5}"))
    return tag("g", *rows)


def scatter(
    spots: Sequence[Spot], x_name: str, y_name: str, alt: str, size: tuple[int, int] = (560, 340)
) -> Markup:
    """Labelled points over a logarithmic x, with the Pareto front: less to the left, better above."""
    width, height = size
    xs = [spot.x for spot in spots]
    low, high = min(xs) / 1.5, max(xs) * 1.9
    across = Scale(low, high, _LEFT, width - _RIGHT, logarithmic=True)
    bounds = [b for spot in spots for b in (spot.value.low, spot.value.high, spot.value.value)]
    up = Scale(*spread(bounds), height - _BOTTOM, _TOP)
    front = pareto_front([(spot.x, spot.value.value) for spot in spots])
    drawn = [_axes(across, up, size, x_name, y_name)]
    drawn.append(tag("polyline", points=_path(front, across, up), class_="front"))
    for spot in spots:
        x, y = across(spot.x), up(spot.value.value)
        drawn.append(
            tag(
                "g",
                hint(f"{spot.label}: {interval_words(spot.value)} at {compact(spot.x)}"),
                _error_bar(x, up, spot.value),
                _marker(x, y, spot.style, 5),
                text(x + 9, y - 7, spot.label, class_="ink"),
                class_=f"s{spot.style % 5}",
            )
        )
    return drawing(width, height, alt, *drawn)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both, from the smallest x up: less x is better, more y is."""
    front: list[Point] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def interval_chart(values: Mapping[str, Interval], x_name: str, alt: str, width: int = 520) -> Markup:
    """One row a name: the value and its interval."""
    each, left = 34, 150
    height = each * len(values) + _BOTTOM
    bounds = [b for one in values.values() for b in (one.low, one.high, one.value)]
    across = Scale(*spread(bounds, from_zero=True), left, width - _RIGHT - 10)
    bottom = height - _BOTTOM
    drawn = [_vertical_grid(across, 4, bottom), text((left + width) / 2, height - 6, x_name, "middle")]
    for row, (name, one) in enumerate(values.items()):
        y = each * (row + 0.5)
        bar = tag("line", x1=across(one.low), x2=across(one.high), y1=y, y2=y, class_="error")
        drawn.append(
            tag(
                "g",
                hint(f"{name}: {interval_words(one)}"),
                text(left - 12, y + 4, name, "end", class_="ink"),
                bar if math.isfinite(one.low) else Markup(""),
                _marker(across(one.value), y, row, 5.5),
                class_=f"s{row % 5}",
            )
        )
    return drawing(width, height, alt, *drawn)


def stacked_bars(rows: Mapping[str, Mapping[str, float]], x_name: str, alt: str) -> Markup:
    """One bar a name, made up of parts; the same parts in every row."""
    width, each, left = 640, 30, 150
    height = each * len(rows) + _BOTTOM
    most = max((sum(parts.values()) for parts in rows.values()), default=1) or 1
    across = Scale(0, most * 1.12, left, width - _RIGHT)
    drawn = [_vertical_grid(across, 4, height - _BOTTOM)]
    drawn.append(text((left + width) / 2, height - 6, x_name, "middle"))
    for row, (name, parts) in enumerate(rows.items()):
        y, reached = each * row + 6, 0.0
        drawn.append(text(left - 12, y + 14, name, "end", class_="ink"))
        for style, (part, amount) in enumerate(parts.items()):
            start, stop = across(reached), across(reached + amount)
            drawn.append(
                tag(
                    "rect",
                    hint(f"{name}, {part}: {amount:,.0f}"),
                    x=start,
                    y=y,
                    width=max(0.0, stop - start),
                    height=20,
                    class_=f"part s{style % 5}",
                )
            )
            reached += amount
        drawn.append(text(across(reached) + 6, y + 14, compact(reached)))
    names = list(next(iter(rows.values()), {}))
    swatches = (
        tag("li", tag("i", class_=f"swatch s{style % 5}"), tag("span", name))
        for style, name in enumerate(names)
    )
    return drawing(width, height, alt, *drawn) + tag("ul", *swatches, class_="key")


def interval_words(one: Interval) -> str:
    """A value with its bounds, four digits."""
    return f"{one.value:.4f} [{one.low:.4f}, {one.high:.4f}]"


def _axes(
    across: Scale,
    up: Scale,
    size: tuple[int, int],
    x_name: str,
    y_name: str,
    places: Sequence[str] = (),
) -> Markup:
    width, height = size
    drawn: list[Markup] = []
    for tick in up.ticks():
        y = up(tick)
        drawn.append(tag("line", x1=_LEFT, x2=width - _RIGHT, y1=y, y2=y, class_="grid"))
        drawn.append(text(_LEFT - 7, y + 4, compact(tick), "end"))
    if places:
        anchors = ["start", *["middle"] * (len(places) - 2), "end"]
        for place, (name, anchor) in enumerate(zip(places, anchors, strict=False)):
            drawn.append(text(across(place), height - _BOTTOM + 17, name, anchor))
    else:
        for tick in across.ticks(6):
            drawn.append(text(across(tick), height - _BOTTOM + 17, compact(tick), "middle"))
    base = height - _BOTTOM
    drawn.append(tag("line", x1=_LEFT, x2=width - _RIGHT, y1=base, y2=base, class_="axis"))
    drawn.append(text((_LEFT + width - _RIGHT) / 2, height - 6, x_name, "middle"))
    middle = (_TOP + height - _BOTTOM) / 2
    drawn.append(text(13, middle, y_name, "middle", transform=f"rotate(-90 13 {middle:.0f})"))
    return tag("g", *drawn)


def _vertical_grid(across: Scale, top: float, bottom: float) -> Markup:
    drawn: list[Markup] = []
    for tick in across.ticks():
        x = across(tick)
        drawn.append(tag("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
        drawn.append(text(x, bottom + 17, compact(tick), "middle"))
    return tag("g", *drawn)


def _line(line: Line, across: Scale, up: Scale) -> Markup:
    path = tag("polyline", points=_path(line.points, across, up), class_="line")
    dots = [
        tag("g", hint(f"{line.name}: {y:,.4g} at {x:,.6g}"), _marker(across(x), up(y), line.style, 3.5))
        for x, y in (line.points if line.dots else ())
    ]
    return tag("g", path, *dots, class_=f"s{line.style % 5}")


def _sample(line: Line) -> Markup:
    stroke = tag("polyline", points="0,5 28,5", class_="line")
    dot = _marker(14, 5, line.style, 3.5) if line.dots else Markup("")
    style = f"s{line.style % 5}"
    return tag("svg", tag("g", stroke, dot, class_=style), viewBox="0 0 28 10", aria_hidden="true")


def _path(points: Sequence[Point], across: Scale, up: Scale) -> str:
    return " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in points if math.isfinite(y))


def _error_bar(x: float, up: Scale, value: Interval) -> Markup:
    if not math.isfinite(value.low):
        return Markup("")
    return tag("line", x1=x, x2=x, y1=up(value.low), y2=up(value.high), class_="error")


def _marker(x: float, y: float, style: int, r: float) -> Markup:
    kind = _MARKERS[style % len(_MARKERS)]
    if kind == "circle":
        return tag("circle", cx=x, cy=y, r=r, class_="dot")
    if kind == "square":
        return tag("rect", x=x - r, y=y - r, width=2 * r, height=2 * r, class_="dot")
    corners = {
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "triangle": ((0, -1.25), (1.2, 0.9), (-1.2, 0.9)),
    }[kind]
    return tag(
        "polygon", points=" ".join(f"{x + r * a:.1f},{y + r * b:.1f}" for a, b in corners), class_="dot"
    )
