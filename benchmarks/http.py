"""Latency against offered load, through the whole service: where it bends, and what gives in first.

    python -m benchmarks.http ARTIFACT DATASET [--seconds 20] [--out docs/results/http.json]

`espalier serve ARTIFACT` runs with its defaults, keys on, and a real redis-server (Debian's, append-only
file). Requests bear real test histories: half name a user whose history is stored, half carry it. Clients
that ask without pause find the capacity. Then a process of its own offers 10 % … 130 % of it, one step
after the other: at random (Poisson) moments, whether earlier requests are answered or not, and a request's
time counts from the moment it was due. The *knee* is the highest step up to which the service keeps up. A
last, longer run is at 70 % of it. Redis and the generator share the machine; what each took of it stands in
the record, and so does what others took: more than a tenth of a core, and the machine was not quiet.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import torch
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.records import Record, described, lineage, percentiles, provenance, publish, table
from benchmarks.serving import (
    GOOD,
    KEY,
    WARMING_SECONDS,
    Server,
    Service,
    busy_core_seconds,
    generate,
    real_histories,
    redis_server,
    service,
    write_bodies,
)
from recommender.artifact import Artifact
from recommender.dataset import Dataset

SHARES = tuple(percent / 100 for percent in range(10, 140, 10))
PARTS = ("history", "prompt", "queue", "prefill", "decode", "rest", "around")
_SEARCH = ("queue", "prefill", "decode")
_CLAIMED = ("history", "prompt", *_SEARCH)
_GOAL_SHARE, _GOAL_SPREAD, _GOAL_AROUND_MS = 0.7, 5.0, 1.0
# Of what a step offers, so much must be answered within its time; the rest is on its way when it ends.
_KEPT_UP = 0.97
_PACKAGES = ("espalier", "torch", "uvicorn", "uvloop", "fastapi", "redis")


def stage_percentiles(stages: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float] | None]:
    """Percentiles of every part of the time inside the service.

    `rest` is what no stage claims, `around` all of a request but search and waiting. Both are reckoned
    request by request: half of them read Redis, so the sum of the parts' medians is no request's time.
    """

    def beyond(claimed: Sequence[str]) -> list[float]:
        spent = zip(stages["total"], *(stages[part] for part in claimed), strict=True)
        return [total - sum(parts) for total, *parts in spent]

    parts = {part: stages[part] for part in _CLAIMED} | {
        "rest": beyond(_CLAIMED),
        "around": beyond(_SEARCH),
    }
    return {part: percentiles([ms / 1e3 for ms in parts[part]]) for part in PARTS}


def keeps_up(step: Record) -> bool:
    """Whether all was answered well, and as fast as it came."""
    return not step["errors"] and step["answered_in_time"] >= _KEPT_UP * step["offered"]


def knee(steps: Sequence[Record]) -> Record | None:
    """The highest of the rising steps up to which the service keeps up; None: not even at the first."""
    last = None
    for step in steps:
        if not keeps_up(step):
            break
        last = step
    return last


def around_the_search(step: Record) -> float | None:
    """Milliseconds at p50 of all but search and waiting: Redis, prompt, JSON, pydantic, metrics."""
    if step["stages"] is None:
        return None
    around: float = step["stages"]["around"]["p50_ms"]
    return around


def saturated(step: Record, cores: int) -> tuple[str, float]:
    """What is nearest to its limit, and how near. A thread has one core; all share the machine's."""
    used = step["cores_used"]
    shares = {
        "the event loop's thread": used["event_loop"],
        "the engine's thread": used["engine"],
        "Redis": used["redis"],
        "the load generator": used["generator"],
        "the machine's cores": used["all"] / cores,
    }
    name = max(shares, key=lambda one: shares[one])
    return name, round(shares[name], 3)


def disturbance(steps: Sequence[Record]) -> float:
    """The most cores that anything but service, Redis and generator took during a step."""
    used: list[dict[str, float]] = [step["cores_used"] for step in steps]
    others = [one["all"] - one["service"] - one["redis"] - one["generator"] for one in used]
    return round(max(0.0, *others), 2)


def offer(running: Service, store: Server, bodies: Path, rate: float, seconds: float) -> Record:
    """One step."""
    threads, cpu, redis_cpu = running.thread_seconds(), running.cpu_seconds(), store.cpu_seconds()
    busy_cores = busy_core_seconds()
    (met,) = generate(running.url, bodies, seconds, "--rate", str(rate), "--stages")
    took = met["seconds"]
    after = running.thread_seconds()
    busy = {thread: (spent - threads.get(thread, 0.0)) / took for thread, spent in after.items()}
    good = met["times"].get(GOOD, [])
    return {
        "offered": met["offered"],
        "offered_rps": round(met["offered"] / took, 1),
        "answered_in_time": met["answered_meanwhile"].get(GOOD, 0),
        "errors": {
            **{status: len(times) for status, times in met["times"].items() if status != GOOD},
            **met["failures"],
        },
        "latency": percentiles(good),
        "stages": stage_percentiles(met["stages"]) if good else None,
        "cores_used": {
            "service": round((running.cpu_seconds() - cpu) / took, 3),
            "event_loop": round(busy.pop(running.pid), 3),
            "engine": round(max(busy.values()), 3),
            "redis": round((store.cpu_seconds() - redis_cpu) / took, 3),
            "generator": round(met["cpu_seconds"] / took, 3),
            "all": round((busy_core_seconds() - busy_cores) / took, 3),
        },
    }


def run(given: argparse.Namespace, running: Service, store: Server, bodies: Path) -> Record:
    """Capacity, the steps, and the run at 70 % of the knee."""
    clients = ("--clients", str(given.clients))
    generate(running.url, bodies, WARMING_SECONDS, *clients)
    (closed,) = generate(running.url, bodies, given.seconds, *clients)
    capacity = closed["answered_meanwhile"].get(GOOD, 0) / closed["seconds"]
    steps = [
        {"share": share, **offer(running, store, bodies, share * capacity, given.seconds)}
        for share in SHARES
    ]
    found = knee(steps)
    cores = os.cpu_count() or 1
    beyond = next((step for step in steps if not keeps_up(step)), steps[-1])
    name, share = saturated(beyond, cores)
    at_goal = None
    if found is not None:
        rate = _GOAL_SHARE * found["offered_rps"]
        at_goal = offer(running, store, bodies, rate, 2 * given.seconds)
        latency = at_goal["latency"]
        at_goal["p99_of_p50"] = round(latency["p99_ms"] / latency["p50_ms"], 2)
        at_goal["met"] = not at_goal["errors"] and at_goal["p99_of_p50"] < _GOAL_SPREAD
    return {
        "clients": given.clients,
        "capacity_rps": round(capacity, 1),
        "knee_rps": found and found["offered_rps"],
        "knee_share_of_capacity": found and found["share"],
        "saturates_first": {"what": name, "share": share, "at_share_of_capacity": beyond["share"]},
        "around_the_search_p50_ms": around_the_search(at_goal or steps[0]),
        "cores_used_by_others": disturbance(steps),
        "steps": steps,
        "at_70_percent_of_knee": at_goal,
        "prompt_tokens_found_share": _found_share(running.url),
    }


def page(record: Record) -> str:
    """The record for a reader."""
    at = record["at_70_percent_of_knee"]
    steps = [(f"{100 * step['share']:.0f} %", step) for step in record["steps"]]
    if at is not None:
        steps.append(("70 % of the knee", at))
    rows = [
        (
            label,
            step["offered_rps"],
            sum(step["errors"].values()),
            _three(step["latency"]),
            *(_p50_and_p99(step["stages"], part) for part in PARTS),
            " / ".join(
                f"{step['cores_used'][name]:.2f}"
                for name in ("service", "event_loop", "engine", "redis", "generator", "all")
            ),
        )
        for label, step in steps
    ]
    head = ("of capacity", "requests/s", "errors", "p50 / p95 / p99 ms", *PARTS)
    cores_head = "cores: service / loop / engine / Redis / generator / whole machine"
    first = record["saturates_first"]
    if at is None:
        verdict = "The service did not keep up at any step."
    else:
        verdict = (
            f"The knee is at {record['knee_rps']} requests/s, "
            f"{100 * record['knee_share_of_capacity']:.0f} % of the capacity. "
            f"At 70 % of the knee p99 is {at['p99_of_p50']} times p50, with "
            f"{sum(at['errors'].values())} errors (goal: below {_GOAL_SPREAD:g} times, none): "
            f"{'met' if at['met'] else 'missed'}."
        )
    return f"""# Latency against offered load

{provenance(record)}
Artifact {record["artifact"]}, {record["histories"]} test histories, native engine, Redis beside it;
{100 * record["prompt_tokens_found_share"]:.0f} % of all prompt tokens were found in the prefix cache.
Capacity, with {record["clients"]} clients that ask without pause: {record["capacity_rps"]} requests/s.

{table((*head, cores_head), rows)}

Stages are p50 / p99 in ms inside the service, as `Server-Timing` tells them; latency is the client's, from
the moment a request was due. `around` is each request's history, prompt and rest. {verdict}
Redis, prompt, JSON, pydantic and metrics together take {record["around_the_search_p50_ms"]} ms of a request
at p50 there (goal: below {_GOAL_AROUND_MS:g} ms).
What saturates first, at {100 * first["at_share_of_capacity"]:.0f} % of the capacity: {first["what"]}
({100 * first["share"]:.0f} % of what it can have). Work that is none of this took up to
{record["cores_used_by_others"]} of the machine's {record["machine"]["cores"]} cores during a step.
"""


def _three(latency: Mapping[str, float] | None) -> str:
    return " / ".join(str(value) for value in latency.values()) if latency else "–"


def _p50_and_p99(stages: Mapping[str, Any] | None, part: str) -> str:
    return f"{stages[part]['p50_ms']} / {stages[part]['p99_ms']}" if stages else "–"


def _found_share(url: str) -> float:
    answer = httpx.get(url + "/metrics", headers={"Authorization": f"Bearer {KEY}"})
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(answer.raise_for_status().text)
        for sample in family.samples
    }
    found, all_of_them = (f"espalier_prompt_tokens{kind}_total" for kind in ("_cached", ""))
    return round(samples[found] / samples[all_of_them], 4)


def main() -> None:
    """Starts Redis and the service, runs, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--out", type=Path, help="the JSON record; its page goes beside it")
    given = parser.parse_args()
    artifact = Artifact.open(given.artifact)
    histories = real_histories(artifact, Dataset(given.dataset), given.rows)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = stack.enter_context(redis_server(scratch))
        cores = os.sched_getaffinity(0)
        running = stack.enter_context(service(given.artifact, store.url, scratch, cores))
        with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
            write_bodies(client, histories, scratch / "bodies")
        found = run(given, running, store, scratch / "bodies")
    record = {
        **described(_PACKAGES),
        "artifact": lineage(artifact),
        "threads": torch.get_num_threads(),
        "histories": len(histories),
        **found,
    }
    publish(record, given.out, page)


if __name__ == "__main__":
    main()
