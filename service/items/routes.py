"""`GET /items`: finds items by title."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from service.items.schemas import Item, ItemsResponse
from service.problems import documented
from service.services import CurrentServices

MAX_LIMIT = 100
MAX_QUERY_CHARACTERS = 512

router = APIRouter(tags=["items"])


@router.get("/items", responses=documented(401, 403, 422, 503))
async def find_items(
    services: CurrentServices,
    query: Annotated[str, Query(max_length=MAX_QUERY_CHARACTERS)] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_LIMIT)] = 10,
) -> ItemsResponse:
    """Items whose title contains the query; the most popular ones when it is empty."""
    async with services.models.lease() as model:
        catalogue = model.titles.catalogue
        # It looks at every title, and recommendations are not to wait for it.
        found = await asyncio.to_thread(catalogue.search, query, limit)
        return ItemsResponse(
            items=tuple(
                Item(item_id=catalogue.item_ids[index], title=catalogue.titles[index]) for index in found
            )
        )
