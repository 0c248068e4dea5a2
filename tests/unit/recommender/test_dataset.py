import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recommender.catalogue import Catalogue
from recommender.dataset import (
    CARD_FILE,
    INTERACTIONS_FILE,
    INTERACTIONS_SCHEMA,
    ITEMS_FILE,
    Dataset,
    DatasetCard,
    SplitCounts,
    TimeRange,
    TitleStatistics,
    UserSequence,
)
from recommender.errors import DatasetError, InputError

# user, item, time, split: abe's test target ties with ann's, and stands after it in the file.
INTERACTIONS = [
    ("ann", "i0", 10, None),
    ("ann", "i1", 20, "train"),
    ("ann", "i2", 30, "train"),
    ("ann", "i3", 50, "valid"),
    ("ann", "i0", 90, "test"),
    ("bob", "i3", 5, None),
    ("bob", "i2", 80, "test"),
    ("abe", "i1", 15, None),
    ("abe", "i1", 25, "train"),
    ("abe", "i0", 90, "test"),
]

CARD = DatasetCard(
    name="tiny",
    source_format="csv",
    source_sha256="0" * 64,
    history=2,
    k_core=0,
    min_rating=None,
    users=3,
    items=4,
    interactions=10,
    rows=SplitCounts(train=3, valid=1, test=3),
    time=TimeRange(first=5, valid_from=50, test_from=80, last=90),
    titles=TitleStatistics(distinct=4, shared=0, mean_words=1.0, max_words=1),
)

Columns = dict[str, list[Any]]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes the data set by hand, with changes to its interactions' columns."""

    def build(change: Callable[[Columns], object] | None = None) -> Path:
        folder = tmp_path / "dataset"
        folder.mkdir()
        (folder / CARD_FILE).write_text(CARD.model_dump_json())
        Catalogue.create(["i0", "i1", "i2", "i3"], list("wxyz"), [0, 2, 1, 0]).to_parquet(
            folder / ITEMS_FILE
        )
        columns: Columns = dict(
            zip(INTERACTIONS_SCHEMA.names, (list(c) for c in zip(*INTERACTIONS, strict=True)), strict=True)
        )
        if change is not None:
            change(columns)
        pq.write_table(pa.table(columns), folder / INTERACTIONS_FILE)
        return folder

    return build


def test_users_in_file_order(write: Callable[..., Path]) -> None:
    users = Dataset(write()).users
    assert [user.user_id for user in users] == ["ann", "bob", "abe"]
    assert users[0] == UserSequence(
        "ann", (0, 1, 2, 3, 0), (10, 20, 30, 50, 90), (None, "train", "train", "valid", "test")
    )


def test_rows_come_by_target_time_with_ties_in_file_order(write: Callable[..., Path]) -> None:
    rows = Dataset(write()).rows("test")
    assert rows.user_ids == ("bob", "ann", "abe")
    assert rows.timestamps_R.tolist() == [80, 90, 90]
    assert rows.targets_R.tolist() == [2, 0, 0]
    assert rows.targets_R.dtype == np.int32
    assert rows.timestamps_R.dtype == np.int64


def test_a_history_is_the_newest_before_the_target_oldest_first(write: Callable[..., Path]) -> None:
    dataset = Dataset(write())
    assert dataset.rows("test").histories == ((3,), (2, 3), (1, 1))
    assert dataset.rows("valid").histories == ((1, 2),)
    assert dataset.rows("train").histories == ((0,), (1,), (0, 1))


def test_the_splits_share_the_targets_out(write: Callable[..., Path]) -> None:
    dataset = Dataset(write())
    assert [len(dataset.rows(split)) for split in ("train", "valid", "test")] == [3, 1, 3]


def test_a_sample_is_drawn_without_replacement_and_stays_in_order(write: Callable[..., Path]) -> None:
    rows = Dataset(write()).rows("test")
    samples = [rows.sample(2, seed) for seed in range(20)]
    order = list(zip(rows.user_ids, rows.histories, rows.targets_R, rows.timestamps_R, strict=True))
    for sample in samples:
        drawn = zip(sample.user_ids, sample.histories, sample.targets_R, sample.timestamps_R, strict=True)
        places = [order.index(row) for row in drawn]
        assert places == sorted(set(places))
        assert len(places) == 2
    assert len({sample.user_ids for sample in samples}) > 1
    assert rows.sample(2, 3).user_ids == samples[3].user_ids
    assert rows.sample(3, 0) is rows
    assert rows.sample(99, 0) is rows


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        ([None, "train", "train", "valid", "test"], (0, 1, 2)),
        ([None, None, "train", "valid", None], (0, 1, 2)),  # a given split's first history
        ([None, "train", None, None, None], (0, 1)),  # later ones that no row predicts
        ([None, "valid", "test", None, None], ()),
        ([None, None, None, None, "train"], (0, 1, 2, 3, 4)),
    ],
)
def test_training_items_end_at_the_newest_training_target(
    splits: list[Any], expected: tuple[int, ...]
) -> None:
    assert UserSequence("u", (0, 1, 2, 3, 4), (1, 2, 3, 4, 5), tuple(splits)).training_items == expected


def test_no_interactions_are_no_users(write: Callable[..., Path]) -> None:
    folder = write()
    pq.write_table(INTERACTIONS_SCHEMA.empty_table(), folder / INTERACTIONS_FILE)
    dataset = Dataset(folder)
    assert dataset.users == ()
    assert len(dataset.rows("test")) == 0


def test_the_digest_is_the_cards(write: Callable[..., Path]) -> None:
    folder = write()
    dataset = Dataset(folder)
    assert dataset.card == CARD
    assert dataset.digest == hashlib.sha256((folder / CARD_FILE).read_bytes()).hexdigest()


def test_a_folder_without_card_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"no dataset\.json here; make a data set with `espalier prepare`"
    ):
        Dataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the document: Invalid JSON"),
        (b"\xff", "the document: Invalid JSON"),
        (CARD.model_dump_json(exclude={"history"}).encode(), "history: Field required"),
        (CARD.model_copy(update={"schema_version": 2}).model_dump_json().encode(), "schema_version: Input"),
        (b'{"extra": 1,' + CARD.model_dump_json().encode()[1:], "extra: Extra inputs"),
        (CARD.model_dump_json().replace('"test":3', '"test":"x"').encode(), r"rows\.test: Input"),
    ],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # the wrong version is meant
def test_a_damaged_card_is_refused(write: Callable[..., Path], content: bytes, message: str) -> None:
    folder = write()
    (folder / CARD_FILE).write_bytes(content)
    with pytest.raises(DatasetError, match=f"{message}.*; prepare it again"):
        Dataset(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda columns: columns.pop("timestamp"), "cannot be read .*timestamp.*prepare it again"),
        (lambda columns: columns.pop("split"), "cannot be read .*split.*prepare it again"),
        (lambda columns: columns.update(timestamp=["soon"] * 10), "cannot be read"),
        (lambda columns: columns["item_id"].__setitem__(3, "i9"), r"row 4: no item 'i9' in items\.parquet"),
        (lambda columns: columns["item_id"].__setitem__(0, None), "row 1: no item None"),
    ],
)
def test_damaged_interactions_are_refused(
    write: Callable[..., Path], change: Callable[[Columns], object], message: str
) -> None:
    dataset = Dataset(write(change))
    with pytest.raises(DatasetError, match=message):
        dataset.rows("train")


@pytest.mark.parametrize("name", [INTERACTIONS_FILE, ITEMS_FILE])
def test_a_missing_or_foreign_table_is_refused(write: Callable[..., Path], name: str) -> None:
    folder = write()
    (folder / name).write_text("user_id,item_id\n")
    with pytest.raises(InputError, match=name):
        Dataset(folder).rows("train")
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        Dataset(folder).rows("train")
