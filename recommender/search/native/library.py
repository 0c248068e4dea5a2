"""The compiled kernels, as ctypes sees them: which ones this processor can run, and what they take.

The structures are those of `kernels.h`, field by field.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_INT, _LONG, _POINTER = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p

# The levels of x86-64 that are built, the best first, and what they need of /proc/cpuinfo's flags.
_LEVELS = {
    "x86_64_v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma", "bmi2"},
    "x86_64_v3": {"avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe"},
}


class Layer(ctypes.Structure):
    """`Layer` of kernels.h."""

    _fields_ = [
        *((name, _POINTER) for name in ("input_norm", "qkv", "qkv_bias", "qk_norm", "o", "o_bias")),
        *((name, _POINTER) for name in ("mlp_norm", "gate_up", "down")),
    ]


class Model(ctypes.Structure):
    """`Model` of kernels.h."""

    _fields_ = [
        *(
            (name, _INT)
            for name in ("hidden", "heads", "kv_heads", "head_dim", "inner", "layers", "halves")
        ),
        ("epsilon", ctypes.c_float),
        ("embedding", _POINTER),
        ("norm", _POINTER),
        ("layer", ctypes.POINTER(Layer)),
    ]


class Reading(ctypes.Structure):
    """`Reading` of kernels.h."""

    _fields_ = [
        ("tokens", _INT),
        ("wanted", _INT),
        *((name, _POINTER) for name in ("token", "position", "slot", "column", "prefix")),
        ("wanted_rows", _POINTER),
        ("above", _POINTER),
        ("kv", _POINTER),
        ("columns", _LONG),
        ("cosine", _POINTER),
        ("sine", _POINTER),
        ("out", _POINTER),
    ]


class Scoring(ctypes.Structure):
    """`Scoring` of kernels.h."""

    _fields_ = [
        *((name, _INT) for name in ("nodes", "hidden", "halves")),
        *((name, _POINTER) for name in ("node", "edge_offsets", "child_offsets", "label_offsets")),
        *((name, _POINTER) for name in ("label_tokens", "head", "states", "score", "children", "scores")),
    ]


def levels() -> list[str]:
    """The levels that were built and that this processor has, the best first."""
    flags = _processor_flags()
    return [level for level, needed in _LEVELS.items() if needed <= flags and _file(level) is not None]


@cache
def load(level: str) -> ctypes.CDLL:
    """The kernels for one of `levels()`."""
    return _declared(ctypes.CDLL(str(_file(level))))


def _file(level: str) -> Path | None:
    files = (Path(__file__).with_name(f"kernels_{level}{suffix}") for suffix in EXTENSION_SUFFIXES)
    return next((file for file in files if file.exists()), None)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    library.espalier_lanes.restype = ctypes.c_int
    library.espalier_pool.argtypes, library.espalier_pool.restype = [ctypes.c_int] * 2, _POINTER
    library.espalier_close_pool.argtypes, library.espalier_close_pool.restype = [_POINTER], None
    library.espalier_pack.argtypes = [_POINTER, *[ctypes.c_int] * 4, _POINTER]
    library.espalier_pack.restype = None
    library.espalier_read.argtypes = [ctypes.POINTER(Model), ctypes.POINTER(Reading), _POINTER]
    library.espalier_read.restype = ctypes.c_int
    library.espalier_score.argtypes = [ctypes.POINTER(Scoring), _POINTER]
    library.espalier_score.restype = None
    return library


def _processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux: nothing was built either
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())
