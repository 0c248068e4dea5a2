"""Contenders in processes of their own that take turns, step by step: a noisy machine is noisy for all.

A process a contender tells their peaks of memory apart. Whoever has no turn waits on a pipe.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from recommender.errors import EspalierError


class ContenderLostError(EspalierError):
    """A contender's process ended before its turns did; what it said stands on standard error."""


class Turns:
    """A contender's side: `begin` waits for the turn, `end` hands it on."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._started = 0.0

    def begin(self) -> None:
        self._pipe.recv()
        self._started = time.perf_counter()

    def end(self, done: Any) -> None:
        """`done` says what the turn came to."""
        self._pipe.send((time.perf_counter() - self._started, done))


Contender = Callable[[Turns], None]
"""Sets itself up, takes as many turns as it was made for, and returns; it can be pickled."""


@dataclass(frozen=True)
class Course:
    """A contender's turns without the first, which warms up: seconds and what was done; and its peak."""

    seconds: tuple[float, ...]
    done: tuple[Any, ...]
    peak_rss_mb: float


def alternate(contenders: Mapping[str, Contender], rounds: int) -> dict[str, Course]:
    """All contenders' courses; each takes one turn to warm up and then `rounds` more.

    Raises:
        ContenderLostError: one ended too early.
    """
    # A fresh interpreter each: a fork would inherit memory, and torch's threads do not survive one.
    spawn = multiprocessing.get_context("spawn")
    turns: dict[str, list[tuple[float, Any]]] = {name: [] for name in contenders}
    peaks: dict[str, float] = {}
    with ExitStack() as stack:
        pipes: dict[str, Connection] = {}
        for name, contender in contenders.items():
            pipes[name], theirs = spawn.Pipe()
            process = spawn.Process(target=_contend, args=(contender, theirs), daemon=True)
            process.start()
            theirs.close()  # so that its end is seen here
            stack.callback(process.join)
            stack.callback(process.terminate)
        for _ in range(rounds + 1):
            for name, pipe in pipes.items():
                turns[name].append(_take_turn(name, pipe))
        for name, pipe in pipes.items():
            peaks[name] = _received(name, pipe)
    return {
        name: Course(
            tuple(seconds for seconds, _ in taken[1:]), tuple(done for _, done in taken[1:]), peaks[name]
        )
        for name, taken in turns.items()
    }


def _take_turn(name: str, pipe: Connection) -> Any:
    try:
        pipe.send(None)
    except OSError as error:
        raise ContenderLostError(f"{name}: ended before its turn; see its error above") from error
    return _received(name, pipe)


def _received(name: str, pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError) as error:
        raise ContenderLostError(f"{name}: ended in its turn; see its error above") from error


def _contend(contender: Contender, pipe: Connection) -> None:
    contender(Turns(pipe))
    pipe.send(_peak_rss_mb())


def _peak_rss_mb() -> float:
    # Not `getrusage`: its peak survives `exec`, so a child would begin with its parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
