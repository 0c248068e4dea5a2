import numpy as np

from recommender.search.filters import ItemFilter
from recommender.search.frontier import Frontier, Query, SearchLimits
from recommender.trie import TitleTrie

# Root → A=(1), B=(2), C=(3 0, a leaf); A → two leaves, B → three leaves.
PATHS = [(1, 1, 0), (1, 2, 0), (2, 1, 0), (2, 2, 0), (2, 3, 0), (3, 0)]
TRIE = TitleTrie.build(PATHS, [0] * 6)
A, B, C = TRIE.children(0)
LEAVES = {path: leaf for leaf, path in enumerate(PATHS)}


def frontier(k: int, limits: SearchLimits | None = None, exclude: tuple[int, ...] = ()) -> Frontier:
    items = ItemFilter(TRIE, TRIE.leaf_of_items(), exclude) if exclude else None
    return Frontier(Query((9,), k, items), TRIE, limits or SearchLimits())


def add(front: Frontier, scores: dict[int, float]) -> None:
    nodes = np.array(list(scores), np.int32)
    front.add_children(nodes, np.array(list(scores.values())), np.full(len(nodes), -1, np.int32))


def test_it_is_done_once_the_kth_beats_every_open_node() -> None:
    front = frontier(1)
    add(front, {A: -1.5, B: -2.0, C: -0.4})
    assert front.done
    assert front.result().leaves == (LEAVES[3, 0],)
    assert front.result().scores == (-0.4,)
    assert front.result().exact
    assert front.result().steps == 0


def test_an_open_node_that_could_still_win_is_read_and_a_hopeless_one_is_not() -> None:
    front = frontier(1)
    add(front, {A: -0.5, B: -1.6, C: -1.5})
    selection = front.select()
    assert selection.nodes_S.tolist() == [A]
    assert selection.scores_S.tolist() == [-0.5]
    assert selection.origins_S.tolist() == [-1]


def test_the_best_open_nodes_are_read_first() -> None:
    front = frontier(1, SearchLimits(width=1))
    add(front, {A: -0.9, B: -0.6, C: -3.0})
    assert front.select().nodes_S.tolist() == [B]
    assert front.select().nodes_S.tolist() == [A]
    assert front.done
    assert front.steps == 2


def test_a_better_leaf_found_later_comes_first_and_the_list_stays_k_long() -> None:
    front = frontier(2)
    add(front, {A: -0.2, B: -3.0, C: -2.5})
    front.select()
    first, second = TRIE.children(A)
    add(front, {first: -0.9, second: -0.8})
    assert front.result().leaves == (LEAVES[1, 2, 0], LEAVES[1, 1, 0])
    assert front.result().scores == (-0.8, -0.9)
    assert front.done


def test_a_branch_without_survivors_is_not_opened() -> None:
    front = frontier(6, exclude=(0, 1, 5))
    add(front, {A: -0.5, B: -1.0, C: -1.0})
    assert front.select().nodes_S.tolist() == [B]
    assert front.result().leaves == ()


def test_distinct_titles_counts_leaves_where_items_would_do() -> None:
    trie = TitleTrie.build([(1, 0), (1, 0), (2, 1, 0), (2, 2, 0)], [0] * 4)
    leaf, open_node = trie.children(0)
    for distinct, done in ((False, True), (True, False)):
        front = Frontier(Query((9,), 2, distinct_titles=distinct), trie, SearchLimits())
        add(front, {leaf: -0.1, open_node: -2.0})
        assert front.done == done


def test_excluded_items_of_a_shared_title_do_not_count_towards_k() -> None:
    trie = TitleTrie.build([(1, 0), (1, 0), (2, 1, 0), (2, 2, 0)], [0] * 4)
    leaf, open_node = trie.children(0)
    for exclude, done in (((), True), ((1,), False)):
        items = ItemFilter(trie, trie.leaf_of_items(), exclude)
        front = Frontier(Query((9,), 2, items), trie, SearchLimits())
        add(front, {leaf: -0.1, open_node: -2.0})
        assert front.done == done


def test_past_the_budget_only_k_open_nodes_stay_and_the_result_is_unproven() -> None:
    front = frontier(1, SearchLimits(width=1, expansions=-8))  # with 8 · k more: none left
    add(front, {A: -0.5, B: -0.4, C: -5.0})
    assert front.select().nodes_S.tolist() == [B]
    assert front.done
    assert not front.result().exact


def test_a_budget_that_suffices_leaves_the_result_proven() -> None:
    front = frontier(1, SearchLimits(width=1, expansions=-8))
    add(front, {A: -0.5, B: -9.0, C: -8.0})  # the one node left is no more than k: nothing is cut
    assert front.select().nodes_S.tolist() == [A]
    assert front.result().exact
