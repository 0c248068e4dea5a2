"""Catalogues of any size whose tries a search cannot tell from a real catalogue's.

A made title is a walk over the real titles' words: each word follows the one before it as it does in a
real title or, with the probability `novelty`, is any word (or the end). The first one begins a real title,
too, or else, as often as a new title begins with a token that none has begun with before (Good and Turing's
estimate), it is one of as many words with such tokens as are estimated to be yet unseen: words of the real
titles as long as there are any, then those in other cases, then their ends. The real items come first and
stay what they are, so that real histories have theirs; made ones, all distinct, fill up to the size.

Two statistics decide what a search costs: the *distinct first tokens* (the root's children) and the
*decisions per title* (nodes with a choice on the way to a leaf). Novelty is chosen so that the decisions
are what the real catalogue would have, were it that large. What that is, `Growth` says:

- Decisions grow with the logarithm of the size, as the depth of a trie of random keys does (Szpankowski,
  *Average Case Analysis of Algorithms on Sequences*, 2001): a straight line over the logarithm, through the
  whole catalogue, its slope from random halves, quarters and eighths.
- Distinct first tokens grow towards the Chao1 estimate of all there are (Chao et al., *Rarefaction and
  extrapolation with Hill numbers*, Ecological Monographs 84, 2014, table 1, q = 0).

How far that can be trusted shows where the truth is known: `TitleMaker.foretold` is the whole real
catalogue as seen from a random quarter of it.

A model knows the first tokens that it was trained among. What it says of any other is worth nothing, and
usually far too much: titles with such a first token would fill every answer. `TitleMaker.kin` names, for
each of them, one that begins a single real title, for a model to treat them alike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recommender.catalogue import Catalogue
from recommender.errors import CatalogueError
from recommender.prompt import PromptEncoder
from recommender.trie import TitleTrie

# M walks made at a time, W distinct words (0: the end), B pairs of neighbouring words, F fresh words.
_MAX_WORDS = 20
_SHARES = (8, 4, 2, 1)
_DRAWS = 5
_HALVINGS = 6
# Above this size the novelty that suits it is kept: what suits changes slowly, and trying takes minutes.
_TRIED_SIZE = 250_000
_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shape:
    """What a catalogue's trie looks like to a search."""

    titles: int
    first_tokens: float
    decisions: float

    def deviation(self, wanted: Shape) -> float:
        """The larger of the two statistics' relative differences."""
        return max(
            abs(self.first_tokens / wanted.first_tokens - 1), abs(self.decisions / wanted.decisions - 1)
        )


def shape_of(trie: TitleTrie) -> Shape:
    """First tokens, and the mean number of nodes with a choice above a leaf."""
    level, total, first, stop = 0, 0, 0, 1
    while first < stop:
        childless = trie.child_offsets[first:stop] == trie.child_offsets[first + 1 : stop + 1]
        total += level * int(childless.sum())
        first, stop = int(trie.child_offsets[first]) + 1, int(trie.child_offsets[stop]) + 1
        level += 1
    return Shape(trie.leaf_count, len(trie.children(0)), total / trie.leaf_count)


@dataclass(frozen=True)
class Growth:
    """How the statistics of one catalogue depend on its size.

    Attributes:
        parts: shapes of random parts, the whole last.
        counts: how many of the whole's titles begin with each first token.
    """

    parts: tuple[Shape, ...]
    counts: tuple[int, ...]

    def at(self, titles: int) -> Shape:
        """What is expected of more titles of the same kind; see the top of the file."""
        return Shape(titles, self._first_tokens(titles), self._decisions(titles))

    def _decisions(self, titles: int) -> float:
        whole = self.parts[-1]
        doublings = np.log2([part.titles / whole.titles for part in self.parts])
        rises = np.array([part.decisions - whole.decisions for part in self.parts])
        slope = doublings @ rises / (doublings @ doublings)
        return float(whole.decisions + slope * np.log2(titles / whole.titles))

    @property
    def unseen(self) -> float:
        """How many first tokens there are besides (Chao1)."""
        once, twice = self.counts.count(1), self.counts.count(2)
        return once**2 / (2 * twice) if twice else once * (once - 1) / 2

    @property
    def fresh(self) -> float:
        """How many of the next titles begin with one of these (Good and Turing)."""
        return self.counts.count(1) / sum(self.counts)

    def _first_tokens(self, titles: int) -> float:
        seen, once, unseen = len(self.counts), self.counts.count(1), self.unseen
        if not unseen:
            return float(seen)
        size = sum(self.counts)
        return seen + unseen * (1 - (1 - once / (size * unseen + once)) ** (titles - size))


class TitleMaker:
    """Makes catalogues that begin with a real one.

    Args:
        real: the model of what is made.
        encoder: turns titles into the tokens that count.
        seed: the same seed makes the same titles.

    Attributes:
        growth: what the real catalogue would be at other sizes.
        kin: first tokens that no real title has, and for each a rare one that one has.
    """

    growth: Growth
    kin: dict[int, int]

    def __init__(self, real: Catalogue, encoder: PromptEncoder, seed: int = 0) -> None:
        self._real = real
        self._encoder = encoder
        self._seed = seed
        self._titles = tuple(dict.fromkeys(real.titles))
        numbers: dict[str, int] = {"": 0}
        walks = [[numbers.setdefault(word, len(numbers)) for word in t.split()] for t in self._titles]
        self._words = tuple(numbers)
        before_B = np.concatenate([[0, *walk] for walk in walks])
        self._after_B = np.concatenate([[*walk, 0] for walk in walks])
        # The words that follow word w stand together, from starts[w] to stops[w].
        self._followers_B = self._after_B[np.argsort(before_B, kind="stable")]
        offsets = np.concatenate(([0], np.cumsum(np.bincount(before_B, minlength=len(numbers)))))
        self.growth = self._growth_of(self._titles)
        fresh = self._fresh_words(round(self.growth.unseen))
        self._fresh_F = len(self._words) + np.arange(len(fresh))
        self._words += tuple(fresh)
        self.kin = self._kin_of(tuple(fresh))
        like_W = np.concatenate((np.arange(len(numbers)), np.array([*fresh.values()], np.int64)))
        self._starts_W, self._stops_W = offsets[like_W], offsets[like_W + 1]

    def foretold(self) -> Shape:
        """The whole real catalogue as a random quarter of it lets one expect."""
        quarter = _part(self._titles, 4, np.random.default_rng(self._seed))
        return self._growth_of(quarter).at(len(self._titles))

    def make(self, size: int) -> tuple[Catalogue, float]:
        """The real items and made ones after them, `size` in all; and the novelty that was chosen.

        Raises:
            CatalogueError: `size` is smaller than the real catalogue.
        """
        made = size - len(self._real)
        if made < 0:
            raise CatalogueError(f"{size} items are fewer than the real {len(self._real)}; ask for more")
        novelty = self._suiting(self._titles, min(size, _TRIED_SIZE) - len(self._real))
        catalogue = Catalogue(
            (*self._real.item_ids, *(f"made-{number}" for number in range(made))),
            (*self._real.titles, *self.walks(made, novelty, self._titles)),
            (*self._real.popularity, *([0] * made)),
        )
        return catalogue, novelty

    def alone(self) -> Shape:
        """As many made titles as there are real ones, and no real one among those: what walks are worth."""
        size = len(self._titles)
        return self.shape(self.walks(size, self._suiting((), size), ()))

    def shape(self, titles: Sequence[str]) -> Shape:
        """Encodes the titles and looks at their trie."""
        paths = self._encoder.encode_titles(titles)
        return shape_of(TitleTrie.build(paths, [0] * len(paths)))

    def walks(self, count: int, novelty: float, taken: Collection[str]) -> list[str]:
        """So many distinct made titles, none of them taken."""
        random = np.random.default_rng(self._seed)
        made = dict.fromkeys(taken)
        while len(made) < len(taken) + count:
            missing = len(taken) + count - len(made)
            for walk in self._walks(missing + missing // 4 + 16, novelty, random).tolist():
                made[" ".join(self._words[word] for word in walk if word)] = None
                if len(made) == len(taken) + count:
                    break
        return list(made)[len(taken) :]

    def _walks(self, size: int, novelty: float, random: np.random.Generator) -> _Ints:
        """(M, at most 20) word numbers, all 0 behind the end. The first follows nothing, or is fresh."""
        words_M: _Ints = np.zeros(size, np.int64)
        columns: list[_Ints] = []
        while len(columns) < _MAX_WORDS:
            start_M, stop_M = self._starts_W[words_M], self._stops_W[words_M]
            next_M = self._followers_B[
                start_M + (random.random(size) * (stop_M - start_M)).astype(np.int64)
            ]
            if not columns and len(self._fresh_F):
                fresh = np.flatnonzero(random.random(size) < self.growth.fresh)
                next_M[fresh] = random.choice(self._fresh_F, len(fresh))
            if columns:
                strays = np.flatnonzero(random.random(size) < novelty)
                next_M[strays] = random.choice(self._after_B, len(strays))
                next_M[words_M == 0] = 0
            columns.append(next_M)
            words_M = next_M
        return np.stack(columns, axis=1)

    def _fresh_words(self, count: int) -> dict[str, int]:
        """So many words, or as many as there are, whose first tokens differ and begin no real title.

        Each with the number of the word that it stems from, and is followed like.
        """
        begun = {path[0] for path in self._encoder.encode_titles(self._titles)}
        order = 1 + np.random.default_rng(self._seed).permutation(len(self._words) - 1)
        fresh: dict[str, int] = {}
        for vary in (_itself, _in_other_cases, _ends):
            stems = [(form, word) for word in order.tolist() for form in vary(self._words[word])]
            paths = self._encoder.encode_titles([form for form, _ in stems])
            for (form, word), path in zip(stems, paths, strict=True):
                if len(fresh) == count:
                    return fresh
                if path[0] not in begun:
                    begun.add(path[0])
                    fresh[form] = word
        return fresh

    def _kin_of(self, fresh: Sequence[str]) -> dict[int, int]:
        """For the first token of each fresh word a random one of those that begin a single real title."""
        if not fresh:
            return {}
        first = [path[0] for path in self._encoder.encode_titles(self._titles)]
        tokens, counts = np.unique(first, return_counts=True)
        drawn = np.random.default_rng(self._seed).choice(tokens[counts == 1], len(fresh)).tolist()
        return dict(zip((path[0] for path in self._encoder.encode_titles(fresh)), drawn, strict=True))

    def _suiting(self, taken: Sequence[str], count: int) -> float:
        """The novelty with which the titles, made ones included, have the decisions that are expected."""
        wanted = self.growth.at(len(taken) + count).decisions
        low, high = 0.0, 1.0  # the more novelty, the sooner titles part
        for _ in range(_HALVINGS):
            novelty = (low + high) / 2
            if self.shape([*taken, *self.walks(count, novelty, taken)]).decisions > wanted:
                low = novelty
            else:
                high = novelty
        return high

    def _growth_of(self, titles: Sequence[str]) -> Growth:
        random = np.random.default_rng(self._seed)
        parts = []
        for share in _SHARES:
            drawn = [self.shape(_part(titles, share, random)) for _ in range(_DRAWS if share > 1 else 1)]
            means = np.mean([(one.titles, one.first_tokens, one.decisions) for one in drawn], axis=0)
            parts.append(Shape(int(means[0]), float(means[1]), float(means[2])))
        first = [path[0] for path in self._encoder.encode_titles(titles)]
        return Growth(tuple(parts), tuple(np.unique(first, return_counts=True)[1].tolist()))


def _itself(word: str) -> list[str]:
    return [word]


def _in_other_cases(word: str) -> list[str]:
    return [word.lower(), word.upper(), word.capitalize()]


def _ends(word: str) -> list[str]:
    return [word[start:] for start in range(1, len(word))]


def _part(titles: Sequence[str], share: int, random: np.random.Generator) -> list[str]:
    """One in `share` of the titles, at random."""
    chosen = random.permutation(len(titles))[: max(1, len(titles) // share)]
    return [titles[number] for number in chosen]
