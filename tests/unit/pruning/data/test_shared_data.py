"""On real reviews: our split of the interactions is the split that was given with them."""

import os
from pathlib import Path

import pytest

from pruning.data.prepare import PrepareOptions, prepare
from recommender.dataset import SPLITS, Dataset

ROOT = Path(__file__).parents[4]
SHARED = Path(os.environ.get("ESPALIER_SHARED_DATA", ROOT.parent / "shared" / "data"))
POPULARITY_HR_10 = {"video_games": 0.0256, "cds_and_vinyl": 0.0192, "movies_and_tv": 0.0634}


@pytest.fixture(params=POPULARITY_HR_10)
def domain(request):
    folder = SHARED / request.param
    if not folder.is_dir():
        pytest.skip(f"no review data in {SHARED}; set ESPALIER_SHARED_DATA to its folder")
    return folder


def rows_of(dataset):
    """(user, history, target) → the split and time of each such row, in order."""
    found = {}
    for split in SPLITS:
        rows = dataset.rows(split)
        targets, times = rows.targets_R.tolist(), rows.timestamps_R.tolist()
        for *row, at in zip(rows.user_ids, rows.histories, targets, times, strict=True):
            found.setdefault(tuple(row), []).append((split, at))
    return found


def test_our_split_is_the_given_one(domain, tmp_path, said):
    given_card = prepare(domain, tmp_path / "given", PrepareOptions(), said.append)
    our_card = prepare(domain, tmp_path / "ours", PrepareOptions(format="table"), said.append)
    given, ours = Dataset(tmp_path / "given"), Dataset(tmp_path / "ours")

    assert (given_card.source_format, our_card.source_format) == ("splits", "table")
    assert our_card.rows == given_card.rows
    assert our_card.time == given_card.time
    assert our_card.titles == given_card.titles
    assert ours.catalogue.titles == given.catalogue.titles
    by_id = [{user.user_id: user.items for user in d.users} for d in (given, ours)]
    assert by_id[0] == by_id[1]
    theirs, mine = rows_of(given), rows_of(ours)
    assert {row: len(found) for row, found in theirs.items()} == {
        row: len(found) for row, found in mine.items()
    }
    cuts = {our_card.time.valid_from, our_card.time.test_from}
    redated = 0
    for row, found in mine.items():
        for (split, at), (given_split, given_at) in zip(found, theirs[row], strict=True):
            # rows that share the time of a cut may lie on its other side, others may not
            assert split == given_split or at in cuts
            redated += at != given_at
    # the two files date a few targets differently: that is theirs, and moves no cut
    assert redated < 0.002 * len(mine)


def test_popularity_ranks_as_published(domain, tmp_path, said):
    prepare(domain, tmp_path / "given", PrepareOptions(), said.append)
    dataset = Dataset(tmp_path / "given")

    top = set(dataset.catalogue.by_popularity[:10])
    targets = dataset.rows("test").targets_R.tolist()
    rate = sum(target in top for target in targets) / len(targets)
    assert round(rate, 4) == POPULARITY_HR_10[domain.name]
