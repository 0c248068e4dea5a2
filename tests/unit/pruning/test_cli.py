"""The command line as a process: exit codes, one-line errors, and what goes to which stream."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_run import write_dataset, write_source


def espalier(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "espalier", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)


def test_help_lists_every_command() -> None:
    done = espalier("--help")
    assert done.returncode == 0
    offline = ("prepare", "train", "prune", "export", "evaluate", "report", "compare")
    for name in (*offline, "serve", "histories", "demo"):
        assert name in done.stdout


def test_prepare_speaks_json_on_stdout_and_progress_on_stderr(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    done = espalier("prepare", source, "--out", tmp_path / "dataset", "--json")
    assert done.returncode == 0, done.stderr
    card = json.loads(done.stdout)
    assert card["users"] == 40
    assert "reading items.csv" in done.stderr
    assert (tmp_path / "dataset" / "dataset.json").is_file()


def test_a_table_is_for_people(tmp_path: Path) -> None:
    done = espalier("prepare", write_source(tmp_path / "source"), "--out", tmp_path / "dataset")
    assert done.returncode == 0, done.stderr
    assert "interactions" in done.stdout


def _bad_source(folder: Path) -> list[str | Path]:
    source = write_source(folder / "source")
    with (source / "interactions.csv").open("a") as file:
        file.write("u1,0,yesterday\n")
    return ["prepare", source, "--out", folder / "dataset"]


def _unknown_base(folder: Path) -> list[str | Path]:
    return ["train", write_dataset(folder), "--out", folder / "teacher", "--base", folder / "nothing"]


def _shape_of_a_base(folder: Path) -> list[str | Path]:
    return ["train", folder, "--out", folder / "t", "--base", folder, "--shape", "hidden_size=8"]


def _adapters_from_scratch(folder: Path) -> list[str | Path]:
    return ["train", folder, "--out", folder / "t", "--lora-rank", "4"]


def _bad_shape(folder: Path) -> list[str | Path]:
    return ["train", folder, "--out", folder / "t", "--shape", "hidden_size"]


def _illegal_shape(folder: Path) -> list[str | Path]:
    return ["train", folder, "--out", folder / "t", "--shape", "hidden_size=10"]


def _no_dataset(folder: Path) -> list[str | Path]:
    return ["prune", folder, folder, "--out", folder / "run"]


def _no_teacher(folder: Path) -> list[str | Path]:
    return ["prune", write_dataset(folder), folder / "t", "--out", folder / "run"]


def _no_recipe(folder: Path) -> list[str | Path]:
    return ["prune", folder, folder, "--out", folder / "run", "--recipe", "nothing"]


def _no_run(folder: Path) -> list[str | Path]:
    return ["report", folder]


def _one_run(folder: Path) -> list[str | Path]:
    return ["compare", folder]


def _foreign_folder(folder: Path) -> list[str | Path]:
    (folder / "full").mkdir()
    (folder / "full" / "letter.txt").write_text("dear")
    return ["train", write_dataset(folder), "--out", folder / "full"]


def _seed_as_a_size(folder: Path) -> list[str | Path]:
    return ["train", folder, "--out", folder / "t", "--shape", "seed=3"]


def _negative_seed(folder: Path) -> list[str | Path]:
    return ["train", folder, "--out", folder / "t", "--seed", "-1"]


def _negative_pruning_seed(folder: Path) -> list[str | Path]:
    return ["prune", folder, folder, "--out", folder / "run", "--seed", "-1"]


def _no_learning(folder: Path) -> list[str | Path]:
    return ["train", folder, "--out", folder / "t", "--learning-rate", "0"]


def _smoothed_catalogue(folder: Path) -> list[str | Path]:
    smoothed = ["--among", "catalogue", "--label-smoothing", "0.1"]
    return ["train", folder, "--out", folder / "t", *smoothed]


def _collaborative_vocabulary(folder: Path) -> list[str | Path]:
    return ["train", folder, "--out", folder / "t", "--collaborative", "0.5"]


def _collaborative_only(folder: Path) -> list[str | Path]:
    only = ["--among", "catalogue", "--collaborative", "1"]
    return ["train", folder, "--out", folder / "t", *only]


def _among_nothing(folder: Path) -> list[str | Path]:
    return ["train", folder, "--out", folder / "t", "--among", "nothing"]


def _no_size(folder: Path) -> list[str | Path]:
    return ["prune", folder, folder, "--out", folder / "run", "--shape", "hidden_size=0"]


def _everything_gone(folder: Path) -> list[str | Path]:
    return ["prune", folder, folder, "--out", folder / "run", "--target-ratio", "1"]


def _file_for_a_folder(folder: Path) -> list[str | Path]:
    (folder / "out").write_text("dear")
    return ["train", write_dataset(folder), "--out", folder / "out"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (_seed_as_a_size, "a seed is no size"),
        (_negative_seed, "seed: Input should be greater than or equal to 0"),
        (_negative_pruning_seed, "seed: Input should be greater than or equal to 0"),
        (_no_learning, "learning_rate: Input should be greater than 0"),
        (_smoothed_catalogue, "label_smoothing needs among = vocabulary"),
        (_collaborative_vocabulary, "collaborative needs among = catalogue"),
        (_collaborative_only, "collaborative: Input should be less than 1"),
        (_among_nothing, "among: Input should be 'vocabulary' or 'catalogue'"),
        (_no_size, "sizes.hidden_size: Input should be greater than 0"),
        (_everything_gone, "removed_share: Input should be less than 1"),
        (_file_for_a_folder, "is a file; give a folder"),
        (_bad_source, "yesterday"),
        (_unknown_base, "nothing"),
        (_shape_of_a_base, "--base scratch only"),
        (_adapters_from_scratch, "pretrained --base only"),
        (_bad_shape, "KEY=NUMBER"),
        (_illegal_shape, "multiple of num_attention_heads"),
        (_no_dataset, "no dataset.json here"),
        (_no_teacher, "no finished teacher"),
        (_no_recipe, "no recipe 'nothing'"),
        (_no_run, "no run here"),
        (_one_run, "give two or more"),
        (_foreign_folder, "not empty and no run of ours"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(tmp_path: Path, arguments, words: str) -> None:
    done = espalier(*arguments(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("espalier: ")
    assert words in last
    assert "Traceback" not in done.stderr


def test_a_mistyped_base_can_be_corrected_in_the_same_folder(tmp_path: Path) -> None:
    dataset, teacher = write_dataset(tmp_path), tmp_path / "teacher"
    assert espalier("train", dataset, "--out", teacher, "--base", tmp_path / "typo").returncode == 2
    assert not teacher.exists()


def test_a_base_is_the_same_however_its_path_is_spelt(tmp_path: Path) -> None:
    dataset, steps = write_dataset(tmp_path), ("--max-steps", "1", "--validation-rows", "5")
    sizes = ("--shape", "hidden_size=24", "--shape", "num_hidden_layers=1")
    assert espalier("train", dataset, "--out", tmp_path / "base", *sizes, *steps).returncode == 0
    base, more = tmp_path / "base" / "model", ("train", dataset, "--out", tmp_path / "teacher", *steps)
    assert espalier(*more, "--base", base).returncode == 0
    again = espalier(*more, "--base", base.relative_to(tmp_path), cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "trained already" in again.stderr


def test_other_weights_at_a_bases_place_are_another_base(tmp_path: Path) -> None:
    dataset, steps = write_dataset(tmp_path), ("--max-steps", "1", "--validation-rows", "5")
    sizes = ("--shape", "hidden_size=24", "--shape", "num_hidden_layers=1")
    for seed in ("0", "1"):
        drawn = espalier("train", dataset, "--out", tmp_path / seed, *sizes, *steps, "--seed", seed)
        assert drawn.returncode == 0, drawn.stderr
    base, teacher = tmp_path / "0" / "model", tmp_path / "teacher"
    more = ("train", dataset, "--out", teacher, "--base", base, *steps)
    assert espalier(*more).returncode == 0
    (teacher / "teacher.json").unlink()  # as if it had been interrupted
    shutil.copy(tmp_path / "1" / "model" / "model.safetensors", base)
    refused = espalier(*more)
    assert refused.returncode == 2
    assert f"{teacher} was begun with base_sha256 = " in refused.stderr.strip().splitlines()[-1]


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys, espalier.cli; print(*sorted({'torch', 'transformers', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_wrong_use_is_exit_2() -> None:
    assert espalier("train").returncode == 2
    assert espalier("prepare", "x", "--out", "y", "--history", "0").returncode == 2


def test_a_training_that_explodes_is_one_line_and_exit_1(tmp_path: Path) -> None:
    sizes = ("--shape", "hidden_size=24", "--shape", "num_hidden_layers=1", "--validation-rows", "5")
    rate = ("--learning-rate", "1e30", "--max-steps", "20", "--tokens-per-batch", "256")
    done = espalier("train", write_dataset(tmp_path), "--out", tmp_path / "t", *sizes, *rate, "--json")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("espalier: the ")
    assert "lower the learning rate" in last


def test_a_teacher_below_popularity_is_told_loudly(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    small = ("hidden_size=8", "intermediate_size=8", "num_hidden_layers=1", "num_attention_heads=1")
    sizes = [part for size in (*small, "num_key_value_heads=1") for part in ("--shape", size)]
    done = espalier("train", dataset, "--out", tmp_path / "t", *sizes, "--max-steps", "1", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["gain_ndcg10"]["low"] <= 1
    assert "WARNING: this teacher is not better than popularity" in done.stderr
    again = espalier("train", dataset, "--out", tmp_path / "t", *sizes, "--max-steps", "1", "--json")
    assert json.loads(again.stdout) == record
    assert "trained already" in again.stderr
    other = espalier("train", dataset, "--out", tmp_path / "t", *sizes, "--max-steps", "2")
    assert other.returncode == 2
    assert "config.training.max_steps = 1, and now it is 2" in other.stderr
