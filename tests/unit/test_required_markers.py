"""CI must fail when tests that it relies on were skipped, or when none ran."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
CONFIG = "[pytest]\nmarkers =\n    redis: needs a Redis\n"
SKIPPED = "import pytest\n\n@pytest.mark.redis\ndef test_it():\n    pytest.skip('no server')\n"
PASSED = "import pytest\n\n@pytest.mark.redis\ndef test_it():\n    pass\n"
UNMARKED = "def test_it():\n    pass\n"


def run(folder: Path, test: str | None, required: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, folder)
    (folder / "pytest.ini").write_text(CONFIG)
    if test is not None:
        (folder / "test_one.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    environment = {**os.environ, "ESPALIER_REQUIRED_MARKERS": required}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("test", "required", "passes"),
    [
        (PASSED, "redis", True),
        (SKIPPED, "", True),
        (SKIPPED, "redis", False),
        (UNMARKED, "redis", False),
        (None, "", False),
    ],
    ids=["ran", "skipped where nothing is required", "skipped", "none marked", "none at all"],
)
def test_exit_status(tmp_path: Path, test: str | None, required: str, passes: bool) -> None:
    done = run(tmp_path, test, required)
    assert (done.returncode == 0) is passes, done.stdout
    if required and not passes:
        assert "FAILED" in done.stdout
