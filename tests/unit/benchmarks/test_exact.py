"""What counts as the same top 10; and a small run beside brute force."""

import pytest
from served_artifact import write_served_artifact

from benchmarks.exact import agreement, brute_force
from recommender.artifact import Artifact
from recommender.ranker import Ranker
from recommender.search.frontier import Found, Query


def found(*pairs: tuple[int, float]) -> Found:
    leaves, scores = zip(*pairs, strict=True)
    return Found(leaves, scores, exact=True, prompt_tokens=1, cached_tokens=0, steps=1)


EVERYTHING = found((3, -1.0), (1, -2.0), (4, -2.00001), (0, -3.0))


def test_the_same_leaves_in_order_are_the_same() -> None:
    one = agreement(found((3, -1.001), (1, -2.0)), EVERYTHING)
    assert one.same
    assert one.near
    assert one.furthest == pytest.approx(0.001)


def test_near_equals_may_change_places_and_others_may_not() -> None:
    swapped = agreement(found((3, -1.0), (4, -2.0)), EVERYTHING)
    assert (swapped.same, swapped.near) == (False, True)
    wrong = agreement(found((3, -1.0), (0, -3.0)), EVERYTHING)
    assert (wrong.same, wrong.near) == (False, False)


def test_the_search_agrees_with_brute_force(tmp_path_factory: pytest.TempPathFactory) -> None:
    artifact: Artifact = write_served_artifact(tmp_path_factory)
    ranker = Ranker.from_artifact(artifact)
    prompts = [ranker.prompt([number, number + 1]) for number in range(6)]
    answers = ranker.search.rank([Query(prompt, 5, distinct_titles=True) for prompt in prompts])
    everything = brute_force(artifact, ranker, prompts)
    assert all(len(one.leaves) == ranker.trie.leaf_count for one in everything)
    assert all(agreement(*pair).near for pair in zip(answers, everything, strict=True))
