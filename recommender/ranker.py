"""One model with its catalogue: from a history of titles to ranked items.

It joins the prompt, the trie and the search, and is used wherever something is ranked: evaluation,
export (the reference answers) and the service's native engine.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from recommender.artifact import Artifact
from recommender.catalogue import Catalogue, normalise_title
from recommender.prompt import PromptEncoder
from recommender.search.filters import ItemFilter
from recommender.search.frontier import Found, Query, SearchLimits
from recommender.search.native.transformer import fastest
from recommender.search.search import TrieSearch
from recommender.search.transformer import LeanTransformer
from recommender.trie import TitleTrie


@dataclass(frozen=True)
class RankedItem:
    """An item's index in the catalogue and the natural logarithm of its title's probability."""

    index: int
    score: float


class TitleIndex:
    """Catalogue, prompt encoder and trie: what ranking needs of a checkpoint besides its model."""

    def __init__(self, catalogue: Catalogue, encoder: PromptEncoder, trie: TitleTrie) -> None:
        self.catalogue = catalogue
        self.encoder = encoder
        self.trie = trie
        self.leaf_of_items = trie.leaf_of_items()

    def prompt(self, history: Sequence[int | str]) -> tuple[int, ...]:
        """The prompt for item indices and free titles, oldest first, already cut to their window."""
        return tuple(self.encoder.encode_prompt([self._title_tokens(entry) for entry in history]))

    def filter(
        self, exclude: Collection[int] = (), candidates: Collection[int] | None = None
    ) -> ItemFilter | None:
        """The filter for these item indices; None when everything may come out."""
        if not exclude and candidates is None:
            return None
        return ItemFilter(self.trie, self.leaf_of_items, exclude, candidates)

    def same_title(self, items: Collection[int]) -> set[int]:
        """The given items and all others that bear one of their titles."""
        return {int(other) for item in items for other in self.trie.items_of(self.leaf_of_items[item])}

    def items(self, found: Found, query: Query) -> list[RankedItem]:
        """The query's k best items: leaves in order, within one the more popular item first."""
        ranked: list[RankedItem] = []
        for leaf, score in zip(found.leaves, found.scores, strict=True):
            survivors = query.items.survivors(leaf) if query.items else self.trie.items_of(leaf).tolist()
            ranked.extend(RankedItem(item, score) for item in survivors)
        return ranked[: query.k]

    def _title_tokens(self, entry: int | str) -> Sequence[int]:
        if isinstance(entry, str):
            return self.encoder.encode_title(normalise_title(entry))
        return self.trie.path(int(self.leaf_of_items[entry]))


class Ranker(TitleIndex):
    """The titles together with a model and its search."""

    def __init__(
        self,
        catalogue: Catalogue,
        encoder: PromptEncoder,
        trie: TitleTrie,
        model: LeanTransformer,
        limits: SearchLimits | None = None,
        prefix_cache_bytes: int = 0,
    ) -> None:
        super().__init__(catalogue, encoder, trie)
        self.search = TrieSearch(fastest(model), trie, limits, prefix_cache_bytes)

    @classmethod
    def from_artifact(
        cls,
        artifact: Artifact,
        dtype: torch.dtype = torch.float32,
        limits: SearchLimits | None = None,
        prefix_cache_bytes: int = 0,
    ) -> Ranker:
        """Loads everything the artifact holds; the caller verifies it first."""
        return cls(
            artifact.load_catalogue(),
            artifact.load_encoder(),
            artifact.load_trie(),
            artifact.load_transformer(dtype),
            limits,
            prefix_cache_bytes,
        )
