"""The fleet in Redis: the record that all replicas follow, the one swap under way, and who is alive.

    espalier:1:{fleet}:record      the `FleetRecord`; changed only by compare-and-set on its generation
    espalier:1:{fleet}:slot        id of the swap under way; it expires unless its leader renews it
    espalier:1:{fleet}:op:<id>     the `Operation`, for a day
    espalier:1:{fleet}:replicas    hash: replica → Redis' time of its last sign of life, its `Replica`

One hash tag keeps them together in a cluster. Times are Redis' own, so replicas' clocks do not matter.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from pydantic import ValidationError
from redis.exceptions import RedisError

from recommender.errors import first_problem
from service.checkpoints.schemas import FleetRecord, Operation, Replica
from service.errors import FleetUnavailableError, SwapError
from service.history.client import Client, Script, within

LEASE_SECONDS = 30
LEASE_ENDED = "this swap's lease ended before it did; try again"
HEARTBEAT_SECONDS = 15.0
_DEAD_SECONDS = 3 * HEARTBEAT_SECONDS
_OPERATION_SECONDS = 86_400
_TIMEOUT_SECONDS = 2.0
_PREFIX = "espalier:1:{fleet}:"
T = TypeVar("T")

# KEYS: record, slot. ARGV: the generation it must have (0: none), the new record, who must hold the slot
# ("": whoever does).
_COMPARE_AND_SET = """
if ARGV[3] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[3] then return -1 end
local record = redis.call('GET', KEYS[1])
local generation = record and cjson.decode(record).generation or 0
if generation ~= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
# KEYS: slot, operation. ARGV: id, operation, seconds to keep it, lease in seconds; 0 frees the slot.
_REPORT = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
if ARGV[4] == '0' then redis.call('DEL', KEYS[1]) else redis.call('EXPIRE', KEYS[1], ARGV[4]) end
return 1
"""
# KEYS: replicas. ARGV: replica, what it tells.
_BEAT = """
redis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1] .. ' ' .. ARGV[2])
"""
# KEYS: replicas. ARGV: seconds after which one counts as dead, and is forgotten.
_ALIVE = """
local now, alive = tonumber(redis.call('TIME')[1]), {}
local all = redis.call('HGETALL', KEYS[1])
for at = 1, #all, 2 do
  if now - tonumber(string.match(all[at + 1], '^%d+')) > tonumber(ARGV[1]) then
    redis.call('HDEL', KEYS[1], all[at])
  else
    alive[#alive + 1] = all[at + 1]
  end
end
return alive
"""


class Fleet:
    """Every method is one round trip.

    Raises:
        FleetUnavailableError: Redis is away, slow or full; what was to be written may be, or not.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._compare_and_set = Script(client, _COMPARE_AND_SET)
        self._report = Script(client, _REPORT)
        self._beat = Script(client, _BEAT)
        self._alive = Script(client, _ALIVE)

    async def read(self) -> FleetRecord | None:
        """The record; None: there is none."""
        found = await self._ask(self._client.get(_PREFIX + "record"))
        try:
            return None if found is None else FleetRecord.model_validate_json(found)
        except ValidationError as error:
            detail = first_problem(error)
            raise FleetUnavailableError(
                f"{_PREFIX}record is damaged ({detail}); delete it: the replicas write it anew"
            ) from error

    async def write(self, expected: int, record: FleetRecord, operation_id: str = "") -> bool:
        """Writes the record if the one in place is of the expected generation (0: none is there).

        Args:
            expected: that generation.
            record: the one to write.
            operation_id: when given, this swap must still hold the slot.

        Raises:
            SwapError: it does not.
        """
        arguments: list[str | int] = [expected, record.model_dump_json(), operation_id]
        keys = [_PREFIX + "record", _PREFIX + "slot"]
        written = await self._ask(self._compare_and_set(keys, arguments))
        if written < 0:
            raise SwapError(LEASE_ENDED)
        return bool(written)

    async def under_way(self) -> bool:
        """Whether a swap holds the slot."""
        return bool(await self._ask(self._client.exists(_PREFIX + "slot")))

    async def begin(self, operation: Operation) -> bool:
        """Takes the slot for an operation; False: another holds it."""
        taking = self._client.set(_PREFIX + "slot", operation.operation_id, nx=True, ex=LEASE_SECONDS)
        return bool(await self._ask(taking)) and await self.report(operation)

    async def report(self, operation: Operation) -> bool:
        """Tells all how far the operation is, and renews its lease or, at the end, frees the slot.

        Returns:
            False when the slot is not the operation's any more; then nothing was told.
        """
        keys = [_PREFIX + "slot", _operation_key(operation.operation_id)]
        lease = 0 if operation.ended else LEASE_SECONDS
        content = operation.model_dump_json()
        arguments: list[str | int] = [operation.operation_id, content, _OPERATION_SECONDS, lease]
        return bool(await self._ask(self._report(keys, arguments)))

    async def operation(self, operation_id: str) -> Operation | None:
        """What is known of an operation, whichever replica leads it; None: nothing."""
        keys = (_operation_key(operation_id), _PREFIX + "slot")
        content, holder = await self._ask(self._client.mget(keys))
        if content is None:
            return None
        operation = Operation.model_validate_json(content)
        if operation.ended or (holder is not None and _text(holder) == operation_id):
            return operation
        reason = f"the replica that led it was gone at the step {operation.step}"
        return operation.model_copy(update={"step": "failed", "reason": reason})

    async def beat(self, replica: Replica) -> None:
        """Tells that this replica lives, and what it serves."""
        content = replica.model_dump_json(exclude={"seen"})
        await self._ask(self._beat([_PREFIX + "replicas"], [replica.replica, content]))

    async def replicas(self) -> tuple[Replica, ...]:
        """Those that live, in the order of their names."""
        found = await self._ask(self._alive([_PREFIX + "replicas"], [int(_DEAD_SECONDS)]))
        replicas = []
        for entry in found:
            seen, _, content = _text(entry).partition(" ")
            told = Replica.model_validate_json(content[:-1] + f', "seen": {seen}}}')
            replicas.append(told)
        return tuple(sorted(replicas, key=lambda replica: replica.replica))

    async def leave(self, replica: str) -> None:
        """Tells that this replica ends."""
        await self._ask(self._client.hdel(_PREFIX + "replicas", replica))

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, question: Awaitable[T]) -> T:
        try:
            return await within(_TIMEOUT_SECONDS, question)
        except TimeoutError as error:
            raise FleetUnavailableError("the fleet's record did not answer in time; try again") from error
        except (RedisError, OSError) as error:
            kind = type(error).__name__
            raise FleetUnavailableError(f"the fleet's record is away ({kind}); try again") from error


def _operation_key(operation_id: str) -> str:
    return f"{_PREFIX}op:{operation_id}"


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
