"""Debian's redis-server behind the service: killed, paused and restarted under way."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis_servers import RedisServer, until

pytestmark = pytest.mark.redis


def recommend(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/recommend", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def add(client: httpx.Client, item: int) -> int:
    body = {"item_id": f"g{item % 30}", "timestamp": item, "event_id": f"e{item}"}
    return client.post("/users/ann/events", json=body).status_code


def stored(client: httpx.Client) -> list[int]:
    items = client.get("/users/ann/history").json()["items"]
    return [int(item["timestamp"]) for item in items]


def test_killed_and_restarted_nothing_acknowledged_is_lost(
    start_service: Callable[..., Any], redis_server: RedisServer
) -> None:
    service = start_service("--redis", redis_server.url, ESPALIER_PROBE_INTERVAL_S="0.1")
    with service.client() as client:
        acknowledged = [item for item in range(40) if add(client, item) == 200]
        assert acknowledged == list(range(40))
        redis_server.kill()
        assert add(client, 40) == 503
        away = recommend(client, user_id="ann")
        assert (away["strategy"], away["degraded"]) == ("popular", "history_unavailable")
        carried = recommend(client, history=["g3"])
        assert (carried["strategy"], carried["degraded"]) == ("model", None)
        assert client.get("/readyz").status_code == 200
        until(lambda: "espalier_redis_up 0.0" in client.get("/metrics").text)
        redis_server.start()
        until(lambda: recommend(client, user_id="ann")["degraded"] is None)
        assert stored(client) == acknowledged
        assert add(client, 40) == 200  # sent again after its 503: stored once
        assert stored(client) == [*acknowledged, 40]
        until(lambda: "espalier_redis_up 1.0" in client.get("/metrics").text)
    assert service.end() == 0


def test_paused_it_costs_the_timeout_and_recovers(
    start_service: Callable[..., Any], redis_server: RedisServer
) -> None:
    service = start_service("--redis", redis_server.url, ESPALIER_REDIS_TIMEOUT_S="0.2")
    with service.client() as client:
        until(lambda: add(client, 1) == 200)
        redis_server.process.send_signal(signal.SIGSTOP)
        away = recommend(client, user_id="ann")
        assert away["degraded"] == "history_unavailable"
        assert add(client, 2) == 503
        assert recommend(client, history=["g3"])["strategy"] == "model"
        redis_server.process.send_signal(signal.SIGCONT)
        until(lambda: recommend(client, user_id="ann")["degraded"] is None)
        until(lambda: add(client, 2) == 200)
        assert stored(client) == [1, 2]
    assert service.end() == 0


def test_it_starts_without_redis_and_finds_it_later(
    start_service: Callable[..., Any], redis_server: RedisServer
) -> None:
    redis_server.kill()
    service = start_service("--redis", redis_server.url)
    with service.client() as client:
        assert client.get("/readyz").status_code == 200
        assert recommend(client, user_id="ann")["degraded"] == "history_unavailable"
        redis_server.start()
        until(lambda: add(client, 1) == 200)
        assert recommend(client, user_id="ann")["strategy"] == "model"


def test_full_it_refuses_events_and_all_else_goes_on(
    start_service: Callable[..., Any], redis_server: RedisServer
) -> None:
    service = start_service("--redis", redis_server.url)
    with service.client() as client, redis_server.client() as direct:
        assert add(client, 1) == 200
        direct.config_set("maxmemory", direct.info("memory")["used_memory"] // 2)
        assert add(client, 2) == 503
        for asking in (client, start_service("--redis", redis_server.url).client()):
            stored_one = recommend(asking, user_id="ann")
            assert (stored_one["strategy"], stored_one["degraded"]) == ("model", None)
            assert recommend(asking, history=["g3"])["strategy"] == "model"
            assert stored(asking) == [1]
            assert add(asking, 2) == 503
            assert asking.get("/readyz").status_code == 200
        asking.close()
        assert client.delete("/users/bob/history").status_code == 204
        direct.config_set("maxmemory", 0)
        assert add(client, 2) == 200
        assert stored(client) == [1, 2]


def test_one_that_evicts_is_refused_at_the_start_and_told_of_later(
    start_service: Callable[..., Any], refused: Callable[..., str], redis_server: RedisServer
) -> None:
    redis_server.options["maxmemory-policy"] = "allkeys-lru"
    redis_server.kill()
    service = start_service("--redis", redis_server.url, ESPALIER_PROBE_INTERVAL_S="0.1")
    redis_server.start()
    until(lambda: "would forget histories in silence" in service.log.read_text())
    message = refused("--redis", redis_server.url)
    assert "maxmemory-policy allkeys-lru" in message
    assert "CONFIG SET maxmemory-policy noeviction" in message


def test_without_a_history_it_can_refuse(
    start_service: Callable[..., Any], redis_server: RedisServer
) -> None:
    service = start_service("--redis", redis_server.url, ESPALIER_HISTORY_UNAVAILABLE="refuse")
    with service.client() as client:
        assert recommend(client, user_id="ann")["strategy"] == "popular"  # a stranger is no trouble
        redis_server.kill()
        answer = client.post("/recommend", json={"user_id": "ann"})
        assert answer.status_code == 503
        assert answer.json()["type"] == "urn:espalier:problem:history-unavailable"
        assert recommend(client, history=["g3"])["strategy"] == "model"
        batch = {"requests": [{"user_id": "ann"}, {"history": ["g3"]}]}
        answers = client.post("/recommend/batch", json=batch).json()["responses"]
        assert [entry["status"] for entry in answers] == [503, 200]
        redis_server.start()
        until(lambda: client.post("/recommend", json={"user_id": "ann"}).status_code == 200)


def test_histories_are_the_same_whichever_replica_is_asked(
    start_service: Callable[..., Any], redis_server: RedisServer
) -> None:
    first = start_service("--redis", redis_server.url)
    second = start_service("--redis", redis_server.url)
    with first.client() as one, second.client() as other:
        assert add(one, 1) == 200
        assert add(other, 0) == 200
        assert stored(one) == stored(other) == [0, 1]
        answers = [recommend(client, user_id="ann")["items"] for client in (one, other)]
        assert answers[0] == answers[1]


def test_a_prepared_data_set_is_imported_and_asked_for(
    start_service: Callable[..., Any], redis_server: RedisServer, tmp_path: Path
) -> None:
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    source.mkdir()
    pairs = [(user, step) for user in range(40) for step in range(6)]
    rows = [f"u{user},g{(user + step) % 30},{1000 * user + step}" for user, step in pairs]
    (source / "interactions.csv").write_text("\n".join(("user_id,item_id,timestamp", *rows)) + "\n")
    titles = [f"g{item},Title {item}" for item in range(30)]
    (source / "items.csv").write_text("\n".join(("item_id,title", *titles)) + "\n")

    def espalier(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "espalier", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    prepared = espalier("prepare", str(source), "--out", str(dataset), "--k-core", "0")
    assert prepared.returncode == 0, prepared.stderr
    for accepted in (240, 0):
        done = espalier("histories", "import", str(dataset), "--redis", redis_server.url, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"users": 40, "events": 240, "accepted": accepted}
    service = start_service("--redis", redis_server.url)
    with service.client() as client:
        items = client.get("/users/u7/history").json()["items"]
        assert [item["item_id"] for item in items] == ["g7", "g8", "g9", "g10", "g11", "g12"]
        assert recommend(client, user_id="u7")["strategy"] == "model"
    redis_server.kill()
    away = espalier("histories", "import", str(dataset), "--redis", redis_server.url)
    assert away.returncode == 1
    assert "goes on where this one stopped" in away.stderr
