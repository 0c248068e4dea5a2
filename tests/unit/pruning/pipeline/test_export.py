"""The artifact of a finished run: what is exported, what is refused, and who else reads it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import TITLES, Silent
from transformers import AutoModelForCausalLM, AutoTokenizer

from pruning.checkpoint import load_checkpoint
from pruning.errors import RunError
from pruning.export import export
from pruning.judging import evaluate
from recommender.artifact import MANIFEST, Artifact
from recommender.dataset import Dataset
from recommender.errors import InputError
from recommender.ranker import Ranker
from recommender.search.frontier import Query
from recommender.storage import sha256_of


def test_the_artifact_is_the_last_student(folder: Path, tmp_path: Path) -> None:
    artifact = export(folder / "run", tmp_path / "mine")
    artifact.verify()
    assert artifact.manifest.name == "mine"
    assert [stage.name for stage in artifact.manifest.lineage.stages] == ["width", "mlp", "depth"]
    judged = evaluate(tmp_path / "mine", folder / "dataset", "test", Silent())
    assert artifact.manifest.quality is not None
    assert judged.model.metrics.ndcg10 == artifact.manifest.quality.ndcg10
    assert evaluate(folder / "run", folder / "dataset", "test", Silent()).model == judged.model

    ranker = Ranker.from_artifact(artifact)
    for answer in artifact.manifest.reference:
        history = [ranker.catalogue.index_of(item_id) for item_id in answer.history]
        query = Query(ranker.prompt(history), len(answer.item_ids))
        items = ranker.items(ranker.search.rank([query])[0], query)
        assert tuple(ranker.catalogue.item_ids[item.index] for item in items) == answer.item_ids
        np.testing.assert_allclose([item.score for item in items], answer.scores, atol=1e-5)


def test_a_teacher_and_its_bare_checkpoint_are_judged_alike(folder: Path) -> None:
    teacher = evaluate(folder / "teacher", folder / "dataset", "valid", Silent())
    checkpoint = evaluate(folder / "teacher" / "model", folder / "dataset", "valid", Silent())
    assert teacher.name == "teacher"
    assert teacher.model == checkpoint.model
    assert teacher.model.metrics.rows == len(Dataset(folder / "dataset").rows("valid"))
    assert list(teacher.by_model()) == ["teacher", "popularity"]


def test_transformers_loads_the_artifact_and_gives_its_logits(folder: Path, tmp_path: Path) -> None:
    export(folder / "run", tmp_path / "mine")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "mine")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "mine")
    report = json.loads((folder / "run" / "report.json").read_text())
    last = next((folder / "run" / "stages").glob(f"3-depth-{report['stages'][-1]['key']}"))
    student = load_checkpoint(last / "student")
    ids = student.tokenizer.encode(TITLES[3], add_special_tokens=False).ids
    assert tokenizer.encode(TITLES[3], add_special_tokens=False) == ids
    with torch.no_grad():
        tokens = torch.tensor([ids])
        torch.testing.assert_close(model(tokens).logits, student.model(tokens).logits, atol=0, rtol=0)


def test_exporting_again_is_no_work_and_other_content_is_refused(folder: Path, tmp_path: Path) -> None:
    first = export(folder / "run", tmp_path / "mine")
    assert export(folder / "run", tmp_path / "mine").digest == first.digest
    items = tmp_path / "items.csv"
    items.write_text("item_id,title\n1,Red River\n77,A Wholly New Title\n")
    with pytest.raises(InputError, match="never overwritten"):
        export(folder / "run", tmp_path / "mine", items)
    items.write_text("item_id,title\n1,Red River\n77,A Wholly Other Title\n")
    export(folder / "run", tmp_path / "two", items)
    items.write_text("item_id,title\n1,Red River\n77,A Wholly New Title\n")
    with pytest.raises(InputError, match="never overwritten"):
        export(folder / "run", tmp_path / "two", items)
    (tmp_path / "notes").mkdir()
    with pytest.raises(InputError, match="exists and is no artifact"):
        export(folder / "run", tmp_path / "notes")
    other = export(folder / "run", tmp_path / "other", items)
    assert other.load_catalogue().item_ids == ("1", "77")
    assert other.manifest.quality is None  # it was measured on another catalogue


@pytest.mark.parametrize(("among", "warned"), [("catalogue", True), ("vocabulary", False)])
def test_titles_that_begin_as_none_did_in_training_are_warned_of(
    folder: Path, tmp_path: Path, among: str, warned: bool
) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    plan = json.loads((run / "plan.json").read_text())
    plan["recipe"]["stages"][-1]["distillation"]["among"] = among
    (run / "plan.json").write_text(json.dumps(plan))
    items = tmp_path / "items.csv"
    said: list[str] = []

    items.write_text("item_id,title\n1,Red River\n77,Red Wholly New\n")  # new, but begins as others do
    export(run, tmp_path / "kin", items, said.append)
    export(run, tmp_path / "own", say=said.append)
    assert said == []

    items.write_text("item_id,title\n1,Red River\n77,Wholly New\n78,Xylophones\n")
    artifact = export(run, tmp_path / "strangers", items, said.append)
    assert artifact.load_catalogue().item_ids == ("1", "77", "78")
    assert len(said) == warned
    if warned:
        assert "2 of the 3 titles" in said[0]
        assert "'Wholly New'" in said[0]


def test_last_digits_of_reference_scores_make_no_other_artifact(folder: Path, tmp_path: Path) -> None:
    manifest = export(folder / "run", tmp_path / "mine").path / MANIFEST
    content = json.loads(manifest.read_text())
    for answer in content["reference"]:
        answer["scores"] = [score + 1e-6 for score in answer["scores"]]
    manifest.write_text(json.dumps(content))
    assert export(folder / "run", tmp_path / "mine").digest == sha256_of(manifest)


def test_names_and_folders_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be an artifact's name"):
        export(folder / "run", tmp_path / "no spaces")
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(RunError, match=r"no report\.json"):
        export(tmp_path / "unfinished", tmp_path / "mine")
    with pytest.raises(InputError, match="neither an artifact nor"):
        evaluate(tmp_path, folder / "dataset", "test", Silent())
    (folder / "unfinished").mkdir()
    shutil.copytree(folder / "teacher" / "model", folder / "unfinished" / "model")
    with pytest.raises(InputError, match="neither an artifact nor"):
        evaluate(folder / "unfinished", folder / "dataset", "test", Silent())
    with pytest.raises(InputError, match="train, valid, test"):
        evaluate(folder / "run", folder / "dataset", "tests", Silent())


def test_a_damaged_manifest_does_not_hide(folder: Path, tmp_path: Path) -> None:
    export(folder / "run", tmp_path / "mine")
    weights = tmp_path / "mine" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InputError, match=r"model\.safetensors is not what the manifest says"):
        evaluate(tmp_path / "mine", folder / "dataset", "test", Silent())
    assert Artifact.open(tmp_path / "mine").manifest.name == "mine"
