import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recommender.catalogue import Catalogue, normalise_title
from recommender.errors import CatalogueError


@pytest.mark.parametrize(
    ("title", "normal"),
    [
        ("  Half-Life \t 2\n", "Half-Life 2"),
        ("a\x00b\x7fc", "a b c"),
        ("Pokémon", "Pok\u00e9mon"),
        ("one\u2028two\u00a0three", "one two three"),
        ("lone\ud800surrogate", "lone surrogate"),
        ("\n\x00 ", ""),
    ],
)
def test_normalise_title(title: str, normal: str) -> None:
    assert normalise_title(title) == normal


def test_controls_and_surrogates_are_the_categories_that_go() -> None:
    characters = [chr(code) for code in range(0x10000) if unicodedata.category(chr(code)) in ("Cc", "Cs")]
    assert normalise_title("a" + "b".join(characters) + "c") == " ".join(
        ["a", *["b"] * (len(characters) - 1), "c"]
    )


@settings(deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=())))
def test_a_normalised_title_is_one_encodable_line_and_stays_as_it_is(title: str) -> None:
    normal = normalise_title(title)
    assert normalise_title(normal) == normal
    assert normal.splitlines() in ([normal], [])
    assert "\n" not in normal
    assert unicodedata.is_normalized("NFC", normal)
    normal.encode()


def test_create_normalises_the_titles() -> None:
    assert Catalogue.create(["a"], [" x  y "], [1]).titles == ("x y",)


@pytest.mark.parametrize(
    ("ids", "titles", "popularity", "message"),
    [
        (["a"], ["x", "y"], [1], "1 ids, 2 titles, 1 popularities"),
        (["a", ""], ["x", "y"], [1, 1], "item 2 .* lacks an id or a title"),
        (["a", "b"], ["x", " \t"], [1, 1], "item 2 .'b'. lacks"),
        (["a", "b", "a"], ["x", "y", "z"], [1, 1, 1], "item 3: the id 'a' stands twice"),
    ],
)
def test_create_refuses(ids: list[str], titles: list[str], popularity: list[int], message: str) -> None:
    with pytest.raises(CatalogueError, match=message):
        Catalogue.create(ids, titles, popularity)


def test_index_of(catalogue: Catalogue) -> None:
    assert [catalogue.index_of(item_id) for item_id in ("g0", "g11", "unknown", "")] == [0, 11, None, None]


def test_by_popularity_leaves_equals_in_order() -> None:
    assert Catalogue.create("abcd", "wxyz", [1, 3, 1, 3]).by_popularity == (1, 3, 0, 2)


@pytest.fixture(scope="module")
def shelf() -> Catalogue:
    titles = ["Superstar", "Star Wars", "A Star", "STAR", "Starfield", "star", "Moon"]
    return Catalogue.create([str(i) for i in range(7)], titles, [9, 1, 8, 1, 3, 2, 99])


def test_search_puts_exact_before_start_before_word_before_rest(shelf: Catalogue) -> None:
    found = [shelf.titles[i] for i in shelf.search("Star", 10)]
    assert found == ["star", "STAR", "Starfield", "Star Wars", "A Star", "Superstar"]


def test_search_cuts_after_the_limit(shelf: Catalogue) -> None:
    assert [shelf.titles[i] for i in shelf.search("star", 3)] == ["star", "STAR", "Starfield"]


def test_search_folds_case_and_white_space(shelf: Catalogue) -> None:
    assert [shelf.titles[i] for i in shelf.search("  sTAR   wARS ", 10)] == ["Star Wars"]


def test_search_for_nothing_lists_the_popular(shelf: Catalogue) -> None:
    assert shelf.search("  ", 2) == [6, 0]


def test_search_for_an_unknown_word_is_empty(shelf: Catalogue) -> None:
    assert shelf.search("nebula", 5) == []


@pytest.mark.parametrize("size", [0, 12])
def test_parquet_round_trip(tmp_path: Path, catalogue: Catalogue, size: int) -> None:
    part = Catalogue(catalogue.item_ids[:size], catalogue.titles[:size], catalogue.popularity[:size])
    part.to_parquet(tmp_path / "items.parquet")
    assert Catalogue.from_parquet(tmp_path / "items.parquet") == part


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": ["a"], "popularity": [1]}, "title"),
        ({"item_id": ["a"], "title": [None], "popularity": [1]}, "column title has nulls"),
        ({"item_id": ["a"], "title": ["x"], "popularity": ["many"]}, "not a catalogue"),
        ({"item_id": ["a", "a"], "title": ["x", "y"], "popularity": [1, 1]}, "stands twice"),
    ],
)
def test_from_parquet_refuses(tmp_path: Path, columns: dict[str, list[object]], message: str) -> None:
    file = tmp_path / "items.parquet"
    pq.write_table(pa.table(columns), file)
    with pytest.raises(CatalogueError, match=message):
        Catalogue.from_parquet(file)


def test_from_parquet_refuses_another_format(tmp_path: Path) -> None:
    file = tmp_path / "items.parquet"
    file.write_text("item_id,title\n")
    with pytest.raises(CatalogueError, match=r"items\.parquet: not a catalogue"):
        Catalogue.from_parquet(file)
    with pytest.raises(CatalogueError, match="absent"):
        Catalogue.from_parquet(tmp_path / "absent")
