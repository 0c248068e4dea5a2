import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recommender.artifact import MANIFEST, Artifact
from recommender.errors import ArtifactError
from service.checkpoints.folder import ArtifactFolder
from service.errors import SettingsError, UnknownCheckpointError


def copy(artifact: Artifact, target: Path) -> Path:
    return Path(shutil.copytree(artifact.path, target))


def test_an_artifact_alone_is_a_folder_of_one(served_artifact: Artifact) -> None:
    folder = ArtifactFolder(served_artifact.path)
    assert folder.list() == {"tiny": served_artifact}
    assert folder.find("tiny") == served_artifact
    assert folder.only(None) == "tiny"


def test_what_is_dropped_in_appears_and_what_is_removed_goes(
    served_artifact: Artifact, tmp_path: Path
) -> None:
    folder = ArtifactFolder(tmp_path)
    assert folder.list() == {}
    assert folder.only(None) is None
    copy(served_artifact, tmp_path / "one")
    copy(served_artifact, tmp_path / ".hidden")
    assert list(folder.list()) == ["one"]
    shutil.rmtree(tmp_path / "one")
    assert folder.list() == {}
    shutil.rmtree(tmp_path)  # a volume that went away
    assert folder.list() == {}


def test_a_half_copied_one_is_left_out_until_it_is_whole(served_artifact: Artifact, tmp_path: Path) -> None:
    path = copy(served_artifact, tmp_path / "half")
    folder = ArtifactFolder(tmp_path)
    weights, manifest = path / "model.safetensors", path / MANIFEST
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])  # the size is short
    assert folder.list() == {}
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # the size is right, the digest is not
    assert folder.list() == {}
    weights.write_bytes(whole)
    last = manifest.read_bytes()
    manifest.unlink()
    assert folder.list() == {}
    manifest.write_bytes(last[: len(last) // 2])
    assert folder.list() == {}
    manifest.write_bytes(last)
    assert list(folder.list()) == ["half"]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; whoever else runs the tests is somebody already."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)


def test_what_may_not_be_read_hides_nothing_else(served_artifact: Artifact) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        root = Path(name)
        root.chmod(0o755)
        copy(served_artifact, root / "one")
        private = copy(served_artifact, root / "private")
        private.chmod(0)
        with as_nobody():
            folder = ArtifactFolder(root)
            assert list(folder.list()) == ["one"]
            assert folder.only(None) == "one"
            with pytest.raises(UnknownCheckpointError):
                folder.find("private")
            with pytest.raises(SettingsError, match="no whole artifact private"):
                folder.only("private")
        private.chmod(0o755)
        with as_nobody():
            assert list(folder.list()) == ["one", "private"]


def test_of_several_one_must_be_named(served_artifact: Artifact, tmp_path: Path) -> None:
    copy(served_artifact, tmp_path / "one")
    copy(served_artifact, tmp_path / "two")
    folder = ArtifactFolder(tmp_path)
    with pytest.raises(SettingsError, match=r"several artifacts \(one, two\).*ESPALIER_CHECKPOINT"):
        folder.only(None)
    assert folder.only("two") == "two"
    with pytest.raises(SettingsError, match="no whole artifact three"):
        folder.only("three")


@pytest.mark.parametrize("name", ["nobody", "..", ".", "", "../artifacts", "a/b", "é" * 300, "\0"])
def test_strange_names_find_nothing(served_artifact: Artifact, tmp_path: Path, name: str) -> None:
    copy(served_artifact, tmp_path / "one")
    with pytest.raises(UnknownCheckpointError):
        ArtifactFolder(tmp_path).find(name)


def test_a_damaged_manifest_is_told(served_artifact: Artifact, tmp_path: Path) -> None:
    path = copy(served_artifact, tmp_path / "one")
    (path / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        ArtifactFolder(tmp_path).find("one")


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such folder"):
        ArtifactFolder(tmp_path / "nowhere")
