"""Rows from nothing on a tiny base: interrupted, taken up again, and sharing what they have in common."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_run import TITLES, Silent, teacher_config, write_source

from benchmarks.quality.plan import Shapes
from benchmarks.quality.reproduce import Reproduction, reproduce
from benchmarks.quality.rows import Row, TestRows, keep, read_quality, read_ranks
from benchmarks.quality.trials import COLUMNS, TRIALS_FILE, make_trial
from benchmarks.quality.work import Asked, make_row
from pruning.checkpoint import save_checkpoint
from pruning.errors import RecipeError
from pruning.teacher.scratch import base_from_scratch
from recommender.errors import InputError
from recommender.prompt import PromptTemplate
from recommender.ranking import Metrics

SIZES = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
}
SHAPES: Shapes = {95: SIZES, 98: SIZES}
NAMED_BY_THE_ISSUE = """
    dataset base method recipe seed pruned_nonembedding parameters_nonembedding parameters_total bytes
    hr10 ndcg10 hr10_interval ndcg10_interval retention_hr10 retention_ndcg10 retention_ndcg10_interval
    teacher_hr10 teacher_ndcg10 training_tokens trials command commit date
"""


class StoppedError(Exception):
    pass


class Interrupting(Silent):
    """Stops the work like Ctrl-C, at the first thing said that contains a text."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def say(self, text: str) -> None:
        super().say(text)
        if self.at in text:
            raise StoppedError


class Made:
    """A folder in which the `espalier` row was reproduced, interrupted twice on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = write_source(folder / "source", users=24)
        base = base_from_scratch(teacher_config().scratch, TITLES, PromptTemplate())
        self.base = folder / "tiny"
        self.base.mkdir()
        save_checkpoint(self.base, base.model, base.tokenizer, PromptTemplate())
        self.interrupted = [Interrupting("ranking the whole test split"), Interrupting("restoring")]
        for reporter in self.interrupted:
            with pytest.raises(StoppedError):
                self.again(reporter)
        self.last = Silent()
        self.first = self.again(self.last)

    def again(self, reporter: Silent) -> Reproduction:
        work, results = self.folder / "work", self.folder / "published"
        return reproduce("rivers", self.source, work, results, reporter, self.base, SHAPES)

    def asked(self, **changes: object) -> Asked:
        work = self.folder / "work"
        row = Asked("rivers", self.source, self.base, work, work / "results", "espalier", shapes=SHAPES)
        return replace(row, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("quality"))


def test_a_reproduction_goes_on_where_it_was_interrupted(made: Made) -> None:
    trained = [
        any("trained already" in line for line in one.lines) for one in (*made.interrupted, made.last)
    ]
    assert trained == [False, True, True]
    assert "ranking the whole test split" in made.interrupted[0].lines[-1]
    assert not any("with the teacher" in line for line in made.last.lines)


def test_a_reproduction_stands_beside_what_is_published(made: Made) -> None:
    row = made.first.here
    assert made.first.published is None
    assert made.first.lines()[-1] == "No row of rivers is published: espalier-95-0-1"
    ranks = read_ranks(made.folder / "work" / "results", "rivers")
    keep(made.folder / "published", row, TestRows(ranks["users"], ranks["seen"]), ranks[row.key])
    found = made.again(Silent())
    assert found.published == row
    assert found.here.ndcg10 == row.ndcg10
    assert found.lines()[2].split() == ["ndcg10", f"{row.ndcg10:.4f}", f"{row.ndcg10:.4f}"]
    assert "NDCG@10 is within the published interval" in found.lines()[-1]
    low, high = row.ndcg10_interval
    moved = row.model_copy(update={"ndcg10_interval": (high + 0.01, high + 0.02)})
    assert "NDCG@10 is outside the published interval" in Reproduction(row, moved).lines()[-1]
    assert low <= row.ndcg10 <= high


def test_a_row_has_what_the_table_needs(made: Made) -> None:
    row = made.first.here
    stored = json.loads((made.folder / "work" / "results" / "quality.json").read_text())["runs"]
    assert stored[0].keys() == {*NAMED_BY_THE_ISSUE.split(), "size", "budget", "machine"}
    assert None not in stored[0].values()
    assert (row.dataset, row.base, row.recipe) == ("rivers", "tiny", "espalier")
    ranks_R = read_ranks(made.folder / "work" / "results", "rivers")[row.key]
    assert row.ndcg10 == pytest.approx(Metrics.of(ranks_R).ndcg10)
    assert row.retention_hr10 is not None
    assert row.teacher_hr10 is not None
    assert row.hr10 == pytest.approx(row.retention_hr10 * row.teacher_hr10)
    assert str(made.folder) not in row.command


def test_the_teachers_row_is_the_one_that_others_are_measured_against(made: Made) -> None:
    row = make_row(made.asked(method="teacher"), Silent())
    assert (row.hr10, row.ndcg10) == (made.first.here.teacher_hr10, made.first.here.teacher_ndcg10)
    assert (row.size, row.budget, row.retention_ndcg10, row.pruned_nonembedding) == (None, None, None, 0)
    assert row.training_tokens is not None
    assert row.training_tokens > 0


def test_another_seed_is_another_run_with_the_teachers_own_ranks(made: Made) -> None:
    reporter = Silent()
    row = make_row(made.asked(method="paper", seed=1, budget=0.25), reporter)
    first, second = (made.folder / "work" / "rivers" / f"run-{seed}" for seed in (0, 1))
    assert not any("with the teacher:" in line for line in reporter.lines)
    ranks = [np.load(run / "test" / "teacher.npy").tolist() for run in (first, second)]
    assert ranks[0] == ranks[1]
    ours = made.first.here
    assert row.teacher_ndcg10 == ours.teacher_ndcg10
    assert row.parameters_nonembedding == ours.parameters_nonembedding
    linked = [one for one in second.glob("signals-*") if one.is_symlink()]
    assert {os.path.realpath(one) for one in linked} == {
        os.path.realpath(one) for one in first.glob("signals-*")
    }
    assert [r.key for r in read_quality(made.folder / "work" / "results").runs if r.size] == [
        "espalier-95-0-1",
        "paper-95-1-0.25",
    ]


def test_trials_are_noted_one_below_the_other_and_look_at_no_test_row(made: Made, tmp_path: Path) -> None:
    asked = made.asked(results=tmp_path, budget=0.25)
    as_it_stands, reporter = make_trial(asked, {}, "a first one, with a comma", Silent()), Silent()
    make_trial(asked, {"learning_rate": "2e-3"}, "faster", reporter)
    assert not any("test split" in line for line in reporter.lines)
    first, second = csv.DictReader((tmp_path / TRIALS_FILE).read_text().splitlines())
    assert tuple(first) == COLUMNS
    assert first == {name: str(value) for name, value in as_it_stands.items()}
    assert (first["note"], second["note"]) == ("a first one, with a comma", "faster")
    assert first["training_tokens"] == second["training_tokens"] != "0"
    assert first["key"] != second["key"]
    assert second["command"].startswith("python -m benchmarks.quality trial rivers --source source")
    assert second["command"].endswith(
        "--method espalier --seed 0 --size 95 --budget 0.25 --set learning_rate=2e-3"
    )
    row = make_row(asked, Silent())
    assert row.training_tokens == as_it_stands["training_tokens"]


def test_no_row_where_no_layer_fits(made: Made) -> None:
    with pytest.raises(RecipeError, match="no legal shape"):
        make_row(made.asked(method="depth-only"), Silent())
    rows: tuple[Row, ...] = read_quality(made.folder / "work" / "results").runs
    assert not any(row.method == "depth-only" for row in rows)


def test_nothing_to_reproduce_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give SOURCE=FOLDER with the files of rivers"):
        reproduce("rivers", tmp_path / "nowhere", tmp_path, tmp_path, Silent())
