"""Refuses recommendations at the socket: at ten times the capacity, saying no must cost next to nothing.

The answer is `PlaceGuard`'s own 429, without the task, the ASGI cycle and the log line that it would cost
there: the engine shares the interpreter with all of that, and would starve. Only the plainest of requests
are refused here: one whole `POST /recommend` in one read, with a key that is right, on a kept HTTP/1.1
connection where nothing is under way. All others go the ordinary way and get the same answer there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service import problems
from service.errors import OverloadedError, ServiceError
from service.keys import Keys
from service.metrics import Metrics
from service.middleware import REQUEST_ID, new_request_id
from service.recommend.admission import Admission

_PLAIN = b"POST /recommend HTTP/1.1\r\n"
# A header that is not among these may ask for something that only the ordinary way does, CORS for one.
_HARMLESS = frozenset(
    {b"host", b"accept", b"accept-encoding", b"accept-language", b"authorization", b"content-type"}
    | {b"content-length", b"user-agent", b"x-request-id", b"forwarded", b"x-forwarded-for"}
    | {b"x-forwarded-proto", b"x-forwarded-host", b"x-real-ip", b"via", b"traceparent", b"tracestate"}
)
_HEADER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?)")
_ID_PLACE = "\N{REPLACEMENT CHARACTER}"
_TELLING_SECONDS = 1.0
_log = logging.getLogger("espalier.access")


class Turnstile:
    """Knows what to refuse, and counts it. It logs one line a second, however many were refused in it."""

    def __init__(self, admission: Admission, keys: Keys, metrics: Metrics) -> None:
        self._admission = admission
        self._keys = keys
        self._rejections = metrics.rejections.labels(problems.kind_of(OverloadedError).name)
        self._durations = metrics.request_duration.labels("/recommend", "429")
        self._coming = 0  # let through in this turn of the event loop, so without a place yet
        self._untold = 0

    def refusal(self, data: bytes, common: Iterable[tuple[bytes, bytes]] = ()) -> bytes | None:
        """The answer to a whole request that is to be refused; None: it goes the ordinary way.

        Args:
            data: what was read.
            common: headers that every answer has.
        """
        if not data.startswith(_PLAIN):
            return None
        start = time.perf_counter()
        overload = self._admission.overload(self._coming)
        if overload is None:
            self._let_through()
            return None
        head, _, body = data.partition(b"\r\n\r\n")
        headers = _headers(head)
        if headers is None or headers.get(b"content-length") != b"%d" % len(body):
            return None
        try:
            self._keys.check(headers.get(b"authorization"))
        except ServiceError:
            return None
        given = headers.get(b"x-request-id", b"").decode()
        request_id = (given if REQUEST_ID.fullmatch(given) else new_request_id()).encode()
        before, after = _document(str(overload), overload.retry_after_s)
        seconds = time.perf_counter() - start
        self._count(seconds)
        shared = b"".join(b"%b: %b\r\n" % header for header in common)
        return (
            b"HTTP/1.1 429 Too Many Requests\r\nretry-after: %d\r\ncontent-length: %d\r\n"
            b"content-type: %b\r\nx-request-id: %b\r\nserver-timing: total;dur=%.3f\r\n"
            b"cache-control: no-store\r\n%b\r\n%b%b%b"
        ) % (
            overload.retry_after_s,
            len(before) + len(request_id) + len(after),
            problems.MEDIA_TYPE.encode(),
            request_id,
            seconds * 1e3,
            shared,
            before,
            request_id,
            after,
        )

    def _let_through(self) -> None:
        if not self._coming:
            asyncio.get_running_loop().call_soon(self._arrived)
        self._coming += 1

    def _arrived(self) -> None:
        self._coming = 0

    def _count(self, seconds: float) -> None:
        self._rejections.inc()
        self._durations.observe(seconds)
        if not self._untold:
            asyncio.get_running_loop().call_later(_TELLING_SECONDS, self._tell)
        self._untold += 1

    def _tell(self) -> None:
        fields = {"route": "/recommend", "status": 429, "count": self._untold}
        self._untold = 0
        _log.info("refused at the socket", extra={"fields": fields})


class TurnstileProtocol(HttpToolsProtocol):
    """uvicorn's protocol, with the turnstile before its parser."""

    def __init__(self, *given: Any, turnstile: Turnstile, **named: Any) -> None:
        super().__init__(*given, **named)
        self._turnstile = turnstile
        self._inside = False  # a request that the parser has not seen the end of
        self._refused = -math.inf

    def on_message_begin(self) -> None:
        self._inside = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._inside = False
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        common = self.server_state.default_headers
        answer = self._turnstile.refusal(data, common) if self._idle() else None
        if answer is None:
            super().data_received(data)
            return
        self.transport.write(answer)
        self._refused = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._keep_alive(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        left = self._refused + self.timeout_keep_alive - self.loop.time()
        if left > 0:  # the time counts from the last answer, and ours have not wound the clock up
            self._keep_alive(left)
        else:
            super().timeout_keep_alive_handler()

    def _keep_alive(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _idle(self) -> bool:
        """Whether whatever arrives is a request's beginning, and its answer the next that is due."""
        answered = self.cycle is None or self.cycle.response_complete
        return (
            answered
            and not (self._inside or self.pipeline or self.flow.write_paused)
            and not self.transport.is_closing()
        )


@lru_cache(maxsize=256)  # one client's heads differ in little, and most in nothing
def _headers(head: bytes) -> dict[bytes, bytes] | None:
    """The headers of a request's head; None: of anything less plain."""
    found: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n")[1:]:
        match = _HEADER.fullmatch(line)
        if match is None:
            return None
        name, value = match[1].lower(), match[2]
        kept = name == b"connection" and value.lower() == b"keep-alive"
        if name in found or not (kept or name in _HARMLESS):
            return None
        found[name] = value
    return found


@lru_cache(maxsize=16)
def _document(detail: str, retry_after_s: int) -> tuple[bytes, bytes]:
    """The problem document, before and after the request's id."""
    document = problems.problem_of(OverloadedError(detail, retry_after_s), _ID_PLACE)
    before, _, after = document.model_dump_json(exclude_none=True).partition(_ID_PLACE)
    return before.encode(), after.encode()
