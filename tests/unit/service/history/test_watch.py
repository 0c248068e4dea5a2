import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.history.client import Client, connect
from service.history.embedded import embedded_server
from service.history.store import HistoryStore
from service.history.watch import StoreWatch
from service.metrics import Metrics
from service.settings import HistorySettings

pytestmark = pytest.mark.valkey


def watch_on(client: Client) -> StoreWatch:
    return StoreWatch(HistoryStore(client, HistorySettings(redis_timeout_s=5), Metrics()), client)


@pytest.fixture
async def client(empty_valkey: str) -> AsyncIterator[Client]:
    client = connect(empty_valkey, timeout_s=5, connections=2)
    yield client
    await client.config_set("maxmemory-policy", "noeviction")
    await client.aclose()


async def test_a_server_that_keeps_what_it_has_is_taken_in_silence(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await watch_on(client).begin()
    assert caplog.text == ""


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_evicts_is_refused_with_the_remedy(client: Client, policy: str) -> None:
    await client.config_set("maxmemory-policy", policy)
    with pytest.raises(SettingsError, match=rf"{policy}.*CONFIG SET maxmemory-policy noeviction"):
        await watch_on(client).begin()


async def test_a_server_that_does_not_tell_is_taken_with_a_warning(
    client: Client, empty_valkey: str, caplog: pytest.LogCaptureFixture
) -> None:
    await client.acl_setuser("shy", enabled=True, nopass=True, keys=["*"], commands=["+@all", "-info"])
    shy = connect(f"{empty_valkey.replace('unix://', 'unix://shy:x@')}", timeout_s=5, connections=2)
    watch = watch_on(shy)
    await watch.begin()
    assert "does not tell its maxmemory-policy" in caplog.text
    caplog.clear()
    await watch.look()
    assert caplog.text == ""
    await shy.aclose()


async def test_a_wrong_password_is_refused(client: Client, empty_valkey: str) -> None:
    stranger = connect(empty_valkey.replace("unix://", "unix://nobody:wrong@"), timeout_s=5, connections=2)
    with pytest.raises(SettingsError, match="refuses user and password"):
        await watch_on(stranger).begin()
    await stranger.aclose()


async def test_one_that_comes_later_is_asked_then(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "late"
    client = connect(f"unix://{folder}/valkey.sock", timeout_s=5, connections=2)
    watch = watch_on(client)
    await watch.begin()
    assert "redis is away at the start" in caplog.text
    caplog.clear()
    await watch.look()
    assert caplog.text == ""
    for _ in range(2):  # it comes, is wrong, goes, and comes again as wrong
        with embedded_server(folder):
            await client.config_set("maxmemory-policy", "allkeys-lfu")
            for _ in range(3):
                await watch.look()
            assert caplog.text.count("redis is back") == 1
            errors = [record for record in caplog.records if record.levelno == logging.ERROR]
            assert [("allkeys-lfu" in record.message) for record in errors] == [True]
            caplog.clear()
        await watch.look()
        assert "redis is away" in caplog.text
        caplog.clear()
    await client.aclose()


async def test_a_bad_look_is_not_the_last_one(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watch_on(client)
    looks = asyncio.Queue[int]()

    async def look() -> None:
        looks.put_nowait(looks.qsize())
        raise AssertionError

    monkeypatch.setattr(watch, "look", look)
    watching = asyncio.create_task(watch.keep_watching(0.001))
    for _ in range(2):
        await asyncio.wait_for(looks.get(), 30)
    watching.cancel()
    await asyncio.wait({watching})
