from typing import Any

import numpy as np
import pytest

from recommender.artifact import Artifact
from recommender.catalogue import Catalogue
from recommender.prompt import PromptEncoder
from recommender.ranker import Ranker
from recommender.search.frontier import Query
from recommender.trie import TitleTrie


@pytest.fixture
def ranker(catalogue: Catalogue, encoder: PromptEncoder, trie: TitleTrie, speaker: Any) -> Ranker:
    return Ranker(catalogue, encoder, trie, speaker.lean)


def test_a_prompt_of_items_is_that_of_their_titles(ranker: Ranker, catalogue: Catalogue, bpe: Any) -> None:
    prompt = ranker.prompt([0, 8, 3])
    assert prompt == ranker.prompt([catalogue.titles[index] for index in (0, 8, 3)])
    text = "Portal 2\nPokémon Émeraude\nHalf-Life 2: Episode One\n"
    assert bpe.decode(list(prompt)) == ranker.encoder.template.instruction + text


def test_a_free_title_is_read_normalised(ranker: Ranker, bpe: Any) -> None:
    assert ranker.prompt([" Unheard\n of  ", 1]) == ranker.prompt(["Unheard of", "Portal"])


def test_an_empty_history_is_the_instruction(ranker: Ranker) -> None:
    assert ranker.prompt([]) == ranker.encoder.instruction_ids


def test_same_title(ranker: Ranker) -> None:
    assert ranker.same_title([1, 4]) == {1, 4, 7}
    assert ranker.same_title([7]) == {1, 7}
    assert ranker.same_title([]) == set()


def test_no_filter_where_everything_may_come_out(ranker: Ranker) -> None:
    assert ranker.filter() is None
    assert ranker.filter(exclude=[]) is None
    assert ranker.filter(candidates=[]) is not None
    assert ranker.filter(exclude=[1]) is not None


def test_every_item_with_its_score_by_brute_force(
    ranker: Ranker, catalogue: Catalogue, speaker: Any, brute_force: Any
) -> None:
    prompt = ranker.prompt([0, 5, "Unheard of"])
    query = Query(prompt, 100)
    ranked = ranker.items(ranker.search.rank([query])[0], query)
    paths = ranker.encoder.encode_titles(catalogue.titles)
    scores = brute_force(speaker.reference, prompt, paths)
    assert sorted(item.index for item in ranked) == list(range(12))
    np.testing.assert_allclose(
        [item.score for item in ranked], [scores[item.index] for item in ranked], atol=1e-5
    )
    assert [item.score for item in ranked] == sorted((item.score for item in ranked), reverse=True)


def test_items_of_one_title_come_by_popularity_and_share_its_score(ranker: Ranker) -> None:
    query = Query(ranker.prompt([0]), 12)
    ranked = ranker.items(ranker.search.rank([query])[0], query)
    places = {item.index: place for place, item in enumerate(ranked)}
    assert places[7] + 1 == places[1]
    assert ranked[places[7]].score == ranked[places[1]].score


@pytest.mark.parametrize("k", range(1, 13))
def test_k_cuts_also_between_items_of_one_title(ranker: Ranker, k: int) -> None:
    whole = Query(ranker.prompt([0]), 12)
    cut = Query(whole.prompt, k)
    found = ranker.search.rank([whole, cut])
    everything, ranked = ranker.items(found[0], whole), ranker.items(found[1], cut)
    assert [item.index for item in ranked] == [item.index for item in everything[:k]]


def test_only_survivors_come_out(ranker: Ranker) -> None:
    prompt = ranker.prompt([0])
    for items, survivors in (
        (ranker.filter(exclude=[7, 0, 2]), {1, 3, 4, 5, 6, 8, 9, 10, 11}),
        (ranker.filter(candidates=[1, 2, 3]), {1, 2, 3}),
        (ranker.filter(exclude=[2], candidates=[1, 2, 7]), {1, 7}),
        (ranker.filter(exclude=ranker.same_title([1]), candidates=[1, 7]), set()),
    ):
        query = Query(prompt, 12, items)
        ranked = ranker.items(ranker.search.rank([query])[0], query)
        assert {item.index for item in ranked} == survivors
        assert len(ranked) == len(survivors)


def test_from_an_artifact_it_ranks_the_same(ranker: Ranker, artifact: Artifact) -> None:
    loaded = Ranker.from_artifact(artifact)
    assert loaded.catalogue == ranker.catalogue
    query = Query(ranker.prompt([0, 3]), 12)
    assert loaded.prompt([0, 3]) == query.prompt
    here, there = (r.items(r.search.rank([query])[0], query) for r in (ranker, loaded))
    assert [item.index for item in here] == [item.index for item in there]
    np.testing.assert_allclose([item.score for item in here], [item.score for item in there], atol=1e-5)
