from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

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
        "part", "kind",
    }  # fmt: skip
