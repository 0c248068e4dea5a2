"""A real cluster of three nodes: slots that move, nodes that pause and die, limits that hold."""

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis_servers import RedisCluster, RedisServer, until

from service.checkpoints.fleet import Fleet
from service.checkpoints.schemas import CheckpointRef, FleetRecord, Operation, Replica
from service.errors import HistoryUnavailableError, SettingsError
from service.history.client import Client, connect
from service.history.cluster import BoundedCluster
from service.history.store import Event, HistoryStore, idempotence_of, user_keys
from service.history.watch import StoreWatch
from service.metrics import Metrics
from service.settings import HistorySettings

pytestmark = pytest.mark.redis
USERS = [f"user {number}" for number in range(30)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    cluster = RedisCluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.join()
        yield cluster
    finally:
        cluster.end()


@pytest.fixture
def empty_cluster(cluster: RedisCluster) -> RedisCluster:
    for node in cluster.nodes:
        cluster.ask(node, "FLUSHALL")
        cluster.ask(node, "CONFIG", "RESETSTAT")
    return cluster


@pytest.fixture
async def client(empty_cluster: RedisCluster) -> AsyncIterator[Client]:
    client = connect(empty_cluster.url, timeout_s=5, connections=4)
    yield client
    await client.aclose()


def store_on(client: Client, limit_s: float = 5) -> HistoryStore:
    return HistoryStore(client, HistorySettings(redis_timeout_s=limit_s), Metrics())


def event(item: str, time: float) -> Event:
    return Event(item, time, idempotence_of(item, time, None))


async def items(store: HistoryStore, user: str) -> list[str]:
    return [stored.item_id for stored in (await store.read(user)).events]


async def test_histories_of_all_nodes(client: Client, empty_cluster: RedisCluster) -> None:
    store = store_on(client)
    for user in USERS:
        assert await store.append(user, [event("b", 2), event("a", 1)]) == [True, True]
        assert await store.append(user, [event("a", 1)]) == [False]
    for user in USERS:
        assert await items(store, user) == ["a", "b"]
    assert all(empty_cluster.ask(node, "DBSIZE") > 0 for node in empty_cluster.nodes)
    await store.check()
    await store.delete(USERS[0])
    assert await items(store, USERS[0]) == []


async def test_the_fleet_record(client: Client) -> None:
    fleet = Fleet(client)
    ref = CheckpointRef(name="tiny", digest="1" * 64)
    record = FleetRecord(generation=1, wanted=ref)
    assert await fleet.read() is None
    assert await fleet.write(0, record)
    assert not await fleet.write(0, record)
    assert await fleet.read() == record
    operation = Operation(
        operation_id="o", action="activate", checkpoint=ref, step="verifying", generation=1
    )
    assert await fleet.begin(operation)
    assert not await fleet.begin(operation)
    assert await fleet.under_way()
    assert await fleet.operation("o") == operation
    await fleet.beat(Replica(replica="one", generation=1, serving=ref, seen=0))
    assert [replica.replica for replica in await fleet.replicas()] == ["one"]
    await fleet.leave("one")
    assert await fleet.replicas() == ()


async def test_a_data_set_is_imported_to_all_nodes(
    client: Client, empty_cluster: RedisCluster, tmp_path: Path
) -> None:
    source, dataset = tmp_path / "source", tmp_path / "dataset"
    source.mkdir()
    rows = [f"{user},g{step},{step}" for user in USERS for step in range(1, 5)]
    (source / "interactions.csv").write_text("\n".join(("user_id,item_id,timestamp", *rows)) + "\n")
    titles = [f"g{item},Title {item}" for item in range(1, 5)]
    (source / "items.csv").write_text("\n".join(("item_id,title", *titles)) + "\n")
    for command in (
        ("prepare", str(source), "--out", str(dataset), "--k-core", "0"),
        ("histories", "import", str(dataset), "--redis", empty_cluster.url),
    ):
        started = [sys.executable, "-m", "espalier", *command]
        await asyncio.to_thread(subprocess.run, started, check=True, capture_output=True, timeout=120)
    store = store_on(client)
    for user in USERS:
        assert await items(store, user) == ["g1", "g2", "g3", "g4"]


async def test_a_slot_that_moved_is_followed(client: Client, empty_cluster: RedisCluster) -> None:
    store = store_on(client)
    for user in USERS:
        await store.append(user, [event("a", 1)])
    key = user_keys(USERS[0], "events")[0]
    source = empty_cluster.owner(key)
    to = next(node for node in empty_cluster.nodes if node is not source)
    empty_cluster.move_slot(key, source, to)
    assert await store.append(USERS[0], [event("b", 2)]) == [True]
    for user in USERS:
        assert await items(store, user) == (["a", "b"] if user == USERS[0] else ["a"])
    empty_cluster.move_slot(key, to, source)


async def test_whoever_gives_up_does_not_end_the_search_for_nodes(client: Client) -> None:
    """It takes longer than an operation may: begun anew by each, it would never end."""
    assert isinstance(client, BoundedCluster)
    impatient = asyncio.create_task(store_on(client).read("ann"))
    while not any(node._connections for node in client.startup_nodes):  # the search begins
        await asyncio.sleep(0)
    impatient.cancel()
    async with asyncio.timeout(30):
        while len(client.get_primaries()) < 3:
            await asyncio.sleep(0.001)


async def test_more_operations_than_connections_wait(client: Client, empty_cluster: RedisCluster) -> None:
    store = store_on(client)
    counts = await asyncio.gather(*(store.append(user, [event("a", 1)]) for user in USERS * 4))
    assert sum(flag for flags in counts for flag in flags) == len(USERS)
    for node in empty_cluster.nodes:
        listed = empty_cluster.ask(node, "CLIENT", "LIST").splitlines()
        assert 1 <= sum(b"name=espalier" in line for line in listed) <= 5


async def test_a_paused_node_costs_its_own_users_only(client: Client, empty_cluster: RedisCluster) -> None:
    store = store_on(connect(empty_cluster.url, timeout_s=0.3, connections=4), limit_s=0.3)
    for user in USERS:
        await store_on(client).append(user, [event("a", 1)])
        await store.read(user)
    paused = empty_cluster.nodes[0]
    theirs = {user for user in USERS if empty_cluster.owner(user_keys(user, "events")[0]) is paused}
    assert 0 < len(theirs) < len(USERS)
    paused.process.send_signal(signal.SIGSTOP)
    try:
        for user in USERS:
            if user in theirs:
                with pytest.raises(HistoryUnavailableError):
                    await store.read(user)
            else:
                assert await items(store, user) == ["a"]
    finally:
        paused.process.send_signal(signal.SIGCONT)
    for user in USERS:
        async with asyncio.timeout(30):
            while True:
                try:
                    assert await items(store, user) == ["a"]
                    break
                except HistoryUnavailableError:
                    await asyncio.sleep(0.05)
    await store.close()


async def test_a_node_that_evicts_is_refused(client: Client, empty_cluster: RedisCluster) -> None:
    watch = StoreWatch(store_on(client), client)
    await watch.begin()
    wrong = empty_cluster.nodes[1]
    empty_cluster.ask(wrong, "CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    try:
        with pytest.raises(SettingsError, match=rf":{wrong.port} has the maxmemory-policy volatile-lru"):
            await watch.begin()
    finally:
        empty_cluster.ask(wrong, "CONFIG", "SET", "maxmemory-policy", "noeviction")


async def test_nobody_there_is_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    client = connect("redis+cluster://127.0.0.1:1,127.0.0.1:2", timeout_s=1, connections=1)
    store = store_on(client)
    with caplog.at_level(logging.WARNING):
        await StoreWatch(store, client).begin()
    assert "redis is away at the start" in caplog.text
    for _ in range(2):  # the second is told at once: the nodes were looked for a moment ago
        with pytest.raises(HistoryUnavailableError, match="away"):
            await store.read("ann")
    await store.close()


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
def test_the_wrong_kind_of_url_is_refused(
    refused: Callable[..., str], cluster: RedisCluster, redis_server: RedisServer, scheme: str
) -> None:
    port = redis_server.port if scheme == "redis+cluster" else cluster.nodes[0].port
    message = refused("--redis", f"{scheme}://127.0.0.1:{port}")
    expected = "cluster support disabled" if scheme == "redis+cluster" else "give redis+cluster://"
    assert expected in message


def test_the_service_on_a_cluster_that_loses_a_node(
    start_service: Any, empty_cluster: RedisCluster, two_artifacts: Path
) -> None:
    service = start_service(
        "--redis", empty_cluster.url, artifacts=two_artifacts, ESPALIER_CHECKPOINT="tiny"
    )

    def recommend(client: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
        response = client.post("/recommend", json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def post(client: httpx.Client, user: str, at: int) -> int:
        body = {"item_id": f"g{at}", "timestamp": at}
        return client.post(f"/users/{user}/events", json=body).status_code

    with service.client() as client:
        assert [post(client, user, 1) for user in USERS] == [200] * len(USERS)
        lost = empty_cluster.nodes[2]
        lost.kill()
        statuses = {user: post(client, user, 2) for user in USERS}
        theirs = {user for user in USERS if empty_cluster.owner(user_keys(user, "events")[0]) is lost}
        assert {user for user, status in statuses.items() if status == 503} == theirs
        for user in USERS:
            degraded = recommend(client, {"user_id": user})["degraded"]
            assert degraded == ("history_unavailable" if user in theirs else None)
        assert recommend(client, {"history": ["g1"]})["strategy"] == "model"
        assert client.get("/readyz").status_code == 200
        lost.start()
        for user in theirs:
            until(lambda user=user: post(client, user, 2) == 200)
        for user in USERS:
            stored = client.get(f"/users/{user}/history").json()["items"]
            assert [item["timestamp"] for item in stored] == [1, 2]
    assert service.end() == 0
