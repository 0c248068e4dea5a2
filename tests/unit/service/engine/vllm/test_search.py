from collections.abc import Sequence

import numpy as np
import pytest
from lean_vllm_child import LeanModel

from recommender.artifact import Artifact
from recommender.ranker import Ranker
from recommender.search.frontier import Found, Query
from service.engine.vllm.search import StepLoop

HISTORIES = ((1,), (2, 5), (3, 4, 5), (9, 8, 7, 6), (11, 12), ())


@pytest.fixture(scope="module")
def ranker(served_artifact: Artifact) -> Ranker:
    return Ranker.from_artifact(served_artifact)


@pytest.fixture
def model(ranker: Ranker) -> LeanModel:
    return LeanModel(ranker.search.model, ranker.trie)


def run(loop: StepLoop, queries: Sequence[Query]) -> list[Found]:
    for key, query in enumerate(queries):
        loop.admit(key, query)
    found = {}
    while loop.in_flight:
        found.update({key: result for key, result, _ in loop.step().found})
    return [found[key] for key in range(len(queries))]


@pytest.mark.parametrize("first_listed", [1, 2, 5, 64])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_whatever_is_listed_first_the_result_is_the_native_search(
    ranker: Ranker, model: LeanModel, first_listed: int, k: int
) -> None:
    queries = [Query(ranker.prompt(history), k) for history in HISTORIES]
    queries.append(Query(ranker.prompt((3,)), k, ranker.filter({0, 1, 24, 27})))
    queries.append(Query(ranker.prompt((4,)), k, ranker.filter((), {2, 3, 28, 29})))
    loop = StepLoop(model, ranker.trie, first_listed=first_listed)
    for found, expected in zip(run(loop, queries), ranker.search.rank(queries), strict=True):
        assert found.leaves == expected.leaves
        assert found.scores == pytest.approx(expected.scores, abs=1e-4)
        assert found.exact


def test_the_rest_is_asked_for_only_when_it_may_matter(ranker: Ranker, model: LeanModel) -> None:
    children = len(ranker.trie.children(0))
    run(StepLoop(model, ranker.trie, first_listed=3), [Query(ranker.prompt((1,)), 1)])
    asked = [row.listed for row in model.asked if row.node == 0]
    assert asked[0] == 3
    model.asked.clear()
    run(StepLoop(model, ranker.trie, first_listed=3), [Query(ranker.prompt((1,)), 30)])
    assert [row.listed for row in model.asked if row.node == 0] == [children]


def test_forced_tokens_stand_in_the_prompt_and_cost_no_row(ranker: Ranker, model: LeanModel) -> None:
    prompt = ranker.prompt((1,))
    run(StepLoop(model, ranker.trie), [Query(prompt, 30)])
    inner = int(np.count_nonzero(np.diff(ranker.trie.child_offsets)))
    assert len(model.asked) <= inner
    for row in model.asked[1:]:
        below = ranker.trie.leaf_start[row.node]
        path = row.prompt[len(prompt) :]
        assert path == ranker.trie.path(int(below))[: len(path)]


def test_a_discarded_search_leaves_no_rows(ranker: Ranker, model: LeanModel) -> None:
    loop = StepLoop(model, ranker.trie)
    for key, history in enumerate(HISTORIES[:2]):
        loop.admit(key, Query(ranker.prompt(history), 9))
    for _ in range(3):
        loop.step()
    loop.discard(0)
    loop.discard(0)
    found = {}
    while loop.in_flight:
        found.update({key: result for key, result, _ in loop.step().found})
    assert list(found) == [1]
    assert not model.rows


def test_progress_tells_when_a_prompt_was_read(ranker: Ranker, model: LeanModel) -> None:
    loop = StepLoop(model, ranker.trie)
    loop.admit(4, Query(ranker.prompt((1,)), 9))
    told = [loop.step().prefilled for _ in range(3)]
    assert told == [(4,), (), ()]
