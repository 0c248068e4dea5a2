"""What a long run says, on a terminal and in a log."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from pruning import progress
from pruning.progress import ConsoleReporter


def logging() -> tuple[ConsoleReporter, io.StringIO]:
    log = io.StringIO()
    return ConsoleReporter(Console(file=log, width=80), None), log


def test_a_finished_bar_goes_and_comes_back_when_its_count_begins_again() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    bars = Progress(console=console)
    count = ConsoleReporter(console, bars).counter("scoring heads, hidden")
    for _ in range(2):  # one counter serves several axes, one after the other
        count(1, 2)
        assert [(bar.description, bar.completed) for bar in bars.tasks] == [("scoring heads, hidden", 1)]
        count(2, 2)
        assert not bars.tasks


def test_a_line_is_said_as_it_is() -> None:
    reporter, log = logging()
    reporter.say("[paper] " + "long " * 40)
    assert log.getvalue() == "[paper] " + "long " * 40 + "\n"


def test_a_log_hears_of_long_work_now_and_then_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    reporter, log = logging()
    count = reporter.counter("ranking")
    for step in range(1, 51):
        now += 1
        count(step, 50)
    lines = log.getvalue().splitlines()
    assert 3 <= len(lines) <= 5
    assert lines[-1] == "ranking: 50 of 50"


def test_a_log_hears_nothing_of_short_work() -> None:
    reporter, log = logging()
    count = reporter.counter("ranking")
    for step in range(1, 11):
        count(step, 10)
    assert log.getvalue() == ""
