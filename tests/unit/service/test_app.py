import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.app import create_app
from service.settings import Settings

OPENAPI = Path(__file__).parents[3] / "docs" / "openapi.json"
REMEDY = (
    "the interface changed; if that is meant: .venv/bin/python -c 'import json; from service.app import "
    "create_app; from service.settings import Settings; print(json.dumps(create_app(Settings("
    'artifacts=".")).openapi(), indent=2))\' > docs/openapi.json'
)


def interface() -> dict[str, Any]:
    return create_app(Settings(artifacts=Path())).openapi()


def test_the_committed_interface_is_the_apps() -> None:
    assert json.loads(OPENAPI.read_text()) == interface(), REMEDY


def test_all_schemas_are_closed() -> None:
    for name, schema in interface()["components"]["schemas"].items():
        assert schema["additionalProperties"] is False, name


def test_every_operation_documents_problems() -> None:
    for path, operations in interface()["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert list(answer["content"]) == ["application/problem+json"], path


async def test_unknown_paths_and_methods_are_problems(client: httpx.AsyncClient) -> None:
    lost = await client.get("/nope")
    assert (lost.status_code, lost.json()["type"]) == (404, "urn:espalier:problem:not-found")
    wrong = await client.put("/recommend", json={})
    assert (wrong.status_code, wrong.json()["type"]) == (405, "urn:espalier:problem:method-not-allowed")
    assert wrong.headers["allow"] == "POST"
    two = await client.put("/users/ann/history", json={})
    assert two.headers["allow"] == "DELETE, GET"
    assert wrong.headers["content-type"] == "application/problem+json"
    assert (await client.get("/items/")).status_code == 404


async def test_the_app_asks_for_configured_keys(open_app: Any, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k1\nk2\n")
    async with open_app(api_keys_file=tmp_path / "keys") as client:
        assert (await client.post("/recommend", json={"history": []})).status_code == 401
        headers = {"Authorization": "Bearer k2"}
        assert (await client.post("/recommend", json={"history": []}, headers=headers)).status_code == 200
        assert (await client.get("/readyz")).status_code == 200


async def test_neither_titles_nor_users_are_logged(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await client.post("/recommend", json={"user_id": "ann-7", "history": [{"title": "Secret Story"}]})
        await client.get("/users/ann-7/history")
    logged = "\n".join(str(record.__dict__) for record in caplog.records if record.name != "httpx")
    assert "/users/{user_id}/history" in logged
    assert "ann-7" not in logged
    assert "Secret" not in logged


SHOP = "https://shop.example"


async def test_without_origins_no_other_page_may_call(client: httpx.AsyncClient) -> None:
    asked = await client.options(
        "/recommend", headers={"Origin": SHOP, "Access-Control-Request-Method": "POST"}
    )
    assert asked.status_code == 405
    answer = await client.post("/recommend", json={"history": []}, headers={"Origin": SHOP})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_configured_origin_may_call_and_reads_errors_too(open_app: Any, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k\n")
    async with open_app(cors_origins=(SHOP,), api_keys_file=tmp_path / "keys") as client:
        preflight = {"Access-Control-Request-Method": "POST"}
        asked = await client.options(
            "/recommend",
            headers={
                "Origin": SHOP,
                "Access-Control-Request-Headers": "authorization,content-type",
                **preflight,
            },
        )
        assert asked.status_code == 200  # and no key was needed
        assert asked.headers["access-control-allow-origin"] == SHOP
        assert "authorization" in asked.headers["access-control-allow-headers"].lower()
        other = await client.options("/recommend", headers={"Origin": "https://evil.example", **preflight})
        assert "access-control-allow-origin" not in other.headers
        for key, status in (("k", 200), ("wrong", 403)):
            headers = {"Origin": SHOP, "Authorization": f"Bearer {key}"}
            answer = await client.post("/recommend", json={"history": []}, headers=headers)
            assert answer.status_code == status
            assert answer.headers["access-control-allow-origin"] == SHOP
            assert "Espalier-Model" in answer.headers["access-control-expose-headers"]
            assert "Origin" in answer.headers["vary"]
