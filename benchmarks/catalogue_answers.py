"""What rankers of growing catalogues answer: how soon, how surely, and how alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence

from benchmarks.records import Record, percentiles
from recommender.ranker import Ranker
from recommender.search.frontier import Found, Query

K = 10


def queries(ranker: Ranker, histories: Sequence[Sequence[str]]) -> list[Query]:
    """What is asked: the histories' ten best."""
    return [
        Query(
            ranker.prompt([item for i in history if (item := ranker.catalogue.index_of(i)) is not None]), K
        )
        for history in histories
    ]


def latencies(
    rankers: Sequence[Ranker], histories: Sequence[Sequence[str]]
) -> tuple[list[Record], list[list[Found]]]:
    """p50, p95 and p99 of each in turns, steps and the share that is proven; and the answers themselves."""
    asked = [queries(ranker, histories) for ranker in rankers]
    seconds: list[list[float]] = [[] for _ in rankers]
    answers: list[list[Found]] = [[] for _ in rankers]
    for number in (*range(-3, 0), *range(len(histories))):
        for place, ranker in enumerate(rankers):
            query = asked[place][number]
            start = time.perf_counter()
            (found,) = ranker.search.rank([query])
            ranker.items(found, query)
            took = time.perf_counter() - start
            if number >= 0:  # the others warm up
                seconds[place].append(took)
                answers[place].append(found)
    records = [
        {
            **(percentiles(took) or {}),
            "steps_mean": round(statistics.fmean(one.steps for one in found), 2),
            "exact_share": round(statistics.fmean(one.exact for one in found), 4),
        }
        for took, found in zip(seconds, answers, strict=True)
    ]
    return records, answers


def agreement(found: Sequence[Found], proven: Sequence[Found]) -> Record:
    """How answers compare with proven ones, in the mean over the requests.

    `overlap10`: the share of the proven titles that they have; `probability`: the sum of their titles'
    probabilities by that of the proven ones; `same_first`: the share with the same first title.
    """

    def mass(one: Found) -> float:
        return math.fsum(math.exp(score) for score in one.scores[:K])

    pairs = list(zip(found, proven, strict=True))
    return {
        "overlap10": round(
            statistics.fmean(
                len({*mine.leaves} & {*best.leaves}) / len(best.leaves) for mine, best in pairs
            ),
            4,
        ),
        "probability": round(
            statistics.fmean(min(1.0, mass(mine) / mass(best)) for mine, best in pairs), 4
        ),
        "same_first": round(statistics.fmean(mine.leaves[0] == best.leaves[0] for mine, best in pairs), 4),
    }
