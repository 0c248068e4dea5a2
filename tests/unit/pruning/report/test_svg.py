"""Scales with round ticks, escaped words, and colours at their ends."""

import math

import pytest

from pruning.report.svg import Scale, compact, spread, tag, viridis


def test_ticks_are_round_and_within() -> None:
    assert Scale(0, 0.093, 0, 100).ticks() == pytest.approx([0, 0.02, 0.04, 0.06, 0.08])
    assert Scale(1, 4, 0, 100, whole=True).ticks() == [1, 2, 3, 4]
    assert Scale(800, 130_000, 0, 100, logarithmic=True).ticks() == pytest.approx([1e3, 1e4, 1e5])
    assert Scale(5, 5, 0, 100)(5) == 0


def test_a_logarithmic_scale_gives_each_power_the_same_room() -> None:
    scale = Scale(1, 100, 0, 200, logarithmic=True)
    assert [scale(1), scale(10), scale(100)] == pytest.approx([0, 100, 200])


def test_words_are_escaped() -> None:
    drawn = tag("text", "<b> & co", aria_label='say "a"', class_="ink", x=1.25)
    assert drawn == '<text aria-label="say &#34;a&#34;" class="ink" x="1.25">&lt;b&gt; &amp; co</text>'


def test_colours_grow_lighter_and_unknown_is_grey() -> None:
    assert viridis(0) == "#440154"
    assert viridis(1) == viridis(7) == "#fde725"
    assert viridis(math.nan) == "#999"


def test_numbers_for_an_axis() -> None:
    assert [compact(value) for value in (0.02, 900, 1200, 37_104, 106_200_000)] == [
        *("0.02", "900", "1,200", "37.1k", "106M")
    ]
    low, high = spread([math.nan, 2.0], from_zero=True)
    assert low == 0
    assert high > 2.1
