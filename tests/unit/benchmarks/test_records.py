"""How a benchmark's record reaches a file and a page."""

import json
from pathlib import Path

from benchmarks.records import described, percentiles, provenance, publish, table


def test_percentiles_are_milliseconds() -> None:
    assert percentiles([0.001 * number for number in range(200)]) == {
        "p50_ms": 100.0,
        "p95_ms": 190.0,
        "p99_ms": 198.0,
    }
    assert percentiles([]) is None


def test_a_table_is_markdown() -> None:
    assert table(("a", "b"), [("x", 1)]) == "| a | b |\n| --- | --: |\n| x | 1 |"


def test_the_record_and_its_page_stand_side_by_side(tmp_path: Path) -> None:
    record = described(["numpy"])
    publish(record, tmp_path / "found.json", provenance)
    assert json.loads((tmp_path / "found.json").read_text()) == record
    told = (tmp_path / "found.md").read_text()
    assert record["command"] in told
    assert f"numpy {record['machine']['numpy']}" in told
