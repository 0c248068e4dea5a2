"""Everything a request needs, put together in one place and closed in the opposite order."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from recommender.artifact import Artifact
from service.checkpoints.fleet import Fleet
from service.checkpoints.folder import ArtifactFolder
from service.checkpoints.follow import Follower
from service.checkpoints.holder import ModelHolder
from service.checkpoints.loading import Report, load_model
from service.checkpoints.replica import LocalReplica
from service.checkpoints.swap import Swapper
from service.engine.making import engine_maker
from service.engine.protocol import LoadedModel
from service.health.readiness import Readiness, keep_probing
from service.history.client import connect
from service.history.embedded import history_url
from service.history.store import HistoryStore
from service.history.watch import StoreWatch
from service.metrics import Metrics
from service.recommend.admission import Admission
from service.recommend.recommender import Recommender
from service.settings import Settings

# Operators wait longer than recommendations do.
_FLEET_TIMEOUT_S = 2.0
_FLEET_CONNECTIONS = 4


@dataclass(frozen=True)
class Services:
    """What routes use. `models` can exchange the model under all of them."""

    admission: Admission
    metrics: Metrics
    models: ModelHolder
    histories: HistoryStore
    readiness: Readiness
    recommender: Recommender
    replica: LocalReplica
    fleet: Fleet
    swapper: Swapper


@asynccontextmanager
async def open_services(
    settings: Settings, metrics: Metrics, admission: Admission
) -> AsyncIterator[Services]:
    """Opens the history store and the fleet, serves a checkpoint if there is one, keeps watching them.

    Raises:
        InputError: the only artifact that was given is refused, or a setting cannot work.
    """
    folder = ArtifactFolder(settings.artifacts)
    make_engine = await asyncio.to_thread(engine_maker, settings, metrics)
    with history_url(settings) as url:
        client = connect(url, settings.redis_timeout_s, settings.redis_connections)
        histories = HistoryStore(client, settings, metrics)
        patient = connect(url, _FLEET_TIMEOUT_S, _FLEET_CONNECTIONS)
        fleet = Fleet(patient)
        watch = StoreWatch(histories, patient)
        models = ModelHolder()
        readiness = Readiness(models)

        async def load(artifact: Artifact, report: Report) -> LoadedModel:
            model = await load_model(artifact, make_engine, report)
            readiness.ranked()  # the reference answers were
            return model

        name = f"{socket.gethostname()}-{uuid.uuid4().hex[:6]}"
        replica = LocalReplica(name, folder, models, load, settings.state_dir, metrics)
        swapper = Swapper(replica, fleet)
        follower = Follower(replica, fleet, settings.checkpoint)
        try:
            await watch.begin()
            await follower.begin()
            metrics.watch(models)
            recommender = Recommender(
                models,
                histories,
                readiness,
                metrics,
                settings.deadline_s,
                refuse_without_history=settings.history_unavailable == "refuse",
            )
            background = [
                asyncio.create_task(keep_probing(readiness, models, settings.probe_interval_s)),
                asyncio.create_task(watch.keep_watching(settings.probe_interval_s)),
            ]
            if not folder.alone:
                background.append(asyncio.create_task(follower.keep_following()))
            try:
                yield Services(
                    admission, metrics, models, histories, readiness, recommender, replica, fleet, swapper
                )
            finally:
                await swapper.close()
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)
        finally:
            models.replace(None)
            await models.drained()
            await histories.close()
            await fleet.close()


async def current_services(request: Request) -> Services:
    """The app's services, as a dependency of routes. What is not `async` FastAPI would call in a thread."""
    services: Services = request.app.state.services
    return services


CurrentServices = Annotated[Services, Depends(current_services)]
