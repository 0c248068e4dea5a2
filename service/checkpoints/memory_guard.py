"""Refuses a checkpoint for which there is no room beside the one that serves.

A process that runs into its limit is killed, and takes the serving model with it; so the room is
reckoned before anything is loaded.
"""

from __future__ import annotations

from recommender.artifact import WEIGHTS, Artifact
from service.errors import SwapError
from service.memory import memory_limit_bytes, resident_bytes

_FLOAT32 = 4
# Catalogue, trie and tokenizer grow from columns and JSON into Python objects and arrays.
_GROWTH = 10


def needed_bytes(artifact: Artifact) -> int:
    """An upper estimate of what loading takes: tensors as read, as float32 and as packed, and the rest."""
    files = artifact.manifest.files
    weights = files[WEIGHTS.as_posix()].size
    whole = (
        _FLOAT32 * artifact.manifest.parameters.total
    )  # what is read and what is packed may be half of it
    return max(weights, whole) + whole + _GROWTH * (artifact.nbytes - weights)


def refuse_what_has_no_room(artifact: Artifact, overhead: int) -> None:
    """Counts what is resident now, the serving model included, and what the new one needs on top.

    Args:
        artifact: the new one.
        overhead: bytes that its engine takes beside what the artifact says.

    Raises:
        SwapError: both together exceed the limit.
    """
    resident, limit = resident_bytes(), memory_limit_bytes()
    needed = needed_bytes(artifact) + overhead
    if resident + needed > limit:
        raise SwapError(
            f"{artifact.identity} needs about {needed >> 20} MiB beside the {resident >> 20} MiB in use, "
            f"and the limit is {limit >> 20} MiB; raise it, or restart with this checkpoint alone"
        )
