"""Bodies of `/recommend` and `/recommend/batch`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from recommender.catalogue import normalise_title
from service.problems import Problem
from service.schemas import WHOLE, Answer, ItemId, NullIsAbsent, Payload, UserId

MAX_K = 100
MAX_HISTORY = 1000
MAX_FILTER = 10_000
MAX_TITLE_CHARACTERS = 512
MAX_BATCH = 64


def _visible(title: str) -> str:
    normal = normalise_title(title)
    if not normal:
        raise ValueError("a title needs a visible character")
    return normal


class ItemEntry(Payload):
    """A history entry by id."""

    item_id: ItemId
    title: None = None


class TitleEntry(Payload):
    """A history entry by title: the catalogue's item of that title, else free text for the model."""

    title: Annotated[
        str, StringConstraints(min_length=1, max_length=MAX_TITLE_CHARACTERS), AfterValidator(_visible)
    ]
    item_id: None = None


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "<title>" if value.get("title") is not None else "<item>"
    return "<id>"


HistoryEntry = Annotated[
    Annotated[ItemId, Tag("<id>")]
    | Annotated[ItemEntry, Tag("<item>")]
    | Annotated[TitleEntry, Tag("<title>")],
    Discriminator(_kind),
]


class RecommendRequest(Payload):
    """Whom to recommend to, by stored history (`user_id`) or posted one, and what may come out."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["user_id"], "properties": {"user_id": {"type": "string"}}},
                {"required": ["history"], "properties": {"history": {"type": "array"}}},
            ]
        }
    )

    user_id: Annotated[UserId | None, Field(description="Whose stored history to read.")] = None
    history: Annotated[
        tuple[HistoryEntry, ...] | None,
        Field(max_length=MAX_HISTORY, description="Oldest first; stands instead of the stored history."),
    ] = None
    k: Annotated[int, Field(strict=True, ge=1, le=MAX_K), WHOLE, NullIsAbsent] = 10
    exclude_seen: Annotated[
        bool, Field(strict=True, description="Leave out every title of the whole history."), NullIsAbsent
    ] = True
    exclude: Annotated[tuple[ItemId, ...], Field(max_length=MAX_FILTER), NullIsAbsent] = ()
    candidates: Annotated[
        tuple[ItemId, ...] | None, Field(max_length=MAX_FILTER, description="Only these may come out.")
    ] = None

    @model_validator(mode="after")
    def _names_a_history(self) -> Self:
        if self.user_id is None and self.history is None:
            raise ValueError("give user_id, history, or both; history: [] is a user without one")
        return self


class RecommendedItem(Answer):
    """An item; `score` is the natural logarithm of its title's probability, null in a popular list."""

    item_id: str
    title: str
    score: float | None
    rank: Annotated[int, Field(ge=1)]


class Timings(Answer):
    """Milliseconds by stage; 0 where a stage was not needed."""

    history: float
    prompt: float
    queue: float
    prefill: float
    decode: float
    total: float


class RecommendResponse(Answer):
    """The recommendation, and how it came about."""

    user_id: str | None
    items: tuple[RecommendedItem, ...]
    model: Annotated[str, Field(description="`name@digest12` of the checkpoint.")]
    exact: Annotated[bool | None, Field(description="Whether the ranking is proven.")]
    strategy: Literal["model", "popular"]
    degraded: Literal["history_unavailable", "checkpoint_fallback"] | None
    unknown_items: Annotated[
        tuple[str, ...],
        Field(description="Ids of the history, exclude and candidates that the catalogue does not know."),
    ]
    timings_ms: Timings


class BatchRequest(Payload):
    """Several requests; each is checked and answered by itself."""

    requests: Annotated[
        tuple[Any, ...],
        Field(max_length=MAX_BATCH, description="Each as the body of `POST /recommend`."),
    ]


class BatchEntry(Answer):
    """One answer: what `POST /recommend` would have given."""

    status: int
    body: RecommendResponse | Problem


class BatchResponse(Answer):
    """The answers, in the order of the requests."""

    responses: tuple[BatchEntry, ...]
