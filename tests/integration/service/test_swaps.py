"""Swaps under load, in a real process: nothing is lost, and no answer mixes two checkpoints."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from recommender.artifact import Artifact
from recommender.ranker import Ranker
from recommender.search.frontier import Query

pytestmark = pytest.mark.valkey

CLIENTS = 16
SWAPS = 6
HISTORIES = [[f"g{item}", f"g{(7 * item + 3) % 26}"] for item in range(26)]
ADMIN = {"Authorization": "Bearer root"}
Answers = dict[str, list[list[tuple[str, float]]]]


@pytest.fixture
def token(tmp_path: Path) -> str:
    (tmp_path / "token").write_text("root\n")
    return str(tmp_path / "token")


def answers_alone(artifact: Artifact) -> list[list[tuple[str, float]]]:
    """What a checkpoint says to each history, computed here, with no service around it."""
    ranker = Ranker.from_artifact(artifact)
    found = []
    for history in HISTORIES:
        items = [ranker.catalogue.index_of(item_id) for item_id in history]
        known = [item for item in items if item is not None]
        filtered = ranker.filter(ranker.same_title(known))
        query = Query(prompt=ranker.prompt(known), k=5, items=filtered)
        ranked = ranker.items(ranker.search.rank([query])[0], query)
        found.append([(ranker.catalogue.item_ids[item.index], item.score) for item in ranked])
    return found


def agrees(answer: dict[str, Any], alone: list[tuple[str, float]]) -> bool:
    got = [(item["item_id"], item["score"]) for item in answer["items"]]
    return [item for item, _ in got] == [item for item, _ in alone] and all(
        abs(score - wanted) < 1e-3 for (_, score), (_, wanted) in zip(got, alone, strict=True)
    )


class Load:
    """Clients that ask without pause until they are told to stop."""

    def __init__(self, urls: list[str]) -> None:
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._tasks = [
            self._pool.submit(self._ask, urls[number % len(urls)], number) for number in range(CLIENTS)
        ]

    def _ask(self, url: str, number: int) -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not self._stop.is_set():
                which = number % len(HISTORIES)
                number += 1
                try:
                    answer = client.post("/recommend", json={"history": HISTORIES[which], "k": 5})
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.answers.append((which, answer.json()))
                else:
                    self.failures.append(answer.text)

    def end(self) -> None:
        self._stop.set()
        for task in self._tasks:
            task.result(timeout=60)
        self._pool.shutdown()


def test_swaps_under_load_lose_nothing_and_mix_nothing(
    start_service: Callable[..., Any],
    two_artifacts: Path,
    token: str,
    served_artifact: Artifact,
    other_artifact: Artifact,
) -> None:
    alone = {artifact.identity: answers_alone(artifact) for artifact in (served_artifact, other_artifact)}
    first, second = alone.values()
    assert sum(one != other for one, other in zip(first, second, strict=True)) >= 0.9 * len(HISTORIES)
    service = start_service(
        artifacts=two_artifacts, ESPALIER_CHECKPOINT="tiny", ESPALIER_ADMIN_TOKEN_FILE=token
    )
    load = Load([service.url])
    try:
        with service.client() as client:
            for swap in range(SWAPS):
                before = len(load.answers)
                name = ("other", "tiny")[swap % 2]
                done = client.post(f"/checkpoints/{name}/activate?wait=true", headers=ADMIN)
                assert (done.status_code, done.json()["step"]) == (200, "done"), done.text
                while len(load.answers) < before + 50 and not load.failures:
                    time.sleep(0.01)
            assert client.get("/checkpoints").json()["generation"] == SWAPS + 1
    finally:
        load.end()
    assert load.failures == []
    assert {answer["model"] for _, answer in load.answers} == set(alone)
    for which, answer in load.answers:
        assert agrees(answer, alone[answer["model"]][which]), answer
    assert service.end() == 0


@pytest.mark.slow
@pytest.mark.redis
def test_two_replicas_swap_together_and_a_killed_one_comes_back_to_what_is_wanted(
    start_service: Callable[..., Any], two_artifacts: Path, token: str, redis_server: Any, tmp_path: Path
) -> None:
    def start(name: str) -> Any:
        return start_service(
            "--redis",
            redis_server.url,
            artifacts=two_artifacts,
            ESPALIER_STATE_DIR=str(tmp_path / name),
            ESPALIER_CHECKPOINT="tiny",
            ESPALIER_ADMIN_TOKEN_FILE=token,
        )

    first, second = start("first"), start("second")
    with first.client() as client, second.client() as other:
        while len(client.get("/checkpoints").json()["replicas"]) < 2:
            time.sleep(0.05)
        done = client.post("/checkpoints/other/activate?wait=true", headers=ADMIN).json()
        assert (done["step"], done["stragglers"]) == ("done", [])
        body = {"history": ["g1"]}
        models = {one.post("/recommend", json=body).json()["model"] for one in (client, other)}
        assert {model.partition("@")[0] for model in models} == {"other"}
        assert other.get(f"/operations/{done['operation_id']}").json() == done
    assert second.end(signal.SIGKILL) == -signal.SIGKILL
    again = start("second")
    assert again.model is not None
    assert again.model.startswith("other@")
    redis_server.kill()
    assert again.end() == 0
    remembering = start("second")  # Redis is away: its own file says what was wanted
    assert remembering.model == again.model


def run_checkpoints(
    service: Any, token: str, *arguments: str, url: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "espalier", "checkpoints", *arguments, "--url", url or service.url],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"ESPALIER_ADMIN_TOKEN_FILE": token},
    )


@pytest.mark.slow
def test_an_operator_swaps_from_a_shell(
    start_service: Callable[..., Any],
    two_artifacts: Path,
    token: str,
    served_artifact: Artifact,
    tmp_path: Path,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    service = start_service(artifacts=empty, ESPALIER_ADMIN_TOKEN_FILE=token)
    assert service.model is None
    with service.client() as client:
        assert client.get("/readyz").json()["detail"] == "no checkpoint"
        shutil.copytree(two_artifacts / "tiny", empty / "tiny")
        while client.get("/readyz").status_code != 200:
            time.sleep(0.05)
        shutil.copytree(two_artifacts / "other", empty / "other")

    listed = json.loads(run_checkpoints(service, token, "list", "--json").stdout)
    assert {found["name"]: found["state"] for found in listed["checkpoints"]} == {
        "other": "available",
        "tiny": "serving",
    }
    assert (
        f"serving    tiny  {served_artifact.digest[:12]}" in run_checkpoints(service, token, "list").stdout
    )
    swapped = run_checkpoints(service, token, "activate", "other")
    assert (swapped.returncode, swapped.stdout) == (0, "done: other serves (generation 2)\n"), (
        swapped.stderr
    )
    back = run_checkpoints(service, token, "rollback", "--json")
    assert json.loads(back.stdout)["checkpoint"]["name"] == "tiny"
    wrong = run_checkpoints(service, token, "activate", "nobody")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.strip().endswith("nobody: no such checkpoint; GET /checkpoints lists them")
    (tmp_path / "bad").write_text("guess\n")
    refused = run_checkpoints(service, str(tmp_path / "bad"), "rollback")
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert service.end() == 0
    away = run_checkpoints(service, token, "list")
    assert (away.returncode, away.stdout) == (1, "")
    assert "does not answer" in away.stderr
    typo = run_checkpoints(service, token, "list", url="http://127.0.0.1:80o0")
    assert (typo.returncode, typo.stdout) == (1, "")
    assert "http://127.0.0.1:80o0 does not answer (nonnumeric port: '80o0')" in typo.stderr
