"""Asks one service, closed or open loop, and writes what it met as one JSON object to a file.

    python -m benchmarks.load_generator HOST PORT BODIES OUT --seconds 10 (--clients 64 | --rate 2500)

BODIES holds one body of `POST /recommend` a line. `--clients` connections ask without pause; `--rate` asks
at random (Poisson) moments whether earlier requests are answered or not, and a request's time counts from
the moment it was due. A process of its own, so that its work is told apart from the service's. It speaks
just enough HTTP over bare sockets to cost little of the machine that it shares with what it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import uvloop

_PATIENCE_SECONDS = 30.0
_MAX_CONNECTIONS = 4000
_PAUSE_SECONDS = 0.1
_OK = 200
_TIMING = b"server-timing:"
_DEGRADED = b'"degraded":"'


class Connection(asyncio.Protocol):
    """A kept connection with at most one request on it."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._due: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def ask(self, request: bytes, due: float) -> None:
        """Sends a request that was due at this moment."""
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        received = self._received = self._received + data
        head = received.find(b"\r\n\r\n")
        if head < 0:
            return
        at = received.lower().find(b"content-length:", 0, head)
        length = int(received[at + 15 : received.find(b"\r\n", at)])
        if len(received) < head + 4 + length:
            return
        self._received = b""
        status = int(received[9:12])
        if status == _OK and self._load.stages is not None:
            note_stages(received[: head + 2].lower(), self._load.stages)
        if status == 200 and received.find(_DEGRADED, head) >= 0:
            status = 299  # an answer, but not the one that was asked for
        due, self._due = self._due, None
        assert due is not None
        self._load.answered(self, status, due)

    def connection_lost(self, _: Exception | None) -> None:
        self._load.lost(self, waiting=self._due is not None)


class Load:
    """What is asked and what came of it.

    Attributes:
        seconds: times by status; 299 stands for a 200 that is marked as degraded.
        failures: requests without an answer, by reason.
        last: when the last answer came, `time.perf_counter()` seconds.
        stages: the answers' `Server-Timing`, milliseconds by stage; None: nobody asked for it.
    """

    def __init__(self, host: str, port: int, requests: list[bytes], stages: bool = False) -> None:
        self._host, self._port = host, port
        self._requests = requests
        self._idle: list[Connection] = []
        self._draw = random.Random(time.time_ns())
        self._closed_loop = False
        self.open = 0
        self.seconds: dict[int, list[float]] = {}
        self.failures: Counter[str] = Counter()
        self.last = 0.0
        self.stages: dict[str, list[float]] | None = {} if stages else None

    async def closed(self, clients: int, end: float) -> None:
        """So many clients ask without pause until `end`."""
        self._closed_loop = True
        for _ in range(clients):
            asyncio.get_running_loop().create_task(self._ask_anew(time.perf_counter()))
        await asyncio.sleep(end - time.perf_counter())
        self._closed_loop = False

    async def offered(self, rate: float, end: float) -> int:
        """Asks `rate` times a second until `end`, come what may. Returns how often."""
        due = time.perf_counter()
        count = 0
        while due < end:
            while due <= time.perf_counter() and due < end:
                self._ask(due)
                count += 1
                due += self._draw.expovariate(rate)
            await asyncio.sleep(max(0.001, due - time.perf_counter()))
        return count

    def _ask(self, due: float) -> None:
        if self._idle:
            self._idle.pop().ask(self._draw.choice(self._requests), due)
        elif self.open < _MAX_CONNECTIONS:
            asyncio.get_running_loop().create_task(self._ask_anew(due))
        else:
            self.failures["no connection left"] += 1

    async def _ask_anew(self, due: float) -> None:
        self.open += 1
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self), self._host, self._port
            )
        except OSError as error:
            self.open -= 1
            self.failures[type(error).__name__] += 1
            return
        connection.ask(self._draw.choice(self._requests), due)

    def answered(self, connection: Connection, status: int, due: float) -> None:
        """A connection has its answer and can ask again."""
        self.last = time.perf_counter()
        self.seconds.setdefault(status, []).append(self.last - due)
        if self._closed_loop and status == _OK:
            connection.ask(self._draw.choice(self._requests), self.last)
        elif self._closed_loop:  # a client that is refused comes back later
            asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._again, connection)
        else:
            self._idle.append(connection)

    def _again(self, connection: Connection) -> None:
        self._idle.append(connection)
        if self._closed_loop:
            self._ask(time.perf_counter())

    def lost(self, connection: Connection, waiting: bool) -> None:
        """A connection is gone."""
        self.open -= 1
        if waiting:
            self.failures["connection lost"] += 1
        elif connection in self._idle:
            self._idle.remove(connection)

    @property
    def waiting(self) -> int:
        """Requests without an answer so far."""
        return self.open - len(self._idle)


def note_stages(head: bytes, stages: dict[str, list[float]]) -> None:
    """Adds the stages that a head in lower case tells: `server-timing: prefill;dur=1.2, total;dur=3.4`."""
    at = head.find(_TIMING)
    if at < 0:
        return
    told = head[at + len(_TIMING) : head.find(b"\r\n", at)].decode()
    for entry in told.split(","):
        stage, _, milliseconds = entry.strip().partition(";dur=")
        stages.setdefault(stage, []).append(float(milliseconds))


async def run(given: argparse.Namespace) -> dict[str, Any]:
    """The whole load; then waits for what is still unanswered."""
    bodies = given.bodies.read_bytes().splitlines()
    key = f"Authorization: Bearer {given.key}\r\n" if given.key else ""
    requests = [
        f"POST /recommend HTTP/1.1\r\nHost: {given.host}\r\n{key}Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
        for body in bodies
    ]
    load = Load(given.host, given.port, requests, given.stages)
    begin = time.perf_counter()
    if given.clients:
        await load.closed(given.clients, begin + given.seconds)
        offered = None
    else:
        offered = await load.offered(given.rate, begin + given.seconds)
    took = time.perf_counter() - begin
    within = {status: len(seconds) for status, seconds in load.seconds.items()}
    while load.waiting and time.perf_counter() < begin + took + _PATIENCE_SECONDS:
        await asyncio.sleep(0.05)
    load.failures["never answered"] += load.waiting
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": took,
        "offered": offered,
        "answered_meanwhile": within,
        "times": {status: [round(s, 5) for s in seconds] for status, seconds in load.seconds.items()},
        "stages": load.stages,
        "failures": {reason: count for reason, count in load.failures.items() if count},
        "connections": load.open,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


def main() -> None:
    """Runs, writes the object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("bodies", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--clients", type=int, default=0)
    how.add_argument("--rate", type=float)
    parser.add_argument("--key", default="")
    parser.add_argument("--stages", action="store_true", help="note the answers' Server-Timing")
    given = parser.parse_args()
    given.out.write_text(json.dumps(uvloop.run(run(given))))


if __name__ == "__main__":
    main()
