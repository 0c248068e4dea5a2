"""How many recommendations may be under way at once: the bound on the queue and on its memory.

A request takes its place before anything is read or tokenised for it, so turning it away costs nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import OverloadedError

_SMOOTHING = 0.1


class Admission:
    """A fixed number of places."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._taken = 0
        self._mean_s = 0.0

    @property
    def taken(self) -> int:
        return self._taken

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds a place for as long as the block runs.

        Raises:
            OverloadedError: all are taken; it proposes to wait as long as a place is held on average.
        """
        if self._taken >= self._places:
            retry = max(1, math.ceil(self._mean_s))
            raise OverloadedError(f"all {self._places} places are taken; try again in {retry} s", retry)
        self._taken += 1
        start = time.perf_counter()
        try:
            yield
        finally:
            self._taken -= 1
            self._mean_s += _SMOOTHING * (time.perf_counter() - start - self._mean_s)
