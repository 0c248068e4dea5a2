"""Everything that is measured, in one registry an app: no globals, no user or item labels."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from recommender.artifact import Manifest
from service.checkpoints.holder import ModelHolder
from service.engine.protocol import LoadedModel, Ranking
from service.engine.vllm.process import REASONS
from service.memory import memory_limit_bytes, resident_bytes
from service.problems import Problem

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SWAP_BUCKETS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
# Of all problems these turn a request away that may be all right.
_REJECTIONS = frozenset({401, 403, 408, 413, 415, 429, 503, 504})
_STAGES = ("history", "prompt", "queue", "prefill", "decode")


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
            "Requests turned away, by problem; those of a batch count one by one.",
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
        self.swaps = Counter(
            "espalier_swaps_total",
            "Attempts of this replica to exchange its checkpoint: done, or failed.",
            ("outcome",),
            registry=registry,
        )
        self.swap_duration = Histogram(
            "espalier_swap_duration_seconds",
            "Time of a swap from the verification to the old checkpoint's end.",
            registry=registry,
            buckets=_SWAP_BUCKETS,
        )
        self.engine_failures = Counter(
            "espalier_engine_failures_total",
            "Times that vLLM's process was lost: died, killed, hung, memory, or start.",
            ("reason",),
            registry=registry,
        )
        self.generation = Gauge(
            "espalier_generation",
            "The fleet's checkpoint counter: the one that is wanted, and the one that this replica serves.",
            ("state",),
            registry=registry,
        )
        self.checkpoint_fallback = Gauge(
            "espalier_checkpoint_fallback",
            "Whether an older checkpoint serves because the wanted one cannot.",
            registry=registry,
        )
        build = Gauge(
            "espalier_build_info", "What runs: always 1.", ("version", "python"), registry=registry
        )
        build.labels(version("espalier"), platform.python_version()).set(1)
        # Series exist before their first event: a rate over a series that begins at 1 misses it.
        for stage in _STAGES:
            self.stage_duration.labels(stage)
        for problem in ("overloaded", "deadline"):
            self.rejections.labels(problem)
        for reason in REASONS:
            self.engine_failures.labels(reason)
        for outcome in ("done", "failed"):
            self.swaps.labels(outcome)
        for state in ("wanted", "serving"):
            self.generation.labels(state)

    def ranked(self, ranking: Ranking) -> None:
        """Counts what an engine did for one request."""
        self.prompt_tokens.inc(ranking.prompt_tokens)
        self.cached_tokens.inc(ranking.cached_tokens)
        self.decode_steps.inc(ranking.steps)

    def answered(self, document: Problem) -> None:
        """Counts a problem if it turns a request away."""
        if document.status in _REJECTIONS:
            self.rejections.labels(document.name).inc()

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
        yield _memory(model)
        limit = GaugeMetricFamily(
            "espalier_memory_limit_bytes", "What the process and its children may hold: the cgroup's limit."
        )
        limit.add_metric((), memory_limit_bytes())
        yield limit
        if model is not None:
            yield _checkpoint(model)
            yield _parameters(model.artifact.manifest)
            yield _quality(model.artifact.manifest)


def _memory(model: LoadedModel | None) -> GaugeMetricFamily:
    memory = GaugeMetricFamily(
        "espalier_memory_bytes",
        "Memory by what holds it; process is all of it, children included.",
        labels=("kind",),
    )
    memory.add_metric(("process",), resident_bytes())
    if model is not None:
        engine = model.engine.memory()
        memory.add_metric(("weights",), engine.weights)
        memory.add_metric(("kv_cache",), engine.kv_cache)
        memory.add_metric(("accelerator",), engine.accelerator)
        memory.add_metric(("trie",), model.titles.trie.nbytes)
    return memory


def _checkpoint(model: LoadedModel) -> GaugeMetricFamily:
    """The one place where a checkpoint's name is a label; the series ends when the checkpoint does."""
    info = GaugeMetricFamily(
        "espalier_checkpoint_info", "The checkpoint that serves: always 1.", labels=("name", "digest")
    )
    name, _, digest = model.identity.partition("@")
    info.add_metric((name, digest), 1)
    return info


def _parameters(manifest: Manifest) -> GaugeMetricFamily:
    counts = manifest.parameters
    parameters = GaugeMetricFamily(
        "espalier_model_parameters", "Parameters of the model.", labels=("part",)
    )
    parameters.add_metric(("nonembedding",), counts.nonembedding)
    parameters.add_metric(("total",), counts.total)
    return parameters


def _quality(manifest: Manifest) -> GaugeMetricFamily:
    """What the manifest says was measured; no sample when nothing was."""
    quality = GaugeMetricFamily(
        "espalier_model_quality_ratio",
        "Ranking quality from the manifest, of the model and of its teacher on the same rows.",
        labels=("measure", "of"),
    )
    found = manifest.quality
    if found is not None:
        quality.add_metric(("hr@10", "model"), found.hr10)
        quality.add_metric(("hr@10", "teacher"), found.teacher_hr10)
        quality.add_metric(("ndcg@10", "model"), found.ndcg10)
        quality.add_metric(("ndcg@10", "teacher"), found.teacher_ndcg10)
    return quality
