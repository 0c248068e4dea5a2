import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recommender.errors import InputError
from recommender.storage import new_directory, sha256_of, write_file

PAUSE = """
import os, sys, time
from pathlib import Path
from recommender import storage

def pause(*_):
    print("in the middle", flush=True)
    time.sleep(60)

target = Path(sys.argv[1])
"""


def kill_in_the_middle(script: str, target: Path) -> None:
    """Runs the script until it says that it is in the middle, then kills it for good."""
    child = subprocess.Popen(
        [sys.executable, "-c", PAUSE + script, str(target)], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "in the middle\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL


FILLING = """
with storage.new_directory(target) as folder:
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("half")
    pause()
"""
FLUSHING = """
os.fsync = pause
with storage.new_directory(target) as folder:
    (folder / "file").write_text("whole, but not yet on the disk")
"""
WRITING = """
os.fsync = pause
storage.write_file(target, "new")
"""


@pytest.mark.parametrize("script", [FILLING, FLUSHING])
def test_a_killed_process_leaves_no_folder_and_the_next_clears_its_remains(
    tmp_path: Path, script: str
) -> None:
    target = tmp_path / "run [1]"  # brackets mean something to glob
    kill_in_the_middle(script, target)
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with new_directory(target) as folder:
        assert list(tmp_path.iterdir()) == [folder]
        (folder / "file").write_text("whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["run [1]", "file"]


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    kill_in_the_middle(WRITING, tmp_path / "state.json")
    assert not (tmp_path / "state.json").exists()


def test_a_killed_process_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    write_file(target, "old")
    kill_in_the_middle(WRITING, target)
    assert target.read_text() == "old"
    write_file(target, "new")
    assert target.read_text() == "new"


def test_the_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "run"
    with new_directory(target) as folder:
        (folder / "file").write_text("x")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["file"]
    assert [path.name for path in target.parent.iterdir()] == ["run"]


def test_the_folder_is_renamed_not_copied(tmp_path: Path) -> None:
    with new_directory(tmp_path / "run") as folder:
        filled = folder.stat().st_ino
    assert (tmp_path / "run").stat().st_ino == filled


def test_a_reader_of_the_old_file_reads_it_to_the_end(tmp_path: Path) -> None:
    write_file(tmp_path / "state", "old")
    with (tmp_path / "state").open() as reader:
        write_file(tmp_path / "state", "new")
        assert reader.read() == "old"
    assert (tmp_path / "state").read_text() == "new"


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    def fail_in_the_middle() -> None:
        with new_directory(tmp_path / "run") as folder:
            (folder / "file").write_text("x")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail_in_the_middle()
    assert list(tmp_path.iterdir()) == []


def test_remains_of_another_name_are_left_alone(tmp_path: Path) -> None:
    kill_in_the_middle(FILLING, tmp_path / "other")
    remains = list(tmp_path.iterdir())
    with new_directory(tmp_path / "o") as folder:
        (folder / "file").write_text("x")
    assert remains[0].is_dir()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_existing_target_is_refused_and_untouched(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "run"
    if kind == "folder":
        target.mkdir()
    else:
        target.write_text("mine")
    with pytest.raises(InputError, match="run exists already; choose another name"), new_directory(target):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == [target]


def test_write_file_takes_text_and_bytes_and_makes_folders(tmp_path: Path) -> None:
    write_file(tmp_path / "a" / "b", "é")
    assert (tmp_path / "a" / "b").read_bytes() == b"\xc3\xa9"
    write_file(tmp_path / "a" / "b", b"\xff")
    assert (tmp_path / "a" / "b").read_bytes() == b"\xff"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


def test_write_file_cleans_up_when_it_cannot_replace(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="taken"):
        write_file(tmp_path / "taken", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_sha256_of(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
