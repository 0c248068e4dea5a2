"""What a growing catalogue costs: trie, latency and service start at 5 k, 50 k and 1 M titles.

    python -m benchmarks.catalogue ARTIFACT DATASET [--sizes 5000 50000 1000000] [--rows 200] [--out …]

`benchmarks/titles.py` makes the catalogues around the artifact's own; how near their tries come to what the
real one's would be at that size stands in the record. For each, the trie is built and an artifact written
that differs from the given one in its catalogue, and in that the first tokens which come anew have the
embeddings of rare known ones: the model was not trained among them, and would put them before all others.
The artifact's own catalogue comes first, for comparison. `espalier serve` starts with each in turn, until
`/readyz` says yes. Then the same test histories are ranked with each, the sizes taking turns request by
request, one request at a time and nothing remembered between them: once as the service is by default, which
proves its answers, and in the same turns with few nodes for a proof.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.catalogue_answers import K, agreement, latencies, queries
from benchmarks.needed import tokens_of_nodes
from benchmarks.records import Record, described, lineage, provenance, publish, table
from benchmarks.serving import real_histories, redis_server, service
from benchmarks.titles import TitleMaker, shape_of
from pruning.export import reference_answer
from recommender.artifact import WEIGHTS, Artifact, Description, write_artifact
from recommender.dataset import Dataset
from recommender.ranker import Ranker
from recommender.search.frontier import SearchLimits
from recommender.search.transformer import LeanTransformer
from recommender.trie import TitleTrie

FEW = SearchLimits(proof_nodes=48)
GOALS = {
    "build_seconds": 60.0,
    "bytes_per_title": 200.0,
    "p50_of_smallest": 1.5,
    "p50_of_smallest_with_few_nodes": 1.5,
    "start_seconds": 15.0,
    "deviation": 0.1,
}
_AGREEMENT = ("overlap10", "probability", "same_first")
_PACKAGES = ("espalier", "torch", "tokenizers", "numpy")


def with_kin(artifact: Artifact, kin: Mapping[int, int], folder: Path) -> None:
    """A copy of the artifact's checkpoint in which new tokens are embedded, and so scored, as their kin."""
    shutil.copytree(artifact.path, folder)
    tensors = load_file(folder / WEIGHTS)
    new, known = list(kin), list(kin.values())
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:  # a tied head is not kept
            tensors[name][new] = tensors[name][known]
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def with_catalogue(
    artifact: Artifact, checkpoint: Path, maker: TitleMaker, size: int, target: Path
) -> Record:
    """Writes the artifact with a made catalogue of this size. Returns what the trie took."""
    start = time.perf_counter()
    catalogue, novelty = maker.make(size)
    made = time.perf_counter()
    encoder = artifact.load_encoder()
    paths = encoder.encode_titles(catalogue.titles)
    encoded = time.perf_counter()
    trie = TitleTrie.build(paths, catalogue.popularity)
    built = time.perf_counter()
    tensors = load_file(checkpoint / WEIGHTS)
    transformer = LeanTransformer(artifact.architecture, tensors, torch.float32)
    ranker = Ranker(catalogue, encoder, trie, transformer)
    answers = tuple(reference_answer(ranker, one.history) for one in artifact.manifest.reference)
    description = Description.model_validate(
        artifact.manifest.model_dump(exclude={"files"})
        | {"name": target.name, "quality": None, "reference": answers}
    )
    write_artifact(target, description, checkpoint, catalogue, trie)
    found, expected = shape_of(trie), maker.growth.at(trie.leaf_count)
    return {
        "items": size,
        "titles": trie.leaf_count,
        "nodes": trie.node_count,
        "first_tokens": found.first_tokens,
        "first_tokens_expected": round(expected.first_tokens, 1),
        "decisions": round(found.decisions, 3),
        "decisions_expected": round(expected.decisions, 3),
        "deviation": round(found.deviation(expected), 4),
        "novelty": novelty,
        "make_seconds": round(made - start, 2),
        "encode_seconds": round(encoded - made, 2),
        "trie_seconds": round(built - encoded, 2),
        "build_seconds": round(built - made, 2),
        "trie_bytes": trie.nbytes,
        "bytes_per_title": round(trie.nbytes / trie.leaf_count, 1),
    }


def start_seconds(artifact: Path, redis_url: str, scratch: Path) -> Record:
    """From the command to the first `/readyz` that says yes, and what the process holds then."""
    scratch.mkdir()
    start = time.perf_counter()
    with service(artifact, redis_url, scratch, os.sched_getaffinity(0)) as running:
        running.wait_until_ready()
        took = time.perf_counter() - start
        return {"start_seconds": round(took, 2), "pss_mib": running.pss_mib()}


def page(record: Record) -> str:
    """The record for a reader."""
    sizes, real = record["sizes"], record["real"]
    needed = [record["prompt_tokens"] + one["node_tokens_needed"] for one in sizes]
    rows = [
        (
            f"{one['items']:,}",
            f"{one['first_tokens']} / {one['first_tokens_expected']}",
            f"{one['decisions']:.2f} / {one['decisions_expected']:.2f}",
            f"{one['encode_seconds']} s",
            f"{one['trie_seconds']} s",
            one["bytes_per_title"],
            f"{one['p50_ms']} / {one['p95_ms']} ms",
            f"{one['node_tokens_read']} / {one['node_tokens_needed']}",
            one["steps_mean"],
            f"{100 * one['exact_share']:.1f} %",
            f"{one['start_seconds']} s",
            f"{one['pss_mib']} MiB",
        )
        for one in sizes
    ]
    head = (
        *("items", "first tokens / expected", "decisions / expected", "encoding", "trie", "bytes a title"),
        *(
            "p50 / p95",
            "tokens of nodes read / needed",
            "steps",
            "proven",
            "service start",
            "service's PSS",
        ),
    )
    few = [
        (
            f"{one['items']:,}",
            f"{one['few_nodes']['p50_ms']} / {one['few_nodes']['p95_ms']} ms",
            one["few_nodes"]["steps_mean"],
            *(f"{100 * one['few_nodes'][name]:.1f} %" for name in ("exact_share", *_AGREEMENT)),
        )
        for one in sizes
    ]
    goals = [
        (f"{name} ≤ {GOALS[name]:g}", f"{value:.2f}", "yes" if value <= GOALS[name] else "no")
        for name, value in record["worst"].items()
    ]

    def shown(shape: Record) -> str:
        tokens, decisions = shape["first_tokens"], shape["decisions"]
        return f"{tokens:.0f} distinct first tokens and {decisions:.2f} decisions a title"

    return f"""# A growing catalogue

{provenance(record)}
Artifact {record["artifact"]}, k = {K}, {record["rows"]} test histories, float32, one request at a time.

{table(head, rows)}

With {FEW.proof_nodes} nodes for a proof and eight more an item (`ESPALIER_PROOF_NODES`; above:
{SearchLimits.proof_nodes}), in the same turns. A search that would need more gives its proof up, and its
ten are compared with those above.

{table(("items", "p50 / p95", "steps", "proven", "of the ten", "of their probability", "same first"), few)}

{table(("goal", "worst", "met"), goals)}

The catalogues begin with the artifact's own {real["titles"]:,} titles, which have
{shown(real)}, and go on with made ones (`benchmarks/titles.py`,
seed 0). *Expected* is what the real catalogue would have at that size: first tokens by the Chao1 estimate,
decisions along a straight line over the logarithm of the size. A random quarter of the real catalogue lets
one expect of the whole {shown(record["foretold_from_a_quarter"])}. As many made titles as there are
real ones, alone, have {shown(record["made_alone"])}. *Build* is encoding and trie together, *start* from
the command to `/readyz`. The first row is the artifact's own catalogue. No training saw the first tokens
that come anew, and the model would put them before all others, so each has the embedding of a known one
that begins a single real title. A node whose score beats the tenth item's has to be read by every exact
search: those are the tokens *needed*, beside the prompt's {record["prompt_tokens"]:.1f}, at every size.
If time went by them alone, the largest catalogue would take {needed[-1] / needed[1]:.1f} times as long
as that of {sizes[1]["items"]:,} items.
"""


def main() -> None:
    """Makes, builds, ranks, starts; prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5_000, 50_000, 1_000_000])
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--out", type=Path, help="the JSON record; its page goes beside it")
    given = parser.parse_args()
    artifact = Artifact.open(given.artifact)
    artifact.verify()
    histories = real_histories(artifact, Dataset(given.dataset), given.rows)
    maker = TitleMaker(artifact.load_catalogue(), artifact.load_encoder())
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as store:
        scratch = Path(folder)
        with_kin(artifact, maker.kin, scratch / "checkpoint")
        sizes, asked = [], [len(artifact.load_catalogue()), *given.sizes]
        for size in asked:
            print(f"{size:,} titles", file=sys.stderr, flush=True)
            target = scratch / f"titles-{size}"
            sizes.append(with_catalogue(artifact, scratch / "checkpoint", maker, size, target))
        made = [Artifact.open(scratch / f"titles-{size}") for size in asked]
        starts = [
            start_seconds(one.path, store.url, scratch / f"start-{one.manifest.name}") for one in made
        ]
        rankers = [Ranker.from_artifact(one) for one in made]
        with_few = [Ranker.from_artifact(one, limits=FEW) for one in made]
        found, answers = latencies([*rankers, *with_few], histories)
        read = [tokens_of_nodes(ranker, queries(ranker, histories)) for ranker in rankers]
    count = len(made)
    few = [
        {"few_nodes": seen | agreement(mine, proven)}
        for seen, mine, proven in zip(found[count:], answers[count:], answers[:count], strict=True)
    ]
    sizes = [dict(ChainMap(*parts)) for parts in zip(few, read, starts, found[:count], sizes, strict=True)]
    first, last = sizes[1], sizes[-1]  # of those that were asked for
    worst = {
        **{goal: max(size[goal] for size in sizes) for goal in GOALS if goal in sizes[0]},
        "p50_of_smallest": last["p50_ms"] / first["p50_ms"],
        "p50_of_smallest_with_few_nodes": last["few_nodes"]["p50_ms"] / first["few_nodes"]["p50_ms"],
    }
    record = {
        **described(_PACKAGES),
        "artifact": lineage(artifact),
        "rows": len(histories),
        "prompt_tokens": statistics.fmean(len(query.prompt) for query in queries(rankers[0], histories)),
        "threads": torch.get_num_threads(),
        "real": asdict(maker.growth.parts[-1]),
        "foretold_from_a_quarter": asdict(maker.foretold()),
        "made_alone": asdict(maker.alone()),
        "sizes": sizes,
        "worst": worst,
    }
    publish(record, given.out, page)


if __name__ == "__main__":
    main()
