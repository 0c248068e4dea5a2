"""`kill -9` anywhere, then the same command: it goes on and finishes the job.

Each test starts a real `espalier` process, kills it when a certain file has appeared, looks that nothing
claims to be done, and runs the same command to its end.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import RECIPE, write_dataset

from recommender.artifact import Artifact

pytestmark = [pytest.mark.killing, pytest.mark.slow]

PATIENCE_S = 120
SIZES = ("hidden_size=32", "intermediate_size=48", "num_hidden_layers=3", "num_attention_heads=4")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "espalier", *map(str, arguments), "--json"]


def train(folder: Path) -> list[str]:
    sizes = [part for size in SIZES for part in ("--shape", size)]
    schedule = ["--epochs", "4", "--learning-rate", "3e-3", "--tokens-per-batch", "256"]
    return command(
        "train",
        folder / "dataset",
        "--out",
        folder / "teacher",
        *sizes,
        *schedule,
        "--validation-rows",
        "20",
    )


def prune(folder: Path) -> list[str]:
    (folder / "recipe.toml").write_text("rotate = true\n" + RECIPE)
    return command(
        *("prune", folder / "dataset", folder / "teacher", "--out", folder / "run"),
        *("--recipe", folder / "recipe.toml", "--validation-rows", "20"),
    )


def finish(arguments: list[str]) -> dict[str, object]:
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def kill_when(arguments: list[str], appeared: Callable[[], bool]) -> None:
    """Runs until the condition holds, then kills the whole process group at once."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + PATIENCE_S
    while not appeared():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "the file to wait for never appeared"
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def exists(folder: Path, pattern: str) -> Callable[[], bool]:
    return lambda: next(folder.glob(pattern), None) is not None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    write_dataset(folder)
    finish(train(folder))
    return folder


@pytest.mark.parametrize(
    "moment",
    [
        "settings.json",
        "training/checkpoint-*/whole",
        "training/checkpoint-*/model.safetensors",  # while a checkpoint is being written
        "model",
    ],
)
def test_train(trained: Path, tmp_path: Path, moment: str) -> None:
    shutil.copytree(trained / "dataset", tmp_path / "dataset")
    kill_when(train(tmp_path), exists(tmp_path / "teacher", moment))
    assert not (tmp_path / "teacher" / "teacher.json").exists()
    record = finish(train(tmp_path))
    expected = json.loads((trained / "teacher" / "teacher.json").read_text())
    assert record["fit"]["steps"] == expected["fit"]["steps"]
    assert record["quality"] == expected["quality"]
    assert all((c / "whole").exists() for c in (tmp_path / "teacher").glob("training/checkpoint-*"))


@pytest.mark.parametrize(
    "moment",
    [
        "directions-*",
        "scores/*",
        "stages/1-width-*/cut.json",
        "signals-*/*",
        "stages/1-width-*/training/checkpoint-*",
        "stages/1-width-*/student",
        "stages/2-mlp-*/after_cut.json",
        "stages/2-mlp-*/result.json",
        "stages/3-depth-*/training/checkpoint-*/model.safetensors",
        "test/teacher.npy",
    ],
)
def test_prune(trained: Path, tmp_path: Path, moment: str) -> None:
    for part in ("dataset", "teacher"):
        shutil.copytree(trained / part, tmp_path / part)
    kill_when(prune(tmp_path), exists(tmp_path / "run", moment))
    assert not (tmp_path / "run" / "report.json").exists()
    report = finish(prune(tmp_path))
    assert [stage["name"] for stage in report["stages"]] == ["width", "mlp", "depth"]
    assert report == finish(prune(tmp_path))  # it is done, and says the same again
    assert not list((tmp_path / "run").rglob(".*partial*/*"))


def test_export(trained: Path, tmp_path: Path) -> None:
    for part in ("dataset", "teacher"):
        shutil.copytree(trained / part, tmp_path / part)
    finish(prune(tmp_path))
    export = command("export", tmp_path / "run", "--out", tmp_path / "artifacts" / "mine")
    kill_when(export, exists(tmp_path / "artifacts", ".mine.partial-*/*"))
    assert not (tmp_path / "artifacts" / "mine").exists()
    finish(export)
    Artifact.open(tmp_path / "artifacts" / "mine").verify()
    assert [path.name for path in (tmp_path / "artifacts").iterdir()] == ["mine"]
