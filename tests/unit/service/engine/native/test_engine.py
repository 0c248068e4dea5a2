import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from recommender.artifact import Artifact
from recommender.ranker import Ranker
from recommender.search.frontier import Found, Query
from recommender.search.search import TrieSearch
from service.engine.native.engine import NativeEngine
from service.engine.protocol import RankRequest
from service.errors import DeadlineError, EngineError


class GatedSearch(TrieSearch):
    """The real search, whose steps wait for a gate; it may also be told to break."""

    gate: threading.Event
    entered: threading.Event
    broken = False

    def step(self) -> list[tuple[int, Found]]:
        if self.in_flight:
            self.entered.set()
            self.gate.wait(timeout=60)
        if self.broken:
            raise MemoryError("no room")
        return super().step()


@pytest.fixture
def ranker(served_artifact: Artifact) -> Ranker:
    ranker = Ranker.from_artifact(served_artifact)
    search = GatedSearch(ranker.search.model, ranker.trie)
    search.gate, search.entered = threading.Event(), threading.Event()
    ranker.search = search
    return ranker


@pytest.fixture
async def engine(ranker: Ranker) -> AsyncIterator[NativeEngine]:
    engine = NativeEngine(ranker, max_batch=4)
    yield engine
    gated(ranker).gate.set()
    await engine.close()


@pytest.fixture
def ask(ranker: Ranker) -> Callable[..., RankRequest]:
    def build(*history: int, k: int = 5, seconds: float = 60.0, **filters: frozenset[int]) -> RankRequest:
        deadline = asyncio.get_running_loop().time() + seconds
        exclude = filters.get("exclude", frozenset())
        return RankRequest(ranker.prompt(history), k, exclude, filters.get("candidates"), deadline)

    return build


def gated(ranker: Ranker) -> GatedSearch:
    assert isinstance(ranker.search, GatedSearch)
    return ranker.search


async def test_a_ranking_is_what_the_search_alone_gives(
    engine: NativeEngine, ranker: Ranker, ask: Callable[..., RankRequest], served_artifact: Artifact
) -> None:
    gated(ranker).gate.set()
    ranking = await engine.rank(ask(3, 8, k=7, exclude=frozenset({1, 2})))
    alone = Ranker.from_artifact(served_artifact)
    query = Query(alone.prompt((3, 8)), 7, alone.filter({1, 2}))
    expected = alone.items(alone.search.rank([query])[0], query)
    assert [item.index for item in ranking.items] == [item.index for item in expected]
    assert [item.score for item in ranking.items] == pytest.approx([item.score for item in expected])
    assert ranking.exact
    assert ranking.prompt_tokens == len(query.prompt)
    assert ranking.cached_tokens == 0
    assert min(ranking.queue_s, ranking.prefill_s, ranking.decode_s) >= 0


async def test_concurrent_requests_get_what_they_get_alone(
    engine: NativeEngine, ranker: Ranker, ask: Callable[..., RankRequest]
) -> None:
    gated(ranker).gate.set()
    histories = [tuple(range(start, start + start % 5 + 1)) for start in range(20)]
    alone = [await engine.rank(ask(*history)) for history in histories]
    together = await asyncio.gather(*(engine.rank(ask(*history)) for history in histories))
    for one, other in zip(alone, together, strict=True):
        assert [item.index for item in one.items] == [item.index for item in other.items]
        assert [item.score for item in one.items] == pytest.approx(
            [item.score for item in other.items], abs=1e-5
        )


async def test_requests_join_a_search_that_is_under_way(
    engine: NativeEngine, ranker: Ranker, ask: Callable[..., RankRequest]
) -> None:
    first = asyncio.create_task(engine.rank(ask(1)))
    assert await asyncio.to_thread(gated(ranker).entered.wait, 60)
    others = [asyncio.create_task(engine.rank(ask(item))) for item in range(2, 8)]
    await asyncio.sleep(0)  # the event loop turns although a step is held up
    assert engine.waiting == 6
    gated(ranker).gate.set()
    await asyncio.gather(first, *others)
    assert engine.waiting == 0


async def test_a_request_past_its_deadline_is_given_up_and_forgotten(
    engine: NativeEngine, ranker: Ranker, ask: Callable[..., RankRequest]
) -> None:
    with pytest.raises(DeadlineError):
        await engine.rank(ask(1, seconds=0.05))
    gated(ranker).gate.set()
    await engine.rank(ask(2))
    assert ranker.search.in_flight == 0


async def test_a_cancelled_request_is_forgotten(
    engine: NativeEngine, ranker: Ranker, ask: Callable[..., RankRequest]
) -> None:
    task = asyncio.create_task(engine.rank(ask(1)))
    assert await asyncio.to_thread(gated(ranker).entered.wait, 60)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gated(ranker).gate.set()
    await engine.rank(ask(2))
    assert ranker.search.in_flight == 0


async def test_when_the_model_fails_everybody_is_told(
    engine: NativeEngine,
    ranker: Ranker,
    ask: Callable[..., RankRequest],
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = [asyncio.create_task(engine.rank(ask(item))) for item in range(7)]
    assert await asyncio.to_thread(gated(ranker).entered.wait, 60)
    await asyncio.sleep(0)
    gated(ranker).broken = True
    with caplog.at_level(logging.CRITICAL, logger="espalier.engine"):
        gated(ranker).gate.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, EngineError) and "no room" in str(outcome) for outcome in outcomes)
    with pytest.raises(EngineError, match="MemoryError: no room"):
        await engine.rank(ask(1))
    assert not engine.alive


async def test_memory_counts_weights_and_cache(
    engine: NativeEngine, ranker: Ranker, ask: Callable[..., RankRequest]
) -> None:
    gated(ranker).gate.set()
    before = engine.memory()
    await engine.rank(ask(1))
    after = engine.memory()
    assert before.weights == after.weights == ranker.search.model.nbytes > 0
    assert after.kv_cache > before.kv_cache
