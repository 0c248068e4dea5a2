import asyncio
import time
from contextlib import ExitStack

import pytest

from service.errors import OverloadedError
from service.recommend.admission import Admission, Pace


def test_places_are_taken_and_given_back() -> None:
    admission = Admission(2, batch=1, patience_s=60)
    with admission.place(), admission.place():
        assert admission.taken == 2
        with pytest.raises(OverloadedError, match="all 2 places") as refused, admission.place():
            pass
        assert refused.value.retry_after_s == 1
        assert admission.taken == 2
    with admission.place():
        assert admission.taken == 1


def test_those_that_are_coming_count() -> None:
    admission = Admission(2, batch=1, patience_s=60)
    with admission.place():
        assert admission.overload() is None
        assert admission.overload(coming=1) is not None


def test_an_error_gives_the_place_back_and_says_nothing_about_the_pace() -> None:
    admission = Admission(1, batch=1, patience_s=1e-9)
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(ZeroDivisionError))
        stack.enter_context(admission.place())
        _ = 1 / 0
    assert admission.taken == 0
    assert admission._between_s == 0


def test_a_slow_pace_leaves_fewer_places_but_a_batch() -> None:
    admission = Admission(288, batch=32, patience_s=1.0)
    assert admission.limit == 288
    admission._between_s = 0.01
    assert admission.limit == 100
    admission._between_s = 1.0
    assert admission.limit == 32


def test_the_pace_is_measured_only_while_somebody_asks() -> None:
    admission = Admission(10, batch=1, patience_s=1.0)
    with admission.place():
        time.sleep(0.02)
    alone = admission._between_s
    assert alone >= 0.01 * 0.02
    time.sleep(0.2)
    with admission.place():
        pass
    assert admission._between_s < alone  # the pause before it did not count


async def test_so_many_go_on_in_a_turn_and_in_their_order() -> None:
    pace, passed = Pace(3), []

    async def one(number: int) -> None:
        await pace.turn()
        passed.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(10)]
    await asyncio.sleep(0)
    assert passed == [0, 1, 2]
    tasks[4].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert passed == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    async with asyncio.timeout(10):
        await asyncio.gather(*(one(number) for number in range(10, 20)))
    assert passed[-10:] == list(range(10, 20))
