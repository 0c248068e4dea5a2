import time
from typing import Any
from urllib.parse import quote

import httpx
import pytest

pytestmark = pytest.mark.valkey


async def post(client: httpx.AsyncClient, path: str, body: Any) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def history(client: httpx.AsyncClient, user: str) -> list[dict[str, Any]]:
    response = await client.get(f"/users/{quote(user, safe='')}/history")
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    answer = response.json()
    assert answer["user_id"] == user
    items: list[dict[str, Any]] = answer["items"]
    return items


async def test_one_event_or_several(remembering: httpx.AsyncClient) -> None:
    answer = await post(remembering, "/users/ann/events", {"item_id": "g3", "timestamp": 7})
    assert answer == {"user_id": "ann", "accepted": 1, "duplicates": 0, "unknown_items": []}
    events = [{"item_id": "g4", "timestamp": 5}, {"item_id": "g3", "timestamp": 7}]
    answer = await post(remembering, "/users/ann/events", {"events": events})
    assert answer == {"user_id": "ann", "accepted": 1, "duplicates": 1, "unknown_items": []}
    assert await history(remembering, "ann") == [
        {"item_id": "g4", "title": "Portal 5", "timestamp": 5},
        {"item_id": "g3", "title": "Portal 4", "timestamp": 7},
    ]


async def test_unknown_items_are_stored_and_named(remembering: httpx.AsyncClient) -> None:
    events = [{"item_id": "x"}, {"item_id": 12}, {"item_id": "x"}, {"item_id": "g1"}]
    answer = await post(remembering, "/users/ann/events", {"events": events})
    assert answer["unknown_items"] == ["x", "12"]
    assert answer["accepted"] == 4
    titles = [(item["item_id"], item["title"]) for item in await history(remembering, "ann")]
    assert titles == [("x", None), ("12", None), ("x", None), ("g1", "Portal 2")]


async def test_without_a_time_it_is_now(remembering: httpx.AsyncClient) -> None:
    before = time.time()
    await post(remembering, "/users/ann/events", {"item_id": "g1", "timestamp": None, "event_id": None})
    (item,) = await history(remembering, "ann")
    assert before - 1 <= item["timestamp"] <= time.time() + 1


async def test_an_event_id_is_stored_once(remembering: httpx.AsyncClient) -> None:
    for duplicates in (0, 1):
        answer = await post(remembering, "/users/ann/events", {"item_id": "g1", "event_id": "e"})
        assert answer["duplicates"] == duplicates
    for _ in range(2):
        await post(remembering, "/users/ann/events", {"item_id": "g1"})
    assert len(await history(remembering, "ann")) == 3


async def test_events_of_several_users(remembering: httpx.AsyncClient) -> None:
    events = [
        {"user_id": "ann", "item_id": "g1", "timestamp": 2},
        {"user_id": "a/b", "item_id": "x", "timestamp": 1},
        {"user_id": "ann", "item_id": "g2", "timestamp": 1},
        {"user_id": "ann", "item_id": "g1", "timestamp": 2},
    ]
    answer = await post(remembering, "/events", {"events": events})
    assert answer == {"user_id": None, "accepted": 3, "duplicates": 1, "unknown_items": ["x"]}
    assert [item["item_id"] for item in await history(remembering, "ann")] == ["g2", "g1"]
    assert [item["item_id"] for item in await history(remembering, "a/b")] == ["x"]
    assert (await post(remembering, "/events", events[0]))["user_id"] == "ann"


@pytest.mark.parametrize(
    "user", ["a/b", "/", "a/history", "100%", "%2F", "ü 😀", "a\nb", "..", "a?b#c", "x" * 256]
)
async def test_user_ids_of_any_characters_in_paths(remembering: httpx.AsyncClient, user: str) -> None:
    path = f"/users/{quote(user, safe='').replace('.', '%2E')}"
    await post(remembering, f"{path}/events", {"item_id": "g1"})
    response = await remembering.get(f"{path}/history")
    assert response.json()["user_id"] == user
    assert len(response.json()["items"]) == 1
    recommended = await post(remembering, "/recommend", {"user_id": user})
    assert recommended["strategy"] == "model"


@pytest.mark.parametrize("segment", ["", "x" * 257, "%ff", "a%C3"])
async def test_paths_without_a_user_id_are_refused(remembering: httpx.AsyncClient, segment: str) -> None:
    response = await remembering.get(f"/users/{segment}/history")
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "#/path/user_id"


async def test_forgetting_a_user(remembering: httpx.AsyncClient) -> None:
    await post(remembering, "/users/ann/events", {"item_id": "g1"})
    for _ in range(2):
        response = await remembering.delete("/users/ann/history")
        assert (response.status_code, response.content) == (204, b"")
    assert await history(remembering, "ann") == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, "#/item_id"),
        ({"item_id": None}, "#/item_id"),
        ({"item_id": "g1", "timestamp": -1}, "#/timestamp"),
        ({"item_id": "g1", "timestamp": "5"}, "#/timestamp"),
        ({"item_id": "g1", "timestamp": True}, "#/timestamp"),
        ({"item_id": "g1", "timestamp": time.time() + 100_000}, "#/timestamp"),
        ({"item_id": "g1", "timestamp": int(time.time() * 1000)}, "#/timestamp"),
        ({"item_id": "g1", "event_id": ""}, "#/event_id"),
        ({"item_id": "g1", "colour": "red"}, "#/colour"),
        ({"item_id": "g1", "user_id": "ann"}, "#/user_id"),
        ({"events": [{"item_id": "g1"}, {}]}, "#/events/1/item_id"),
        ({"events": [], "item_id": "g1"}, "#/item_id"),
        ({"events": [{"item_id": "g1"}] * 1001}, "#/events"),
        ([], "#"),
    ],
)
async def test_malformed_events_are_refused_and_none_is_stored(
    remembering: httpx.AsyncClient, body: Any, pointer: str
) -> None:
    response = await remembering.post("/users/ann/events", json=body)
    assert response.status_code == 422
    assert pointer in [violation["pointer"] for violation in response.json()["errors"]], response.text
    assert await history(remembering, "ann") == []


async def test_half_a_day_ahead_is_accepted(remembering: httpx.AsyncClient) -> None:
    await post(remembering, "/users/ann/events", {"item_id": "g1", "timestamp": time.time() + 43_000})


async def test_no_events_are_no_error(remembering: httpx.AsyncClient) -> None:
    answer = await post(remembering, "/users/ann/events", {"events": []})
    assert answer["accepted"] == 0


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/users/ann/events", {"item_id": "g1"}),
        ("POST", "/events", {"item_id": "g1", "user_id": "ann"}),
        ("GET", "/users/ann/history", None),
        ("DELETE", "/users/ann/history", None),
    ],
)
async def test_redis_away_is_said_so(
    client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any] | None
) -> None:
    response = await client.request(method, path, json=body)
    assert response.status_code == 503
    assert response.json()["type"] == "urn:espalier:problem:history-unavailable"


@pytest.mark.parametrize("path", ["/users/ann/events", "/events"])
async def test_events_are_acknowledged_without_a_checkpoint(
    remembering: httpx.AsyncClient, path: str
) -> None:
    services = remembering.app.state.services  # type: ignore[attr-defined]
    model = services.models.current
    services.models.replace(None)
    body = {"item_id": "g1"} if "ann" in path else {"item_id": "g1", "user_id": "ann"}
    answer = await post(remembering, path, body)
    assert answer == {"user_id": "ann", "accepted": 1, "duplicates": 0, "unknown_items": None}
    assert (await remembering.get("/users/ann/history")).status_code == 503
    assert model is not None
    stored = await services.histories.read("ann")
    assert [event.item_id for event in stored.events] == ["g1"]
