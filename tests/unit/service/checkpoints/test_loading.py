import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from recommender.artifact import MANIFEST, Artifact
from recommender.errors import ArtifactError
from service.checkpoints.loading import load_model
from service.engine.making import MadeEngine, NativeMaker
from service.engine.protocol import Engine, Ranking, RankRequest


class Unproven:
    """A real engine whose proofs were given up; to see one do so takes a larger catalogue than this."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def rank(self, request: RankRequest) -> Ranking:
        return replace(await self._engine.rank(request), exact=False)


class Hasty(NativeMaker):
    async def __call__(self, artifact: Artifact) -> MadeEngine:
        made = await super().__call__(artifact)
        return replace(made, engine=cast(Engine, Unproven(made.engine)))


@pytest.fixture
def copy(served_artifact: Artifact, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        return Path(shutil.copytree(served_artifact.path, tmp_path / "artifacts" / name))

    return make


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> Artifact:
    content = json.loads((path / MANIFEST).read_bytes())
    change(content)
    (path / MANIFEST).write_text(json.dumps(content))
    return Artifact.open(path)


async def test_a_loaded_model_has_all_of_its_checkpoint(served_artifact: Artifact) -> None:
    model = await load_model(served_artifact, NativeMaker(4, 0))
    assert model.identity == served_artifact.identity
    assert model.item_of_title["Portal 1"] == 24  # more popular than item 0 of the same title
    longest = max(len(model.titles.trie.path(leaf)) for leaf in range(model.titles.trie.leaf_count))
    assert model.prompt_limit == 512 - longest
    await model.engine.close()


async def test_a_flipped_byte_is_refused(copy: Callable[[str], Path]) -> None:
    path = copy("bad")
    weights = bytearray((path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (path / "model.safetensors").write_bytes(weights)
    with pytest.raises(ArtifactError, match=r"model\.safetensors is not what the manifest says"):
        await load_model(Artifact.open(path), NativeMaker(4, 0))


async def test_other_reference_scores_are_refused(copy: Callable[[str], Path]) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["reference"][1]["scores"][2] += 0.01

    with pytest.raises(ArtifactError, match="reference request 2 gives"):
        await load_model(edit_manifest(copy("bad"), change), NativeMaker(4, 0))


async def test_other_reference_items_are_refused(copy: Callable[[str], Path]) -> None:
    def change(manifest: dict[str, Any]) -> None:
        first = manifest["reference"][0]["item_ids"]
        first[0], first[3] = first[3], first[0]

    with pytest.raises(ArtifactError, match="reference request 1 gives"):
        await load_model(edit_manifest(copy("bad"), change), NativeMaker(4, 0))


async def test_a_search_that_gives_proofs_up_need_not_find_all_of_the_reference(
    copy: Callable[[str], Path],
) -> None:
    def change(manifest: dict[str, Any]) -> None:  # a proof would have found another one, and a better one
        manifest["reference"][1]["item_ids"][0] = "an item it missed"
        manifest["reference"][1]["scores"][0] += 0.5

    def change_more(manifest: dict[str, Any]) -> None:
        change(manifest)
        manifest["reference"][1]["scores"][2] += 0.01

    with pytest.raises(ArtifactError, match="reference request 2 gives"):
        await load_model(edit_manifest(copy("proven"), change), NativeMaker(4, 0))
    model = await load_model(edit_manifest(copy("hasty"), change), Hasty(4, 0))
    await model.engine.close()
    with pytest.raises(ArtifactError, match="reference request 2 gives"):
        await load_model(edit_manifest(copy("other"), change_more), Hasty(4, 0))


async def test_scores_within_the_tolerance_are_accepted(copy: Callable[[str], Path]) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["reference"][1]["scores"][2] += 0.0005

    model = await load_model(edit_manifest(copy("good"), change), NativeMaker(4, 0))
    await model.engine.close()
