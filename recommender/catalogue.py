"""The catalogue: which items exist, what they are called, and how popular they were in training."""

from __future__ import annotations

import heapq
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recommender.errors import CatalogueError

_SCHEMA = pa.schema([("item_id", pa.string()), ("title", pa.string()), ("popularity", pa.int64())])
_COLUMNS = tuple(_SCHEMA.names)
_INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # the categories Cc and Cs


def normalise_title(title: str) -> str:
    """NFC, without control characters, white space collapsed: a title is one line of the prompt.

    Lone surrogates, which no encoding can carry, go with the control characters.
    """
    return " ".join(unicodedata.normalize("NFC", _INVISIBLE.sub(" ", title)).split())


@dataclass(frozen=True)
class Catalogue:
    """Items in a fixed order; an item's *index* is its position here.

    Attributes:
        item_ids: the caller's ids, unique strings.
        titles: normalised, never empty; several items may share one.
        popularity: interactions of each item in the training split.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    popularity: tuple[int, ...]

    @classmethod
    def create(cls, item_ids: Sequence[str], titles: Sequence[str], popularity: Sequence[int]) -> Catalogue:
        """Normalises the titles and checks the columns against each other.

        Raises:
            CatalogueError: columns of unequal length, an empty id or title, or a duplicate id.
        """
        if not len(item_ids) == len(titles) == len(popularity):
            raise CatalogueError(
                f"the catalogue's columns differ in length: {len(item_ids)} ids, "
                f"{len(titles)} titles, {len(popularity)} popularities"
            )
        made = cls(tuple(item_ids), tuple(map(normalise_title, titles)), tuple(map(int, popularity)))
        for position, (item_id, title) in enumerate(zip(made.item_ids, made.titles, strict=True), start=1):
            if not item_id or not title:
                raise CatalogueError(f"item {position} ({item_id!r}) lacks an id or a title")
        # Made here, with all else that takes long, and not by the first request that looks an item up.
        last = made._index_by_id
        if len(last) < len(made):
            first = next(i for i, item_id in enumerate(made.item_ids) if last[item_id] != i)
            again = made.item_ids.index(made.item_ids[first], first + 1)
            raise CatalogueError(f"item {again + 1}: the id {made.item_ids[first]!r} stands twice")
        return made

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def _index_by_id(self) -> dict[str, int]:
        return {item_id: index for index, item_id in enumerate(self.item_ids)}

    @cached_property
    def _folded_titles(self) -> tuple[str, ...]:
        return tuple(title.casefold() for title in self.titles)

    @cached_property
    def by_popularity(self) -> tuple[int, ...]:
        """Item indices, most popular first; equals stay in catalogue order."""
        return tuple(sorted(range(len(self)), key=lambda index: -self.popularity[index]))

    def index_of(self, item_id: str) -> int | None:
        """The item's index, or None for an id that the catalogue does not know."""
        return self._index_by_id.get(item_id)

    def search(self, query: str, limit: int) -> list[int]:
        """Item indices whose title contains `query`, best match first.

        Exact titles come before titles that start with the query, then those in which a word
        starts with it, then the rest; within each, the more popular item first.
        """
        folded = normalise_title(query).casefold()
        if not folded:
            return list(self.by_popularity[:limit])
        found = (i for i, title in enumerate(self._folded_titles) if folded in title)
        return heapq.nsmallest(
            limit, found, key=lambda i: (_match_class(self._folded_titles[i], folded), -self.popularity[i])
        )

    def to_parquet(self, path: Path) -> None:
        """Writes the three columns to `path`."""
        columns = (list(self.item_ids), list(self.titles), list(self.popularity))
        pq.write_table(pa.table(dict(zip(_COLUMNS, columns, strict=True)), schema=_SCHEMA), path)

    @classmethod
    def from_parquet(cls, path: Path) -> Catalogue:
        """Reads what `to_parquet` wrote.

        Raises:
            CatalogueError: the file is no Parquet file, lacks a column, or holds another type or a null.
        """
        try:
            table = pq.read_table(path, columns=list(_COLUMNS)).cast(_SCHEMA)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise CatalogueError(f"{path}: not a catalogue ({reason})") from error
        for name in _COLUMNS:
            if table.column(name).null_count:
                raise CatalogueError(f"{path}: the column {name} has nulls; every item needs all three")
        return cls.create(*(table.column(name).to_pylist() for name in _COLUMNS))


def _match_class(title: str, query: str) -> int:
    if title == query:
        return 0
    if title.startswith(query):
        return 1
    return 2 if f" {query}" in title else 3
