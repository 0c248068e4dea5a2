"""Plain SVG, drawn with the page's own colours so that it follows its theme and needs nothing else.

Series differ by dashes and markers as well as by colour (Okabe and Ito's); scales run through cividis'
neighbour viridis, which grows evenly lighter for every kind of colour vision and on paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

# Viridis at nine even steps (matplotlib's map, which its authors gave to the public domain).
_VIRIDIS = (
    (68, 1, 84),
    (71, 44, 122),
    (59, 81, 139),
    (44, 113, 142),
    (33, 144, 141),
    (39, 173, 129),
    (92, 200, 99),
    (170, 220, 50),
    (253, 231, 37),
)


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """One element; children and values are escaped unless they are markup. `class_` is `class`."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _short(value))
        for key, value in attributes.items()
        if value is not None
    )
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, Markup("").join(children))


def drawing(width: float, height: float, alt: str, *children: str) -> Markup:
    """A whole picture; `alt` says what it shows to those who do not see it."""
    box = f"0 0 {width:.0f} {height:.0f}"
    return tag("svg", *children, viewBox=box, width=f"{width:.0f}", role="img", aria_label=alt)


def text(x: float, y: float, words: str, anchor: str = "start", **attributes: object) -> Markup:
    """A piece of text; `anchor` is start, middle or end."""
    return tag("text", words, x=x, y=y, text_anchor=anchor, **attributes)


def hint(words: str) -> Markup:
    """What hovering over the element around it shows."""
    return tag("title", words)


def viridis(share: float) -> str:
    """The colour at 0 … 1, dark to light; grey where there is no value."""
    if not math.isfinite(share):
        return "#999"
    place = min(1.0, max(0.0, share)) * (len(_VIRIDIS) - 1)
    below = min(int(place), len(_VIRIDIS) - 2)
    mixed = (
        round(low + (high - low) * (place - below))
        for low, high in zip(_VIRIDIS[below], _VIRIDIS[below + 1], strict=True)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def colour_scale(x: float, y: float, width: float, low: str, high: str) -> Markup:
    """The legend of `viridis`: a bar with what its ends stand for."""
    steps = 32
    cells = [
        tag(
            "rect",
            x=x + width * step / steps,
            y=y,
            width=width / steps + 0.5,
            height=8,
            fill=viridis((step + 0.5) / steps),
        )
        for step in range(steps)
    ]
    return tag("g", *cells, text(x - 6, y + 8, low, "end"), text(x + width + 6, y + 8, high))


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` … `high` to pixels `start` … `stop`; `whole`: ticks at whole numbers only."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool = False
    whole: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (self._bent(number) for number in (self.low, self.high, value))
        return self.start + (self.stop - self.start) * (value - low) / ((high - low) or 1.0)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values within the range: 1, 2 or 5 times a power of ten apart."""
        if self.logarithmic:
            return self._powers()
        step = _round_up((self.high - self.low) / count or 1.0)
        step = max(1.0, step) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def _powers(self) -> list[float]:
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1,), (1, 3), (1, 2, 5)):
            found = [d * 10.0**e for e in exponents for d in digits if self.low <= d * 10.0**e <= self.high]
            if len(found) >= 3:
                break
        return found

    def _bent(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def spread(
    values: Sequence[float], *, from_zero: bool = False, margin: float = 0.08
) -> tuple[float, float]:
    """A range that holds all finite values with some room; from zero up if wanted."""
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = 0.0 if from_zero else min(finite), max(finite)
    room = (high - low) * margin or abs(high) * 0.1 or 1.0
    return (low if from_zero else low - room), high + room


def compact(value: float) -> str:
    """A number for an axis: 1,200 as it is, 37,104 as 37k, 106,200,000 as 106M."""
    for bound, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= bound:
            return f"{value / (1e3 if letter == 'k' else bound):.3g}{letter}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _round_up(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= step * (1 - 1e-9))


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
