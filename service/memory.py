"""What the process and its children hold, and what they may hold, as Linux tells it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
# cgroup 2 and 1; inside a container its own limit stands at the root of the mounted tree.
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def resident_bytes(root: int | None = None) -> int:
    """Resident memory of a process (this one) and its descendants; 0 where the system does not tell it."""
    page = os.sysconf("SC_PAGE_SIZE")
    return sum(_resident_pages(process) for process in descendants(root or os.getpid())) * page


def memory_limit_bytes(cgroup: Path = _CGROUP) -> int:
    """What the processes may hold: the cgroup's limit, or the machine's memory when that is less."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = (cgroup / name for name in _LIMITS)
    found = (file.read_text().strip() for file in limits if file.is_file())
    return min([machine, *(int(limit) for limit in found if limit.isdecimal())])


def descendants(process: int) -> Iterator[int]:
    """A process, its children, theirs, and so on, as they are while one reads; Linux only, else itself."""
    yield process
    for file in _PROC.glob(f"{process}/task/*/children"):
        try:
            children = file.read_text().split()
        except OSError:  # the thread has just ended
            continue
        for child in children:
            yield from descendants(int(child))


def _resident_pages(process: int) -> int:
    try:
        return int((_PROC / str(process) / "statm").read_text().split()[1])
    except OSError:  # it has just ended, or this is no Linux
        return 0
