"""The engine's thread: admits, steps and answers, forever. It alone touches the search."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from recommender.ranker import Ranker
from recommender.search.frontier import Found, Query
from service.engine.native.scheduler import Job, Scheduler
from service.engine.protocol import Ranking
from service.errors import EngineError

_log = logging.getLogger("espalier.engine")


@dataclass(frozen=True)
class _Running:
    """A job in the search: its query, and when it joined and its prompt was read (`perf_counter`)."""

    job: Job
    query: Query
    joined: float
    prefilled: float


class Runner:
    """Runs the scheduler's jobs on a ranker until the scheduler ends."""

    def __init__(self, ranker: Ranker, scheduler: Scheduler) -> None:
        self._ranker = ranker
        self._scheduler = scheduler
        self._owed: set[Job] = set()  # jobs that were taken and not answered yet
        self._running: dict[int, _Running] = {}

    def run(self) -> None:
        """The thread's body. If the model fails, the engine ends and every job is told so."""
        error = EngineError("the engine is closed")
        try:
            while (joining := self._scheduler.join(len(self._running))) is not None:
                self._owed.update(joining)
                self._discard_abandoned()
                self._admit(joining)
                self._step()
        except Exception as cause:  # whatever it was, no job may wait for ever
            _log.exception("the engine died")
            error = EngineError(f"the engine died: {type(cause).__name__}: {cause}")
        for job in (*self._scheduler.fail(error), *self._owed):
            job.deliver(error)

    def _discard_abandoned(self) -> None:
        gone = [ticket for ticket, running in self._running.items() if running.job.abandoned]
        self._ranker.search.discard(gone)
        for ticket in gone:
            self._owed.discard(self._running.pop(ticket).job)

    def _admit(self, jobs: list[Job]) -> None:
        joined = time.perf_counter()
        queries = [self._query(job) for job in jobs]
        tickets = self._ranker.search.admit(queries)
        prefilled = time.perf_counter()
        for ticket, job, query in zip(tickets, jobs, queries, strict=True):
            self._running[ticket] = _Running(job, query, joined, prefilled)

    def _step(self) -> None:
        for ticket, found in self._ranker.search.step():
            running = self._running.pop(ticket)
            self._owed.discard(running.job)
            running.job.deliver(self._ranking(running, found))

    def _query(self, job: Job) -> Query:
        request = job.request
        items = self._ranker.filter(request.exclude, request.candidates)
        return Query(prompt=request.prompt, k=request.k, items=items)

    def _ranking(self, running: _Running, found: Found) -> Ranking:
        return Ranking(
            items=tuple(self._ranker.items(found, running.query)),
            exact=found.exact,
            queue_s=running.joined - running.job.submitted,
            prefill_s=running.prefilled - running.joined,
            decode_s=time.perf_counter() - running.prefilled,
            prompt_tokens=found.prompt_tokens,
            cached_tokens=found.cached_tokens,
            steps=found.steps,
        )
