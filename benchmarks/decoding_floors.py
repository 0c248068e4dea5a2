"""The floors of `floors.py` beside `decoding.py`'s times: for a request, and for requests read together."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence

from benchmarks.decoding_contenders import CONCURRENCIES, PAUSE_S, K, Prompt
from benchmarks.floors import Step, gemm_seconds, measure_machine, needed_steps, roofline_seconds
from benchmarks.records import Record
from recommender.artifact import Artifact
from recommender.ranker import Ranker
from recommender.search.frontier import Query


def together(requests: Sequence[Sequence[Step]]) -> list[Step]:
    """The steps of requests that are read together, level by level.

    Requests may score the same children, whose rows of the head are then read once: what the request with
    the most of them needs is what no engine can do without.
    """
    nothing = Step(0, 0, 0)
    return [
        Step(
            sum(step.tokens for step in level),
            sum(step.wanted for step in level),
            max(step.children for step in level),
        )
        for level in itertools.zip_longest(*requests, fillvalue=nothing)
    ]


def floors(artifact: Artifact, ranker: Ranker, prompts: Sequence[Prompt]) -> tuple[Record, Record]:
    """The floors, and which share of native's times at concurrency 1 they make up: 1 is a floor."""
    model = artifact.load_transformer()
    machine = measure_machine(ranker.search.model.nbytes)
    of_requests = [needed_steps(ranker, prompt, K) for prompt in prompts]

    def both(part: str, steps: Sequence[Step]) -> dict[str, float]:
        return {
            f"{part}_roofline": roofline_seconds(model, steps, machine),
            f"{part}_gemm": gemm_seconds(model, steps),
        }

    needed: list[dict[str, float]] = []
    taken: list[dict[str, float]] = []
    for prompt, steps in zip(prompts, of_requests, strict=True):
        prefill, whole = [], []
        for _ in range(5):
            start = time.perf_counter()
            ranker.search.admit([Query(prompt, K)])
            prefill.append(time.perf_counter() - start)
            while not ranker.search.step():
                pass
            whole.append(time.perf_counter() - start)
        time.sleep(PAUSE_S)
        taken.append({"prefill": statistics.median(prefill), "request": statistics.median(whole)})
        needed.append(both("prefill", steps[:1]) | both("request", steps))

    rates: dict[str, dict[str, float]] = {}
    for concurrency in CONCURRENCIES:
        groups = [of_requests[at : at + concurrency] for at in range(0, len(prompts), concurrency)]
        seconds = [
            both("prefill", merged[:1]) | both("request", merged) for merged in map(together, groups)
        ]
        rates[str(concurrency)] = {
            name: round(len(prompts) / sum(one[name] for one in seconds), 1) for name in seconds[0]
        }
    shares = {
        name: round(
            statistics.median(
                floor[name] / time_[name.split("_")[0]] for floor, time_ in zip(needed, taken, strict=True)
            ),
            4,
        )
        for name in needed[0]
    }
    return {
        "operations_per_s": machine.operations_per_s,
        "bytes_per_s": machine.bytes_per_s,
        "ms": _median_ms(needed),
        "native_ms": _median_ms(taken),
        "requests_per_s": rates,
    }, shares


def _median_ms(seconds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(1e3 * statistics.median(one[name] for one in seconds), 4) for name in seconds[0]}
