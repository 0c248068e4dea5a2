"""`POST /recommend` and `POST /recommend/batch`."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from service.errors import ServiceError
from service.problems import documented, invalid, problem_of, request_id
from service.recommend.schemas import (
    BatchEntry,
    BatchRequest,
    BatchResponse,
    RecommendRequest,
    RecommendResponse,
)
from service.services import CurrentServices, Services

router = APIRouter(tags=["recommend"])


@router.post("/recommend", responses=documented(401, 403, 408, 413, 415, 422, 429, 503, 504))
async def recommend(
    body: RecommendRequest, request: Request, response: Response, services: CurrentServices
) -> RecommendResponse:
    """Recommends items to follow a history, posted or stored."""
    # The middleware has given the request its place already.
    answer = await services.recommender.recommend(body)
    response.headers["Espalier-Model"] = answer.model
    request.state.stages = answer.timings_ms.model_dump(exclude={"total"})
    return answer


@router.post("/recommend/batch", responses=documented(401, 403, 408, 413, 415, 422))
async def recommend_batch(body: BatchRequest, request: Request, services: CurrentServices) -> BatchResponse:
    """Answers several requests at once; a bad one does not fail the others."""
    entries = (_entry(services, raw, request_id(request)) for raw in body.requests)
    return BatchResponse(responses=tuple(await asyncio.gather(*entries)))


async def _entry(services: Services, raw: Any, identity: str | None) -> BatchEntry:
    try:
        with services.admission.place():
            answer = await services.recommender.recommend(RecommendRequest.model_validate(raw))
    except ValidationError as error:
        problem = invalid(error.errors(), identity)
        return BatchEntry(status=problem.status, body=problem)
    except ServiceError as error:
        problem = problem_of(error, identity)
        services.metrics.answered(problem)
        return BatchEntry(status=problem.status, body=problem)
    return BatchEntry(status=200, body=answer)
