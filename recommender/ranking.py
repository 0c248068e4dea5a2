"""Ranking quality: HR@k and NDCG@k from target ranks, and bootstrap intervals over users.

A rank is the target title's place in the list, 1 the best; 0 says that the list did not reach it. One
target a row, so NDCG@k is `1 / log2(rank + 1)` where the rank is at most k, else 0.

Shapes: R rows, U users, S bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, BeforeValidator, ConfigDict

Float64Array = npt.NDArray[np.float64]
RankArray = npt.NDArray[np.int32]

DEPTH = 20
"""The longest list that a metric looks at."""

_Figure = Annotated[float, BeforeValidator(lambda figure: math.nan if figure is None else figure)]


class Metrics(BaseModel):
    """Means over the rows of a split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    hr1: float
    hr5: float
    hr10: float
    hr20: float
    ndcg5: float
    ndcg10: float
    ndcg20: float

    @classmethod
    def of(cls, ranks_R: RankArray) -> Metrics:
        """All metrics of one set of ranks; zeros where there are no rows."""
        hr = {f"hr{k}": _mean(hits(ranks_R, k)) for k in (1, 5, 10, 20)}
        ndcg = {f"ndcg{k}": _mean(gains(ranks_R, k)) for k in (5, 10, 20)}
        return cls(rows=len(ranks_R), **hr, **ndcg)


class Interval(BaseModel):
    """A value and the bounds between which 95 % of its bootstrap samples lie.

    A ratio over nothing is not defined: it is `nan` here, and null in JSON, which has no such number.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: _Figure
    low: _Figure
    high: _Figure


def hits(ranks_R: RankArray, k: int) -> Float64Array:
    """(R,) 1 where the target stands among the first k."""
    return ((ranks_R > 0) & (ranks_R <= k)).astype(np.float64)


def gains(ranks_R: RankArray, k: int) -> Float64Array:
    """(R,) the row's NDCG@k (Järvelin & Kekäläinen 2002, one relevant item)."""
    return hits(ranks_R, k) / np.log2(np.maximum(ranks_R, 1) + 1.0)


class UserBootstrap:
    """Resamples users, all of a user's rows together, the same users for everything compared.

    Rows of one user are not independent, so intervals over rows would be too narrow.
    """

    def __init__(self, users: Sequence[str], samples: int = 2000, seed: int = 0) -> None:
        names, self._user_of_row = np.unique(np.asarray(users, dtype=object), return_inverse=True)
        generator = np.random.default_rng(seed)
        drawn = max(1, len(names))
        times_SU = generator.multinomial(drawn, np.full(drawn, 1 / drawn), size=samples)
        # 32 bits hold such counts exactly in half the memory, and multiply faster than integers.
        self._times_SU = times_SU.astype(np.float32)
        self._rows_U = self._sum_by_user(np.ones(len(users)))

    def mean(self, values_R: Float64Array) -> Interval:
        """The mean of a metric over rows."""
        totals_S = self._times_SU @ self._sum_by_user(values_R)
        return _interval(_mean(values_R), totals_S / np.maximum(self._times_SU @ self._rows_U, 1))

    def ratio(self, numerator_R: Float64Array, denominator_R: Float64Array) -> Interval:
        """The ratio of two means over the same rows: retention, or a gain over a baseline."""
        above_S = self._times_SU @ self._sum_by_user(numerator_R)
        below_S = self._times_SU @ self._sum_by_user(denominator_R)
        usable = below_S > 0
        whole = float(denominator_R.sum())
        value = float(numerator_R.sum()) / whole if whole else float("nan")
        return _interval(value, above_S[usable] / below_S[usable])

    def difference(self, a_R: Float64Array, b_R: Float64Array) -> Interval:
        """The difference of two means over the same rows."""
        return self.mean(a_R - b_R)

    def _sum_by_user(self, values_R: Float64Array) -> npt.NDArray[np.float32]:
        users = self._times_SU.shape[1]
        return np.bincount(self._user_of_row, weights=values_R, minlength=users).astype(np.float32)


def _interval(value: float, samples: npt.NDArray[np.float32]) -> Interval:
    if not len(samples):
        return Interval(value=value, low=float("nan"), high=float("nan"))
    low, high = np.quantile(samples, (0.025, 0.975))
    return Interval(value=value, low=float(low), high=float(high))


def _mean(values_R: Float64Array) -> float:
    return float(values_R.mean()) if len(values_R) else 0.0
