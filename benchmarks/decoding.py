"""How fast a catalogue-constrained top 10 is found: our engines beside transformers' constrained beams.

    python -m benchmarks.decoding ARTIFACT DATASET [--rows 200] [--vllm PYTHON] [--out FILE]

One artifact, real test histories, k = 10 items, float32. The contenders take turns, batch by batch, so that
a noisy machine is noisy for all. `transformers` is `generate` with 20 beams, a `prefix_allowed_tokens_fn`
over the trie, renormalised logits, no length penalty, and the separator as end; several requests are one
left-padded batch. `native` is `TrieSearch`, nothing cached across requests. `vllm` is our engine on vLLM
in a process of its own, which PYTHON runs. Each concurrency has histories of its own, so that no prefix
cache meets one twice. Beside the times stand the floors of `floors.py`, measured in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from benchmarks.floors import gemm_seconds, measure_machine, needed_steps, roofline_seconds
from recommender.artifact import Artifact
from recommender.dataset import Dataset
from recommender.ranker import Ranker
from recommender.search.frontier import Query
from recommender.search.transformer import LeanTransformer
from recommender.storage import write_file
from service.engine.making import VllmMaker
from service.engine.protocol import RankRequest

K = 10
BEAMS = 20
CONCURRENCIES = (1, 8, 32)
FLOOR_ROWS = 20
Answer = list[int]
"""Items, the best first."""
Contender = Callable[[Sequence[tuple[int, ...]]], list[Answer]]


def native(ranker: Ranker) -> Contender:
    """The trie search, all prompts of a call in flight together."""

    def answer(prompts: Sequence[tuple[int, ...]]) -> list[Answer]:
        queries = [Query(prompt, K) for prompt in prompts]
        found = ranker.search.rank(queries, batch=len(queries))
        return [
            [item.index for item in ranker.items(one, query)]
            for one, query in zip(found, queries, strict=True)
        ]

    return answer


@contextmanager
def vllm(artifact: Artifact, python: Path) -> Iterator[Contender]:
    """Our engine on vLLM, all prompts of a call asked at once."""

    def count(reason: str) -> None:
        raise RuntimeError(f"vLLM's process was lost: {reason}")

    with asyncio.Runner() as runner:
        made = runner.run(VllmMaker(python, 32, count)(artifact))

        async def ask(prompts: Sequence[tuple[int, ...]]) -> list[Answer]:
            deadline = asyncio.get_running_loop().time() + 600
            requests = [RankRequest(prompt, K, frozenset(), None, deadline) for prompt in prompts]
            answers = await asyncio.gather(*map(made.engine.rank, requests))
            return [[item.index for item in one.items] for one in answers]

        try:
            yield lambda prompts: runner.run(ask(prompts))
        finally:
            runner.run(made.engine.close())


def beams(artifact: Artifact, ranker: Ranker) -> Contender:
    """Transformers' beam search, held to the trie token by token."""
    model = AutoModelForCausalLM.from_pretrained(artifact.path, dtype=torch.float32).eval()
    end = ranker.encoder.separator_id
    paths = {ranker.trie.path(leaf): leaf for leaf in range(ranker.trie.leaf_count)}
    allowed: dict[tuple[int, ...], list[int]] = {}
    for path in paths:
        for depth, token in enumerate(path):
            siblings = allowed.setdefault(path[:depth], [])
            if token not in siblings:
                siblings.append(token)
    longest = max(map(len, paths))

    def answer(prompts: Sequence[tuple[int, ...]]) -> list[Answer]:
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
        answers: list[Answer] = []
        for row in range(len(prompts)):
            leaves = []
            for place in range(row * K, (row + 1) * K):
                tokens = out.sequences[place, width:].tolist()
                path = tuple(tokens[: tokens.index(end) + 1]) if end in tokens else tuple(tokens)
                if path in paths:
                    leaves.append(paths[path])
            answers.append([item for leaf in leaves for item in ranker.trie.items_of(leaf).tolist()][:K])
        return answers

    return answer


def measure(
    contenders: dict[str, Contender], prompts: Sequence[tuple[int, ...]], concurrency: int
) -> dict[str, dict[str, Any]]:
    """Seconds of every call, the contenders taking turns, and all answers."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    answers: dict[str, list[Answer]] = {name: [] for name in contenders}
    for begin in range(0, len(prompts), concurrency):
        batch = prompts[begin : begin + concurrency]
        for name, contender in contenders.items():
            start = time.perf_counter()
            answers[name].extend(contender(batch))
            seconds[name].append(time.perf_counter() - start)
    return {name: {"seconds": seconds[name], "answers": answers[name]} for name in contenders}


def overlap(answers: Sequence[Answer], exact: Sequence[Answer]) -> float:
    """Mean share of the exact ten that an answer holds."""
    return statistics.fmean(
        len({*one} & {*other}) / len(other) for one, other in zip(answers, exact, strict=True)
    )


def floors(model: LeanTransformer, ranker: Ranker, prompts: Sequence[tuple[int, ...]]) -> dict[str, float]:
    """Shares of the native times at concurrency 1 that the floors make up: 1 is the floor itself."""
    machine = measure_machine(model.nbytes)
    shares: dict[str, list[float]] = {}
    for prompt in prompts:
        steps = needed_steps(ranker, prompt, K)
        query = Query(prompt, K)
        prefill, whole = [], []
        for _ in range(5):
            start = time.perf_counter()
            ranker.search.admit([query])
            prefill.append(time.perf_counter() - start)
            while not ranker.search.step():
                pass
            whole.append(time.perf_counter() - start)
        for name, needed, taken in (("prefill", steps[:1], prefill), ("request", steps, whole)):
            median = statistics.median(taken)
            shares.setdefault(f"{name}_gemm", []).append(gemm_seconds(model, needed) / median)
            shares.setdefault(f"{name}_roofline", []).append(
                roofline_seconds(model, needed, machine) / median
            )
    return {name: statistics.median(values) for name, values in shares.items()}


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which the share lies, the nearest measured one."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--vllm", type=Path, help="the interpreter that has vLLM")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    artifact = Artifact.open(options.artifact)
    artifact.verify()
    ranker = Ranker.from_artifact(artifact)
    rows = Dataset(options.dataset).rows("test").sample(len(CONCURRENCIES) * options.rows, seed=0)
    prompts = [ranker.prompt(history) for history in rows.histories]
    with ExitStack() as stack:
        contenders = {"native": native(ranker), "transformers": beams(artifact, ranker)}
        if options.vllm:
            contenders["vllm"] = stack.enter_context(vllm(artifact, options.vllm))
        for contender in contenders.values():
            contender(prompts[:2])  # warm up
        record = compare(contenders, prompts, len(rows) // len(CONCURRENCIES))
    record |= {
        "command": ["python", "-m", "benchmarks.decoding", *sys.argv[1:]],
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "artifact": artifact.identity,
        "prompt_tokens_mean": statistics.fmean(map(len, prompts)),
        "floor_fraction": floors(artifact.load_transformer(), ranker, prompts[:FLOOR_ROWS]),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.out:
        write_file(options.out, text + "\n")


def compare(
    contenders: dict[str, Contender], prompts: Sequence[tuple[int, ...]], rows: int
) -> dict[str, Any]:
    """Times, rates and overlaps of all contenders, and native's ratios to the others."""
    milliseconds: dict[str, dict[str, float]] = {}
    rates: dict[str, dict[str, float]] = {name: {} for name in contenders}
    overlaps: dict[str, float] = {}
    for number, concurrency in enumerate(CONCURRENCIES):
        own = prompts[number * rows : (number + 1) * rows]
        for name, result in measure(contenders, own, concurrency).items():
            rates[name][str(concurrency)] = len(own) / sum(result["seconds"])
            if concurrency == 1:
                times = [1e3 * second for second in result["seconds"]]
                milliseconds[name] = {
                    f"p{round(100 * share)}": percentile(times, share) for share in (0.5, 0.95, 0.99)
                }
                overlaps[name] = overlap(result["answers"], contenders["native"](own))
    most = str(CONCURRENCIES[-1])
    ratios = {}
    for other in contenders:
        if other != "native":
            ratios[f"p50_vs_{other}"] = milliseconds[other]["p50"] / milliseconds["native"]["p50"]
            ratios[f"throughput{most}_vs_{other}"] = rates["native"][most] / rates[other][most]
    return {"ratios": ratios, "ms": milliseconds, "requests_per_s": rates, "overlap10": overlaps}


if __name__ == "__main__":
    main()
