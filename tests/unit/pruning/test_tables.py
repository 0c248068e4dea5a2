"""The tables hold the figures that they are made from."""

import io

import pytest
from rich.console import Console
from rich.table import Table

from pruning.pipeline.results import Contender, Figures, RunReport, StageResult, TestResult
from pruning.surgery.shape import Shape
from pruning.tables import metrics_table, stage_table
from pruning.tables import test_table as split_table
from recommender.ranking import Interval, Metrics

BIG = Shape(
    model_type="llama",
    vocab_size=300,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    tie_word_embeddings=True,
    attention_bias=False,
    mlp_bias=False,
)
SMALL = BIG.resized(hidden_size=32, num_attention_heads=2, num_key_value_heads=1)


def rendered(table: Table) -> list[list[str]]:
    text = io.StringIO()
    Console(file=text, width=200).print(table)
    rows = (line.strip("│┃ ").replace("┃", "│") for line in text.getvalue().splitlines())
    return [[cell.strip() for cell in row.split("│")] for row in rows if "│" in row]


def contender(value: float) -> Contender:
    interval = Interval(value=value, low=value / 2, high=value * 2)
    metrics = Metrics(
        rows=1234, hr1=value, hr5=value, hr10=value, hr20=value, ndcg5=value, ndcg10=value, ndcg20=value
    )
    return Contender(metrics=metrics, hr10=interval, ndcg10=interval)


@pytest.fixture
def report() -> RunReport:
    ratio = Interval(value=0.9, low=0.85, high=0.95)
    return RunReport(
        dataset="films",
        dataset_sha256="0" * 64,
        base="scratch",
        teacher_sha256="1" * 64,
        recipe="small",
        seed=0,
        validation_rows=1000,
        teacher_shape=BIG,
        teacher_bytes=2_000_000,
        teacher=Figures(loss=7.0, hr10=0.2, ndcg10=0.1),
        stages=(
            StageResult(
                name="width",
                key="k",
                importance="paper",
                shape=SMALL,
                bytes=600_000,
                after_cut=Figures(loss=12.0, hr10=0.02, ndcg10=0.01),
                after_restoration=Figures(loss=7.5, hr10=0.18, ndcg10=0.09),
                restoration_steps=10,
            ),
        ),
        test=TestResult(
            teacher=contender(0.2),
            student=contender(0.18),
            popularity=contender(0.05),
            retention_hr10=ratio,
            retention_ndcg10=ratio,
            teacher_over_popularity_ndcg10=Interval(
                value=float("nan"), low=float("nan"), high=float("nan")
            ),
            student_over_popularity_ndcg10=ratio,
        ),
    )


def test_stages_before_and_after_restoration(report: RunReport) -> None:
    rows = {row[0]: row[1:] for row in rendered(stage_table(report))}
    assert rows["teacher"][:4] == ["64", "4/2", "128", "4"]
    assert rows["teacher"][4:7] == [f"{BIG.nonembedding_parameters:,}", f"{BIG.total_parameters:,}", "2.0"]
    assert rows["width: cut"][:4] == ["32", "2/1", "128", "4"]
    assert rows["width: cut"][-5:] == ["", "12.00", "0.0200", "0.0100", "0.100"]
    assert rows["width: restored"][-5:] == ["0.6", "7.50", "0.1800", "0.0900", "0.900"]  # what is kept


def test_a_teacher_that_hits_nothing_divides_nothing(report: RunReport) -> None:
    blind = report.model_copy(update={"teacher": Figures(loss=7.0, hr10=0.0, ndcg10=0.0)})
    assert {row[-1] for row in rendered(stage_table(blind))[1:]} == {"nan"}


def test_the_test_split_with_intervals_and_what_is_gone(report: RunReport) -> None:
    rows = rendered(split_table(report))
    student = rows[2]
    gone = 1 - SMALL.nonembedding_parameters / BIG.nonembedding_parameters
    assert student[0] == f"pruned ({gone:.1%} gone)"
    assert student[1] == "0.1800 [0.0900, 0.3600]"
    assert student[3:] == ["0.900 [0.850, 0.950]"] * 3
    assert rows[1][-1].startswith("nan")


def test_a_report_survives_json(report: RunReport) -> None:
    text = report.model_dump_json()
    assert RunReport.model_validate_json(text).model_dump_json() == text


def test_metrics_show_intervals_where_they_are_known() -> None:
    one = contender(0.1)
    rows = rendered(
        metrics_table({"known": (one.metrics, one.hr10, None), "bare": (one.metrics, None, None)}, "test")
    )
    assert rows[0] == ["model", "HR@1", "HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10", "NDCG@20"]
    assert rows[1][3] == "0.1000 [0.0500, 0.2000]"
    assert rows[1][6] == rows[2][3] == "0.1000"
