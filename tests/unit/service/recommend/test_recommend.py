"""Every sentence that the design says about `POST /recommend`, asked of the running app."""

import asyncio
import json
import math
from typing import Any

import httpx
import pytest

from recommender.artifact import Artifact
from recommender.ranker import Ranker
from recommender.search.frontier import Query


async def ask(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/recommend", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def refused(client: httpx.AsyncClient, body: Any, pointer: str) -> str:
    response = await client.post(
        "/recommend", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == "urn:espalier:problem:invalid-request"
    assert problem["status"] == 422
    assert pointer in [violation["pointer"] for violation in problem["errors"]], problem
    detail: str = problem["detail"]
    return detail


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same ranking; a prompt that was read in two parts gives scores that differ in the last digits."""
    assert ids(one) == ids(other)
    scores = ([item["score"] for item in answer["items"]] for answer in (one, other))
    assert next(scores) == pytest.approx(next(scores), abs=1e-5)


async def test_an_answer_is_the_rankers(client: httpx.AsyncClient, served_artifact: Artifact) -> None:
    answer = await ask(client, history=["g3", "g9"], k=6, exclude_seen=False)
    ranker = Ranker.from_artifact(served_artifact)
    query = Query(ranker.prompt((3, 9)), 6)
    expected = ranker.items(ranker.search.rank([query])[0], query)
    assert ids(answer) == [f"g{item.index}" for item in expected]
    assert [item["score"] for item in answer["items"]] == pytest.approx([item.score for item in expected])
    assert [item["rank"] for item in answer["items"]] == [1, 2, 3, 4, 5, 6]
    assert answer["items"][0]["title"] == ranker.catalogue.titles[expected[0].index]
    assert answer["model"] == served_artifact.identity
    assert (answer["strategy"], answer["exact"], answer["degraded"]) == ("model", True, None)
    assert (answer["user_id"], answer["unknown_items"]) == (None, [])


async def test_headers_name_the_model_the_times_and_the_request(
    client: httpx.AsyncClient, served_artifact: Artifact
) -> None:
    response = await client.post(
        "/recommend", json={"history": ["g1"]}, headers={"X-Request-ID": "shop-17"}
    )
    assert response.headers["espalier-model"] == served_artifact.identity
    assert response.headers["x-request-id"] == "shop-17"
    assert response.headers["cache-control"] == "no-store"
    stages = [entry.split(";")[0] for entry in response.headers["server-timing"].split(", ")]
    assert stages == ["history", "prompt", "queue", "prefill", "decode", "total"]
    times = response.json()["timings_ms"]
    assert list(times) == stages
    assert times["total"] >= times["prefill"] + times["decode"] > 0


async def test_scores_are_log_probabilities_that_sum_to_one_over_titles(client: httpx.AsyncClient) -> None:
    answer = await ask(client, history=["g1"], k=100, exclude_seen=False)
    by_title = {item["title"]: item["score"] for item in answer["items"]}
    assert len(answer["items"]) == 30
    assert sum(math.exp(score) for score in by_title.values()) == pytest.approx(1, abs=1e-4)


async def test_items_that_share_a_title_share_its_score_by_popularity(client: httpx.AsyncClient) -> None:
    answer = await ask(client, history=["g1"], k=100, exclude_seen=False)
    order = ids(answer)
    assert order.index("g24") + 1 == order.index("g0")
    scores = {item["item_id"]: item["score"] for item in answer["items"]}
    assert scores["g24"] == scores["g0"]


async def test_a_history_is_needed_one_way_or_the_other(client: httpx.AsyncClient) -> None:
    assert "user_id, history, or both" in await refused(client, {}, "#")
    assert "user_id, history, or both" in await refused(client, {"user_id": None, "history": None}, "#")


async def test_an_empty_history_is_a_cold_user_who_gets_what_is_popular(client: httpx.AsyncClient) -> None:
    answer = await ask(client, history=[], k=3, exclude=["g28"])
    assert ids(answer) == ["g29", "g27", "g26"]
    assert answer["strategy"] == "popular"
    assert answer["exact"] is None
    assert answer["degraded"] is None
    assert [item["score"] for item in answer["items"]] == [None] * 3


async def test_a_popular_list_obeys_candidates(client: httpx.AsyncClient) -> None:
    answer = await ask(client, history=[], candidates=["g4", "g11", "nobody"])
    assert ids(answer) == ["g11", "g4"]


async def test_only_unknown_items_are_a_cold_user_too(client: httpx.AsyncClient) -> None:
    answer = await ask(client, history=["x", "y", {"item_id": "x"}])
    assert answer["strategy"] == "popular"
    assert answer["unknown_items"] == ["x", "y"]


async def test_unknown_items_are_named_and_skipped(client: httpx.AsyncClient) -> None:
    with_stranger = await ask(client, history=["g3", "x", "g9"])
    without = await ask(client, history=["g3", "g9"])
    assert with_stranger["unknown_items"] == ["x"]
    assert with_stranger["items"] == without["items"]


async def test_unknown_ids_of_filters_are_named_as_well(client: httpx.AsyncClient) -> None:
    answer = await ask(client, history=["h", "g3"], exclude=["e", "h"], candidates=["c", "g5"])
    assert answer["unknown_items"] == ["h", "e", "c"]
    assert ids(answer) == ["g5"]


async def test_null_is_absent(client: httpx.AsyncClient) -> None:
    nulls = dict.fromkeys(("user_id", "k", "exclude_seen", "exclude", "candidates"))
    entry = {"item_id": "g3", "title": None}
    answer = await ask(client, history=[entry], **nulls)
    assert answer["items"] == (await ask(client, history=["g3"]))["items"]
    assert len(answer["items"]) == 10


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"histroy": []}, "#/histroy"),
        ({"k": 0}, "#/k"),
        ({"k": 101}, "#/k"),
        ({"k": "3"}, "#/k"),
        ({"k": 3.5}, "#/k"),
        ({"k": True}, "#/k"),
        ({"exclude_seen": "yes"}, "#/exclude_seen"),
        ({"history": ["g1", None]}, "#/history/1"),
        ({"history": [1.5]}, "#/history/0"),
        ({"history": [True]}, "#/history/0"),
        ({"history": [""]}, "#/history/0"),
        ({"history": ["x" * 257]}, "#/history/0"),
        ({"history": [{"item_id": "g1", "weight": 2}]}, "#/history/0/weight"),
        ({"history": [{"item_id": "g1", "title": "Doom 1"}]}, "#/history/0/item_id"),
        ({"history": [{}]}, "#/history/0/item_id"),
        ({"history": [{"title": " \n "}]}, "#/history/0/title"),
        ({"history": [{"title": "x" * 513}]}, "#/history/0/title"),
        ({"history": ["g1"] * 1001}, "#/history"),
        ({"history": "g1"}, "#/history"),
        ({"user_id": ""}, "#/user_id"),
        ({"user_id": "u" * 257}, "#/user_id"),
        ({"user_id": "\ud800"}, "#/user_id"),
        ({"\ud800": 1}, "#"),
        ({"candidates": ["g1"] * 10_001}, "#/candidates"),
        ({"exclude": "g1"}, "#/exclude"),
    ],
)
async def test_malformed_requests_are_refused_where_they_are_wrong(
    client: httpx.AsyncClient, change: dict[str, Any], pointer: str
) -> None:
    await refused(client, {"history": ["g1"], **change}, pointer)


@pytest.mark.parametrize("body", [[], "g1", 3, None])
async def test_a_body_that_is_no_object_is_refused(client: httpx.AsyncClient, body: Any) -> None:
    await refused(client, body, "#")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b'{"k": ' + b"9" * 5000 + b"}", b""])
async def test_a_body_that_is_no_json_is_refused(client: httpx.AsyncClient, content: bytes) -> None:
    response = await client.post(
        "/recommend", content=content, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422
    assert response.json()["type"] == "urn:espalier:problem:invalid-request"


async def test_ten_thousand_candidates_are_taken(client: httpx.AsyncClient) -> None:
    answer = await ask(client, history=["g1"], candidates=["g5"] * 10_000)
    assert ids(answer) == ["g5"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/recommend", {"history": ["\ud800"]}),
        ("POST", "/recommend", {"history": ["g1"], "exclude": ["\ud800"]}),
        ("POST", "/recommend", {"history": ["g1"], "candidates": ["g2", "\ud800"]}),
        ("POST", "/users/ann/events", {"item_id": "\ud800", "timestamp": 1}),
    ],
)
async def test_an_id_that_is_no_text_is_refused(
    client: httpx.AsyncClient, method: str, path: str, body: dict[str, Any]
) -> None:
    response = await client.request(
        method, path, content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert response.status_code == 422, response.text
    assert response.json()["type"] == "urn:espalier:problem:invalid-request"


async def test_an_integer_is_read_as_its_decimal_string(client: httpx.AsyncClient) -> None:
    answer = await ask(client, history=[12, {"item_id": -3}, 5.0, "g1"], exclude=[7], k=2.0)
    assert answer["unknown_items"] == ["12", "-3", "5", "7"]
    assert len(answer["items"]) == 2


async def test_a_catalogue_title_counts_as_its_item(client: httpx.AsyncClient) -> None:
    by_title = await ask(client, history=[{"title": "  Doom \n 2 "}])
    by_id = await ask(client, history=["g19"])
    assert by_title["items"] == by_id["items"]
    assert "Doom 2" not in [item["title"] for item in by_title["items"]]


async def test_a_free_title_is_read_by_the_model(
    client: httpx.AsyncClient, served_artifact: Artifact
) -> None:
    answer = await ask(client, history=[{"title": "Chess for beginners"}], k=4)
    ranker = Ranker.from_artifact(served_artifact)
    query = Query(ranker.prompt(["Chess for beginners"]), 4)
    expected = ranker.items(ranker.search.rank([query])[0], query)
    assert answer["strategy"] == "model"
    assert answer["unknown_items"] == []
    assert ids(answer) == [f"g{item.index}" for item in expected]


async def test_seen_titles_stay_out_in_every_edition(client: httpx.AsyncClient) -> None:
    answer = await ask(client, history=["g0", "g3"], k=100)
    assert {"g0", "g24", "g3"}.isdisjoint(ids(answer))
    assert len(answer["items"]) == 27


async def test_seen_covers_the_whole_history_not_only_the_window(client: httpx.AsyncClient) -> None:
    history = [f"g{item}" for item in range(1, 24)]
    answer = await ask(client, history=history, k=100)
    assert set(ids(answer)) == {"g0", "g24", "g25", "g26", "g27", "g28", "g29"}


async def test_exclude_means_the_ids_it_names(client: httpx.AsyncClient) -> None:
    answer = await ask(client, history=["g5"], exclude=["g24"], k=100)
    assert "g24" not in ids(answer)
    assert "g0" in ids(answer)


async def test_filters_never_change_a_score(client: httpx.AsyncClient) -> None:
    free = await ask(client, history=["g5"], k=100, exclude_seen=False)
    scores = {item["item_id"]: item["score"] for item in free["items"]}
    narrow = await ask(client, history=["g5"], candidates=["g2", "g5", "g20"], exclude=["g20"], k=2)
    assert ids(narrow) == ["g2"]  # g5 was seen, g20 is excluded: fewer than k is no error
    assert narrow["items"][0]["score"] == pytest.approx(scores["g2"], abs=1e-5)


async def test_nothing_survives_is_an_empty_list(client: httpx.AsyncClient) -> None:
    assert ids(await ask(client, history=["g5"], candidates=[])) == []
    assert ids(await ask(client, history=["g5"], candidates=["g5"])) == []
    assert ids(await ask(client, history=["g5"], exclude=[f"g{item}" for item in range(30)])) == []


async def test_the_prompt_holds_the_newest_titles_by_the_windows_rule(client: httpx.AsyncClient) -> None:
    twenty = [f"g{item}" for item in range(20)]
    options: dict[str, Any] = {"exclude_seen": False, "k": 30}
    longer = await ask(client, history=[*twenty, "g20"], **options)
    window = await ask(client, history=[*twenty[10:], "g20"], **options)
    whole = await ask(client, history=twenty, **options)
    assert_alike(longer, window)
    assert whole["items"] != (await ask(client, history=twenty[10:], **options))["items"]


async def test_concurrent_answers_equal_sequential_ones(client: httpx.AsyncClient) -> None:
    bodies = [{"history": [f"g{(7 * n + m) % 30}" for m in range(n % 6 + 1)], "k": 8} for n in range(40)]
    alone = [await ask(client, **body) for body in bodies]
    together = await asyncio.gather(*(ask(client, **body) for body in bodies))
    for one, other in zip(alone, together, strict=True):
        assert_alike(one, other)


async def test_a_stored_history_is_asked_for_by_user(remembering: httpx.AsyncClient) -> None:
    events = [{"item_id": "g3", "timestamp": 20}, {"item_id": "g9", "timestamp": 10}]
    await remembering.post("/users/ann/events", json={"events": events})
    answer = await ask(remembering, user_id="ann")
    assert answer["user_id"] == "ann"
    assert_alike(answer, await ask(remembering, history=["g9", "g3"]))


async def test_a_posted_history_stands_instead_of_the_stored_one(remembering: httpx.AsyncClient) -> None:
    await remembering.post("/users/ann/events", json={"item_id": "g3"})
    answer = await ask(remembering, user_id="ann", history=["g9"])
    assert answer["user_id"] == "ann"
    assert_alike(answer, await ask(remembering, history=["g9"]))
    cold = await ask(remembering, user_id="ann", history=[])
    assert cold["strategy"] == "popular"


async def test_a_stranger_is_a_cold_user(remembering: httpx.AsyncClient) -> None:
    answer = await ask(remembering, user_id="nobody")
    assert (answer["strategy"], answer["degraded"]) == ("popular", None)


async def test_a_stored_window_moves_with_the_monotone_count(remembering: httpx.AsyncClient) -> None:
    events = [{"item_id": f"g{item}", "timestamp": item} for item in range(25)]
    await remembering.post("/users/bob/events", json={"events": events})
    stored = await ask(remembering, user_id="bob", exclude_seen=False)
    posted = await ask(remembering, history=[f"g{item}" for item in range(10, 25)], exclude_seen=False)
    assert_alike(stored, posted)


async def test_redis_away_costs_the_history_not_the_answer(client: httpx.AsyncClient) -> None:
    without = await ask(client, user_id="ann")
    assert (without["strategy"], without["degraded"]) == ("popular", "history_unavailable")
    carried = await ask(client, user_id="ann", history=["g3"])
    assert (carried["strategy"], carried["degraded"]) == ("model", None)
    assert (await client.get("/readyz")).status_code == 200


async def test_a_batch_answers_each_by_itself(client: httpx.AsyncClient) -> None:
    requests: list[Any] = [{"history": ["g3"]}, {"history": ["g3"], "k": 0}, 7, {"history": []}]
    response = await client.post("/recommend/batch", json={"requests": requests})
    assert response.status_code == 200
    entries = response.json()["responses"]
    assert [entry["status"] for entry in entries] == [200, 422, 422, 200]
    assert entries[0]["body"]["items"] == (await ask(client, history=["g3"]))["items"]
    assert entries[1]["body"]["type"] == "urn:espalier:problem:invalid-request"
    assert entries[1]["body"]["errors"][0]["pointer"] == "#/k"
    assert entries[3]["body"]["strategy"] == "popular"


async def test_a_batch_holds_at_most_64(client: httpx.AsyncClient) -> None:
    for number, status in ((0, 200), (64, 200), (65, 422)):
        response = await client.post("/recommend/batch", json={"requests": [{"history": []}] * number})
        assert response.status_code == status
