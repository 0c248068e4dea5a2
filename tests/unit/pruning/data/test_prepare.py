"""What comes out of `prepare`: the card, the tables, the filters, and never half a folder."""

import csv
import io
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pruning.data.prepare import PrepareOptions, prepare
from pruning.errors import SourceError
from recommender.dataset import SPLITS, Dataset


def as_text(rows):
    text = io.StringIO()
    csv.writer(text).writerows([("user_id", "item_id", "timestamp"), *rows])
    return text.getvalue()


def test_card(write_pair, tmp_path, said):
    titles = "item_id,title\ni0,One\ni1, one  two\ni2,One\ni3,one two three\ni4,Untouched\ni5,x\n"
    rows = [(f"u{n % 3}", f"i{n % 4}", 100 + n) for n in range(13)] + [("once", "i5", 5)]
    out = tmp_path / "new" / "out"
    card = prepare(write_pair(as_text(rows), titles), out, PrepareOptions(name="toy"), said.append)

    assert Dataset(out).card == card
    assert (card.name, card.source_format, len(card.source_sha256)) == ("toy", "table", 64)
    assert (card.history, card.k_core, card.min_rating) == (10, 0, None)
    assert (card.users, card.items, card.interactions) == (4, 6, 14)
    assert (card.rows.train, card.rows.valid, card.rows.test) == (8, 1, 1)
    assert card.time.model_dump() == {"first": 5, "valid_from": 111, "test_from": 112, "last": 112}
    assert card.titles.model_dump() == {
        "distinct": 5,
        "shared": 2,
        "mean_words": 1.5,
        "max_words": 3,
    }
    assert [user.user_id for user in Dataset(out).users] == ["u0", "u1", "u2", "once"]
    targets = Counter(f"i{n % 4}" for n in range(3, 11))
    popularity = [targets[f"i{n}"] for n in range(6)]
    assert list(Dataset(out).catalogue.popularity) == popularity


def test_repeats_are_kept_and_ties_stay_in_file_order(write_pair, tmp_path, said):
    rows = [("u", f"i{item}", 7) for item in (3, 1, 1, 0, 3, 3, 2, 5, 4, 1, 0)]
    card = prepare(write_pair(as_text(rows)), tmp_path / "out", PrepareOptions(), said.append)

    (user,) = Dataset(tmp_path / "out").users
    assert user.items == (3, 1, 1, 0, 3, 3, 2, 5, 4, 1, 0)
    assert user.splits == (None, *["train"] * 8, "valid", "test")
    assert card.notes == (
        "The cut between train and valid falls among 10 rows of the same time (7); "
        "which of them come before it follows the order of the source.",
        "The cut between valid and test falls among 10 rows of the same time (7); "
        "which of them come before it follows the order of the source.",
    )


def test_k_core_drops_users_and_items(write_pair, tmp_path, events, said):
    rows = [*(event[:3] for event in events), ("lonely", "i0", 5), ("u0", "rare", 6)]
    titles = "item_id,title\nrare,Rare\nunseen,Unseen\n" + "".join(f"i{n},Film {n}\n" for n in range(6))
    folder = write_pair(as_text(rows), titles)
    everything = prepare(folder, tmp_path / "all", PrepareOptions(), said.append)
    core = prepare(folder, tmp_path / "core", PrepareOptions(k_core=2), said.append)

    assert (everything.users, everything.items, everything.interactions) == (13, 8, 50)
    assert (core.users, core.items, core.interactions) == (12, 6, 48)
    assert core.notes == ("2 of 50 interactions outside the 2-core were dropped.",)
    assert Dataset(tmp_path / "core").catalogue.item_ids == tuple(f"i{n}" for n in range(6))


@pytest.mark.parametrize("options", [{"k_core": 5}, {"min_rating": 5.5}])
def test_nothing_left(options, write_pair, tmp_path, said):
    with pytest.raises(SourceError, match="no interaction is left; lower --min-rating or --k-core"):
        prepare(write_pair(), tmp_path / "out", PrepareOptions(**options), said.append)


def test_minimum_rating_needs_ratings(write_pair, tmp_path, said):
    folder = write_pair(as_text([("u", "i0", 5)]))
    with pytest.raises(SourceError, match=r"column rating: missing; add ratings or drop --min-rat"):
        prepare(folder, tmp_path / "out", PrepareOptions(min_rating=3), said.append)


rows = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sampled_from(["i0", "i1", "i2"]), st.integers(0, 30)),
    min_size=16,
    max_size=80,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(rows)
def test_no_history_reaches_into_its_future(write_pair, tmp_path_factory, rows):
    out = tmp_path_factory.mktemp("any") / "out"
    prepare(write_pair(as_text(rows)), out, PrepareOptions(history=3), lambda _: None)
    dataset = Dataset(out)

    by_user = {}
    for user, item, at in rows:
        by_user.setdefault(user, []).append((at, item))
    ids = dataset.catalogue.item_ids
    expected = Counter()
    for user, seen in by_user.items():
        seen.sort(key=lambda event: event[0])
        for position in range(1, len(seen)):
            past = tuple(item for _, item in seen[max(0, position - 3) : position])
            expected[user, past, seen[position][1], seen[position][0]] += 1
    found = Counter()
    ends = []
    for split in SPLITS:
        of_split = dataset.rows(split)
        assert (np.diff(of_split.timestamps_R) >= 0).all()
        ends.append((of_split.timestamps_R[0], of_split.timestamps_R[-1]))
        for user, past, target, at in zip(
            of_split.user_ids,
            of_split.histories,
            of_split.targets_R,
            of_split.timestamps_R,
            strict=True,
        ):
            found[user, tuple(ids[i] for i in past), ids[target], int(at)] += 1
    assert found == expected
    assert ends[0][1] <= ends[1][0] <= ends[1][1] <= ends[2][0]
    trained = Counter(i for user in dataset.users for i in user.training_items)
    assert all(trained[i] >= count for i, count in enumerate(dataset.catalogue.popularity))


def test_same_command_again_is_done(write_pair, tmp_path, said):
    folder, out = write_pair(), tmp_path / "out"
    options = PrepareOptions(k_core=2)
    card = prepare(folder, out, options, said.append)
    stamps = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    del said[:]

    assert prepare(folder, out, options, said.append) == card
    assert said[-1] == f"{out} holds this data set already; nothing to do"
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == stamps


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"history": 5}, "history is 10 there, 5 here"),
        ({"k_core": 2}, "k_core is 0 there, 2 here"),
        ({"min_rating": 1}, r"min_rating is None there, 1\.0 here"),
        ({"name": "other"}, "name is shop there, other here"),
    ],
)
def test_other_options_do_not_overwrite(options, difference, write_pair, tmp_path, said):
    folder, out = write_pair(), tmp_path / "out"
    prepare(folder, out, PrepareOptions(), said.append)
    with pytest.raises(SourceError, match=rf"holds another data set \({difference}\)"):
        prepare(folder, out, PrepareOptions(**options), said.append)


def test_a_changed_source_does_not_overwrite(write_pair, tmp_path, events, said):
    out = tmp_path / "out"
    prepare(write_pair(), out, PrepareOptions(), said.append)
    changed = write_pair(as_text([event[:3] for event in events]))
    with pytest.raises(SourceError, match="holds another data set \\(source_sha256 is"):
        prepare(changed, out, PrepareOptions(), said.append)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_something_else_is_there(kind, write_pair, tmp_path, said):
    out = tmp_path / "out"
    out.mkdir() if kind == "folder" else out.write_text("mine")
    with pytest.raises(SourceError, match="exists and is no data set; choose another --out"):
        prepare(write_pair(), out, PrepareOptions(), said.append)


def test_a_place_that_cannot_be_written(write_pair, tmp_path, said):
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="cannot be written"):
        prepare(write_pair(), tmp_path / "file" / "out", PrepareOptions(), said.append)


def test_progress_names_the_files(write_pair, tmp_path, said):
    prepare(write_pair(), tmp_path / "out", PrepareOptions(), said.append)
    assert said == [
        "table: interactions.csv and items.csv",
        "reading items.csv",
        "reading interactions.csv",
        "splitting 48 interactions of 12 users by time",
        f"writing {tmp_path / 'out'}",
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"history": 0},
        {"k_core": -1},
        {"min_rating": float("nan")},
        {"name": ""},
        {"format": "excel"},
        {"hist": 3},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(ValidationError):
        PrepareOptions(**options)
