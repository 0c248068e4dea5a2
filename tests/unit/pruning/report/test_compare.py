"""Runs side by side: paired differences, latency, the page, and what cannot be compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from report_run import small_config
from small_run import Silent, teacher_config, write_dataset

from pruning.errors import RunError
from pruning.pipeline.run import prune
from pruning.report.compare import Comparison, compare
from pruning.report.compared import comparison_table, write_comparison
from pruning.report.plots import pareto_front
from pruning.teacher.train import train_teacher
from recommender.dataset import Dataset
from recommender.ranking import UserBootstrap, gains


def test_two_runs_are_paired_by_user(finished: Path, tmp_path: Path) -> None:
    comparison = compare([finished / "run", finished / "other"], None, Silent())
    first, second = comparison.runs
    assert (first.name, second.name) == ("run", "other")
    assert first.difference_ndcg10 is None
    ranks = [
        np.load(next(folder.glob("test/student-*.npy")))
        for folder in (finished / "run", finished / "other")
    ]
    bootstrap = UserBootstrap(Dataset(finished / "dataset").rows("test").user_ids)
    assert second.difference_ndcg10 == bootstrap.difference(gains(ranks[1], 10), gains(ranks[0], 10))
    assert first.parameters_nonembedding < second.parameters_nonembedding
    assert all(run.latency.p50_ms > 0 for run in comparison.runs)
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison

    assert comparison_table(comparison).row_count == 2
    write_comparison(comparison, tmp_path / "new" / "compare.html")
    page = (tmp_path / "new" / "compare.html").read_text()
    assert f"{second.parameters_total:,}" in page
    assert f"{second.difference_ndcg10.value:.4f}" in page
    assert "https:" not in page
    assert "different teachers" not in page


def test_without_the_data_set_nothing_is_paired(finished: Path, tmp_path: Path) -> None:
    for name in ("run", "other"):
        shutil.copytree(finished / name, tmp_path / "far" / name)
    runs = [tmp_path / "far" / "run", tmp_path / "far" / "other"]
    reporter = Silent()
    assert compare(runs, None, reporter).runs[1].difference_hr10 is None
    assert any("--dataset" in line for line in reporter.lines)
    assert compare(runs, finished / "dataset", Silent()).runs[1].difference_hr10 is not None


def test_what_cannot_be_compared(finished: Path, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, seed=1)
    train_teacher(dataset, tmp_path / "teacher", teacher_config(), Silent())
    prune(dataset, tmp_path / "teacher", tmp_path / "foreign", small_config(), Silent())
    with pytest.raises(RunError, match="another data set or split"):
        compare([finished / "run", tmp_path / "foreign"], None, Silent())
    with pytest.raises(RunError, match="give two or more"):
        compare([finished / "run"], None, Silent())
    with pytest.raises(RunError, match="named twice"):
        compare([finished / "run", finished / "." / "run"], None, Silent())
    unfinished = shutil.copytree(finished / "run", finished / "unfinished")
    (unfinished / "report.json").unlink()
    with pytest.raises(RunError, match="not finished"):
        compare([finished / "run", unfinished], None, Silent())
    cut = shutil.copytree(finished / "run", finished / "cut")
    ranks_file = next(cut.glob("test/student-*.npy"))
    np.save(ranks_file, np.load(ranks_file)[:-1])
    with pytest.raises(RunError, match="remove it and prune again"):
        compare([finished / "run", cut], None, Silent())


def test_runs_of_one_name_are_told_apart(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "run", tmp_path / "twin" / "run")
    comparison = compare([finished / "run", tmp_path / "twin" / "run"], finished / "dataset", Silent())
    assert [run.name for run in comparison.runs] == [f"{finished.name}/run", "twin/run"]
    twin = comparison.runs[1].difference_ndcg10
    assert twin is not None
    assert json.loads(twin.model_dump_json()) == {"value": 0, "low": 0, "high": 0}


def test_the_front_is_what_nothing_beats() -> None:
    points = [(1.0, 0.2), (2.0, 0.1), (2.0, 0.5), (3.0, 0.5), (4.0, 0.6)]
    assert pareto_front(points) == [(1.0, 0.2), (2.0, 0.5), (4.0, 0.6)]
