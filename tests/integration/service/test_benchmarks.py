"""The benchmarks of the whole service in small: that they run, and tell what they say they tell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from served_artifact import SERVED_TITLES

from pruning.data.prepare import PrepareOptions, prepare
from recommender.artifact import Artifact

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.redis, pytest.mark.slow]


def write_dataset(folder: Path) -> Path:
    """Forty users, each with twelve of the served artifact's items one after the other."""
    source = folder / "source"
    source.mkdir()
    items = "".join(f"g{item},{title}\n" for item, title in enumerate(SERVED_TITLES))
    (source / "items.csv").write_text("item_id,title\n" + items)
    events = "".join(
        f"u{user},g{(user + at) % len(SERVED_TITLES)},{1000 * user + at}\n"
        for user in range(40)
        for at in range(12)
    )
    (source / "interactions.csv").write_text("user_id,item_id,timestamp\n" + events)
    prepare(source, folder / "dataset", PrepareOptions(name="games"), lambda _: None)
    return folder / "dataset"


def run(module: str, artifact: Path, folder: Path, *options: str) -> tuple[dict, str]:
    """Runs a benchmark on a small data set. Returns its record and its page."""
    out = folder / "found.json"
    given = [str(artifact), str(write_dataset(folder)), *options, "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *given],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), out.with_suffix(".md").read_text()


def test_an_open_loop_tells_latency_by_stage_at_each_step(
    served_artifact: Artifact, tmp_path: Path, redis_server: object
) -> None:
    found, page = run("http", served_artifact.path, tmp_path, "--seconds", "1", "--rows", "10")
    assert [step["share"] for step in found["steps"]] == [n / 10 for n in range(1, 14)]
    first = found["steps"][0]
    assert first["answered_in_time"] > 0
    assert set(first["stages"]) == {"history", "prompt", "queue", "prefill", "decode", "rest", "around"}
    assert first["cores_used"]["service"] > 0
    assert f"{found['capacity_rps']} requests/s" in page


def test_a_growing_catalogue_is_built_ranked_and_served(
    served_artifact: Artifact, tmp_path: Path, redis_server: object
) -> None:
    found, page = run("catalogue", served_artifact.path, tmp_path, "--sizes", "60", "300", "--rows", "5")
    assert [size["items"] for size in found["sizes"]] == [30, 60, 300]  # its own first
    assert all(size["p50_ms"] > 0 and size["start_seconds"] > 0 for size in found["sizes"])
    assert found["sizes"][0]["nodes"] < found["sizes"][1]["nodes"]
    assert "| 300 |" in page
