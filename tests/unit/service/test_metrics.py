import shutil
import subprocess
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from recommender.artifact import Artifact
from service.metrics import Metrics


@pytest.fixture
async def scraped(client: httpx.AsyncClient) -> dict[str, Any]:
    for body in ({"history": ["g1"]}, {"history": []}, {"user_id": "ann"}):
        assert (await client.post("/recommend", json=body)).status_code == 200
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def test_two_apps_share_nothing() -> None:
    first, second = Metrics(), Metrics()
    first.redis_up.set(1)
    assert second.registry.get_sample_value("espalier_redis_up") == 0


async def test_everything_designed_is_there(scraped: dict[str, Any]) -> None:
    names = {key[0] for key in scraped}
    for name in (
        "espalier_request_duration_seconds_bucket",
        "espalier_stage_duration_seconds_bucket",
        "espalier_requests_in_flight",
        "espalier_queue_depth",
        "espalier_prompt_tokens_total",
        "espalier_prompt_tokens_cached_total",
        "espalier_decode_steps_total",
        "espalier_model_parameters",
        "espalier_checkpoint_info",
        "espalier_build_info",
        "espalier_generation",
        "espalier_swaps_total",
        "espalier_swap_duration_seconds_bucket",
        "espalier_checkpoint_fallback",
        "espalier_memory_limit_bytes",
        "espalier_memory_bytes",
        "espalier_history_operations_total",
        "espalier_redis_up",
    ):
        assert name in names
    assert all(name.startswith("espalier_") for name in names)


async def test_figures_are_the_models_and_the_requests(scraped: dict[str, Any]) -> None:
    route = (("route", "/recommend"), ("status", "200"))
    assert scraped[("espalier_request_duration_seconds_count", *route)] == 3
    assert scraped[("espalier_model_parameters", ("part", "nonembedding"))] == 11
    assert scraped[("espalier_memory_bytes", ("kind", "weights"))] > 1000
    assert scraped[("espalier_memory_bytes", ("kind", "process"))] > 1e6
    assert scraped["espalier_redis_up",] == 0
    assert scraped["espalier_prompt_tokens_total",] > 0
    outcomes = (("degraded", "history_unavailable"), ("strategy", "popular"))
    assert scraped[("espalier_recommendations_total", *outcomes)] == 1


async def test_labels_name_neither_users_nor_items(scraped: dict[str, Any]) -> None:
    labels = {label for _, *pairs in scraped for label, _ in pairs}
    assert labels <= {
        "route", "status", "stage", "le", "reason", "strategy", "degraded", "operation", "outcome",
        "part", "kind", "state", "name", "digest", "version", "python", "measure", "of",
    }  # fmt: skip


async def test_a_checkpoints_name_is_on_one_metric_and_ends_with_it(
    client: httpx.AsyncClient, served_artifact: Artifact
) -> None:
    name, _, digest = served_artifact.identity.partition("@")
    line = f'espalier_checkpoint_info{{digest="{digest}",name="{name}"}} 1.0'
    named = [line for line in (await client.get("/metrics")).text.splitlines() if f'"{name}"' in line]
    assert named == [line]
    app: FastAPI = client.app  # type: ignore[attr-defined]
    app.state.services.models.replace(None)
    assert name not in (await client.get("/metrics")).text


async def test_strange_paths_share_one_label(client: httpx.AsyncClient) -> None:
    for path in ("/nope", "/users/ann/history", "/users/bob/history", "/.env"):
        await client.get(path)
    metrics = (await client.get("/metrics")).text
    assert 'route="unmatched",status="404"} 2.0' in metrics
    assert 'route="/users/{user_id}/history",status="503"} 2.0' in metrics


@pytest.mark.prometheus
async def test_promtool_finds_nothing_to_say(client: httpx.AsyncClient) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    await client.post("/recommend", json={"history": ["g1"]})
    text = (await client.get("/metrics")).text
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
