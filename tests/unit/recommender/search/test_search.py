"""The search against brute force: every item's score computed by transformers.

Scores agree to 1e-5: transformers' float32 sums depend on the shapes of the batch. So the tests compare
scores, and items only where their scores are further apart than that. The kernels' sums do not: what they
answer is compared with itself to the last bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.search.filters import ItemFilter
from recommender.search.frontier import Found, Query, SearchLimits
from recommender.search.native import library
from recommender.search.native.transformer import NativeTransformer
from recommender.search.search import TrieSearch
from recommender.trie import TitleTrie

TOLERANCE = 1e-5
SETTINGS = settings(deadline=None, derandomize=True, max_examples=150)
END = 0
Paths = list[tuple[int, ...]]


def make_paths(titles: Sequence[Sequence[int]]) -> Paths:
    return [(*title, END) for title in titles]


# Few tokens, short titles: prefixes of each other and duplicates are common. No title: the END alone.
catalogues = st.lists(st.lists(st.integers(1, 5), max_size=5), max_size=25).map(make_paths)
prompts = st.lists(st.integers(0, 31), min_size=1, max_size=40).map(tuple)
widths = st.sampled_from([SearchLimits(), SearchLimits(width=1), SearchLimits(width=3)])


@pytest.fixture(scope="module", params=["torch", *library.levels()])
def tiny(request: pytest.FixtureRequest, tiny: Any) -> Any:
    """The search by everything that can compute its model here."""
    if request.param == "torch":
        return tiny
    return replace(tiny, lean=NativeTransformer(tiny.lean, library.load(request.param)))


@dataclass(frozen=True)
class Wish:
    """A query before it meets a trie."""

    prompt: tuple[int, ...]
    k: int
    exclude: frozenset[int]
    candidates: frozenset[int] | None
    distinct_titles: bool

    def survivors(self, items: int) -> list[int]:
        return [
            item
            for item in range(items)
            if item not in self.exclude and (self.candidates is None or item in self.candidates)
        ]

    def query(self, trie: TitleTrie) -> Query:
        items = None
        if self.exclude or self.candidates is not None:
            items = ItemFilter(trie, trie.leaf_of_items(), self.exclude, self.candidates)
        return Query(self.prompt, self.k, items, self.distinct_titles)


@st.composite
def wishes(draw: st.DrawFn, items: int) -> Wish:
    some = st.frozensets(st.integers(0, items - 1)) if items else st.just(frozenset())
    return Wish(
        draw(prompts),
        draw(st.integers(1, 4) | st.integers(1, 30)),
        draw(st.just(frozenset()) | some),
        draw(st.none() | some),
        draw(st.booleans()),
    )


def check(found: Found, wish: Wish, trie: TitleTrie, scores: Sequence[float]) -> None:
    """Whether `found` is the top k that the scores of all items give."""
    survivors = wish.survivors(len(scores))
    leaf_of_items = trie.leaf_of_items()
    best: dict[int, list[int]] = {}
    for item in sorted(survivors, key=lambda item: -scores[item]):
        best.setdefault(int(leaf_of_items[item]), []).append(item)
    expected: list[float] = []
    counted = 0
    for items in best.values():
        if counted >= wish.k:
            break
        expected.append(scores[items[0]])
        counted += 1 if wish.distinct_titles else len(items)
    assert found.exact
    assert found.prompt_tokens == len(wish.prompt)
    assert len(set(found.leaves)) == len(found.leaves)
    assert set(found.leaves) <= set(best)
    own = [scores[best[leaf][0]] for leaf in found.leaves]
    np.testing.assert_allclose(found.scores, own, atol=TOLERANCE)
    assert list(found.scores) == sorted(found.scores, reverse=True)
    # Where near-equals of different size swap at the end, the list may be a title longer or shorter.
    shared = min(len(found.scores), len(expected))
    np.testing.assert_allclose(found.scores[:shared], expected[:shared], atol=TOLERANCE)
    rest = [*found.scores[shared:], *expected[shared:]]
    assert all(abs(score - expected[shared - 1]) < TOLERANCE for score in rest)


@SETTINGS
@given(data=st.data(), paths=catalogues, limits=widths)
def test_the_top_k_is_that_of_brute_force(
    tiny: Any,
    brute_force: Callable[..., list[float]],
    data: st.DataObject,
    paths: Paths,
    limits: SearchLimits,
) -> None:
    trie = TitleTrie.build(paths, [0] * len(paths))
    wish = data.draw(wishes(len(paths)))
    [found] = TrieSearch(tiny.lean, trie, limits).rank([wish.query(trie)])
    check(found, wish, trie, brute_force(tiny.reference, wish.prompt, paths))


@SETTINGS
@given(data=st.data(), paths=catalogues, batch=st.integers(1, 5), limits=widths)
def test_an_answer_does_not_depend_on_who_shares_its_batch(
    tiny: Any,
    brute_force: Callable[..., list[float]],
    data: st.DataObject,
    paths: Paths,
    batch: int,
    limits: SearchLimits,
) -> None:
    trie = TitleTrie.build(paths, [0] * len(paths))
    together = data.draw(st.lists(wishes(len(paths)), max_size=6))
    search = TrieSearch(tiny.lean, trie, limits)
    answers = search.rank([wish.query(trie) for wish in together], batch)
    assert search.in_flight == 0
    assert len(answers) == len(together)
    for found, wish in zip(answers, together, strict=True):
        check(found, wish, trie, brute_force(tiny.reference, wish.prompt, paths))


@pytest.mark.parametrize("level", library.levels())
@SETTINGS
@given(data=st.data(), paths=catalogues, batch=st.integers(2, 5), limits=widths)
def test_an_answer_of_the_kernels_is_the_same_to_the_last_bit_in_any_company(
    make_model: Any, level: str, data: st.DataObject, paths: Paths, batch: int, limits: SearchLimits
) -> None:
    """Alone, in a batch, and with what is remembered of prompts that were read in another batch."""
    model = NativeTransformer(make_model("qwen3").lean, library.load(level))
    trie = TitleTrie.build(paths, [0] * len(paths))
    queries = [wish.query(trie) for wish in data.draw(st.lists(wishes(len(paths)), min_size=2, max_size=6))]
    alone = [TrieSearch(model, trie, limits).rank([query])[0] for query in queries]
    remembering = TrieSearch(model, trie, limits, prefix_cache_bytes=1 << 20)
    for _ in range(2):
        together = remembering.rank(queries, batch)
        assert [found.leaves for found in together] == [found.leaves for found in alone]
        assert [found.scores for found in together] == [found.scores for found in alone]


@SETTINGS
@given(data=st.data(), paths=catalogues)
def test_requests_may_join_and_leave_between_any_two_steps(
    tiny: Any, brute_force: Callable[..., list[float]], data: st.DataObject, paths: Paths
) -> None:
    trie = TitleTrie.build(paths, [0] * len(paths))
    search = TrieSearch(tiny.lean, trie, SearchLimits(width=1))
    waiting: dict[int, Wish] = {}
    seen: set[int] = set()

    def take(finished: list[tuple[int, Found]]) -> None:
        for ticket, found in finished:
            wish = waiting.pop(ticket)
            check(found, wish, trie, brute_force(tiny.reference, wish.prompt, paths))

    for action in data.draw(st.lists(st.sampled_from(["admit", "step", "discard"]), max_size=12)):
        if action == "admit":
            joining = data.draw(st.lists(wishes(len(paths)), min_size=1, max_size=3))
            tickets = search.admit([wish.query(trie) for wish in joining])
            assert not seen & set(tickets)
            seen |= set(tickets)
            waiting |= dict(zip(tickets, joining, strict=True))
        elif action == "step":
            take(search.step())
        elif waiting:
            leaving = data.draw(st.sets(st.sampled_from(sorted(waiting))))
            search.discard(list(leaving))
            for ticket in leaving:
                del waiting[ticket]
        assert search.in_flight == len(waiting)
    while search.in_flight:
        take(search.step())
    assert not waiting


def test_the_longest_prompt_may_leave_first(tiny: Any, brute_force: Any, random_prompt: Any) -> None:
    """The slot that it frees is taken by another request's, whose columns end elsewhere."""
    paths = make_paths([(a, b, c) for a in (1, 2, 3) for b in (1, 2) for c in (4, 5)])
    trie = TitleTrie.build(paths, [0] * len(paths))
    search = TrieSearch(tiny.lean, trie, SearchLimits(width=1))
    wishes = [
        Wish(random_prompt(length, length), 1, frozenset(), None, distinct_titles=False)
        for length in (150, 3, 70)
    ]
    long, short, middle = search.admit([wish.query(trie) for wish in wishes])
    found = dict(search.step())
    search.discard([long])
    while search.in_flight:
        found |= dict(search.step())
    for ticket, wish in ((short, wishes[1]), (middle, wishes[2])):
        check(found[ticket], wish, trie, brute_force(tiny.reference, wish.prompt, paths))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_other_families(make_model: Any, brute_force: Any, random_prompt: Any, family: str) -> None:
    model = make_model(family, num_key_value_heads=1, tie_word_embeddings=True, seed=5)
    rng = np.random.default_rng(0)
    paths = make_paths([rng.integers(1, 9, rng.integers(1, 7)).tolist() for _ in range(120)])
    trie = TitleTrie.build(paths, [0] * len(paths))
    for seed in range(3):
        wish = Wish(random_prompt(25, seed), 10, frozenset(), None, distinct_titles=False)
        [found] = TrieSearch(model.lean, trie).rank([wish.query(trie)])
        check(found, wish, trie, brute_force(model.reference, wish.prompt, paths))


@SETTINGS
@given(data=st.data(), paths=catalogues)
def test_a_score_does_not_depend_on_the_filter(tiny: Any, data: st.DataObject, paths: Paths) -> None:
    trie = TitleTrie.build(paths, [0] * len(paths))
    wish = data.draw(wishes(len(paths)))
    search = TrieSearch(tiny.lean, trie)
    everything = Query(wish.prompt, max(1, len(paths)))
    whole, filtered = search.rank([everything, wish.query(trie)])
    score_of = dict(zip(whole.leaves, whole.scores, strict=True))
    np.testing.assert_allclose(
        filtered.scores, [score_of[leaf] for leaf in filtered.leaves], atol=TOLERANCE
    )


def test_the_probabilities_of_all_titles_sum_to_one(tiny: Any, random_prompt: Any) -> None:
    rng = np.random.default_rng(1)
    paths = make_paths([rng.integers(1, 7, rng.integers(0, 6)).tolist() for _ in range(80)])
    trie = TitleTrie.build(paths, [0] * len(paths))
    [found] = TrieSearch(tiny.lean, trie).rank([Query(random_prompt(9, 0), 80)])
    assert len(found.leaves) == trie.leaf_count
    assert np.exp(found.scores).sum() == pytest.approx(1, abs=1e-5)


def test_titles_that_begin_others_and_duplicates(tiny: Any, brute_force: Any, random_prompt: Any) -> None:
    paths = make_paths([(1,), (1, 2), (1, 2, 3), (4,), (1, 2), (4, 4), (1, 2)])
    trie = TitleTrie.build(paths, [0, 3, 0, 0, 9, 0, 4])
    prompt = random_prompt(6, 2)
    scores = brute_force(tiny.reference, prompt, paths)
    for k in range(1, 8):
        wish = Wish(prompt, k, frozenset(), None, distinct_titles=False)
        [found] = TrieSearch(tiny.lean, trie).rank([wish.query(trie)])
        check(found, wish, trie, scores)
        assert sum(len(trie.items_of(leaf)) for leaf in found.leaves) >= k


def test_an_empty_catalogue_gives_nothing(tiny: Any) -> None:
    trie = TitleTrie.build([], [])
    [found] = TrieSearch(tiny.lean, trie).rank([Query((1, 2), 5)])
    assert (found.leaves, found.scores, found.exact, found.steps) == ((), (), True, 0)


def test_one_item_is_certain_and_needs_no_step(tiny: Any) -> None:
    trie = TitleTrie.build([(3, 2, 1, END)], [0])
    [found] = TrieSearch(tiny.lean, trie).rank([Query((1, 2), 5)])
    assert (found.leaves, found.scores, found.exact, found.steps) == ((0,), (0.0,), True, 0)


@pytest.mark.parametrize("by", ["exclude", "candidates"])
def test_without_survivors_nothing_is_read(tiny: Any, by: str) -> None:
    paths = make_paths([(1, 1), (1, 2), (2, 1), (2, 2)])
    trie = TitleTrie.build(paths, [0] * 4)
    named: Any = {"exclude": range(4)} if by == "exclude" else {"candidates": ()}
    items = ItemFilter(trie, trie.leaf_of_items(), **named)
    [found] = TrieSearch(tiny.lean, trie).rank([Query((1, 2), 5, items)])
    assert (found.leaves, found.exact, found.steps) == ((), True, 0)


def test_forced_tokens_take_no_step_of_their_own(tiny: Any) -> None:
    paths = make_paths([(1, 5, 5, 5, 5, 1, 6, 6), (1, 5, 5, 5, 5, 2, 6, 6), (2, 7, 7, 7)])
    trie = TitleTrie.build(paths, [0] * 3)
    [found] = TrieSearch(tiny.lean, trie).rank([Query((1, 2), 3)])
    assert len(found.leaves) == 3
    assert found.steps == 1


@pytest.mark.parametrize("k", [1, 3, 20])
def test_a_cut_frontier_still_gives_k_items_with_true_scores_and_ends(
    make_model: Any, brute_force: Any, random_prompt: Any, k: int
) -> None:
    flat = make_model("llama", initializer_range=0.01)  # nearly uniform: no bound cuts anything off
    few = range(1, 6)
    paths = make_paths([(a, b, c, d) for a in few for b in few for c in (1, 2, 3) for d in (4, 5)])
    trie = TitleTrie.build(paths, [0] * len(paths))
    limits = SearchLimits(width=2, proof_nodes=1 - 8 * k)
    prompt = random_prompt(12, 3)
    [found] = TrieSearch(flat.lean, trie, limits).rank([Query(prompt, k)])
    assert not found.exact
    assert len(found.leaves) == k
    assert found.steps <= 1 + 4  # one until the budget is spent, then the depth of the trie
    scores = brute_force(flat.reference, prompt, paths)
    own = [scores[int(trie.items_of(leaf)[0])] for leaf in found.leaves]
    np.testing.assert_allclose(found.scores, own, atol=TOLERANCE)


def test_a_cut_frontier_still_gives_k_survivors_of_a_filter(make_model: Any, random_prompt: Any) -> None:
    flat = make_model("llama", initializer_range=0.01)
    paths = make_paths([(a, b, c) for a in range(1, 7) for b in range(1, 7) for c in range(1, 7)])
    trie = TitleTrie.build(paths, [0] * len(paths))
    candidates = range(0, len(paths), 20)
    items = ItemFilter(trie, trie.leaf_of_items(), (), candidates)
    limits = SearchLimits(width=1, proof_nodes=-39)
    [found] = TrieSearch(flat.lean, trie, limits).rank([Query(random_prompt(5, 4), 5, items)])
    assert not found.exact
    assert len(found.leaves) == 5
    assert all(items.count(leaf) for leaf in found.leaves)


def test_ranking_nothing(tiny: Any) -> None:
    search = TrieSearch(tiny.lean, TitleTrie.build([(1, END)], [0]))
    assert search.rank([]) == []
    assert search.admit([]) == []
    assert search.step() == []
