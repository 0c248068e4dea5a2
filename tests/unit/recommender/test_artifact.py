import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from recommender.artifact import MANIFEST, Artifact, Description, Quality, write_artifact
from recommender.catalogue import Catalogue
from recommender.errors import ArtifactError, InputError
from recommender.search.reading import prompts_reading
from recommender.trie import TitleTrie

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "recommender/catalogue.parquet",
    "recommender/trie.safetensors",
}


def edit_manifest(artifact: Artifact, change: Callable[[dict[str, Any]], object]) -> None:
    file = artifact.path / MANIFEST
    content = json.loads(file.read_bytes())
    change(content)
    file.write_text(json.dumps(content))


def test_what_was_written_opens_and_verifies(
    artifact: Artifact, description: Description, catalogue: Catalogue, trie: TitleTrie
) -> None:
    opened = Artifact.open(artifact.path)
    opened.verify()
    assert opened == artifact
    assert Description(**opened.manifest.model_dump(exclude={"files"})) == description
    assert opened.load_catalogue() == catalogue
    assert opened.load_trie().path(3) == trie.path(3)
    assert opened.load_encoder().template == description.prompt


def test_the_manifest_lists_every_file_with_digest_and_size(artifact: Artifact) -> None:
    assert set(artifact.manifest.files) == FILES
    for name, record in artifact.manifest.files.items():
        content = (artifact.path / name).read_bytes()
        assert record.size == len(content)
        assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert artifact.nbytes == sum((artifact.path / name).stat().st_size for name in FILES)
    assert [path.name for path in artifact.path.parent.iterdir()] == [artifact.path.name]


def test_identity_is_the_name_and_the_manifests_digest(artifact: Artifact) -> None:
    digest = hashlib.sha256((artifact.path / MANIFEST).read_bytes()).hexdigest()
    assert artifact.digest == digest
    assert artifact.identity == f"games-95@{digest[:12]}"
    edit_manifest(artifact, lambda content: content["lineage"].update(seed=1))
    assert Artifact.open(artifact.path).digest != digest


def test_transformers_alone_loads_it_and_agrees(artifact: Artifact) -> None:
    reference = AutoModelForCausalLM.from_pretrained(artifact.path).eval()
    tokenizer = AutoTokenizer.from_pretrained(artifact.path)
    encoder = artifact.load_encoder()
    prompt = encoder.encode_prompt([encoder.encode_title("Half-Life 2"), encoder.encode_title("Portal")])
    text = f"{encoder.template.instruction}Half-Life 2\nPortal\n"
    assert tokenizer.decode(prompt) == text
    lean = artifact.load_transformer()
    cache = lean.new_cache()
    cache.reserve(1, len(prompt))
    logits_V = torch.from_numpy(lean.read(prompts_reading([prompt], 0), cache))[0] @ lean.head_VH.T
    with torch.inference_mode():
        expected_V = reference(torch.tensor([prompt])).logits[0, -1]
    torch.testing.assert_close(logits_V, expected_V, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_byte_is_refused(artifact: Artifact, name: str) -> None:
    file = artifact.path / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is not what the manifest says; copy"):
        artifact.verify()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_refused(artifact: Artifact, name: str) -> None:
    (artifact.path / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing; copy"):
        artifact.verify()


def test_a_truncated_file_is_refused(artifact: Artifact) -> None:
    file = artifact.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"model\.safetensors is not what"):
        artifact.verify()


def test_a_file_that_the_manifest_does_not_list_is_refused(artifact: Artifact) -> None:
    (artifact.path / "recommender" / "modeling_mine.py").write_text("print('boo')")
    with pytest.raises(ArtifactError, match=r"recommender/modeling_mine\.py is not in the manifest"):
        artifact.verify()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "deep/state.PKL"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_pickle_is_refused_listed_or_not(artifact: Artifact, name: str, listed: bool) -> None:
    file = artifact.path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"\x80\x04.")
    if listed:
        record = {"sha256": hashlib.sha256(b"\x80\x04.").hexdigest(), "size": 3}
        edit_manifest(artifact, lambda content: content["files"].update({name: record}))
    with pytest.raises(ArtifactError, match=f"{name} may be a pickle"):
        Artifact.open(artifact.path).verify()


@pytest.mark.parametrize("name", ["model.safetensors", "recommender/trie.safetensors"])
def test_a_manifest_that_does_not_list_a_needed_file_is_refused(artifact: Artifact, name: str) -> None:
    edit_manifest(artifact, lambda content: content["files"].pop(name))
    (artifact.path / name).unlink()
    with pytest.raises(ArtifactError, match=f"the manifest does not list {name}"):
        Artifact.open(artifact.path).verify()


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_an_unknown_schema_version_is_refused(artifact: Artifact, version: object) -> None:
    edit_manifest(artifact, lambda content: content.update(schema_version=version))
    with pytest.raises(ArtifactError, match=f"schema version {version!r}; this release reads 1"):
        Artifact.open(artifact.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("lineage"), r"damaged \(lineage: Field required\)"),
        (lambda content: content.update(surprise=1), r"damaged \(surprise: Extra inputs"),
        (lambda content: content.update(name="../up"), r"damaged \(name: String should match"),
        (lambda content: content["prompt"].update(keep_items=99), r"damaged \(prompt: .*keep_items"),
        (lambda content: content["files"]["config.json"].pop("size"), r"files\.config\.json\.size: Field"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused_in_one_line(
    artifact: Artifact, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_manifest(artifact, change)
    with pytest.raises(ArtifactError, match=message) as refused:
        Artifact.open(artifact.path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe{}"])
def test_a_damaged_manifest_is_refused(artifact: Artifact, content: bytes) -> None:
    (artifact.path / MANIFEST).write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json: damaged"):
        Artifact.open(artifact.path)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no recommender/manifest\.json; make an artifact"):
        Artifact.open(tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "-x", "a b", "a\n", "x" * 101, "é"])
def test_a_name_that_is_no_plain_word_is_refused(description: Description, name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        Description.model_validate({**dict(description), "name": name})


def test_an_existing_target_is_refused_and_untouched(
    artifact: Artifact, description: Description, checkpoint: Path, catalogue: Catalogue, trie: TitleTrie
) -> None:
    with pytest.raises(InputError, match="exists already"):
        write_artifact(artifact.path, description, checkpoint, catalogue, trie)
    artifact.verify()


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "generation_config.json"])
def test_a_checkpoint_without_a_file_is_refused_and_leaves_nothing(
    tmp_path: Path,
    checkpoint: Path,
    description: Description,
    catalogue: Catalogue,
    trie: TitleTrie,
    name: str,
) -> None:
    part = tmp_path / "part"
    part.mkdir()
    for file in checkpoint.iterdir():
        if file.name != name:
            (part / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ArtifactError, match=f"no {name}; it is not a whole checkpoint"):
        write_artifact(tmp_path / "target", description, part, catalogue, trie)
    assert list(tmp_path.iterdir()) == [part]


def test_other_files_of_the_checkpoint_stay_behind(
    tmp_path: Path, checkpoint: Path, description: Description, catalogue: Catalogue, trie: TitleTrie
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    for file in checkpoint.iterdir():
        (full / file.name).write_bytes(file.read_bytes())
    (full / "training_args.bin").write_bytes(b"\x80\x04.")
    written = write_artifact(tmp_path / "target", description, full, catalogue, trie)
    assert set(written.manifest.files) == FILES
    written.verify()


def test_weights_that_are_no_safetensors_are_refused(artifact: Artifact) -> None:
    (artifact.path / "model.safetensors").write_bytes(b"\x80\x04.")
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        artifact.load_transformer()


def test_retention_is_student_over_teacher() -> None:
    quality = Quality(
        split="test",
        rows=100,
        hr10=0.1,
        ndcg10=0.045,
        teacher_hr10=0.1,
        teacher_ndcg10=0.05,
        popularity_ndcg10=0.03,
    )
    assert quality.retention_ndcg10 == pytest.approx(0.9)


def test_every_file_can_be_read_by_a_service_of_another_user(artifact: Artifact) -> None:
    files = [path for path in artifact.path.rglob("*") if path.is_file()]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files)
