"""Which request runs when: pure bookkeeping between the event loop and the engine's thread.

Requests wait in order of arrival; between any two search steps as many join as there is room for. How
many may wait is not decided here: admission bounds it before a request costs anything.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from service.engine.protocol import Ranking, RankRequest
from service.errors import EngineError


@dataclass(eq=False)
class Job:
    """A request on its way through the engine.

    Attributes:
        request: what to rank.
        submitted: when it was handed over, `time.perf_counter()` seconds.
        deliver: takes the answer or the reason why there is none; called once, from the engine's thread.
        abandoned: nobody waits for the answer any more.
    """

    request: RankRequest
    submitted: float
    deliver: Callable[[Ranking | EngineError], None]
    abandoned: bool = field(default=False)


class Scheduler:
    """The queue. `submit` and `close` are for the event loop, `join` and `fail` for the engine's thread."""

    def __init__(self, max_batch: int) -> None:
        self._max_batch = max_batch
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._ended: EngineError | None = None

    @property
    def ended(self) -> bool:
        return self._ended is not None

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the queue.

        Raises:
            EngineError: the engine has ended.
        """
        with self._changed:
            if self._ended is not None:
                raise EngineError(str(self._ended))
            self._waiting.append(job)
            self._changed.notify()

    def join(self, running: int) -> list[Job] | None:
        """The jobs that may join now; None when the engine is to end.

        Waits for a job when none is running. Abandoned jobs are dropped on the way.
        """
        with self._changed:
            while True:
                if self._ended is not None:
                    return None
                joining: list[Job] = []
                while self._waiting and running + len(joining) < self._max_batch:
                    job = self._waiting.popleft()
                    if not job.abandoned:
                        joining.append(job)
                if joining or running:
                    return joining
                self._changed.wait()

    def close(self) -> None:
        """Ends the engine; its thread sees it before the next step."""
        self.fail(EngineError("the engine is closed"))

    def fail(self, error: EngineError) -> list[Job]:
        """Ends the engine for a reason. Returns the jobs that were still waiting; none comes after."""
        with self._changed:
            if self._ended is None:
                self._ended = error
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify()
            return left
