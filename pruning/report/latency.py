"""How long one request takes, the models asked in turn on the same machine, one thread of requests.

Turn by turn, so that a machine that slows down meanwhile slows all of them.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from recommender.ranker import Ranker
from recommender.search.frontier import Query

_K = 10
_ROUNDS = 40
_FEWEST_ROUNDS = 5
_SECONDS = 8.0  # enough for a steady median of small models, and a bound for large ones


class Latency(BaseModel):
    """Milliseconds of one model's top 10 for one history."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p50_ms: float
    p95_ms: float


class LatencyReport(BaseModel):
    """What was measured, where, and how often each model was asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: str
    requests: int
    models: dict[str, Latency]


def measure_latency(
    rankers: Mapping[str, Ranker], histories: Sequence[Sequence[int]], seconds: float = _SECONDS
) -> LatencyReport:
    """Asks every ranker for its top 10 after each history, over and over; the first round warms up.

    Args:
        rankers: by name; they share a catalogue.
        histories: item indices, oldest first; at least one.
        seconds: no new round begins after this.
    """
    taken: dict[str, list[float]] = {name: [] for name in rankers}
    begun = time.perf_counter()
    for turn in range(_ROUNDS + 1):
        history = histories[turn % len(histories)]
        for name, ranker in rankers.items():
            start = time.perf_counter()
            ranker.search.rank([Query(ranker.prompt(history), _K)])
            taken[name].append(time.perf_counter() - start)
        if turn >= _FEWEST_ROUNDS and time.perf_counter() - begun > seconds:
            break
    models = {}
    for name, each in taken.items():
        p50, p95 = np.percentile(1e3 * np.array(each[1:]), (50, 95))
        models[name] = Latency(p50_ms=float(p50), p95_ms=float(p95))
    return LatencyReport(machine=machine(), requests=turn, models=models)


def machine() -> str:
    """The processor, its cores, and the versions that matter for a time."""
    return (
        f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
