import os
import subprocess
import sys

import pytest

from service.engine.vllm.watch import Watch, Work, work_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def looks(clock: Clock, works: list[Work | None], silence_s: float = 2, step_s: float = 60) -> list[bool]:
    """What a watch says at each look at a silent child whose work is `works`."""
    left = iter(works)
    watch = Watch(lambda: next(left), silence_s, step_s, clock)
    said = []
    for _ in works:
        clock.now += watch.every_s
        said.append(watch.hangs() is not None)
    return said


def test_no_work_for_the_silence_is_a_hang(clock: Clock) -> None:
    idle = Work(7.0, runnable=False)
    assert looks(clock, [idle] * 4) == [False, False, False, True]
    assert clock.now == 102.0


def test_processor_time_is_work(clock: Clock) -> None:
    assert not any(looks(clock, [Work(look * 0.03, runnable=False) for look in range(20)]))
    assert looks(clock, [Work(look * 0.02, runnable=False) for look in range(4)])[-1]


def test_whoever_waits_for_a_core_or_a_disk_does_not_hang(clock: Clock) -> None:
    assert not any(looks(clock, [Work(7.0, runnable=True)] * 20))


def test_one_idle_look_is_none(clock: Clock) -> None:
    works = [Work(cpu_s, runnable=False) for cpu_s in (1, 1, 1, 2, 2, 2, 3, 3, 3)]
    assert not any(looks(clock, works))


def test_what_is_not_known_counts_as_work(clock: Clock) -> None:
    assert not any(looks(clock, [None] * 20))


def test_a_step_may_not_take_for_ever(clock: Clock) -> None:
    busy = [Work(look, runnable=True) for look in range(8)]
    assert looks(clock, list(busy), step_s=3) == [False] * 5 + [True] * 3


def test_a_sign_of_life_begins_anew(clock: Clock) -> None:
    watch = Watch(lambda: Work(7.0, runnable=False), 2, 60, clock)
    for _ in range(10):
        clock.now += watch.every_s
        assert watch.hangs() is None
        clock.now += watch.every_s
        assert watch.hangs() is None
        watch.heard()


def test_the_work_of_real_processes() -> None:
    before = work_of(os.getpid())
    assert before is not None
    assert before.runnable
    burn = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", burn], check=True)
    after = work_of(os.getpid())
    assert after is not None
    assert after.cpu_s - before.cpu_s >= 0.25  # a child's, that has ended
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as sleeper:
        assert work_of(sleeper.pid) is not None
        sleeper.communicate(b"\n")
    assert work_of(sleeper.pid) is None
