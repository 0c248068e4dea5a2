"""What a returning user costs: the prefix cache beside a cold one, over long sessions.

    python -m benchmarks.cache ARTIFACT DATASET [--users 40] [--events 60] [--out docs/results/cache.json]

Users meet one item after another, and ask after each; all take their turns before anyone asks again. The
prompt's window has hysteresis (`recommender/prompt.py`): it grows from 10 titles to 20 and is then cut
back, which leaves nothing of the prompt before but its instruction. `returning` has one prefix cache, as
large as the service's default, for all of it; `cold` has an empty one at every request. Both answer every
request, one at a time, who goes first alternating. Where nobody has as many interactions as a session has
events, several users' are strung together.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.records import Record, described, lineage, percentiles, provenance, publish, table
from recommender.artifact import Artifact
from recommender.dataset import Dataset, UserSequence
from recommender.ranker import Ranker
from recommender.search.frontier import Query
from recommender.search.prefix_cache import PrefixCache
from service.settings import Settings

K = 10
GOAL = 0.4
COLD, RETURNING = "cold", "returning"
_PACKAGES = ("espalier", "torch", "numpy")


@dataclass(frozen=True)
class Asked:
    """One request: its tokens, where its time went (seconds), and the items that came out."""

    tokens: int
    found: int
    steps: int
    prefill: float
    decode: float
    rest: float
    items: tuple[int, ...]

    @property
    def seconds(self) -> float:
        return self.prefill + self.decode + self.rest


@dataclass(frozen=True)
class Pair:
    """The same request to both; `cut`: the window was cut back since the user's last one."""

    cut: bool
    cold: Asked
    returning: Asked


def sessions(users: Sequence[UserSequence], count: int, events: int) -> list[tuple[int, ...]]:
    """Item indices of so many sessions, each of `events`; users with the most interactions come first."""
    ordered = sorted(users, key=lambda user: -len(user.items))
    stream = [item for user in ordered for item in user.items]
    stream *= -(-count * events // len(stream))
    return [tuple(stream[start : start + events]) for start in range(0, count * events, events)]


def ask(ranker: Ranker, history: Sequence[int]) -> Asked:
    """Answers one request as the service's engine does, and times its parts."""
    start = time.perf_counter()
    query = Query(ranker.prompt(history), K)
    prompted = time.perf_counter()
    ranker.search.admit([query])
    prefilled = time.perf_counter()
    while not (done := ranker.search.step()):
        pass
    decoded = time.perf_counter()
    ((_, found),) = done
    items = tuple(item.index for item in ranker.items(found, query))
    return Asked(
        tokens=found.prompt_tokens,
        found=found.cached_tokens,
        steps=found.steps,
        prefill=prefilled - prompted,
        decode=decoded - prefilled,
        rest=prompted - start + time.perf_counter() - decoded,
        items=items,
    )


def replay(artifact: Artifact, histories: Sequence[Sequence[int]], cache_bytes: int) -> list[Pair]:
    """All sessions, event by event; each user's first request, which finds nothing, is left out."""
    returning = Ranker.from_artifact(artifact, prefix_cache_bytes=cache_bytes)
    cold = Ranker.from_artifact(artifact, prefix_cache_bytes=cache_bytes)
    template = artifact.manifest.prompt
    pairs: list[Pair] = []

    def ask_cold(window: Sequence[int]) -> Asked:
        model = cold.search.model
        cold.search.prefixes = PrefixCache(model.architecture, model.dtype, cache_bytes)
        return ask(cold, window)

    for count in range(1, len(histories[0]) + 1):
        begin = template.window_start(count)
        cut = count > 1 and begin != template.window_start(count - 1)
        for number, history in enumerate(histories):
            window = history[begin:count]
            if (number + count) % 2:
                of_cold, of_returning = ask_cold(window), ask(returning, window)
            else:
                of_returning, of_cold = ask(returning, window), ask_cold(window)
            if count > 1:
                pairs.append(Pair(cut, of_cold, of_returning))
    return pairs


def compared(pairs: Sequence[Pair]) -> Record:
    """Both contenders' times, where they went, and how they compare."""
    record: Record = {"requests": len(pairs)}
    for name in (COLD, RETURNING):
        asked: list[Asked] = [getattr(pair, name) for pair in pairs]
        record[name] = {
            **(percentiles([one.seconds for one in asked]) or {}),
            **{
                f"{part}_p50_ms": round(1e3 * statistics.median(getattr(one, part) for one in asked), 3)
                for part in ("prefill", "decode", "rest")
            },
            "tokens_mean": round(statistics.fmean(one.tokens for one in asked), 1),
            "found_share": round(sum(one.found for one in asked) / sum(one.tokens for one in asked), 4),
            "steps_mean": round(statistics.fmean(one.steps for one in asked), 2),
        }
    # Request by request, the two one right after the other: what disturbs the machine disturbs both.
    ratios = {
        "ratio": [pair.returning.seconds / pair.cold.seconds for pair in pairs],
        "ratio_prefill": [pair.returning.prefill / pair.cold.prefill for pair in pairs],
        # What would be left if nothing had to be read: no cache can go below it.
        "ratio_without_prefill": [1 - pair.cold.prefill / pair.cold.seconds for pair in pairs],
    }
    record |= {name: round(statistics.median(values), 3) for name, values in ratios.items()}
    record["same_items"] = round(
        statistics.fmean(pair.cold.items == pair.returning.items for pair in pairs), 4
    )
    return record


def page(record: Record) -> str:
    """The record for a reader."""
    kinds = {"one new event": "grown", "window cut back": "cut", "all": "all"}
    rows = [
        (
            f"{kind}, {name}",
            one[name]["tokens_mean"],
            f"{100 * one[name]['found_share']:.1f} %",
            f"{one[name]['p50_ms']} / {one[name]['p95_ms']} / {one[name]['p99_ms']}",
            one[name]["prefill_p50_ms"],
            one[name]["decode_p50_ms"],
            one[name]["rest_p50_ms"],
            one[name]["steps_mean"],
        )
        for kind, key in kinds.items()
        if (one := record[key]) is not None
        for name in (COLD, RETURNING)
    ]
    head = ("", "tokens", "found", "p50 / p95 / p99 ms", "prefill p50", "decode p50", "rest p50", "steps")
    grown = record["grown"]
    without = 100 * grown["ratio_without_prefill"]
    verdict = (
        "is met"
        if record["met"]
        else "is missed: prefill, the only part that a prefix cache can save, is "
        f"{100 - without:.0f} % of the cold request; with no prefill at all the ratio would be "
        f"{without:.0f} %. The rest are {grown[RETURNING]['steps_mean']:.1f} decode steps"
    )
    return f"""# A returning user

{provenance(record)}
Artifact {record["artifact"]}, k = {K}, float32, {record["threads"]} threads, one request at a time:
{record["users"]} sessions of {record["events"]} events; the longest real one has {record["longest_real"]}.

{table(head, rows)}

A returning user with one new event takes {100 * grown["ratio"]:.0f} % of a cold request's time and
{100 * grown["ratio_prefill"]:.0f} % of its prefill (medians over the pairs).
The goal, {100 * GOAL:.0f} %, {verdict}.
Both gave the same items to {100 * record["all"]["same_items"]:.1f} % of the requests.
"""


def main() -> None:
    """Replays, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("artifact", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--events", type=int, default=60)
    parser.add_argument("--out", type=Path, help="the JSON record; its page goes beside it")
    given = parser.parse_args()
    artifact = Artifact.open(given.artifact)
    artifact.verify()
    dataset = Dataset(given.dataset)
    catalogue = artifact.load_catalogue()
    if catalogue.item_ids != dataset.catalogue.item_ids:
        raise SystemExit(f"{given.artifact} has not the items of {given.dataset}, in their order")
    histories = sessions(dataset.users, given.users, given.events)
    pairs = replay(artifact, histories, Settings.model_fields["prefix_cache_bytes"].default)
    cut = [pair for pair in pairs if pair.cut]
    grown = compared([pair for pair in pairs if not pair.cut])
    record = {
        **described(_PACKAGES),
        "artifact": lineage(artifact),
        "threads": torch.get_num_threads(),
        "users": given.users,
        "events": given.events,
        "longest_real": max(len(user.items) for user in dataset.users),
        "goal": GOAL,
        "met": grown["ratio"] <= GOAL,
        "grown": grown,
        "cut": compared(cut) if cut else None,
        "all": compared(pairs),
    }
    publish(record, given.out, page)


if __name__ == "__main__":
    main()
