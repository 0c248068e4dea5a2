import json
import math

import numpy as np
import pytest

from recommender.ranking import Interval, Metrics, UserBootstrap, gains, hits

# Places 1, 3, out of reach, 11, 5 and beyond the longest list.
RANKS = np.array([1, 3, 0, 11, 5, 21], np.int32)


def test_hits_by_hand() -> None:
    assert hits(RANKS, 1).tolist() == [1, 0, 0, 0, 0, 0]
    assert hits(RANKS, 5).tolist() == [1, 1, 0, 0, 1, 0]
    assert hits(RANKS, 20).tolist() == [1, 1, 0, 1, 1, 0]


def test_gains_by_hand() -> None:
    third, fifth, eleventh = 1 / 2, 1 / math.log2(6), 1 / math.log2(12)
    np.testing.assert_allclose(gains(RANKS, 4), [1, third, 0, 0, 0, 0])
    np.testing.assert_allclose(gains(RANKS, 20), [1, third, 0, eleventh, fifth, 0])


def test_metrics_by_hand() -> None:
    ndcg5 = (1 + 1 / 2 + 1 / math.log2(6)) / 6
    assert Metrics.of(RANKS).model_dump() == pytest.approx(
        {
            "rows": 6,
            "hr1": 1 / 6,
            "hr5": 3 / 6,
            "hr10": 3 / 6,
            "hr20": 4 / 6,
            "ndcg5": ndcg5,
            "ndcg10": ndcg5,
            "ndcg20": ndcg5 + 1 / math.log2(12) / 6,
        }
    )


def test_metrics_of_no_rows_are_zero() -> None:
    assert set(Metrics.of(np.zeros(0, np.int32)).model_dump().values()) == {0}


def test_a_constant_has_no_spread() -> None:
    bootstrap = UserBootstrap(["a", "b", "b", "c"], samples=50)
    interval = bootstrap.mean(np.full(4, 0.25))
    assert (interval.value, interval.low, interval.high) == (0.25, 0.25, 0.25)


def test_a_users_rows_are_drawn_together() -> None:
    # Two users: the samples are b alone (0), a alone (1), or both (1 of 4 rows), and nothing between.
    interval = UserBootstrap(["b", "a", "b", "b"], samples=400).mean(np.array([0.0, 1, 0, 0]))
    assert (interval.value, interval.low, interval.high) == (0.25, 0, 1)


def test_with_a_row_a_user_the_interval_is_the_normal_one() -> None:
    rows = 2000
    values = (np.random.default_rng(0).random(rows) < 0.3).astype(float)
    interval = UserBootstrap([str(i) for i in range(rows)]).mean(values)
    margin = 1.96 * values.std() / math.sqrt(rows)
    assert interval.value == values.mean()
    assert interval.low == pytest.approx(values.mean() - margin, abs=0.1 * margin)
    assert interval.high == pytest.approx(values.mean() + margin, abs=0.1 * margin)


def test_a_ratio_is_paired() -> None:
    users = [str(i // 2) for i in range(200)]
    teacher = np.random.default_rng(1).random(200)
    interval = UserBootstrap(users, samples=200).ratio(0.8 * teacher, teacher)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.8, 0.8, 0.8))


def test_a_ratio_by_hand() -> None:
    # a alone: 1 / 2, b alone: 3 / 3, both: 4 / 5.
    numerator, denominator = np.array([1.0, 3.0]), np.array([2.0, 3.0])
    interval = UserBootstrap(["a", "b"], samples=400).ratio(numerator, denominator)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.8, 0.5, 1.0))


def test_a_ratio_to_nothing_is_not_a_number() -> None:
    interval = UserBootstrap(["a", "b"], samples=10).ratio(np.ones(2), np.zeros(2))
    assert all(math.isnan(x) for x in (interval.value, interval.low, interval.high))


def test_samples_in_which_the_denominator_vanishes_are_left_out() -> None:
    # b alone has nothing below: only a alone (2) and both (2) count.
    interval = UserBootstrap(["a", "b"], samples=200).ratio(np.array([2.0, 0.0]), np.array([1.0, 0.0]))
    assert (interval.value, interval.low, interval.high) == (2, 2, 2)


def test_a_difference_is_paired() -> None:
    values = np.random.default_rng(2).random(100)
    interval = UserBootstrap([str(i) for i in range(100)], samples=100).difference(values, values - 0.1)
    assert (interval.value, interval.low, interval.high) == pytest.approx((0.1, 0.1, 0.1))


def test_the_same_seed_draws_the_same_users() -> None:
    users, values = [str(i) for i in range(50)], np.arange(50.0)
    first, again, other = (UserBootstrap(users, 100, seed).mean(values) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert first.value == other.value


def test_no_rows() -> None:
    interval = UserBootstrap([], samples=10).mean(np.zeros(0))
    assert (interval.value, interval.low, interval.high) == (0, 0, 0)


def test_a_ratio_over_nothing_survives_json() -> None:
    undefined = UserBootstrap(["a", "b"]).ratio(np.ones(2), np.zeros(2))
    assert json.loads(undefined.model_dump_json()) == {"value": None, "low": None, "high": None}
    again = Interval.model_validate_json(undefined.model_dump_json())
    assert all(np.isnan([again.value, again.low, again.high]))
