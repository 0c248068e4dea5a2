"""This replica: what it knows, what it serves, and the one way in which it exchanges its model."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from recommender.artifact import Artifact
from service.checkpoints.folder import ArtifactFolder
from service.checkpoints.holder import ModelHolder
from service.checkpoints.loading import Report
from service.checkpoints.schemas import CheckpointRef, FleetRecord, Replica, State
from service.checkpoints.state import Memory, StateFile
from service.engine.protocol import LoadedModel
from service.errors import SwapError
from service.metrics import Metrics

Load = Callable[[Artifact, Report], Awaitable[LoadedModel]]
Commit = Callable[[], Awaitable[FleetRecord | None]]
_log = logging.getLogger("espalier.checkpoints")


class LocalReplica:
    """The replica's own state; who exchanges the model holds `lock` meanwhile.

    Attributes:
        name: tells this replica from the others.
        record: the newest fleet record it knows; None: none yet.
        serving: the checkpoint that serves.
        failed_generation: the newest generation that could not be served here, and `failure` why.
    """

    def __init__(
        self,
        name: str,
        folder: ArtifactFolder,
        models: ModelHolder,
        load: Load,
        state_dir: Path,
        metrics: Metrics,
    ) -> None:
        self.name = name
        self.folder = folder
        self.models = models
        self.lock = asyncio.Lock()
        self.record: FleetRecord | None = None
        self.serving: CheckpointRef | None = None
        self.failed_generation = 0
        self.failure: str | None = None
        self._served_generation = 0
        self._load = load
        self._state = StateFile(state_dir)
        self._metrics = metrics

    def status(self) -> Replica:
        """What this replica tells the others."""
        return Replica(
            replica=self.name,
            generation=self._served_generation,
            serving=self.serving,
            failed_generation=self.failed_generation,
            reason=self.failure,
            seen=time.time(),
        )

    def converged(self) -> bool:
        """Whether what serves is what is wanted."""
        wanted = None if self.record is None else self.record.wanted
        return wanted is not None and self.serving is not None and wanted.digest == self.serving.digest

    def state_of(self, digest: str) -> State:
        """What this replica does with the checkpoint of a digest."""
        if self.serving is not None and self.serving.digest == digest:
            return "serving"
        wanted = self.record is not None and self.record.wanted.digest == digest
        return "wanted" if wanted else "available"

    async def recall(self) -> Memory:
        """What was remembered before the last restart."""
        return await asyncio.to_thread(self._state.read)

    async def adopt(self, record: FleetRecord) -> None:
        """Takes note of what is wanted. It swaps nothing."""
        self.want(record)
        await self._note()

    def want(self, record: FleetRecord) -> None:
        """What is wanted from now on, as far as is known; the state file does not hear of it."""
        self.record = record
        self._metrics.generation.labels("wanted").set(record.generation)

    def failed(self, error: Exception) -> None:
        """Takes note that what is wanted cannot be served here."""
        self.failure = str(error)
        self.failed_generation = 0 if self.record is None else self.record.generation
        self.set_fallback(self.serving is not None)
        _log.error("the wanted checkpoint cannot be served: %s", error)

    async def exchange(self, ref: CheckpointRef, report: Report, commit: Commit) -> None:
        """Proves a checkpoint beside the one that serves, and puts it in its place.

        Args:
            ref: which one.
            report: is told each step.
            commit: decides at the last moment, the new model being proven: it returns the record to
                adopt with the switch, or None, or raises, and the old one goes on.

        Raises:
            EspalierError: it was not exchanged.
        """
        start = time.perf_counter()
        try:
            model = await self._prove(ref, report)
            try:
                await report("switching")
                record = await commit()
            except BaseException:
                await model.engine.close()
                raise
        except Exception:
            self._metrics.swaps.labels("failed").inc()
            raise
        self.models.replace(model)
        self.serving = ref
        _log.info("serving %s", model.identity)
        await (self._note() if record is None else self.adopt(record))
        await report("draining")
        await self.models.drained()
        self._metrics.swaps.labels("done").inc()
        self._metrics.swap_duration.observe(time.perf_counter() - start)

    async def _prove(self, ref: CheckpointRef, report: Report) -> LoadedModel:
        artifact = await asyncio.to_thread(self.folder.find, ref.name)
        if artifact.digest != ref.digest:
            raise SwapError(
                f"{artifact.path}: holds {artifact.digest[:12]}, wanted is {ref.digest[:12]}; "
                "copy the wanted artifact there"
            )
        return await self._load(artifact, report)

    async def _note(self) -> None:
        """Brings flags, metrics and the state file up to what serves and what is wanted."""
        if self.converged():
            assert self.record is not None
            self._served_generation = self.record.generation
            self.failed_generation, self.failure = 0, None
            self._metrics.generation.labels("serving").set(self._served_generation)
        self.set_fallback(self.failure is not None and self.serving is not None)
        if not self.folder.alone:
            await asyncio.to_thread(self._state.write, Memory(record=self.record, last_good=self.serving))

    def set_fallback(self, fallback: bool) -> None:
        """Whether what serves stands in for what cannot be served."""
        self.models.fallback = fallback
        self._metrics.checkpoint_fallback.set(fallback)
