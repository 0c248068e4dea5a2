import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from service.errors import HistoryUnavailableError
from service.history.client import connect
from service.history.store import Event, HistoryStore, idempotence_of, user_keys
from service.metrics import Metrics
from service.settings import HistorySettings

pytestmark = pytest.mark.valkey


@pytest.fixture
async def client(empty_valkey: str) -> AsyncIterator[Redis]:
    client = connect(empty_valkey, timeout_s=5, connections=4)
    yield client
    await client.aclose()


@pytest.fixture
def store(client: Redis) -> HistoryStore:
    settings = HistorySettings(redis_timeout_s=5, history_length=5, history_expiry_s=1000)
    return HistoryStore(client, settings, Metrics())


def event(item: str, time: float, event_id: str | None = None) -> Event:
    return Event(item, time, idempotence_of(item, time, event_id))


async def items(store: HistoryStore, user: str = "ann") -> list[str]:
    return [stored.item_id for stored in (await store.read(user)).events]


async def test_a_stranger_has_no_history(store: HistoryStore) -> None:
    stored = await store.read("nobody")
    assert (stored.events, stored.count) == ((), 0)


async def test_events_come_back_with_their_times(store: HistoryStore) -> None:
    assert await store.append("ann", [event("a", 1.25), event("b", 1_700_000_000.123)]) == [True, True]
    stored = await store.read("ann")
    assert [(e.item_id, e.timestamp) for e in stored.events] == [("a", 1.25), ("b", 1_700_000_000.123)]
    assert stored.count == 2


async def test_late_events_land_in_time_order(store: HistoryStore) -> None:
    for item, time in (("c", 3), ("a", 1), ("b", 2)):
        await store.append("ann", [event(item, time)])
    assert await items(store) == ["a", "b", "c"]


async def test_equal_times_stand_in_order_of_arrival(store: HistoryStore) -> None:
    await store.append("ann", [event("z", 5), event("a", 5)])
    await store.append("ann", [event("m", 5)])
    assert await items(store) == ["z", "a", "m"]


async def test_the_same_event_id_is_stored_once_whatever_else_it_says(store: HistoryStore) -> None:
    assert await store.append("ann", [event("a", 1, "e1"), event("b", 2, "e1")]) == [True, False]
    assert await store.append("ann", [event("a", 9, "e1")]) == [False]
    assert await items(store) == ["a"]
    assert (await store.read("ann")).count == 1


async def test_without_an_id_item_and_time_make_an_event(store: HistoryStore) -> None:
    new = await store.append("ann", [event("a", 1), event("a", 1), event("a", 2), event("b", 1)])
    assert new == [True, False, True, True]


async def test_an_event_without_identity_is_stored_each_time(store: HistoryStore) -> None:
    assert await store.append("ann", [Event("a", 1.0), Event("a", 1.0)]) == [True, True]
    assert await items(store) == ["a", "a"]


async def test_an_event_id_is_the_users_own(store: HistoryStore) -> None:
    assert await store.append("ann", [event("a", 1, "e1")]) == [True]
    assert await store.append("bob", [event("a", 1, "e1")]) == [True]


async def test_a_history_keeps_its_newest_and_counts_them_all(store: HistoryStore) -> None:
    await store.append("ann", [event(f"i{time}", time) for time in range(8)])
    stored = await store.read("ann")
    assert [e.item_id for e in stored.events] == ["i3", "i4", "i5", "i6", "i7"]
    assert stored.count == 8


async def test_a_shorter_length_shortens_what_was_longer(store: HistoryStore, client: Redis) -> None:
    await store.append("ann", [event(f"g{time}", time) for time in range(5)])
    settings = HistorySettings(redis_timeout_s=5, history_length=2, history_expiry_s=1000)
    shorter = HistoryStore(client, settings, Metrics())
    await shorter.append("ann", [event("new", 9.0)])
    assert await items(shorter) == ["g4", "new"]
    assert await client.zcard(user_keys("ann", "events")[0]) == 2


async def test_sending_old_events_again_changes_nothing(store: HistoryStore) -> None:
    events = [event(f"i{time}", time) for time in range(30)]
    await store.append("ann", events)
    before = await store.read("ann")
    await store.append("ann", events)
    assert await store.read("ann") == before


async def test_what_idempotence_remembers_is_bounded(store: HistoryStore, client: Redis) -> None:
    await store.append("ann", [event(f"i{time}", time) for time in range(100)])
    assert await client.zcard(user_keys("ann", "ids")[0]) == 10


async def test_every_key_expires_and_a_new_event_puts_it_off(store: HistoryStore, client: Redis) -> None:
    keys = user_keys("ann", "events", "ids", "count")
    await store.append("ann", [event("a", 1)])
    for key in keys:
        await client.expire(key, 10)
    await store.append("ann", [event("b", 2)])
    assert all([900 < await client.ttl(key) <= 1000 for key in keys])


async def test_forgetting_leaves_nothing(store: HistoryStore, client: Redis) -> None:
    await store.append("ann", [event("a", 1)])
    await store.delete("ann")
    assert await client.keys() == []
    await store.delete("ann")
    assert await store.append("ann", [event("a", 1)]) == [True]


@pytest.mark.parametrize("user", ["", "a b", "{tag}", "ü\n\0:*?[", "x" * 256, "😀"])
@pytest.mark.parametrize("item", ["a:b", 'q"uote\\', "ü😀\n\0\x7f", "0" * 20])
async def test_any_characters_are_safe(store: HistoryStore, client: Redis, user: str, item: str) -> None:
    await store.append(user, [event(item, 1)])
    assert await items(store, user) == [item]
    (tag,) = {key.decode().split(":")[2] for key in await client.keys()}
    assert tag[0] + tag[-1] == "{}"  # one hash tag, so that a cluster keeps the keys together
    assert len(tag) == 66


async def test_an_operation_is_one_round_trip(store: HistoryStore, client: Redis) -> None:
    await store.append("ann", [event("a", 1)])
    await store.read("ann")
    await client.config_resetstat()
    await store.append("ann", [event("b", 2), event("c", 3)])
    await store.read("ann")
    assert (await client.info("commandstats"))["cmdstat_evalsha"]["calls"] == 2
    assert (await client.info("stats"))["total_commands_processed"] < 40  # those inside the scripts count


async def test_scripts_are_loaded_again_when_the_server_forgot_them(
    store: HistoryStore, client: Redis
) -> None:
    await store.append("ann", [event("a", 1)])
    await client.script_flush()
    assert await items(store) == ["a"]


async def test_a_full_server_refuses_events_and_goes_on_reading(store: HistoryStore, client: Redis) -> None:
    await store.append("ann", [event("a", 1)])
    await client.config_set("maxmemory", 1)
    try:
        with pytest.raises(HistoryUnavailableError, match="refuses"):
            await store.append("ann", [event("b", 2)])
        assert await items(store) == ["a"]
    finally:
        await client.config_set("maxmemory", 0)


async def test_a_slow_server_costs_no_more_than_the_limit(client: Redis) -> None:
    metrics = Metrics()
    settings = HistorySettings(redis_timeout_s=0.05, history_length=5)
    store = HistoryStore(client, settings, metrics)
    await store.append("ann", [event("a", 1)])
    await client.execute_command("CLIENT", "PAUSE", 400, "ALL")
    with pytest.raises(HistoryUnavailableError, match="in time"):
        await store.read("ann")
    assert metrics.registry.get_sample_value("espalier_redis_up") == 0
    labels = {"operation": "read", "outcome": "timeout"}
    assert metrics.registry.get_sample_value("espalier_history_operations_total", labels) == 1
    await asyncio.sleep(0.5)
    assert await items(store) == ["a"]
    assert metrics.registry.get_sample_value("espalier_redis_up") == 1


async def test_nobody_there_is_unavailable(tmp_path: object) -> None:
    client = connect(f"unix://{tmp_path}/nobody.sock", timeout_s=1, connections=1)
    store = HistoryStore(client, HistorySettings(), Metrics())
    with pytest.raises(HistoryUnavailableError, match="away"):
        await store.read("ann")


async def test_a_cancellation_is_never_swallowed(empty_valkey: str) -> None:
    """Python 3.11's `wait_for`, on which redis-py stands, loses one now and then."""
    store = HistoryStore(connect(empty_valkey, 5, 4), HistorySettings(redis_timeout_s=5), Metrics())

    async def keep_checking() -> None:
        while True:
            await store.check()

    for ticks in range(120):
        task = asyncio.create_task(keep_checking())
        for _ in range(ticks % 40):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=30)
        assert task.cancelled()
    await store.close()


async def test_a_caller_who_leaves_says_nothing_about_redis(client: Redis) -> None:
    metrics = Metrics()
    store = HistoryStore(client, HistorySettings(redis_timeout_s=5), metrics)
    await store.check()
    task = asyncio.create_task(store.read("ann"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert metrics.registry.get_sample_value("espalier_redis_up") == 1
    assert await items(store) == []
