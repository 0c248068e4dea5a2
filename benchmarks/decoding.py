"""How fast a catalogue-constrained top 10 is found: our engines beside beam searches of others.

    python -m benchmarks.decoding ARTIFACT DATASET [--vllm PYTHON] [--out docs/results/decoding.json]

One artifact, the same 200 real test histories at every concurrency, k = 10 items, float32. The contenders
take turns of eight requests, so that a noisy machine is noisy for all; those of a turn follow each other
without pause. `transformers` is `generate` with 20 beams, a `prefix_allowed_tokens_fn` over the trie,
renormalised logits, no length penalty, and the separator as end; several requests are one left-padded
batch. `native` is `TrieSearch` with the service's prefix cache.
`vllm_eager` and `vllm_compiled` are our engine on vLLM, its block size tuned before, and `vllm_beams` is
vLLM's own beam search without constraint; PYTHON has vLLM. Before each pass, which is one concurrency, what
a contender remembers across requests is emptied. The exact answer comes from the search's torch reference.
Beside the times stand the floors of `floors.py`, measured in the same run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from benchmarks.decoding_alone import peak_alone
from benchmarks.decoding_contenders import (
    BEAMS,
    CONCURRENCIES,
    MOST,
    PAUSE_S,
    Answer,
    Contender,
    K,
    Loop,
    Mode,
    Prompt,
    VllmBeams,
    VllmSearch,
    beams,
    leaf_of_paths,
    looping,
    native,
)
from benchmarks.decoding_floors import floors
from benchmarks.decoding_report import best_vllm, illegal_share, overlap, page, picture, ratios
from benchmarks.records import Record, described, lineage, percentiles, publish
from recommender.artifact import Artifact
from recommender.dataset import Dataset
from recommender.ranker import Ranker
from recommender.search.frontier import Query, SearchLimits
from recommender.search.prefix_cache import PrefixCache
from recommender.search.search import TrieSearch
from recommender.storage import write_file
from service.errors import EngineError
from service.settings import Settings

FLOOR_ROWS = MOST
TURN = 8
"""Requests of a turn: a core that has slept, as it does while others have theirs, begins slowly."""
TUNING_ROWS = 8
BLOCKS = (32, 64, 128)  # vLLM's CPU build takes multiples of 32, and 128 unless told
_PACKAGES = ("espalier", "torch", "transformers", "numpy")
_VERSION = (
    "from importlib.metadata import version as v, packages_distributions as p; print(v(p()['vllm'][0]))"
)


def measure(
    contenders: Mapping[str, Contender],
    prompts: Sequence[Prompt],
    concurrency: int,
    at_most: Mapping[str, int] | None = None,
) -> dict[str, dict[str, Any]]:
    """Seconds of every call, the contenders taking turns, and all answers.

    `at_most` says of a slow contender how many of the prompts, the first ones, it is asked.
    """
    limits = {name: min(len(prompts), (at_most or {}).get(name, len(prompts))) for name in contenders}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    answers: dict[str, list[Answer]] = {name: [] for name in contenders}
    turn = max(TURN, concurrency)
    for first in range(0, len(prompts), turn):
        for name, contender in contenders.items():
            stop = min(first + turn, limits[name])
            time.sleep(PAUSE_S if first < stop else 0)
            for begin in range(first, stop, concurrency):
                batch = prompts[begin : min(begin + concurrency, stop)]
                start = time.perf_counter()
                answers[name].extend(contender(batch))
                seconds[name].append(time.perf_counter() - start)
    return {name: {"seconds": seconds[name], "answers": answers[name]} for name in contenders}


def exact_answers(artifact: Artifact, ranker: Ranker, prompts: Sequence[Prompt]) -> list[Answer]:
    """From torch's forward pass, none of the kernels, with a frontier that is never cut."""
    unlimited = SearchLimits(proof_nodes=ranker.trie.node_count)
    search = TrieSearch(artifact.load_transformer(), ranker.trie, unlimited)
    queries = [Query(prompt, K) for prompt in prompts]
    found = search.rank(queries, batch=8)
    assert all(one.exact for one in found)
    return [
        [item.index for item in ranker.items(one, query)] for one, query in zip(found, queries, strict=True)
    ]


def tuned(
    artifact: Artifact, python: Path, loop: Loop, prompts: Sequence[Prompt], warming: Sequence[Prompt]
) -> list[Record]:
    """The p50 of each mode of our engine on vLLM at each block size, one prompt at a time."""
    tried: list[Record] = []
    for compiled, block in itertools.product((False, True), BLOCKS):
        mode = Mode(compiled, block)
        one: Record = {"mode": mode.name, "block_tokens": block, "p50_ms": None, "refused": None}
        search = VllmSearch(artifact, python, mode, loop)
        try:
            search.renew(warming[:4])
            seconds = measure({mode.name: search}, prompts, 1)[mode.name]["seconds"]
            one["p50_ms"] = round(1e3 * statistics.median(seconds), 2)
        except EngineError as error:
            one["refused"] = str(error)
        finally:
            search.close()
        tried.append(one)
    return tried


def chosen_blocks(tried: Sequence[Record]) -> dict[str, int]:
    """Each mode's fastest block size; a mode that never ran is left out."""
    fastest: dict[str, Record] = {}
    for one in tried:
        best = fastest.get(one["mode"])
        if one["p50_ms"] is not None and (best is None or one["p50_ms"] < best["p50_ms"]):
            fastest[one["mode"]] = one
    return {mode: one["block_tokens"] for mode, one in fastest.items()}


def compare(
    contenders: Mapping[str, Contender],
    empty: Callable[[], None],
    prompts: Sequence[Prompt],
    exact: Sequence[Answer],
    at_most: Mapping[str, int],
) -> Record:
    """Times, rates and overlaps of all contenders; `empty` is called before each pass."""
    milliseconds: dict[str, dict[str, float] | None] = {}
    rates: dict[str, dict[str, float]] = {name: {} for name in contenders}
    overlaps: dict[str, float] = {}
    for concurrency in CONCURRENCIES:
        empty()
        for name, result in measure(contenders, prompts, concurrency, at_most).items():
            answers, seconds = result["answers"], result["seconds"]
            rates[name][str(concurrency)] = round(len(answers) / sum(seconds), 3)
            held = round(overlap(answers, exact[: len(answers)]), 4)
            overlaps[name] = min(held, overlaps.get(name, 1.0))
            if concurrency == 1:
                milliseconds[name] = percentiles(seconds)
    return {"ms": milliseconds, "requests_per_s": rates, "overlap10": overlaps}


def _warming(prompts: Sequence[Prompt]) -> list[Prompt]:
    """As long as real prompts, and no prefix of theirs."""
    return [tuple(reversed(prompt)) for prompt in prompts]


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--beam-rows", type=int, default=MOST, help="histories for vLLM's own beams")
    parser.add_argument("--vllm", type=Path, help="the interpreter that has vLLM")
    parser.add_argument("--out", type=Path, help="the JSON record; page and picture go beside it")
    given = parser.parse_args()
    logging.disable_progress_bar()

    artifact = Artifact.open(given.artifact)
    artifact.verify()
    ranker = Ranker.from_artifact(artifact)
    dataset = Dataset(given.dataset)
    if ranker.catalogue.item_ids != dataset.catalogue.item_ids:
        raise SystemExit(f"{given.artifact} has not the items of {given.dataset}, in their order")
    prompts = [ranker.prompt(one) for one in dataset.rows("test").sample(given.rows, seed=0).histories]
    others = [ranker.prompt(one) for one in dataset.rows("valid").sample(MOST, seed=0).histories]
    record: Record = {
        **described(_PACKAGES),
        "artifact": lineage(artifact),
        "dtype": "float32",
        "weights": "bfloat16" if artifact.load_transformer().fits_bfloat16 else "float32",
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "k": K,
        "beams": BEAMS,
        "rows": len(prompts),
        "beam_rows": min(given.beam_rows, len(prompts)),
        "floor_rows": min(FLOOR_ROWS, len(prompts)),
        "memory_rows": len(others),
        "tuning_rows": TUNING_ROWS,
        "titles": ranker.trie.leaf_count,
        "longest_title": ranker.trie.longest_path,
        "prompt_tokens_mean": round(statistics.fmean(map(len, prompts)), 1),
        "files": given.out.stem if given.out else "decoding",
        "tuning": [],
        "block_tokens": {},
    }
    exact = exact_answers(artifact, ranker, prompts)
    peaks = {name: peak_alone(given.artifact, name, others) for name in ("native", "transformers")}
    remembering = Ranker.from_artifact(artifact)
    contenders: dict[str, Contender] = {
        "native": native(remembering),
        "transformers": beams(artifact, ranker),
    }
    warming = _warming(others)
    with ExitStack() as stack:
        searches: dict[str, VllmSearch] = {}
        own: VllmBeams | None = None
        if given.vllm:
            asked = subprocess.run([given.vllm, "-c", _VERSION], capture_output=True, text=True, check=True)
            record["machine"]["vllm"] = asked.stdout.strip()
            loop = stack.enter_context(looping())
            record["tuning"] = tuned(artifact, given.vllm, loop, others[:TUNING_ROWS], warming)
            record["block_tokens"] = blocks = chosen_blocks(record["tuning"])
            for name, block in blocks.items():
                mode = Mode(name == "vllm_compiled", block)
                searches[name] = VllmSearch(artifact, given.vllm, mode, loop)
                stack.callback(searches[name].close)
            own = VllmBeams(artifact, given.vllm, ranker.trie, blocks.get("vllm_eager", BLOCKS[0]))
            stack.callback(own.close)
            contenders |= {**searches, "vllm_beams": own}

        def empty() -> None:
            """`generate` remembers nothing anyway."""
            search, bound = remembering.search, Settings.model_fields["prefix_cache_bytes"].default
            search.prefixes = PrefixCache(search.model.architecture, search.model.dtype, bound)
            for name in ("native", "transformers"):
                for some in (warming[:1], warming[:8]):
                    contenders[name](some)
            for one in searches.values():
                one.renew(warming)
            if own is not None:
                own(warming[:2])
                own.taken()
                own.renew()

        record |= compare(contenders, empty, prompts, exact, {"vllm_beams": record["beam_rows"]})
        if own is not None:
            record["illegal_share10"] = illegal_share(own.taken(), leaf_of_paths(ranker.trie))
            peaks["vllm_beams"] = own.peak
        for name, search in searches.items():
            search.close()
            peaks[name] = search.peak
    record["peak_bytes"] = peaks
    record["ratios"] = ratios(record["ms"], record["requests_per_s"])
    record["best_vllm"] = best_vllm(record["ms"], record["requests_per_s"])
    record["floors"], record["floor_fraction"] = floors(artifact, ranker, prompts[: record["floor_rows"]])
    publish(record, given.out, page)
    if given.out:
        write_file(given.out.with_suffix(".svg"), picture(record))


if __name__ == "__main__":
    main()
