"""Contenders take turns in order; warm-up and set-up are not counted; a lost one is named."""

import time
from functools import partial
from pathlib import Path

import pytest

from benchmarks.turns import ContenderLostError, Turns, alternate


def count(turns: Turns, name: str, log: Path, rounds: int, setup: float = 0.0, held_mb: int = 0) -> None:
    time.sleep(setup)
    held = b"x" * (held_mb << 20)
    for number in range(rounds):
        turns.begin()
        with log.open("a") as file:
            file.write(f"{name}{number} ")
        turns.end((number, len(held)))


def fail_at_once(_: Turns) -> None:
    raise SystemExit(3)


def fail_in_its_turn(turns: Turns) -> None:
    turns.begin()
    raise SystemExit(3)


def test_turns_alternate_and_the_first_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    courses = alternate(
        {
            "a": partial(count, name="a", log=log, rounds=3, setup=0.5),
            "b": partial(count, name="b", log=log, rounds=3, held_mb=64),
        },
        rounds=2,
    )
    assert log.read_text().split() == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert [number for number, _ in courses["a"].done] == [1, 2]
    assert len(courses["a"].seconds) == 2
    assert courses["b"].peak_rss_mb > courses["a"].peak_rss_mb + 50


@pytest.mark.parametrize("failing", [fail_at_once, fail_in_its_turn])
def test_a_contender_that_ends_is_named(tmp_path: Path, failing) -> None:
    other = partial(count, name="a", log=tmp_path / "log", rounds=2)
    with pytest.raises(ContenderLostError, match=r"^the failing one: ended"):
        alternate({"a": other, "the failing one": failing}, rounds=1)
