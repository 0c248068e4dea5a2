"""What every source is read into: checked interactions and titled items, as columns.

Users and items become numbers as the records stream by, so a few million interactions take some
20 bytes each. Here stand the rules that hold for every format: what a time, a rating, an id and a
title must be.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pruning.data.records import Table, fault, shown
from pruning.errors import SourceError
from recommender.catalogue import normalise_title

Progress = Callable[[str], None]

_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?([eE][+-]?\d+)?\s*", re.ASCII)
_LATEST_SECONDS = 100_000_000_000  # the year 5138: whatever is later counts milliseconds
_DIGITS = 20  # fewer than this are read as they are, exactly and fast
_REPORT_EVERY = 1_000_000


class Fields(NamedTuple):
    """The columns of an interaction as the source calls them; `rating` is None when it has none."""

    user: str
    item: str
    time: str
    rating: str | None


class RawInteraction(NamedTuple):
    """One record as it stands in the source, beside its row."""

    row: int
    user: Any
    item: Any
    time: Any
    rating: Any


@dataclass(frozen=True)
class Interactions:
    """Checked interactions in file order; N of them, users and items numbered as they appear.

    Attributes:
        path: the file they came from.
        item_column: what that file calls an item.
        user_ids: position u is the id of user u.
        item_ids: position i is the id of item i.
        item_rows: the row in which item i first stands.
        users_N: int32.
        items_N: int32.
        timestamps_N: int64, Unix seconds.
        ratings_N: float64, or None when the source has no ratings.
    """

    path: Path
    item_column: str
    user_ids: list[str]
    item_ids: list[str]
    item_rows: list[int]
    users_N: npt.NDArray[np.int32]
    items_N: npt.NDArray[np.int32]
    timestamps_N: npt.NDArray[np.int64]
    ratings_N: npt.NDArray[np.float64] | None


@dataclass(frozen=True)
class Items:
    """Items in file order: `titles` by id, normalised; `untitled` are the rows of those without."""

    path: Path
    titles: dict[str, str]
    untitled: dict[str, int]


@dataclass(frozen=True)
class RawData:
    """A source, read and checked: items are indices into `item_ids`, users into `user_ids`.

    `splits_N` is None unless the source says itself which split each interaction is a target in:
    int8, an index into `recommender.dataset.SPLITS`, or -1 for none.
    """

    user_ids: list[str]
    item_ids: list[str]
    titles: list[str]
    users_N: npt.NDArray[np.int32]
    items_N: npt.NDArray[np.int32]
    timestamps_N: npt.NDArray[np.int64]
    ratings_N: npt.NDArray[np.float64] | None = None
    splits_N: npt.NDArray[np.int8] | None = None
    notes: tuple[str, ...] = ()


def number(value: object) -> float | None:
    """A finite number out of a text or a number; None for anything else, NaN included."""
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond every float
        return None


def seconds(path: Path, row: int, column: str, value: object) -> int:
    """Unix seconds out of a field; fractions are cut off.

    Raises:
        SourceError: no number, negative, or so large that it must count milliseconds.
    """
    if isinstance(value, str) and len(value) < _DIGITS and value.isascii() and value.isdecimal():
        parsed: float | None = int(value)
    else:
        parsed = number(value)
    remedy = "give Unix seconds, such as 1443657600"
    if parsed is None:
        raise fault(path, row, column, f"{shown(value)} is no time", remedy)
    if parsed < 0:
        raise fault(path, row, column, f"{shown(value)} is negative", remedy)
    if parsed > _LATEST_SECONDS:
        problem = f"{shown(value)} is too late for Unix seconds and looks like milliseconds"
        raise fault(path, row, column, problem, "divide the times by 1,000")
    return int(parsed)


def identifier(path: Path, row: int, column: str, value: object) -> str:
    """An id out of a field: a text that is not empty, or a whole number.

    Raises:
        SourceError: empty, or of another type.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        problem = "the id is empty" if value in ("", None) else f"{shown(value)} is no id"
        raise fault(path, row, column, problem, "give a text or a whole number")
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise fault(path, row, column, f"{shown(value)} is no Unicode text", "write it as UTF-8")
    return value


def collect_interactions(
    path: Path, fields: Fields, rows: Iterable[RawInteraction], progress: Progress
) -> Interactions:
    """Checks and numbers a stream of interactions.

    Raises:
        SourceError: an id, time or rating that cannot be one, or no row at all.
    """
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    item_rows: list[int] = []
    user_codes, item_codes, times, ratings = array("i"), array("i"), array("q"), array("d")
    for row, user, item, time, rating in rows:
        user_id = identifier(path, row, fields.user, user)
        item_id = identifier(path, row, fields.item, item)
        times.append(seconds(path, row, fields.time, time))
        user_codes.append(users.setdefault(user_id, len(users)))
        code = items.setdefault(item_id, len(items))
        if code == len(item_rows):
            item_rows.append(row)
        item_codes.append(code)
        if fields.rating is not None:
            value = number(rating)
            if value is None:
                problem = f"{shown(rating)} is no rating"
                remedy = "give a number, or leave the whole column out"
                raise fault(path, row, fields.rating, problem, remedy)
            ratings.append(value)
        if len(times) % _REPORT_EVERY == 0:
            progress(f"{path.name}: {len(times):,} interactions read")
    if not times:
        raise fault(path, None, None, "there are no interactions", "give a file that has rows")
    return Interactions(
        path,
        fields.item,
        list(users),
        list(items),
        item_rows,
        np.frombuffer(user_codes, dtype=np.int32),
        np.frombuffer(item_codes, dtype=np.int32),
        np.frombuffer(times, dtype=np.int64),
        np.frombuffer(ratings, dtype=np.float64) if fields.rating is not None else None,
    )


def interactions_from_table(table: Table, fields: Fields, progress: Progress) -> Interactions:
    """`collect_interactions` over the named columns; ratings only where the table has them."""
    user, item, time = (table.position(c) for c in (fields.user, fields.item, fields.time))
    if fields.rating is None or fields.rating not in table.header:
        found = fields._replace(rating=None)
        rows = (RawInteraction(r, f[user], f[item], f[time], None) for r, f in table.rows)
    else:
        found, rated = fields, table.position(fields.rating)
        rows = (RawInteraction(r, f[user], f[item], f[time], f[rated]) for r, f in table.rows)
    return collect_interactions(table.path, found, rows, progress)


def items_from_table(table: Table, item: str, title: str) -> Items:
    """Ids and titles out of the named columns.

    Raises:
        SourceError: a column is missing, an id is empty or stands twice, or there is no item.
    """
    at_item, at_title = table.position(item), table.position(title)
    titles: dict[str, str] = {}
    untitled: dict[str, int] = {}
    rows: dict[str, int] = {}
    for row, record in table.rows:
        item_id = identifier(table.path, row, item, record[at_item])
        first = rows.setdefault(item_id, row)
        if first != row:
            problem = f"the id {shown(item_id)} stands in row {first} already"
            raise fault(table.path, row, item, problem, "keep one of the two")
        text = normalise_title(str(record[at_title] or ""))
        if text:
            titles[item_id] = text
        else:
            untitled[item_id] = row
    if not rows:
        raise fault(table.path, None, None, "there are no items", "give a file that has rows")
    return Items(table.path, titles, untitled)


def untitled_item(items: Items, item_id: str, path: Path, row: int, column: str) -> SourceError:
    """The complaint about an item that people interacted with and that has no title."""
    if item_id in items.untitled:
        problem = f"the item {shown(item_id)} has no title, and {path.name} (row {row}) names it"
        remedy = "give it a title, or take its interactions out"
        return fault(items.path, items.untitled[item_id], "title", problem, remedy)
    problem = f"the item {shown(item_id)} does not stand in {items.path.name}"
    remedy = "add it there with a title, or take its interactions out"
    return fault(path, row, column, problem, remedy)


def join(interactions: Interactions, items: Items) -> RawData:
    """Interactions beside the items' titles; the catalogue keeps the order of the items' file.

    Raises:
        SourceError: an item that people interacted with has no title.
    """
    index = {item_id: position for position, item_id in enumerate(items.titles)}
    for item_id, row in zip(interactions.item_ids, interactions.item_rows, strict=True):
        if item_id not in index:
            raise untitled_item(items, item_id, interactions.path, row, interactions.item_column)
    notes: tuple[str, ...] = ()
    if items.untitled:
        notes = (f"{len(items.untitled)} items without title or interactions were left out.",)
    catalogue_of_item = np.array([index[item_id] for item_id in interactions.item_ids], np.int32)
    return RawData(
        interactions.user_ids,
        list(items.titles),
        list(items.titles.values()),
        interactions.users_N,
        catalogue_of_item[interactions.items_N],
        interactions.timestamps_N,
        interactions.ratings_N,
        notes=notes,
    )
