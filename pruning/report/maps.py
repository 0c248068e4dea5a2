"""Maps of a model: which heads, channels, neurons and layers went, and which are alike.

Kept and removed differ by shape, not by colour alone: what stayed fills its cell, what went is a small
square in an empty one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup
from torch import Tensor

from pruning.report.fates import Fates, IntArray
from pruning.report.svg import colour_scale, drawing, hint, tag, text, viridis

_LEFT = 64


def head_map(
    fates: Fates, scores_of_layer: Mapping[int, Tensor], stage_names: Sequence[str], alt: str
) -> Markup:
    """Query heads by layer, coloured by their scores (H,) within the layer where these are known."""
    layers, heads = fates.heads_LH.shape
    each = max(12.0, min(30.0, 560 / heads))
    row_height = min(each, 22.0)
    top, width = 22, _LEFT + heads * each + 150
    drawn = [text(_LEFT + heads * each / 2, 13, "query heads", "middle")]
    for layer in range(layers):
        y = top + layer * row_height
        gone = int(fates.layers_L[layer])
        drawn.append(text(_LEFT - 8, y + row_height / 2 + 4, f"layer {layer + 1}", "end"))
        values = scores_of_layer[layer].double() if layer in scores_of_layer else None
        for head in range(heads):
            share = math.nan if values is None else _within(values, head)
            fate = int(fates.heads_LH[layer, head]) or gone
            state = "kept" if fate == 0 else f"removed in stage {stage_names[fate - 1]}"
            known = "" if values is None else f", score {float(values[head]):.4g}"
            inset = 1.0 if fate == 0 else 0.32 * row_height
            wide, high = each - 2 * inset, row_height - 2 * inset
            cell = tag(
                "rect",
                hint(f"layer {layer + 1}, head {head + 1}: {state}{known}"),
                x=_LEFT + head * each + (inset if fate == 0 else (each - high) / 2),
                y=y + inset,
                width=wide if fate == 0 else high,
                height=high,
                rx=2,
                fill=viridis(share),
                class_="kept" if fate == 0 else "gone",
            )
            drawn.append(cell)
        if gone:
            end = _LEFT + heads * each
            middle = y + row_height / 2
            drawn.append(tag("line", x1=_LEFT, x2=end, y1=middle, y2=middle, class_="struck"))
            drawn.append(text(end + 8, middle + 4, f"layer removed ({stage_names[gone - 1]})"))
    height = top + layers * row_height + 34
    drawn.append(colour_scale(_LEFT + 40, height - 18, 120, "least", "most important in its layer"))
    return drawing(max(width, 420), height, alt, *drawn)


def layer_map(fates: Fates, order: Sequence[int] | None, stage_names: Sequence[str], alt: str) -> Markup:
    """Layers from the input to the output; the numbers say in which order the search gives them up."""
    layers = len(fates.layers_L)
    each = max(14.0, min(64.0, 640 / layers))
    places = {layer: place for place, layer in enumerate(order or (), start=1)}
    drawn: list[Markup] = []
    for layer, gone in enumerate(fates.layers_L.tolist()):
        state = "kept" if gone == 0 else f"removed in stage {stage_names[gone - 1]}"
        place = f", number {places[layer]} to go" if layer in places else ""
        x = layer * each + 2
        drawn.append(
            tag(
                "rect",
                hint(f"layer {layer + 1}: {state}{place}"),
                x=x,
                y=4,
                width=each - 4,
                height=44,
                rx=4,
                class_="block" if gone == 0 else "block gone",
            )
        )
        if gone and layer in places:
            drawn.append(text(x + each / 2 - 2, 30, str(places[layer]), "middle", class_="ink"))
        if layers <= 32 or layer % 4 == 0:
            drawn.append(text(x + each / 2 - 2, 64, str(layer + 1), "middle"))
    return drawing(layers * each, 70, alt, *drawn)


def strip(fate_X: IntArray, alt: str, width: int = 640) -> Markup:
    """A barcode: one thin bar for each channel that stayed, a gap for each that went."""
    each = width / len(fate_X)
    runs: list[str] = []
    start: int | None = None
    for index, fate in enumerate([*fate_X.tolist(), 1]):
        if fate == 0 and start is None:
            start = index
        elif fate != 0 and start is not None:
            runs.append(
                f"M{start * each:.2f} 0h{(index - start) * each:.2f}v36h-{(index - start) * each:.2f}z"
            )
            start = None
    frame = tag("rect", x=0, y=0, width=width, height=36, class_="frame")
    return drawing(width, 36, alt, frame, tag("path", d="".join(runs), class_="bars"))


def heatmap(similar_MM: Tensor, names: Sequence[str], alt: str, *, side: float = 360) -> Markup:
    """A square of similarities, 0 … 1, one row and column for each name."""
    count = len(names)
    each, left, top = side / count, 62.0, 8.0
    drawn: list[Markup] = []
    skip = max(1, math.ceil(count / 16))
    for row in range(count):
        if row % skip == 0:
            middle = top + (row + 0.5) * each
            drawn.append(text(left - 6, middle + 4, names[row], "end"))
        drawn.extend(
            _cell(similar_MM, names, row, column, left + column * each, top + row * each, each)
            for column in range(count)
        )
    drawn.append(colour_scale(left + 40, top + side + 12, 140, "0", "1 (the same)"))
    return drawing(left + side + 8, top + side + 28, alt, *drawn)


def head_similarities(heads_LHH: Tensor, alt: str) -> Markup:
    """One small square a layer: which heads say the same."""
    layers, heads = heads_LHH.shape[:2]
    side, gap, columns = 84.0, 22.0, max(4, min(10, layers))
    each = side / heads
    names = [f"head {head + 1}" for head in range(heads)]
    drawn: list[Markup] = []
    for layer in range(layers):
        left, top = (layer % columns) * (side + gap), (layer // columns) * (side + gap + 10) + 16
        drawn.append(text(left, top - 5, f"layer {layer + 1}"))
        drawn.extend(
            _cell(heads_LHH[layer], names, row, column, left + column * each, top + row * each, each)
            for row in range(heads)
            for column in range(heads)
        )
    rows = math.ceil(layers / columns)
    height = rows * (side + gap + 10) + 30
    drawn.append(colour_scale(24, height - 14, 140, "0", "1 (the same)"))
    return drawing(columns * (side + gap) - gap, height, alt, *drawn)


def _cell(
    similar_MM: Tensor, names: Sequence[str], row: int, column: int, x: float, y: float, each: float
) -> Markup:
    value = float(similar_MM[row, column])
    return tag(
        "rect",
        hint(f"{names[row]} and {names[column]}: {value:.2f}"),
        x=x,
        y=y,
        width=each + 0.3,
        height=each + 0.3,
        fill=viridis(value),
    )


def _within(values_H: Tensor, head: int) -> float:
    low, high = float(values_H.min()), float(values_H.max())
    return (float(values_H[head]) - low) / (high - low) if high > low else 0.5
