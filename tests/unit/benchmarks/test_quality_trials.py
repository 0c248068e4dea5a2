"""The log of trials: a line a run, of validation figures alone. `test_quality_work` notes a real one."""

from pathlib import Path

import pytest

from benchmarks.quality.trials import COLUMNS, TRIALS_FILE, log_trial, trial_figures
from pruning.errors import RunError
from pruning.pipeline.results import Contender, Figures, RunReport, StageResult, TestResult
from pruning.surgery.shape import Shape
from recommender.ranking import Interval, Metrics

SHAPE = Shape(
    model_type="llama",
    vocab_size=400,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
)
TEST_FIGURE = 0.777
BEFORE = Figures(loss=30.0, hr10=0.01, ndcg10=0.005)
AFTER = Figures(
    loss=8.61239,
    catalogue_loss=6.5,
    hr10=0.15,
    ndcg10=0.11,
    hr10_interval=Interval(value=0.15, low=0.13, high=0.17),
    ndcg10_interval=Interval(value=0.11, low=0.095, high=0.125),
)


def stage(name: str, layers: int, after: Figures, steps: int) -> StageResult:
    return StageResult(
        name=name,
        key=name,
        importance="activation",
        shape=SHAPE.model_copy(update={"num_hidden_layers": layers}),
        bytes=1000,
        after_cut=BEFORE,
        after_restoration=after,
        restoration_steps=steps,
    )


def run_report() -> RunReport:
    names = ("hr1", "hr5", "hr10", "hr20", "ndcg5", "ndcg10", "ndcg20")
    one = Interval(value=TEST_FIGURE, low=TEST_FIGURE, high=TEST_FIGURE)
    model = Contender(metrics=Metrics(rows=1, **dict.fromkeys(names, TEST_FIGURE)), hr10=one, ndcg10=one)
    return RunReport(
        dataset="rivers",
        dataset_sha256="d",
        base="scratch",
        teacher_sha256="t",
        recipe="espalier",
        seed=2,
        validation_rows=20,
        teacher_shape=SHAPE,
        teacher_bytes=2000,
        teacher=AFTER,
        stages=(stage("width", 3, BEFORE, 10), stage("depth", 1, AFTER, 32)),
        test=TestResult(
            teacher=model,
            student=model,
            popularity=model,
            retention_hr10=one,
            retention_ndcg10=one,
            teacher_over_popularity_ndcg10=one,
            student_over_popularity_ndcg10=one,
        ),
    )


def test_a_trial_is_the_last_stage_on_the_validation_split() -> None:
    report = run_report()
    figures = trial_figures(report, 86_000)
    assert figures.keys() | {"date", "commit", "note"} == set(COLUMNS)
    assert (figures["dataset"], figures["recipe"], figures["seed"]) == ("rivers", "espalier", 2)
    assert (figures["key"], figures["steps"], figures["training_tokens"]) == ("depth", 42, 86_000)
    assert figures["nonembedding"] == report.student_shape.nonembedding_parameters
    assert report.student_shape.num_hidden_layers == 1
    assert (figures["loss"], figures["catalogue_loss"]) == (8.6124, 6.5)
    assert (figures["ndcg10"], figures["ndcg10_low"], figures["ndcg10_high"]) == (0.11, 0.095, 0.125)
    assert TEST_FIGURE not in figures.values()


def test_an_unfinished_run_is_no_trial(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="finish the run"):
        log_trial(tmp_path, tmp_path, "too early")
    assert not (tmp_path / TRIALS_FILE).exists()
