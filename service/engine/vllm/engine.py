"""The vLLM engine as the event loop sees it: futures in front of a child process that is kept going.

A child that dies, hangs or runs out of memory takes the rankings in flight with it: their callers are
told at once. Then another child is started, after a pause that doubles as long as children keep failing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count

from recommender.ranker import RankedItem
from service.engine.protocol import EngineMemory, Ranking, RankRequest
from service.engine.vllm.messages import AskMetrics, Cancel, OwnMetrics, Rank, Ranked, Ready, Refused
from service.engine.vllm.process import ChildProcess, Failure
from service.engine.vllm.watch import Watch, work_of
from service.errors import DeadlineError, EngineError, RequestError
from service.memory import resident_bytes

_log = logging.getLogger("espalier.engine.vllm")
_METRICS_S = 5.0


@dataclass(frozen=True)
class Patience:
    """How long is waited for what, in seconds.

    Attributes:
        load_s: until a child is ready.
        silence_s: without a sign of life and without work, a child counts as hung …
        step_s: … and without a sign of life, however hard it works.
        pause_s: before the first restart; it doubles up to `longest_pause_s` …
        settled_s: … and is forgotten once a child lived this long.
    """

    load_s: float = 600.0
    silence_s: float = 2.0
    step_s: float = 60.0
    pause_s: float = 0.5
    longest_pause_s: float = 30.0
    settled_s: float = 60.0


class VllmEngine:
    """Ranks with a child process. `start` must be awaited first."""

    def __init__(
        self,
        command: Sequence[str],
        max_batch: int,
        on_failure: Callable[[str], None],
        patience: Patience | None = None,
    ) -> None:
        """Takes the child's command, and whom to tell the reason of each failure."""
        self._command = command
        self._on_failure = on_failure
        self._patience = patience or Patience()
        self._places = asyncio.Semaphore(max_batch)
        self._waiting = 0
        self._numbers = count()
        self._owed: dict[int, asyncio.Future[Ranked | Refused | OwnMetrics]] = {}
        self._child: ChildProcess | None = None
        self._held = Ready(weights=0, kv_cache=0, accelerator=0)
        self._overhead = 0
        self._obstacle = "vLLM is starting"
        self._supervisor: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts the first child and waits until it is ready.

        Raises:
            EngineError: it failed; there is no second try.
        """
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(started))
        try:
            await started
        except BaseException:
            await self.close()
            raise

    @property
    def alive(self) -> bool:
        return self._supervisor is not None and not self._supervisor.done()

    @property
    def obstacle(self) -> str | None:
        if not self.alive:
            return "the engine is closed"
        return None if self._child is not None else self._obstacle

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def child_pid(self) -> int | None:
        """The process that holds vLLM now."""
        return None if self._child is None else self._child.pid

    def memory(self) -> EngineMemory:
        held = self._held
        return EngineMemory(held.weights, held.kv_cache, held.accelerator)

    @property
    def overhead_bytes(self) -> int:
        """What the child held beside weights when it began to serve, its cache untouched as yet."""
        return self._overhead

    async def rank(self, request: RankRequest) -> Ranking:
        submitted = time.perf_counter()
        try:
            async with asyncio.timeout_at(request.deadline):
                self._waiting += 1
                try:
                    await self._places.acquire()
                finally:
                    self._waiting -= 1
                try:
                    return await self._rank(request, submitted)
                finally:
                    self._places.release()
        except TimeoutError as error:
            raise DeadlineError("the deadline passed before the ranking was done") from error

    async def own_metrics(self) -> str:
        number = next(self._numbers)
        try:
            async with asyncio.timeout(_METRICS_S):
                answer = await self._ask(AskMetrics(id=number))
        except TimeoutError as error:
            raise EngineError("vLLM did not give its metrics in time") from error
        assert isinstance(answer, OwnMetrics)
        return answer.text

    async def close(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
        self._give_up("the engine is closed")

    async def _rank(self, request: RankRequest, submitted: float) -> Ranking:
        number = next(self._numbers)
        sent = time.perf_counter()
        answer = await self._ask(
            Rank(
                id=number,
                prompt=request.prompt,
                k=request.k,
                exclude=tuple(request.exclude),
                candidates=None if request.candidates is None else tuple(request.candidates),
            )
        )
        if isinstance(answer, Refused):
            raise RequestError(answer.why)
        assert isinstance(answer, Ranked)
        # What the child does not account for, the way there and back, was spent waiting.
        travel = max(0.0, time.perf_counter() - sent - answer.prefill_s - answer.decode_s)
        return Ranking(
            items=tuple(
                RankedItem(item, score) for item, score in zip(answer.items, answer.scores, strict=True)
            ),
            exact=answer.exact,
            queue_s=sent - submitted + travel,
            prefill_s=answer.prefill_s,
            decode_s=answer.decode_s,
            prompt_tokens=len(request.prompt),
            cached_tokens=answer.cached_tokens,
            steps=answer.steps,
        )

    async def _ask(self, message: Rank | AskMetrics) -> Ranked | Refused | OwnMetrics:
        child = self._child
        if child is None:
            raise EngineError(self.obstacle or self._obstacle)
        answer: asyncio.Future[Ranked | Refused | OwnMetrics] = asyncio.get_running_loop().create_future()
        self._owed[message.id] = answer
        child.send(message)
        try:
            return await answer
        except asyncio.CancelledError:
            if self._child is child:
                child.send(Cancel(id=message.id))
            raise
        finally:
            self._owed.pop(message.id, None)

    async def _supervise(self, started: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        pause = self._patience.pause_s
        while True:
            born = loop.time()
            failure = await self._live_once(started)
            self._on_failure(failure.reason)
            _log.error("vLLM's process is gone (%s): %s", failure.reason, failure.detail)
            if not started.done():
                started.set_exception(EngineError(f"vLLM did not start: {failure.detail}"))
                return
            if loop.time() - born >= self._patience.settled_s:
                pause = self._patience.pause_s
            self._obstacle = f"vLLM's process is gone ({failure.reason}) and is being restarted"
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._patience.longest_pause_s)

    async def _live_once(self, started: asyncio.Future[None]) -> Failure:
        """Runs one child to its end. Returns why it ended."""
        try:
            child = await ChildProcess.launch(self._command)
        except OSError as error:
            return Failure("start", f"{self._command[0]}: {error.strerror}")
        try:
            try:
                async with asyncio.timeout(self._patience.load_s):
                    message = await child.receive()
                if isinstance(message, Ready):
                    self._take_up(child, message)
                    if not started.done():
                        started.set_result(None)
                    hang = await self._listen(child)
                    if hang is not None:
                        self._give_up("vLLM's process hangs")
                        return Failure("hung", hang)
            except TimeoutError:
                return Failure("hung", f"it was not ready within {self._patience.load_s:g} s")
            self._give_up("vLLM's process ended")
            return await child.failure()
        finally:
            self._child = None
            await child.end()

    def _take_up(self, child: ChildProcess, ready: Ready) -> None:
        """Begins to rank with a child."""
        self._held, self._child = ready, child
        in_memory = 0 if ready.accelerator else ready.weights
        self._overhead = max(0, resident_bytes(child.pid) - in_memory)
        _log.info("vLLM is ready (process %d)", child.pid)

    async def _listen(self, child: ChildProcess) -> str | None:
        """Hands answers out until the child is gone, or hangs; returns how."""
        watch = Watch(lambda: work_of(child.pid), self._patience.silence_s, self._patience.step_s)
        while True:
            try:
                async with asyncio.timeout(watch.every_s):
                    message = await child.receive()
            except TimeoutError:
                hang = watch.hangs()
                if hang is not None:
                    return hang
                continue
            watch.heard()
            if message is None:
                return None
            if isinstance(message, Ranked | Refused | OwnMetrics):
                answer = self._owed.get(message.id)
                if answer is not None and not answer.done():
                    answer.set_result(message)

    def _give_up(self, why: str) -> None:
        """Tells everybody who waits for the child that nothing will come, and why nobody should ask."""
        self._child, self._obstacle = None, why
        for answer in self._owed.values():
            if not answer.done():
                answer.set_exception(EngineError(f"{why}; try again in a moment"))
