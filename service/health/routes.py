"""`/livez`, `/readyz`, `/metrics` and `/metrics/vllm`."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.errors import EngineError, NotReadyError
from service.problems import documented
from service.schemas import Answer
from service.services import CurrentServices

router = APIRouter(tags=["health"])


class Health(Answer):
    """All is well."""

    status: Literal["ok"] = "ok"


@router.get("/livez", responses=documented(503))
async def livez(services: CurrentServices) -> Health:
    """Whether the process lives: the event loop turns, or there were no answer, and so does the engine."""
    if not services.readiness.alive():
        raise EngineError("the engine is dead; restart the process")
    return Health()


@router.get("/readyz", responses=documented(503))
async def readyz(services: CurrentServices) -> Health:
    """Whether requests should come: a model ranked for real in the last ten seconds, and no drain is on."""
    obstacle = services.readiness.obstacle()
    if obstacle is not None:
        raise NotReadyError(obstacle)
    return Health()


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/metrics/vllm",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **documented(503)},
)
async def vllm_metrics(services: CurrentServices) -> Response:
    """What vLLM itself measures; nothing when it is not the engine, so that one scrape fits both."""
    async with services.models.lease() as model:
        text = await model.engine.own_metrics()
    return Response(text, media_type=CONTENT_TYPE_LATEST)
