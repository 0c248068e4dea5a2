"""Fills a store with the users of a prepared data set, so that a demo or a migration does not start cold.

Users are sent in pipelines. Events are idempotent by item and time, so importing again changes nothing;
and a note beside them says how far an import has come, so one that was killed goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from redis.exceptions import RedisError

from recommender.dataset import Dataset, UserSequence
from service.errors import HistoryUnavailableError
from service.history.client import Client
from service.history.scripts import APPEND
from service.history.store import PREFIX, Event, append_arguments, idempotence_of, user_keys
from service.settings import HistorySettings

_USERS_PER_PIPELINE = 200


@dataclass(frozen=True)
class Imported:
    """What an import did: users and events sent, and how many of these were new."""

    users: int
    events: int
    accepted: int


async def import_histories(
    dataset: Dataset, client: Client, settings: HistorySettings, progress: Callable[[int, int], None]
) -> Imported:
    """Appends every interaction of every user.

    Args:
        dataset: whose users.
        client: of the store; its time limit holds for a whole pipeline.
        settings: length and expiry of a history.
        progress: told the users done and the users in all, now and then.

    Raises:
        HistoryUnavailableError: the store is away; the same call goes on later.
    """
    users = dataset.users
    note = f"{PREFIX}import:{dataset.digest}"
    events = accepted = 0
    try:
        start = int(await client.get(note) or 0)
        for first in range(start, len(users), _USERS_PER_PIPELINE):
            progress(first, len(users))
            batch = users[first : first + _USERS_PER_PIPELINE]
            pipeline = client.pipeline(transaction=False)
            for user in batch:
                theirs = _events(dataset, user)
                arguments = append_arguments(theirs, settings.history_length, settings.history_expiry_s)
                keys = user_keys(user.user_id, "events", "ids", "count")
                pipeline.eval(
                    APPEND, len(keys), *keys, *arguments
                )  # a cluster's takes no registered script
                events += len(theirs)
            accepted += sum(sum(of_user) for of_user in await pipeline.execute())
            # Only now: the nodes of a cluster do not fail together.
            await client.set(note, first + len(batch), ex=settings.history_expiry_s)
        await client.delete(note)
    except (RedisError, OSError) as error:
        raise HistoryUnavailableError(
            f"the history store failed ({error}); the same command goes on where this one stopped"
        ) from error
    progress(len(users), len(users))
    return Imported(len(users) - start, events, accepted)


def _events(dataset: Dataset, user: UserSequence) -> list[Event]:
    item_ids = dataset.catalogue.item_ids
    return [
        Event(item_ids[item], float(timestamp), idempotence_of(item_ids[item], float(timestamp), None))
        for item, timestamp in zip(user.items, user.timestamps, strict=True)
    ]
