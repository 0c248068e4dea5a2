"""Whether the search's top 10 is the catalogue's: beside brute force, on real requests, in float32.

    python -m benchmarks.exact ARTIFACT DATASET [--rows 500] [--out docs/results/exact.json]

The reference is torch's forward pass over every inner node of the trie, nothing bounded and nothing cut, so
that every title has its score. The contender is what the service runs: the kernels where this processor has
them, the search's bounds, eight requests in flight, and a prefix cache. Test histories; nothing excluded.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.records import Record, described, lineage, provenance, publish
from recommender.artifact import Artifact
from recommender.dataset import Dataset
from recommender.ranker import Ranker
from recommender.search.frontier import Found, Query, SearchLimits
from recommender.search.search import TrieSearch
from service.settings import Settings

K = 10
BATCH = 8
NEAR = 1e-4
"""Scores (nats) nearer than this may change places: float32 sums depend on their order."""
_PACKAGES = ("espalier", "torch", "numpy")


@dataclass(frozen=True)
class Agreement:
    """One request by both.

    Attributes:
        same: the same leaves in the same order.
        near: the same but for leaves whose reference scores differ by less than `NEAR`.
        furthest: the largest difference of a leaf's two scores, nats.
    """

    same: bool
    near: bool
    furthest: float


def agreement(found: Found, everything: Found) -> Agreement:
    """How a top k compares with the scores of all titles."""
    score_of = dict(zip(everything.leaves, everything.scores, strict=True))
    own = [score_of[leaf] for leaf in found.leaves]
    best = everything.scores[: len(own)]
    return Agreement(
        same=found.leaves == everything.leaves[: len(own)],
        near=all(abs(mine - theirs) < NEAR for mine, theirs in zip(own, best, strict=True)),
        furthest=max(abs(mine - theirs) for mine, theirs in zip(found.scores, own, strict=True)),
    )


def brute_force(artifact: Artifact, ranker: Ranker, prompts: Sequence[tuple[int, ...]]) -> list[Found]:
    """All titles with their scores, best first, for each prompt."""
    titles = ranker.trie.leaf_count
    unlimited = SearchLimits(width=titles, proof_nodes=titles)
    search = TrieSearch(artifact.load_transformer(), ranker.trie, unlimited)
    found = []
    for number, prompt in enumerate(prompts, 1):
        found += search.rank([Query(prompt, titles, distinct_titles=True)])
        if number % 50 == 0:
            print(f"brute force: {number} of {len(prompts)}", file=sys.stderr, flush=True)
    return found


def page(record: Record) -> str:
    """The record for a reader."""
    proven = "all" if record["met"] else "not all"
    return f"""# The top 10 beside brute force

{provenance(record)}
Artifact {record["artifact"]}, float32, {record["requests"]} test histories, {record["titles"]:,} titles.

{record["same"]} of {record["requests"]} requests have the very ten titles, in the very order, that scoring
every title with torch gives; {record["near"]} have them but for titles whose scores differ by less than
{NEAR:g} nats. {record["proven"]} answers say `exact`, and {proven} of them are right in this sense.
A title's two scores are at most {record["furthest"]:.1e} nats apart. The search was computed by
{record["computed_by"]}, {BATCH} requests in flight.
"""


def main() -> None:
    """Compares, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--out", type=Path, help="the JSON record; its page goes beside it")
    given = parser.parse_args()
    artifact = Artifact.open(given.artifact)
    artifact.verify()
    cache = Settings.model_fields["prefix_cache_bytes"].default
    ranker = Ranker.from_artifact(artifact, prefix_cache_bytes=cache)
    rows = Dataset(given.dataset).rows("test").sample(given.rows, seed=0)
    prompts = [ranker.prompt(history) for history in rows.histories]
    found = ranker.search.rank([Query(prompt, K, distinct_titles=True) for prompt in prompts], BATCH)
    pairs = list(zip(found, brute_force(artifact, ranker, prompts), strict=True))
    agreements = [agreement(one, everything) for one, everything in pairs]
    record = {
        **described(_PACKAGES),
        "artifact": lineage(artifact),
        "computed_by": type(ranker.search.model).__name__,
        "requests": len(found),
        "titles": ranker.trie.leaf_count,
        "proven": sum(one.exact for one in found),
        "same": sum(one.same for one in agreements),
        "near": sum(one.near for one in agreements),
        "furthest": max(one.furthest for one in agreements),
        "met": all(one.near for one, (answer, _) in zip(agreements, pairs, strict=True) if answer.exact),
    }
    publish(record, given.out, page)


if __name__ == "__main__":
    main()
