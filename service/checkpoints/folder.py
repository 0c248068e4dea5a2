"""The folder of artifacts: what in it is whole, seen anew at every look, so that nothing needs a restart.

A folder that is still being copied is left out: its manifest's digests do not fit yet. Reading gigabytes
at every look would be slow, so a verdict stands for as long as no file's size, time or inode changes.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from pathlib import Path

from recommender.artifact import MANIFEST, Artifact
from recommender.errors import ArtifactError
from service.checkpoints.schemas import CHECKPOINT_NAME
from service.errors import SettingsError, UnknownCheckpointError

_Signature = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class _Verdict:
    """What was found at a path whose files looked like this; None: nothing whole."""

    signature: _Signature
    artifact: Artifact | None


class ArtifactFolder:
    """A folder of artifacts, or one artifact alone. A checkpoint's name is its folder's.

    Its methods read files, and may be called from any thread.

    Raises:
        SettingsError: there is no such folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise SettingsError(f"{root}: no such folder; give an artifact, or a folder of artifacts")
        self.root = root.resolve()
        self.alone = _has_manifest(self.root)
        self._verdicts: dict[Path, _Verdict] = {}
        self._lock = threading.Lock()

    def list(self) -> dict[str, Artifact]:
        """The whole artifacts by name, in the order of their names."""
        with self._lock:
            entries = [self.root] if self.alone else _entries(self.root)
            self._verdicts = {
                entry: self._judge(entry)
                for entry in entries
                if re.fullmatch(CHECKPOINT_NAME, entry.name) and _has_manifest(entry)
            }
            return {
                entry.name: verdict.artifact
                for entry, verdict in self._verdicts.items()
                if verdict.artifact is not None
            }

    def find(self, name: str) -> Artifact:
        """The artifact of this name, its manifest read and its files not yet verified.

        Raises:
            UnknownCheckpointError: there is none.
            ArtifactError: its manifest is damaged.
        """
        path = self.root if self.alone and name == self.root.name else self.root / name
        if not re.fullmatch(CHECKPOINT_NAME, name) or not _has_manifest(path):
            raise UnknownCheckpointError(f"{name}: no such checkpoint; GET /checkpoints lists them")
        return Artifact.open(path)

    def only(self, named: str | None) -> str | None:
        """The name to begin with: `named`, or the only one; None when the folder is empty.

        Raises:
            SettingsError: there are several and no name says which, or there is none of that name yet.
        """
        if self.alone:
            return self.root.name
        whole = self.list()
        if named is not None and named not in whole:
            raise SettingsError(f"ESPALIER_CHECKPOINT: {self.root} holds no whole artifact {named}")
        if named is None and len(whole) > 1:
            names = ", ".join(whole)
            raise SettingsError(
                f"{self.root}: several artifacts ({names}); name one in ESPALIER_CHECKPOINT"
            )
        return named or next(iter(whole), None)

    def _judge(self, path: Path) -> _Verdict:
        signature = _signature(path)
        known = self._verdicts.get(path)
        if known is not None and known.signature == signature:
            return known
        try:
            artifact = Artifact.open(path)
            artifact.verify()
        except (ArtifactError, OSError):  # OSError: it is being changed or removed under our eyes
            return _Verdict(signature, None)
        return _Verdict(signature, artifact)


def _entries(root: Path) -> list[Path]:
    """What is in the folder now: nothing while its volume is away."""
    try:
        return sorted(root.iterdir())
    except OSError:
        return []


def _has_manifest(path: Path) -> bool:
    """Whether it is an artifact, as far as one may look: what may not be read is none."""
    try:
        return (path / MANIFEST).is_file()
    except OSError:
        return False


def _signature(path: Path) -> _Signature:
    found = []
    for file in sorted(path.rglob("*")):
        try:
            stat = file.stat()
        except OSError:  # it has just been removed
            continue
        found.append((str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino))
    return tuple(found)
