"""A folder that belongs to one piece of work: the same command on it resumes, another is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pruning.errors import RunError
from recommender.storage import write_file


def claim(folder: Path, file: str, settings: BaseModel) -> None:
    """Writes `settings` into a new folder, or checks that the folder was made with the same ones.

    Raises:
        RunError: the folder holds something else, or other settings; the message names the first
            setting that differs.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; give a folder")
    record = folder / file
    wanted = settings.model_dump(mode="json")
    if not record.exists():
        if folder.exists() and any(p for p in folder.iterdir() if not p.name.startswith(".")):
            raise RunError(f"{folder} is not empty and no run of ours ({file} is missing); choose another")
        folder.mkdir(parents=True, exist_ok=True)
        write_file(record, json.dumps(wanted, indent=2) + "\n")
        return
    try:
        stored = json.loads(record.read_bytes())
    except ValueError as error:
        raise RunError(f"{record}: damaged ({error}); remove the folder and run again") from error
    difference = _first_difference(stored, wanted)
    if difference:
        name, was, now = difference
        raise RunError(
            f"{folder} was begun with {name} = {was!r}, and now it is {now!r}; "
            "repeat the first command, or choose another folder"
        )


def _first_difference(was: Any, now: Any, name: str = "") -> tuple[str, Any, Any] | None:
    """None where all is the same; a setting that an older version did not have counts as None."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(was.keys() | now.keys()):
            found = _first_difference(was.get(key), now.get(key), f"{name}.{key}".lstrip("."))
            if found:
                return found
        return None
    return None if was == now else (name, was, now)
