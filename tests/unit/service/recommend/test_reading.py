from collections.abc import AsyncIterator

import pytest

from recommender.artifact import Artifact
from recommender.prompt import PromptTemplate
from service.checkpoints.loading import load_model
from service.engine.making import NativeMaker
from service.engine.protocol import LoadedModel
from service.recommend.reading import build_prompt, read_history, window_start
from service.recommend.schemas import ItemEntry, TitleEntry


@pytest.fixture
async def model(served_artifact: Artifact) -> AsyncIterator[LoadedModel]:
    model = await load_model(served_artifact, NativeMaker(1, 0))
    yield model
    await model.engine.close()


@pytest.mark.parametrize(
    ("kept", "count", "start"),
    [
        (20, 20, 0),
        (21, 21, 10),
        (30, 30, 10),
        (31, 31, 20),
        (25, 125, 10),
        (20, 125, 5),
        (15, 125, 0),
        (5, 125, 0),
    ],
)
def test_the_window_follows_the_monotone_count(kept: int, count: int, start: int) -> None:
    assert window_start(PromptTemplate(), kept, count) == start


async def test_entries_are_looked_up(model: LoadedModel) -> None:
    entries = ["g3", "x", ItemEntry(item_id="g4"), TitleEntry(title="Portal 1"), TitleEntry(title="New")]
    reading = read_history(model, [*entries, "x", "y"], 7)
    assert reading.seen == {3, 4, 24}
    assert reading.unknown == ("x", "y")
    assert reading.window == (3, 4, 24, "New")


async def test_what_is_seen_and_unknown_goes_beyond_the_window(model: LoadedModel) -> None:
    reading = read_history(model, ["g1", "x", *["g2"] * 20], 22)
    assert reading.seen == {1, 2}
    assert reading.unknown == ("x",)
    assert reading.window == (2,) * 12


async def test_the_oldest_titles_give_way_when_the_context_is_full(model: LoadedModel) -> None:
    long = "ü" * 120  # 240 tokens
    prompt = build_prompt(model, [long, 3, long, 4])
    assert prompt == model.titles.prompt([3, long, 4])
    assert len(model.titles.prompt([long, 3, long, 4])) > model.prompt_limit


async def test_a_title_that_never_fits_leaves_no_prompt(model: LoadedModel) -> None:
    assert build_prompt(model, [3, "ü" * 512]) is None
    assert build_prompt(model, []) is None
