"""The interpreter that has vLLM, if there is one here."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

_MADE = Path(__file__).parents[2] / ".venv-vllm" / "bin" / "python"
_LOOK = "from importlib.util import find_spec; raise SystemExit(find_spec('vllm') is None)"


@cache
def _found() -> Path | None:
    named = os.environ.get("ESPALIER_VLLM_PYTHON")
    for python in [named] if named else [_MADE, sys.executable]:
        if Path(python).exists() and not subprocess.run([python, "-c", _LOOK], check=False).returncode:
            return Path(python)
    return None


def vllm_python() -> Path:
    """The interpreter; skips the test where there is none."""
    python = _found()
    if python is None:
        pytest.skip("no interpreter with vLLM: run `make vllm`, or set ESPALIER_VLLM_PYTHON")
    return python
