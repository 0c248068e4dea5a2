"""From a request to a recommendation: history, prompt, ranking, or the popular items instead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from service.checkpoints.holder import ModelHolder
from service.engine.protocol import LoadedModel, RankRequest
from service.errors import HistoryUnavailableError
from service.health.readiness import Readiness
from service.history.store import HistoryStore
from service.metrics import Metrics
from service.recommend.reading import Reading, build_prompt, read_history
from service.recommend.schemas import RecommendedItem, RecommendRequest, RecommendResponse, Timings

Degraded = Literal["history_unavailable", "checkpoint_fallback"]


@dataclass(frozen=True)
class _Filters:
    """Which items may come out, as indices; `unknown` are the ids that the catalogue does not know."""

    exclude: frozenset[int]
    candidates: frozenset[int] | None
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class _Stages:
    """Seconds spent in each stage."""

    history: float = 0.0
    prompt: float = 0.0
    queue: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0


class Recommender:
    """Answers requests that have a place. Each takes a reference to one model and keeps it to its end."""

    def __init__(
        self,
        models: ModelHolder,
        histories: HistoryStore,
        readiness: Readiness,
        metrics: Metrics,
        deadline_s: float,
        refuse_without_history: bool,
    ) -> None:
        self._models = models
        self._histories = histories
        self._readiness = readiness
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._refuse_without_history = refuse_without_history

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Answers one request.

        Raises:
            NoModelError: no checkpoint is loaded.
            DeadlineError: it took too long.
            EngineError: the engine died.
            HistoryUnavailableError: the history cannot be read, and such requests are to be refused.
        """
        start = time.perf_counter()
        deadline = asyncio.get_running_loop().time() + self._deadline_s
        async with self._models.lease() as model:
            return await self._answer(model, request, start, deadline)

    async def _answer(
        self, model: LoadedModel, request: RecommendRequest, start: float, deadline: float
    ) -> RecommendResponse:
        reading, degraded = await self._read(model, request)
        if degraded is None and self._models.fallback:
            degraded = "checkpoint_fallback"
        read = time.perf_counter()
        filters = _filters(model, request, reading)
        prompt = build_prompt(model, reading.window)
        stages = _Stages(history=read - start, prompt=time.perf_counter() - read)
        if prompt is None:
            exact = None
            items = _popular(model, filters, request.k)
        else:
            ranking = await model.rank(
                RankRequest(prompt, request.k, filters.exclude, filters.candidates, deadline)
            )
            self._readiness.ranked()
            self._metrics.ranked(ranking)
            stages = replace(
                stages, queue=ranking.queue_s, prefill=ranking.prefill_s, decode=ranking.decode_s
            )
            exact = ranking.exact
            items = _described(model, ((item.index, item.score) for item in ranking.items))
        strategy: Literal["model", "popular"] = "popular" if prompt is None else "model"
        self._metrics.recommendations.labels(strategy, degraded or "no").inc()
        return RecommendResponse(
            user_id=request.user_id,
            items=items,
            model=model.identity,
            exact=exact,
            strategy=strategy,
            degraded=degraded,
            unknown_items=tuple(dict.fromkeys((*reading.unknown, *filters.unknown))),
            timings_ms=self._timings(stages, time.perf_counter() - start),
        )

    async def _read(self, model: LoadedModel, request: RecommendRequest) -> tuple[Reading, Degraded | None]:
        if request.history is not None:
            return read_history(model, request.history, len(request.history)), None
        assert request.user_id is not None  # the schema asks for one of the two
        try:
            stored = await self._histories.read(request.user_id)
        except HistoryUnavailableError:
            if self._refuse_without_history:
                raise
            return Reading(frozenset(), (), ()), "history_unavailable"
        return read_history(model, [event.item_id for event in stored.events], stored.count), None

    def _timings(self, stages: _Stages, total: float) -> Timings:
        for stage, seconds in vars(stages).items():
            self._metrics.stage_duration.labels(stage).observe(seconds)
        milliseconds = {stage: round(seconds * 1e3, 3) for stage, seconds in vars(stages).items()}
        return Timings(**milliseconds, total=round(total * 1e3, 3))


def _filters(model: LoadedModel, request: RecommendRequest, reading: Reading) -> _Filters:
    exclude, unknown = _indices(model, request.exclude)
    if request.exclude_seen:
        exclude |= model.titles.same_title(reading.seen)
    if request.candidates is None:
        return _Filters(frozenset(exclude), None, tuple(unknown))
    candidates, strangers = _indices(model, request.candidates)
    return _Filters(frozenset(exclude), frozenset(candidates), (*unknown, *strangers))


def _indices(model: LoadedModel, item_ids: Iterable[str]) -> tuple[set[int], list[str]]:
    """The indices of the ids that the catalogue knows, and the ids that it does not."""
    found: set[int] = set()
    unknown: list[str] = []
    for item_id in item_ids:
        index = model.titles.catalogue.index_of(item_id)
        if index is None:
            unknown.append(item_id)
        else:
            found.add(index)
    return found, unknown


def _popular(model: LoadedModel, filters: _Filters, k: int) -> tuple[RecommendedItem, ...]:
    """The k most popular items that survive the filters."""
    chosen: list[int] = []
    for item in model.titles.catalogue.by_popularity:
        if len(chosen) == k:
            break
        if item not in filters.exclude and (filters.candidates is None or item in filters.candidates):
            chosen.append(item)
    return _described(model, ((item, None) for item in chosen))


def _described(
    model: LoadedModel, items: Iterable[tuple[int, float | None]]
) -> tuple[RecommendedItem, ...]:
    """Item indices and scores, best first, as the answer names them."""
    catalogue = model.titles.catalogue
    return tuple(
        RecommendedItem(
            item_id=catalogue.item_ids[index], title=catalogue.titles[index], score=score, rank=rank
        )
        for rank, (index, score) in enumerate(items, start=1)
    )
