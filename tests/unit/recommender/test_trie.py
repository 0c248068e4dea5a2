from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from recommender.errors import CatalogueError
from recommender.trie import TitleTrie

END = 0
SETTINGS = settings(deadline=None, derandomize=True, max_examples=200)

# Few tokens and short titles, so that prefixes, forks in the middle and duplicates are common.
titles = st.lists(st.lists(st.integers(1, 4), max_size=5), max_size=30)


def paths_of(drawn: list[list[int]]) -> list[tuple[int, ...]]:
    return [(*title, END) for title in drawn]


def walk(trie: TitleTrie) -> dict[tuple[int, ...], int]:
    """Every path from the root to a leaf, by the children and labels alone."""
    found = {}
    stack = [(0, ())]
    while stack:
        node, path = stack.pop()
        path = (*path, *trie.label(node).tolist())
        children = trie.children(node)
        if node and not children:
            assert trie.leaf_stop[node] == trie.leaf_start[node] + 1
            found[path] = int(trie.leaf_start[node])
        stack.extend((child, path) for child in children)
    return found


@SETTINGS
@given(titles)
def test_walking_it_gives_each_distinct_path_once(drawn: list[list[int]]) -> None:
    paths = paths_of(drawn)
    trie = TitleTrie.build(paths, [0] * len(paths))
    found = walk(trie)
    assert set(found) == set(paths)
    assert sorted(found.values()) == list(range(trie.leaf_count))


@SETTINGS
@given(titles)
def test_every_node_but_the_root_is_a_decision(drawn: list[list[int]]) -> None:
    trie = TitleTrie.build(paths_of(drawn), [0] * len(drawn))
    assert len(trie.label(0)) == 0
    for node in range(trie.node_count):
        children = trie.children(node)
        assert node == 0 or len(children) != 1
        first_tokens = [int(trie.label(child)[0]) for child in children]
        assert len(set(first_tokens)) == len(first_tokens)
    edges = [child for node in range(trie.node_count) for child in trie.children(node)]
    assert edges == list(range(1, trie.node_count))


@SETTINGS
@given(titles)
def test_the_leaves_below_a_node_are_its_childrens_intervals_end_to_end(drawn: list[list[int]]) -> None:
    trie = TitleTrie.build(paths_of(drawn), [0] * len(drawn))
    assert (trie.leaf_start[0], trie.leaf_stop[0]) == (0, trie.leaf_count)
    for node in range(trie.node_count):
        children = list(trie.children(node))
        if children:
            assert trie.leaf_start[children[0]] == trie.leaf_start[node]
            assert trie.leaf_stop[children[-1]] == trie.leaf_stop[node]
        for left, right in pairwise(children):
            assert trie.leaf_stop[left] == trie.leaf_start[right]


@SETTINGS
@given(titles, st.data())
def test_leaves_bear_their_items_by_popularity(drawn: list[list[int]], data: st.DataObject) -> None:
    paths = paths_of(drawn)
    popularity = data.draw(st.lists(st.integers(0, 3), min_size=len(paths), max_size=len(paths)))
    trie = TitleTrie.build(paths, popularity)
    leaf_of_items = trie.leaf_of_items()
    for leaf in range(trie.leaf_count):
        bearers = [item for item, path in enumerate(paths) if path == trie.path(leaf)]
        bearers.sort(key=lambda item: (-popularity[item], item))
        assert trie.items_of(leaf).tolist() == bearers
        assert {int(leaf_of_items[item]) for item in bearers} == {leaf}


@SETTINGS
@given(titles)
def test_path_is_what_was_given(drawn: list[list[int]]) -> None:
    paths = paths_of(drawn)
    trie = TitleTrie.build(paths, [0] * len(paths))
    assert [trie.path(int(leaf)) for leaf in trie.leaf_of_items()] == paths


def test_a_fork_above_an_earlier_fork() -> None:
    # Sorted, 1 2 3 | 1 2 4 | 1 5 | 6: the branch after 1 is only known once 1 2 is closed.
    paths = [(1, 2, 3, END), (1, 2, 4, END), (1, 5, END), (6, END)]
    trie = TitleTrie.build(paths, [0] * 4)
    assert [trie.label(node).tolist() for node in range(trie.node_count)] == [
        [], [1], [6, END], [2], [5, END], [3, END], [4, END],
    ]  # fmt: skip
    assert trie.leaf_stop.tolist() == [4, 3, 4, 2, 3, 1, 2]
    assert trie.leaf_start.tolist() == [0, 0, 3, 0, 2, 0, 1]


def test_an_empty_catalogue_is_a_root_alone() -> None:
    trie = TitleTrie.build([], [])
    assert (trie.node_count, trie.leaf_count) == (1, 0)
    assert list(trie.children(0)) == []
    assert trie.leaf_of_items().tolist() == []


def test_one_item_is_one_edge() -> None:
    trie = TitleTrie.build([(3, 2, END)], [1])
    assert (trie.node_count, trie.leaf_count) == (2, 1)
    assert trie.label(1).tolist() == [3, 2, END]


@pytest.mark.parametrize(
    ("paths", "longer", "shorter"),
    [
        ([(1, 2), (1, 2, END)], "item 1", "item 0"),
        ([(1, 2, END), (2,), (1,)], "item 0", "item 2"),
        ([(1,), (1,), (1, 5)], "item 2", "item 1"),
    ],
)
def test_a_path_that_goes_on_past_another_is_refused(
    paths: list[tuple[int, ...]], longer: str, shorter: str
) -> None:
    with pytest.raises(CatalogueError, match=rf"{longer}: .* past the end of {shorter}'s.*separator"):
        TitleTrie.build(paths, [0] * len(paths))


def test_an_item_without_tokens_is_refused() -> None:
    with pytest.raises(CatalogueError, match="item 1 has no tokens"):
        TitleTrie.build([(1,), ()], [0, 0])


@pytest.mark.parametrize("paths", [[], [(1, END)], [(1, END), (1, 2, END), (3, END), (1, END)]])
def test_saved_and_loaded_it_is_the_same(tmp_path: Path, paths: list[tuple[int, ...]]) -> None:
    trie = TitleTrie.build(paths, range(len(paths)))
    trie.save(tmp_path / "trie.safetensors")
    loaded = TitleTrie.load(tmp_path / "trie.safetensors")
    assert vars(loaded).keys() == vars(trie).keys()
    for name, array in vars(trie).items():
        assert getattr(loaded, name).dtype == np.int32
        assert getattr(loaded, name).tolist() == array.tolist(), name
    assert loaded.nbytes == trie.nbytes > 0


def test_a_file_that_is_no_trie_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "trie.safetensors"
    damaged.write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(CatalogueError, match="not a trie"):
        TitleTrie.load(damaged)
    with pytest.raises(CatalogueError, match="absent"):
        TitleTrie.load(tmp_path / "absent")


def test_a_trie_without_one_of_its_arrays_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "trie.safetensors"
    save_file({"items": np.zeros(1, np.int32)}, file)
    with pytest.raises(CatalogueError, match="child_offsets"):
        TitleTrie.load(file)
