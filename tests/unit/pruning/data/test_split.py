"""The filters and the cut hold for any interactions, not only for tidy ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.data.split import by_user_and_time, chronological_split, k_core

TRAIN, VALID, TEST = 0, 1, 2

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60)
dated = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 12)), min_size=1, max_size=120)


def columns(rows, *types):
    return [np.array([row[i] for row in rows], dtype=t) for i, t in enumerate(types)]


def core_by_hand(rows, k):
    rows = list(rows)
    while True:
        kept = [
            (u, i)
            for u, i in rows
            if sum(u == v for v, _ in rows) >= k and sum(i == j for _, j in rows) >= k
        ]
        if kept == rows:
            return kept
        rows = kept


@given(pairs, st.integers(0, 5))
def test_k_core_is_the_fixed_point(rows, k):
    users, items = columns(rows, np.int32, np.int32)
    keep = k_core(users, items, k)
    assert [row for row, kept in zip(rows, keep, strict=True) if kept] == core_by_hand(rows, k)


def test_k_core_falls_in_a_chain():
    # item 9 has one interaction; without it user 1 has one, then item 1, then everything
    users, items = columns([(1, 9), (1, 1), (2, 1), (2, 2), (3, 2)], np.int32, np.int32)
    assert not k_core(users, items, 2).any()


@given(dated)
def test_order_keeps_users_together_and_ties_in_place(rows):
    users, times = columns(rows, np.int32, np.int64)
    order = by_user_and_time(users, times)
    expected = sorted(range(len(rows)), key=lambda position: rows[position])
    assert order.tolist() == expected


@given(dated)
def test_split_counts_time_and_leaks(rows):
    users, times = columns(rows, np.int32, np.int64)
    order = by_user_and_time(users, times)
    users, times = users[order], times[order]
    splits = chronological_split(users, times)

    count = len(rows) - len(set(users.tolist()))
    assert [(splits == s).sum() for s in (TRAIN, VALID, TEST)] == [
        int(0.8 * count),
        int(0.9 * count) - int(0.8 * count),
        count - int(0.9 * count),
    ]
    for earlier, later in ((TRAIN, VALID), (VALID, TEST), (TRAIN, TEST)):
        before, after = times[splits == earlier], times[splits == later]
        if len(before) and len(after):
            assert before.max() <= after.min()
    for user in set(users.tolist()):
        of_user = splits[users == user]
        assert of_user[0] == -1  # nothing to predict it from
        assert (of_user[1:] >= 0).all()  # and every other one is a target
        assert (np.diff(of_user[1:]) >= 0).all()  # so a history never holds a later split's target


@pytest.mark.parametrize("count", [*range(1, 200), 61_417, 61_564, 27_422])
def test_cuts_are_the_usual_ones(count):
    users = np.zeros(count + 1, dtype=np.int32)
    splits = chronological_split(users, np.arange(count + 1, dtype=np.int64))
    assert (splits == TRAIN).sum() == int(0.8 * count)
    assert ((splits == TRAIN) | (splits == VALID)).sum() == int(0.9 * count)
