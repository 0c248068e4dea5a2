import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis, RedisCluster

from service.errors import SettingsError
from service.history.client import Client, Script, connect, within


@pytest.fixture
async def client(empty_valkey: str) -> AsyncIterator[Client]:
    client = connect(empty_valkey, timeout_s=5, connections=2)
    yield client
    await client.aclose()


async def options_of(url: str) -> dict[str, Any]:
    client = connect(url, timeout_s=1, connections=3)
    if isinstance(client, RedisCluster):
        options: dict[str, Any] = client.get_connection_kwargs()
        nodes = [(node.host, node.port) for node in client.startup_nodes]
        return {**options, "nodes": nodes}
    assert isinstance(client, Redis)
    return dict(client.connection_pool.connection_kwargs)


async def test_what_a_url_says_is_heeded() -> None:
    single = await options_of("rediss://ann:p%40ss@there:7/3")
    assert (single["host"], single["port"], single["db"]) == ("there", 7, 3)
    assert (single["username"], single["password"]) == ("ann", "p@ss")
    cluster = await options_of("rediss+cluster://ann:p%40ss@there:7,there.too?ssl_ca_certs=/ca.pem")
    assert cluster["nodes"] == [("there", 7), ("there.too", 6379)]
    assert (cluster["username"], cluster["password"]) == ("ann", "p@ss")
    assert cluster["ssl_ca_certs"] == "/ca.pem"
    assert "ssl_ca_certs" not in await options_of("redis+cluster://there")


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://there",
        "http+cluster://there",
        "redis+cluster://",
        "redis+cluster://a,,b",
        "redis+cluster://a:1/3",
        "redis+cluster://a:port",
        "redis://there?colour=red",
    ],
)
async def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match=r"^ESPALIER_REDIS_URL: .*redis\+cluster://"):
        connect(url, timeout_s=1, connections=1)


@pytest.mark.valkey
async def test_a_script_is_sent_whole_only_to_a_server_that_does_not_know_it(client: Client) -> None:
    text = "return {KEYS[1], ARGV[1]}"
    script = Script(client, text)
    digest = hashlib.sha1(text.encode()).hexdigest()
    await client.script_flush()
    for _ in range(2):
        assert await script(["key"], ["argument"]) == [b"key", b"argument"]
        assert await client.script_exists(digest) == [True]


async def test_what_takes_too_long_is_given_up() -> None:
    ended = asyncio.Event()

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        await within(0.01, slow())
    await asyncio.wait_for(ended.wait(), 30)
