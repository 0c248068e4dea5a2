import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import lean_vllm_child
import pytest

from recommender.artifact import Artifact
from recommender.ranker import Ranker
from recommender.search.frontier import Query
from service.engine.protocol import RankRequest
from service.engine.vllm.engine import Patience, VllmEngine
from service.errors import DeadlineError, EngineError, RequestError

Start = Callable[..., Awaitable[VllmEngine]]
Ask = Callable[..., RankRequest]
SOON = Patience(load_s=60, pause_s=0.05, longest_pause_s=0.2)
CONTEXT, KV_CACHE = 128, 5


@pytest.fixture(scope="session")
def ranker(served_artifact: Artifact) -> Ranker:
    return Ranker.from_artifact(served_artifact)


@pytest.fixture
def failures() -> list[str]:
    return []


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where children get their folders from."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
async def start(served_artifact: Artifact, failures: list[str]) -> AsyncIterator[Start]:
    """`await start("--fail", …)`: an engine whose child runs the lean transformer."""
    engines = []

    async def launch(*arguments: str, patience: Patience = SOON, max_batch: int = 8) -> VllmEngine:
        command = [
            *(sys.executable, lean_vllm_child.__file__, "--artifact", str(served_artifact.path)),
            *("--context", str(CONTEXT), "--kv-cache", str(KV_CACHE)),
        ]
        engine = VllmEngine([*command, *arguments], max_batch, failures.append, patience)
        engines.append(engine)
        await engine.start()
        return engine

    yield launch
    for engine in engines:
        await engine.close()


@pytest.fixture
def ask(ranker: Ranker) -> Ask:
    def build(*history: int, k: int = 5, seconds: float = 60.0, **filters: frozenset[int]) -> RankRequest:
        deadline = asyncio.get_running_loop().time() + seconds
        exclude = filters.get("exclude", frozenset())
        return RankRequest(ranker.prompt(history), k, exclude, filters.get("candidates"), deadline)

    return build


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


def running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("proof_nodes", [-999, 384])
async def test_a_proof_costs_no_more_than_the_command_line_says(
    start: Start, ask: Ask, proof_nodes: int
) -> None:
    engine = await start("--proof-nodes", str(proof_nodes))
    rankings = [await engine.rank(ask(item, k=1)) for item in range(8)]
    assert all(len(ranking.items) == 1 for ranking in rankings)
    assert all(ranking.exact for ranking in rankings) == (proof_nodes > 0)


async def test_concurrent_rankings_are_the_native_ones(start: Start, ask: Ask, ranker: Ranker) -> None:
    engine = await start()
    requests = [ask(item, item + 1, k=6) for item in range(12)]
    requests.append(ask(3, exclude=frozenset({1, 2, 24})))
    requests.append(ask(3, candidates=frozenset({4, 5, 27})))
    rankings = await asyncio.gather(*(engine.rank(request) for request in requests))
    for request, ranking in zip(requests, rankings, strict=True):
        filters = ranker.filter(request.exclude, request.candidates)
        query = Query(request.prompt, request.k, filters)
        expected = ranker.items(ranker.search.rank([query])[0], query)
        assert [item.index for item in ranking.items] == [item.index for item in expected]
        assert [item.score for item in ranking.items] == pytest.approx(
            [item.score for item in expected], abs=1e-4
        )
        assert ranking.exact
        assert ranking.prompt_tokens == len(request.prompt)
        assert min(ranking.queue_s, ranking.prefill_s, ranking.decode_s) >= 0
    assert engine.obstacle is None
    assert engine.waiting == 0
    assert 0 < engine.memory().weights <= ranker.search.model.nbytes  # the kernels' weights are padded
    assert engine.memory().kv_cache == KV_CACHE
    assert 100 << 20 < engine.overhead_bytes < 2 << 30  # an interpreter with torch


async def test_its_own_metrics(start: Start) -> None:
    engine = await start()
    assert "vllm:lean 1.0" in await engine.own_metrics()


async def test_a_killed_child_costs_what_is_in_flight_and_comes_back(
    start: Start, ask: Ask, failures: list[str], scratch: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start()
    first = engine.child_pid
    assert first is not None
    os.kill(first, signal.SIGSTOP)  # so that the rankings are certainly under way
    tasks = [asyncio.create_task(engine.rank(ask(item))) for item in range(12)]
    await until(lambda: engine.waiting == 4)
    assert len(list(scratch.iterdir())) == 1
    with caplog.at_level(logging.CRITICAL, logger="espalier.engine.vllm"):
        os.kill(first, signal.SIGKILL)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, EngineError) for outcome in outcomes)
    assert engine.alive
    assert engine.obstacle is not None
    assert "starting" not in engine.obstacle
    await until(lambda: engine.obstacle is None)
    assert failures == ["killed"]
    assert engine.child_pid != first
    assert (await engine.rank(ask(1))).items
    assert len(list(scratch.iterdir())) == 1  # the dead one's folder is gone


async def test_a_hung_child_is_ended(
    start: Start, ask: Ask, failures: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start("--fail", "hang")
    first = engine.child_pid
    assert first is not None
    with caplog.at_level(logging.ERROR, logger="espalier.engine.vllm"):
        with pytest.raises(EngineError, match="hangs"):
            await engine.rank(ask(1))
        assert engine.obstacle == "vLLM's process hangs"
        await until(lambda: engine.obstacle is None)
    assert failures == ["hung"]
    assert "did no work" in caplog.text
    assert not running(first)


async def test_a_stopped_child_hangs(
    start: Start, failures: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start()
    assert engine.child_pid is not None
    os.kill(engine.child_pid, signal.SIGSTOP)
    with caplog.at_level(logging.CRITICAL, logger="espalier.engine.vllm"):
        await until(lambda: failures == ["hung"])


async def test_a_step_that_is_merely_long_is_waited_for(
    start: Start, ask: Ask, failures: list[str]
) -> None:
    engine = await start("--fail", "slow", patience=Patience(silence_s=0.4))
    assert (await engine.rank(ask(1))).items
    assert not failures


async def test_a_step_without_end_hangs(
    start: Start, ask: Ask, failures: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start("--fail", "slow", patience=Patience(step_s=1))
    with (
        caplog.at_level(logging.CRITICAL, logger="espalier.engine.vllm"),
        pytest.raises(EngineError, match="hangs"),
    ):
        await engine.rank(ask(1))
    await until(lambda: failures == ["hung"])


async def test_a_prompt_that_is_too_long_is_refused_alone(
    start: Start, ask: Ask, ranker: Ranker, failures: list[str]
) -> None:
    engine = await start()
    limit = CONTEXT - ranker.trie.longest_path
    (token,) = set(ranker.prompt((1,))[:1])
    fits = replace(ask(1), prompt=(token,) * limit)
    too_long = replace(fits, prompt=(token,) * (limit + 1))
    with pytest.raises(RequestError, match=f"the prompt has {limit + 1} tokens, and {limit} fit"):
        await engine.rank(too_long)
    assert (await engine.rank(fits)).items
    assert not failures


async def test_a_child_without_memory_says_so(
    start: Start, ask: Ask, failures: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    engine = await start("--fail", "memory")
    with caplog.at_level(logging.ERROR, logger="espalier.engine.vllm"):
        with pytest.raises(EngineError):
            await engine.rank(ask(1))
        await until(lambda: failures)
    assert failures == ["memory"]
    assert "MemoryError: no room" in caplog.text
    assert engine.obstacle == "vLLM's process is gone (memory) and is being restarted"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--fail", "load"), "ValueError: no such weights$"),
        (("--nonsense",), "exit status 2: .*--nonsense"),
    ],
)
async def test_a_first_child_that_fails_is_not_tried_again(
    start: Start,
    failures: list[str],
    caplog: pytest.LogCaptureFixture,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    with (
        caplog.at_level(logging.CRITICAL, logger="espalier.engine.vllm"),
        pytest.raises(EngineError, match=said),
    ):
        await start(*arguments)
    assert failures == ["died"]


async def test_a_program_that_is_not_there(failures: list[str], caplog: pytest.LogCaptureFixture) -> None:
    engine = VllmEngine(["/nowhere/python"], 1, failures.append)
    with (
        caplog.at_level(logging.CRITICAL, logger="espalier.engine.vllm"),
        pytest.raises(EngineError, match="/nowhere/python: No such file"),
    ):
        await engine.start()
    assert failures == ["start"]
    assert not engine.alive


async def test_a_deadline_and_a_caller_that_left_cost_nobody_else(start: Start, ask: Ask) -> None:
    engine = await start(max_batch=1, patience=Patience(silence_s=60))
    assert engine.child_pid is not None
    os.kill(engine.child_pid, signal.SIGSTOP)
    late = asyncio.create_task(engine.rank(ask(1, seconds=0.2)))
    leaving = asyncio.create_task(engine.rank(ask(2)))
    await asyncio.sleep(0)
    staying = asyncio.create_task(engine.rank(ask(3)))
    with pytest.raises(DeadlineError):
        await late
    leaving.cancel()
    with suppress(asyncio.CancelledError):
        await leaving
    os.kill(engine.child_pid, signal.SIGCONT)
    assert len((await staying).items) == 5


async def test_closing_ends_the_child(start: Start, ask: Ask, scratch: Path) -> None:
    engine = await start()
    pid = engine.child_pid
    assert pid is not None
    await engine.close()
    assert not running(pid)
    assert not list(scratch.iterdir())
    assert not engine.alive
    with pytest.raises(EngineError, match="closed"):
        await engine.rank(ask(1))
