"""Swaps under load: what they cost, and that they lose and mix nothing.

    python benchmarks/swaps.py ARTIFACTS [--swaps 20] [--requests 10000] [--out docs/results/swaps.json]

ARTIFACTS is a folder of two artifacts that share items. `espalier serve` runs on it as a process of
its own. Sixteen clients first ask without pause: that is the capacity. Then they ask at `--load` of it,
first in peace, then while the two checkpoints are exchanged again and again. Every answer is compared
with what the checkpoint that it names gives alone. Memory is PSS, children included; beside it stands
its anonymous part, since PSS also moves when other processes come to share our libraries, or cease to.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import torch

from recommender.artifact import Artifact
from recommender.ranker import Ranker
from recommender.search.frontier import Query
from recommender.storage import write_file

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


class Clients:
    """Sixteen connections that ask in turn; `rate` is all of theirs together, None: without pause."""

    def __init__(self, url: str, histories: Sequence[list[str]]) -> None:
        self._url = url
        self._histories = histories

    async def ask(self, load: Load, stop: asyncio.Event, rate: float | None) -> None:
        await asyncio.gather(*(self._ask(load, stop, rate, number) for number in range(CLIENTS)))

    async def _ask(self, load: Load, stop: asyncio.Event, rate: float | None, number: int) -> None:
        draw = random.Random(number)
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as client:
            while not stop.is_set():
                if rate is not None:
                    await asyncio.sleep(draw.expovariate(rate / CLIENTS))
                which = draw.randrange(len(self._histories))
                start = time.perf_counter()
                try:
                    body = {"history": self._histories[which], "k": K}
                    answer = await client.post("/recommend", json=body)
                except httpx.HTTPError as error:
                    load.failures.append(repr(error))
                    continue
                load.seconds.append(time.perf_counter() - start)
                if answer.status_code != 200:
                    load.failures.append(answer.text)
                    continue
                found = answer.json()
                items = [(item["item_id"], item["score"]) for item in found["items"]]
                load.answers.append((which, found["model"], items))


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


def memory_bytes(process: int, kind: str) -> int:
    """`Pss` or `Anonymous` memory of a process and its descendants."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    total = next(int(line.split()[1]) << 10 for line in rollup if line.startswith(f"{kind}:"))
    for task in Path(f"/proc/{process}/task").iterdir():
        total += sum(memory_bytes(int(child), kind) for child in (task / "children").read_text().split())
    return total


async def run(given: argparse.Namespace, url: str, process: int) -> dict[str, Any]:
    """The whole measurement, against the service at `url` whose process is `process`."""
    async with httpx.AsyncClient(
        base_url=url, timeout=300, headers={"Authorization": "Bearer root"}
    ) as admin:
        draw = random.Random(0)
        listed = [entry["name"] for entry in (await admin.get("/checkpoints")).json()["checkpoints"]]
        artifacts = [Artifact.open(given.artifacts / name) for name in listed]
        one, other = (artifact.load_catalogue().item_ids for artifact in artifacts)
        item_ids = sorted({*one} & {*other})
        histories = [draw.sample(item_ids, 4) for _ in range(HISTORIES)]
        clients = Clients(url, histories)

        async def during(work: Any, rate: float | None) -> Load:
            load, stop = Load(), asyncio.Event()
            asking = asyncio.create_task(clients.ask(load, stop, rate))
            await work(load)
            stop.set()
            await asking
            return load

        async def pause(_: Load) -> None:
            await asyncio.sleep(CAPACITY_SECONDS)

        seconds: list[float] = []
        memory: list[dict[str, int]] = []

        async def swap(load: Load) -> None:
            for number in range(given.swaps):
                target = listed[(number + 1) % 2]
                start = time.perf_counter()
                done = await admin.post(f"/checkpoints/{target}/activate?wait=true")
                assert done.status_code == 200, done.text
                assert done.json()["step"] == "done", done.text
                seconds.append(time.perf_counter() - start)
                while len(load.answers) < given.requests * (number + 1) / given.swaps:
                    await asyncio.sleep(0.05)
                memory.append({kind: memory_bytes(process, kind) >> 20 for kind in ("Pss", "Anonymous")})

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
        "checkpoints": list(expected),
        "histories_whose_answers_differ": differing / HISTORIES,
        "capacity_rps": round(capacity, 1),
        "asked_rps": round(rate, 1),
        "swaps": len(seconds),
        "requests": len(swapped.answers) + len(swapped.failures),
        "failed": len(swapped.failures),
        "mixed": mixed,
        "by_checkpoint": {name: sum(m == name for _, m, _ in swapped.answers) for name in expected},
        "in_peace": peace.percentiles(),
        "while_swapping": swapped.percentiles(),
        "swap_seconds": {
            "median": round(sorted(seconds)[len(seconds) // 2], 2),
            "max": round(max(seconds), 2),
        },
        "memory_mib": {"after_2nd": memory[1], "after_last": memory[-1]},
    }


def main() -> None:
    """Starts the service, runs, prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", type=Path)
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--load", type=float, default=0.6)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    first = sorted(entry.name for entry in given.artifacts.iterdir())[0]
    with tempfile.TemporaryDirectory() as scratch:
        token = Path(scratch) / "token"
        token.write_text("root\n")
        variables = {
            "ESPALIER_STATE_DIR": scratch,
            "ESPALIER_ADMIN_TOKEN_FILE": str(token),
            "ESPALIER_CHECKPOINT": first,
            "ESPALIER_DEADLINE_S": "30",
        }
        command = [sys.executable, "-m", "espalier", "serve", str(given.artifacts), "--port", "0", "--json"]
        with (Path(scratch) / "log").open("w") as log:
            service = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | variables
            )
        try:
            assert service.stdout is not None
            found = asyncio.run(run(given, json.loads(service.stdout.readline())["url"], service.pid))
        finally:
            service.terminate()
            service.wait(timeout=60)
    machine = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    report = {"date": date.today().isoformat(), "command": sys.argv, "machine": machine, **found}
    text = json.dumps(report, indent=2) + "\n"
    print(text)
    if given.out is not None:
        write_file(given.out, text)


if __name__ == "__main__":
    main()
