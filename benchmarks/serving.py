"""What the HTTP benchmarks share: a real redis-server, `espalier serve` as a process, load on it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import redis

from benchmarks.replicas import pss_bytes
from recommender.artifact import Artifact
from recommender.dataset import Dataset

K, KEY = 10, "benchmark"
GOOD, DEGRADED, REFUSED, LATE = "200", "299", "429", "504"
WARMING_SECONDS = 3.0
_GENERATOR = "benchmarks.load_generator"


class Server:
    """A running server, and what is told about its process."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.url = url
        self.pid = process.pid

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        return _cpu_seconds(Path(f"/proc/{self.pid}/stat"))


class Service(Server):
    """A running `espalier serve`."""

    def wait_until_ready(self) -> None:
        """Asks `/readyz` until it says yes."""
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while client.get("/readyz").status_code != httpx.codes.OK:
                time.sleep(0.05)

    def thread_seconds(self) -> dict[int, float]:
        """`cpu_seconds` of each thread by its id; the process's own id is the event loop's thread."""
        found = {}
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(FileNotFoundError):  # it ended meanwhile
                found[int(task.name)] = _cpu_seconds(task / "stat")
        return found

    def pss_mib(self) -> int:
        return pss_bytes(self.pid) >> 20


def _cpu_seconds(stat: Path) -> float:
    """User and system time (proc(5), fields 14 and 15)."""
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_core_seconds() -> float:
    """What all processes took of all cores since the machine started (proc_stat(5))."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:8]]
    idle, waiting = ticks[3], ticks[4]
    return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK")


@contextmanager
def redis_server(folder: Path) -> Iterator[Server]:
    """Debian's redis-server with an append-only file."""
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed (Debian's package redis-server has it)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes"]
    process = subprocess.Popen([program, *options, "--save", ""], stdout=subprocess.DEVNULL, text=True)
    url = f"redis://127.0.0.1:{port}"
    try:
        with redis.Redis.from_url(url) as client:
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
        yield Server(process, url)
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


def real_histories(artifact: Artifact, dataset: Dataset, rows: int) -> list[list[str]]:
    """Item ids of test histories, each as long as the data set has it.

    Raises:
        SystemExit: the artifact's catalogue lacks an item of them.
    """
    item_ids, catalogue = dataset.catalogue.item_ids, artifact.load_catalogue()
    found = dataset.rows("test").sample(rows, seed=0).histories
    for item in {item for history in found for item in history}:
        if catalogue.index_of(item_ids[item]) is None:
            raise SystemExit(f"{artifact.path} lacks item {item_ids[item]!r} of {dataset.path}")
    return [[item_ids[item] for item in history] for history in found]


def write_bodies(client: httpx.Client, histories: Sequence[Sequence[str]], file: Path) -> None:
    """A user with each history stored, and two bodies: one names the user, one carries the history."""
    bodies = []
    for number, history in enumerate(histories):
        events = [{"item_id": item, "timestamp": 1000 + at} for at, item in enumerate(history)]
        stored = client.post(f"/users/user-{number}/events", json={"events": events})
        assert stored.status_code == httpx.codes.OK, stored.text
        bodies += [{"user_id": f"user-{number}", "k": K}, {"history": history, "k": K}]
    file.write_text("".join(json.dumps(body) + "\n" for body in bodies))


def generate(url: str, bodies: Path, seconds: float, *how: str, processes: int = 1) -> list[dict[str, Any]]:
    """Runs load generators to their end."""
    place = urlsplit(url)
    command = [sys.executable, "-m", _GENERATOR, str(place.hostname), str(place.port), str(bodies)]
    files = [bodies.with_name(f"met-{number}.json") for number in range(processes)]
    options = ["--seconds", str(seconds), "--key", KEY, *how]
    running = [subprocess.Popen([*command, str(file), *options]) for file in files]
    for process in running:
        assert process.wait() == 0
    return [json.loads(file.read_text()) for file in files]
