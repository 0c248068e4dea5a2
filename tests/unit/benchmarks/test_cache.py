"""Sessions and comparisons of the prefix cache's benchmark; and a small run of it."""

import pytest
from served_artifact import write_served_artifact

from benchmarks.cache import Asked, Pair, compared, replay, sessions
from recommender.artifact import Artifact
from recommender.dataset import UserSequence


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_served_artifact(tmp_path_factory)


def user(name: str, *items: int) -> UserSequence:
    return UserSequence(name, items, tuple(range(len(items))), ("train",) * len(items))


def test_sessions_string_users_together_the_longest_first() -> None:
    users = [user("a", 1, 2), user("b", 3, 4, 5, 6)]
    assert sessions(users, 2, 3) == [(3, 4, 5), (6, 1, 2)]
    assert sessions(users, 2, 5) == [(3, 4, 5, 6, 1), (2, 3, 4, 5, 6)]


def test_ratios_say_what_is_saved_and_what_could_be() -> None:
    cold = Asked(tokens=100, found=0, steps=4, prefill=0.006, decode=0.003, rest=0.001, items=(1,))
    returning = Asked(tokens=100, found=80, steps=4, prefill=0.003, decode=0.003, rest=0.001, items=(1,))
    found = compared([Pair(False, cold, returning)])
    assert found["ratio"] == 0.7
    assert found["ratio_prefill"] == 0.5
    assert found["ratio_without_prefill"] == 0.4
    assert found["returning"]["found_share"] == 0.8
    assert found["same_items"] == 1.0


def test_returning_users_find_what_stays_of_their_prompts(artifact: Artifact) -> None:
    pairs = replay(artifact, [tuple(range(24))], 1 << 20)
    assert len(pairs) == 23
    assert [number for number, pair in enumerate(pairs, start=2) if pair.cut] == [21]
    assert all(pair.cold.found == 0 for pair in pairs)
    grown = [pair for pair in pairs if not pair.cut]
    assert all(pair.returning.found > 0 for pair in pairs)
    (cut,) = (pair for pair in pairs if pair.cut)
    # At the cut only the instruction's whole blocks are left.
    assert cut.returning.found < min(pair.returning.found for pair in grown[1:])
    assert all(pair.cold.items == pair.returning.items for pair in pairs)
