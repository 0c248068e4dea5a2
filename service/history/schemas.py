"""Bodies of the event and history calls."""

from __future__ import annotations

import time
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, StringConstraints, Tag

from service.schemas import MAX_ID_CHARACTERS, Answer, ItemId, Payload, Timestamp, UserId

MAX_EVENTS = 1000
_DAY = 86_400


def _not_ahead(timestamp: float) -> float:
    if timestamp > time.time() + _DAY:
        raise ValueError("more than a day ahead; give Unix seconds, not milliseconds")
    return timestamp


class EventBody(Payload):
    """A user met an item."""

    item_id: ItemId
    timestamp: Annotated[
        Annotated[Timestamp, AfterValidator(_not_ahead)] | None, Field(description="Now, if absent.")
    ] = None
    event_id: Annotated[
        Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID_CHARACTERS)] | None,
        Field(description="Events of a user with the same one are stored once."),
    ] = None


class EventsBody(Payload):
    """Several events of one user."""

    events: Annotated[tuple[EventBody, ...], Field(max_length=MAX_EVENTS)]


class UserEventBody(EventBody):
    """An event that says whose it is."""

    user_id: UserId


class UserEventsBody(Payload):
    """Several events, of any users."""

    events: Annotated[tuple[UserEventBody, ...], Field(max_length=MAX_EVENTS)]


def _shape(value: Any) -> str:
    if isinstance(value, dict):
        return "<many>" if value.get("events") is not None else "<one>"
    return "<many>" if isinstance(value, EventsBody | UserEventsBody) else "<one>"


OneOrManyEvents = Annotated[
    Annotated[EventBody, Tag("<one>")] | Annotated[EventsBody, Tag("<many>")], Discriminator(_shape)
]
OneOrManyUserEvents = Annotated[
    Annotated[UserEventBody, Tag("<one>")] | Annotated[UserEventsBody, Tag("<many>")],
    Discriminator(_shape),
]


class EventsAccepted(Answer):
    """What became of the events; they are stored when this is sent."""

    user_id: Annotated[str | None, Field(description="The user; null when the events are of several.")]
    accepted: int
    duplicates: int
    unknown_items: Annotated[
        tuple[str, ...] | None,
        Field(
            description="Ids that the catalogue does not know; stored all the same. Null while no "
            "checkpoint is loaded: nobody can tell then."
        ),
    ]


class HistoryItem(Answer):
    """A stored event; `title` is null when the catalogue does not know the item."""

    item_id: str
    title: str | None
    timestamp: Timestamp


class HistoryResponse(Answer):
    """A user's history, oldest first; empty for a stranger."""

    user_id: str
    items: tuple[HistoryItem, ...]
