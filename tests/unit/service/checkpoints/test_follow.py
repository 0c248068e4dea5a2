"""Starts, restarts and replicas that follow one record, each an app of its own on one Valkey."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from recommender.artifact import MANIFEST, Artifact
from service.checkpoints import follow
from service.checkpoints.schemas import CheckpointRef, FleetRecord
from service.services import Services

ADMIN = {"Authorization": "Bearer root"}
RECORD = "espalier:1:{fleet}:record"
pytestmark = pytest.mark.valkey


@pytest.fixture(autouse=True)
def _watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(follow, "_RETRY_SECONDS", 0.1)


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await what():
            await asyncio.sleep(0.01)


def services_of(client: httpx.AsyncClient) -> Services:
    services: Services = client.app.state.services  # type: ignore[attr-defined]
    return services


async def activate(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
    answer = await client.post(f"/checkpoints/{name}/activate?wait=true", headers=ADMIN)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def ready(client: httpx.AsyncClient) -> str:
    answer = await client.get("/readyz")
    return str(answer.json().get("detail", "ready"))


async def served(client: httpx.AsyncClient) -> tuple[str, str | None]:
    answer = (await client.post("/recommend", json={"history": ["g1"]})).json()
    return answer["model"].partition("@")[0], answer["degraded"]


async def test_an_empty_folder_waits_for_the_first_artifact(
    swapping: Any, put: Callable[..., Path], folder: Path
) -> None:
    async with swapping() as client:
        assert await ready(client) == "no checkpoint"
        assert (await client.post("/recommend", json={"history": ["g1"]})).status_code == 503
        assert (await client.get("/checkpoints")).json()["generation"] == 0
        (folder / "half").mkdir()
        put("tiny")

        async def is_ready() -> bool:
            return await ready(client) == "ready"

        await until(is_ready)
        assert await served(client) == ("tiny", None)
        put("other")  # a second one is offered, and changes nothing
        listed = (await client.get("/checkpoints")).json()
        assert [found["state"] for found in listed["checkpoints"]] == ["available", "serving"]


async def test_of_several_none_is_guessed(swapping: Any, put: Callable[..., Path], tmp_path: Path) -> None:
    put("tiny"), put("other")
    async with swapping() as client:
        assert "several artifacts (other, tiny)" in await ready(client)
        assert (await activate(client, "other"))["generation"] == 1  # an operator may choose, too
        assert await served(client) == ("other", None)
    async with swapping(checkpoint="nobody", state_dir=tmp_path / "elsewhere") as client:
        assert await served(client) == ("other", None)  # the fleet's record says so


async def test_a_restart_serves_what_was_wanted(
    swapping: Any, put: Callable[..., Path], tmp_path: Path
) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        await activate(client, "other")
    async with swapping(checkpoint="tiny") as client:
        assert await served(client) == ("other", None)
        metrics = (await client.get("/metrics")).text
        assert 'espalier_generation{state="wanted"} 2.0' in metrics
        assert 'espalier_generation{state="serving"} 2.0' in metrics
    async with swapping(checkpoint="tiny", redis_url=f"unix://{tmp_path}/nobody.sock") as client:
        assert await served(client) == ("other", None)  # with Redis away, the state file says so


async def test_a_missing_checkpoint_is_stood_in_for_until_it_is_back(
    swapping: Any, put: Callable[..., Path], folder: Path
) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        await activate(client, "other")
    shutil.rmtree(folder / "other")
    async with swapping() as client:
        assert await served(client) == ("tiny", "checkpoint_fallback")
        assert await ready(client) == "ready"
        assert "espalier_checkpoint_fallback 1.0" in (await client.get("/metrics")).text
        told = (await client.get("/checkpoints")).json()
        assert (told["generation"], told["wanted"]["name"]) == (2, "other")
        assert "no such checkpoint" in told["replicas"][0]["reason"]
        assert 'espalier_generation{state="wanted"} 2.0' in (await client.get("/metrics")).text
        put("other")

        async def is_back() -> bool:
            return await served(client) == ("other", None)

        await until(is_back)
        assert "espalier_checkpoint_fallback 0.0" in (await client.get("/metrics")).text


async def test_a_damaged_state_file_is_as_good_as_none(
    swapping: Any, put: Callable[..., Path], tmp_path: Path
) -> None:
    put("tiny")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "checkpoint.json").write_text('{"record": 7}')
    async with swapping() as client:
        assert await served(client) == ("tiny", None)


async def test_a_lost_or_older_record_is_republished_and_swaps_nothing(
    swapping: Any, put: Callable[..., Path], empty_valkey: str, served_artifact: Artifact
) -> None:
    put("tiny"), put("other")
    older = FleetRecord(generation=1, wanted=CheckpointRef(name="tiny", digest=served_artifact.digest))
    async with swapping(checkpoint="tiny") as client:
        await activate(client, "other")
        model = services_of(client).models.current
        with redis.Redis.from_url(empty_valkey) as server:
            for lost in (None, older.model_dump_json()):
                if lost is None:
                    server.flushall()
                else:
                    server.set(RECORD, lost)

                async def is_republished() -> bool:
                    found = await services_of(client).fleet.read()
                    return found is not None and found.generation == 2

                await until(is_republished)
        assert services_of(client).models.current is model


async def test_replicas_converge_and_a_swap_is_done_when_all_did(
    swapping: Any, put: Callable[..., Path], tmp_path: Path
) -> None:
    put("tiny"), put("other")
    second_state = tmp_path / "second"
    async with (
        swapping(checkpoint="tiny") as first,
        swapping(checkpoint="tiny", state_dir=second_state) as second,
    ):

        async def both() -> bool:
            return len((await first.get("/checkpoints")).json()["replicas"]) == 2

        await until(both)
        done = await activate(first, "other")
        assert (done["step"], done["stragglers"]) == ("done", [])
        assert await served(first) == await served(second) == ("other", None)
        seen = (await second.get(f"/operations/{done['operation_id']}")).json()
        assert seen["step"] in ("draining", "done")  # the other replica knows of it, too
        back = await second.post("/checkpoints/rollback?wait=true", headers={**ADMIN, "If-Match": "2"})
        assert back.json()["generation"] == 3
        assert await served(first) == await served(second) == ("tiny", None)

    # A replica that ends says so, and does not hold up the next swap.
    async with swapping() as alone:
        assert (await activate(alone, "other"))["step"] == "done"


async def test_a_replica_that_cannot_follow_is_named(
    swapping: Any, put: Callable[..., Path], served_artifact: Artifact, tmp_path: Path
) -> None:
    put("tiny"), put("other")
    poor = tmp_path / "poor"
    shutil.copytree(served_artifact.path, poor / "tiny")
    async with (
        swapping(checkpoint="tiny") as first,
        swapping(checkpoint="tiny", artifacts=poor, state_dir=tmp_path / "second") as second,
    ):

        async def both() -> bool:
            return len((await first.get("/checkpoints")).json()["replicas"]) == 2

        await until(both)
        ended = await activate(first, "other")
        assert ended["step"] == "partial"
        (straggler,) = ended["stragglers"]
        assert straggler["replica"] == services_of(second).replica.name
        assert "no such checkpoint" in straggler["reason"]
        assert await served(first) == ("other", None)
        assert await served(second) == ("tiny", "checkpoint_fallback")


async def test_a_damaged_record_swaps_nothing_and_heals_when_it_is_deleted(
    swapping: Any, put: Callable[..., Path], empty_valkey: str
) -> None:
    put("tiny"), put("other")
    async with swapping(checkpoint="tiny") as client:
        with redis.Redis.from_url(empty_valkey) as server:
            server.set(RECORD, '{"generation": 9}')
            refused = await client.post("/checkpoints/other/activate", headers=ADMIN)
            assert refused.status_code == 503
            assert "record is damaged (wanted: Field required)" in refused.json()["detail"]
            assert await served(client) == ("tiny", None)
            server.delete(RECORD)

            async def is_published() -> bool:
                return bool(server.exists(RECORD))

            await until(is_published)
        assert (await activate(client, "other"))["generation"] == 2


async def test_an_artifact_that_gives_other_answers_is_named_while_nothing_serves(
    swapping: Any, put: Callable[..., Path]
) -> None:
    manifest = put("tiny") / MANIFEST
    content = json.loads(manifest.read_bytes())
    content["reference"][0]["scores"][0] += 0.5
    manifest.write_text(json.dumps(content))
    async with swapping() as client:
        assert "reference request 1 gives" in await ready(client)
        shutil.rmtree(manifest.parent.parent)
        put("other")

        async def is_ready() -> bool:
            return await ready(client) == "ready"

        await until(is_ready)
        assert await served(client) == ("other", None)


async def test_two_writers_of_one_generation_do_not_both_win(
    swapping: Any, put: Callable[..., Path], served_artifact: Artifact
) -> None:
    put("tiny")
    async with swapping() as client:
        fleet, record = services_of(client).fleet, services_of(client).replica.record
        assert record is not None

        async def is_published() -> bool:
            return await fleet.read() == record

        await until(is_published)
        following = record.successor(record.wanted)
        assert sorted(await asyncio.gather(*(fleet.write(1, following) for _ in range(5)))) == [
            *(False,) * 4,
            True,
        ]


def test_a_rollback_goes_to_the_newest_other_digest() -> None:
    a, b, twin = (CheckpointRef(name=name, digest=digit * 64) for name, digit in ("a0", "b1", "t1"))
    record = FleetRecord(generation=1, wanted=a)
    assert record.earlier() is None
    record = record.successor(b).successor(twin)
    assert (record.generation, record.earlier()) == (3, a)
    assert record.successor(a).earlier() == twin
    for _ in range(20):
        record = record.successor(b)
    assert len(record.previous) == 10
