"""What a replica remembers on its own disk: what the fleet wanted, and what last served well here.

It is read once at start, for the day on which Redis is away or has forgotten.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import ValidationError

from recommender.errors import first_problem
from recommender.storage import write_file
from service.checkpoints.schemas import CheckpointRef, FleetRecord
from service.schemas import Answer

_log = logging.getLogger("espalier.checkpoints")


class Memory(Answer):
    """The fleet's record as last seen, and the checkpoint that last proved itself."""

    record: FleetRecord | None = None
    last_good: CheckpointRef | None = None


class StateFile:
    """`checkpoint.json` in the state folder. It touches the disk: call it from a thread."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "checkpoint.json"

    def read(self) -> Memory:
        """What is remembered; nothing when the file is absent or damaged, which is logged."""
        try:
            return Memory.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return Memory()
        except ValidationError as error:
            _log.warning("%s is damaged and not used: %s", self._file, first_problem(error))
        except OSError as error:
            _log.warning("%s cannot be read: %s", self._file, error)
        return Memory()

    def write(self, memory: Memory) -> None:
        """Remembers. A full or read-only disk is logged: it must not keep a checkpoint from serving."""
        try:
            write_file(self._file, memory.model_dump_json(indent=2) + "\n")
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._file, error)
