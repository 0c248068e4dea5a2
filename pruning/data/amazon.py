"""Reads Amazon reviews: one JSON object a line, reviews in one file and products in another.

The releases up to 2018 say reviewerID, asin, unixReviewTime and overall, that of 2023 user_id,
parent_asin, timestamp (in milliseconds) and rating. Products without a title, and products that
stand twice, are normal there; they are counted instead of refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pruning.data.interactions import (
    Fields,
    Interactions,
    Progress,
    RawData,
    RawInteraction,
    collect_interactions,
    number,
)
from pruning.data.records import fault, text_lines
from recommender.catalogue import normalise_title

_UNTIL_2018 = Fields("reviewerID", "asin", "unixReviewTime", "overall")
_SINCE_2023 = Fields("user_id", "parent_asin", "timestamp", "rating")
_PRODUCT_IDS = ("parent_asin", "asin")


def holds_reviews(path: Path) -> bool:
    """Whether the first line of `path` is a review and not a product: only reviews name a user."""
    first = next(_objects(path), None)
    if first is None:
        raise fault(path, None, None, "the file is empty", "give one that has JSON lines")
    return _UNTIL_2018.user in first[1] or _SINCE_2023.user in first[1]


def read_amazon(reviews: Path, metadata: Path, progress: Progress) -> RawData:
    """Reads both files line by line; the catalogue holds the reviewed products that have a title.

    Raises:
        SourceError: a line that is no JSON object, a field that cannot be what it should, or no
            reviewed product with a title.
    """
    fields = _fields_of(reviews)
    progress(f"reading {reviews.name}")
    interactions = collect_interactions(reviews, fields, _reviews(reviews, fields), progress)
    progress(f"reading {metadata.name}")
    titles, repeated = _titles(metadata, set(interactions.item_ids))
    if not titles:
        raise fault(
            metadata,
            None,
            "title",
            f"no product that {reviews.name} names has a title here",
            "give the metadata file of the same category and release",
        )
    return _join(interactions, titles, repeated)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for row, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            problem = f"no JSON ({error})"
            raise fault(path, row, None, problem, "give one JSON object a line") from error
        if not isinstance(found, dict):
            problem = "the line is no JSON object"
            raise fault(path, row, None, problem, "give one JSON object a line")
        yield row, found


def _fields_of(reviews: Path) -> Fields:
    row, first = next(_objects(reviews))
    for fields in (_UNTIL_2018, _SINCE_2023):
        if fields.user in first:
            for name in fields:
                if name not in first:
                    remedy = f"give reviews with {', '.join(filter(None, fields))}"
                    raise fault(reviews, row, name, "missing", remedy)
            return fields
    raise fault(
        reviews,
        row,
        _SINCE_2023.user,
        "missing, and so is reviewerID",
        "give a file of reviews as the reviews' file",
    )


def _reviews(path: Path, fields: Fields) -> Iterator[RawInteraction]:
    in_milliseconds = fields == _SINCE_2023
    for row, review in _objects(path):
        time = review.get(fields.time)
        if in_milliseconds and (value := number(time)) is not None:
            time = value / 1000
        rating = review.get(fields.rating or "")
        yield RawInteraction(row, review.get(fields.user), review.get(fields.item), time, rating)


def _titles(metadata: Path, wanted: set[str]) -> tuple[dict[str, str], int]:
    """The titles of the wanted products in file order, and how many records named one again."""
    titles: dict[str, str] = {}
    repeated = 0
    for row, product in _objects(metadata):
        item = next((product[key] for key in _PRODUCT_IDS if product.get(key)), None)
        if item is None:
            problem = "missing, and so is asin"
            raise fault(metadata, row, "parent_asin", problem, "give the products' metadata file")
        title = product.get("title")
        # half a surrogate pair is legal JSON and no text
        whole = title.encode(errors="replace").decode() if isinstance(title, str) else ""
        text = normalise_title(whole)
        if not text or str(item) not in wanted:
            continue
        if str(item) in titles:
            repeated += 1
        else:
            titles[str(item)] = text
    return titles, repeated


def _join(interactions: Interactions, titles: dict[str, str], repeated: int) -> RawData:
    index = {item_id: position for position, item_id in enumerate(titles)}
    codes = np.array([index.get(item_id, -1) for item_id in interactions.item_ids], np.int32)
    items_N = codes[interactions.items_N]
    keep_N = items_N >= 0
    notes = []
    dropped = len(keep_N) - int(keep_N.sum())
    if dropped:
        untitled = int((codes < 0).sum())
        notes.append(f"{untitled} products without a title were left out, with {dropped} reviews.")
    if repeated:
        notes.append(f"{repeated} products stood again in the metadata; their first title counts.")
    assert interactions.ratings_N is not None, "both releases carry ratings"
    return RawData(
        interactions.user_ids,
        list(titles),
        list(titles.values()),
        interactions.users_N[keep_N],
        items_N[keep_N],
        interactions.timestamps_N[keep_N],
        interactions.ratings_N[keep_N],
        notes=tuple(notes),
    )
