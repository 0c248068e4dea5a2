"""A prepared data set on disk: what `espalier prepare` writes and both sides read.

    dataset.json           `DatasetCard`: counts, time range, title statistics, options, source digest
    items.parquet          the `Catalogue`: item_id, title, popularity in the training split
    interactions.parquet   user_id, item_id, timestamp, split; users together, each oldest first

`split` names the split in which the interaction is a *target*; it is null for a user's first
interaction, which has no history to be predicted from (and for all items of the first history of a
split that was given ready-made). Splits follow time, so within a user the training targets come
first. An item's popularity counts the training targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recommender.catalogue import Catalogue
from recommender.errors import DatasetError, first_problem
from recommender.storage import sha256_of

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")

CARD_FILE = "dataset.json"
ITEMS_FILE = "items.parquet"
INTERACTIONS_FILE = "interactions.parquet"

INTERACTIONS_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("timestamp", pa.int64()),
        ("split", pa.string()),
    ]
)


class SplitCounts(BaseModel):
    """Rows (predictions) of each split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: int
    valid: int
    test: int


class TitleStatistics(BaseModel):
    """What the titles look like: `shared` counts the items whose title another item bears too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    distinct: int
    shared: int
    mean_words: float
    max_words: int


class TimeRange(BaseModel):
    """Unix seconds: the first and last interaction, and the targets at which the splits begin."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: int
    valid_from: int
    test_from: int
    last: int


class DatasetCard(BaseModel):
    """The data set in figures, and where it came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    source_format: str
    source_sha256: str
    history: Annotated[int, Field(ge=1)]
    k_core: Annotated[int, Field(ge=0)]
    min_rating: float | None
    users: int
    items: int
    interactions: int
    rows: SplitCounts
    time: TimeRange
    titles: TitleStatistics
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rows:
    """The predictions of one split, by target time: position i of every field is one row.

    Attributes:
        user_ids: whose history it is.
        histories: item indices of the newest ≤ `history` interactions before the target, oldest first.
        targets_R: item index to predict, int32, shape (R,).
        timestamps_R: Unix seconds of the target, int64, shape (R,).
    """

    user_ids: tuple[str, ...]
    histories: tuple[tuple[int, ...], ...]
    targets_R: npt.NDArray[np.int32]
    timestamps_R: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_ids)

    def sample(self, size: int, seed: int) -> Rows:
        """`size` rows drawn without replacement, in their order; all of them when there are fewer."""
        if size >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).choice(len(self), size, replace=False))
        return Rows(
            tuple(self.user_ids[i] for i in chosen),
            tuple(self.histories[i] for i in chosen),
            self.targets_R[chosen],
            self.timestamps_R[chosen],
        )


@dataclass(frozen=True)
class UserSequence:
    """One user's interactions, oldest first: item indices, Unix seconds, and the split of each."""

    user_id: str
    items: tuple[int, ...]
    timestamps: tuple[int, ...]
    splits: tuple[Split | None, ...]

    @property
    def training_items(self) -> tuple[int, ...]:
        """The items up to the newest training target; empty when the user has none.

        Later interactions, also those that no row predicts, lie in the future of the training split.
        """
        targets = [position for position, split in enumerate(self.splits) if split == "train"]
        return self.items[: targets[-1] + 1] if targets else ()


class Dataset:
    """Reads a prepared data set. Opening checks the card; tables are read when first asked for.

    Raises:
        DatasetError: the folder is none of ours, or the card or the interactions are damaged.
        CatalogueError: the items are missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        card = path / CARD_FILE
        if not card.is_file():
            raise DatasetError(f"{path}: no {CARD_FILE} here; make a data set with `espalier prepare`")
        try:
            self.card = DatasetCard.model_validate_json(card.read_bytes())
        except ValidationError as error:
            raise DatasetError(f"{card}: {first_problem(error)}; prepare it again") from error

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the card: it names the source's digest and every option."""
        return sha256_of(self.path / CARD_FILE)

    @cached_property
    def catalogue(self) -> Catalogue:
        """Items with titles and their popularity in the training split."""
        return Catalogue.from_parquet(self.path / ITEMS_FILE)

    @cached_property
    def users(self) -> tuple[UserSequence, ...]:
        """Every user, in file order."""
        return tuple(self._read_users())

    def rows(self, split: Split) -> Rows:
        """The split's predictions, ordered by target time (ties in file order)."""
        history = self.card.history
        found: list[tuple[int, str, tuple[int, ...], int]] = []
        for user in self.users:
            for position, of_split in enumerate(user.splits):
                if of_split == split:
                    context = user.items[max(0, position - history) : position]
                    at, target = user.timestamps[position], user.items[position]
                    found.append((at, user.user_id, context, target))
        found.sort(key=lambda row: row[0])
        return Rows(
            tuple(row[1] for row in found),
            tuple(row[2] for row in found),
            np.array([row[3] for row in found], dtype=np.int32),
            np.array([row[0] for row in found], dtype=np.int64),
        )

    def _read_users(self) -> Iterator[UserSequence]:
        file = self.path / INTERACTIONS_FILE
        try:
            # Not `schema=`: that would make a missing column one of nulls.
            table = pq.read_table(file, columns=INTERACTIONS_SCHEMA.names).cast(INTERACTIONS_SCHEMA)
        except (OSError, pa.ArrowException) as error:
            reason = str(error).partition("\n")[0]
            raise DatasetError(f"{file}: cannot be read ({reason}); prepare it again") from error
        users = table.column("user_id").to_pylist()
        items: list[int] = []
        for row, item_id in enumerate(table.column("item_id").to_pylist(), start=1):
            index = self.catalogue.index_of(item_id)
            if index is None:
                raise DatasetError(f"{file}: row {row}: no item {item_id!r} in {ITEMS_FILE}")
            items.append(index)
        timestamps = table.column("timestamp").to_pylist()
        splits = table.column("split").to_pylist()
        start = 0
        for end in range(1, len(users) + 1):
            if end == len(users) or users[end] != users[start]:
                yield UserSequence(
                    users[start],
                    tuple(items[start:end]),
                    tuple(timestamps[start:end]),
                    tuple(splits[start:end]),
                )
                start = end
