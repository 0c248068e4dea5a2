"""Following the fleet: what serves first, and converging on what is wanted from then on.

A missing or older record never swaps anything: it is replaced by what this replica knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator

from recommender.errors import EspalierError
from service.checkpoints.fleet import HEARTBEAT_SECONDS, Fleet
from service.checkpoints.replica import LocalReplica
from service.checkpoints.schemas import CheckpointRef, FleetRecord, Replica, Step
from service.errors import FleetUnavailableError

WATCH_SECONDS = 2.0
_RETRY_SECONDS = 15.0
_log = logging.getLogger("espalier.checkpoints")


class Follower:
    """Keeps this replica at what is wanted. `first` is the name to begin with when nothing is known."""

    def __init__(self, local: LocalReplica, fleet: Fleet, first: str | None) -> None:
        self._local = local
        self._fleet = fleet
        self._first = first
        self._told: Replica | None = None
        self._told_at = float("-inf")
        self._tried_at = float("-inf")
        self._refused = False
        self._blind = ""
        self._converging: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Serves what is wanted, or what last served well, or the first checkpoint there is.

        Raises:
            EspalierError: one artifact alone was given, and it is refused.
        """
        local = self._local
        if local.folder.alone:
            ref = await self._choose_first()
            assert ref is not None
            await local.adopt(FleetRecord(generation=1, wanted=ref))
            await local.exchange(ref, _tell_nobody, _commit_nothing)
            return
        memory = await local.recall()
        found = None
        with contextlib.suppress(FleetUnavailableError):
            found = await self._fleet.read()
        known = [record for record in (found, memory.record) if record is not None]
        if known:
            local.want(max(known, key=lambda record: record.generation))
            await self._converge()
            if local.serving is None:
                await self._fall_back(memory.last_good)
        else:
            await self._serve_first()

    async def keep_following(self) -> None:
        """Watches the record and tells that this replica lives, for ever."""
        try:
            while True:
                try:
                    await self.tick()
                except Exception:  # one bad look must not be the last one
                    _log.exception("a look at the fleet failed")
                await asyncio.sleep(WATCH_SECONDS)
        finally:
            if self._converging is not None:
                self._converging.cancel()
                await asyncio.gather(self._converging, return_exceptions=True)
            with contextlib.suppress(FleetUnavailableError):
                await self._fleet.leave(self._local.name)

    async def tick(self) -> None:
        """One look: at the record, at the folder when nothing serves, and a sign of life when it is due."""
        try:
            await self._watch()
        except FleetUnavailableError as error:
            if str(error) != self._blind:
                _log.warning("the fleet is out of sight: %s", error)
            self._blind = str(error)
        else:
            self._blind = ""
        try:
            self._start_converging()
            await self._beat()
        except FleetUnavailableError as error:
            _log.debug("the fleet cannot be told: %s", error)

    async def _watch(self) -> None:
        local = self._local
        seen = await self._fleet.read()
        generation = 0 if seen is None else seen.generation
        if local.record is not None and generation < local.record.generation:
            await self._fleet.write(generation, local.record)
        elif seen is not None and seen != local.record:
            await local.adopt(seen)

    def _start_converging(self) -> None:
        """In a task of its own: loading takes its time, and the fleet wants to hear from us meanwhile."""
        local, now = self._local, asyncio.get_running_loop().time()
        busy = self._converging is not None and not self._converging.done()
        if local.converged() or local.lock.locked() or busy:
            return
        new = local.record is not None and local.record.generation != local.failed_generation
        looking = local.record is None and not self._refused  # a look at the folder costs little
        if new or looking or now - self._tried_at >= _RETRY_SECONDS:
            self._tried_at = now
            work = self._serve_first() if local.record is None else self._converge()
            self._converging = asyncio.create_task(work)

    async def _converge(self) -> None:
        local = self._local
        assert local.record is not None
        try:
            async with local.lock:
                await local.exchange(local.record.wanted, _tell_nobody, _commit_nothing)
        except Exception as error:  # whatever it was, what serves goes on, and the fleet is told
            local.failed(error)

    async def _serve_first(self) -> None:
        local, ref = self._local, None
        try:
            ref = (
                await self._choose_first()
            )  # not under the lock: a look must not refuse an operator's swap
            if ref is None:
                local.models.absence = ""
                return
            async with local.lock:
                if local.record is not None:  # an operator chose meanwhile
                    return
                await local.exchange(ref, _tell_nobody, _commit_nothing)
                await local.adopt(FleetRecord(generation=1, wanted=ref))
        except Exception as error:
            self._refused = ref is not None
            if str(error) != local.models.absence:
                _log.warning("nothing serves: %s", error)
            local.models.absence = str(error)

    async def _fall_back(self, last_good: CheckpointRef | None) -> None:
        """Serves the newest of the earlier checkpoints that still can, else the first there is."""
        local = self._local
        assert local.record is not None
        for ref in self._stand_ins(last_good, local.record):
            with contextlib.suppress(EspalierError):
                async with local.lock:
                    await local.exchange(ref, _tell_nobody, _commit_nothing)
                return
        with contextlib.suppress(EspalierError):
            first = await self._choose_first()
            if first is not None and first.digest != local.record.wanted.digest:
                async with local.lock:
                    await local.exchange(first, _tell_nobody, _commit_nothing)
        if local.serving is None:
            local.models.absence = local.failure or ""

    def _stand_ins(self, last_good: CheckpointRef | None, record: FleetRecord) -> Iterator[CheckpointRef]:
        tried = {record.wanted.digest}
        for ref in (last_good, *record.previous):
            if ref is not None and ref.digest not in tried:
                tried.add(ref.digest)
                yield ref

    async def _choose_first(self) -> CheckpointRef | None:
        folder = self._local.folder
        name = await asyncio.to_thread(folder.only, self._first)
        if name is None:
            return None
        artifact = await asyncio.to_thread(folder.find, name)
        return CheckpointRef(name=name, digest=artifact.digest)

    async def _beat(self) -> None:
        now, told = asyncio.get_running_loop().time(), self._local.status()
        news = self._told is None or told.model_copy(update={"seen": self._told.seen}) != self._told
        if news or now - self._told_at >= HEARTBEAT_SECONDS:
            await self._fleet.beat(told)
            self._told, self._told_at = told, now


async def _tell_nobody(step: Step) -> None:
    """A replica that follows reports by heartbeat, not by operation."""


async def _commit_nothing() -> None:
    """What is wanted is known already."""
