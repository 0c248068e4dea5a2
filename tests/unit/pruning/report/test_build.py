"""The page of real small runs: whole, partial, moved, damaged."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from report_run import StoppedError, StoppingAt, small_config
from small_run import TITLES, Silent, teacher_config, write_dataset

from pruning.errors import RunError
from pruning.pipeline.run import prune
from pruning.report.build import write_report
from pruning.teacher.train import train_teacher


class Parsed(HTMLParser):
    """What a page is made of: its tags in order with their attributes, and whether they all close."""

    VOID = ("meta", "link", "br")

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.text = page.read_text()
        self.feed(self.text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_a_finished_run_is_shown_whole(finished: Path) -> None:
    result = write_report(finished / "run", Silent())
    assert result.missing == ()
    assert result.run is not None
    page = Parsed(result.page)
    test = result.run.test
    for interval in (test.student.ndcg10, test.retention_ndcg10, test.teacher.hr10, test.popularity.hr10):
        assert f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]" in page.text
    for stage in result.run.stages:
        assert f">{stage.name}: restored<" in page.text
        assert list(finished.glob(f"run/stages/*{stage.key}/training/runs/*/events.out.tfevents.*"))
        assert stage.after_cut.ndcg10_interval is not None
        assert f"{stage.shape.total_parameters:,}" in page.text
    # Each layer has its heads: 3 layers of 4. Half went for width, and of the rest two layers' with them.
    heads = re.findall(r"<title>layer \d, head \d: (kept|removed in stage \w+)", page.text)
    assert len(heads) == 12
    fates = ("removed in stage width", "removed in stage depth", "kept")
    assert [heads.count(fate) for fate in fates] == [6, 4, 2]
    assert page.text.count("layer removed (depth)") == 2
    assert sum(title in page.text for title in TITLES) > 5
    assert result.latency is not None
    assert set(result.latency.models) == {"teacher", "student"}
    assert result.latency.machine in page.text


def test_the_page_needs_nothing_else_and_says_what_its_pictures_show(finished: Path) -> None:
    page = Parsed(write_report(finished / "run", Silent()).page)
    assert not re.search(r"https?://|<script|@import|url\(", page.text)
    assert [one["href"] for one in page.named("link")] == ["data:,"]
    pictures = [one for one in page.named("svg") if "aria-hidden" not in one]
    assert len(pictures) > 15
    assert all(one["role"] == "img" and len(one["aria-label"] or "") > 20 for one in pictures)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize(
    ("at", "told", "shown"),
    [
        ("stage 1 width: choosing", "stage 1 (width): not begun", "No stage has chosen yet"),
        ("stage 2 mlp: cut to", "stage 2 (mlp): cut, not restored", "mlp: cut"),
        ("stage 3 depth: choosing", "stage 3 (depth): not begun", "mlp: restored"),
        ("ranking the whole test split", "the test split has not been judged", "depth: restored"),
    ],
)
def test_a_run_that_was_stopped_shows_how_far_it_came(
    finished: Path, tmp_path: Path, at: str, told: str, shown: str
) -> None:
    for name in ("dataset", "teacher"):
        shutil.copytree(finished / name, tmp_path / name)
    with pytest.raises(StoppedError):
        prune(tmp_path / "dataset", tmp_path / "teacher", tmp_path / "run", small_config(), StoppingAt(at))
    result = write_report(tmp_path / "run", Silent())
    assert result.run is None
    assert told in result.missing
    assert "the test split has not been judged" in result.missing
    page = Parsed(result.page)
    assert told in page.text
    assert shown in page.text
    assert "Heads within each layer" in page.text


def test_a_run_that_left_its_data_set_and_teacher_behind(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished / "run", tmp_path / "far" / "run")
    result = write_report(run, Silent())
    assert any("--dataset" in words for words in result.missing)
    assert result.run is not None
    assert "Heads within each layer" not in result.page.read_text()
    again = write_report(run, Silent(), finished / "dataset", finished / "teacher")
    assert again.missing == ()
    assert "Heads within each layer" in again.page.read_text()


def test_foreign_folders_are_refused_and_leave_the_page_as_it_was(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished / "run", tmp_path / "run")
    (run / "report.html").write_text("as it was")
    other = write_dataset(tmp_path, seed=1)
    with pytest.raises(RunError, match="is not the data set"):
        write_report(run, Silent(), other, finished / "teacher")
    train_teacher(finished / "dataset", tmp_path / "teacher", teacher_config(seed=1), Silent())
    with pytest.raises(RunError, match="is not the teacher"):
        write_report(run, Silent(), finished / "dataset", tmp_path / "teacher")
    with pytest.raises(RunError, match="no run here"):
        write_report(finished / "dataset", Silent())
    (run / "plan.json").unlink()
    with pytest.raises(RunError, match="repeat the prune command"):
        write_report(run, Silent())
    assert (run / "report.html").read_text() == "as it was"


def test_a_title_cannot_break_the_page(finished: Path, tmp_path: Path) -> None:
    page = write_report(finished / "run", Silent()).page.read_text()
    run = shutil.copytree(finished / "run", tmp_path / "<script>&")
    renamed = write_report(run, Silent(), finished / "dataset", finished / "teacher").page.read_text()
    assert "<script>" not in renamed
    assert "&lt;script&gt;&amp;" in renamed
    assert "&lt;" not in page


def test_the_commands_speak_json_and_name_their_files(finished: Path, tmp_path: Path) -> None:
    def espalier(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "espalier", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True)

    told = json.loads(espalier("report", finished / "run", "--json").stdout)
    assert told["run"]["recipe"] == "small"
    assert told["missing"] == []
    page = Path(told["page"])
    assert page == finished / "run" / "report.html"
    assert page.is_file()
    out = tmp_path / "compare.html"
    pair = (finished / "run", finished / "other")
    compared = json.loads(espalier("compare", *pair, "--out", out, "--json").stdout)
    assert [run["name"] for run in compared["runs"]] == ["run", "other"]
    assert out.is_file()
    shown = espalier("compare", *pair, "--out", out).stdout
    assert f"comparison: {out}" in shown
    assert "…" not in shown  # nothing is cut off where nobody says how wide it is
