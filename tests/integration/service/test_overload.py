"""Overload in small: the benchmark itself for some seconds. What it costs in time is not judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recommender.artifact import Artifact

ROOT = Path(__file__).parents[3]


@pytest.mark.redis
@pytest.mark.slow
def test_more_than_fits_is_turned_away_and_the_rest_is_answered(
    served_artifact: Artifact, tmp_path: Path, redis_server: object
) -> None:
    report = tmp_path / "report.json"
    options = ["--factor", "4", "--seconds", "4", "--capacity-seconds", "2", "--out", str(report)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.overload", str(served_artifact.path), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    overload = found["overload"]
    answered = sum(overload["answers"].values())
    # So small a model answers thousands a second: the generator's own limit may come before the service's.
    assert set(overload["failures"]) <= {"no connection left"}
    assert overload["other_statuses"] == {}
    assert overload["answers"]["200"] > 0
    assert overload["answers"]["429"] > 0
    assert answered + sum(overload["failures"].values()) == overload["offered"]
    assert found["after"]["livez_readyz"] == [200, 200]
    assert found["after"]["answer"] == ["model", None]
