"""A folder is bound to what it was begun with."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from pruning.errors import RunError
from pruning.folder import claim


class Inner(BaseModel):
    rate: float = 0.1


class Settings(BaseModel):
    inner: Inner = Inner()
    seed: int = 0


class NewerSettings(Settings):
    rank: int | None = None


def test_the_same_settings_resume_and_others_are_named(tmp_path: Path) -> None:
    claim(tmp_path / "run", "settings.json", Settings())
    claim(tmp_path / "run", "settings.json", Settings())
    with pytest.raises(RunError, match=r"begun with inner\.rate = 0\.1, and now it is 0\.2"):
        claim(tmp_path / "run", "settings.json", Settings(inner=Inner(rate=0.2)))


def test_a_setting_that_did_not_exist_yet_counts_as_not_set(tmp_path: Path) -> None:
    claim(tmp_path / "run", "settings.json", Settings())
    claim(tmp_path / "run", "settings.json", NewerSettings())
    with pytest.raises(RunError, match="begun with rank = None, and now it is 8"):
        claim(tmp_path / "run", "settings.json", NewerSettings(rank=8))
