"""A split that was made elsewhere is taken as it is, or refused."""

import gzip

import pytest

from pruning.data.prepare import PrepareOptions, prepare
from pruning.errors import SourceError
from recommender.dataset import Dataset

HEADER = "split,user_id,history_item_ids,target_item_id,timestamp\n"
ROWS = [
    "train,b,i0 i1,i2,10",
    "train,a,i3,i4,10",
    "train,b,i1 i2,i0,20",
    "valid,a,i3 i4,i0,30",
    "valid,b,i2 i0,i0,30",
    "test,b,i0 i0,i5,40",
]
ITEMS = "item_id,title\n" + "".join(f"i{n},Film {n}\n" for n in range(7))


@pytest.fixture
def write_split(tmp_path):
    def write(rows=ROWS, packed=False):
        folder = tmp_path / "given"
        folder.mkdir()
        text = (HEADER + "".join(f"{row}\n" for row in rows)).encode()
        if packed:
            (folder / "splits.csv.gz").write_bytes(gzip.compress(text))
        else:
            (folder / "splits.csv").write_bytes(text)
        (folder / "items.csv").write_text(ITEMS)
        return folder

    return write


@pytest.mark.parametrize("packed", [False, True])
def test_sequences_are_rebuilt(packed, write_split, tmp_path, said):
    out = tmp_path / "out"
    card = prepare(write_split(packed=packed), out, PrepareOptions(history=2), said.append)

    b, a = Dataset(out).users
    assert (b.user_id, b.items, b.timestamps) == ("b", (0, 1, 2, 0, 0, 5), (10, 10, 10, 20, 30, 40))
    assert b.splits == (None, None, "train", "train", "valid", "test")
    assert (a.items, a.splits) == ((3, 4, 0), (None, "train", "valid"))
    assert b.training_items == (0, 1, 2, 0)
    assert Dataset(out).catalogue.popularity == (1, 0, 1, 0, 1, 0, 0)
    assert (card.rows.train, card.rows.valid, card.rows.test) == (3, 2, 1)
    assert (card.time.valid_from, card.time.test_from) == (30, 40)
    assert card.notes == (
        "The splits were given. The items of a user's first history carry the time of the first target.",
    )
    rows = Dataset(out).rows("valid")
    assert rows.user_ids == ("b", "a")
    assert rows.histories == ((2, 0), (3, 4))


@pytest.mark.parametrize(
    ("position", "row", "history", "pattern"),
    [
        (0, "dev,b,i0,i2,10", 2, r"row 2, column split: 'dev' is no split; give train, valid, test"),
        (0, "train,b,,i2,10", 2, r"row 2, column history_item_ids: the history is empty; take"),
        (0, ROWS[0], 1, r"row 2, column history_item_ids: 2 items, and a history holds 1; pass"),
        (2, ROWS[2], 3, r"row 4, column history_item_ids: not the newest 3 items before this"),
        (2, "train,b,i2 i1,i0,20", 2, r"row 4, column history_item_ids: not the newest 2 items"),
        (2, "train,b,i1 i2,i0,5", 2, r"row 4, column timestamp: 5 is before the user's last row"),
        (2, "test,b,i1 i2,i0,20", 2, r"row 6, column split: valid after the user's test; sort the"),
        (2, "train,b,i1 i2,i9,20", 2, r"row 4, column target_item_id: the item 'i9' does not stand"),
        (0, "train,b,i9,i2,10", 2, r"row 2, column history_item_ids: the item 'i9' does not stand"),
        (0, "train,,i0,i2,10", 2, r"row 2, column user_id: the id is empty"),
        (0, "train,b,i0,i2,x", 2, r"row 2, column timestamp: 'x' is no time"),
    ],
)
def test_refused(position, row, history, pattern, write_split, tmp_path, said):
    source = write_split([*ROWS[:position], row, *ROWS[position + 1 :]])
    with pytest.raises(SourceError, match=pattern):
        prepare(source, tmp_path / "out", PrepareOptions(history=history), said.append)
    assert list(tmp_path.iterdir()) == [source]


def test_no_rows(write_split, tmp_path, said):
    with pytest.raises(SourceError, match=r"splits\.csv: there are no rows; give a file that has"):
        prepare(write_split([]), tmp_path / "out", PrepareOptions(), said.append)


@pytest.mark.parametrize("options", [{"k_core": 5}, {"min_rating": 3}])
def test_filters_do_not_apply(options, write_split, tmp_path, said):
    with pytest.raises(SourceError, match="given splits are taken as they are"):
        prepare(write_split(), tmp_path / "out", PrepareOptions(**options), said.append)


def test_splits_that_overlap_are_noted(write_split, tmp_path, said):
    rows = [*ROWS, "train,c,i0,i1,35"]
    card = prepare(write_split(rows), tmp_path / "out", PrepareOptions(history=2), said.append)
    assert "The splits train and valid overlap in time (30 to 35)." in card.notes
