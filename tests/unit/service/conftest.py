"""The app with a real engine and a real embedded Valkey, spoken to through ASGI."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as sync_redis
from fastapi import FastAPI
from served_artifact import write_served_artifact

from recommender.artifact import Artifact
from service.app import create_app
from service.history.embedded import embedded_server
from service.settings import Settings

MakeSettings = Callable[..., Settings]
OpenApp = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="session")
def served_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_served_artifact(tmp_path_factory)


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with embedded_server(tmp_path_factory.mktemp("valkey")) as url:
        yield url


@pytest.fixture
def empty_valkey(valkey_url: str) -> str:
    with sync_redis.Redis.from_url(valkey_url) as client:
        client.flushall()
    return valkey_url


@pytest.fixture
def make_settings(served_artifact: Artifact, tmp_path: Path) -> MakeSettings:
    """Settings for the tiny artifact; no Redis is where they point, unless a test says so."""

    def make(**changes: Any) -> Settings:
        # A busy machine may take longer than a good one: what is tested here is no time limit.
        generous = {"redis_timeout_s": 5.0, "deadline_s": 60.0}
        nowhere = f"unix://{tmp_path}/nobody.sock"
        return Settings(**{"artifacts": served_artifact.path, "redis_url": nowhere, **generous, **changes})

    return make


@pytest.fixture
def open_app(make_settings: MakeSettings) -> OpenApp:
    """`async with open_app(setting=…) as client`: the app within its lifespan; `client.app` is it."""

    @asynccontextmanager
    async def open_it(**changes: Any) -> AsyncIterator[httpx.AsyncClient]:
        app: FastAPI = create_app(make_settings(**changes))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            client.app = app  # type: ignore[attr-defined]
            yield client

    return open_it


@pytest.fixture
async def client(open_app: OpenApp) -> AsyncIterator[httpx.AsyncClient]:
    """An app whose Redis is away."""
    async with open_app() as opened:
        yield opened


@pytest.fixture
async def remembering(open_app: OpenApp, empty_valkey: str) -> AsyncIterator[httpx.AsyncClient]:
    """An app with an empty Valkey."""
    async with open_app(redis_url=empty_valkey) as opened:
        yield opened
