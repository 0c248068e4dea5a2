"""How fast a catalogue-constrained top 10 is found: our search beside transformers' constrained beams.

    python benchmarks/decoding.py ARTIFACT DATASET [--rows 200] [--out docs/results/decoding.json]

One artifact, the same test histories, k = 10, float32, one process. The contenders take turns, batch by
batch, so that a noisy machine is noisy for both. `transformers` is `generate` with 20 beams, a
`prefix_allowed_tokens_fn` over the trie, renormalised logits, no length penalty, and the separator as end;
several requests are one left-padded batch. `native` is `TrieSearch`; nothing is cached across requests.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from recommender.artifact import Artifact
from recommender.dataset import Dataset
from recommender.ranker import Ranker
from recommender.search.frontier import Query
from recommender.storage import write_file

K = 10
BEAMS = 20
Answer = list[tuple[int, float]]
"""Leaves and their log-probabilities, best first."""
Contender = Callable[[Sequence[tuple[int, ...]]], list[Answer]]


def native(ranker: Ranker) -> Contender:
    """The trie search, all prompts of a call in flight together."""

    def answer(prompts: Sequence[tuple[int, ...]]) -> list[Answer]:
        queries = [Query(prompt, K, distinct_titles=True) for prompt in prompts]
        found = ranker.search.rank(queries, batch=len(queries))
        return [list(zip(one.leaves, one.scores, strict=True)) for one in found]

    return answer


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
            found: Answer = []
            for place in range(row * K, (row + 1) * K):
                tokens = out.sequences[place, width:].tolist()
                path = tuple(tokens[: tokens.index(end) + 1]) if end in tokens else tuple(tokens)
                if path in paths:
                    found.append((paths[path], float(out.sequences_scores[place])))
            answers.append(found)
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
    shares = [
        len({leaf for leaf, _ in one[:K]} & {leaf for leaf, _ in other[:K]}) / min(K, len(other))
        for one, other in zip(answers, exact, strict=True)
    ]
    return statistics.fmean(shares)


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
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    artifact = Artifact.open(options.artifact)
    artifact.verify()
    ranker = Ranker.from_artifact(artifact)
    rows = Dataset(options.dataset).rows("test").sample(options.rows, seed=0)
    prompts = [ranker.prompt(history) for history in rows.histories]
    contenders = {"native": native(ranker), "transformers": beams(artifact, ranker)}
    for contender in contenders.values():
        contender(prompts[:2])  # warm up
    exact = contenders["native"](prompts)

    record: dict[str, Any] = {
        "command": f"python benchmarks/decoding.py {options.artifact} {options.dataset} --rows {len(rows)}",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "artifact": artifact.identity,
        "prompt_tokens_mean": statistics.fmean(map(len, prompts)),
        "ms": {},
        "requests_per_s": {},
        "overlap10": {},
    }
    for concurrency in (1, 8, 32):
        for name, result in measure(contenders, prompts, concurrency).items():
            rate = len(prompts) / sum(result["seconds"])
            record["requests_per_s"].setdefault(name, {})[str(concurrency)] = rate
            if concurrency == 1:
                milliseconds = [1e3 * second for second in result["seconds"]]
                record["ms"][name] = {
                    f"p{round(100 * share)}": percentile(milliseconds, share) for share in (0.5, 0.95, 0.99)
                }
                record["overlap10"][name] = overlap(result["answers"], exact)
    record["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ours, theirs = record["requests_per_s"]["native"], record["requests_per_s"]["transformers"]
    record["ratios"] = {
        "p50_vs_transformers": record["ms"]["transformers"]["p50"] / record["ms"]["native"]["p50"],
        "throughput32_vs_transformers": ours["32"] / theirs["32"],
    }
    text = json.dumps(record, indent=2)
    print(text)
    if options.out:
        write_file(options.out, text + "\n")


if __name__ == "__main__":
    main()
