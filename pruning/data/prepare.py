"""Turns a source into a prepared data set: reads, filters, sorts, splits, writes, describes.

The folder that comes out is described in `recommender.dataset`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from pruning.data.formats import read_source
from pruning.data.interactions import Progress, RawData
from pruning.data.sources import Source, SourceFormat, locate
from pruning.data.split import by_user_and_time, chronological_split, k_core
from pruning.errors import SourceError
from recommender.catalogue import Catalogue
from recommender.dataset import (
    CARD_FILE,
    INTERACTIONS_FILE,
    INTERACTIONS_SCHEMA,
    ITEMS_FILE,
    SPLITS,
    Dataset,
    DatasetCard,
    SplitCounts,
    TimeRange,
    TitleStatistics,
)
from recommender.storage import new_directory, write_file

_TRAIN, _VALID, _TEST = range(len(SPLITS))


class PrepareOptions(BaseModel):
    """How to prepare a source.

    Attributes:
        format: what the source is; `auto` tells it by the files' names.
        history: a row's history is the newest this many items before its target.
        k_core: every user and item keeps at least this many interactions; 0 keeps all of both.
        min_rating: interactions rated lower are dropped; None keeps all.
        name: what the data set is called; None takes the source folder's name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["auto"] | SourceFormat = "auto"
    history: Annotated[int, Field(ge=1)] = 10
    k_core: Annotated[int, Field(ge=0)] = 0
    min_rating: Annotated[float, Field(allow_inf_nan=False)] | None = None
    name: Annotated[str, Field(min_length=1)] | None = None


@dataclass(frozen=True)
class _Columns:
    """What will be written: interactions by user and time, split assigned; items with popularity."""

    user_ids: list[str]
    catalogue: Catalogue
    users_N: npt.NDArray[np.int32]
    items_N: npt.NDArray[np.int32]
    timestamps_N: npt.NDArray[np.int64]
    splits_N: npt.NDArray[np.int8]
    notes: tuple[str, ...]


def prepare(source: Path, out: Path, options: PrepareOptions, progress: Progress) -> DatasetCard:
    """Prepares `source` as the data set `out`, which appears whole or not at all.

    When `out` already holds the data set that would be made, nothing is done.

    Args:
        source: a folder, or the file with the interactions.
        out: the folder to make.
        options: format, history and filters.
        progress: told in a short sentence what is being done.

    Returns:
        The card of the data set, as written to `dataset.json`.

    Raises:
        SourceError: the source cannot be prepared with these options, or `out` is something else.
    """
    found = locate(source, None if options.format == "auto" else options.format)
    if found.format == "splits" and (options.k_core or options.min_rating is not None):
        raise SourceError(
            f"{found.events}: given splits are taken as they are, without --k-core or --min-rating;"
            " pass --format table to split the interactions anew"
        )
    progress(f"{found.format}: {found.events.name} and {found.items.name}")
    asked = {
        "name": options.name or found.name,
        "source_format": found.format,
        "source_sha256": found.digest(),
        "history": options.history,
        "k_core": options.k_core,
        "min_rating": options.min_rating,
    }
    if out.exists():
        return _already_done(out, asked, progress)
    raw = read_source(found, options.history, progress)
    columns = _columns(found, _filtered(found, raw, options), progress)
    card = DatasetCard.model_validate(asked | _figures(columns))
    progress(f"writing {out}")
    try:
        with new_directory(out) as folder:
            _write(folder, columns, card)
    except OSError as error:
        raise SourceError(f"{out}: cannot be written ({error.strerror}); choose another --out") from error
    return card


def _already_done(out: Path, asked: dict[str, object], progress: Progress) -> DatasetCard:
    if not (out / CARD_FILE).is_file():
        raise SourceError(f"{out}: exists and is no data set; choose another --out or remove it")
    card = Dataset(out).card
    for field, value in asked.items():
        there = getattr(card, field)
        if there != value:
            raise SourceError(
                f"{out}: holds another data set ({field} is {there} there, {value} here); "
                "choose another --out or remove it"
            )
    progress(f"{out} holds this data set already; nothing to do")
    return card


def _filtered(source: Source, raw: RawData, options: PrepareOptions) -> RawData:
    """Drops low ratings, then what is no part of the k-core, then users who have nothing left."""
    keep_N = np.ones(len(raw.users_N), dtype=np.bool_)
    notes = list(raw.notes)
    if options.min_rating is not None:
        if raw.ratings_N is None:
            raise SourceError(f"{source.events}, column rating: missing; add ratings or drop --min-rating")
        keep_N = raw.ratings_N >= options.min_rating
        notes.append(f"{_share(~keep_N)} rated below {options.min_rating:g} were dropped.")
    kept = np.flatnonzero(keep_N)
    if options.k_core:
        core = k_core(raw.users_N[kept], raw.items_N[kept], options.k_core)
        notes.append(f"{_share(~core)} outside the {options.k_core}-core were dropped.")
        kept = kept[core]
    if not len(kept):
        raise SourceError(f"{source.events}: no interaction is left; lower --min-rating or --k-core")
    user_codes, users_N = np.unique(raw.users_N[kept], return_inverse=True)
    items_N = raw.items_N[kept]
    item_codes = np.unique(items_N) if options.k_core else np.arange(len(raw.item_ids))
    return replace(
        raw,
        user_ids=[raw.user_ids[code] for code in user_codes],
        item_ids=[raw.item_ids[code] for code in item_codes],
        titles=[raw.titles[code] for code in item_codes],
        users_N=users_N.astype(np.int32),
        items_N=np.searchsorted(item_codes, items_N).astype(np.int32),
        timestamps_N=raw.timestamps_N[kept],
        splits_N=None if raw.splits_N is None else raw.splits_N[kept],
        notes=tuple(notes),
    )


def _share(dropped_N: npt.NDArray[np.bool_]) -> str:
    return f"{int(dropped_N.sum()):,} of {len(dropped_N):,} interactions"


def _columns(source: Source, raw: RawData, progress: Progress) -> _Columns:
    progress(f"splitting {len(raw.users_N):,} interactions of {len(raw.user_ids):,} users by time")
    order = by_user_and_time(raw.users_N, raw.timestamps_N)
    users_N, items_N = raw.users_N[order], raw.items_N[order]
    timestamps_N = raw.timestamps_N[order]
    given_N = raw.splits_N
    splits_N = chronological_split(users_N, timestamps_N) if given_N is None else given_N[order]
    counts = [int((splits_N == code).sum()) for code in range(len(SPLITS))]
    if min(counts) == 0:
        raise SourceError(
            f"{source.events}: too few rows to split "
            f"({', '.join(f'{n} {name}' for n, name in zip(counts, SPLITS, strict=True))}); "
            "every split needs one, so give more interactions per user or filter less"
        )
    popularity = np.bincount(items_N[splits_N == _TRAIN], minlength=len(raw.item_ids))
    catalogue = Catalogue.create(raw.item_ids, raw.titles, popularity.tolist())
    notes = (*raw.notes, *_notes_on_time(timestamps_N, splits_N))
    return _Columns(raw.user_ids, catalogue, users_N, items_N, timestamps_N, splits_N, notes)


def _notes_on_time(timestamps_N: npt.NDArray[np.int64], splits_N: npt.NDArray[np.int8]) -> list[str]:
    """Says where the splits touch or overlap in time."""
    notes = []
    for earlier, later in ((_TRAIN, _VALID), (_VALID, _TEST)):
        last = int(timestamps_N[splits_N == earlier].max())
        first = int(timestamps_N[splits_N == later].min())
        names = f"{SPLITS[earlier]} and {SPLITS[later]}"
        if last == first:
            rows = int(((timestamps_N == first) & (splits_N >= 0)).sum())
            notes.append(
                f"The cut between {names} falls among {rows:,} rows of the same time ({first}); "
                "which of them come before it follows the order of the source."
            )
        elif last > first:
            notes.append(f"The splits {names} overlap in time ({first} to {last}).")
    return notes


def _figures(columns: _Columns) -> dict[str, object]:
    """The part of the card that is counted."""
    times = [columns.timestamps_N[columns.splits_N == code] for code in range(len(SPLITS))]
    titles = Counter(columns.catalogue.titles)
    words = [len(title.split()) for title in columns.catalogue.titles]
    return {
        "users": len(columns.user_ids),
        "items": len(columns.catalogue),
        "interactions": len(columns.users_N),
        "rows": SplitCounts(train=len(times[0]), valid=len(times[1]), test=len(times[2])),
        "time": TimeRange(
            first=int(columns.timestamps_N.min()),
            valid_from=int(times[_VALID].min()),
            test_from=int(times[_TEST].min()),
            last=int(columns.timestamps_N.max()),
        ),
        "titles": TitleStatistics(
            distinct=len(titles),
            shared=sum(count for count in titles.values() if count > 1),
            mean_words=round(sum(words) / len(words), 2),
            max_words=max(words),
        ),
        "notes": columns.notes,
    }


def _write(folder: Path, columns: _Columns, card: DatasetCard) -> None:
    columns.catalogue.to_parquet(folder / ITEMS_FILE)
    splits = pa.array(columns.splits_N, mask=columns.splits_N < 0)
    table = pa.table(
        {
            "user_id": _named(pa.array(columns.users_N), columns.user_ids),
            "item_id": _named(pa.array(columns.items_N), columns.catalogue.item_ids),
            "timestamp": columns.timestamps_N,
            "split": _named(splits, SPLITS),
        },
        schema=INTERACTIONS_SCHEMA,
    )
    pq.write_table(table, folder / INTERACTIONS_FILE)
    write_file(folder / CARD_FILE, card.model_dump_json(indent=2) + "\n")


def _named(codes: pa.Array, names: list[str] | tuple[str, ...]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(codes, pa.array(names, pa.string())).cast(pa.string())
