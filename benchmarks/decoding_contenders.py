"""What `decoding.py` compares; all of it ranks the same titles with the same float32 weights.

A contender takes prompts and gives each one's items, the best first; those of one call go together.
The two on vLLM live in child processes, and what those remember across requests can be emptied.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from recommender.artifact import Artifact
from recommender.ranker import Ranker
from recommender.search.frontier import Query
from recommender.trie import TitleTrie
from service.engine.making import MadeEngine, VllmMaker
from service.engine.protocol import RankRequest
from service.engine.vllm.engine import VllmEngine
from service.engine.vllm.reserve import kv_cache_bytes
from service.memory import descendants

K = 10
BEAMS = 20
MOST = 32
"""The most prompts of one call."""
CONCURRENCIES = (1, 8, MOST)
PAUSE_S = 0.02
"""Between two turns: threads of the one before may spin for a while."""
_LONGEST_S = 3600.0
_LONGEST_CONTEXT = 2048
Prompt = tuple[int, ...]
Answer = list[int]
"""Items, the best first."""
Contender = Callable[[Sequence[Prompt]], list[Answer]]
Result = TypeVar("Result")


def native(ranker: Ranker) -> Contender:
    """The trie search, all prompts of a call in flight together."""

    def answer(prompts: Sequence[Prompt]) -> list[Answer]:
        queries = [Query(prompt, K) for prompt in prompts]
        found = ranker.search.rank(queries, batch=len(queries))
        return [
            [item.index for item in ranker.items(one, query)]
            for one, query in zip(found, queries, strict=True)
        ]

    return answer


def beams(artifact: Artifact, ranker: Ranker) -> Contender:
    """Transformers' beam search, held to the trie token by token."""
    # Here, so that a process in which it does not run holds nothing of it.
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(artifact.path, dtype=torch.float32).eval()
    end = ranker.encoder.separator_id
    paths = leaf_of_paths(ranker.trie)
    allowed: dict[Prompt, list[int]] = {}
    for path in paths:
        for depth, token in enumerate(path):
            siblings = allowed.setdefault(path[:depth], [])
            if token not in siblings:
                siblings.append(token)
    longest = ranker.trie.longest_path

    def answer(prompts: Sequence[Prompt]) -> list[Answer]:
        width = max(map(len, prompts))
        ids = torch.tensor([[end] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])

        def children(_: int, sequence: torch.Tensor) -> list[int]:
            return allowed.get(tuple(sequence[width:].tolist()), [end])

        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=mask,
                num_beams=BEAMS,
                num_return_sequences=K,
                max_new_tokens=longest,
                do_sample=False,
                prefix_allowed_tokens_fn=children,
                renormalize_logits=True,
                length_penalty=0.0,
                eos_token_id=end,
                pad_token_id=end,
                return_dict_in_generate=True,
                output_scores=True,
            )
        rows = out.sequences[:, width:].tolist()
        found = [tuple(row[: row.index(end) + 1] if end in row else row) for row in rows]
        return [items_of(found[first : first + K], paths, ranker.trie) for first in range(0, len(found), K)]

    return answer


def leaf_of_paths(trie: TitleTrie) -> dict[Prompt, int]:
    """Each title's tokens, the separator last, and its leaf."""
    return {trie.path(leaf): leaf for leaf in range(trie.leaf_count)}


def items_of(sequences: Sequence[Prompt], paths: dict[Prompt, int], trie: TitleTrie) -> Answer:
    """The first ten items of sequences, the best first; one that is no title has none."""
    leaves = [paths[sequence] for sequence in sequences if sequence in paths]
    return [item for leaf in leaves for item in trie.items_of(leaf).tolist()][:K]


def peak_bytes(process: int) -> int:
    """The most that a process and its descendants of now were ever resident with (proc(5), VmHWM)."""
    total = 0
    for member in descendants(process):
        try:
            lines = Path(f"/proc/{member}/status").read_text().splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    return total


@dataclass(frozen=True)
class Mode:
    """How vLLM runs our engine's model."""

    compiled: bool
    block_tokens: int

    @property
    def name(self) -> str:
        return "vllm_compiled" if self.compiled else "vllm_eager"

    @property
    def options(self) -> tuple[str, ...]:
        """For the engine's child."""
        compiled = ("--compiled",) if self.compiled else ()
        return ("--block-tokens", str(self.block_tokens), *compiled)


class Loop:
    """An event loop that turns in a thread of its own, so that an engine's signs of life are heard."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Waits for its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class VllmSearch:
    """Our engine on vLLM; `renew` starts a process that has seen none of the prompts to come.

    Attributes:
        peak: the highest resident memory of its processes so far, bytes.
    """

    def __init__(self, artifact: Artifact, python: Path, mode: Mode, loop: Loop) -> None:
        self._artifact = artifact
        self._maker = VllmMaker(python, MOST, self._lost, mode.options)
        self._loop = loop
        self._made: MadeEngine | None = None
        self.peak = 0

    def __call__(self, prompts: Sequence[Prompt]) -> list[Answer]:
        return self._loop.run(self._ask(prompts))

    def renew(self, warming: Sequence[Prompt]) -> None:
        """Starts a new process and warms it up with these prompts, alone and together.

        Raises:
            EngineError: it does not start.
        """
        self.close()
        self._made = self._loop.run(self._maker(self._artifact))
        for prompt in warming[:3]:
            self([prompt])
        for together in (8, MOST):
            self(warming[:together])

    def close(self) -> None:
        if self._made is not None:
            engine = self._made.engine
            assert isinstance(engine, VllmEngine)
            if engine.child_pid is not None:
                self.peak = max(self.peak, peak_bytes(engine.child_pid))
            self._made = None
            self._loop.run(engine.close())

    async def _ask(self, prompts: Sequence[Prompt]) -> list[Answer]:
        assert self._made is not None
        deadline = asyncio.get_running_loop().time() + _LONGEST_S
        requests = [RankRequest(prompt, K, frozenset(), None, deadline) for prompt in prompts]
        answers = await asyncio.gather(*map(self._made.engine.rank, requests))
        return [[item.index for item in one.items] for one in answers]

    def _lost(self, reason: str) -> None:
        print(f"vLLM's process was lost: {reason}")


class VllmBeams:
    """vLLM's own beam search in a process of its own, without any constraint."""

    def __init__(self, artifact: Artifact, python: Path, trie: TitleTrie, block_tokens: int) -> None:
        self._trie = trie
        self._paths = leaf_of_paths(trie)
        self._found: list[list[Prompt]] = []
        shape = artifact.architecture
        context = min(shape.max_position_embeddings, _LONGEST_CONTEXT)
        command: list[object] = [python, "-m", "benchmarks.decoding_vllm_beams", artifact.path.resolve()]
        command += ["--end", artifact.load_encoder().separator_id, "--longest", trie.longest_path]
        command += ["--context", context, "--block-tokens", block_tokens]
        # A beam has its last block to itself: thrice the cache of our engine, which holds a search's rows.
        command += ["--kv-cache", kv_cache_bytes(shape, context, 3 * MOST)]
        self._child = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._heard()

    def __call__(self, prompts: Sequence[Prompt]) -> list[Answer]:
        self._say({"prompts": prompts})
        sequences = [[tuple(one) for one in best] for best in self._heard()]
        self._found += sequences
        return [items_of(best, self._paths, self._trie) for best in sequences]

    def renew(self) -> None:
        """Empties the child's cache of keys and values."""
        self._say({"empty": True})
        self._heard()

    def taken(self) -> list[list[Prompt]]:
        """The best ten sequences of each prompt since this was asked last."""
        found, self._found = self._found, []
        return found

    @property
    def peak(self) -> int:
        """The highest resident memory of its process so far, bytes."""
        return peak_bytes(self._child.pid)

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def _say(self, message: dict[str, object]) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(message) + "\n")
        self._child.stdin.flush()

    def _heard(self) -> Any:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"vLLM's beam search ended with {self._child.wait()}")
        return json.loads(line)


@contextmanager
def looping() -> Iterator[Loop]:
    """An event loop for as long as engines live."""
    loop = Loop()
    try:
        yield loop
    finally:
        loop.close()
