"""What can go wrong online; the root and the exit codes are in `recommender.errors`.

EspalierError
├── InputError
│   └── SettingsError            settings the service refuses to start with
└── ServiceError                 a request, or the service, cannot go on
    ├── RequestError             the request is wrong beyond its schema
    ├── MissingKeyError          keys are configured and the request bears none
    ├── WrongKeyError            … or one that is not among them
    ├── AdminDisabledError       no admin token is configured
    ├── BodyLateError            the body did not arrive in time
    ├── BodyTooLargeError        the body exceeds the limit
    ├── MediaTypeError           the body is not declared as JSON
    ├── OverloadedError          every place is taken; come back later
    ├── DeadlineError            the answer would have come too late
    ├── UnknownCheckpointError   no whole artifact of that name or digest is there
    ├── UnknownOperationError    no operation of that id is remembered
    ├── StaleGenerationError     the caller decided on an older generation
    ├── SwapError                the checkpoint cannot be swapped in, and the old one serves on
    └── UnavailableError         something the answer needs is away
        ├── NotReadyError        the service should get no requests now
        ├── NoModelError         no checkpoint is loaded
        ├── EngineError          the engine died
        ├── FleetUnavailableError    the fleet's record cannot be read or changed now
        └── HistoryUnavailableError   Redis is away, slow or full

Nothing here knows HTTP: `service.problems` maps each class to a status in one table.
"""

from recommender.errors import EspalierError, InputError


class SettingsError(InputError):
    """Settings the service refuses to start with."""


class ServiceError(EspalierError):
    """A request, or the service, cannot go on."""


class RequestError(ServiceError):
    """The request is wrong beyond its schema; `pointer` says where (RFC 6901, as a URI fragment)."""

    def __init__(self, message: str, pointer: str = "#") -> None:
        super().__init__(message)
        self.pointer = pointer


class MissingKeyError(ServiceError):
    """Keys are configured and the request bears none."""


class WrongKeyError(ServiceError):
    """The request's key is not among the configured ones."""


class BodyLateError(ServiceError):
    """The body did not arrive in time."""


class BodyTooLargeError(ServiceError):
    """The body exceeds the limit."""


class MediaTypeError(ServiceError):
    """The body is not declared as JSON."""


class OverloadedError(ServiceError):
    """Every place is taken; `retry_after_s` says when one should be free."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(ServiceError):
    """The answer would have come too late."""


class UnknownCheckpointError(ServiceError):
    """No whole artifact of that name or digest is there."""


class UnknownOperationError(ServiceError):
    """No operation of that id is remembered."""


class StaleGenerationError(ServiceError):
    """The caller decided on an older generation than the fleet's."""


class SwapError(ServiceError):
    """The checkpoint cannot be swapped in; the old one serves on."""


class AdminDisabledError(ServiceError):
    """Checkpoints cannot be exchanged: no admin token is configured."""


class UnavailableError(ServiceError):
    """Something the answer needs is away."""


class NotReadyError(UnavailableError):
    """The service should get no requests now."""


class NoModelError(UnavailableError):
    """No checkpoint is loaded."""


class FleetUnavailableError(UnavailableError):
    """The fleet's record cannot be read or changed now: Redis is away."""


class EngineError(UnavailableError):
    """The engine died."""


class HistoryUnavailableError(UnavailableError):
    """Redis is away, slow or full."""
