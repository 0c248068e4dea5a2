"""The model that serves now, and the count of those who still use one.

A request takes one reference at admission and keeps it to its end, so it sees one checkpoint only.
`replace` exchanges the reference that new requests get; when the last one lets go of a model, it is
closed in a task of the holder's own, so that no request pays for it.
All of it runs on the event loop, so plain integers count.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.engine.protocol import LoadedModel
from service.errors import NoModelError


@dataclass(eq=False)
class _Shared:
    """A model and its references: one for the holder while it is current, one for each request."""

    model: LoadedModel
    closed: asyncio.Event
    references: int = 1


class ModelHolder:
    """Hands out the current model.

    Attributes:
        fallback: the current model serves only because the wanted checkpoint cannot.
        absence: why there is no current model, in words; empty when nobody knows.
    """

    def __init__(self) -> None:
        self._current: _Shared | None = None
        self._leaving: set[_Shared] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self.fallback = False
        self.absence = ""

    @property
    def current(self) -> LoadedModel | None:
        """The current model, to look at only: what is used across an `await` needs a lease."""
        return None if self._current is None else self._current.model

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[LoadedModel]:
        """One reference to the current model, for as long as the block runs.

        Raises:
            NoModelError: there is none.
        """
        shared = self._current
        if shared is None:
            raise NoModelError("no checkpoint is loaded")
        shared.references += 1
        try:
            yield shared.model
        finally:
            self._release(shared)

    def replace(self, model: LoadedModel | None) -> None:
        """Makes `model` the current one and lets go of its predecessor, without waiting for its users."""
        previous, self._current = (
            self._current,
            None if model is None else _Shared(model, asyncio.Event()),
        )
        if previous is not None:
            self._leaving.add(previous)
            self._release(previous)

    async def drained(self) -> None:
        """Waits until every model but the current one is closed."""
        for shared in tuple(self._leaving):
            await shared.closed.wait()

    def _release(self, shared: _Shared) -> None:
        shared.references -= 1
        if shared.references == 0:
            task = asyncio.get_running_loop().create_task(self._close(shared))
            self._closing.add(task)  # the loop itself would not keep it
            task.add_done_callback(self._closing.discard)

    async def _close(self, shared: _Shared) -> None:
        try:
            await shared.model.engine.close()
        finally:
            self._leaving.discard(shared)
            del shared.model
            await asyncio.to_thread(_return_memory)
            shared.closed.set()


def _return_memory() -> None:
    """Gives a closed model's memory back to the system: glibc keeps what threads freed in their arenas."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)
