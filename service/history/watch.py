"""Watching the history store: is it there, and does it keep what it was given?

A Redis that evicts would forget histories in silence, so its `maxmemory-policy` must be `noeviction`. It is
asked for at the start, when a wrong one is refused, and each time Redis comes back, when it is an error in
the log. INFO tells it, which managed servers answer too where they forbid CONFIG.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from redis.asyncio import RedisCluster
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from recommender.errors import EspalierError
from service.errors import SettingsError
from service.history.client import Client, within
from service.history.store import HistoryStore

_TIMEOUT_SECONDS = 2.0
_KEEPS = "noeviction"
_log = logging.getLogger("espalier.history")


class StoreWatch:
    """Asks for a sign of life, for the metric, and for the policy whenever Redis has come."""

    def __init__(self, histories: HistoryStore, client: Client) -> None:
        self._histories = histories
        self._client = client
        self._up = True
        self._asked = False

    async def begin(self) -> None:
        """Looks at the store before anything is served; one that is away is looked for later.

        Raises:
            SettingsError: it is there, and cannot be served from.
        """
        try:
            problem = await self._problem()
        except (RedisError, OSError, TimeoutError) as error:
            refused = _cause(error, AuthenticationError)
            if refused is not None:
                raise SettingsError(
                    f"ESPALIER_REDIS_URL: Redis refuses user and password ({refused}); correct them there, "
                    "or in ESPALIER_REDIS_PASSWORD_FILE"
                ) from error
            refused = _cause(error, ResponseError)
            if refused is not None:
                raise SettingsError(f"ESPALIER_REDIS_URL: Redis refuses: {refused}") from error
            _log.warning("redis is away at the start (%s); it is looked for", error or "no answer in time")
            self._up = False
            return
        if problem is not None:
            raise SettingsError(f"ESPALIER_REDIS_URL: {problem}")

    async def keep_watching(self, interval_s: float) -> None:
        """Looks every `interval_s`, for ever."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.look()
            except Exception:  # one bad look must not be the last one
                _log.exception("a look at redis failed")

    async def look(self) -> None:
        """One look."""
        was_up, self._up = self._up, await self._is_up()
        if self._up != was_up:
            _log.warning("redis is %s", "back" if self._up else "away")
        if not self._up:
            self._asked = False
        elif not self._asked:
            try:
                problem = await self._problem()
            except (RedisError, OSError, TimeoutError):
                return  # gone again: the next look asks
            if problem is not None:
                _log.error("%s", problem)

    async def _is_up(self) -> bool:
        try:
            await self._histories.check()
        except EspalierError:
            return False
        return True

    async def _problem(self) -> str | None:
        """Why the store cannot be relied on; None: it can, or will not say."""
        try:
            servers = await within(_TIMEOUT_SECONDS, _ask(self._client))
        except ResponseError as error:
            _log.warning("redis does not tell its maxmemory-policy (%s): make sure it is %s", error, _KEEPS)
            self._asked = True
            return None
        self._asked = True
        for name, info in servers.items():
            problem = _problem_of(name, info, isinstance(self._client, RedisCluster))
            if problem is not None:
                return problem
        return None


async def _ask(client: Client) -> dict[str, dict[str, Any]]:
    """What each server that takes writes tells of itself, by its address."""
    if not isinstance(client, RedisCluster):
        return {"Redis": await client.info()}
    await client.initialize()
    nodes = client.get_primaries()
    answers = [await client.info(target_nodes=node) for node in nodes]
    return {node.name: answer for node, answer in zip(nodes, answers, strict=True)}


def _problem_of(name: str, info: dict[str, Any], as_cluster: bool) -> str | None:
    if info.get("cluster_enabled") and not as_cluster:
        return f"{name} is a node of a cluster; give redis+cluster://HOST:PORT, or rediss+cluster://…"
    policy = info.get("maxmemory_policy")
    if policy is None:
        _log.warning("%s does not tell its maxmemory-policy: make sure it is %s", name, _KEEPS)
    elif policy != _KEEPS:
        return (
            f"{name} has the maxmemory-policy {policy} and would forget histories in silence; set "
            f"maxmemory-policy {_KEEPS} in its configuration, or CONFIG SET maxmemory-policy {_KEEPS}"
        )
    return None


def _cause(error: BaseException, kind: type[RedisError]) -> BaseException | None:
    """The first of this kind among an error and what caused it: a cluster's client wraps them."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, kind):
        found = found.__cause__ or found.__context__
    return found
