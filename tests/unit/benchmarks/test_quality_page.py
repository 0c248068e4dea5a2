"""What the rows say together, from ranks so small that the figures can be checked by hand.

A gain is 1 at rank 1, 0.5 at rank 3, and 0 where the list did not reach the target.
"""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.quality.comparison import Results, worth_keeping
from benchmarks.quality.page import page, write_page
from benchmarks.quality.rows import Row, TestRows, keep
from recommender.ranking import Interval, UserBootstrap

MOVIES, GAMES = "movies_and_tv", "video_games"
USERS = {MOVIES: [0, 0, 1, 1], GAMES: [0, 1]}
SEEN = {MOVIES: [0, 7, 9, 300], GAMES: [4, 50]}
TEACHER = 0.375


def put(folder: Path, dataset: str, method: str, ranks: list[int], **changes: object) -> None:
    pruned = method not in ("teacher", "sasrec", "popularity")
    ranks_R = np.array(ranks, np.int32)
    gained = np.where(ranks_R > 0, 1 / np.log2(ranks_R + 1.0 + (ranks_R == 0)), 0).mean()
    figures = dict.fromkeys(Row.model_fields, None) | {
        "dataset": dataset,
        "method": method,
        "seed": 0,
        "size": 95 if pruned else None,
        "budget": 1.0 if pruned else None,
        "training_tokens": 1_000_000,
        "hr10": (ranks_R > 0).mean(),
        "ndcg10": gained,
        "hr10_interval": (0, 1),
        "ndcg10_interval": (0, 1),
        "retention_hr10": (ranks_R > 0).mean() / 0.5 if pruned else None,
        "retention_ndcg10": gained / TEACHER if pruned else None,
        "teacher_ndcg10": TEACHER if pruned else None,
        "trials": 3,
        "command": "python -m benchmarks.quality run",
        "commit": "abc",
        "date": "2026-11-27",
    }
    rows = TestRows(np.array(USERS[dataset], np.int32), np.array(SEEN[dataset], np.int32))
    keep(folder, Row.model_validate(figures | changes), rows, ranks_R)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path, MOVIES, "teacher", [1, 3, 0, 0])
    put(tmp_path, MOVIES, "espalier", [1, 1, 3, 0])
    put(tmp_path, MOVIES, "espalier", [1, 3, 3, 0], seed=1)
    put(tmp_path, MOVIES, "scratch-distilled", [3, 3, 3, 0], training_tokens=500_000)
    put(tmp_path, MOVIES, "scratch-distilled", [3, 3, 3, 0], seed=1, training_tokens=500_000)
    put(tmp_path, GAMES, "espalier", [1, 3])
    put(tmp_path, GAMES, "scratch-distilled", [3, 1])
    return tmp_path


def test_seeds_are_averaged_before_sets_are_paired(folder: Path) -> None:
    results = Results(folder)
    movies = results.paired("scratch-distilled", 95, 1.0, [MOVIES])
    assert movies is not None
    assert movies.difference.value == pytest.approx((0.5 + 0.25) / 4)
    assert movies.tokens == 2
    games = results.paired("scratch-distilled", 95, 1.0, [GAMES])
    assert games is not None
    assert (games.difference.value, games.above) == (0, False)
    assert results.paired("scratch-distilled", 95, 0.25, [MOVIES]) is None


def test_pooled_rows_keep_the_sets_users_apart(folder: Path) -> None:
    pooled = Results(folder).standing(95, 1.0)["scratch-distilled"]
    assert pooled is not None
    assert pooled.sets == (MOVIES, GAMES)
    assert pooled.difference.value == pytest.approx(0.75 / 6)
    gained_R = np.array([0.5, 0.25, 0, 0, 0.5, -0.5])
    people = ["m0", "m0", "m1", "m1", "v0", "v1"]
    assert pooled.difference == UserBootstrap(people).mean(gained_R)
    assert pooled.difference != UserBootstrap(["0", "0", "1", "1", "0", "1"]).mean(gained_R)


def test_what_is_kept_is_the_mean_over_seeds_with_its_bounds(folder: Path) -> None:
    results = Results(folder)
    assert results.retention(95)[MOVIES] == pytest.approx((0.75 / 0.5, 0.5625 / TEACHER))
    one = results.averaged(results.of(MOVIES, "espalier", 95, 1.0))
    assert one.ndcg10.value == pytest.approx(0.5625)
    assert one.keeps_ndcg10 is not None
    # Of user 0 alone it keeps 1.75 / 1.5; user 1 the teacher never served, and who is then left out.
    assert one.keeps_ndcg10.low == pytest.approx(1.75 / 1.5)
    alone = results.averaged(results.of(GAMES, "espalier", 95, 1.0))
    assert alone.keeps_ndcg10 is not None
    assert np.isnan(alone.keeps_ndcg10.low)


def test_the_gate_wants_a_margin_and_no_doubt(folder: Path) -> None:
    assert Results(folder).gate(MOVIES) is None
    put(folder, MOVIES, "scratch", [3, 0, 0, 0])
    gate = Results(folder).gate(MOVIES)
    assert gate == Interval(value=3, low=3, high=3)
    assert worth_keeping(gate)
    assert not worth_keeping(Interval(value=1.14, low=1.1, high=1.2))
    assert not worth_keeping(Interval(value=1.3, low=0.99, high=1.7))


def test_missing_rows_are_named_and_no_others(folder: Path) -> None:
    absent = Results(folder).missing()
    assert f"{MOVIES} espalier at 95 %, seed 2, budget 1" in absent
    assert f"{MOVIES} espalier at 95 %, seed 1, budget 1" not in absent
    assert f"{MOVIES} paper at 95 %, seed 0, budget 0.125" in absent
    assert f"{GAMES} espalier at 95 %, seed 1, budget 1" not in absent
    assert f"{GAMES} espalier at 95 %, seed 0, budget 0.5" not in absent
    assert f"{GAMES} random at 98 %, seed 0, budget 1" not in absent
    assert "cds_and_vinyl sasrec" in absent
    # 3 sets x (3 peers + 6 methods at 95 % + 3 at 98 %), 2 x 2 x 2 more seeds, 3 x 4 other budgets;
    # of those 6 rows are there.
    assert len(absent) == 3 * 12 + 8 + 12 - 6
    assert len(set(absent)) == len(absent)


def test_a_row_of_another_teacher_is_named(folder: Path) -> None:
    assert not Results(folder).of_another_teacher()
    put(folder, MOVIES, "random", [3, 3, 0, 0], teacher_ndcg10=0.3)
    assert [row.key for row in Results(folder).of_another_teacher()] == ["random-95-0-1"]
    assert f"made again:\n\n- {MOVIES}, random-95-0-1\n" in page(Results(folder))


def test_the_first_table_stars_what_espalier_is_above_without_doubt(folder: Path) -> None:
    put(folder, MOVIES, "scratch", [0, 0, 0, 0])
    put(folder, MOVIES, "scratch", [0, 3, 0, 3], budget=0.25)
    put(folder, MOVIES, "espalier", [1, 1, 1, 1], budget=0.25)
    first = page(Results(folder)).split("## How to read this")[0]
    # Against `scratch` both users gain; against `scratch-distilled` user 1 does not.
    none = "— | — | — |"
    movies, games = f"| {MOVIES} | 95 % | ", f"| {GAMES} | 95 % | "
    assert f"{movies}1 | 0.3750 | — | **0.5625** | 150.0% | 150.0% | 0.3750 | 0.0000 * | {none}" in first
    assert f"{movies}0.25 | 0.3750 | — | **1.0000** | 200.0% | 266.7% | — | 0.2500 * | {none}" in first
    assert f"{games}1 | — | — | **0.7500** | 200.0% | 200.0% | 0.7500 | — | {none}" in first


def test_the_page_says_it_plainly(folder: Path) -> None:
    put(folder, MOVIES, "espalier", [0, 0, 3, 0], budget=0.25, training_tokens=250_000)
    write_page(folder)
    written = (folder / "quality.md").read_text()
    assert "| espalier | 0, 1 |" in written
    assert f"| scratch-distilled | 95 % | 1 | {MOVIES} | 0, 1 | 0.1875 [" in written
    assert f"| scratch-distilled | 95 % | 1 | {MOVIES}, {GAMES} | 0, 1 | 0.1250 [" in written
    kept = ((1.5 + 2.0) / 2, (0.5625 / TEACHER + 0.75 / TEACHER) / 2)
    assert f"over 2 of 3 sets is {kept[0]:.3f} (HR@10) and {kept[1]:.3f} (NDCG@10)" in written
    assert "open, sets are missing" in written
    assert "At 98 %: no row of `espalier`" in written
    drawn = ElementTree.fromstring((folder / "quality_curve.svg").read_text())
    assert len(drawn.findall(".//{*}title")) == 3
    names = [one.text for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"espalier", "scratch-distilled", "teacher"} <= set(names)


def test_rare_titles_and_frequent_ones_stand_apart(folder: Path) -> None:
    groups = Results(folder).by_familiarity(MOVIES, 95, 1.0)
    assert [(one.fewest, one.most, one.rows) for one in groups] == [(0, 0, 1), (5, 9, 2), (50, None, 1)]
    never, some, often = groups
    assert never.ndcg10 == {"teacher": 1, "espalier": 1, "scratch-distilled": 0.5}
    assert never.lead == Interval(value=0.5, low=0.5, high=0.5)
    assert some.ndcg10["espalier"] == pytest.approx((0.75 + 0.5) / 2)  # its seeds averaged
    assert some.lead is not None
    assert (some.lead.value, some.lead.low, some.lead.high) == pytest.approx((0.125, 0, 0.25))
    assert often.ndcg10["teacher"] == 0
    assert Results(folder).by_familiarity(MOVIES, 98, 1.0) == []
    assert "| 5-9 | 2 | 0.2500 | — | 0.6250 | 0.5000 | 0.1250 [0.0000, 0.2500] |" in page(Results(folder))


def test_no_rows_make_a_page_that_says_so(tmp_path: Path) -> None:
    write_page(tmp_path)
    assert "these rows are not there" in (tmp_path / "quality.md").read_text()
    assert not (tmp_path / "quality_curve.svg").exists()
