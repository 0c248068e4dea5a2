"""Leading a swap: prove the checkpoint, write the next generation, and see the other replicas follow."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from recommender.errors import ArtifactError, EspalierError
from service.checkpoints.fleet import LEASE_ENDED, LEASE_SECONDS, Fleet
from service.checkpoints.replica import LocalReplica
from service.checkpoints.schemas import CheckpointRef, FleetRecord, Operation, Replica, Step, Straggler
from service.errors import (
    FleetUnavailableError,
    StaleGenerationError,
    SwapError,
    UnknownOperationError,
)

_CONVERGE_SECONDS = 300.0
_POLL_SECONDS = 0.5
_REMEMBERED = 32
_UNDER_WAY = "another swap is under way; wait for its end"
_log = logging.getLogger("espalier.checkpoints")


class Swapper:
    """Starts swaps, one at a time in the whole fleet, and tells how far they are."""

    def __init__(self, local: LocalReplica, fleet: Fleet) -> None:
        self._local = local
        self._fleet = fleet
        self._operations: dict[str, Operation] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def leading(self) -> str | None:
        """The id of the swap that this replica leads now."""
        running = [known.operation_id for known in self._operations.values() if not known.ended]
        return running[0] if running else None

    async def activate(self, name: str, generation: int | None) -> Operation:
        """Starts to serve the checkpoint of this name; nothing happens when it serves already.

        Args:
            name: of the artifact's folder.
            generation: when given, the record must still be of this one.

        Raises:
            UnknownCheckpointError: there is no such artifact.
            StaleGenerationError: the record is of another generation.
            SwapError: another swap is under way, or the artifact's manifest is damaged.
            FleetUnavailableError: Redis is away.
        """
        try:
            artifact = await asyncio.to_thread(self._local.folder.find, name)
        except ArtifactError as error:
            raise SwapError(str(error)) from error
        ref = CheckpointRef(name=name, digest=artifact.digest)
        record = await self._record(generation)
        if record is not None and record.wanted.digest == ref.digest and self._serves(ref):
            await self._refuse_a_second()
            return self._remember(self._operation("activate", ref, "done", record.generation))
        return await self._start("activate", ref, record)

    async def rollback(self, generation: int | None) -> Operation:
        """Starts to serve the newest earlier checkpoint that is another one; see `activate`.

        Raises:
            SwapError: there is none, or another swap is under way.
        """
        record = await self._record(generation)
        earlier = None if record is None else record.earlier()
        if earlier is None:
            raise SwapError("there is no earlier checkpoint to go back to")
        return await self._start("rollback", earlier, record)

    async def operation(self, operation_id: str) -> Operation:
        """How far a swap is, whichever replica leads it.

        Raises:
            UnknownOperationError: no swap of this id is remembered.
            FleetUnavailableError: it is not this replica's, and Redis is away.
        """
        known = self._operations.get(operation_id)
        if known is None and not self._local.folder.alone:
            known = await self._fleet.operation(operation_id)
        if known is None:
            raise UnknownOperationError(f"{operation_id}: no such operation; they are kept for a day")
        return known

    async def wait(self, operation: Operation) -> Operation:
        """The operation once it has ended. Who stops waiting does not stop the swap."""
        if self._task is not None and not operation.ended:
            await asyncio.wait({self._task})
        return self._operations.get(operation.operation_id, operation)

    async def close(self) -> None:
        """Ends a swap under way; the old checkpoint stays the wanted one."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _record(self, generation: int | None) -> FleetRecord | None:
        if self._local.folder.alone:
            record = self._local.record
        else:
            record = await self._republished(await self._fleet.read())
        current = 0 if record is None else record.generation
        if generation is not None and generation != current:
            raise StaleGenerationError(f"the generation is {current}, not {generation}; look again")
        return record

    async def _republished(self, seen: FleetRecord | None) -> FleetRecord | None:
        """The fleet's record; when it is missing or older than what this replica knows, that is written.

        So a swap asked for right after a first start does not lose to that start's own generation.
        """
        own = self._local.record
        generation = 0 if seen is None else seen.generation
        if own is None or own.generation <= generation:
            return seen
        return own if await self._fleet.write(generation, own) else await self._fleet.read()

    async def _refuse_a_second(self) -> None:
        busy = self.leading is not None
        if busy or (not self._local.folder.alone and await self._fleet.under_way()):
            raise SwapError(_UNDER_WAY)

    def _serves(self, ref: CheckpointRef) -> bool:
        return self._local.serving is not None and self._local.serving.digest == ref.digest

    async def _start(
        self, action: Literal["activate", "rollback"], ref: CheckpointRef, record: FleetRecord | None
    ) -> Operation:
        if self._local.folder.alone:
            raise SwapError("this service was given one artifact, not a folder of them; nothing to swap")
        operation = self._operation(action, ref, "verifying")
        if self._local.lock.locked() or not await self._fleet.begin(operation):
            raise SwapError(_UNDER_WAY)
        self._remember(operation)
        self._task = asyncio.create_task(self._run(operation.operation_id, ref, record))
        return operation

    async def _run(self, operation_id: str, ref: CheckpointRef, record: FleetRecord | None) -> None:
        async def commit() -> FleetRecord:
            following = FleetRecord(generation=1, wanted=ref) if record is None else record.successor(ref)
            if not await self._written(following, operation_id):
                raise SwapError("another generation was written meanwhile; look again")
            self._change(operation_id, generation=following.generation)
            return following

        async def report(step: Step) -> None:
            operation = self._change(operation_id, step=step)
            if step == "draining":  # the switch is done: from here on nothing may stop it
                with contextlib.suppress(FleetUnavailableError):
                    await self._fleet.report(operation)
            elif not await self._fleet.report(operation):
                raise SwapError(LEASE_ENDED)

        try:
            async with self._renewed(operation_id):
                async with self._local.lock:
                    await self._local.exchange(ref, report, commit)
                stragglers = await self._follow(self._operations[operation_id].generation or 0)
            ending = self._change(
                operation_id, step="partial" if stragglers else "done", stragglers=stragglers
            )
        except EspalierError as error:
            ending = self._change(operation_id, step="failed", reason=str(error))
        except asyncio.CancelledError:
            ending = self._change(operation_id, step="failed", reason="the replica that led it ended")
            raise
        except Exception as error:
            _log.exception("a swap failed")
            reason = f"{type(error).__name__}: {error}"
            ending = self._change(operation_id, step="failed", reason=reason)
        finally:
            with contextlib.suppress(FleetUnavailableError):
                await self._fleet.report(ending)

    async def _written(self, following: FleetRecord, operation_id: str) -> bool:
        """Writes the next record. When Redis does not answer, what stands there later is the answer.

        Raises:
            SwapError: the slot is not this swap's any more.
            FleetUnavailableError: Redis stays away for as long as a lease lasts.
        """
        try:
            return await self._fleet.write(following.generation - 1, following, operation_id)
        except FleetUnavailableError:
            end = asyncio.get_running_loop().time() + LEASE_SECONDS
            while True:
                try:
                    return await self._fleet.read() == following
                except FleetUnavailableError:
                    if asyncio.get_running_loop().time() > end:
                        raise
                await asyncio.sleep(_POLL_SECONDS)

    @contextlib.asynccontextmanager
    async def _renewed(self, operation_id: str) -> AsyncIterator[None]:
        """Renews the lease for as long as the block runs."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(LEASE_SECONDS / 3)
                with contextlib.suppress(FleetUnavailableError):
                    await self._fleet.report(self._operations[operation_id])

        task = asyncio.create_task(renew())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _follow(self, generation: int) -> tuple[Straggler, ...]:
        """Waits until every living replica serves the generation, or says that it cannot."""
        end = asyncio.get_running_loop().time() + _CONVERGE_SECONDS
        while True:
            try:
                await self._fleet.beat(self._local.status())
                behind = [told for told in await self._fleet.replicas() if told.generation < generation]
            except FleetUnavailableError as error:
                return (Straggler(replica="all", reason=str(error)),)
            late = asyncio.get_running_loop().time() > end
            if late or all(told.failed_generation >= generation for told in behind):
                return tuple(_straggler(told, generation) for told in behind)
            await asyncio.sleep(_POLL_SECONDS)

    def _operation(
        self,
        action: Literal["activate", "rollback"],
        ref: CheckpointRef,
        step: Step,
        generation: int | None = None,
    ) -> Operation:
        identity = uuid.uuid4().hex
        return Operation(
            operation_id=identity, action=action, checkpoint=ref, step=step, generation=generation
        )

    def _change(self, operation_id: str, **changes: Any) -> Operation:
        return self._remember(self._operations[operation_id].model_copy(update=changes))

    def _remember(self, operation: Operation) -> Operation:
        self._operations[operation.operation_id] = operation
        while len(self._operations) > _REMEMBERED:
            del self._operations[next(iter(self._operations))]
        return operation


def _straggler(told: Replica, generation: int) -> Straggler:
    reason = told.reason if told.failed_generation >= generation else None
    return Straggler(replica=told.replica, reason=reason or "it did not converge in time")
