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
import json
import os
import platform
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import redis

from benchmarks.replicas import pss_bytes
from recommender.artifact import Artifact
from recommender.storage import write_file

USERS, K, KEY = 200, 10, "overload"
GOOD, DEGRADED, REFUSED, LATE = "200", "299", "429", "504"
_WARMING_SECONDS, _SAMPLING_SECONDS = 3.0, 1.0
_GENERATOR = Path(__file__).with_name("load_generator.py")
_PACKAGES = ("espalier", "torch", "uvicorn", "uvloop", "fastapi", "redis")


class Service:
    """A running service, and what is told about its process."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.url = url
        self.pid = process.pid

    def pss_mib(self) -> int:
        return pss_bytes(self.pid) >> 20

    def cpu_seconds(self) -> float:
        """User and system time so far (proc(5), fields 14 and 15)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Debian's redis-server with an append-only file. Yields its URL."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed (Debian's package redis-server has it)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes"]
    process = subprocess.Popen([program, *options, "--save", ""], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}"
    try:
        with redis.Redis.from_url(url) as client:
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def service(artifact: Path, redis_url: str, scratch: Path, cores: set[int]) -> Iterator[Service]:
    """`espalier serve` on these cores, keys on, everything else at its default."""
    (scratch / "keys").write_text(f"{KEY}\n")
    command = [sys.executable, "-m", "espalier", "serve", str(artifact), "--redis", redis_url]
    variables = {
        "ESPALIER_STATE_DIR": str(scratch / "state"),
        "ESPALIER_API_KEYS_FILE": str(scratch / "keys"),
    }
    with (scratch / "log").open("w") as log, on_cores(cores):
        process = subprocess.Popen(
            [*command, "--port", "0", "--json"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | variables,
        )
    try:
        assert process.stdout is not None
        yield Service(process, json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait(timeout=60)


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """What is started in the block runs on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _service_cores() -> set[int]:
    """All but the last; the only one when there is no other."""
    cores = sorted(os.sched_getaffinity(0))
    return set(cores[:-1] or cores)


def write_bodies(client: httpx.Client, item_ids: Sequence[str], file: Path) -> None:
    """Users with stored histories, and a body for each beside one that carries the like."""
    draw = random.Random(0)
    bodies = []
    for number in range(USERS):
        history = draw.sample(item_ids, draw.randint(2, 10))
        events = [{"item_id": item, "timestamp": 1000 + at} for at, item in enumerate(history)]
        stored = client.post(f"/users/user-{number}/events", json={"events": events})
        assert stored.status_code == 200, stored.text
        bodies += [{"user_id": f"user-{number}", "k": K}, {"history": history, "k": K}]
    file.write_text("".join(json.dumps(body) + "\n" for body in bodies))


def generate(url: str, bodies: Path, seconds: float, *how: str, processes: int = 1) -> list[dict[str, Any]]:
    """Runs load generators to their end."""
    place = urlsplit(url)
    command = [sys.executable, str(_GENERATOR), str(place.hostname), str(place.port), str(bodies)]
    files = [bodies.with_name(f"met-{number}.json") for number in range(processes)]
    options = ["--seconds", str(seconds), "--key", KEY, *how]
    running = [subprocess.Popen([*command, str(file), *options]) for file in files]
    for process in running:
        assert process.wait() == 0
    return [json.loads(file.read_text()) for file in files]


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """In milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    return {f"p{p}_ms": round(1e3 * ordered[len(ordered) * p // 100], 1) for p in (50, 95, 99)}


def run(given: argparse.Namespace, running: Service, bodies: Path) -> dict[str, Any]:
    """Capacity, then overload, then whether all is as before."""
    url = running.url
    clients = ("--clients", str(given.clients))
    generate(url, bodies, _WARMING_SECONDS, *clients)
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
        running = stack.enter_context(
            service(given.artifact, stack.enter_context(redis_server(scratch)), scratch, cores)
        )
        with httpx.Client(base_url=running.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
            write_bodies(client, artifact.load_catalogue().item_ids, scratch / "bodies")
        found = run(given, running, scratch / "bodies")
    machine = {
        "python": platform.python_version(),
        **{name: version(name) for name in _PACKAGES},
        "cores": os.cpu_count(),
        "cores_of_the_service": len(cores),
        "processor": _processor(),
    }
    report = {
        "date": date.today().isoformat(),
        "command": ["python", "-m", "benchmarks.overload", *sys.argv[1:]],
        "machine": machine,
        "checkpoint": artifact.identity,
        **found,
    }
    text = json.dumps(report, indent=2) + "\n"
    print(text)
    if given.out is not None:
        write_file(given.out, text)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    main()
