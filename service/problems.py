"""Every error as an RFC 9457 problem document, and the one table that gives errors their statuses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from starlette.exceptions import HTTPException

from service import errors
from service.schemas import Answer

MEDIA_TYPE = "application/problem+json"
URN = "urn:espalier:problem:"


class Violation(Answer):
    """One thing that is wrong with the request: where (a JSON pointer), and what."""

    pointer: str
    detail: str


class Problem(Answer):
    """An RFC 9457 problem document. `type` is stable: programs may decide by it."""

    type: Annotated[str, Field(pattern=f"^{URN}[a-z-]+$")]
    title: str
    status: int
    detail: str
    request_id: str | None = None
    errors: tuple[Violation, ...] | None = None
    retry_after_s: int | None = None

    @property
    def name(self) -> str:
        """The end of `type`."""
        return self.type.removeprefix(URN)


@dataclass(frozen=True)
class Kind:
    """A kind of problem: its status, its name (the URN's end), its title."""

    status: int
    name: str
    title: str


INVALID = Kind(422, "invalid-request", "The request is not valid")
INTERNAL = Kind(500, "internal", "Something went wrong here")
_KINDS: dict[type[errors.ServiceError], Kind] = {
    errors.RequestError: INVALID,
    errors.MissingKeyError: Kind(401, "key-missing", "A key is needed"),
    errors.WrongKeyError: Kind(403, "key-refused", "The key is not valid"),
    errors.AdminDisabledError: Kind(403, "admin-disabled", "Admin calls are not enabled"),
    errors.BodyLateError: Kind(408, "body-late", "The body came too slowly"),
    errors.BodyTooLargeError: Kind(413, "body-too-large", "The body is too large"),
    errors.MediaTypeError: Kind(415, "media-type", "The body must be JSON"),
    errors.OverloadedError: Kind(429, "overloaded", "Too many requests wait"),
    errors.DeadlineError: Kind(504, "deadline", "The deadline passed"),
    errors.UnknownCheckpointError: Kind(404, "no-such-checkpoint", "There is no such checkpoint"),
    errors.UnknownOperationError: Kind(404, "no-such-operation", "There is no such operation"),
    errors.SwapError: Kind(409, "swap-rejected", "The swap is rejected"),
    errors.StaleGenerationError: Kind(412, "stale-generation", "The fleet has moved on"),
    errors.FleetUnavailableError: Kind(503, "fleet-unavailable", "The fleet's record is away"),
    errors.NotReadyError: Kind(503, "not-ready", "Not ready"),
    errors.NoModelError: Kind(503, "no-checkpoint", "No checkpoint is loaded"),
    errors.EngineError: Kind(503, "engine-away", "The engine is away"),
    errors.HistoryUnavailableError: Kind(503, "history-unavailable", "The history store is away"),
    errors.UnavailableError: Kind(503, "unavailable", "Not available now"),
}
_HTTP_KINDS = {
    400: INVALID,
    404: Kind(404, "not-found", "There is nothing here"),
    405: Kind(405, "method-not-allowed", "The path does not take this method"),
}


def kind_of(error: type[errors.ServiceError]) -> Kind:
    """The kind of one of our own errors."""
    return next(_KINDS[ancestor] for ancestor in error.__mro__ if ancestor in _KINDS)


def problem_of(error: errors.ServiceError, request_id: str | None) -> Problem:
    """The document for one of our own errors."""
    violations = None
    if isinstance(error, errors.RequestError):
        violations = (Violation(pointer=error.pointer, detail=str(error)),)
    retry = error.retry_after_s if isinstance(error, errors.OverloadedError) else None
    return problem(kind_of(type(error)), str(error), request_id, violations, retry)


def invalid(found: Iterable[Any], request_id: str | None) -> Problem:
    """The document for pydantic's errors. What was sent is not repeated: it may name a person."""
    violations = tuple(_violation(entry) for entry in found)
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return problem(INVALID, f"{first.pointer}: {first.detail}{more}", request_id, violations)


def problem(
    kind: Kind,
    detail: str,
    request_id: str | None,
    violations: tuple[Violation, ...] | None = None,
    retry_after_s: int | None = None,
) -> Problem:
    """A document of this kind."""
    return Problem(
        type=URN + kind.name,
        title=kind.title,
        status=kind.status,
        detail=detail,
        request_id=request_id,
        errors=violations,
        retry_after_s=retry_after_s,
    )


def response(document: Problem, headers: dict[str, str] | None = None) -> Response:
    """The HTTP response that carries a document."""
    extra = dict(headers or {})
    if document.retry_after_s is not None:
        extra["Retry-After"] = str(document.retry_after_s)
    if document.status == 401:
        extra["WWW-Authenticate"] = "Bearer"
    if document.status == 408:
        extra["Connection"] = "close"  # what is still to come is no next request
    return Response(
        document.model_dump_json(exclude_none=True), document.status, extra, media_type=MEDIA_TYPE
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route in OpenAPI: these statuses answer with a problem document."""
    schema = {"schema": {"$ref": "#/components/schemas/Problem"}}
    by_status = {kind.status: kind for kind in (*_KINDS.values(), *_HTTP_KINDS.values())}
    return {
        status: {"description": by_status[status].title, "content": {MEDIA_TYPE: schema}}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Makes the framework's own errors problem documents; ours are mapped by the outermost middleware."""

    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return response(invalid(error.errors(), request_id(request)))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        kind = _HTTP_KINDS[error.status_code]
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = _methods(request)
        return response(problem(kind, f"{kind.title}.", request_id(request)), headers)

    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(HTTPException, http)


def _methods(request: Request) -> str:
    """The methods of the path: one route knows only its own, the interface knows them all."""
    paths = request.app.openapi()["paths"]
    # What is no part of the interface, the page, can be got only.
    operations = paths.get(request.scope["route"].path_format, ("get",))
    return ", ".join(sorted(method.upper() for method in operations))


def request_id(request: Request) -> str | None:
    """The id that the middleware gave the request."""
    found: str | None = request.scope.get("state", {}).get("request_id")
    return found


def _pointer(location: Sequence[int | str]) -> str:
    """`("body", "history", 0)` becomes `#/history/0`; parameters stand under their place."""
    inner = location[1:] if location[:1] == ("body",) else location
    # A part like <title> is the tag of a union, not a place in the document.
    parts = [str(part).replace("~", "~0").replace("/", "~1") for part in inner if str(part)[:1] != "<"]
    return "#" + "".join(f"/{part}" for part in parts)


def _violation(entry: Any) -> Violation:
    if entry["type"] == "json_invalid":
        return Violation(pointer="#", detail="the body is not JSON")
    message = str(entry["msg"]).removeprefix("Value error, ")
    return Violation(pointer=_pointer(entry["loc"]), detail=message[:1].lower() + message[1:])
