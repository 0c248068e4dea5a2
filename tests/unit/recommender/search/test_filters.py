import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.search.filters import ItemFilter
from recommender.trie import TitleTrie

# Items 0 and 2 share a title; leaves in order: 0 and 2, 1, 3.
TRIE = TitleTrie.build([(1, 0), (2, 1, 0), (1, 0), (2, 2, 0)], [1, 1, 5, 1])


def both(trie: TitleTrie, exclude: set[int], candidates: set[int] | None) -> ItemFilter:
    return ItemFilter(trie, trie.leaf_of_items(), exclude, candidates)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.data())
def test_a_filter_says_what_the_sets_say(data: st.DataObject) -> None:
    drawn = data.draw(st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=15))
    trie = TitleTrie.build([(*title, 0) for title in drawn], [0] * len(drawn))
    some = st.sets(st.integers(0, len(drawn) - 1))
    exclude, candidates = data.draw(some), data.draw(st.none() | some)
    survivors = (set(range(len(drawn))) if candidates is None else candidates) - exclude
    items = both(trie, exclude, candidates)
    for leaf in range(trie.leaf_count):
        expected = [item for item in trie.items_of(leaf).tolist() if item in survivors]
        assert items.survivors(leaf) == expected
        assert items.count(leaf) == len(expected)
    alive = items.alive(trie.leaf_start, trie.leaf_stop)
    for node in range(trie.node_count):
        below = range(trie.leaf_start[node], trie.leaf_stop[node])
        assert alive[node] == any(items.survivors(leaf) for leaf in below)


def test_a_shared_leaf_lives_while_one_of_its_items_does() -> None:
    zero, one = np.array([0], np.int32), np.array([1], np.int32)
    assert both(TRIE, {0}, None).alive(zero, one).tolist() == [True]
    assert both(TRIE, {0}, None).survivors(0) == [2]
    assert both(TRIE, {0, 2}, None).alive(zero, one).tolist() == [False]


def test_survivors_stay_in_order_of_popularity() -> None:
    assert both(TRIE, set(), {0, 2}).survivors(0) == [2, 0]


def test_an_excluded_candidate_is_excluded() -> None:
    assert both(TRIE, {1}, {1, 3}).count(1) == 0
    assert both(TRIE, {1}, {1, 3}).count(2) == 1


@pytest.mark.parametrize(("exclude", "candidates"), [({0, 1, 2, 3}, None), (set(), set()), ({1}, {1})])
def test_nothing_survives(exclude: set[int], candidates: set[int] | None) -> None:
    items = both(TRIE, exclude, candidates)
    assert not items.alive(TRIE.leaf_start, TRIE.leaf_stop).any()
