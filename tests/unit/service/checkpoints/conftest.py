"""Folders of artifacts, and apps that may exchange them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served_artifact import write_other_artifact

from recommender.artifact import Artifact

ADMIN = {"Authorization": "Bearer root"}


@pytest.fixture(scope="session")
def other_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_other_artifact(tmp_path_factory)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "artifacts"
    path.mkdir()
    return path


@pytest.fixture
def put(served_artifact: Artifact, other_artifact: Artifact, folder: Path) -> Callable[..., Path]:
    """`put("tiny")` or `put("other", "name")` copies an artifact into the folder."""
    known = {"tiny": served_artifact, "other": other_artifact}

    def copy(which: str, name: str | None = None) -> Path:
        return Path(shutil.copytree(known[which].path, folder / (name or which)))

    return copy


@pytest.fixture
def swapping(folder: Path, empty_valkey: str, tmp_path: Path, open_app: Any) -> Callable[..., Any]:
    """`async with swapping(…) as client`: an app on the folder, with a Valkey and an admin token."""
    (tmp_path / "token").write_text("root\n")

    def make(**changes: Any) -> Any:
        given = {
            "artifacts": folder,
            "redis_url": empty_valkey,
            "admin_token_file": tmp_path / "token",
            "state_dir": tmp_path / "state",
        }
        return open_app(**{**given, **changes})

    return make
