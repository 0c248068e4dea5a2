"""One child process: started, listened to, and ended together with everything it started."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from pydantic import ValidationError

from service.engine.vllm.messages import (
    FROM_CHILD,
    MAX_LINE_BYTES,
    AskMetrics,
    Cancel,
    Dying,
    FromChild,
    Rank,
)

_log = logging.getLogger("espalier.engine.vllm")
_EXIT_S = 5.0
# Telemetry off, no downloads, and the engine in the child itself: a process of its own would outlive it.
# Nothing is compiled by torch, which would ask for a C++ compiler and is not worth it for what is left of
# it in eager mode: some lines of the sampler.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TORCHDYNAMO_DISABLE": "1",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Failure:
    """Why a child is gone: `reason` is one of `REASONS`, for metrics; `detail` is for people."""

    reason: str
    detail: str


REASONS = ("died", "killed", "hung", "memory", "start")


class ChildProcess:
    """A running child. What it prints goes to our log."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        scratch: str,
    ) -> None:
        self._scratch = scratch
        self._process = process
        self._reader = reader
        self._writer = writer
        self._last_words: Dying | None = None
        self._last_line = ""
        self._printing = asyncio.create_task(self._forward_output())

    @classmethod
    async def launch(cls, command: Sequence[str]) -> ChildProcess:
        """Starts `command`, which gets `--socket N`, its end of a socket pair, and `--scratch DIR`.

        The folder is the child's own for temporary files: vLLM leaves some behind.

        Raises:
            OSError: the program cannot be started, or there is no place for the folder.
        """
        scratch = tempfile.mkdtemp(prefix="espalier-vllm-")
        ours, theirs = socket.socketpair()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                *("--socket", str(theirs.fileno()), "--scratch", scratch),
                pass_fds=(theirs.fileno(),),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                limit=MAX_LINE_BYTES,
                env=os.environ | _ENVIRONMENT | {"TMPDIR": scratch},
                start_new_session=True,  # Ctrl-C is ours to handle; and the group can be ended as a whole
            )
        except BaseException:
            ours.close()
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=MAX_LINE_BYTES)
        return cls(process, reader, writer, scratch)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: Rank | Cancel | AskMetrics) -> None:
        """Sends without waiting: the engine bounds how much is under way."""
        self._writer.write(message.line())

    async def receive(self) -> FromChild | None:
        """The next message; None: the child is gone."""
        try:
            line = await self._reader.readline()
            message = FROM_CHILD.validate_json(line) if line.endswith(b"\n") else None
        except ConnectionError:
            return None
        except (ValueError, ValidationError) as error:
            self._last_words = Dying(reason="died", detail=f"unreadable message: {error!s:.200}")
            return None
        if isinstance(message, Dying):
            self._last_words = message
            return None
        return message

    async def failure(self) -> Failure:
        """Why it is gone: waits a moment for its end, and ends it otherwise."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_EXIT_S):
                await self._process.wait()
        await self.end()
        if self._last_words is not None:
            return Failure(self._last_words.reason, self._last_words.detail)
        code = self._process.returncode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
            return Failure("killed", f"ended by {name}{hint}")
        return Failure("died", f"exit status {code}: {self._last_line or 'it said nothing'}")

    async def end(self) -> None:
        """Ends the child and its children, whatever they do, and removes what they left."""
        self._writer.close()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await self._printing
        await asyncio.to_thread(shutil.rmtree, self._scratch, ignore_errors=True)

    async def _forward_output(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            text = line.decode(errors="replace").strip()
            if text:
                self._last_line = text
                _log.info("%s", text)
