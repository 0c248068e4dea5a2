"""The native engine as the event loop sees it: futures in front of one thread."""

from __future__ import annotations

import asyncio
import threading
import time

from recommender.ranker import Ranker
from service.engine.native.runner import Runner
from service.engine.native.scheduler import Job, Scheduler
from service.engine.protocol import EngineMemory, Ranking, RankRequest
from service.errors import DeadlineError, EngineError


class NativeEngine:
    """Batched trie search over the lean transformer. It starts its thread at once."""

    def __init__(self, ranker: Ranker, max_batch: int) -> None:
        self._ranker = ranker
        self._scheduler = Scheduler(max_batch)
        # A daemon, so that a hung step cannot keep a process alive that wants to end.
        self._thread = threading.Thread(
            target=Runner(ranker, self._scheduler).run, name="espalier-engine", daemon=True
        )
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._scheduler.ended

    @property
    def obstacle(self) -> str | None:
        return None if self.alive else "the engine is dead"

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting

    def memory(self) -> EngineMemory:
        search = self._ranker.search
        held = search.cache.nbytes + search.prefixes.nbytes
        return EngineMemory(weights=search.model.nbytes, kv_cache=held, accelerator=0)

    async def rank(self, request: RankRequest) -> Ranking:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Ranking] = loop.create_future()

        def settle(outcome: Ranking | EngineError) -> None:
            if answer.done():  # the caller left between the delivery and now
                return
            if isinstance(outcome, EngineError):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        def deliver(outcome: Ranking | EngineError) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, outcome)

        job = Job(request, time.perf_counter(), deliver)
        self._scheduler.submit(job)
        try:
            async with asyncio.timeout_at(request.deadline):
                return await answer
        except TimeoutError as error:
            raise DeadlineError("the deadline passed before the ranking was done") from error
        finally:
            job.abandoned = True

    async def own_metrics(self) -> str:
        return ""

    async def close(self) -> None:
        self._scheduler.close()
        await asyncio.to_thread(self._thread.join)
