"""Finds out which format a folder or file is in, which files belong to it, and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from pruning.data.amazon import holds_reviews
from pruning.errors import SourceError
from recommender.storage import sha256_of

SourceFormat = Literal["table", "recbole", "movielens", "amazon", "splits"]
FORMATS: tuple[SourceFormat, ...] = get_args(SourceFormat)

_EVENTS: dict[SourceFormat, tuple[str, ...]] = {
    "table": ("interactions.csv", "interactions.csv.gz", "interactions.parquet"),
    "recbole": ("*.inter",),
    "movielens": ("u.data", "ratings.dat", "ratings.csv"),
    "amazon": ("*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz"),
    "splits": ("splits.csv.gz", "splits.csv"),
}
_OUR_ITEMS = ("items.csv", "items.csv.gz", "items.parquet")
_MOVIES = {"u.data": "u.item", "ratings.dat": "movies.dat", "ratings.csv": "movies.csv"}


@dataclass(frozen=True)
class Source:
    """The two files to read: `events` (interactions, reviews or rows) and `items`."""

    format: SourceFormat
    events: Path
    items: Path

    @property
    def name(self) -> str:
        """What the data set is called unless the user says otherwise: its folder's name."""
        return self.events.resolve().parent.name

    def digest(self) -> str:
        """SHA-256 over the names and contents of both files."""
        digest = hashlib.sha256()
        for file in (self.events, self.items):
            digest.update(f"{file.name}\0{sha256_of(file)}\n".encode())
        return digest.hexdigest()


def locate(source: Path, wanted: SourceFormat | None) -> Source:
    """Finds the files of a source.

    Args:
        source: the folder, or the file with the interactions; the items' file stands beside it.
        wanted: the format, or None to tell it by the files' names. A given split comes before the
            interactions it was made from, JSON lines come last.

    Raises:
        SourceError: nothing there, nothing we know, or several candidates.
    """
    if not source.exists():
        raise SourceError(f"{source}: no such file or folder; check the path")
    folder = source if source.is_dir() else source.parent
    files = sorted(f for f in folder.iterdir() if f.is_file()) if source.is_dir() else [source]
    found = {name: _matching(files, patterns) for name, patterns in _EVENTS.items()}
    chosen = wanted or _detect(source, found)
    if not found[chosen]:
        raise SourceError(
            f"{source}: no {' or '.join(_EVENTS[chosen])} as the format {chosen} has it; "
            "name the file so, or pass another --format"
        )
    if chosen == "amazon":
        return _amazon(folder, found[chosen])
    events = _only(source, found[chosen])
    if chosen == "recbole":
        names: Sequence[str] = (f"{events.stem}.item",)
    elif chosen == "movielens":
        names = (_MOVIES[events.name],)
    else:
        names = _OUR_ITEMS
    items = _matching(sorted(folder.iterdir()), names)
    if not items:
        raise SourceError(f"{folder}: no {' or '.join(names)} beside {events.name}; add the titles")
    return Source(chosen, events, _only(folder, items))


def _detect(source: Path, found: dict[SourceFormat, list[Path]]) -> SourceFormat:
    if found["splits"]:
        return "splits"
    named = [name for name in FORMATS if name not in ("splits", "amazon") and found[name]]
    if len(named) > 1:
        raise SourceError(f"{source}: could be read as {' or '.join(named)}; pass one of them as --format")
    if named:
        return named[0]
    if found["amazon"]:
        return "amazon"
    known = ", ".join(pattern for patterns in _EVENTS.values() for pattern in patterns)
    raise SourceError(f"{source}: no file of a format we know; it should have one of {known}")


def _amazon(folder: Path, candidates: list[Path]) -> Source:
    beside = _matching(sorted(folder.iterdir()), _EVENTS["amazon"])
    reviews = [file for file in candidates if holds_reviews(file)]
    products = [file for file in beside if file not in reviews and not holds_reviews(file)]
    for kind, files in (("reviews", reviews), ("products (metadata)", products)):
        if len(files) != 1:
            names = f" ({', '.join(file.name for file in files)})" if files else ""
            raise SourceError(
                f"{folder}: {len(files)} files of {kind}{names} where one is needed; "
                "keep one file of each kind in a folder of their own"
            )
    return Source("amazon", reviews[0], products[0])


def _only(place: Path, files: list[Path]) -> Path:
    if len(files) > 1:
        raise SourceError(
            f"{place}: {', '.join(file.name for file in files)} are all there; keep one of them"
        )
    return files[0]


def _matching(files: Sequence[Path], patterns: Sequence[str]) -> list[Path]:
    return [
        file
        for file in files
        if not file.name.startswith(".") and any(fnmatchcase(file.name, p) for p in patterns)
    ]
