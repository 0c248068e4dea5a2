"""The child process: vLLM, the step loop and one socket, all in one thread.

The loop that steps is the loop that reads, answers and gives signs of life, so a sign of life proves
that it turns. When the service closes the socket, or dies, a second thread ends the process, whatever
the first one is busy with.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from recommender.artifact import Artifact
from recommender.ranker import TitleIndex
from recommender.search.frontier import Found, Query, SearchLimits
from service.engine.vllm.messages import (
    TO_CHILD,
    AskMetrics,
    Beat,
    Cancel,
    Dying,
    OwnMetrics,
    Rank,
    Ranked,
    Ready,
    Refused,
)
from service.engine.vllm.search import Model, StepLoop

BEAT_S = 0.5
_WARM_UP = -1  # the key of the search that nobody asked for


class ServedModel(Model, Protocol):
    """A model that can also tell about itself: `context` tokens at most have a prompt and its title."""

    @property
    def context(self) -> int: ...

    def ready(self) -> Ready: ...

    def metrics(self) -> str: ...


class _Running:
    """A query on its way, and when it was taken and its prompt read (`perf_counter`)."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.taken = self.prefilled = time.perf_counter()


class Child:
    """Answers what comes over the connection until its other end is closed."""

    def __init__(
        self, connection: socket.socket, titles: TitleIndex, model: ServedModel, limits: SearchLimits
    ) -> None:
        self._connection = connection
        self._titles = titles
        self._model = model
        self._loop = StepLoop(model, titles.trie, limits)
        # A prompt that leaves room for every title; vLLM dies of a longer one.
        self._prompt_limit = model.context - titles.trie.longest_path
        self._running: dict[int, _Running] = {}
        self._unread = b""

    def run(self) -> None:
        """Warms up, says so, and serves."""
        self._begin(_WARM_UP, Query(self._titles.prompt(()), k=1))
        while self._loop.in_flight:
            self._loop.step()
        del self._running[_WARM_UP]
        self._send(self._model.ready())
        last_sign = time.monotonic()
        while self._receive(0.0 if self._loop.in_flight else BEAT_S):
            if self._loop.in_flight:
                self._step()
            if time.monotonic() - last_sign >= BEAT_S:
                self._send(Beat())
                last_sign = time.monotonic()

    def _receive(self, timeout_s: float) -> bool:
        """Takes what has come within the time; False: the other end is closed."""
        readable, _, _ = select.select([self._connection], [], [], timeout_s)
        if not readable:
            return True
        received = self._connection.recv(1 << 20)
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in lines:
            self._take(line)
        return bool(received)

    def _take(self, line: bytes) -> None:
        match TO_CHILD.validate_json(line):
            case Rank() as wanted if len(wanted.prompt) > self._prompt_limit:
                why = f"the prompt has {len(wanted.prompt)} tokens, and {self._prompt_limit} fit"
                self._send(Refused(id=wanted.id, why=why))
            case Rank() as wanted:
                items = self._titles.filter(wanted.exclude, wanted.candidates)
                self._begin(wanted.id, Query(wanted.prompt, wanted.k, items))
            case Cancel(id=number):
                self._loop.discard(number)
                self._running.pop(number, None)
            case AskMetrics(id=number):
                self._send(OwnMetrics(id=number, text=self._model.metrics()))

    def _begin(self, number: int, query: Query) -> None:
        self._running[number] = _Running(query)
        self._loop.admit(number, query)

    def _step(self) -> None:
        progress = self._loop.step()
        for number in progress.prefilled:
            self._running[number].prefilled = time.perf_counter()
        for number, found, cached_tokens in progress.found:
            self._send(self._ranked(number, found, cached_tokens))

    def _ranked(self, number: int, found: Found, cached_tokens: int) -> Ranked:
        running = self._running.pop(number)
        items = self._titles.items(found, running.query)
        return Ranked(
            id=number,
            items=tuple(item.index for item in items),
            scores=tuple(item.score for item in items),
            exact=found.exact,
            prefill_s=running.prefilled - running.taken,
            decode_s=time.perf_counter() - running.prefilled,
            cached_tokens=cached_tokens,
            steps=found.steps,
        )

    def _send(self, message: Ready | Beat | Ranked | Refused | OwnMetrics) -> None:
        self._connection.sendall(message.line())


def last_words(error: Exception) -> Dying:
    """Why the child ends, in one line."""
    short = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)
    lines = str(error).strip().splitlines()
    detail = f"{type(error).__name__}: {lines[0] if lines else ''}"
    return Dying(reason="memory" if short else "died", detail=detail)


def serve(arguments: Sequence[str], load: Callable[[Artifact, int, int], ServedModel]) -> None:
    """Loads an artifact and serves it over the inherited socket.

    Args:
        arguments: what `ChildProcess.launch` was told, and added.
        load: makes the model, of the artifact, its context and the bytes of its cache.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--artifact", type=Path, required=True)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--kv-cache", type=int, required=True)
    parser.add_argument("--proof-nodes", type=int, default=SearchLimits.proof_nodes)
    given = parser.parse_args(arguments)
    with socket.socket(fileno=given.socket) as connection:
        end = threading.Thread(target=_end_with_the_service, args=(connection, given.scratch), daemon=True)
        end.start()
        try:
            artifact = Artifact.open(given.artifact)
            titles = TitleIndex(artifact.load_catalogue(), artifact.load_encoder(), artifact.load_trie())
            model = load(artifact, given.context, given.kv_cache)
            Child(connection, titles, model, SearchLimits(proof_nodes=given.proof_nodes)).run()
        except (BrokenPipeError, ConnectionResetError):
            pass  # the service is gone
        except Exception as error:
            connection.sendall(last_words(error).line())
            raise
        end.join()  # a return would end it before it has tidied up


def _end_with_the_service(connection: socket.socket, scratch: Path) -> None:
    """Waits until the other end is closed, and tidies up: a service that was killed cannot."""
    hang_up = select.poll()
    hang_up.register(connection, select.POLLRDHUP)
    hang_up.poll()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)


def _main() -> None:
    """Serves with vLLM; `--compiled` and `--block-tokens` are for benchmarks, see `VllmModel`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--block-tokens", type=int)
    ours, others = parser.parse_known_args()
    if ours.compiled:
        os.environ.pop("TORCHDYNAMO_DISABLE", None)  # which the service sets

    def load(artifact: Artifact, context: int, kv_cache: int) -> ServedModel:
        from service.engine.vllm.backend import VllmModel  # seconds, and it may fail

        return VllmModel(
            artifact, context, kv_cache, compiled=ours.compiled, block_tokens=ours.block_tokens
        )

    serve(others, load)


if __name__ == "__main__":
    _main()
