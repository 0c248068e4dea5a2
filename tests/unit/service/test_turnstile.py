"""The refusal at the socket: what it takes, what it leaves to the ordinary way, and what it says."""

import asyncio
import json
import logging

import httpx
import pytest

from service.keys import Keys
from service.metrics import Metrics
from service.recommend.admission import Admission
from service.turnstile import Turnstile

BODY = b'{"history":["g1"]}'


def request(
    line: bytes = b"POST /recommend HTTP/1.1", body: bytes = BODY, **headers: bytes | None
) -> bytes:
    """A plain request; None takes a header away."""
    plain = {
        "host": b"shop",
        "authorization": b"Bearer k",
        "content-type": b"application/json",
        "content-length": b"%d" % len(body),
    }
    all_of_them = {**plain, **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [b"%b: %b" % (name.encode(), value) for name, value in all_of_them.items() if value is not None]
    return b"\r\n".join([line, *lines, b"", body])


def turnstile(places: int = 0, metrics: Metrics | None = None) -> Turnstile:
    return Turnstile(Admission(places, 0, 1.0), Keys(("k",)), metrics or Metrics())


async def test_a_plain_request_is_refused_with_the_documented_answer() -> None:
    metrics = Metrics()
    answer = turnstile(metrics=metrics).refusal(request(x_request_id=b"shop-1"), [(b"date", b"today")])
    assert answer is not None
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = httpx.Headers([tuple(line.split(": ", 1)) for line in lines])
    assert status == "HTTP/1.1 429 Too Many Requests"
    assert headers["content-type"] == "application/problem+json"
    assert int(headers["content-length"]) == len(body)
    assert (headers["retry-after"], headers["x-request-id"], headers["date"]) == ("1", "shop-1", "today")
    assert headers["cache-control"] == "no-store"
    problem = json.loads(body)
    assert (problem["type"], problem["status"]) == ("urn:espalier:problem:overloaded", 429)
    assert (problem["retry_after_s"], problem["request_id"]) == (1, "shop-1")
    assert metrics.registry.get_sample_value("espalier_rejections_total", {"reason": "overloaded"}) == 1
    labels = {"route": "/recommend", "status": "429"}
    assert metrics.registry.get_sample_value("espalier_request_duration_seconds_count", labels) == 1


@pytest.mark.parametrize(
    "data",
    [
        request(b"POST /recommend/batch HTTP/1.1"),
        request(b"GET /recommend HTTP/1.1"),
        request(b"POST /recommend HTTP/1.0"),
        request(b"POST /recommend?x=1 HTTP/1.1"),
        request(authorization=None),
        request(authorization=b"Bearer wrong"),
        request(content_length=None),
        request(content_length=b"17"),
        request(content_length=b"19"),
        request(content_length=b"+18"),
        request(content_length=None, transfer_encoding=b"chunked"),
        request(transfer_encoding=b"chunked"),
        request(expect=b"100-continue"),
        request(connection=b"close"),
        request(origin=b"https://shop.example"),
        request() + request(),
        request()[:40],
        request().replace(b"host: shop", b"host: shop\r\nhost: other"),
        request().replace(b"host: shop", b"host: shop\r\n folded"),
        request().replace(b"host: shop", b"host : shop"),
        b"",
    ],
)
async def test_whatever_is_less_plain_goes_the_ordinary_way(data: bytes) -> None:
    assert turnstile().refusal(data) is None


async def test_a_kept_connection_may_say_so() -> None:
    assert turnstile().refusal(request(connection=b"Keep-Alive")) is not None


async def test_where_there_is_a_place_one_turn_lets_through_no_more_than_fit() -> None:
    gate = turnstile(places=2)
    assert [gate.refusal(request()) is None for _ in range(4)] == [True, True, False, False]
    await asyncio.sleep(0)  # those two have had the time to take their places, and did not
    assert gate.refusal(request()) is None


async def test_one_line_tells_of_a_seconds_refusals(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.turnstile._TELLING_SECONDS", 0.01)
    gate = turnstile()
    with caplog.at_level(logging.INFO, logger="espalier.access"):
        for _ in range(3):
            gate.refusal(request())
        while not caplog.records:
            await asyncio.sleep(0.01)
    assert [record.__dict__["fields"]["count"] for record in caplog.records] == [3]
