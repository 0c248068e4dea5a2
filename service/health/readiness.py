"""Whether the service should get requests: a model is there, ranked for real just now, no drain is on."""

from __future__ import annotations

import asyncio
import logging
import time

from recommender.errors import EspalierError
from service.checkpoints.holder import ModelHolder
from service.checkpoints.loading import probe_request

FRESH_SECONDS = 10.0
_log = logging.getLogger("espalier.health")


class Readiness:
    """What `/readyz` and `/livez` say."""

    def __init__(self, models: ModelHolder) -> None:
        self._models = models
        self._last_ranked = float("-inf")
        self.draining = False

    def ranked(self) -> None:
        """Tells that the model has just ranked a real request."""
        self._last_ranked = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Seconds since the model last ranked."""
        return time.monotonic() - self._last_ranked

    def alive(self) -> bool:
        """Whether the engine, if there is one, still turns; the asking itself proves the event loop."""
        model = self._models.current
        return model is None or model.engine.alive

    def obstacle(self) -> str | None:
        """Why no requests should come; None: they may."""
        model = self._models.current
        if self.draining:
            return "draining"
        if model is None:
            return self._models.absence or "no checkpoint"
        if model.engine.obstacle is not None:
            return model.engine.obstacle
        if self.idle_s > FRESH_SECONDS:
            return "the model has not ranked lately"
        return None


async def keep_probing(readiness: Readiness, models: ModelHolder, interval_s: float) -> None:
    """Forever ranks something when nobody else did for `interval_s`."""
    while True:
        await asyncio.sleep(interval_s)
        if readiness.idle_s < interval_s or models.current is None:
            continue
        try:
            async with models.lease() as model:
                deadline = asyncio.get_running_loop().time() + FRESH_SECONDS
                await model.rank(probe_request(model, deadline))
            readiness.ranked()
        except EspalierError as error:
            _log.warning("the model did not rank the probe: %s", error)
