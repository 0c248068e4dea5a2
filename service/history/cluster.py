"""redis-py's cluster client, made fit for a limit of 50 ms an operation.

As it comes it looks for the cluster's nodes within whatever operation is next, which takes longer than such
an operation may, so that a service under a short limit would never find them; and it raises an error rather
than wait when its connections are all taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from redis._parsers import AsyncCommandsParser
from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisClusterException

_REFRESH_SECONDS = 1.0
_EVERY_ARGUMENT_IS_A_KEY = frozenset({"DEL", "EXISTS", "MGET"})


class BoundedCluster(RedisCluster):
    """At most `connections` operations at once, the others wait; nodes are looked for in the background.

    A slot that moved is followed at once (MOVED, ASK). A node that does not answer costs the operations
    that need it, and makes the client look at the cluster anew, once a second at most; meanwhile
    operations that need other nodes go on.
    """

    def __init__(self, nodes: Sequence[ClusterNode], connections: int, **options: Any) -> None:
        super().__init__(
            startup_nodes=list(nodes),
            max_connections=connections + 1,  # of a node; looking for nodes needs one too
            # Never look for nodes because of a moved slot: that would cut other operations' connections.
            reinitialize_steps=0,
            **options,
        )
        self.commands_parser = _KeysOfOurCommands()
        self._places = asyncio.Semaphore(connections)
        self._refresh: asyncio.Task[RedisCluster] | None = None
        self._refreshed_at = float("-inf")

    async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        async with self._places:
            try:
                return await super().execute_command(*args, **kwargs)
            except RedisClusterException as error:  # it is no RedisError, as all else is
                raise RedisConnectionError(str(error)) from error

    async def initialize(self, *args: Any, **kwargs: Any) -> RedisCluster:
        """Looks for the nodes; redis-py calls it before an operation when it has lost trust in its map.

        Whoever calls may be cancelled, the search goes on. Once there is a map nobody waits for a new one.

        Raises:
            redis.ConnectionError: there is no map, and none was found a moment ago.
        """
        now = asyncio.get_running_loop().time()
        known = self.nodes_manager.default_node is not None
        if self._refresh is None or self._refresh.done():
            if now - self._refreshed_at < _REFRESH_SECONDS:
                if known:
                    return self
                raise RedisConnectionError("the cluster could not be reached a moment ago")
            self._refreshed_at = now
            self._refresh = asyncio.create_task(super().initialize(*args, **kwargs))
            self._refresh.add_done_callback(_look_at_outcome)
        if not known:
            try:
                await asyncio.shield(self._refresh)
            except RedisClusterException as error:
                raise RedisConnectionError(str(error)) from error
        return self

    async def aclose(self) -> None:
        if self._refresh is not None:  # it ends soon: the nodes answer in time or are given up
            await asyncio.wait({self._refresh})
        await super().aclose()
        # Without trust in its map, redis-py believes that it has no connections, and leaves them open.
        for nodes in ("nodes_cache", "startup_nodes"):
            await self.nodes_manager.aclose(nodes)


class _KeysOfOurCommands(AsyncCommandsParser):
    """Which arguments of a command are keys, for the few commands used here beside scripts.

    redis-py would ask the server about all of its 250 commands, and spend 50 ms on reading the answer.
    """

    async def initialize(self, node: ClusterNode | None = None) -> None:
        pass

    async def get_keys(self, *args: Any) -> tuple[str, ...] | None:
        command, *rest = args
        return tuple(rest) if command in _EVERY_ARGUMENT_IS_A_KEY else tuple(rest[:1])


def _look_at_outcome(refresh: asyncio.Task[RedisCluster]) -> None:
    """Whoever needs the nodes raises what went wrong; nobody may, and asyncio would complain."""
    if not refresh.cancelled():
        refresh.exception()
