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


def limited(proof_nodes: int, width: int = 1) -> SearchLimits:
    """For k = 1: so many nodes for the proof in all."""
    return SearchLimits(width=width, proof_nodes=proof_nodes - 8)


def test_a_proof_that_would_cost_too_much_is_given_up_for_the_most_hopeful_node() -> None:
    front = frontier(1, limited(1))
    add(front, {A: -0.5, B: -0.4, C: -5.0})  # for a proof A and B would have to be read
    front.stay_within_limits()
    assert front.select().nodes_S.tolist() == [B]
    assert front.done
    assert not front.result().exact


def test_a_node_of_many_titles_is_less_hopeful_than_one_of_few_with_nearly_its_score() -> None:
    trie = TitleTrie.build([*((1, last, 0) for last in range(1, 9)), (2, 1, 0), (2, 2, 0)], [0] * 10)
    many, few = trie.children(0)
    front = Frontier(Query((9,), 1), trie, limited(1))
    add(front, {many: -0.5, few: -0.6})
    front.stay_within_limits()
    assert front.select().nodes_S.tolist() == [few]


def test_open_nodes_below_the_title_that_one_may_expect_do_not_count() -> None:
    front = frontier(1, limited(1))
    add(front, {A: -0.5, B: -9.0, C: -8.0})
    front.stay_within_limits()
    assert front.select().nodes_S.tolist() == [A]
    first, second = TRIE.children(A)
    add(front, {first: -0.9, second: -1.8})
    front.stay_within_limits()
    assert front.done
    assert front.result().exact


def test_nothing_is_unproven_as_long_as_nothing_is_left_out() -> None:
    front = frontier(1, limited(0, width=3))  # no proof can be afforded, but a step reads all there is
    add(front, {A: -0.5, B: -0.7, C: -5.0})
    front.stay_within_limits()
    assert sorted(front.select().nodes_S.tolist()) == [A, B]
    assert front.result().exact


def test_without_a_proof_a_node_that_may_be_expected_to_hold_nothing_better_is_left_out() -> None:
    front = frontier(1, limited(0, width=3))
    add(front, {A: -0.4, B: -0.5, C: -0.6})  # B's best of three titles may be expected at -0.72
    front.stay_within_limits()
    assert front.select().nodes_S.tolist() == [A]
    assert front.done
    assert not front.result().exact
