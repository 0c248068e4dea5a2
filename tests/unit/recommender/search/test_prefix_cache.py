"""What is remembered is what was kept, the longest prefix of it, within the bound."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.search.frontier import Query
from recommender.search.prefix_cache import BLOCK, PrefixCache
from recommender.search.search import TrieSearch
from recommender.trie import TitleTrie

COLUMNS = 64
Prompt = tuple[int, ...]
# Two tokens and repeats of whole blocks: shared prefixes are common.
prompts = st.lists(st.sampled_from([(1,) * BLOCK, (2,) * BLOCK, (1, 2), (2,)]), min_size=1, max_size=6).map(
    lambda parts: tuple(token for part in parts for token in part)
)


class Kept:
    """A cache beside a plain list of every prefix that it was given."""

    def __init__(self, tiny: Any, blocks: int) -> None:
        self.architecture = tiny.lean.architecture
        self.slot_shape = (2 * self.architecture.num_hidden_layers, self.architecture.num_key_value_heads)
        block_bytes = self.slot(())[..., :BLOCK, :].nbytes
        self.cache = PrefixCache(self.architecture, torch.float32, blocks * block_bytes)
        self.bound = blocks * block_bytes
        self.given: set[Prompt] = set()

    def slot(self, prompt: Prompt) -> torch.Tensor:
        """Every column holds a number that its whole prefix decides."""
        slot = torch.zeros(*self.slot_shape, COLUMNS, self.architecture.head_dim)
        for column in range(len(prompt)):
            slot[:, :, column] = hash(prompt[: column + 1]) % 10_007
        return slot

    def keep(self, prompt: Prompt) -> None:
        self.cache.keep(prompt, self.slot(prompt))
        whole = range(BLOCK, len(prompt) + 1, BLOCK)
        self.given |= {prompt[:end] for end in whole}

    def restore(self, prompt: Prompt) -> int:
        slot = torch.full((*self.slot_shape, COLUMNS, self.architecture.head_dim), -1.0)
        length = self.cache.restore(prompt, slot)
        assert torch.equal(slot[:, :, :length], self.slot(prompt)[:, :, :length])
        assert (slot[:, :, length:] == -1).all()
        return length

    def longest(self, prompt: Prompt) -> int:
        ends = range(0, len(prompt), BLOCK)  # the last token is left to read
        return max(end for end in ends if end == 0 or prompt[:end] in self.given)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(kept=st.lists(prompts, max_size=8), asked=st.lists(prompts, max_size=4))
def test_with_room_the_longest_prefix_comes_back(
    tiny: Any, kept: list[Prompt], asked: list[Prompt]
) -> None:
    remembered = Kept(tiny, blocks=100)
    for prompt in kept:
        remembered.keep(prompt)
    for prompt in (*kept, *asked):
        assert remembered.restore(prompt) == remembered.longest(prompt)
    assert remembered.cache.nbytes == len(remembered.given) * remembered.bound // 100


@settings(deadline=None, derandomize=True, max_examples=100)
@given(kept=st.lists(prompts, max_size=12), blocks=st.integers(0, 5))
def test_without_room_what_comes_back_is_right_and_the_bound_holds(
    tiny: Any, kept: list[Prompt], blocks: int
) -> None:
    remembered = Kept(tiny, blocks)
    for prompt in kept:
        remembered.keep(prompt)
        assert remembered.cache.nbytes <= remembered.bound
        fits = min(blocks, (len(prompt) - 1) // BLOCK)
        assert remembered.restore(prompt) == fits * BLOCK  # the newest is remembered as far as it fits


def test_what_was_not_met_for_longest_goes_and_the_beginning_stays(tiny: Any) -> None:
    remembered = Kept(tiny, blocks=3)
    start = (9,) * BLOCK
    one, two, three = ((*start, *(token,) * BLOCK, 0) for token in (1, 2, 3))
    remembered.keep(one)
    remembered.keep(two)
    assert remembered.restore(one) == 2 * BLOCK  # met again, so the other one is older
    remembered.keep(three)
    assert [remembered.restore(prompt) for prompt in (one, two, three)] == [
        2 * BLOCK,
        BLOCK,
        2 * BLOCK,
    ]


@pytest.mark.parametrize(("blocks", "remembered"), [(0, [0, 0, 0, 0]), (1000, [0, 24, 32, 32])])
def test_a_search_that_remembers_answers_alike(
    tiny: Any, random_prompt: Any, blocks: int, remembered: list[int]
) -> None:
    """Returning users, whose prompts grow by a title of four tokens."""
    paths = [(a, b, c, 0) for a in (1, 2, 3) for b in (1, 2, 4) for c in (4, 5)]
    trie = TitleTrie.build(paths, [0] * len(paths))
    remembering = TrieSearch(tiny.lean, trie, prefix_cache_bytes=blocks * Kept(tiny, 1).bound)
    plain = TrieSearch(tiny.lean, trie)
    users = [random_prompt(30, seed) for seed in range(4)]
    for turn, cached in enumerate(remembered):
        queries = [Query(prompt, k=5) for prompt in users]
        for found, wanted in zip(remembering.rank(queries, 3), plain.rank(queries, 3), strict=True):
            assert found.leaves == wanted.leaves
            assert found.scores == pytest.approx(wanted.scores, abs=1e-5)
            assert found.cached_tokens == cached
        users = [(*prompt, *paths[turn]) for prompt in users]
    assert plain.prefixes.nbytes == 0
    assert (remembering.prefixes.nbytes > 0) == (blocks > 0)
