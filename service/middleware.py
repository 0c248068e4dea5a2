"""What surrounds every request, as pure ASGI: identity and measure, keys, body.

From the outside in: `RequestContext` gives a request its id, measures and logs it, and turns every error
into a problem document; `KeyGuard` asks for a key; `PlaceGuard` turns recommendations away for which there
is no place; `BodyGuard` reads the body, refuses what is too long, too slow or no JSON, and cancels the work
when the client leaves. Whatever is refused here costs no routing and no parsing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems
from service.errors import (
    AdminDisabledError,
    BodyLateError,
    BodyTooLargeError,
    MediaTypeError,
    ServiceError,
)
from service.keys import Keys
from service.metrics import Metrics
from service.page import routes as page
from service.recommend.admission import Admission, Pace

# Whoever watches, reads the interface or opens the page needs no key; everything else does.
OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/metrics", "/metrics/vllm", "/docs", "/openapi.json"})
# Whoever has a key sees how checkpoints are exchanged; only the admin token exchanges them.
_ADMIN = "/checkpoints/"
_WATCHED = ("/checkpoints", "/operations/")
_PRIVATE = ("/recommend", "/users", "/events")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
# What takes one place, which is asked for by the path alone. (A batch takes one for each of its requests.)
_PLACED = ("POST", "/recommend")
_A_TURN = 8
_BODY_SECONDS = 5.0
_CLIENT_LEFT = 499  # no status was sent; the number is nginx's
_log = logging.getLogger("espalier.access")


class ClientLeftError(Exception):
    """The client closed the connection before its answer was complete."""


def new_request_id() -> str:
    """It tells requests apart and guards nothing, so it need not cost a call to the system."""
    return f"{random.getrandbits(128):032x}"


class RequestContext:
    """Request id, `Server-Timing`, metrics, one log line, and the mapping of errors."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start = time.perf_counter()
        given = _header(scope, b"x-request-id")
        request_id = given if REQUEST_ID.fullmatch(given) else new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                _add_headers(MutableHeaders(scope=message), scope, request_id, start)
            await send(message)

        with self._metrics.in_flight.track_inprogress():
            try:
                await self.app(scope, receive, send_with_headers)
            except ClientLeftError:
                status = _CLIENT_LEFT
            except Exception as error:
                if status:  # the answer is half out: nothing but closing the connection is left
                    raise
                document = self._document(error, request_id)
                await problems.response(document)(scope, receive, send_with_headers)
        route = scope["state"].get("route") or getattr(scope.get("route"), "path_format", "unmatched")
        seconds = time.perf_counter() - start
        self._metrics.request_duration.labels(route, str(status)).observe(seconds)
        fields = {
            "request_id": request_id,
            "method": scope["method"],
            "route": route,
            "status": status,
            "duration_ms": round(seconds * 1e3, 3),
        }
        _log.info("answered", extra={"fields": fields})

    def _document(self, error: Exception, request_id: str) -> problems.Problem:
        if not isinstance(error, ServiceError):
            _log.error("unexpected", exc_info=error, extra={"fields": {"request_id": request_id}})
            return problems.problem(problems.INTERNAL, "The log says more, under this id.", request_id)
        document = problems.problem_of(error, request_id)
        self._metrics.answered(document)
        return document


class KeyGuard:
    """Lets a request through when its path is open or its key is right; admin paths ask for the token."""

    def __init__(self, app: ASGIApp, keys: Keys, admin: Keys) -> None:
        self.app = app
        self._keys = keys
        self._admin = admin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]):
            self._needed(scope["path"]).check(_header(scope, b"authorization").encode("latin-1"))
        await self.app(scope, receive, send)

    def _needed(self, path: str) -> Keys:
        if path.startswith(_ADMIN):
            if not self._admin:
                raise AdminDisabledError("set ESPALIER_ADMIN_TOKEN_FILE to enable it")
            return self._admin
        return self._keys.or_else(self._admin) if path.startswith(_WATCHED) else self._keys


class PlaceGuard:
    """Gives a recommendation its place before anything is read for it, or turns it away."""

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self.app = app
        self._admission = admission
        self._pace = Pace(_A_TURN)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"], scope["path"]) != _PLACED:
            await self.app(scope, receive, send)
            return
        scope["state"]["route"] = scope["path"]  # routing may never happen
        with self._admission.place():
            await self._pace.turn()
            await self.app(scope, receive, send)


class BodyGuard:
    """Reads the whole body before the app runs, and watches the connection while it does."""

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float = _BODY_SECONDS) -> None:
        self.app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(scope, receive)
        except TimeoutError as error:
            raise BodyLateError(f"the body did not arrive within {self._seconds:g} s") from error
        if body and not _is_json(_header(scope, b"content-type")):
            raise MediaTypeError("send the body as `Content-Type: application/json`")
        unread = [body]
        complete = gone = False
        answering = asyncio.current_task()
        assert answering is not None
        cancelled_before = answering.cancelling()

        async def replay() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await asyncio.shield(left)

        async def watched_send(message: Message) -> None:
            nonlocal complete
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        def stop(watch: asyncio.Task[Message]) -> None:
            nonlocal gone
            if not (watch.cancelled() or complete):
                gone = True
                answering.cancel()

        left = asyncio.create_task(_departure(receive))
        left.add_done_callback(stop)
        try:
            await self.app(scope, replay, watched_send)
        except BaseException as error:
            if gone and answering.uncancel() <= cancelled_before:  # nobody but us has ended it
                raise ClientLeftError from error
            raise
        else:
            if gone and answering.uncancel() <= cancelled_before:
                raise ClientLeftError
        finally:
            complete = True
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        declared = _header(scope, b"content-length")
        if declared.isdecimal() and int(declared) > self._max_bytes:
            raise BodyTooLargeError(f"the body has {declared} bytes; at most {self._max_bytes} are taken")
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeftError
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > self._max_bytes:
                raise BodyTooLargeError(f"the body exceeds {self._max_bytes} bytes")
            if not message.get("more_body", False):
                return b"".join(chunks)


async def _departure(receive: Receive) -> Message:
    """Waits until the client leaves."""
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


def _header(scope: Scope, name: bytes) -> str:
    """The first header of this (lower-case) name; empty if there is none."""
    return next((value.decode("latin-1") for given, value in scope["headers"] if given == name), "")


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(page.FOLDER)


def _is_json(content_type: str) -> bool:
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )


def _add_headers(headers: MutableHeaders, scope: Scope, request_id: str, start: float) -> None:
    headers["X-Request-ID"] = request_id
    stages: dict[str, float] = dict(scope["state"].get("stages", {}))
    stages["total"] = round((time.perf_counter() - start) * 1e3, 3)
    headers["Server-Timing"] = ", ".join(f"{stage};dur={spent}" for stage, spent in stages.items())
    if scope["path"].startswith(_PRIVATE):
        headers["Cache-Control"] = "no-store"
