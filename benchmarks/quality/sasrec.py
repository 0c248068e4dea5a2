"""SASRec, the usual neural recommender that knows items and no titles: the peer to beat.

Shapes: B histories, I items, L titles, R rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pruning.distill.sasrec import PartlyPredicted, SasRec, fit_sasrec, parts
from pruning.evaluation import RankingTask
from recommender.dataset import Dataset, Rows
from recommender.ranking import DEPTH, RankArray, gains

_LONGEST = 50


def sasrec_ranks(dataset: Dataset, task: RankingTask, seed: int, say: Callable[[str], None]) -> RankArray:
    """(R,) the ranks of the task's targets among distinct titles, by the best epoch on validation.

    A title is scored by its best item.

    Args:
        dataset: its training histories are learned from, its validation rows choose the epoch.
        task: of the rows to rank.
        seed: of weights, order and dropout.
        say: told of every epoch.
    """
    sequences = [user.training_items for user in dataset.users if len(user.training_items) > 1]
    pieces = [s[at : at + _LONGEST + 1] for s in sequences for at in range(0, len(s) - 1, _LONGEST)]
    leaf_I = torch.from_numpy(task.trie.leaf_of_items().astype(np.int64))
    valid = dataset.rows("valid")
    model = fit_sasrec(
        len(dataset.catalogue.titles),
        _LONGEST,
        [PartlyPredicted(tuple(piece), len(piece) - 1) for piece in pieces],
        lambda model: float(gains(_ranks(model, valid, leaf_I), 10).mean()),
        seed,
        lambda epoch, ndcg10: say(f"SASRec epoch {epoch}: validation NDCG@10 {ndcg10:.4f}"),
    )
    return _ranks(model, task.rows, leaf_I)


@torch.inference_mode()
def _ranks(model: SasRec, rows: Rows, leaf_I: Tensor) -> RankArray:
    ranks: list[npt.NDArray[np.int32]] = []
    leaves = int(leaf_I.max()) + 1
    for part in parts(len(rows)):
        targets_B = np.asarray(rows.targets_R[part], dtype=np.int64)
        scores_BI = model.scores(
            [
                PartlyPredicted((*history[-_LONGEST:], target), 1)
                for history, target in zip(rows.histories[part], targets_B.tolist(), strict=True)
            ]
        )
        titles_BL = torch.full((len(targets_B), leaves), -torch.inf)
        titles_BL.scatter_reduce_(1, leaf_I.expand(len(targets_B), -1), scores_BI, "amax")
        target_B1 = titles_BL.gather(1, leaf_I[torch.from_numpy(targets_B)][:, None])
        # The target itself is not below itself; nor is what has no score, so a diverged model ranks last.
        ranks.append((~(titles_BL < target_B1)).sum(1).numpy().astype(np.int32))
    ranks_R = np.concatenate(ranks)
    return np.where(ranks_R <= DEPTH, ranks_R, 0).astype(np.int32)
