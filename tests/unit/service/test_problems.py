import inspect

import pytest

from service import errors
from service.problems import Problem, problem_of, response

CLASSES = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, errors.ServiceError) and found is not errors.ServiceError
]


def make(kind: type[errors.ServiceError]) -> errors.ServiceError:
    return kind("full", 3) if issubclass(kind, errors.OverloadedError) else kind("full")


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_a_status_and_a_stable_type(kind: type[errors.ServiceError]) -> None:
    document = problem_of(make(kind), "id-1")
    assert 400 <= document.status < 600
    assert document.type.startswith("urn:espalier:problem:")
    assert (document.detail, document.request_id) == ("full", "id-1")


def test_no_two_errors_share_a_type() -> None:
    types = [problem_of(make(kind), None).type for kind in CLASSES]
    assert len(set(types)) == len(types)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.RequestError, 422),
        (errors.MissingKeyError, 401),
        (errors.WrongKeyError, 403),
        (errors.BodyTooLargeError, 413),
        (errors.MediaTypeError, 415),
        (errors.OverloadedError, 429),
        (errors.NoModelError, 503),
        (errors.EngineError, 503),
        (errors.HistoryUnavailableError, 503),
        (errors.DeadlineError, 504),
    ],
)
def test_statuses_are_as_designed(kind: type[errors.ServiceError], status: int) -> None:
    assert problem_of(make(kind), None).status == status


def test_an_overloaded_response_says_when_to_come_back() -> None:
    answer = response(problem_of(errors.OverloadedError("full", 3), None))
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.media_type == "application/problem+json"
    assert Problem.model_validate_json(bytes(answer.body)).retry_after_s == 3


def test_a_missing_key_is_asked_for() -> None:
    answer = response(problem_of(errors.MissingKeyError("send a key"), None))
    assert answer.headers["www-authenticate"] == "Bearer"
