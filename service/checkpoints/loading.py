"""From a folder to a model that may serve: found, verified, loaded, warmed up, and proven."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from recommender.artifact import MANIFEST, Artifact, ReferenceAnswer
from recommender.errors import ArtifactError
from recommender.ranker import Ranker
from service.engine.native.engine import NativeEngine
from service.engine.protocol import LoadedModel, RankRequest
from service.errors import SettingsError

_PROVING_SECONDS = 60.0


def choose_artifact(folder: Path, name: str | None) -> Artifact:
    """The artifact at `folder`, or the one named (or the only one) in it.

    Raises:
        ArtifactError: what was chosen is no whole artifact.
        SettingsError: there is none, or several and no name says which.
    """
    if (folder / MANIFEST).is_file():
        return Artifact.open(folder)
    if not folder.is_dir():
        raise SettingsError(f"{folder}: no such folder; give an artifact, or a folder of artifacts")
    if name is not None:
        return Artifact.open(folder / name)
    whole = sorted(
        entry
        for entry in folder.iterdir()
        if not entry.name.startswith(".") and (entry / MANIFEST).is_file()
    )
    if not whole:
        raise SettingsError(f"{folder}: no artifact in it; make one with `espalier export`")
    if len(whole) > 1:
        names = ", ".join(entry.name for entry in whole)
        raise SettingsError(f"{folder}: several artifacts ({names}); name one in ESPALIER_CHECKPOINT")
    return Artifact.open(whole[0])


async def load_model(artifact: Artifact, max_batch: int) -> LoadedModel:
    """Loads an artifact and proves it: its reference answers come out, or it is refused.

    Raises:
        ArtifactError: the files are not what the manifest says, or the answers differ.
        UnsupportedModelError: the model's family cannot be run.
    """
    model = await asyncio.to_thread(_load, artifact, max_batch)
    try:
        await _warm_up(model)
        await _check_reference_answers(model)
    except BaseException:
        await model.engine.close()
        raise
    return model


def _load(artifact: Artifact, max_batch: int) -> LoadedModel:
    artifact.verify()
    ranker = Ranker.from_artifact(artifact)
    catalogue, trie = ranker.catalogue, ranker.trie
    item_of_title: dict[str, int] = {}
    for item in catalogue.by_popularity:
        item_of_title.setdefault(catalogue.titles[item], item)
    longest = max((len(trie.path(leaf)) for leaf in range(trie.leaf_count)), default=0)
    return LoadedModel(
        artifact=artifact,
        titles=ranker,
        item_of_title=item_of_title,
        prompt_limit=artifact.architecture.max_position_embeddings - longest,
        engine=NativeEngine(ranker, max_batch),
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
        if len(known) < len(history) or not _agrees(got, reference, tolerance):
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
