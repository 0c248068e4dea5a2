"""Users' histories in Redis.

Every operation costs one round trip and at most `redis_timeout_s`, waiting for a connection included;
whatever goes wrong with Redis leaves here as `HistoryUnavailableError`. User ids are hashed before they
become keys: any characters are safe, and nobody who reads the keys learns who the users are.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from redis.exceptions import ClusterDownError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.errors import HistoryUnavailableError
from service.history.client import Client, Script, within
from service.history.scripts import APPEND, ARRIVAL_DIGITS, READ
from service.metrics import Metrics
from service.settings import HistorySettings

PREFIX = "espalier:1:"
T = TypeVar("T")


@dataclass(frozen=True)
class Event:
    """A user met an item.

    Attributes:
        item_id: the caller's id, whether the catalogue knows it or not.
        timestamp: Unix seconds.
        idempotence: events with the same one are stored once; None: stored each time.
    """

    item_id: str
    timestamp: float
    idempotence: str | None = None


@dataclass(frozen=True)
class StoredHistory:
    """A user's newest events, oldest first, and how many there ever were."""

    events: tuple[Event, ...]
    count: int


class HistoryStore:
    """Appends, reads and forgets. One client, whatever the number of requests."""

    def __init__(self, client: Client, settings: HistorySettings, metrics: Metrics) -> None:
        self._client = client
        self._timeout = settings.redis_timeout_s
        self._length = settings.history_length
        self._expiry = settings.history_expiry_s
        self._metrics = metrics
        self._append_script = Script(client, APPEND)
        self._read_script = Script(client, READ)

    async def append(self, user_id: str, events: Sequence[Event]) -> list[bool]:
        """Stores events. Returns for each whether it is new; False: a duplicate.

        Raises:
            HistoryUnavailableError: Redis is away, slow or full; the events may be stored or not.
        """
        arguments = append_arguments(events, self._length, self._expiry)
        keys = user_keys(user_id, "events", "ids", "count")
        accepted = await self._perform("append", self._append_script(keys, arguments))
        return [bool(flag) for flag in accepted]

    async def read(self, user_id: str) -> StoredHistory:
        """The user's history; empty for a stranger.

        Raises:
            HistoryUnavailableError: Redis is away or slow.
        """
        keys = user_keys(user_id, "events", "count")
        count, packed = await self._perform("read", self._read_script(keys))
        flat = json.loads(packed)
        events = (
            Event(member[ARRIVAL_DIGITS:], float(time))
            for member, time in zip(flat[::2], flat[1::2], strict=True)
        )
        return StoredHistory(tuple(events), count)

    async def delete(self, user_id: str) -> None:
        """Forgets the user.

        Raises:
            HistoryUnavailableError: Redis is away or slow.
        """
        keys = user_keys(user_id, "events", "ids", "count")
        # Not `delete`: of a cluster that is a pipeline, and no pipeline heeds the bound on operations.
        await self._perform("delete", self._client.execute_command("DEL", *keys))

    async def check(self) -> None:
        """Asks Redis for a sign of life, for the metric."""
        await self._perform("ping", self._client.ping())

    async def close(self) -> None:
        await self._client.aclose()

    async def _perform(self, name: str, operation: Awaitable[T]) -> T:
        """Waits for an operation as long as the limit allows, counts it, and maps what went wrong."""
        outcome = "error"
        try:
            result = await within(self._timeout, operation)
            outcome = "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except (TimeoutError, RedisTimeoutError) as error:
            outcome = "timeout"
            raise HistoryUnavailableError("the history store did not answer in time") from error
        except ClusterDownError as error:
            raise HistoryUnavailableError(f"the history store is away ({error})") from error
        except ResponseError as error:  # it is up and says no: full, for one
            outcome = "refused"
            raise HistoryUnavailableError(f"the history store refuses: {error}") from error
        except (RedisError, OSError) as error:
            raise HistoryUnavailableError(f"the history store is away ({type(error).__name__})") from error
        finally:
            self._metrics.history_operations.labels(name, outcome).inc()
            if outcome != "cancelled":  # the caller left, which says nothing about Redis
                self._metrics.redis_up.set(outcome in ("ok", "refused"))
        return result


def append_arguments(events: Sequence[Event], length: int, expiry: int) -> list[str | int]:
    """The append script's ARGV."""
    arguments: list[str | int] = [length, expiry]
    for event in events:
        idempotence = "" if event.idempotence is None else _digest(event.idempotence)
        arguments += [repr(event.timestamp), idempotence, event.item_id]
    return arguments


def idempotence_of(item_id: str, timestamp: float | None, event_id: str | None) -> str | None:
    """What makes two events one: the event id, else item and time, else nothing."""
    if event_id is not None:
        return f"event\n{event_id}"
    return None if timestamp is None else f"item\n{timestamp!r}\n{item_id}"


def user_keys(user_id: str, *names: str) -> list[str]:
    """The user's keys of these names, all under one hash tag."""
    tag = hashlib.sha256(user_id.encode()).hexdigest()
    return [f"{PREFIX}{{{tag}}}:{name}" for name in names]


def _digest(text: str) -> str:
    """16 characters of BLAKE2b: short enough to keep thousands of them a user."""
    return base64.urlsafe_b64encode(hashlib.blake2b(text.encode(), digest_size=12).digest()).decode()
