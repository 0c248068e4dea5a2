"""Records that stand in files of a run, and the keys that name what depends on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pruning import processes
from pruning.errors import RunError
from recommender.errors import first_problem
from recommender.storage import write_file

_RecordT = TypeVar("_RecordT", bound=BaseModel)


def kept(file: Path, kind: type[_RecordT], make: Callable[[], _RecordT]) -> _RecordT:
    """The record that stands in `file`, or the one that `make` gives, which then stands there."""
    if processes.once(file.exists):
        return read_record(file, kind)
    record = make()
    store_record(file, record)
    return record


def store_record(file: Path, record: BaseModel) -> None:
    """Writes the record, from one process; all return when it stands."""
    text = record.model_dump_json(indent=2) + "\n"
    processes.once(lambda: write_file(file, text))


def read_record(file: Path, kind: type[_RecordT]) -> _RecordT:
    """The record in a file of the run.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        return kind.model_validate_json(file.read_bytes())
    except OSError as error:
        raise RunError(f"{file}: cannot be read ({error.strerror}); repeat the prune command") from error
    except ValidationError as error:
        raise RunError(f"{file}: damaged ({first_problem(error)}); remove it and run again") from error


def digest(*parts: Any) -> str:
    """Twelve hex digits that name these JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
