"""Bodies of `/items`."""

from __future__ import annotations

from service.schemas import Answer


class Item(Answer):
    """An item of the catalogue."""

    item_id: str
    title: str


class ItemsResponse(Answer):
    """Items whose titles match, best match first."""

    items: tuple[Item, ...]
