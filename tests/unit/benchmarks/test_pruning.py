"""Both sides of the pipeline's benchmark do the same work; and its arithmetic."""

import math

import pytest
import torch
from small_run import RECIPE, write_dataset

from benchmarks import pruning_ours as ours
from benchmarks import pruning_plain as plain
from benchmarks.pruning import ROWS, ratio, summary, whole_run
from benchmarks.pruning_subjects import (
    Subjects,
    base_of,
    prepare_subjects,
    read_teacher,
    shapes_of,
    student_after,
)
from benchmarks.turns import Course
from pruning.pipeline.recipe import Recipe, load_recipe
from pruning.surgery.shape import Shape
from pruning.training.batches import collate
from pruning.training.logits import target_logits
from pruning.training.windows import Window
from recommender.dataset import Dataset

SHAPE = (
    "hidden_size=32,num_hidden_layers=3,num_attention_heads=4,num_key_value_heads=2,"
    "intermediate_size=48,vocab_size=400"
)


class Here:
    """Turns in this process: what each came to."""

    def __init__(self) -> None:
        self.done: list = []
        self.open = False

    def begin(self) -> None:
        assert not self.open
        self.open = True

    def end(self, done) -> None:
        assert self.open
        self.open = False
        self.done.append(done)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    dataset = Dataset(write_dataset(tmp_path_factory.mktemp("data")))
    return prepare_subjects(dataset, base_of(SHAPE, dataset), tmp_path_factory.mktemp("subjects"), 24)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    file = tmp_path_factory.mktemp("recipe") / "small.toml"
    file.write_text(RECIPE)
    return load_recipe(str(file))


def nats(model, batch: plain.Padded) -> float:
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    return torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100]).item()


def test_a_row_per_target_has_every_target_once() -> None:
    window = Window((9, 1, 2, 3, 4), (1, 3), (3, 5))
    assert plain.one_row_per_target([window]) == [
        Window((9, 1, 2), (1,), (3,)),
        Window((9, 1, 2, 3, 4), (3,), (5,)),
    ]


def test_both_sides_have_the_same_users_and_predict_the_same_targets(subjects: Subjects) -> None:
    mine, theirs = subjects.trimmed, subjects.whole
    assert [w.target_from for w in mine.windows] == [w.target_from for w in theirs.windows]
    model = read_teacher(theirs)
    batch = collate(theirs.windows, range(8))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(target_logits(model, batch), batch.labels_P).item()
    assert nats(model, plain.padded(theirs.windows[:8])) == pytest.approx(loss, rel=1e-5)


def test_every_contender_takes_its_turns_and_counts_titles(subjects: Subjects, recipe: Recipe) -> None:
    mine, theirs = subjects.trimmed, subjects.whole
    rows = plain.one_row_per_target(theirs.windows)
    here = Here()
    ours.teach(here, mine, "float32", 2)
    ours.restore(here, mine, recipe, 2, "bfloat16", 2)
    plain.restore(here, theirs, theirs.windows, 5, recipe, 2, 2)
    plain.teach(here, theirs, rows, 5, 2, bf16=False)
    assert len(here.done) == 8
    assert min(here.done) > 0
    assert here.done[-2:] == [5, 5]
    ours.cache(here, mine)
    assert here.done[-1] == sum(len(window.target_from) for window in mine.windows)


def test_calibration_is_timed_for_every_stage_of_both(subjects: Subjects, recipe: Recipe) -> None:
    here = Here()
    ours.calibrate(here, subjects.trimmed, recipe, 2, 1)
    plain.calibrate(here, subjects.whole, recipe, 2, 1)
    names = {stage.name for stage in recipe.stages}
    assert [set(done) for done in here.done] == [names, names]
    assert all(seconds > 0 for done in here.done for seconds in done.values())


def test_a_recipe_runs_through_in_steps(subjects: Subjects, recipe: Recipe) -> None:
    here = Here()
    ours.prune_in_steps(here, subjects.trimmed, recipe, 2, 1)
    assert len(here.done) == len(recipe.stages)


def test_students_have_the_planned_shapes(subjects: Subjects, recipe: Recipe) -> None:
    teacher = read_teacher(subjects.trimmed)
    shapes = shapes_of(recipe, teacher)
    for number in range(len(shapes)):
        student = student_after(teacher, shapes[: number + 1])
        assert Shape.of(student.config) == shapes[number]


def test_rates_and_ratios() -> None:
    quick = Course((1.0, 2.0, 4.0), (10, 10, 10), 1.0)
    slow = Course((2.0, 8.0, 8.0), (10, 10, 20), 1.0)
    assert summary(quick, 50) == {
        "titles_per_s": 5.0,
        "step_p50_s": 2.0,
        "epoch_s": 10.0,
        "peak_rss_mb": 1,
    }
    assert ratio(quick, slow) == 2.0


def test_a_whole_run_counts_epochs_scores_and_the_cache_once() -> None:
    def stage(name: str, epochs: int, precision: str) -> dict:
        seconds = {"ours, float32": 10.0, "ours, bfloat16": 5.0, "plain": 50.0, ROWS: 200.0}
        return {
            "stage": name,
            "epochs": epochs,
            "precision": precision,
            "contenders": {contender: {"epoch_s": one} for contender, one in seconds.items()},
        }

    calibrated = {"ours": {"seconds": {"a": 1.0, "b": 2.0}}, "plain": {"seconds": {"a": 30.0, "b": 20.0}}}
    found = whole_run([stage("a", 1, "bfloat16"), stage("b", 3, "float32")], calibrated, caching_s=7.0)
    assert found == {"ours_s": 45, "plain_s": 250, f"{ROWS}_s": 850, "ratio": 5.56}


def test_published_passes_are_counted_on_every_layer_and_head(
    subjects: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain, "_timed", lambda _: 1.0)
    model = read_teacher(subjects.whole)  # 3 layers of 4 heads

    def passes(*axes: str, published: bool = True) -> float:
        return plain._stage_seconds(model, [], axes, layers_kept=1, published=published)

    assert passes("heads") == 12
    assert passes("hidden") == passes("mlp") == 1
    assert math.isclose(passes("layers"), (3 * 2 + 2 * 1) / 3)
    assert passes("heads", "hidden", published=False) == 1
