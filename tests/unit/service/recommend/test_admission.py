from contextlib import ExitStack

import pytest

from service.errors import OverloadedError
from service.recommend.admission import Admission


def test_places_are_taken_and_given_back() -> None:
    admission = Admission(2)
    with admission.place(), admission.place():
        assert admission.taken == 2
        with pytest.raises(OverloadedError, match="all 2 places") as refused, admission.place():
            pass
        assert refused.value.retry_after_s == 1
        assert admission.taken == 2
    with admission.place():
        assert admission.taken == 1


def test_an_error_gives_the_place_back() -> None:
    admission = Admission(1)
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(ZeroDivisionError))
        stack.enter_context(admission.place())
        _ = 1 / 0
    assert admission.taken == 0
