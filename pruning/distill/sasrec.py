"""SASRec: a small sequence model that knows who liked what, and reads no words.

Self-Attentive Sequential Recommendation (Kang and McAuley, arXiv 1808.09781), with cross-entropy over
all of what it knows instead of sampled negatives, which is the stronger form (arXiv 2308.07192).

Shapes: B sequences, T positions, P places where something is predicted, C width, I ids.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn

_WIDTH, _LAYERS, _HEADS, _DROPOUT = 64, 2, 2, 0.3
EPOCHS = 200
"""At most so many; far fewer do."""
_PATIENCE, _BATCH, _LEARNING_RATE = 10, 128, 1e-3


class SasRec(nn.Module):
    """Causal self-attention over embeddings of ids; the next id is scored by its own."""

    def __init__(self, ids: int, longest: int) -> None:
        """Of the ids below `ids`, at most `longest` of them in a row; `ids` itself pads."""
        super().__init__()
        self.ids = nn.Embedding(ids + 1, _WIDTH, padding_idx=ids)
        self.positions = nn.Embedding(longest, _WIDTH)
        for table in (self.ids, self.positions):
            nn.init.normal_(table.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            _WIDTH, _HEADS, 4 * _WIDTH, _DROPOUT, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(
            layer, _LAYERS, nn.LayerNorm(_WIDTH), enable_nested_tensor=False
        )
        self.dropout = nn.Dropout(_DROPOUT)

    @property
    def padding(self) -> int:
        """The id that stands for none."""
        return self.ids.num_embeddings - 1

    def forward(self, ids_BT: Tensor) -> Tensor:
        """(B, T, C) states after each id; padding stands on the right, where nobody looks."""
        length = ids_BT.shape[1]
        states_BTC = self.dropout(self.ids(ids_BT) + self.positions.weight[:length])
        mask_TT = nn.Transformer.generate_square_subsequent_mask(length)
        after_BTC: Tensor = self.layers(states_BTC, mask=mask_TT, is_causal=True)
        return after_BTC

    def scores(self, sequences: Sequence[PartlyPredicted]) -> Tensor:
        """(P, I) of every id, at the places of the sequences that are predicted, in their order."""
        before = [sequence.ids[:-1] for sequence in sequences]
        longest = max(len(ids) for ids in before)
        ids_BT = torch.tensor([[*ids, *[self.padding] * (longest - len(ids))] for ids in before])
        rows_P = torch.tensor([row for row, s in enumerate(sequences) for _ in range(s.predicted)])
        columns_P = torch.tensor(
            [column for s in sequences for column in range(len(s.ids) - 1 - s.predicted, len(s.ids) - 1)]
        )
        # Most places are padding or context, and the head over all ids is nearly all of the work.
        scores_PI: Tensor = self(ids_BT)[rows_P, columns_P] @ self.ids.weight[:-1].T
        return scores_PI


@dataclass(frozen=True)
class PartlyPredicted:
    """A sequence of ids, the last `predicted` of which are each predicted from all before."""

    ids: tuple[int, ...]
    predicted: int

    @property
    def targets(self) -> tuple[int, ...]:
        return self.ids[len(self.ids) - self.predicted :]


def fit_sasrec(
    ids: int,
    longest: int,
    sequences: Sequence[PartlyPredicted],
    quality: Callable[[SasRec], float],
    seed: int,
    told: Callable[[int, float], None],
) -> SasRec:
    """Trains one until ten epochs have improved nothing, and returns that of the best.

    Args:
        ids: how many there are.
        longest: the most that anything is predicted from.
        sequences: what is learned from.
        quality: of the model after an epoch, on what is held out; the more the better.
        seed: of weights, order and dropout.
        told: of every epoch and its quality.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SasRec(ids, longest)
        optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
        best, best_epoch, weights = -np.inf, 0, model.state_dict()
        for epoch in range(1, EPOCHS + 1):
            _train_epoch(model, optimizer, sequences, np.random.default_rng((seed, epoch)))
            model.eval()
            with torch.inference_mode():
                reached = quality(model)
            told(epoch, reached)
            if reached > best:
                best, best_epoch, weights = reached, epoch, copy.deepcopy(model.state_dict())
            if epoch - best_epoch >= _PATIENCE:
                break
    model.load_state_dict(weights)
    return model.eval()


def parts(count: int, size: int = 256) -> Iterator[slice]:
    """Slices that cover `count` sequences: what is scored at once fits in memory."""
    for begin in range(0, count, size):
        yield slice(begin, begin + size)


def _train_epoch(
    model: SasRec,
    optimizer: torch.optim.Optimizer,
    sequences: Sequence[PartlyPredicted],
    generator: np.random.Generator,
) -> None:
    model.train()
    for chosen in np.array_split(generator.permutation(len(sequences)), -(-len(sequences) // _BATCH)):
        batch = [sequences[index] for index in chosen]
        labels_P = torch.tensor([label for sequence in batch for label in sequence.targets])
        loss = F.cross_entropy(model.scores(batch), labels_P)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
