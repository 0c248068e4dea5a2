import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from recommender.artifact import Artifact
from service.checkpoints import fleet as fleet_module
from service.errors import SwapError
from service.services import Services

ADMIN = {"Authorization": "Bearer root"}
pytestmark = pytest.mark.valkey


def services_of(client: httpx.AsyncClient) -> Services:
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    return services


async def activate(client: httpx.AsyncClient, name: str, **headers: str) -> httpx.Response:
    return await client.post(f"/checkpoints/{name}/activate?wait=true", headers={**ADMIN, **headers})


async def rollback(client: httpx.AsyncClient, **headers: str) -> httpx.Response:
    return await client.post("/checkpoints/rollback?wait=true", headers={**ADMIN, **headers})


async def model_of(client: httpx.AsyncClient) -> str:
    answer = await client.post("/recommend", json={"history": ["g1"]})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["model"]).partition("@")[0]


async def test_the_list_says_what_there_is_and_what_serves(
    swapping: Any, put: Callable[..., Path], served_artifact: Artifact, other_artifact: Artifact
) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        answer = await client.get("/checkpoints")
        assert answer.headers["etag"] == '"1"'
        listed = answer.json()
        assert [(found["name"], found["state"]) for found in listed["checkpoints"]] == [
            ("other", "available"),
            ("tiny", "serving"),
        ]
        tiny = listed["checkpoints"][1]
        assert tiny["model"] == served_artifact.identity
        assert tiny["size_bytes"] == served_artifact.nbytes
        assert tiny["lineage"]["dataset"] == "games"
        assert (listed["generation"], listed["wanted"]["name"]) == (1, "tiny")
        assert [told["serving"]["name"] for told in listed["replicas"]] == ["tiny"]


async def test_a_swap_changes_who_answers_and_a_rollback_brings_it_back(
    swapping: Any, put: Callable[..., Path]
) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        await client.post("/users/ann/events", json={"item_id": "g27", "timestamp": 5})
        old = services_of(client).models.current
        done = (await activate(client, "other")).json()
        assert (done["step"], done["generation"], done["checkpoint"]["name"]) == ("done", 2, "other")
        assert await model_of(client) == "other"
        assert old is not None
        assert not old.engine.alive
        lost = (await client.post("/recommend", json={"user_id": "ann"})).json()
        assert (lost["unknown_items"], lost["strategy"]) == (["g27"], "popular")
        back = (await rollback(client)).json()
        assert (back["step"], back["generation"], back["checkpoint"]["name"]) == ("done", 3, "tiny")
        assert await model_of(client) == "tiny"
        assert (await client.post("/recommend", json={"user_id": "ann"})).json()["unknown_items"] == []
        metrics = (await client.get("/metrics")).text
        assert 'espalier_swaps_total{outcome="done"} 3.0' in metrics  # the first loading counts
        assert 'espalier_generation{state="wanted"} 3.0' in metrics
        assert 'espalier_generation{state="serving"} 3.0' in metrics
        assert metrics.count("espalier_checkpoint_info{") == 1


async def test_an_operation_is_watched_to_its_end(swapping: Any, put: Callable[..., Path]) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        started = await client.post("/checkpoints/other/activate", headers=ADMIN)
        assert (started.status_code, started.json()["step"]) == (202, "verifying")
        place = started.headers["location"]
        assert place == f"/operations/{started.json()['operation_id']}"
        again = await client.post("/checkpoints/tiny/activate", headers=ADMIN)
        assert (again.status_code, again.json()["type"]) == (409, "urn:espalier:problem:swap-rejected")
        async with asyncio.timeout(30):
            while (known := (await client.get(place)).json())["step"] != "done":
                await asyncio.sleep(0.01)
        assert known["generation"] == 2
        stranger = await client.get(f"/operations/{'0' * 32}")
        assert (stranger.status_code, stranger.json()["type"]) == (
            404,
            "urn:espalier:problem:no-such-operation",
        )


async def test_what_serves_already_is_left_alone(swapping: Any, put: Callable[..., Path]) -> None:
    put("tiny"), put("tiny", "twin")
    async with swapping(checkpoint="tiny") as client:
        model = services_of(client).models.current
        for name in ("tiny", "twin"):  # the same digest under another name is the same checkpoint
            answer = await activate(client, name)
            assert (answer.status_code, answer.json()["step"], answer.json()["generation"]) == (
                200,
                "done",
                1,
            )
        assert services_of(client).models.current is model


async def test_a_stale_generation_changes_nothing(swapping: Any, put: Callable[..., Path]) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        assert (await activate(client, "other", **{"If-Match": '"1"'})).status_code == 200
        assert (await rollback(client, **{"If-Match": "2"})).json()["generation"] == 3
        retried = await rollback(client, **{"If-Match": "2"})
        assert (retried.status_code, retried.json()["type"]) == (
            412,
            "urn:espalier:problem:stale-generation",
        )
        assert await model_of(client) == "tiny"
        assert (await rollback(client, **{"If-Match": "soon"})).status_code == 422


async def test_a_damaged_checkpoint_is_refused_and_the_old_one_serves(
    swapping: Any, put: Callable[..., Path]
) -> None:
    put("tiny")
    weights = put("other") / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    async with swapping(checkpoint="tiny") as client:
        refused = await activate(client, "other")
        assert refused.status_code == 409
        assert "is not what the manifest says" in refused.json()["detail"]
        assert await model_of(client) == "tiny"
        listed = (await client.get("/checkpoints")).json()
        assert (listed["generation"], listed["operation_id"]) == (1, None)
        assert [found["name"] for found in listed["checkpoints"]] == ["tiny"]
        put("other", "sound")
        assert (await activate(client, "sound")).status_code == 200  # the slot is free again


async def test_no_room_is_said_before_anything_is_loaded(
    swapping: Any, put: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        monkeypatch.setattr("service.checkpoints.memory_guard.memory_limit_bytes", lambda: 1 << 20)
        refused = await activate(client, "other")
        assert refused.status_code == 409
        assert "the limit is 1 MiB" in refused.json()["detail"]
        assert await model_of(client) == "tiny"
        assert 'espalier_swaps_total{outcome="failed"} 1.0' in (await client.get("/metrics")).text


async def test_nothing_earlier_and_nobody_of_that_name(swapping: Any, put: Callable[..., Path]) -> None:
    put("tiny")
    async with swapping() as client:
        assert (await rollback(client)).status_code == 409
        assert (await activate(client, "nobody")).status_code == 404
        assert (await activate(client, ".hidden")).status_code == 422


async def test_without_redis_nothing_is_exchanged(
    swapping: Any, put: Callable[..., Path], tmp_path: Path
) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny", redis_url=f"unix://{tmp_path}/nobody.sock") as client:
        refused = await activate(client, "other")
        assert (refused.status_code, refused.json()["type"]) == (
            503,
            "urn:espalier:problem:fleet-unavailable",
        )
        assert await model_of(client) == "tiny"
        assert [
            told["serving"]["name"] for told in (await client.get("/checkpoints")).json()["replicas"]
        ] == ["tiny"]


async def test_one_artifact_alone_has_nothing_to_swap(client: httpx.AsyncClient) -> None:
    swapper = services_of(client).swapper
    done = await swapper.activate("tiny", None)
    assert (done.step, done.generation) == ("done", 1)
    listed = (await client.get("/checkpoints")).json()
    assert [(found["name"], found["state"]) for found in listed["checkpoints"]] == [("tiny", "serving")]


async def test_who_began_before_the_switch_ends_with_the_old_one(
    swapping: Any, put: Callable[..., Path]
) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        async with services_of(client).models.lease() as held:
            started = await client.post("/checkpoints/other/activate", headers=ADMIN)
            place = started.headers["location"]
            async with asyncio.timeout(30):
                while (await client.get(place)).json()["step"] != "draining":
                    await asyncio.sleep(0.01)
            assert await model_of(client) == "other"
            assert held.engine.alive
            assert held.identity.startswith("tiny@")
        async with asyncio.timeout(30):
            while (await client.get(place)).json()["step"] != "done":
                await asyncio.sleep(0.01)
        assert not held.engine.alive


async def test_a_leader_that_dies_fails_its_swap_when_the_lease_ends(
    swapping: Any, put: Callable[..., Path], empty_valkey: str
) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        fleet = services_of(client).fleet
        swapper = services_of(client).swapper
        ref = services_of(client).replica.serving
        assert ref is not None
        abandoned = swapper._operation("activate", ref, "loading")
        assert await fleet.begin(abandoned)
        place = f"/operations/{abandoned.operation_id}"
        assert (await client.get(place)).json()["step"] == "loading"
        assert (await activate(client, "other")).status_code == 409
        with redis.Redis.from_url(empty_valkey) as server:
            assert 0 < server.ttl("espalier:1:{fleet}:slot") <= 30
            server.delete("espalier:1:{fleet}:slot")  # as its expiry would
        ended = (await client.get(place)).json()
        assert (ended["step"], "was gone" in ended["reason"]) == ("failed", True)
        assert not await fleet.report(abandoned)
        assert (await activate(client, "other")).status_code == 200


async def test_a_record_that_redis_forgot_is_written_before_it_is_followed(
    swapping: Any, put: Callable[..., Path], empty_valkey: str
) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        with redis.Redis.from_url(empty_valkey) as server:
            server.delete("espalier:1:{fleet}:record")  # as before a fresh replica's first look
        done = (await activate(client, "other")).json()
        assert (done["step"], done["generation"]) == ("done", 2)
        assert (await rollback(client)).json()["checkpoint"]["name"] == "tiny"


async def test_who_lost_the_slot_writes_no_record(
    swapping: Any, put: Callable[..., Path], empty_valkey: str
) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        fleet, swapper = services_of(client).fleet, services_of(client).swapper
        record = services_of(client).replica.record
        assert record is not None
        late = swapper._operation("activate", record.wanted, "switching")
        assert await fleet.begin(late)
        with redis.Redis.from_url(empty_valkey) as server:
            server.delete("espalier:1:{fleet}:slot")
        with pytest.raises(SwapError, match="lease ended"):
            await fleet.write(1, record.successor(record.wanted), late.operation_id)
        assert await fleet.read() in (None, record)  # the first look may still be to come


async def test_a_write_without_an_answer_is_settled_by_what_stands(
    swapping: Any, put: Callable[..., Path], empty_valkey: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_module, "_TIMEOUT_SECONDS", 0.1)
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        fleet, swapper = services_of(client).fleet, services_of(client).swapper
        record = services_of(client).replica.record
        assert record is not None
        mine = swapper._operation("activate", record.wanted, "switching")
        assert await fleet.begin(mine)
        with redis.Redis.from_url(empty_valkey) as server:
            server.client_pause(400)
        following = record.successor(record.wanted)
        told = await swapper._written(following, mine.operation_id)
        assert told == (await fleet.read() == following)
