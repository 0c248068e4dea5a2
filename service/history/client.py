"""The one place where a Redis client is made: bounded pool, no retries, times limited.

A URL names a server (`redis://`, `rediss://` with TLS, `unix://`) or a cluster (`redis+cluster://` and
`rediss+cluster://`, with one or several of its nodes: `redis+cluster://one:6379,two:6379`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Sequence
from typing import Any, TypeAlias, TypeVar, cast
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisClusterException

from service.errors import SettingsError
from service.history.cluster import BoundedCluster

Client: TypeAlias = Redis | RedisCluster
T = TypeVar("T")

# Of the time that an operation may take. Were it all of it, whoever waits would cancel the operation before
# redis-py gave it up, and redis-py would never learn that a node of the cluster is gone.
_CLUSTER_SOCKET_SHARE = 0.8


def connect(url: str, timeout_s: float, connections: int) -> Client:
    """A client; it connects when it is first used.

    Args:
        url: what the setting `redis_url` takes, but `embedded`.
        timeout_s: what connecting, a free connection, and each read and write may take.
        connections: at most so many; of a cluster, at most so many operations at once.

    Raises:
        SettingsError: the URL is none that redis-py reads.
    """
    try:
        if urlsplit(url).scheme.endswith("+cluster"):
            return _cluster(url, timeout_s * _CLUSTER_SOCKET_SHARE, connections)
        pool = BlockingConnectionPool.from_url(
            url, max_connections=connections, timeout=timeout_s, **_limits(timeout_s)
        )
        pool.connection_class(**pool.connection_kwargs)  # it knows which options there are
    except (ValueError, TypeError, RedisClusterException) as error:
        raise SettingsError(
            f"ESPALIER_REDIS_URL: {error}; give redis://HOST:PORT, rediss://…, unix://PATH, "
            "redis+cluster://HOST:PORT,HOST:PORT or embedded"
        ) from error
    return Redis.from_pool(pool)


class Script:
    """A Lua script, sent by its digest, and whole to a server that does not know it yet.

    redis-py's own would load it into all nodes of a cluster then, which fails while one of them is away.
    """

    def __init__(self, client: Client, text: str) -> None:
        self._client = client
        self._text = text
        self._digest = hashlib.sha1(text.encode()).hexdigest()

    async def __call__(self, keys: Sequence[str], arguments: Sequence[str | int] = ()) -> Any:
        """Runs it in one round trip; all keys must share a hash tag."""
        try:
            return await self._client.evalsha(self._digest, len(keys), *keys, *arguments)
        except NoScriptError:
            return await self._client.eval(self._text, len(keys), *keys, *arguments)


async def within(timeout_s: float, operation: Awaitable[T]) -> T:
    """Waits for an operation as long as the limit allows.

    It runs in a task of its own, which is given up rather than awaited: redis-py waits inside by
    `asyncio.wait_for`, and Python 3.11's may swallow a cancellation, ours or our caller's.

    Raises:
        TimeoutError: it took longer.
    """
    task = asyncio.ensure_future(operation)
    try:
        done, _ = await asyncio.wait({task}, timeout=timeout_s)
        if not done:
            raise TimeoutError
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            task.add_done_callback(_give_up)


def _give_up(task: asyncio.Future[Any]) -> None:
    """Takes the outcome of a task that nobody waits for, so that asyncio does not complain."""
    if not task.cancelled():
        task.exception()


def _limits(timeout_s: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
        "client_name": "espalier",
    }


def _cluster(url: str, timeout_s: float, connections: int) -> RedisCluster:
    """A client of the cluster that has these nodes; the others are found through them."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    scheme = parts.scheme.removesuffix("+cluster")
    given: list[dict[str, Any]] = []
    for host in hosts.split(","):
        if not host:
            raise ValueError("a node of the cluster has no name")
        parsed = parse_url(f"{scheme}://{user}{at}{host}{parts.path}?{parts.query}")
        given.append(cast(dict[str, Any], parsed))
    nodes = [ClusterNode(options.pop("host"), options.pop("port", 6379)) for options in given]
    options = given[0]
    options["ssl"] = options.pop("connection_class", None) is SSLConnection
    return BoundedCluster(nodes, connections, **(_limits(timeout_s) | options))
