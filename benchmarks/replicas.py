"""Replicas of the service as processes, and clients that spread requests over those that are ready."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import httpx

DRAIN_DELAY_S = 2.0
_LOOK_S = 0.2
_TOKEN = "root"


class Replica:
    """`espalier serve` as a process of its own.

    Args:
        artifacts: what it serves.
        folder: its state folder; made.
        options: more of its command line.
        variables: more of its environment.
    """

    def __init__(
        self, artifacts: Path, folder: Path, options: Sequence[str], variables: dict[str, str]
    ) -> None:
        self._command = ["-m", "espalier", "serve", str(artifacts), "--port", "0", "--json", *options]
        self._folder = folder
        self._variables = {
            "ESPALIER_STATE_DIR": str(folder),
            "ESPALIER_ADMIN_TOKEN_FILE": str(folder / "token"),
            "ESPALIER_DEADLINE_S": "30",
            "ESPALIER_DRAIN_DELAY_S": str(DRAIN_DELAY_S),
            **variables,
        }
        self._process: asyncio.subprocess.Process | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._folder.mkdir(parents=True)
        (self._folder / "token").write_text(_TOKEN + "\n")
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    async def restart(self) -> None:
        """Ends it as an orchestrator would, and starts it anew."""
        await self._end()
        await self._start()

    async def call(self, method: Literal["GET", "POST"], path: str) -> Any:
        """An operator's call; the answer's JSON."""
        headers = {"Authorization": f"Bearer {_TOKEN}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=300) as client:
            answer = await client.request(method, path)
            assert answer.status_code == 200, answer.text
            return answer.json()

    def memory_bytes(self) -> int:
        """PSS of the process and its descendants."""
        assert self._process is not None
        return pss_bytes(self._process.pid)

    async def _start(self) -> None:
        with (self._folder / "log").open("a") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                *self._command,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=os.environ | self._variables,
            )
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, (self._folder / "log").read_text()[-2000:]
        self.url = json.loads(line)["url"]

    async def _end(self) -> None:
        assert self._process is not None
        self._process.terminate()
        await self._process.wait()


class Balancer:
    """Asks the replicas in turn, those alone whose `/readyz` says yes: looked at five times a second."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self._client = httpx.AsyncClient(timeout=60)
        self._ready: tuple[str, ...] = ()
        self._turn = itertools.count()
        self._watching: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        while len(self._ready) < len(self._replicas):
            await asyncio.sleep(_LOOK_S)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watching is not None
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._client.aclose()

    async def post(self, path: str, body: Any) -> httpx.Response:
        """Asks the next replica, as soon as one is ready."""
        while not (ready := self._ready):
            await asyncio.sleep(_LOOK_S)
        return await self._client.post(ready[next(self._turn) % len(ready)] + path, json=body)

    async def _watch(self) -> None:
        while True:
            ready = []
            for replica in self._replicas:
                with contextlib.suppress(httpx.HTTPError):
                    if (await self._client.get(replica.url + "/readyz")).status_code == 200:
                        ready.append(replica.url)
            self._ready = tuple(ready)
            await asyncio.sleep(_LOOK_S)


def pss_bytes(process: int) -> int:
    """PSS of a process and its descendants (proc(5), smaps_rollup)."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    total = next(int(line.split()[1]) << 10 for line in rollup if line.startswith("Pss:"))
    for task in Path(f"/proc/{process}/task").iterdir():
        total += sum(pss_bytes(int(child)) for child in (task / "children").read_text().split())
    return total
