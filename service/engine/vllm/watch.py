"""Tells a child that hangs from one whose step is merely long.

The child's loop gives a sign of life between two steps, so a long step is silent. But a step burns
processor time; whoever waits for a lock that nobody frees, or was stopped, burns none. The system
tells which, from outside, and so even where the child can say nothing any more.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from service.memory import descendants

# So many looks in a row must find nothing: one alone may come right after the whole machine stood still.
_IDLE_LOOKS = 3
_WORKING = 0.05  # of one core
_RUNNABLE = {b"R", b"D"}  # on a core or waiting for one, or waiting for a disk


class Work(NamedTuple):
    """What a process and its descendants did.

    Attributes:
        cpu_s: seconds of processor time until now.
        runnable: one of them would go on if it had a core, or its page.
    """

    cpu_s: float
    runnable: bool


def work_of(process: int) -> Work | None:
    """Looks at a process; None: it is gone, or the system does not tell."""
    ticks, runnable, found = 0, False, False
    for member in descendants(process):
        try:
            stat = Path(f"/proc/{member}/stat").read_bytes()
        except OSError:  # it has just ended
            continue
        # The name, in brackets, may hold anything; after it come the state and numbers.
        fields = stat.rpartition(b")")[2].split()
        found, runnable = True, runnable or fields[0] in _RUNNABLE
        ticks += sum(map(int, fields[11:15]))  # its own, and of its children that have ended
    return Work(ticks / os.sysconf("SC_CLK_TCK"), runnable) if found else None


class Watch:
    """Judges one child by its signs of life and by its work."""

    def __init__(
        self,
        look: Callable[[], Work | None],
        silence_s: float,
        step_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins to watch.

        Args:
            look: tells the child's work so far; None: unknown, and it counts as working.
            silence_s: without a sign of life and without work, it hangs.
            step_s: without a sign of life it hangs, however hard it works.
            clock: seconds.
        """
        self.every_s = silence_s / (_IDLE_LOOKS + 1)
        self._look = look
        self._step_s = step_s
        self._clock = clock
        self.heard()

    def heard(self) -> None:
        """Takes a sign of life."""
        self._heard = self._clock()
        self._idle_looks = 0
        self._last: tuple[float, Work] | None = None

    def hangs(self) -> str | None:
        """Looks at a silent child, every `every_s` seconds. Returns how it hangs; None: it does not."""
        now, work = self._clock(), self._look()
        if work is not None and self._last is not None:
            then, before = self._last
            worked = work.runnable or work.cpu_s - before.cpu_s >= _WORKING * (now - then)
            self._idle_looks = 0 if worked else self._idle_looks + 1
        self._last = None if work is None else (now, work)
        silent = now - self._heard
        if self._idle_looks >= _IDLE_LOOKS:
            return f"it gave no sign of life for {silent:.1f} s and did no work"
        if silent >= self._step_s:
            return f"one step took more than {self._step_s:g} s"
        return None
