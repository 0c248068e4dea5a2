"""Everything that is measured, in one registry an app: no globals, no user or item labels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.checkpoints.holder import ModelHolder
from service.engine.protocol import Ranking

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """The app's metrics. Names carry the prefix `espalier_` and base units."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.request_duration = Histogram(
            "espalier_request_duration_seconds",
            "Time from a request's first byte to its answer's last one.",
            ("route", "status"),
            registry=registry,
            buckets=_BUCKETS,
        )
        self.stage_duration = Histogram(
            "espalier_stage_duration_seconds",
            "Time of a recommendation spent in a stage: history, prompt, queue, prefill, decode.",
            ("stage",),
            registry=registry,
            buckets=_BUCKETS,
        )
        self.in_flight = Gauge(
            "espalier_requests_in_flight", "HTTP requests being answered.", registry=registry
        )
        self.rejections = Counter(
            "espalier_rejections_total",
            "Requests turned away, by problem.",
            ("reason",),
            registry=registry,
        )
        self.recommendations = Counter(
            "espalier_recommendations_total",
            "Recommendations given, by strategy and reason of degradation.",
            ("strategy", "degraded"),
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "espalier_prompt_tokens_total", "Tokens of the prompts ranked.", registry=registry
        )
        self.cached_tokens = Counter(
            "espalier_prompt_tokens_cached_total", "Prompt tokens found in a cache.", registry=registry
        )
        self.decode_steps = Counter(
            "espalier_decode_steps_total",
            "Search steps after the prefill, summed over requests.",
            registry=registry,
        )
        self.history_operations = Counter(
            "espalier_history_operations_total",
            "Operations on the history store: append, read, delete.",
            ("operation", "outcome"),
            registry=registry,
        )
        self.redis_up = Gauge(
            "espalier_redis_up", "Whether the last operation or check reached Redis.", registry=registry
        )

    def ranked(self, ranking: Ranking) -> None:
        """Counts what an engine did for one request."""
        self.prompt_tokens.inc(ranking.prompt_tokens)
        self.cached_tokens.inc(ranking.cached_tokens)
        self.decode_steps.inc(ranking.steps)

    def watch(self, models: ModelHolder) -> None:
        """Reads the current model's figures at every scrape."""
        self.registry.register(_ModelCollector(models))


class _ModelCollector(Collector):
    """Figures of the model that serves now; a swap changes them without anyone telling."""

    def __init__(self, models: ModelHolder) -> None:
        self._models = models

    def collect(self) -> Iterator[GaugeMetricFamily]:
        model = self._models.current
        depth = GaugeMetricFamily("espalier_queue_depth", "Requests waiting for the engine.")
        depth.add_metric((), 0 if model is None else model.engine.waiting)
        yield depth
        parameters = GaugeMetricFamily(
            "espalier_model_parameters", "Parameters of the model.", labels=("part",)
        )
        memory = GaugeMetricFamily(
            "espalier_memory_bytes", "Memory by what holds it; the process holds it all.", labels=("kind",)
        )
        memory.add_metric(("process",), _resident_bytes())
        if model is not None:
            counts = model.artifact.manifest.parameters
            parameters.add_metric(("nonembedding",), counts.nonembedding)
            parameters.add_metric(("total",), counts.total)
            engine = model.engine.memory()
            memory.add_metric(("weights",), engine.weights)
            memory.add_metric(("kv_cache",), engine.kv_cache)
            memory.add_metric(("accelerator",), engine.accelerator)
            memory.add_metric(("trie",), model.titles.trie.nbytes)
        yield parameters
        yield memory


def _resident_bytes() -> int:
    """Resident memory of this process, where the system tells it (Linux)."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0
