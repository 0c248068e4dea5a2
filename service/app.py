"""The HTTP application: settings in, a FastAPI app out. Nothing is opened before its lifespan begins."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware

from service import problems
from service.checkpoints.routes import router as checkpoints
from service.health.routes import router as health
from service.history.routes import router as histories
from service.items.routes import router as items
from service.keys import Keys
from service.metrics import Metrics
from service.middleware import BodyGuard, KeyGuard, PlaceGuard, RequestContext
from service.page.routes import page_router
from service.recommend.admission import Admission
from service.recommend.routes import router as recommend
from service.services import open_services
from service.settings import Settings
from service.turnstile import Turnstile

_CORS_METHODS = ("GET", "POST", "DELETE")
_CORS_ASKED = ("Authorization", "Content-Type", "If-Match", "X-Request-ID")
_CORS_TOLD = ("ETag", "Espalier-Model", "Location", "Retry-After", "Server-Timing", "X-Request-ID")


def create_app(settings: Settings) -> FastAPI:
    """The application. Its lifespan opens `Services` and leaves them at `app.state.services`.

    Raises:
        SettingsError: the file of keys is none.
    """
    metrics = Metrics()
    # Half the deadline for the queue leaves the other half for what is not foreseen.
    places = settings.batch + settings.max_waiting
    admission = Admission(places, settings.batch, settings.deadline_s / 2)
    keys = Keys.from_file(settings.api_keys_file)
    admin = Keys.from_file(settings.admin_token_file, "ESPALIER_ADMIN_TOKEN_FILE")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_services(settings, metrics, admission) as services:
            app.state.services = services
            yield

    app = FastAPI(
        title="Espalier",
        version=version("espalier"),
        description="Recommends the next item by title. Errors are RFC 9457 problem documents.",
        lifespan=lifespan,
        redirect_slashes=False,
        redoc_url=None,
    )
    app.state.metrics = metrics
    app.state.turnstile = Turnstile(admission, keys, metrics)
    # The middleware does the checking; this only tells readers of the interface.
    bearer = [Security(HTTPBearer(auto_error=False, description="Asked for when keys are configured."))]
    for router in (recommend, histories, items, checkpoints):
        app.include_router(router, dependencies=bearer)
    app.include_router(health)
    app.include_router(page_router())
    problems.install(app)
    app.add_middleware(BodyGuard, max_bytes=settings.max_body_bytes)
    app.add_middleware(PlaceGuard, admission=admission)
    app.add_middleware(KeyGuard, keys=keys, admin=admin)
    app.add_middleware(RequestContext, metrics=metrics)
    if settings.cors_origins:
        # Outermost: a browser asks for permission without a key, and errors need its headers too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=_CORS_METHODS,
            allow_headers=_CORS_ASKED,
            expose_headers=_CORS_TOLD,
        )
    return app
