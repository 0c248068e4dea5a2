"""The one thing that pyproject.toml cannot say: the search's kernels, compiled for the levels of x86-64.

Each is optional. Without a C compiler, or on another processor, the search runs on torch alone.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("recommender/search/native")
SOURCES = sorted(str(file) for file in FOLDER.glob("*.c"))
HEADERS = sorted(str(file) for file in FOLDER.glob("*.h"))
FLAGS = ("-std=c11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
LEVELS = ("x86_64_v4", "x86_64_v3")


def kernels(level: str) -> Extension:
    """The kernels for a level of the x86-64 psABI: v3 has AVX2, v4 AVX-512."""
    march = [f"-march={level.replace('_', '-')}"]
    wide = ["-mprefer-vector-width=512"] if level.endswith("v4") else []
    return Extension(
        f"recommender.search.native.kernels_{level}",
        SOURCES,
        depends=HEADERS,
        extra_compile_args=[*FLAGS, *march, *wide],
        libraries=["m", "pthread"],
        optional=True,
    )


known = sys.platform == "linux" and platform.machine() == "x86_64"
setup(ext_modules=[kernels(level) for level in LEVELS] if known else [])
