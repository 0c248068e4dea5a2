"""From an artifact to a model that may serve: verified, loaded, warmed up, and proven."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from recommender.artifact import Artifact, ReferenceAnswer
from recommender.errors import ArtifactError
from service.checkpoints.memory_guard import refuse_what_has_no_room
from service.checkpoints.schemas import Step
from service.engine.making import EngineMaker, MadeEngine
from service.engine.protocol import LoadedModel, RankRequest

Report = Callable[[Step], Awaitable[None]]
_PROVING_SECONDS = 60.0


async def _tell_nobody(step: Step) -> None:
    del step


async def load_model(
    artifact: Artifact, make_engine: EngineMaker, report: Report = _tell_nobody
) -> LoadedModel:
    """Loads an artifact and proves it: its reference answers come out, or it is refused.

    What blocks runs in threads, beside a model that may be serving.

    Args:
        artifact: which one.
        make_engine: makes what runs it.
        report: told each step as it begins; what it raises stops the loading.

    Raises:
        ArtifactError: the files are not what the manifest says, or the answers differ.
        UnsupportedModelError: the model's family cannot be run.
        EngineError: the engine did not start.
        SwapError: there is no room for it.
    """
    await report("verifying")
    await asyncio.to_thread(artifact.verify)
    await asyncio.to_thread(refuse_what_has_no_room, artifact, make_engine.overhead_bytes(artifact))
    await report("loading")
    made = await make_engine(artifact)
    try:
        model = await asyncio.to_thread(_bundle, artifact, made)
        await report("warming")
        await _warm_up(model)
        await report("checking")
        await _check_reference_answers(model)
    except BaseException:
        await made.engine.close()
        raise
    return model


def _bundle(artifact: Artifact, made: MadeEngine) -> LoadedModel:
    catalogue = made.titles.catalogue
    item_of_title: dict[str, int] = {}
    for item in catalogue.by_popularity:
        item_of_title.setdefault(catalogue.titles[item], item)
    return LoadedModel(
        artifact=artifact,
        titles=made.titles,
        item_of_title=item_of_title,
        prompt_limit=made.context - made.titles.trie.longest_path,
        engine=made.engine,
    )


def probe_request(model: LoadedModel, deadline: float) -> RankRequest:
    """A small real request: what follows the most popular item."""
    prompt = model.titles.prompt(model.titles.catalogue.by_popularity[:1])
    return RankRequest(prompt, k=1, exclude=frozenset(), candidates=None, deadline=deadline)


async def _warm_up(model: LoadedModel) -> None:
    deadline = asyncio.get_running_loop().time() + _PROVING_SECONDS
    for _ in range(2):
        await model.rank(probe_request(model, deadline))


async def _check_reference_answers(model: LoadedModel) -> None:
    deadline = asyncio.get_running_loop().time() + _PROVING_SECONDS
    for number, reference in enumerate(model.artifact.manifest.reference, start=1):
        history = [model.titles.catalogue.index_of(item_id) for item_id in reference.history]
        known = [item for item in history if item is not None]
        prompt = model.titles.prompt(known)
        ranking = await model.rank(
            RankRequest(prompt, len(reference.item_ids), frozenset(), None, deadline)
        )
        got = [(model.titles.catalogue.item_ids[item.index], item.score) for item in ranking.items]
        tolerance = model.artifact.manifest.reference_tolerance
        agree = _agrees if ranking.exact else _agrees_in_common
        if len(known) < len(history) or not agree(got, reference, tolerance):
            raise ArtifactError(
                f"{model.artifact.path}: reference request {number} gives {got[:3]}… where the manifest "
                f"says {list(zip(reference.item_ids, reference.scores, strict=True))[:3]}…; the engine "
                "and the artifact do not fit together, so it is refused"
            )


def _agrees(got: Sequence[tuple[str, float]], reference: ReferenceAnswer, tolerance: float) -> bool:
    """Whether scores agree place by place; within the tolerance, items may have swapped places."""
    if len(got) != len(reference.item_ids):
        return False
    expected = dict(zip(reference.item_ids, reference.scores, strict=True))
    last = min(reference.scores, default=0.0)
    places = all(
        abs(score - wanted) <= tolerance for (_, score), wanted in zip(got, reference.scores, strict=True)
    )
    # An item that the manifest does not name may only have come in by a tie with the last one.
    return places and all(abs(score - expected.get(item_id, last)) <= tolerance for item_id, score in got)


def _agrees_in_common(
    got: Sequence[tuple[str, float]], reference: ReferenceAnswer, tolerance: float
) -> bool:
    """Whether scores agree item by item: a search that may give its proof up may miss some of the items."""
    expected = dict(zip(reference.item_ids, reference.scores, strict=True))
    common = [(score, expected[item_id]) for item_id, score in got if item_id in expected]
    return bool(common) and all(abs(score - wanted) <= tolerance for score, wanted in common)
