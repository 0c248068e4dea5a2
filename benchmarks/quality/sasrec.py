"""SASRec, the usual neural recommender that knows items and no titles: the peer to beat.

Self-Attentive Sequential Recommendation (Kang and McAuley, arXiv 1808.09781), with cross-entropy over
all items instead of sampled negatives, which is the stronger form (arXiv 2308.07192).

Shapes: B users, T positions, P places with a next item, C width, I items, L titles, R rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

from pruning.evaluation import RankingTask
from recommender.dataset import Dataset, Rows
from recommender.ranking import DEPTH, RankArray, gains

_WIDTH, _LAYERS, _HEADS, _DROPOUT = 64, 2, 2, 0.3
_EPOCHS, _PATIENCE, _BATCH, _LEARNING_RATE = 200, 10, 128, 1e-3
_LONGEST = 50


class SasRec(nn.Module):
    """Causal self-attention over item embeddings; the next item is scored by its own."""

    def __init__(self, items: int) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, _WIDTH, padding_idx=items)
        self.positions = nn.Embedding(_LONGEST, _WIDTH)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            _WIDTH, _HEADS, 4 * _WIDTH, _DROPOUT, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, _LAYERS, nn.LayerNorm(_WIDTH), enable_nested_tensor=False
        )
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, items_BT: Tensor) -> Tensor:
        """(B, T, C) states after each item; padding stands on the right, where nobody looks."""
        length = items_BT.shape[1]
        states_BTC = self.dropout(self.items(items_BT) + self.positions.weight[:length])
        mask_TT = nn.Transformer.generate_square_subsequent_mask(length)
        after_BTC: Tensor = self.layers(states_BTC, mask=mask_TT, is_causal=True)
        return after_BTC

    def scores(self, states_PC: Tensor) -> Tensor:
        """(P, I) of every item as the next, at P places of any sequences."""
        scores_PI: Tensor = states_PC @ self.items.weight[:-1].T
        return scores_PI


def sasrec_ranks(dataset: Dataset, task: RankingTask, seed: int, say: Callable[[str], None]) -> RankArray:
    """(R,) the ranks of the task's targets among distinct titles, by the best epoch on validation.

    A title is scored by its best item. Training ends when ten epochs have improved nothing.

    Args:
        dataset: its training histories are learned from, its validation rows choose the epoch.
        task: of the rows to rank.
        seed: of weights, order and dropout.
        say: told of every epoch.
    """
    items = len(dataset.catalogue.titles)
    sequences = [list(user.training_items) for user in dataset.users if len(user.training_items) > 1]
    pieces = [s[at : at + _LONGEST + 1] for s in sequences for at in range(0, len(s) - 1, _LONGEST)]
    leaf_I = torch.from_numpy(task.trie.leaf_of_items().astype(np.int64))
    valid = dataset.rows("valid")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SasRec(items)
        optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
        best, best_epoch, weights = -1.0, 0, copy.deepcopy(model.state_dict())
        for epoch in range(1, _EPOCHS + 1):
            _train_epoch(model, optimizer, pieces, items, np.random.default_rng((seed, epoch)))
            ndcg10 = float(gains(_ranks(model, valid, leaf_I, items), 10).mean())
            say(f"SASRec epoch {epoch}: validation NDCG@10 {ndcg10:.4f}")
            if ndcg10 > best:
                best, best_epoch, weights = ndcg10, epoch, copy.deepcopy(model.state_dict())
            if epoch - best_epoch >= _PATIENCE:
                break
        model.load_state_dict(weights)
        return _ranks(model, task.rows, leaf_I, items)


def _train_epoch(
    model: SasRec,
    optimizer: torch.optim.Optimizer,
    pieces: Sequence[Sequence[int]],
    padding: int,
    generator: np.random.Generator,
) -> None:
    model.train()
    for chosen in np.array_split(generator.permutation(len(pieces)), -(-len(pieces) // _BATCH)):
        batch_BT = _padded([pieces[index] for index in chosen], padding)
        # Most places are padding, and the head over all items is nearly all of the work.
        next_BT = batch_BT[:, 1:]
        real_BT = next_BT != padding
        loss = F.cross_entropy(model.scores(model(batch_BT[:, :-1])[real_BT]), next_BT[real_BT])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.inference_mode()
def _ranks(model: SasRec, rows: Rows, leaf_I: Tensor, padding: int) -> RankArray:
    model.eval()
    ranks: list[npt.NDArray[np.int32]] = []
    leaves = int(leaf_I.max()) + 1
    for part in _parts(len(rows)):
        histories = [history[-_LONGEST:] for history in rows.histories[part]]
        last_B = torch.tensor([len(history) - 1 for history in histories])
        states_BC = model(_padded(histories, padding))[torch.arange(len(histories)), last_B]
        scores_BI = model.scores(states_BC)
        titles_BL = torch.full((len(histories), leaves), -torch.inf)
        titles_BL.scatter_reduce_(1, leaf_I.expand(len(histories), -1), scores_BI, "amax")
        target_B = leaf_I[torch.from_numpy(np.asarray(rows.targets_R[part], dtype=np.int64))]
        target_B1 = titles_BL.gather(1, target_B[:, None])
        # The target itself is not below itself; nor is what has no score, so a diverged model ranks last.
        ranks.append((~(titles_BL < target_B1)).sum(1).numpy().astype(np.int32))
    ranks_R = np.concatenate(ranks)
    return np.where(ranks_R <= DEPTH, ranks_R, 0).astype(np.int32)


def _parts(rows: int) -> Iterator[slice]:
    for begin in range(0, rows, 256):
        yield slice(begin, begin + 256)


def _padded(sequences: Sequence[Sequence[int]], padding: int) -> Tensor:
    """(B, T) right-padded."""
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence, *[padding] * (longest - len(sequence))] for sequence in sequences])
