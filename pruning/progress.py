"""How long work tells where it is: lines and counters on standard error, a live bar on a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 15

Counter = Callable[[int, int], None]
"""Told how many of how many steps are done."""


class Reporter(Protocol):
    """Where a long run reports to."""

    def say(self, text: str) -> None:
        """One line that stays."""
        ...

    def counter(self, title: str) -> Counter:
        """A count that moves; it is finished when done equals all, and may then begin again."""
        ...


class ConsoleReporter:
    """Lines, and a live bar where somebody watches; in a log, a line now and then and at the end."""

    def __init__(self, console: Console, progress: Progress | None) -> None:
        self._console = console
        self._progress = progress

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def counter(self, title: str) -> Counter:
        return self._bar(title) if self._progress else self._lines(title)

    def _bar(self, title: str) -> Counter:
        progress = self._progress
        assert progress is not None
        task = progress.add_task(title, total=None)

        def count(done: int, total: int) -> None:
            nonlocal task
            if task not in progress.task_ids:  # it was finished, and begins again
                task = progress.add_task(title, total=None)
            progress.update(task, completed=done, total=total)
            if done >= total:
                progress.remove_task(task)

        return count

    def _lines(self, title: str) -> Counter:
        begun = said = time.monotonic()

        def count(done: int, total: int) -> None:
            nonlocal said
            now = time.monotonic()
            long_work = now - begun > _SECONDS_BETWEEN_LINES
            if now - said > _SECONDS_BETWEEN_LINES or (done >= total and long_work):
                said = now
                self.say(f"{title}: {done:,} of {total:,}")

        return count


@contextmanager
def console_reporter(quiet: bool = False) -> Iterator[ConsoleReporter]:
    """A reporter on standard error, live if that is a terminal; `quiet`: one that says nothing."""
    console = Console(stderr=True, quiet=quiet)
    if quiet or not console.is_terminal:
        yield ConsoleReporter(console, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield ConsoleReporter(console, progress)
