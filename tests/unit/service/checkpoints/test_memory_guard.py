import pytest

from recommender.artifact import WEIGHTS, Artifact
from service.checkpoints import memory_guard
from service.errors import SwapError


def test_the_need_covers_the_files_and_a_float32_copy(served_artifact: Artifact) -> None:
    weights = served_artifact.manifest.files[WEIGHTS.as_posix()].size
    need = memory_guard.needed_bytes(served_artifact)
    assert need >= served_artifact.nbytes + 4 * served_artifact.manifest.parameters.total
    assert need - weights - 4 * 22 == 10 * (served_artifact.nbytes - weights)


@pytest.mark.parametrize("overhead", [0, 5000])
def test_what_is_in_use_and_the_engine_itself_count_against_the_limit(
    served_artifact: Artifact, monkeypatch: pytest.MonkeyPatch, overhead: int
) -> None:
    need = memory_guard.needed_bytes(served_artifact)
    monkeypatch.setattr(memory_guard, "resident_bytes", lambda: 1000)
    monkeypatch.setattr(memory_guard, "memory_limit_bytes", lambda: need + 1000 + overhead)
    memory_guard.refuse_what_has_no_room(served_artifact, overhead)
    monkeypatch.setattr(memory_guard, "resident_bytes", lambda: 1001)
    with pytest.raises(SwapError, match=f"{served_artifact.identity} needs about"):
        memory_guard.refuse_what_has_no_room(served_artifact, overhead)
