"""`POST /recommend` and `POST /recommend/batch`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError

from service import problems
from service.errors import ServiceError
from service.problems import documented, invalid, problem_of, request_id
from service.recommend.schemas import (
    BatchEntry,
    BatchRequest,
    BatchResponse,
    RecommendRequest,
    RecommendResponse,
)
from service.services import CurrentServices, Services, current_services

router = APIRouter(tags=["recommend"])
_NO_JSON = {"type": "json_invalid", "loc": ()}


class _Direct(APIRoute):
    """Takes a body to its endpoint and the answer back, and no more.

    FastAPI describes the route; its own way there, with dependencies to solve and a second check of what
    is valid already, took as long as all the rest of a request around its search. So dependencies of this
    route are only told of, not solved.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        async def handle(request: Request) -> Response:
            try:
                given = json.loads(await request.body())
                body = RecommendRequest.model_validate(given, from_attributes=True)  # as FastAPI does
            except ValidationError as error:
                return problems.response(invalid(_within_body(error), request_id(request)))
            except (ValueError, RecursionError):
                return problems.response(invalid([_NO_JSON], request_id(request)))
            answer: RecommendResponse = await self.endpoint(body, request)
            headers = {"Espalier-Model": answer.model}
            return Response(answer.model_dump_json(), media_type="application/json", headers=headers)

        return handle


async def recommend(body: RecommendRequest, request: Request) -> RecommendResponse:
    """Recommends items to follow a history, posted or stored."""
    # The middleware has given the request its place already.
    services = await current_services(request)
    answer = await services.recommender.recommend(body)
    request.state.stages = answer.timings_ms.model_dump(exclude={"total"})
    return answer


router.add_api_route(
    "/recommend",
    recommend,
    methods=["POST"],
    responses=documented(401, 403, 408, 413, 415, 422, 429, 503, 504),
    route_class_override=_Direct,
)


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


def _within_body(error: ValidationError) -> list[dict[str, Any]]:
    """The errors, placed as FastAPI places those of a body."""
    return [{**entry, "loc": ("body", *entry["loc"])} for entry in error.errors()]
