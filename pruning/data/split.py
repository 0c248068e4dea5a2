"""Filters interactions and divides them by time. Pure functions over columns.

Shapes: N interactions. Users and items are small integers; -1 in `splits_N` marks an interaction
that no row predicts, 0, 1 and 2 the target of a row of the training, validation and test split.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def k_core(users_N: npt.NDArray[np.int32], items_N: npt.NDArray[np.int32], k: int) -> Mask:
    """Which interactions stay when every user and every item must have at least `k` of them.

    Dropping an item can starve a user and the other way round, so both are counted again until
    nothing falls. What is left is the largest such set, whatever the order of dropping.
    """
    keep_N = np.ones(len(users_N), dtype=np.bool_)
    while True:
        user_counts = np.bincount(users_N[keep_N], minlength=1)
        item_counts = np.bincount(items_N[keep_N], minlength=1)
        positions = np.flatnonzero(keep_N)
        starved = (user_counts[users_N[positions]] < k) | (item_counts[items_N[positions]] < k)
        if not starved.any():
            return keep_N
        keep_N[positions[starved]] = False


def by_user_and_time(
    users_N: npt.NDArray[np.int32], timestamps_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The order that puts each user's interactions together, oldest first, ties in file order."""
    return np.lexsort((timestamps_N, users_N))  # stable: equal keys keep their order


def chronological_split(
    users_N: npt.NDArray[np.int32], timestamps_N: npt.NDArray[np.int64]
) -> npt.NDArray[np.int8]:
    """Splits rows 80/10/10 by target time; the interactions must be in `by_user_and_time` order.

    Every interaction but a user's first is the target of one row. The rows are ordered by time,
    ties as they stand, and cut after int(.8 R) and int(.9 R) of them.
    """
    first_N = np.ones(len(users_N), dtype=np.bool_)
    first_N[1:] = users_N[1:] != users_N[:-1]
    targets_R = np.flatnonzero(~first_N)
    rows_R = targets_R[np.argsort(timestamps_N[targets_R], kind="stable")]
    count = len(rows_R)
    splits_N = np.full(len(users_N), -1, dtype=np.int8)
    splits_N[rows_R[: count * 8 // 10]] = 0
    splits_N[rows_R[count * 8 // 10 : count * 9 // 10]] = 1
    splits_N[rows_R[count * 9 // 10 :]] = 2
    return splits_N
