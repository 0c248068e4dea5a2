from pathlib import Path

import pytest

from service.checkpoints.schemas import CheckpointRef, FleetRecord
from service.checkpoints.state import Memory, StateFile

REF = CheckpointRef(name="tiny", digest="0" * 64)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    memory = Memory(record=FleetRecord(generation=3, wanted=REF, previous=(REF,)), last_good=REF)
    StateFile(tmp_path / "new" / "folder").write(memory)
    assert StateFile(tmp_path / "new" / "folder").read() == memory


@pytest.mark.parametrize("content", ["", "{", '{"record": {"generation": 0}}', '{"unknown": 1}'])
def test_a_damaged_file_is_logged_and_not_used(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "checkpoint.json").write_text(content)
    assert StateFile(tmp_path).read() == Memory()
    assert "is damaged and not used" in caplog.text


def test_a_disk_that_takes_nothing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    StateFile(tmp_path / "file").write(Memory(last_good=REF))
    assert "cannot be written" in caplog.text
    assert StateFile(tmp_path / "file").read() == Memory()
