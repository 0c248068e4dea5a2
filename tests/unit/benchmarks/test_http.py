"""Where latency bends and what gives in first, from steps as the benchmark records them."""

from typing import Any

from benchmarks.http import around_the_search, disturbance, keeps_up, knee, saturated, stage_percentiles
from benchmarks.load_generator import note_stages


def step(share: float, answered: int = 100, errors: dict[str, int] | None = None) -> dict[str, Any]:
    return {"share": share, "offered": 100, "answered_in_time": answered, "errors": errors or {}}


def test_the_knee_is_the_last_step_before_the_first_that_falls_behind() -> None:
    steps = [step(0.1), step(0.2, answered=98), step(0.3, answered=90), step(0.4)]
    assert knee(steps) == steps[1]
    assert knee([step(0.1, answered=50)]) is None


def test_an_error_is_not_keeping_up() -> None:
    assert keeps_up(step(0.1))
    assert not keeps_up(step(0.1, errors={"429": 1}))


def test_what_is_nearest_to_its_own_limit_saturates() -> None:
    used = {"event_loop": 0.5, "engine": 0.7, "redis": 0.1, "generator": 0.2, "all": 1.5}
    assert saturated({"cores_used": used}, cores=2) == ("the machine's cores", 0.75)
    assert saturated({"cores_used": used}, cores=4) == ("the engine's thread", 0.7)


def test_what_others_took_is_what_is_left() -> None:
    quiet = {"service": 0.5, "redis": 0.1, "generator": 0.1, "all": 0.6}
    busy = {"service": 0.5, "redis": 0.1, "generator": 0.1, "all": 1.9}
    assert disturbance([{"cores_used": quiet}, {"cores_used": busy}]) == 1.2
    assert disturbance([{"cores_used": quiet}]) == 0.0


def test_what_no_stage_claims_is_the_rest() -> None:
    stages = {"history": [1.0], "prompt": [1.0], "queue": [2.0], "prefill": [3.0], "decode": [4.0]}
    found = stage_percentiles({**stages, "total": [16.0]})
    assert found["decode"] == {"p50_ms": 4.0, "p95_ms": 4.0, "p99_ms": 4.0}
    assert found["rest"] == {"p50_ms": 5.0, "p95_ms": 5.0, "p99_ms": 5.0}


def test_stages_are_read_off_an_answers_head() -> None:
    stages: dict[str, list[float]] = {"total": [1.0]}
    note_stages(b"http/1.1 200 ok\r\nserver-timing: prefill;dur=1.25, total;dur=3.5\r\nx: y\r\n", stages)
    note_stages(b"http/1.1 200 ok\r\nx: y\r\n", stages)
    assert stages == {"total": [1.0, 3.5], "prefill": [1.25]}


def test_what_is_around_the_search_is_each_requests_own_sum() -> None:
    searched = {"prompt": [0.1] * 3, "queue": [9.0] * 3, "prefill": [9.0] * 3, "decode": [9.0] * 3}
    stages = {**searched, "history": [0.0, 0.4, 0.4], "total": [27.9, 27.6, 27.7]}
    found = stage_percentiles(stages)
    assert {part: found[part]["p50_ms"] for part in ("history", "rest")} == {"history": 0.4, "rest": 0.2}
    assert around_the_search({"stages": found}) == 0.7
    assert around_the_search({"stages": None}) is None
