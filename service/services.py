"""Everything a request needs, put together in one place and closed in the opposite order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.checkpoints.holder import ModelHolder
from service.checkpoints.loading import choose_artifact, load_model
from service.health.readiness import Readiness, keep_probing
from service.history.embedded import history_url
from service.history.store import HistoryStore, connect
from service.metrics import Metrics
from service.recommend.admission import Admission
from service.recommend.recommender import Recommender
from service.settings import Settings


@dataclass(frozen=True)
class Services:
    """What routes use. `models` can exchange the model under all of them."""

    models: ModelHolder
    histories: HistoryStore
    readiness: Readiness
    recommender: Recommender


@asynccontextmanager
async def open_services(settings: Settings, metrics: Metrics) -> AsyncIterator[Services]:
    """Opens the history store, loads and proves the model, keeps probing both.

    Raises:
        InputError: the artifact is refused, or a setting cannot work.
    """
    artifact = choose_artifact(settings.artifacts, settings.checkpoint)
    with history_url(settings) as url:
        client = connect(url, settings.redis_timeout_s, settings.redis_connections)
        histories = HistoryStore(client, settings, metrics)
        models = ModelHolder()
        try:
            await models.replace(await load_model(artifact, settings.max_batch))
            metrics.watch(models)
            readiness = Readiness(models)
            readiness.ranked()  # the reference answers were
            admission = Admission(settings.max_batch + settings.max_waiting)
            recommender = Recommender(models, histories, admission, readiness, metrics, settings.deadline_s)
            probing = asyncio.create_task(
                keep_probing(readiness, models, histories, settings.probe_interval_s)
            )
            try:
                yield Services(models, histories, readiness, recommender)
            finally:
                probing.cancel()
                await asyncio.gather(probing, return_exceptions=True)
        finally:
            await models.replace(None)
            await histories.close()


def current_services(request: Request) -> Services:
    """The app's services, as a dependency of routes."""
    services: Services = request.app.state.services
    return services


CurrentServices = Annotated[Services, Depends(current_services)]
