import asyncio
import threading
from typing import Any

import httpx
import pytest

from service.health import readiness as module
from service.services import Services


def services_of(client: httpx.AsyncClient) -> Services:
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    return services


def gate(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, ...]:
    """Holds the engine's thread before its next step; returns (open, entered)."""
    model = services_of(client).models.current
    assert model is not None
    search = model.engine._ranker.search  # type: ignore[attr-defined]
    real, opened, entered = search.step, threading.Event(), threading.Event()

    def step() -> Any:
        entered.set()
        opened.wait(timeout=60)
        return real()

    monkeypatch.setattr(search, "step", step)
    return opened, entered


async def status(client: httpx.AsyncClient, path: str) -> tuple[int, str]:
    response = await client.get(path)
    return response.status_code, response.json().get("detail", "")


async def test_a_served_model_is_live_and_ready(client: httpx.AsyncClient) -> None:
    assert (await client.get("/livez")).json() == {"status": "ok"}
    assert (await client.get("/readyz")).json() == {"status": "ok"}


async def test_without_a_model_it_lives_but_is_not_ready(client: httpx.AsyncClient) -> None:
    services_of(client).models.replace(None)
    assert await status(client, "/livez") == (200, "")
    assert await status(client, "/readyz") == (503, "no checkpoint")
    response = await client.post("/recommend", json={"history": ["g1"]})
    assert (response.status_code, response.json()["type"]) == (503, "urn:espalier:problem:no-checkpoint")


async def test_metrics_of_a_library_that_is_not_there(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics/vllm")
    assert (answer.status_code, answer.text) == (200, "")
    assert answer.headers["content-type"].startswith("text/plain; version=")


async def test_draining_is_not_ready(client: httpx.AsyncClient) -> None:
    services_of(client).readiness.draining = True
    assert await status(client, "/readyz") == (503, "draining")
    assert (await client.post("/recommend", json={"history": ["g1"]})).status_code == 200


async def test_a_dead_engine_is_neither_live_nor_ready(client: httpx.AsyncClient) -> None:
    model = services_of(client).models.current
    assert model is not None
    await model.engine.close()
    assert (await status(client, "/livez"))[0] == 503
    assert await status(client, "/readyz") == (503, "the engine is dead")
    response = await client.post("/recommend", json={"history": ["g1"]})
    assert (response.status_code, response.json()["type"]) == (503, "urn:espalier:problem:engine-away")


async def test_an_idle_model_is_probed(open_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_app(probe_interval_s=0.01) as client:
        readiness = services_of(client).readiness
        readiness._last_ranked = float("-inf")
        # Asked without a pause: the probe runs on this event loop and may come with the first one.
        assert readiness.obstacle() == "the model has not ranked lately"
        async with asyncio.timeout(30):
            while (await status(client, "/readyz"))[0] != 200:
                await asyncio.sleep(0.01)


async def test_a_hung_engine_is_not_ready_and_does_not_hold_up_the_event_loop(
    open_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FRESH_SECONDS", 0.05)
    async with open_app(probe_interval_s=0.02) as client:
        opened, entered = gate(client, monkeypatch)
        held = asyncio.create_task(client.post("/recommend", json={"history": ["g1"]}))
        assert await asyncio.to_thread(entered.wait, 60)
        assert await status(client, "/livez") == (200, "")
        assert (await client.get("/items")).status_code == 200
        async with asyncio.timeout(30):
            while (await status(client, "/readyz"))[0] == 200:
                await asyncio.sleep(0.01)
        opened.set()
        assert (await held).status_code == 200


async def test_more_than_there_are_places_for_is_turned_away(
    open_app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_app(max_batch=1, max_waiting=1, probe_interval_s=9) as client:
        opened, entered = gate(client, monkeypatch)
        body = {"history": ["g1"]}
        held = [asyncio.create_task(client.post("/recommend", json=body)) for _ in range(2)]
        assert await asyncio.to_thread(entered.wait, 60)
        while services_of(client).admission.taken < 2:
            await asyncio.sleep(0.001)
        refused = await client.post("/recommend", json=body)
        assert refused.status_code == 429
        assert refused.json()["type"] == "urn:espalier:problem:overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        batch = await client.post("/recommend/batch", json={"requests": [body]})
        assert [entry["status"] for entry in batch.json()["responses"]] == [429]
        metrics = (await client.get("/metrics")).text
        assert 'espalier_rejections_total{reason="overloaded"} 2.0' in metrics
        assert '{route="/recommend",status="429"} 1.0' in metrics
        opened.set()
        assert [(await task).status_code for task in held] == [200, 200]
        assert (await client.post("/recommend", json=body)).status_code == 200


async def test_a_late_answer_is_a_504(open_app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_app(deadline_s=0.05) as client:
        opened, _ = gate(client, monkeypatch)
        response = await client.post("/recommend", json={"history": ["g1"]})
        assert (response.status_code, response.json()["type"]) == (504, "urn:espalier:problem:deadline")
        opened.set()
