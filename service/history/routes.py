"""`POST /users/{id}/events`, `POST /events`, `GET` and `DELETE /users/{id}/history`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Depends, Path, Request
from starlette.convertors import Convertor, register_url_convertor

from service.errors import RequestError
from service.history.schemas import (
    EventBody,
    EventsAccepted,
    EventsBody,
    HistoryItem,
    HistoryResponse,
    OneOrManyEvents,
    OneOrManyUserEvents,
    UserEventsBody,
)
from service.history.store import Event, idempotence_of
from service.problems import documented
from service.schemas import MAX_ID_CHARACTERS
from service.services import CurrentServices, Services

router = APIRouter(tags=["histories"])


class _AnyCharacters(Convertor[str]):
    """A user id in a path: any characters, slashes and line feeds too; what follows it delimits it."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("user", _AnyCharacters())


async def path_user_id(
    request: Request, user_id: Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARACTERS)]
) -> str:
    """The user id out of the path.

    Servers decode a path leniently, which would make one user of two ids that are no UTF-8.

    Raises:
        RequestError: the id is no percent-encoded UTF-8.
    """
    try:
        unquote(request.scope["raw_path"].decode("ascii"), errors="strict")
    except UnicodeDecodeError as error:
        raise RequestError("the path is no percent-encoded UTF-8", "#/path/user_id") from error
    return user_id


UserInPath = Annotated[str, Depends(path_user_id)]


@router.post("/users/{user_id:user}/events", responses=documented(401, 403, 408, 413, 415, 422, 503))
async def append_events(
    user_id: UserInPath, body: OneOrManyEvents, services: CurrentServices
) -> EventsAccepted:
    """Stores one event or several of a user; answers when they are stored."""
    events = body.events if isinstance(body, EventsBody) else (body,)
    accepted = await _append(services, user_id, events)
    return _accepted(services, user_id, events, accepted)


@router.post("/events", responses=documented(401, 403, 408, 413, 415, 422, 503))
async def append_users_events(body: OneOrManyUserEvents, services: CurrentServices) -> EventsAccepted:
    """Stores events of any users. On an error some may be stored: send all again, with ids or times."""
    events = body.events if isinstance(body, UserEventsBody) else (body,)
    by_user: dict[str, list[EventBody]] = {}
    for event in events:
        by_user.setdefault(event.user_id, []).append(event)
    accepted = 0
    for user_id, theirs in by_user.items():
        accepted += await _append(services, user_id, theirs)
    return _accepted(services, next(iter(by_user)) if len(by_user) == 1 else None, events, accepted)


@router.get("/users/{user_id:user}/history", responses=documented(401, 403, 422, 503))
async def read_history(user_id: UserInPath, services: CurrentServices) -> HistoryResponse:
    """A user's history, oldest first."""
    stored = await services.histories.read(user_id)
    async with services.models.lease() as model:
        catalogue = model.titles.catalogue
        items = []
        for event in stored.events:
            index = catalogue.index_of(event.item_id)
            title = None if index is None else catalogue.titles[index]
            items.append(HistoryItem(item_id=event.item_id, title=title, timestamp=event.timestamp))
    return HistoryResponse(user_id=user_id, items=tuple(items))


@router.delete("/users/{user_id:user}/history", status_code=204, responses=documented(401, 403, 422, 503))
async def forget_user(user_id: UserInPath, services: CurrentServices) -> None:
    """Forgets a user, whether there was one or not."""
    await services.histories.delete(user_id)


async def _append(services: Services, user_id: str, events: Sequence[EventBody]) -> int:
    """Stores events of one user. Returns how many were new."""
    now = round(time.time(), 3)
    new = await services.histories.append(
        user_id,
        [
            Event(
                event.item_id,
                now if event.timestamp is None else event.timestamp,
                idempotence_of(event.item_id, event.timestamp, event.event_id),
            )
            for event in events
        ],
    )
    return sum(new)


def _accepted(
    services: Services, user_id: str | None, events: Sequence[EventBody], accepted: int
) -> EventsAccepted:
    """The answer to events that are stored: no missing checkpoint may make it an error."""
    model = services.models.current
    unknown = None
    if model is not None:
        index_of = model.titles.catalogue.index_of
        strangers = (event.item_id for event in events if index_of(event.item_id) is None)
        unknown = tuple(dict.fromkeys(strangers))
    return EventsAccepted(
        user_id=user_id, accepted=accepted, duplicates=len(events) - accepted, unknown_items=unknown
    )
