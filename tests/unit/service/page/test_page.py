"""The page's files over HTTP: open, typed, and under a policy that lets nothing else in."""

import re
from importlib.resources import files
from typing import Any

import httpx
import pytest

NAMES = [entry.name for entry in files("service.page").iterdir() if not entry.name.startswith("_")]
FILES = sorted(name for name in NAMES if not name.endswith(".py"))


@pytest.mark.parametrize("name", FILES)
async def test_files_are_served_as_they_are(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.get("/" if name == "index.html" else f"/page/{name}")
    assert answer.status_code == 200
    assert answer.content == (files("service.page") / name).read_bytes()
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    html = (files("service.page") / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=|https?:", html)
    for name in FILES:
        if name.endswith(".js"):
            code = (files("service.page") / name).read_text()
            assert "innerHTML" not in code
            assert not re.search(r"\blocalStorage\b|\bsessionStorage\b|document\.cookie", code)


async def test_other_methods_and_names_are_problems(client: httpx.AsyncClient) -> None:
    wrong = await client.post("/", json={})
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")
    assert (await client.get("/page/__init__.py")).status_code == 404
    assert (await client.get("/page/../problems.py")).status_code == 404


async def test_the_page_needs_no_key_but_what_it_calls_does(open_app: Any, tmp_path: Any) -> None:
    (tmp_path / "keys").write_text("k1\n")
    async with open_app(api_keys_file=tmp_path / "keys") as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/page/main.js")).status_code == 200
        assert (await client.get("/items")).status_code == 401
