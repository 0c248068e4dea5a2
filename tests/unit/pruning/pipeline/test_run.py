"""A whole small run: what resumes, what is reused, what is refused, and what is exported."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_run import RECIPE, Silent, prune_config, recipe, write_dataset
from transformers import AutoModelForCausalLM

from pruning.checkpoint import load_checkpoint
from pruning.errors import RecipeError, RunError
from pruning.export import export
from pruning.judging import evaluate
from pruning.pipeline.files import digest, read_record
from pruning.pipeline.labels import TeachersShare
from pruning.pipeline.plan import Target
from pruning.pipeline.results import RunReport
from pruning.pipeline.run import PruneConfig, prune
from pruning.pipeline.stage import plan_stages, stage_folder
from pruning.report.build import write_report
from pruning.surgery.shape import Shape
from recommender.dataset import Dataset


def again(folder: Path, asked: PruneConfig) -> tuple[list[str], object]:
    reporter = Silent()
    report = prune(folder / "dataset", folder / "teacher", folder / "run", asked, reporter)
    return reporter.lines, report


def modified(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_stages_leave_what_was_planned(folder: Path) -> None:
    _, report = again(folder, prune_config())
    assert [stage.shape.hidden_size for stage in report.stages] == [16, 16, 16]
    assert [stage.shape.intermediate_size for stage in report.stages] == [48, 24, 24]
    assert [stage.shape.num_hidden_layers for stage in report.stages] == [3, 3, 1]
    for number, stage in enumerate(report.stages, start=1):
        model = load_checkpoint(stage_folder(folder / "run", number, stage) / "student").model
        assert Shape.of(model.config) == stage.shape
        assert stage.after_restoration.loss < stage.after_cut.loss
        counted = sum(p.numel() for p in model.parameters())
        assert counted == stage.shape.total_parameters
    assert report.test.student.metrics.rows == len(Dataset(folder / "dataset").rows("test"))


def test_the_same_command_does_nothing_twice(folder: Path) -> None:
    before = modified(folder)
    lines, report = again(folder, prune_config())
    assert lines == [f"{folder / 'run'}: pruned already"]
    assert report == RunReport.model_validate_json((folder / "run" / "report.json").read_bytes())
    assert modified(folder) == before


def test_a_lost_report_costs_no_stage_and_no_ranking(folder: Path) -> None:
    before = modified(folder / "run")
    kept = before.pop(str(folder / "run" / "report.json"))
    text = (folder / "run" / "report.json").read_text()
    (folder / "run" / "report.json").unlink()
    lines, _ = again(folder, prune_config())
    assert sum("done already" in line for line in lines) == 3
    after = modified(folder / "run")
    assert after.pop(str(folder / "run" / "report.json")) > kept
    for expendable in (before, after):
        del expendable[str(folder / "run" / "histories.json")]
    assert after == before
    assert (folder / "run" / "report.json").read_text() == text


def test_a_run_that_works_on_another_target_is_not_finished(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")

    class StoppedError(Exception):
        pass

    class Stopping(Silent):
        def say(self, text: str) -> None:
            if "stage 3 depth: choosing" in text:
                raise StoppedError

    asked = prune_config(RECIPE.replace("layers = 0.34", "layers = 0.67"))
    with pytest.raises(StoppedError):
        prune(folder / "dataset", folder / "teacher", tmp_path / "run", asked, Stopping())
    with pytest.raises(RunError, match=r"no report\.json"):
        export(tmp_path / "run", tmp_path / "mine")


DEPTH_FIRST = """
name = "depth-first"
description = "As `espalier`: the training is the last stage's."

[calibration]
windows = 4

[[stages]]
name = "depth"
importance = "activation"
keep = { layers = 0.67 }
repair = { ridge = 0.01, largest = 8.0 }

[[stages]]
name = "mlp"
importance = "activation"
keep = { mlp = 0.5 }
repair = { ridge = 0.01 }

[[stages]]
name = "heads"
importance = "activation"
keep = { heads = 0.5 }
rounding = "bfloat16"
training = { epochs = 1, learning_rate = 3e-3, tokens_per_batch = 1024 }
"""


def test_a_stage_without_training_is_cut_and_no_more(folder: Path, tmp_path: Path) -> None:
    asked = prune_config(DEPTH_FIRST)
    reporter = Silent()
    report = prune(folder / "dataset", folder / "teacher", tmp_path / "run", asked, reporter)
    assert [stage.restoration_steps > 0 for stage in report.stages] == [False, False, True]
    for number, stage in enumerate(report.stages[:2], start=1):
        assert stage.after_restoration == stage.after_cut
        assert not (stage_folder(tmp_path / "run", number, stage) / "training").exists()
    assert report.stages[2].after_restoration.loss < report.stages[2].after_cut.loss
    assert [stage.restored for stage in report.stages] == [False, False, True]
    assert sum("restoring" in line for line in reporter.lines) == 1
    page = write_report(tmp_path / "run", Silent()).page.read_text("utf-8")
    assert "leaves the training to a later stage" in page
    assert "heads: restored" in page
    assert "depth: restored" not in page
    # Heads were scored in two layers; the map has all three of the teacher's, one without scores.
    assert page.count("layer removed (depth)") == 1
    assert len(re.findall(r"layer \d, head \d: ", page)) == 12
    assert len(re.findall(r"layer \d, head \d: [^<]*, score ", page)) == 8
    artifact = export(tmp_path / "run", tmp_path / "artifact")
    artifact.verify()
    # Rounded before it was measured, so what is exported is what was.
    stored = load_file(artifact.path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert report.stages[2].bytes < 2.1 * report.stages[2].shape.total_parameters + 4096
    judged = evaluate(artifact.path, folder / "dataset", "test", Silent())
    assert judged.model == report.test.student


def test_a_key_does_not_know_of_words_that_are_left_out() -> None:
    stage = recipe(DEPTH_FIRST).stages[-1]
    shape = Shape.model_validate(dict.fromkeys(Shape.model_fields, 1) | {"model_type": "llama"})
    keys = []
    for one in (stage, stage.model_copy(update={"rounding": None})):
        alone = recipe(RECIPE).model_copy(update={"stages": (one,)})
        keys.append(plan_stages(alone, [shape], "before")[0].key)
    assert keys[1] != keys[0]
    dumped = {name: value for name, value in stage.model_dump().items() if name != "rounding"}
    del dumped["distillation"]["signal"]["collaborative"]
    calibration = recipe(RECIPE).calibration.model_dump()
    assert keys[1] == digest("before", calibration, dumped, shape.model_dump())


@pytest.mark.parametrize(("among", "warned"), [("catalogue", 1), ("vocabulary", 0)])
def test_a_teacher_of_decisions_is_no_teacher_of_spelling(
    folder: Path, tmp_path: Path, among: str, warned: int
) -> None:
    for name in ("dataset", "teacher", "run"):
        shutil.copytree(folder / name, tmp_path / name)
    (tmp_path / "run" / "report.json").unlink()
    file = tmp_path / "teacher" / "teacher.json"
    record = json.loads(file.read_text())
    assert record["among"] == "vocabulary"  # as `teacher_config` trains
    file.write_text(json.dumps(record | {"among": among}))
    lines, _ = again(tmp_path, prune_config())
    assert sum("recipe small distils over the whole vocabulary" in line for line in lines) == warned


@pytest.mark.parametrize(
    "pattern", ["stages/*/cut.json", "stages/*/result.json", "test/student-*.npy", "report.json"]
)
def test_damage_is_one_line(folder: Path, tmp_path: Path, pattern: str) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    if pattern != "report.json":
        (tmp_path / "run" / "report.json").unlink()
    if pattern == "stages/*/cut.json":
        for result in (tmp_path / "run").glob("stages/*/result.json"):
            result.unlink()
    for file in (tmp_path / "run").glob(pattern):
        file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(RunError, match=r"damaged \(.*; remove it and run again") as caught:
        prune(folder / "dataset", folder / "teacher", tmp_path / "run", prune_config(), Silent())
    assert "\n" not in str(caught.value)


def test_an_impossible_target_claims_no_folder(folder: Path, tmp_path: Path) -> None:
    asked = prune_config(target=Target(nonembedding_parameters=1))
    with pytest.raises(RecipeError, match="no legal shape"):
        prune(folder / "dataset", folder / "teacher", tmp_path / "run", asked, Silent())
    assert not (tmp_path / "run").exists()


def test_another_last_target_reuses_the_stages_and_scores_before(folder: Path) -> None:
    before = modified(folder / "run" / "scores") | modified(folder / "run" / "stages")
    lines, report = again(folder, prune_config(RECIPE.replace("layers = 0.34", "layers = 0.67")))
    assert [line for line in lines if "done already" in line] == [
        "stage 1 width: done already",
        "stage 2 mlp: done already",
    ]
    assert report.stages[-1].shape.num_hidden_layers == 2
    after = modified(folder / "run" / "scores") | modified(folder / "run" / "stages")
    assert before.items() <= after.items()
    assert {path for path in after.keys() - before.keys() if "scores" in path} == set()
    again(folder, prune_config())  # the report is the first recipe's again


@pytest.mark.parametrize("change", [{"seed": 1}, {"validation_rows": 5}])
def test_a_run_folder_belongs_to_its_settings(folder: Path, change: dict[str, int]) -> None:
    with pytest.raises(RunError, match=f"{next(iter(change))} = "):
        again(folder, prune_config(**change))


def test_a_teacher_of_another_data_set_is_refused(folder: Path, tmp_path: Path) -> None:
    other = write_dataset(tmp_path, seed=5)
    with pytest.raises(RunError, match="another data set"):
        prune(other, folder / "teacher", tmp_path / "run", prune_config(), Silent())


def test_a_target_by_parameters(folder: Path, tmp_path: Path) -> None:
    # Shares that leave too much: the plan goes on to fit the bound.
    asked = prune_config(target=Target(removed_share=0.9))
    report = prune(folder / "dataset", folder / "teacher", tmp_path / "run", asked, Silent())
    assert report.pruned_nonembedding >= 0.9


EVERY_OPTION = """
name = "every-option"
description = "what no other small recipe asks for"
rotate = true
calibration = { windows = 8 }
augmentation = { copies = 2, dropout = 0.3 }

[[stages]]
name = "whole"
importance = "activation"
keep = { heads = 0.5, hidden = 0.5, mlp = 0.5, layers = 0.34 }
repair = { ridge = 0.01 }

[stages.training]
epochs = 2
learning_rate = 3e-3
tokens_per_batch = 1024
best_by = "catalogue_loss"
precision = "bfloat16"

[stages.distillation]
among = "catalogue"
signal = { kind = "cached", top_k = 8, precision = "bfloat16", collaborative = true }
"""


def test_a_rotated_student_of_augmented_decisions_resumes_and_is_exported(
    folder: Path, tmp_path: Path
) -> None:
    asked = prune_config(EVERY_OPTION)
    run = tmp_path / "run"
    first = prune(folder / "dataset", folder / "teacher", run, asked, Silent())
    (stage,) = first.stages
    assert not stage.shape.tie_word_embeddings
    assert stage.after_restoration.catalogue_loss < stage.after_cut.catalogue_loss
    assert stage.after_restoration.catalogue_loss < stage.after_restoration.loss

    (directions,) = run.glob("directions-*.safetensors")
    collaborative = run / "collaborative"
    share = read_record(collaborative / "share-bfloat16.json", TeachersShare)
    assert share.mixture <= min(share.teacher, share.collaborative)
    made = (directions, *collaborative.iterdir())
    stood = [file.stat().st_mtime_ns for file in made]
    shutil.rmtree(run / "stages")
    (run / "report.json").unlink()
    assert prune(folder / "dataset", folder / "teacher", run, asked, Silent()) == first
    assert [file.stat().st_mtime_ns for file in made] == stood

    shown = write_report(run, Silent())
    assert shown.missing == ()
    page = shown.page.read_text()
    assert "16 of 32 hidden channels stay, the strongest direction first" in page
    assert "% of the principal directions of the stream carry 80 %" in page
    assert f"{share.share:.0%} of the teacher" in page

    directions.write_bytes(b"no tensors")
    (run / "report.json").unlink()
    with pytest.raises(RunError, match=r"directions-.*damaged"):
        prune(folder / "dataset", folder / "teacher", run, asked, Silent())
    directions.unlink()
    assert prune(folder / "dataset", folder / "teacher", run, asked, Silent()) == first

    (collaborative / "model.safetensors").write_bytes(b"no tensors")
    shutil.rmtree(run / "stages")
    (run / "report.json").unlink()
    with pytest.raises(RunError, match=r"collaborative/model.safetensors: damaged"):
        prune(folder / "dataset", folder / "teacher", run, asked, Silent())
    (collaborative / "model.safetensors").unlink()
    assert prune(folder / "dataset", folder / "teacher", run, asked, Silent()) == first

    artifact = export(run, tmp_path / "artifact")
    assert artifact is not None
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact")
    assert loaded.lm_head.weight is not loaded.model.embed_tokens.weight
