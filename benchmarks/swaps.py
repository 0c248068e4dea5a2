"""Swaps under load: what they cost, and that they lose and mix nothing.

    python -m benchmarks.swaps ARTIFACTS [--engine vllm] [--replicas 2] [--swaps 20] [--requests 10000]

ARTIFACTS is a folder of two artifacts that share items. `espalier serve` runs on it, each replica a process
of its own, all on one Valkey (for vLLM, `ESPALIER_VLLM_PYTHON` names its interpreter). Sixteen clients
first ask without pause: that is the capacity. Then they ask at `--load` of it, first in peace, then while
the two checkpoints are exchanged again and again; of several replicas the last is restarted half-way.
Every answer is compared with what the checkpoint that it names gives alone. Like a load balancer, the
clients watch `/readyz` and ask the replicas that are ready. Memory is the first replica's PSS, children
included.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.replicas import Balancer, Replica
from recommender.artifact import Artifact
from recommender.ranker import Ranker
from recommender.search.frontier import Query
from recommender.storage import write_file
from service.history.embedded import embedded_server

CLIENTS, HISTORIES, K = 16, 200, 10
CAPACITY_SECONDS = 15.0
TIE = 1e-5
Answer = list[tuple[str, float]]


@dataclass
class Load:
    """What the clients met."""

    seconds: list[float] = field(default_factory=list)
    answers: list[tuple[int, str, Answer]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def percentiles(self) -> dict[str, float]:
        ordered = sorted(self.seconds)
        return {f"p{p}_ms": round(1e3 * ordered[len(ordered) * p // 100], 1) for p in (50, 95, 99)}


async def ask(
    balancer: Balancer, histories: Sequence[list[str]], load: Load, stop: asyncio.Event, rate: float | None
) -> None:
    """Sixteen clients ask in turn until `stop`; `rate` is all of theirs together, None: without pause."""

    async def client(number: int) -> None:
        draw = random.Random(number)
        while not stop.is_set():
            if rate is not None:
                await asyncio.sleep(draw.expovariate(rate / CLIENTS))
            which = draw.randrange(len(histories))
            start = time.perf_counter()
            try:
                answer = await balancer.post("/recommend", {"history": histories[which], "k": K})
            except httpx.HTTPError as error:
                load.failures.append(repr(error))
                continue
            load.seconds.append(time.perf_counter() - start)
            if answer.status_code != 200:
                load.failures.append(answer.text)
                continue
            found = answer.json()
            load.answers.append(
                (which, found["model"], [(item["item_id"], item["score"]) for item in found["items"]])
            )

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))


def alone(artifact: Artifact, histories: Sequence[list[str]]) -> list[Answer]:
    """The checkpoint's answers with no service around it; one more than asked for, to judge ties."""
    ranker = Ranker.from_artifact(artifact)
    found = []
    for history in histories:
        items = [index for item in history if (index := ranker.catalogue.index_of(item)) is not None]
        query = Query(ranker.prompt(items), K + 1, items=ranker.filter(ranker.same_title(items)))
        ranked = ranker.items(ranker.search.rank([query])[0], query)
        found.append([(ranker.catalogue.item_ids[item.index], item.score) for item in ranked])
    return found


def agrees(got: Answer, wanted: Answer) -> bool:
    """Scores agree place by place; items too, but for those that are tied with their neighbours."""
    expected = dict(wanted)
    close = all(abs(a - b) < 1e-3 for (_, a), (_, b) in zip(got, wanted, strict=False))
    return close and all(
        item == place or abs(expected.get(item, 0.0) - score) < TIE
        for (item, _), (place, score) in zip(got, wanted, strict=False)
    )


async def run(given: argparse.Namespace, replicas: Sequence[Replica], balancer: Balancer) -> dict[str, Any]:
    """The whole measurement."""
    admin = replicas[0]
    listed = [entry["name"] for entry in (await admin.call("GET", "/checkpoints"))["checkpoints"]]
    artifacts = [Artifact.open(given.artifacts / name) for name in listed]
    one, other = (artifact.load_catalogue().item_ids for artifact in artifacts)
    item_ids = sorted({*one} & {*other})
    draw = random.Random(0)
    histories = [draw.sample(item_ids, 4) for _ in range(HISTORIES)]

    async def during(work: Callable[[Load], Awaitable[None]], rate: float | None) -> Load:
        load, stop = Load(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ask(balancer, histories, load, stop, rate))
            await work(load)
            stop.set()
        return load

    async def pause(_: Load) -> None:
        await asyncio.sleep(CAPACITY_SECONDS)

    seconds: list[float] = []
    memory: list[int] = []
    restarting: list[asyncio.Task[None]] = []

    async def swap(load: Load) -> None:
        for number in range(given.swaps):
            if len(replicas) > 1 and number == given.swaps // 2:
                restarting.append(asyncio.create_task(replicas[-1].restart()))
            start = time.perf_counter()
            target = listed[(number + 1) % 2]
            done = await admin.call("POST", f"/checkpoints/{target}/activate?wait=true")
            assert done["step"] == "done", done
            seconds.append(time.perf_counter() - start)
            while len(load.answers) < given.requests * (number + 1) / given.swaps:
                await asyncio.sleep(0.05)
            memory.append(admin.memory_bytes() >> 20)
            print(f"swap {number + 1} of {given.swaps}: {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
        for task in restarting:
            await task

    capacity = len((await during(pause, None)).answers) / CAPACITY_SECONDS
    rate = given.load * capacity
    peace, swapped = await during(pause, rate), await during(swap, rate)

    expected = {artifact.identity: alone(artifact, histories) for artifact in artifacts}
    first, second = expected.values()
    differing = sum(
        [i for i, _ in a][:K] != [i for i, _ in b][:K] for a, b in zip(first, second, strict=True)
    )
    mixed = sum(not agrees(got, expected[model][which]) for which, model, got in swapped.answers)
    return {
        "engine": given.engine,
        "replicas": len(replicas),
        "restarted": len(restarting),
        "checkpoints": list(expected),
        "histories_whose_answers_differ": differing / HISTORIES,
        "capacity_rps": round(capacity, 1),
        "asked_rps": round(rate, 1),
        "swaps": len(seconds),
        "requests": len(swapped.answers) + len(swapped.failures),
        "failed": len(swapped.failures),
        "failures": swapped.failures[:5],
        "mixed": mixed,
        "by_checkpoint": {name: sum(m == name for _, m, _ in swapped.answers) for name in expected},
        "in_peace": peace.percentiles(),
        "while_swapping": swapped.percentiles(),
        "swap_seconds": {
            "median": round(sorted(seconds)[len(seconds) // 2], 2),
            "max": round(max(seconds), 2),
        },
        "pss_mib_after_each_swap": memory,
        "pss_growth_from_2nd_to_last": round(memory[-1] / memory[1] - 1, 3),
    }


async def measure(given: argparse.Namespace, scratch: Path, redis_url: str) -> dict[str, Any]:
    """Starts the replicas, and ends them whatever happens."""
    options = ["--engine", given.engine]
    async with AsyncExitStack() as stack:
        replicas = []
        for number in range(given.replicas):
            folder = scratch / f"replica-{number}"
            first = min(entry.name for entry in given.artifacts.iterdir())
            variables = {"ESPALIER_CHECKPOINT": first, "ESPALIER_REDIS_URL": redis_url}
            replica = Replica(given.artifacts, folder, options, variables)
            replicas.append(await stack.enter_async_context(replica))
        balancer = await stack.enter_async_context(Balancer(replicas))
        return await run(given, replicas, balancer)


def main() -> None:
    """Runs, and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--engine", choices=["native", "vllm"], default="native")
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, embedded_server(Path(scratch) / "valkey") as url:
        found = asyncio.run(measure(given, Path(scratch), url))
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    report = {
        "date": date.today().isoformat(),
        "command": ["python", "-m", "benchmarks.swaps", *sys.argv[1:]],
        "machine": machine,
        **found,
    }
    text = json.dumps(report, indent=2) + "\n"
    print(text)
    if given.out is not None:
        write_file(given.out, text)


if __name__ == "__main__":
    main()
