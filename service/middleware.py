"""What surrounds every request, as pure ASGI: identity and measure, keys, body.

From the outside in: `RequestContext` gives a request its id, measures and logs it, and turns every error
into a problem document; `KeyGuard` asks for a key; `BodyGuard` reads the body, refuses what is too
long or no JSON, and cancels the work when the client leaves.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import problems
from service.errors import AdminDisabledError, BodyTooLargeError, MediaTypeError, ServiceError
from service.keys import Keys
from service.metrics import Metrics
from service.page import routes as page

# Whoever watches, reads the interface or opens the page needs no key; everything else does.
OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/metrics", "/metrics/vllm", "/docs", "/openapi.json"})
# Whoever has a key sees how checkpoints are exchanged; only the admin token exchanges them.
_ADMIN = "/checkpoints/"
_WATCHED = ("/checkpoints", "/operations/")
_PRIVATE = ("/recommend", "/users", "/events")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_CLIENT_LEFT = 499  # no status was sent; the number is nginx's
_REJECTIONS = frozenset({401, 403, 413, 415, 429, 503, 504})
_log = logging.getLogger("espalier.access")


class ClientLeftError(Exception):
    """The client closed the connection before its answer was complete."""


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
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
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
        route = getattr(scope.get("route"), "path_format", "unmatched")
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
        if document.status in _REJECTIONS:
            self._metrics.rejections.labels(document.type.removeprefix(problems.URN)).inc()
        return document


class KeyGuard:
    """Lets a request through when its path is open or its key is right; admin paths ask for the token."""

    def __init__(self, app: ASGIApp, keys: Keys, admin: Keys) -> None:
        self.app = app
        self._keys = keys
        self._admin = admin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]):
            header = Headers(scope=scope).get("authorization")
            self._needed(scope["path"]).check(None if header is None else header.encode("latin-1"))
        await self.app(scope, receive, send)

    def _needed(self, path: str) -> Keys:
        if path.startswith(_ADMIN):
            if not self._admin:
                raise AdminDisabledError("set ESPALIER_ADMIN_TOKEN_FILE to enable it")
            return self._admin
        return self._keys.or_else(self._admin) if path.startswith(_WATCHED) else self._keys


class BodyGuard:
    """Reads the whole body before the app runs, and watches the connection while it does."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        if body and not _is_json(Headers(scope=scope).get("content-type", "")):
            raise MediaTypeError("send the body as `Content-Type: application/json`")
        unread = [body]
        complete = False
        left = asyncio.create_task(_departure(receive))

        async def replay() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            return await asyncio.shield(left)

        async def watched_send(message: Message) -> None:
            nonlocal complete
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        answering = asyncio.ensure_future(self.app(scope, replay, watched_send))
        try:
            await asyncio.wait({answering, left}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done() and not complete:
                raise ClientLeftError
            await answering
        finally:
            for task in (answering, left):
                task.cancel()
            await asyncio.gather(answering, left, return_exceptions=True)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        declared = Headers(scope=scope).get("content-length", "")
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
