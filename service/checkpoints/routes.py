"""`GET /checkpoints`, `POST /checkpoints/{name}/activate` and `/rollback`, `GET /operations/{id}`."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Response
from pydantic import WithJsonSchema

from recommender.artifact import Artifact
from service.checkpoints.replica import LocalReplica
from service.checkpoints.schemas import (
    CHECKPOINT_NAME,
    Checkpoint,
    CheckpointsResponse,
    Operation,
    Replica,
)
from service.errors import FleetUnavailableError, RequestError, SwapError
from service.problems import documented
from service.services import CurrentServices, Services

router = APIRouter(tags=["checkpoints"])
_GENERATION = r'^\s*"?([0-9]{1,18})"?\s*$'
Wait = Annotated[bool, Query(description="Answer when it has ended; 409 if it failed.")]
IfMatch = Annotated[
    str | None,
    WithJsonSchema({"type": "string", "pattern": _GENERATION}),  # a header is there or not, but never null
    Header(description="The generation that the caller saw; another one in place: 412."),
]
_SWAP: dict[int | str, dict[str, Any]] = {
    200: {"description": "It has ended, or there was nothing to do"},
    202: {"description": "It is under way", "model": Operation},
    **documented(401, 403, 404, 409, 412, 422, 503),
}


@router.get("/checkpoints", responses=documented(401, 403))
async def list_checkpoints(response: Response, services: CurrentServices) -> CheckpointsResponse:
    """The whole artifacts of the folder, and what each replica serves. The `ETag` is the generation."""
    local, swapper = services.replica, services.swapper
    found = await asyncio.to_thread(local.folder.list)
    record = local.record
    generation = 0 if record is None else record.generation
    response.headers["ETag"] = f'"{generation}"'
    return CheckpointsResponse(
        generation=generation,
        wanted=None if record is None else record.wanted,
        can_roll_back_to=None if record is None else record.earlier(),
        operation_id=swapper.leading,
        checkpoints=tuple(_described(local, name, artifact) for name, artifact in found.items()),
        replicas=await _replicas(services),
    )


@router.post("/checkpoints/rollback", responses=_SWAP)
async def rollback(
    response: Response, services: CurrentServices, wait: Wait = False, if_match: IfMatch = None
) -> Operation:
    """Goes back to the newest earlier checkpoint that is another one."""
    started = await services.swapper.rollback(_generation(if_match))
    return await _told(services, response, started, wait)


@router.post("/checkpoints/{name}/activate", responses=_SWAP)
async def activate(
    name: Annotated[str, Path(pattern=CHECKPOINT_NAME)],
    response: Response,
    services: CurrentServices,
    wait: Wait = False,
    if_match: IfMatch = None,
) -> Operation:
    """Swaps to a checkpoint: on this replica, then on all others. Whatever fails, the old one serves on."""
    started = await services.swapper.activate(name, _generation(if_match))
    return await _told(services, response, started, wait)


@router.get("/operations/{operation_id}", responses=documented(401, 403, 404, 422, 503))
async def read_operation(
    operation_id: Annotated[str, Path(pattern="^[0-9a-f]{32}$")], services: CurrentServices
) -> Operation:
    """How far a swap is, whichever replica leads it."""
    return await services.swapper.operation(operation_id)


async def _told(services: Services, response: Response, started: Operation, wait: bool) -> Operation:
    operation = await services.swapper.wait(started) if wait else started
    if wait and operation.step == "failed":
        raise SwapError(operation.reason or "the swap failed")
    if not operation.ended:
        response.status_code = 202
        response.headers["Location"] = f"/operations/{operation.operation_id}"
    return operation


async def _replicas(services: Services) -> tuple[Replica, ...]:
    own = services.replica.status()
    if services.replica.folder.alone:
        return (own,)
    try:
        others = [told for told in await services.fleet.replicas() if told.replica != own.replica]
    except FleetUnavailableError:
        return (own,)
    return tuple(sorted((own, *others), key=lambda replica: replica.replica))


def _described(local: LocalReplica, name: str, artifact: Artifact) -> Checkpoint:
    manifest = artifact.manifest
    return Checkpoint(
        name=name,
        digest=artifact.digest,
        model=artifact.identity,
        state=local.state_of(artifact.digest),
        created=manifest.created,
        size_bytes=artifact.nbytes,
        parameters=manifest.parameters,
        lineage=manifest.lineage,
        quality=manifest.quality,
    )


def _generation(if_match: str | None) -> int | None:
    if if_match is None:
        return None
    match = re.fullmatch(_GENERATION, if_match)
    if match is None:
        raise RequestError("give the generation, as GET /checkpoints tells it", "#/header/If-Match")
    return int(match[1])
