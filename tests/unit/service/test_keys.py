from pathlib import Path

import pytest

from service.errors import MissingKeyError, SettingsError, WrongKeyError
from service.keys import Keys


def test_without_a_file_nothing_is_asked_for() -> None:
    keys = Keys.from_file(None)
    assert not keys
    keys.check(None)


def test_each_of_several_keys_is_valid(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("old-key\n\n  new-key  \n")
    keys = Keys.from_file(file)
    assert keys
    keys.check(b"Bearer old-key")
    keys.check(b"bearer  new-key")


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer  ", b"Basic old-key", b"old-key"])
def test_no_bearer_key_is_missing(header: bytes | None) -> None:
    with pytest.raises(MissingKeyError):
        Keys(("old-key",)).check(header)


@pytest.mark.parametrize("header", [b"Bearer old-ke", b"Bearer old-key2", b"Bearer \xff"])
def test_another_key_is_wrong(header: bytes) -> None:
    with pytest.raises(WrongKeyError):
        Keys(("old-key",)).check(header)


def test_a_file_without_keys_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("\n \n")
    with pytest.raises(SettingsError, match="holds no key"):
        Keys.from_file(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        Keys.from_file(tmp_path / "nowhere")
