"""The committed dashboards are what the code generates, and are provisioned where they lie."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

GRAFANA = Path(__file__).parents[3] / "deploy" / "grafana"
COMMITTED = sorted((GRAFANA / "dashboards").glob("*.json"))


def test_the_committed_dashboards_are_generated(tmp_path: Path) -> None:
    subprocess.run([sys.executable, GRAFANA / "generate.py", tmp_path], check=True)
    generated = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert {file.name: file.read_text() for file in COMMITTED} == generated, (
        "if that is meant: .venv/bin/python deploy/grafana/generate.py"
    )
    assert set(generated) == {"service.json", "model.json", "memory.json", "redis.json"}


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.stem)
def test_panels_do_not_overlap_and_swaps_are_marked(file: Path) -> None:
    dashboard = json.loads(file.read_text())
    taken = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    (annotation,) = dashboard["annotations"]["list"]
    assert "espalier_swaps_total" in annotation["expr"]
    uid = dashboard["panels"][0]["datasource"]["uid"]
    assert f"uid: {uid}\n" in (GRAFANA / "provisioning/datasources/prometheus.yml").read_text()
