import asyncio

import pytest

from recommender.artifact import Artifact
from service.checkpoints.holder import ModelHolder
from service.checkpoints.loading import load_model, probe_request
from service.engine.making import NativeMaker
from service.errors import NoModelError


async def test_without_a_model_there_is_nothing_to_lease() -> None:
    holder = ModelHolder()
    assert holder.current is None
    with pytest.raises(NoModelError):
        async with holder.lease():
            pass


async def test_who_holds_a_lease_keeps_the_model_it_began_with(served_artifact: Artifact) -> None:
    old, new = (
        await load_model(served_artifact, NativeMaker(4, 0)),
        await load_model(served_artifact, NativeMaker(4, 0)),
    )
    holder = ModelHolder()
    holder.replace(old)
    async with holder.lease() as first, holder.lease() as second:
        holder.replace(new)
        assert holder.current is new
        assert first is second is old
        async with holder.lease() as third:
            assert third is new
        deadline = asyncio.get_running_loop().time() + 60
        assert (await old.rank(probe_request(old, deadline))).items
        assert old.engine.alive
    await holder.drained()
    assert not old.engine.alive  # the last one to leave closed it
    assert new.engine.alive
    holder.replace(None)
    await holder.drained()
    assert not new.engine.alive
