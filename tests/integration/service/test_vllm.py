"""Real vLLM: the same artifact gives what the native engine gives, for every family, through any loss."""

import asyncio
import os
import shutil
import signal
import string
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import torch
from served_artifact import write_served_artifact
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from vllm_python import vllm_python

from pruning.surgery.canonical import canonical
from recommender.artifact import Artifact
from recommender.ranker import RankedItem, Ranker
from recommender.search.frontier import Query
from service.checkpoints.loading import load_model
from service.engine.making import VllmMaker
from service.engine.protocol import LoadedModel, Ranking, RankRequest
from service.engine.vllm.search import FIRST_LISTED
from service.errors import RequestError

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PLACES = (
    "Alder",
    "Birch",
    "Cedar",
    "Elm",
    "Fir",
    "Hazel",
    "Maple",
    "Oak",
    "Pine",
    "Rowan",
    "Willow",
    "Yew",
)
THINGS = ("Castle", "Garden", "Harbour", "Island", "Journey", "Kingdom", "Legend", "Mystery", "Winter")
# More first tokens than a row lists at once, so that the unlisted rest matters too.
INITIALS = string.ascii_letters + string.digits + string.punctuation
TITLES = [
    f"{place} {thing}{part}" for place in PLACES for thing in THINGS for part in ("", " II", ": the Return")
] + [f"{initial}{number} Road" for initial in INITIALS for number in (1, 2)]
# Histories of every length that the window knows, short and long.
HISTORIES = [
    tuple((7 * start + 13 * step) % len(TITLES) for step in range(start % 20)) for start in range(50)
]
SCORES, TIES = 1e-3, 1e-5


def qwen3(**keys: object) -> PreTrainedModel:
    return Qwen3ForCausalLM(Qwen3Config(**keys))


def qwen2_as_llama(**keys: Any) -> PreTrainedModel:
    model = Qwen2ForCausalLM(Qwen2Config(**{name: keys[name] for name in keys if name != "head_dim"}))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return canonical(model)


def deadline() -> float:
    return asyncio.get_running_loop().time() + 120


def request(
    ranker: Ranker,
    history: Sequence[int],
    exclude: Sequence[int] = (),
    candidates: Sequence[int] | None = None,
) -> RankRequest:
    chosen = None if candidates is None else frozenset(candidates)
    return RankRequest(ranker.prompt(history), 10, frozenset(exclude), chosen, deadline())


def assert_native(ranker: Ranker, asked: RankRequest, got: Ranking) -> None:
    """Place by place the same score; another item only where two of them tie."""
    query = Query(asked.prompt, asked.k, ranker.filter(asked.exclude, asked.candidates))
    expected: list[RankedItem] = ranker.items(ranker.search.rank([query])[0], query)
    assert len(got.items) == len(expected)
    assert got.exact
    score_of = {item.index: item.score for item in expected}
    for item, wanted in zip(got.items, expected, strict=True):
        assert item.score == pytest.approx(wanted.score, abs=SCORES)
        if item.index != wanted.index:
            assert score_of.get(item.index, expected[-1].score) == pytest.approx(wanted.score, abs=TIES)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A Llama whose heads are no even share of its width, as after a cut."""
    shape = {"hidden_size": 96, "intermediate_size": 128, "num_attention_heads": 2, "head_dim": 32}
    return write_served_artifact(tmp_path_factory, "grove", TITLES, seed=3, **shape)


@pytest.fixture(scope="module")
def ranker(artifact: Artifact) -> Ranker:
    ranker = Ranker.from_artifact(artifact)
    assert len(ranker.trie.children(0)) > FIRST_LISTED
    return ranker


@pytest.fixture(scope="module")
def failures() -> list[str]:
    return []


@pytest.fixture(scope="module")
def maker(failures: list[str]) -> VllmMaker:
    return VllmMaker(vllm_python(), 16, failures.append)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model(artifact: Artifact, maker: VllmMaker, failures: list[str]) -> AsyncIterator[LoadedModel]:
    loaded = await load_model(artifact, maker)
    yield loaded
    await loaded.engine.close()
    assert not failures


@pytest.mark.asyncio(loop_scope="module")
class TestSameAsNative:
    async def test_fifty_requests(self, model: LoadedModel, ranker: Ranker) -> None:
        for history in HISTORIES:
            asked = request(ranker, history)
            assert_native(ranker, asked, await model.rank(asked))

    async def test_sixteen_at_a_time_with_filters(self, model: LoadedModel, ranker: Ranker) -> None:
        many = [
            request(ranker, history, exclude=range(number, len(TITLES), 3))
            if number % 2
            else request(ranker, history, candidates=range(number, len(TITLES), 17))
            for number, history in enumerate(HISTORIES)
        ]
        for start in range(0, len(many), 16):
            batch = many[start : start + 16]
            answers = await asyncio.gather(*(model.rank(asked) for asked in batch))
            for asked, got in zip(batch, answers, strict=True):
                assert_native(ranker, asked, got)

    async def test_a_prompt_is_read_once(self, model: LoadedModel, ranker: Ranker) -> None:
        asked = request(ranker, range(15))
        await model.rank(asked)
        again = await model.rank(asked)
        assert again.cached_tokens == (len(asked.prompt) - 1) // 32 * 32 > 0

    async def test_a_prompt_that_is_too_long_is_refused_alone(
        self, model: LoadedModel, ranker: Ranker
    ) -> None:
        asked = request(ranker, HISTORIES[9])
        longest = (asked.prompt * 100)[: model.prompt_limit]
        with pytest.raises(RequestError, match=f"has {len(longest) + 1} tokens, and {len(longest)} fit"):
            await model.rank(replace(asked, prompt=(*longest, longest[0])))
        assert_native(
            ranker, replace(asked, prompt=longest), await model.rank(replace(asked, prompt=longest))
        )

    async def test_what_the_child_holds_is_expected_of_the_next(
        self, model: LoadedModel, maker: VllmMaker, artifact: Artifact
    ) -> None:
        of_cache = model.engine.memory().kv_cache
        # vLLM's and torch's libraries and workspace.
        assert 300 << 20 < maker.overhead_bytes(artifact) - of_cache < 2 << 30

    async def test_vllms_own_metrics_and_memory(self, model: LoadedModel, artifact: Artifact) -> None:
        text = await model.engine.own_metrics()
        assert f'vllm:prompt_tokens_total{{engine="0",model_name="{artifact.identity}"}}' in text
        held = model.engine.memory()
        assert held.weights > 0
        assert held.kv_cache > 0


@pytest.mark.parametrize(
    ("make_model", "shape"),
    [
        (qwen3, {"hidden_size": 80, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 64}),
        (qwen2_as_llama, {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32}),
    ],
    ids=["qwen3", "qwen2"],
)
async def test_other_families_load_and_rank_as_native(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., PreTrainedModel],
    shape: dict[str, int],
) -> None:
    artifact = write_served_artifact(tmp_path_factory, "other", TITLES, 4, make_model, **shape)
    ranker = Ranker.from_artifact(artifact)
    model = await load_model(artifact, VllmMaker(vllm_python(), 16, [].append))
    try:
        asked = [request(ranker, history) for history in HISTORIES[:16]]
        for one, got in zip(asked, await asyncio.gather(*(model.rank(one) for one in asked)), strict=True):
            assert_native(ranker, one, got)
    finally:
        await model.engine.close()


@pytest.mark.killing
def test_a_lost_child_makes_the_service_unready_until_the_next_one_ranks(
    start_service: Callable[..., Any], artifact: Artifact, tmp_path: Path
) -> None:
    service = start_service(
        *("--engine", "vllm"),
        artifacts=artifact.path,
        ESPALIER_VLLM_PYTHON=str(vllm_python()),
        TMPDIR=str(_made(tmp_path / "tmp")),
    )
    wanted = {"history": ["g1", "g2"], "k": 3}
    with service.client() as client:
        before = client.post("/recommend", json=wanted)
        assert before.status_code == 200
        assert "vllm:" in client.get("/metrics/vllm").text
        for sign, reason in ((signal.SIGKILL, "killed"), (signal.SIGSTOP, "hung")):
            os.kill(_child_of(service.process.pid), sign)
            if (
                sign == signal.SIGSTOP
            ):  # asked while nothing is known yet, and answered long before its deadline
                assert client.post("/recommend", json=wanted).status_code == 503
            _wait_for(lambda: client.get("/readyz").status_code == 503)
            assert "vLLM's process" in client.get("/readyz").json()["detail"]
            lost = client.post("/recommend", json=wanted)
            assert lost.status_code == 503
            assert lost.json()["type"] == "urn:espalier:problem:engine-away"
            assert client.get("/livez").status_code == 200
            assert client.get("/metrics/vllm").status_code == 503
            _wait_for(lambda: client.get("/readyz").status_code == 200)
            assert f'espalier_engine_failures_total{{reason="{reason}"}} 1.0' in client.get("/metrics").text
            after = client.post("/recommend", json=wanted).json()
            assert [item["item_id"] for item in after["items"]] == [
                item["item_id"] for item in before.json()["items"]
            ]
    child = _child_of(service.process.pid)
    assert _scratch(tmp_path / "tmp") == 1
    assert service.end() == 0
    assert not Path(f"/proc/{child}").exists()
    assert _scratch(tmp_path / "tmp") == 0
    assert "ended by SIGKILL" in service.log.read_text()


@pytest.mark.killing
def test_a_killed_service_takes_its_child_along(
    start_service: Callable[..., Any], redis_server: Any, artifact: Artifact, tmp_path: Path
) -> None:
    service = start_service(
        *("--engine", "vllm", "--redis", redis_server.url),  # an embedded one would outlive it
        artifacts=artifact.path,
        ESPALIER_VLLM_PYTHON=str(vllm_python()),
        TMPDIR=str(_made(tmp_path / "tmp")),
    )
    child = _child_of(service.process.pid)
    service.process.kill()
    service.process.wait()
    _wait_for(lambda: not Path(f"/proc/{child}/exe").exists())
    assert _scratch(tmp_path / "tmp") == 0


def test_a_swap_to_another_shape_starts_a_second_child_and_ends_the_first(
    start_service: Callable[..., Any],
    artifact: Artifact,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 32}
    smaller = write_served_artifact(tmp_path_factory, "smaller", TITLES[:200], seed=5, **shape)
    folder = tmp_path / "folder"
    shutil.copytree(artifact.path, folder / "grove")
    shutil.copytree(smaller.path, folder / "smaller")
    (tmp_path / "token").write_text("root\n")
    service = start_service(
        *("--engine", "vllm"),
        artifacts=folder,
        ESPALIER_VLLM_PYTHON=str(vllm_python()),
        ESPALIER_CHECKPOINT="grove",
        ESPALIER_ADMIN_TOKEN_FILE=str(tmp_path / "token"),
        TMPDIR=str(_made(tmp_path / "tmp")),
    )
    first = _child_of(service.process.pid)
    with httpx.Client(base_url=service.url, timeout=180) as client:
        done = client.post(
            "/checkpoints/smaller/activate?wait=true", headers={"Authorization": "Bearer root"}
        )
        assert done.json()["step"] == "done", done.text
        answer = client.post("/recommend", json={"history": ["g1", "g2"], "k": 3}).json()
        assert answer["model"] == smaller.identity
        ranker = Ranker.from_artifact(smaller)
        query = Query(ranker.prompt((1, 2)), 3, ranker.filter(ranker.same_title((1, 2))))
        expected = ranker.items(ranker.search.rank([query])[0], query)
        assert [item["score"] for item in answer["items"]] == pytest.approx(
            [item.score for item in expected], abs=SCORES
        )
        # An ending that was meant is no failure.
        assert 'espalier_engine_failures_total{reason="killed"} 0.0' in client.get("/metrics").text
    assert not Path(f"/proc/{first}").exists()
    assert _child_of(service.process.pid) != first
    assert _scratch(tmp_path / "tmp") == 1


def _child_of(service: int) -> int:
    """The one child process that holds vLLM."""
    children = [
        int(child)
        for file in Path("/proc").glob(f"{service}/task/*/children")
        for child in file.read_text().split()
        if b"service.engine.vllm.child" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]
    assert len(children) == 1
    return children[0]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _scratch(folder: Path) -> int:
    """How many children's folders there are; nothing of vLLM's may lie beside them."""
    names = [path.name for path in folder.iterdir()]
    assert not [name for name in names if name.startswith("vllm")]
    return sum(name.startswith("espalier-vllm-") for name in names)


def _wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
