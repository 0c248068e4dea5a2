"""Teacher and student side by side on a few test rows, drawn by the run's seed and not picked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pruning.evaluation import RankingTask
from recommender.dataset import Rows
from recommender.ranker import Ranker
from recommender.ranking import DEPTH
from recommender.search.frontier import Query

COUNT = 6
_SHOWN = 10


@dataclass(frozen=True)
class Suggestion:
    """One title of a list; `probability` is among all titles of the catalogue."""

    title: str
    probability: float
    is_target: bool
    in_both: bool


@dataclass(frozen=True)
class Answer:
    """What one model recommends; `rank` is the target's place, 0 beyond the lists' depth."""

    model: str
    suggestions: tuple[Suggestion, ...]
    rank: int


@dataclass(frozen=True)
class Example:
    """One test row: what the user had, what came next, and what the models said."""

    history: tuple[str, ...]
    target: str
    answers: tuple[Answer, ...]


def examples(task: RankingTask, rankers: Mapping[str, Ranker], rows: Rows) -> list[Example]:
    """What each of the rankers says to `rows`, which are some of the task's."""
    return [
        _example(task, rankers, history, int(target))
        for history, target in zip(rows.histories, rows.targets_R, strict=True)
    ]


def _example(
    task: RankingTask, rankers: Mapping[str, Ranker], history: tuple[int, ...], target: int
) -> Example:
    found: dict[str, tuple[list[int], list[float]]] = {}
    for name, ranker in rankers.items():
        query = Query(ranker.prompt(history), DEPTH, distinct_titles=True)
        (answer,) = ranker.search.rank([query])
        found[name] = list(answer.leaves), list(answer.scores)
    shown = [set(leaves[:_SHOWN]) for leaves, _ in found.values()]
    common = set.intersection(*shown)
    any_ranker = next(iter(rankers.values()))
    titles = any_ranker.catalogue.titles
    wanted = int(any_ranker.leaf_of_items[target])
    answers = tuple(
        Answer(
            model=name,
            suggestions=tuple(
                Suggestion(
                    title=titles[int(task.trie.items_of(leaf)[0])],
                    probability=math.exp(score),
                    is_target=leaf == wanted,
                    in_both=leaf in common,
                )
                for leaf, score in list(zip(leaves, scores, strict=True))[:_SHOWN]
            ),
            rank=leaves.index(wanted) + 1 if wanted in leaves else 0,
        )
        for name, (leaves, scores) in found.items()
    )
    return Example(tuple(titles[item] for item in history), titles[target], answers)
