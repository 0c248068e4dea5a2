"""Two real processes over gloo come to what one comes to, and end together when one of them dies."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from small_run import RECIPE, Silent, recipe, teacher_config, write_dataset
from torch.testing import assert_close

from pruning.models import read_tokenizer
from pruning.pipeline.run import PruneConfig, calibration_batches, prune
from pruning.teacher.train import TeacherConfig, train_teacher
from pruning.training.windows import UserPacker
from recommender.dataset import Dataset
from recommender.prompt import PromptEncoder, PromptTemplate

pytestmark = pytest.mark.slow

PATIENCE_S = 120
CALIBRATION_WINDOWS = 60
# The stream is turned, all stages are repaired in closed form, and the scores read more than one batch.
# The ridge is strong: a weak one magnifies the last bits, in which the order of sums shows.
TWO_SHARES = "rotate = true\n" + RECIPE.replace("windows = 4", f"windows = {CALIBRATION_WINDOWS}").replace(
    "keep =", "repair = { ridge = 1.0, largest = 8.0 }\nkeep ="
)
COLLABORATIVE = """
name = "beside"
description = "One stage, whose signals are mixed."

[calibration]
windows = 4

[[stages]]
name = "depth"
importance = "activation"
keep = { layers = 0.34 }
training = { epochs = 2, learning_rate = 3e-3, tokens_per_batch = 1024 }

[stages.distillation]
among = "catalogue"
signal = { kind = "cached", top_k = 8, collaborative = true }
"""
# What the command makes of TRAIN.
CONFIG = teacher_config(epochs=3, weight_decay=0.1)
TRAIN = (
    *("--epochs", "3", "--learning-rate", "3e-3", "--tokens-per-batch", "1024"),
    *("--shape", "hidden_size=32", "--shape", "intermediate_size=48", "--shape", "num_hidden_layers=3"),
    *("--shape", "num_attention_heads=4", "--shape", "num_key_value_heads=2", "--shape", "vocab_size=320"),
    *("--validation-rows", "20"),
)


def two_processes(*arguments: str | Path) -> subprocess.Popen[str]:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    command = [sys.executable, *launcher, "-m", "espalier", *map(str, arguments), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(launched: subprocess.Popen[str]) -> dict[str, object]:
    out, said = launched.communicate(timeout=PATIENCE_S)
    assert launched.returncode == 0, said
    answer: dict[str, object] = json.loads(out)  # so only one of them wrote it
    return answer


def same_tensors(mine: Path, theirs: Path) -> None:
    expected = load_file(theirs)
    found = load_file(mine)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor, atol=1e-5, rtol=1e-4, msg=f"{mine}: {name}")


class InterruptionError(Exception):
    pass


class Interrupting(Silent):
    """Ends the work at the second validation, so that one checkpoint stands."""

    def say(self, text: str) -> None:
        super().say(text)
        if sum(line.startswith("step ") for line in self.lines) == 2:
            raise InterruptionError


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a teacher and a run that one process made."""
    folder = tmp_path_factory.mktemp("alone")
    dataset = write_dataset(folder)
    train_teacher(dataset, folder / "teacher", CONFIG, Silent())
    config = PruneConfig(recipe=recipe(TWO_SHARES), validation_rows=20)
    prune(dataset, folder / "teacher", folder / "run", config, Silent())
    return folder


def test_a_training_that_one_process_began_is_ended_by_two(alone: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    with pytest.raises(InterruptionError):
        train_teacher(alone / "dataset", teacher, CONFIG, Interrupting())
    assert [path.name for path in teacher.glob("training/checkpoint-*")] == ["checkpoint-5"]

    record = finish(two_processes("train", alone / "dataset", "--out", teacher, *TRAIN))
    expected = json.loads((alone / "teacher" / "teacher.json").read_text())
    assert record["fit"]["best_step"] == expected["fit"]["best_step"]
    for mine, theirs in zip(record["fit"]["validations"], expected["fit"]["validations"], strict=True):
        assert mine["step"] == theirs["step"]
        assert mine["figures"] == pytest.approx(theirs["figures"], rel=1e-5)
    same_tensors(teacher / "model" / "model.safetensors", alone / "teacher" / "model" / "model.safetensors")
    last = teacher / "training" / "checkpoint-15"
    assert {"whole", "rng_state_0.pth", "rng_state_1.pth"} <= {file.name for file in last.iterdir()}
    losses = [
        [entry["loss"] for entry in json.loads(file.read_text())["log_history"] if "loss" in entry]
        for file in (
            last / "trainer_state.json",
            alone / "teacher/training/checkpoint-15/trainer_state.json",
        )
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_pruning_by_two_processes_is_that_of_one(alone: Path, tmp_path: Path) -> None:
    tokenizer = read_tokenizer(alone / "teacher" / "model")
    dataset = Dataset(alone / "dataset")
    packer = UserPacker(PromptEncoder(PromptTemplate(), tokenizer), dataset.catalogue.titles)
    assert len(calibration_batches(packer.training(dataset), CALIBRATION_WINDOWS, seed=0)) > 1

    (tmp_path / "recipe.toml").write_text(TWO_SHARES)
    run = tmp_path / "run"
    report = finish(
        two_processes(
            *("prune", alone / "dataset", alone / "teacher", "--out", run),
            *("--recipe", tmp_path / "recipe.toml", "--validation-rows", "20"),
        )
    )
    expected = json.loads((alone / "run" / "report.json").read_text())
    assert report["test"] == expected["test"]
    for mine, theirs in zip(report["stages"], expected["stages"], strict=True):
        assert mine["key"] == theirs["key"]
        assert mine["after_cut"]["loss"] == pytest.approx(theirs["after_cut"]["loss"], rel=1e-5)
        assert mine["restoration_steps"] == theirs["restoration_steps"]
    written = sorted(file.relative_to(run) for file in run.rglob("*") if file.is_file())
    parts = [file for file in written if file.suffix == ".safetensors" and "training" not in file.parts]
    kinds = {re.sub("^(signals-[0-9]+|directions)-.*", "\\1", file.parts[0]) for file in parts}
    assert kinds == {"directions", "scores", "signals-64", "signals-8", "stages"}
    for file in parts:
        same_tensors(run / file, alone / "run" / file)
    for file in run.glob("stages/*/cut.json"):
        assert file.read_text() == (alone / "run" / file.relative_to(run)).read_text()
    assert not [file for file in written if ".partial-" in str(file)]


def test_beside_a_sequence_model_two_come_to_what_one_comes_to(tmp_path: Path) -> None:
    # Trained again, in another number of threads, it would be another model in the last bits, and so would
    # all that learns from it: one process trains it, and both runs have that one.
    one, two = tmp_path / "one", tmp_path / "two"
    dataset = write_dataset(tmp_path)
    asked = teacher_config(epochs=3, weight_decay=0.1).model_dump()
    config = TeacherConfig.model_validate(asked | {"among": "catalogue", "collaborative": 0.5})
    train_teacher(dataset, one / "teacher", config, Silent())
    (two / "teacher").mkdir(parents=True)
    for name in ("settings.json", "collaborative.safetensors"):
        shutil.copy(one / "teacher" / name, two / "teacher")
    beside = ("--among", "catalogue", "--collaborative", "0.5")
    finish(two_processes("train", dataset, "--out", two / "teacher", *TRAIN, *beside))
    same_tensors(*(folder / "teacher" / "model" / "model.safetensors" for folder in (two, one)))

    (tmp_path / "recipe.toml").write_text(COLLABORATIVE)
    pruning = PruneConfig(recipe=recipe(COLLABORATIVE), validation_rows=20)
    expected = prune(dataset, one / "teacher", one / "run", pruning, Silent())
    shutil.copytree(one / "run" / "collaborative", two / "run" / "collaborative")
    shutil.copy(one / "run" / "settings.json", two / "run")
    report = finish(
        two_processes(
            *("prune", dataset, one / "teacher", "--out", two / "run"),
            *("--recipe", tmp_path / "recipe.toml", "--validation-rows", "20"),
        )
    )
    (signals,) = (one / "run").glob("signals-8-*")
    for file in signals.iterdir():
        same_tensors(two / "run" / file.relative_to(one / "run"), file)
    assert report["test"] == expected.model_dump(mode="json")["test"]
    # Not its weights: Adam makes a whole step of a gradient of nearly nothing, whatever its sign.
    assert report["stages"][0]["after_restoration"]["loss"] == pytest.approx(
        expected.stages[0].after_restoration.loss, rel=1e-5
    )


def test_when_one_is_killed_all_end(alone: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    endless = (*TRAIN, "--epochs", "9000", "--patience", "9000")
    launched = two_processes("train", alone / "dataset", "--out", teacher, *endless)
    deadline = time.monotonic() + PATIENCE_S
    while next(teacher.glob("training/checkpoint-*/whole"), None) is None:
        assert launched.poll() is None
        assert time.monotonic() < deadline, "no checkpoint ever appeared"
        time.sleep(0.05)
    _, second = sorted(psutil.Process(launched.pid).children(), key=lambda child: child.pid)
    second.kill()
    _, said = launched.communicate(timeout=PATIENCE_S)
    assert launched.returncode == 1
    assert "(SIGKILL)" in said  # the launcher's own report
    ours = said.partition("ChildFailedError")[0].splitlines()
    assert sum(line.startswith("espalier: ") for line in ours) <= 1
    assert not any("Connection closed" in line for line in ours)
    assert not (teacher / "teacher.json").exists()


def test_an_error_of_all_is_told_once(tmp_path: Path) -> None:
    launched = two_processes("train", tmp_path / "nowhere", "--out", tmp_path / "teacher")
    out, said = launched.communicate(timeout=PATIENCE_S)
    assert launched.returncode == 1
    assert out == ""
    told = [line for line in said.splitlines() if line.startswith("espalier: ")]
    assert told == [
        f"espalier: {tmp_path}/nowhere: no dataset.json here; make a data set with `espalier prepare`"
    ]
    assert not (tmp_path / "teacher").exists()
