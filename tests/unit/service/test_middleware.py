"""What surrounds requests, around an app of a few lines: nothing of the service is needed."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from service.errors import DeadlineError
from service.keys import Keys
from service.metrics import Metrics
from service.middleware import BodyGuard, KeyGuard, PlaceGuard, RequestContext
from service.recommend.admission import Admission

App = Callable[[Scope, Receive, Send], Awaitable[None]]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def wrapped(
    inner: App, metrics: Metrics, keys: Keys | None = None, limit: int = 100, admin: Keys | None = None
) -> App:
    guarded = KeyGuard(BodyGuard(inner, limit), keys or Keys(), admin or Keys())
    return RequestContext(guarded, metrics)


def client_of(app: App) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://test")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def count(metrics: Metrics, status: str, route: str = "unmatched") -> float | None:
    labels = {"route": route, "status": status}
    return metrics.registry.get_sample_value("espalier_request_duration_seconds_count", labels)


async def test_a_request_id_is_kept_if_it_is_tame_and_made_otherwise(metrics: Metrics) -> None:
    async with client_of(wrapped(echo, metrics)) as client:
        for given, kept in (("shop-1.a_b", True), ("two words", False), ("x" * 129, False)):
            answer = await client.get("/", headers={"X-Request-ID": given})
            assert (answer.headers["x-request-id"] == given) is kept
            assert answer.headers["x-request-id"]
        assert "cache-control" not in answer.headers
        assert answer.headers["server-timing"].startswith("total;dur=")
    assert count(metrics, "200") == 3
    assert metrics.registry.get_sample_value("espalier_requests_in_flight") == 0


async def test_private_answers_are_not_to_be_stored(metrics: Metrics) -> None:
    async with client_of(wrapped(echo, metrics, Keys(("k",)))) as client:
        for path in ("/recommend", "/users/a/history"):
            answer = await client.get(path)
            assert answer.status_code == 401
            assert answer.headers["cache-control"] == "no-store"


async def test_keys_are_asked_for_except_where_machines_watch(metrics: Metrics) -> None:
    async with client_of(wrapped(echo, metrics, Keys(("k",)))) as client:
        for path in ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200
        assert (await client.get("/items")).json()["type"] == "urn:espalier:problem:key-missing"
        wrong = await client.get("/items", headers={"Authorization": "Bearer x"})
        assert (wrong.status_code, wrong.json()["type"]) == (403, "urn:espalier:problem:key-refused")
        assert (await client.get("/items", headers={"Authorization": "Bearer k"})).status_code == 200
    rejected = metrics.registry.get_sample_value("espalier_rejections_total", {"reason": "key-missing"})
    assert rejected == 1


@pytest.mark.parametrize("declared", [True, False])
async def test_a_long_body_is_refused(metrics: Metrics, declared: bool) -> None:
    async def chunks() -> Any:
        for _ in range(11):
            yield b" " * 10

    content = b" " * 101 if declared else chunks()
    headers = {"Content-Type": "application/json"}
    async with client_of(wrapped(echo, metrics)) as client:
        answer = await client.post("/", content=content, headers=headers)
        assert (answer.status_code, answer.json()["type"]) == (413, "urn:espalier:problem:body-too-large")
        assert (await client.post("/", content=b" " * 100, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/merge-patch+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("", 415),
    ],
)
async def test_a_body_must_be_json(metrics: Metrics, media_type: str, status: int) -> None:
    async with client_of(wrapped(echo, metrics)) as client:
        answer = await client.post("/", content=b"{}", headers={"Content-Type": media_type})
        assert answer.status_code == status


async def test_our_errors_become_problems_and_others_tell_nothing(
    metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/ours":
            raise DeadlineError("too late")
        raise RuntimeError("secret")

    async with client_of(wrapped(fail, metrics)) as client:
        ours = await client.get("/ours")
        assert (ours.status_code, ours.json()["detail"]) == (504, "too late")
        theirs = await client.get("/theirs", headers={"X-Request-ID": "r1"})
    assert theirs.status_code == 500
    assert theirs.json()["type"] == "urn:espalier:problem:internal"
    assert "secret" not in theirs.text
    logged = [record for record in caplog.records if record.exc_info]
    assert [record.__dict__["fields"] for record in logged] == [{"request_id": "r1"}]


def posted() -> Scope:
    """A request's scope, which its middleware writes into."""
    return {"type": "http", "method": "POST", "path": "/recommend", "headers": []}


def asked_until(left: asyncio.Event) -> Receive:
    """The messages of a client that sends one empty body and stays until `left`."""
    messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    return receive


@pytest.mark.parametrize("ending", ["cancelled", "converted", "swallowed"])
async def test_when_the_client_leaves_the_work_is_dropped(metrics: Metrics, ending: str) -> None:
    began, dropped = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            if ending == "converted":
                raise RuntimeError("ended") from error
            if ending == "cancelled":
                raise
        finally:
            dropped.set()

    async def send(message: Message) -> None:
        raise AssertionError("there is nobody to answer")

    await wrapped(slow, metrics)(posted(), asked_until(began), send)
    assert dropped.is_set()
    assert count(metrics, "499") == 1


async def test_whoever_else_ends_an_answer_is_not_taken_for_the_client(metrics: Metrics) -> None:
    began = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        await asyncio.sleep(60)

    async def send(message: Message) -> None:
        raise AssertionError("nothing is answered")

    answering = asyncio.create_task(wrapped(slow, metrics)(posted(), asked_until(asyncio.Event()), send))
    await began.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert answering.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_client_that_leaves_with_its_answer_has_been_answered(metrics: Metrics) -> None:
    answered = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            answered.set()
            await asyncio.sleep(0.01)  # the departure is seen while the app is still at its end

    await wrapped(echo, metrics)(posted(), asked_until(answered), send)
    assert count(metrics, "200") == 1


async def test_a_log_line_names_no_path(metrics: Metrics, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="espalier.access"):
        async with client_of(wrapped(echo, metrics)) as client:
            await client.get("/users/ann/history")
    (record,) = [record for record in caplog.records if record.name == "espalier.access"]
    fields = record.__dict__["fields"]
    assert (fields["route"], fields["status"], fields["method"]) == ("unmatched", 200, "GET")
    assert "ann" not in json.dumps(fields) + record.getMessage()


@pytest.mark.parametrize("path", ["/checkpoints/rollback", "/checkpoints/a/activate", "/checkpoints/"])
async def test_without_an_admin_token_admin_calls_are_refused(metrics: Metrics, path: str) -> None:
    async with client_of(wrapped(echo, metrics)) as client:
        answer = await client.post(path, headers={"Authorization": "Bearer anything"})
        assert (answer.status_code, answer.json()["type"]) == (403, "urn:espalier:problem:admin-disabled")


async def test_only_the_admin_token_exchanges_and_either_key_watches(metrics: Metrics) -> None:
    app = wrapped(echo, metrics, Keys(("user",)), admin=Keys(("root", "next")))
    user, root, following = ({"Authorization": f"Bearer {key}"} for key in ("user", "root", "next"))
    async with client_of(app) as client:

        async def status(path: str, headers: dict[str, str]) -> int:
            return (await client.post(path, headers=headers)).status_code

        assert await status("/checkpoints/rollback", root) == 200
        assert await status("/checkpoints/rollback", following) == 200
        assert await status("/checkpoints/rollback", user) == 403
        assert await status("/checkpoints/rollback", {}) == 401
        for path in ("/checkpoints", "/operations/1"):
            assert await status(path, user) == await status(path, root) == 200
            assert await status(path, {}) == 401
        assert await status("/recommend", root) == 403


async def test_watching_asks_for_no_key_where_none_is_configured(metrics: Metrics) -> None:
    async with client_of(wrapped(echo, metrics, admin=Keys(("root",)))) as client:
        assert (await client.post("/checkpoints")).status_code == 200
        assert (await client.post("/checkpoints/rollback")).status_code == 401


async def test_a_body_that_does_not_come_is_not_waited_for(metrics: Metrics) -> None:
    async def receive() -> Message:
        await asyncio.sleep(60)
        raise AssertionError("it was waited for")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    app = RequestContext(BodyGuard(echo, 100, seconds=0.01), metrics)
    await app({"type": "http", "method": "POST", "path": "/x", "headers": []}, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["type"] == "urn:espalier:problem:body-late"


async def test_without_a_place_not_even_the_body_is_read(metrics: Metrics) -> None:
    async def receive() -> Message:
        raise AssertionError("the body was read")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    app = RequestContext(PlaceGuard(BodyGuard(echo, 100), Admission(0, 0, 1.0)), metrics)
    scope = posted()
    await app(scope, receive, send)
    assert sent[0]["status"] == 429
    assert count(metrics, "429", "/recommend") == 1
    rejected = metrics.registry.get_sample_value("espalier_rejections_total", {"reason": "overloaded"})
    assert rejected == 1
