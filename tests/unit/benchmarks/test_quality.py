"""The quality benchmark: equal budgets, rows that can be paired, and a small run of every kind."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from small_run import TITLES, write_dataset

from benchmarks.quality import plan
from benchmarks.quality.comparison import Results
from benchmarks.quality.page import write_page
from benchmarks.quality.rows import Row, TestRows, keep, read_quality, read_ranks
from benchmarks.quality.sasrec import sasrec_ranks
from pruning.evaluation import RankingTask
from pruning.teacher.scratch import train_tokenizer
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder, PromptTemplate
from recommender.ranking import gains

METHODS = ("espalier", "paper", "scratch", "scratch-distilled", "random", "depth-only")


def row(method: str, **changes: object) -> Row:
    figures = dict.fromkeys(Row.model_fields, None) | {
        "dataset": "movies_and_tv",
        "method": method,
        "seed": 0,
        "size": 95,
        "budget": 1.0,
        "training_tokens": 1_000_000,
        "hr10": 0.1,
        "ndcg10": 0.05,
        "hr10_interval": (0.08, 0.12),
        "ndcg10_interval": (0.04, 0.06),
        "trials": 1,
        "command": "python",
        "commit": "abc",
        "date": "2026-11-27",
    }
    return Row.model_validate(figures | changes)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gets_the_same_steps(method: str) -> None:
    recipe = plan.budgeted(plan.recipe_of(method), 1500, 500, "float32")
    trainings = [stage.training for stage in recipe.stages if stage.training is not None]
    assert sum(training.max_steps or 0 for training in trainings) == pytest.approx(1500, abs=2)
    assert all((training.max_steps or 0) <= training.epochs * 500 for training in trainings)
    assert {training.precision for training in trainings} == {"float32"}
    assert {training.best_by for training in trainings} == {"ndcg10"}


def test_controls_differ_from_ours_in_one_thing() -> None:
    stages = plan.recipe_of("espalier").stages
    ours = stages[-1]
    control = plan.recipe_of("scratch-distilled")
    (distilled,) = control.stages
    assert control.augmentation == plan.recipe_of("espalier").augmentation
    assert distilled.training is not None
    assert ours.training == distilled.training.model_copy(update={"warmup": 0.05})
    assert distilled.distillation == ours.distillation
    assert distilled.rounding == ours.rounding == "bfloat16"
    # Nothing is left of what a score could choose.
    assert (distilled.repair, distilled.importance, distilled.weights) == (None, "random", "drawn")
    assert (ours.weights, distilled.weights) == ("inherited", "drawn")
    assert distilled.keep == {axis: share for stage in stages for axis, share in stage.keep.items()}
    random = plan.recipe_of("random").stages
    assert tuple(stage.model_copy(update={"importance": ours.importance}) for stage in random) == stages
    (scratch,) = plan.recipe_of("scratch").stages
    assert (scratch.distillation.cross_entropy, scratch.distillation.forward_kl) == (1, 0)
    assert (scratch.training, scratch.weights) == (distilled.training, "drawn")
    (layers,) = plan.recipe_of("depth-only").stages
    assert layers.keep == {"layers": 1.0}
    assert layers.repair == stages[0].repair is not None
    assert (layers.training, layers.distillation) == (ours.training, ours.distillation)
    paper = plan.recipe_of("paper").stages
    assert paper[-1].rounding == "bfloat16"
    assert {stage.training and stage.training.tokens_per_batch for stage in paper} == {1024}


def test_rows_and_ranks_are_kept_replaced_and_paired(tmp_path: Path) -> None:
    rows = TestRows(np.array([0, 0, 1, 2, 2, 3], np.int32), np.array([0, 1, 2, 3, 4, 500], np.int32))
    ours_R, theirs_R = np.array([1, 2, 0, 1, 3, 1], np.int32), np.array([1, 0, 0, 2, 3, 9], np.int32)
    keep(tmp_path, row("espalier"), rows, np.zeros(6, np.int32))
    keep(tmp_path, row("espalier", hr10=0.2, retention_hr10=1.1, retention_ndcg10=0.9), rows, ours_R)
    keep(tmp_path, row("scratch-distilled"), rows, theirs_R)
    keep(tmp_path, row("espalier", budget=0.25), rows, ours_R)
    assert [r.key for r in read_quality(tmp_path).runs] == [
        "espalier-95-0-1",
        "espalier-95-0-0.25",
        "scratch-distilled-95-0-1",
    ]
    stored = read_ranks(tmp_path, "movies_and_tv")
    assert stored["espalier-95-0-1"].tolist() == ours_R.tolist()
    assert stored["seen"].tolist() == rows.seen_R.tolist()
    results = Results(tmp_path)
    paired = results.paired("scratch-distilled", 95, 1.0, ["movies_and_tv", "video_games"])
    assert paired is not None
    assert paired.sets == ("movies_and_tv",)
    by_hand = (gains(ours_R, 10) - gains(theirs_R, 10)).mean()
    assert paired.difference.value == pytest.approx(by_hand)
    assert results.paired("paper", 95, 1.0, ["movies_and_tv"]) is None
    assert results.retention(95) == {"movies_and_tv": (1.1, 0.9)}

    keep(
        tmp_path,
        row("espalier", seed=1, hr10=0.2, retention_hr10=1.1, retention_ndcg10=0.9),
        rows,
        theirs_R,
    )
    keep(tmp_path, row("random", seed=1), rows, theirs_R)
    keep(tmp_path, row("depth-only", seed=2), rows, theirs_R)
    results = Results(tmp_path)
    assert results.paired("scratch-distilled", 95, 1.0, ["movies_and_tv"]) == paired
    assert paired.seeds == (0,)  # not the mean of two against one
    other = results.paired("random", 95, 1.0, ["movies_and_tv"])
    assert other is not None
    assert (other.seeds, other.difference.value) == ((1,), 0.0)
    assert results.paired("depth-only", 95, 1.0, ["movies_and_tv"]) is None
    assert "movies_and_tv espalier at 95 %, seed 0, budget 1" not in results.missing()
    assert "movies_and_tv espalier at 98 %, seed 0, budget 1" in results.missing()
    write_page(tmp_path)
    page = (tmp_path / "quality.md").read_text()
    assert f"{by_hand:.4f} [" in page
    drawn = ElementTree.fromstring((tmp_path / "quality_curve.svg").read_text())
    assert len(drawn.findall(".//{*}title")) == 3  # a point for each of our two budgets and one control's
    assert "mean retention over 1 of 3 sets is 1.100 (HR@10) and 0.900 (NDCG@10)" in page


def test_sasrec_finds_what_follows_what(tmp_path: Path) -> None:
    dataset = Dataset(write_dataset(tmp_path, users=120))
    encoder = PromptEncoder(PromptTemplate(), train_tokenizer(TITLES, PromptTemplate(), 320))
    task = RankingTask(dataset.catalogue, encoder, dataset.rows("test"))
    said: list[str] = []
    ranks_R = sasrec_ranks(dataset, task, 0, said.append)
    validations = [float(line.rpartition(" ")[2]) for line in said]
    best = validations.index(max(validations))
    assert len(said) == best + 1 + 10  # ten more that were no better
    assert gains(ranks_R, 10).mean() > 1.5 * gains(task.popularity_ranks(), 10).mean()
    assert (sasrec_ranks(dataset, task, 0, said.append) == ranks_R).all()
