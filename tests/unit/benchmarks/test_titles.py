"""Made catalogues: repeatable, distinct, and shaped as was asked for."""

import numpy as np
import pytest
from served_artifact import SERVED_TITLES
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.titles import Growth, Shape, TitleMaker, shape_of
from recommender.catalogue import Catalogue
from recommender.errors import CatalogueError
from recommender.prompt import PromptEncoder, PromptTemplate
from recommender.trie import TitleTrie


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    """Every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PromptEncoder(PromptTemplate(), tokenizer)


@pytest.fixture(scope="module")
def real() -> Catalogue:
    """Four hundred titles in which words follow each other by habit."""
    random = np.random.default_rng(1)
    words = [f"{letter}{number}" for letter in "abcdefgh" for number in range(5)]
    titles: dict[str, None] = {}
    while len(titles) < 400:
        at = int(random.zipf(1.5)) % len(words)
        title = [words[at]]
        while random.random() < 0.7:
            at = (at * 7 + int(random.integers(4))) % len(words)
            title.append(words[at])
        titles[" ".join(title)] = None
    return Catalogue.create([f"r{at}" for at in range(400)], list(titles), [1] * 400)


def test_shape_counts_first_tokens_and_decisions() -> None:
    paths = [(1, 2, 9), (1, 3, 4, 9), (1, 3, 5, 9), (2, 2, 9), (3, 9), (3, 9)]
    # Decisions above the leaves: 2, 3, 3, 1, 1; the last two items share one.
    assert shape_of(TitleTrie.build(paths, [0] * 6)) == Shape(5, 3, 2.0)


def test_the_real_items_come_first_and_all_titles_differ(real: Catalogue, encoder: PromptEncoder) -> None:
    made, _ = TitleMaker(real, encoder).make(2000)
    assert made.item_ids[:400] == real.item_ids
    assert made.titles[:400] == real.titles
    assert made.popularity[:400] == real.popularity
    assert len(set(made.titles)) == 2000
    assert Catalogue.create(made.item_ids, made.titles, made.popularity) == made
    assert {word for title in made.titles for word in title.split()} == {
        word for title in real.titles for word in title.split()
    }


def test_the_seed_decides_and_nothing_else(real: Catalogue, encoder: PromptEncoder) -> None:
    one, again, other = (TitleMaker(real, encoder, seed).make(900)[0] for seed in (3, 3, 4))
    assert one == again
    assert one != other


def test_both_statistics_are_met_within_a_tenth(real: Catalogue, encoder: PromptEncoder) -> None:
    maker = TitleMaker(real, encoder)
    assert maker.alone().deviation(maker.growth.parts[-1]) < 0.1
    for size in (1000, 5000):
        titles = maker.make(size)[0].titles
        assert maker.shape(titles).deviation(maker.growth.at(size)) < 0.1


def test_as_many_first_tokens_come_anew_as_the_rare_ones_let_expect(
    real: Catalogue, encoder: PromptEncoder
) -> None:
    rare = ["v1 m1", "w1 n1", "x1 o1", "y1 p1", "z1 q1", "z2 q2"]  # four once and one twice: 16 / 2 unseen
    titles = [*real.titles, *rare]
    catalogue = Catalogue.create([f"r{at}" for at in range(len(titles))], titles, [1] * len(titles))
    maker = TitleMaker(catalogue, encoder)
    begun = {title[0] for title in titles}
    made = {title[0] for title in maker.make(20_000)[0].titles}
    assert maker.growth.unseen == 8
    # m, n, o, p and q begin words and no real title; three more come of other cases.
    fresh = made - begun
    assert len(fresh) == 8
    assert set("mnopq") < fresh
    # A model is to treat each as one that begins a single real title.
    token = {letter: encoder.encode_titles([letter])[0][0] for letter in fresh | set("vwxyz")}
    assert maker.kin.keys() == {token[letter] for letter in fresh}
    assert set(maker.kin.values()) <= {token[letter] for letter in "vwxy"}  # z begins two


def test_when_words_run_out_their_ends_begin_titles_and_are_followed_like_them(
    encoder: PromptEncoder,
) -> None:
    # 1 2, 3 4 and so on know no case; seven begin with what nothing else does, so 21 are expected unseen.
    titles = [f"{at}9 {at}8" for at in "1234567"]
    catalogue = Catalogue.create(titles, titles, [1] * len(titles))
    maker = TitleMaker(catalogue, encoder)
    assert maker.growth.unseen == 21
    # The tokens that begin none of them are 8 and 9, at the ends of the words.
    assert {maker._words[word] for word in maker._fresh_F} == {"8", "9"}
    stems = {word: maker._words[word] for word in maker._fresh_F}
    for word, end in stems.items():
        followers = maker._followers_B[maker._starts_W[word] : maker._stops_W[word]]
        expected = "" if end == "8" else "8"
        assert {maker._words[follower][-1:] for follower in followers} == {expected}


def test_a_catalogue_smaller_than_the_real_one_is_refused(encoder: PromptEncoder) -> None:
    titles = list(dict.fromkeys(SERVED_TITLES))
    real = Catalogue.create(titles, titles, [0] * len(titles))
    with pytest.raises(CatalogueError, match="3 items are fewer than the real 29"):
        TitleMaker(real, encoder).make(3)


def test_growth_follows_its_two_laws() -> None:
    parts = (Shape(100, 4, 1.0), Shape(200, 5, 1.5), Shape(400, 6, 2.0))
    growth = Growth(parts, counts=(390, 4, 2, 2, 1, 1))
    # Half a decision a doubling; Chao1: 2² / (2 · 2) = 1 unseen token.
    assert growth.at(1600).decisions == pytest.approx(3.0)
    assert growth.at(400).first_tokens == 6
    assert growth.at(10**9).first_tokens == pytest.approx(7.0)
    assert growth.at(800).first_tokens == pytest.approx(7 - (1 - 2 / 402) ** 400)


def test_what_was_seen_often_hides_nothing() -> None:
    parts = (Shape(2, 1, 1.0), Shape(4, 1, 1.0))
    assert Growth(parts, counts=(4,)).at(1000).first_tokens == 1
