"""Reads each format into `RawData`: which columns there are, and what they are called.

table      interactions.{csv,csv.gz,parquet} and items.{csv,csv.gz,parquet}
recbole    *.inter and *.item, tab-separated, with typed headers such as `user_id:token`
movielens  100K (u.data), 1M and 10M (ratings.dat), later ones (ratings.csv)
amazon     in `amazon.py`
splits     in `given_split.py`
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pruning.data.amazon import read_amazon
from pruning.data.given_split import COLUMNS, read_given_split
from pruning.data.interactions import (
    Fields,
    Items,
    Progress,
    RawData,
    interactions_from_table,
    items_from_table,
    join,
)
from pruning.data.records import Table, fault, open_table, read_csv, read_separated
from pruning.data.sources import Source

_OURS = Fields("user_id", "item_id", "timestamp", "rating")
_MOVIELENS = Fields("userId", "movieId", "timestamp", "rating")
_RATINGS_HEADER = ("userId", "movieId", "rating", "timestamp")
_MOVIES_HEADER = ("movieId", "title", "genres")
_U_ITEM_HEADER = (
    *("movieId", "title", "release_date", "video_release_date", "imdb_url"),
    *(f"genre_{number}" for number in range(19)),
)


def read_source(source: Source, history: int, progress: Progress) -> RawData:
    """Reads and checks a source.

    Args:
        source: the files.
        history: items in a history; only a given split is checked against it.
        progress: told what is being read.

    Raises:
        SourceError: the first thing that is wrong, with file, row, column and remedy.
    """
    if source.format == "amazon":
        return read_amazon(source.events, source.items, progress)
    progress(f"reading {source.items.name}")
    if source.format == "recbole":
        items = _recbole_items(source.items)
        table, fields = _without_types(read_separated(source.events, "\t")), _OURS
    elif source.format == "movielens":
        items = _movielens_items(source.items)
        table, fields = _movielens_ratings(source.events), _MOVIELENS
    else:
        items = items_from_table(open_table(source.items, ("item_id", "title")), "item_id", "title")
        if source.format == "splits":
            return read_given_split(open_table(source.events, COLUMNS), items, history, progress)
        table = open_table(source.events, ("user_id", "item_id", "timestamp"), ("rating",))
        fields = _OURS
    progress(f"reading {source.events.name}")
    return join(interactions_from_table(table, fields, progress), items)


def _without_types(table: Table) -> Table:
    names = tuple(name.partition(":")[0] for name in table.header)
    return replace(table, header=names)


def _recbole_items(path: Path) -> Items:
    typed = read_separated(path, "\t")
    title = _title_column(path, typed.header)
    return items_from_table(_without_types(typed), "item_id", title)


def _title_column(path: Path, header: tuple[str, ...]) -> str:
    """The column that holds the titles: text rather than a single token, `title` rather than `name`."""
    for word in ("title", "name"):
        for kind in ("token_seq", "token"):
            for column in header:
                name, _, of_kind = column.partition(":")
                if word in name.lower() and of_kind == kind:
                    return name
    raise fault(
        path,
        1,
        "title",
        f"no token_seq column is called title or name; the file has {', '.join(header)}",
        "add one such as title:token_seq",
    )


def _movielens_ratings(path: Path) -> Table:
    if path.suffix == ".csv":
        return read_csv(path)
    return read_separated(path, "\t" if path.name == "u.data" else "::", _RATINGS_HEADER)


def _movielens_items(path: Path) -> Items:
    if path.suffix == ".csv":
        table = read_csv(path)
    elif path.name == "u.item":
        table = read_separated(path, "|", _U_ITEM_HEADER, _encoding(path))
    else:
        table = read_separated(path, "::", _MOVIES_HEADER, _encoding(path))
    return items_from_table(table, "movieId", "title")


def _encoding(path: Path) -> str:
    """MovieLens 100K and 1M are Latin-1, 10M is UTF-8; a film list is small enough to try."""
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"
