"""How many recommendations may be under way at once: the bound on the queue, its memory and its wait.

A request takes its place before anything is read or tokenised for it, so turning it away costs next to
nothing. There are never more places than can be left again in time: who came later would wait for a 504.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import OverloadedError

# Of the time between two answers: over some hundred of them, since whole batches end at once.
_SMOOTHING = 0.01


class Admission:
    """Places, and how fast they are left.

    Args:
        places: how many there are at most.
        batch: how many there are at least: fewer would leave the engine idle.
        patience_s: how long one may have to wait, in seconds.
    """

    def __init__(self, places: int, batch: int, patience_s: float) -> None:
        self._places = places
        self._batch = batch
        self._patience_s = patience_s
        self._taken = 0
        self._between_s = 0.0
        self._last = -math.inf

    @property
    def taken(self) -> int:
        return self._taken

    @property
    def limit(self) -> int:
        """How many places there are now: at the present pace, all are left again within the patience."""
        if self._places * self._between_s <= self._patience_s:
            return self._places
        return max(self._batch, int(self._patience_s / self._between_s))

    def overload(self, coming: int = 0) -> OverloadedError | None:
        """Why there is no place for one more than are `coming` already; None: there is one.

        It proposes to wait for as long as leaving all places takes.
        """
        if self._taken + coming < self.limit:
            return None
        retry = max(1, math.ceil(self._taken * self._between_s))
        return OverloadedError(f"all {self.limit} places are taken; try again in {retry} s", retry)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place for as long as the block runs.

        Raises:
            OverloadedError: there is none.
        """
        overload = self.overload()
        if overload is not None:
            raise overload
        self._taken += 1
        start = time.perf_counter()
        try:
            yield
            # Whoever fails, or gives up, says nothing about the pace.
            self._left(start)
        finally:
            self._taken -= 1

    def _left(self, start: float) -> None:
        """Measures the time since the last answer, but for the part in which nobody asked."""
        now = time.perf_counter()
        between = now - max(self._last, start)
        self._between_s += _SMOOTHING * (between - self._between_s)
        self._last = now


class Pace:
    """Lets so many go on in one turn of the event loop.

    Reading, checking and routing hundreds of requests that came at once takes the interpreter long; those
    that come after them shall hear soon that there is no place.
    """

    def __init__(self, a_turn: int) -> None:
        self._a_turn = a_turn
        self._left = a_turn
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Returns when it is the caller's turn."""
        loop = asyncio.get_running_loop()
        if self._left == self._a_turn:
            loop.call_soon(self._next)
        if self._left:
            self._left -= 1
            return
        mine = loop.create_future()
        self._waiting.append(mine)
        await mine

    def _next(self) -> None:
        self._left = self._a_turn
        while self._waiting and self._left:
            waiting = self._waiting.popleft()
            if not waiting.done():  # else it has been cancelled
                waiting.set_result(None)
                self._left -= 1
        if self._left < self._a_turn:
            asyncio.get_running_loop().call_soon(self._next)
