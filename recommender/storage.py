"""Files and folders that appear whole or not at all.

Everything is written beside its destination under a hidden name, flushed to the disk, and renamed;
so a reader, or the next run after a crash, never meets half of it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recommender.errors import InputError

_PARTIAL = ".partial-"


def write_file(path: Path, content: bytes | str) -> None:
    """Writes `content` to `path`, replacing it in one step."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}{_PARTIAL}{uuid.uuid4().hex[:8]}"
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """Yields a hidden folder to fill, which becomes `target` when the block ends well.

    On an exception the hidden folder is removed and `target` stays absent. Remains that a killed
    process left under the same name are cleared first.

    Raises:
        InputError: `target` exists already; nothing is ever overwritten.
    """
    if target.exists():
        raise InputError(f"{target} exists already; choose another name or remove it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    for remains in target.parent.iterdir():  # not glob: a name may hold its special characters
        if remains.name.startswith(f".{target.name}{_PARTIAL}"):
            shutil.rmtree(remains, ignore_errors=True)
    partial = target.parent / f".{target.name}{_PARTIAL}{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        yield partial
        for file in sorted(partial.rglob("*")):
            if file.is_file():
                _flush(file)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
