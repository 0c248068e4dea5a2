import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.memory import memory_limit_bytes, resident_bytes

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("file", "text", "limit"),
    [
        ("memory.max", "1048576\n", 1 << 20),
        ("memory.max", "max\n", MACHINE),
        ("memory/memory.limit_in_bytes", "2097152\n", 2 << 20),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", MACHINE),
        ("other", "1", MACHINE),
    ],
)
def test_the_limit_is_the_cgroups_or_the_machines(tmp_path: Path, file: str, text: str, limit: int) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert memory_limit_bytes(tmp_path) == limit


def test_children_count() -> None:
    hold = "import sys; held = b'x' * (64 << 20); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        child.stdout.readline()
        with_child = resident_bytes()
        child.stdin.close()
        child.wait()
    assert with_child - resident_bytes() > 48 << 20
