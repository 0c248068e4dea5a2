"""Ten times what the service can do: what it still gets done, and what it costs to turn the rest away.

    python -m benchmarks.overload ARTIFACT [--factor 10] [--seconds 60] [--out docs/results/overload.json]

`espalier serve ARTIFACT` runs with its defaults, keys on, and a real redis-server (Debian's, append-only
file) that holds the histories which half of the requests name by user; the other half carry theirs.
`--clients` clients that ask without pause find the capacity. Then processes of their own offer `--factor`
times that, at random moments, whether earlier requests are answered or not. Goodput counts the answers
within that time that have status 200 and are not degraded. The service runs on all cores but the last;
Redis and the generators, whose work at ten times the capacity is not the service's, on the last one.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx

from benchmarks.records import described, percentiles, publish
from benchmarks.serving import (
    DEGRADED,
    GOOD,
    KEY,
    LATE,
    REFUSED,
    WARMING_SECONDS,
    K,
    Service,
    generate,
    on_cores,
    redis_server,
    service,
    write_bodies,
)
from recommender.artifact import Artifact

_USERS, _SAMPLING_SECONDS = 200, 1.0
_PACKAGES = ("espalier", "torch", "uvicorn", "uvloop", "fastapi", "redis")


def run(given: argparse.Namespace, running: Service, bodies: Path) -> dict[str, Any]:
    """Capacity, then overload, then whether all is as before."""
    url = running.url
    clients = ("--clients", str(given.clients))
    generate(url, bodies, WARMING_SECONDS, *clients)
    cpu = running.cpu_seconds()
    (closed,) = generate(url, bodies, given.capacity_seconds, *clients)
    capacity_cpu = (running.cpu_seconds() - cpu) / closed["seconds"]
    capacity = closed["answered_meanwhile"].get(GOOD, 0) / closed["seconds"]
    memory = {"before": running.pss_mib()}
    rate = given.factor * capacity

    cpu = running.cpu_seconds()
    asked = ("--rate", str(rate / given.processes))
    sampled = []
    with ThreadPoolExecutor(1) as pool:
        offering = pool.submit(generate, url, bodies, given.seconds, *asked, processes=given.processes)
        while not offering.done():
            sampled.append(running.pss_mib())
            wait([offering], timeout=_SAMPLING_SECONDS)
    offered = offering.result()
    used = running.cpu_seconds() - cpu
    memory |= {"highest": max(sampled), "after": running.pss_mib()}

    times: dict[str, list[float]] = {}
    within: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for one in offered:
        failures.update(one["failures"])
        within.update(one["answered_meanwhile"])
        for status, seconds in one["times"].items():
            times.setdefault(status, []).extend(seconds)
    counts = {status: len(seconds) for status, seconds in sorted(times.items())}
    seconds = max(one["seconds"] for one in offered)
    admitted = sum(count for status, count in counts.items() if status != REFUSED)
    goodput = within[GOOD] / seconds
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30) as client:
        healthy = [client.get(path).status_code for path in ("/livez", "/readyz")]
        answer = client.post("/recommend", json={"user_id": "user-0", "k": K}).json()
    (again,) = generate(url, bodies, given.capacity_seconds, *clients)
    return {
        "capacity": {
            "clients": given.clients,
            "rps": round(capacity, 1),
            **(percentiles(closed["times"].get(GOOD, [])) or {}),
            "service_cores": round(capacity_cpu, 2),
            "generator_cores": round(closed["cpu_seconds"] / closed["seconds"], 2),
        },
        "overload": {
            "seconds": round(seconds, 1),
            "offered": sum(one["offered"] for one in offered),
            "asked_rps": round(rate, 1),
            "offered_rps": round(sum(one["offered"] for one in offered) / seconds, 1),
            "goodput_rps": round(goodput, 1),
            "goodput_of_capacity": round(goodput / capacity, 3),
            "answers": {name: counts.get(name, 0) for name in (GOOD, DEGRADED, REFUSED, LATE)},
            "other_statuses": {s: c for s, c in counts.items() if s not in (GOOD, DEGRADED, REFUSED, LATE)},
            "failures": dict(failures),
            "late_of_admitted": round(counts.get(LATE, 0) / max(1, admitted), 4),
            "admitted": percentiles(times.get(GOOD, [])),
            "refused": percentiles(times.get(REFUSED, [])),
            "service_cores": round(used / seconds, 2),
            "generator_cores": round(sum(one["cpu_seconds"] for one in offered) / seconds, 2),
            "connections": sum(one["connections"] for one in offered),
        },
        "memory_pss_mib": memory,
        "after": {
            "livez_readyz": healthy,
            "answer": [answer["strategy"], answer["degraded"]],
            "capacity_rps": round(again["answered_meanwhile"].get(GOOD, 0) / again["seconds"], 1),
        },
    }


def _service_cores() -> set[int]:
    """All but the last; the only one when there is no other."""
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[:-1] or cores)


def main() -> None:
    """Starts Redis and the service, runs, prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--factor", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--capacity-seconds", type=float, default=15.0)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--processes", type=int, default=1, help="of load generators")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    artifact = Artifact.open(given.artifact)
    with ExitStack() as stack:
        others = max(os.sched_getaffinity(0))
        cores = _service_cores()
        stack.enter_context(on_cores({others}))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = stack.enter_context(redis_server(scratch))
        running = stack.enter_context(service(given.artifact, store.url, scratch, cores))
        with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
            draw, item_ids = random.Random(0), artifact.load_catalogue().item_ids
            histories = [draw.sample(item_ids, draw.randint(2, 10)) for _ in range(_USERS)]
            write_bodies(client, histories, scratch / "bodies")
        found = run(given, running, scratch / "bodies")
    record = {"checkpoint": artifact.identity, "cores_of_the_service": len(cores), **found}
    publish({**described(_PACKAGES), **record}, given.out)


if __name__ == "__main__":
    main()
