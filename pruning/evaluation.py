"""Measures a model on a prepared data set: nats per title, and ranks over the whole catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from pruning.training.batches import batches_in_order, collate
from pruning.training.decisions import Children, at_decisions
from pruning.training.logits import target_logits
from pruning.training.lora import Trainable, merged_tensors, without_adapters
from pruning.training.windows import UserPacker, Window
from recommender.catalogue import Catalogue
from recommender.dataset import Dataset, Rows
from recommender.prompt import PromptEncoder
from recommender.ranker import Ranker
from recommender.ranking import DEPTH, RankArray, gains, hits
from recommender.search.architecture import Architecture
from recommender.search.frontier import Query
from recommender.search.transformer import LeanTransformer
from recommender.trie import TitleTrie

Progress = Callable[[int, int], None]
"""Told how many of how many rows are done."""


def losses_per_title(
    model: Trainable, windows: Sequence[Window], trie: TitleTrie, tokens: int = 4096
) -> tuple[float, float]:
    """Negative log-likelihood of the windows' target titles, nats per title, from one reading.

    Returns:
        among all strings of tokens, and among the catalogue's titles (what a served score is).
    """
    nats, nats_of_catalogue, titles = 0.0, 0.0, 0
    children, decisions = Children(trie), at_decisions(windows, trie)
    with torch.inference_mode():
        for on_cpu in batches_in_order(windows, tokens):
            batch = on_cpu.to(model.device)
            logits_PV = target_logits(model, batch)
            nats += F.cross_entropy(logits_PV, batch.labels_P, reduction="sum").item()
            forks = collate(decisions, batch.windows).to(model.device)
            assert forks.nodes_P is not None
            logits_DV = logits_PV[torch.searchsorted(batch.places_P(), forks.places_P())]
            log_probs_DV = children.log_probs(logits_DV, forks.nodes_P)
            nats_of_catalogue += F.nll_loss(log_probs_DV, forks.labels_P, reduction="sum").item()
            titles += batch.titles
    return nats / max(1, titles), nats_of_catalogue / max(1, titles)


def lean_transformer(model: Trainable) -> LeanTransformer:
    """The searchable form of a Hugging Face model, with its weights as they are now, on the CPU."""
    plain = without_adapters(model)
    config = {**plain.config.to_dict(), "architectures": [type(plain).__name__]}
    tensors = {name: tensor.cpu() for name, tensor in merged_tensors(model).items()}
    return LeanTransformer(Architecture.from_config(config), tensors, torch.float32)


class RankingTask:
    """The rows of a split, ready to be ranked by any model with the same tokenizer.

    Distinct titles are ranked, nothing is excluded, and a hit is a title match.
    """

    def __init__(self, catalogue: Catalogue, encoder: PromptEncoder, rows: Rows) -> None:
        self._catalogue = catalogue
        self._encoder = encoder
        self.rows = rows
        self.trie = TitleTrie.build(encoder.encode_titles(catalogue.titles), catalogue.popularity)
        self.target_leaves_R = self.trie.leaf_of_items()[rows.targets_R]

    def ranker(self, model: LeanTransformer) -> Ranker:
        return Ranker(self._catalogue, self._encoder, self.trie, model)

    def ranks(self, model: LeanTransformer, progress: Progress | None = None, batch: int = 32) -> RankArray:
        """(R,) the rank of every row's target title among all titles; 0 beyond the metrics' depth."""
        ranker = self.ranker(model)
        ranks_R = np.zeros(len(self.rows), np.int32)
        # Like lengths together: a step is as long as its longest prompt.
        prompts = [ranker.prompt(history) for history in self.rows.histories]
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for begin in range(0, len(order), 8 * batch):
            chosen = order[begin : begin + 8 * batch]
            queries = [Query(prompts[row], DEPTH, distinct_titles=True) for row in chosen]
            for row, found in zip(chosen, ranker.search.rank(queries, batch), strict=True):
                ranks_R[row] = rank_of(int(self.target_leaves_R[row]), found.leaves)
            if progress:
                progress(begin + len(chosen), len(order))
        return ranks_R

    def popularity_of_titles(self) -> npt.NDArray[np.int32]:
        """(L,) how many training interactions have each distinct title."""
        counts_L = np.bincount(self.trie.leaf_of_items(), weights=self._catalogue.popularity)
        return counts_L.astype(np.int32)

    def popularity_ranks(self) -> RankArray:
        """(R,) the same for the list of all titles by their best item's training popularity."""
        popularity = np.asarray(self._catalogue.popularity)
        first, stop = self.trie.item_offsets[:-1], self.trie.item_offsets[1:]
        # A leaf lists its items by popularity, so its first is its best.
        best_L = popularity[self.trie.items[first]] if len(first) else np.zeros(0)
        assert (stop > first).all()
        order = np.lexsort((self.trie.items[first], -best_L))
        rank_L = np.empty(len(order), np.int32)
        rank_L[order] = np.arange(1, len(order) + 1)
        ranks_R = rank_L[self.target_leaves_R]
        return np.where(ranks_R <= DEPTH, ranks_R, 0).astype(np.int32)


@dataclass(frozen=True)
class Measurement:
    """What a model's validation gives.

    Attributes:
        loss: nats per title among all strings of tokens.
        catalogue_loss: nats per title among the catalogue's titles.
        ranks_R: the rank of every sampled row's target; 0 beyond the metrics' depth.
    """

    loss: float
    catalogue_loss: float
    ranks_R: RankArray


class ModelValidation:
    """The figures that drive choices: the loss over all validation windows, ranking over a sample."""

    def __init__(self, dataset: Dataset, encoder: PromptEncoder, sample: int, seed: int) -> None:
        packer = UserPacker(encoder, dataset.catalogue.titles)
        self.windows = packer.held_out(dataset, "valid")
        self._task = RankingTask(dataset.catalogue, encoder, dataset.rows("valid").sample(sample, seed))

    @property
    def user_ids(self) -> tuple[str, ...]:
        """Whose the sampled rows are."""
        return self._task.rows.user_ids

    @property
    def trie(self) -> TitleTrie:
        """The catalogue's titles in the model's tokens."""
        return self._task.trie

    def measure(self, model: Trainable) -> Measurement:
        """Losses over all windows, ranks over the sampled rows."""
        ranks_R = self._task.ranks(lean_transformer(model))
        return Measurement(*losses_per_title(model, self.windows, self.trie), ranks_R)

    def __call__(self, model: Trainable) -> dict[str, float]:
        """The losses in nats per title, `hr10` and `ndcg10` of the sampled rows."""
        measured = self.measure(model)
        return {
            "loss": measured.loss,
            "catalogue_loss": measured.catalogue_loss,
            "hr10": float(hits(measured.ranks_R, 10).mean()),
            "ndcg10": float(gains(measured.ranks_R, 10).mean()),
        }


def rank_of(leaf: int, leaves: Sequence[int]) -> int:
    """The leaf's place in the list, 1 the best; 0 when it is not there within the metrics' depth."""
    return leaves.index(leaf) + 1 if leaf in leaves[:DEPTH] else 0
