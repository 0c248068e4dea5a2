"""The model that serves now, and the count of those who still use one.

A request takes one reference at admission and keeps it to its end, so it sees one checkpoint only.
`replace` exchanges the reference that new requests get; the last to let go of a model closes it.
All of it runs on the event loop, so plain integers count.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.engine.protocol import LoadedModel
from service.errors import NoModelError


@dataclass(eq=False)
class _Shared:
    """A model and its references: one for the holder while it is current, one for each request."""

    model: LoadedModel
    references: int = 1

    async def release(self) -> None:
        self.references -= 1
        if self.references == 0:
            await self.model.engine.close()


class ModelHolder:
    """Hands out the current model."""

    def __init__(self) -> None:
        self._current: _Shared | None = None

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
            await shared.release()

    async def replace(self, model: LoadedModel | None) -> None:
        """Makes `model` the current one and lets go of its predecessor."""
        previous, self._current = self._current, None if model is None else _Shared(model)
        if previous is not None:
            await previous.release()
