"""What the dashboards show: every graph with its PromQL. `generate.py` makes Grafana's JSON of them.

Rates are over `$__rate_interval`; every query takes all replicas that Prometheus scrapes as `espalier`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

JOB = 'job="espalier"'
# What clients ask for; probes, scrapes and the page's own files say nothing about them.
ASKED = f'{JOB},route!~"/livez|/readyz|/metrics(/vllm)?|/|/page/.*|unmatched"'
FAILED = f'{ASKED},status=~"5.."'
MEMORY_KINDS = {
    "Weights": ("weights", "The model's parameters, as the engine holds them."),
    "KV cache": ("kv_cache", "Keys and values of prompts being searched or kept."),
    "Trie": ("trie", "The catalogue's titles as a trie."),
    "Accelerator": ("accelerator", "What of the engine lies on a GPU; 0 without one."),
}


@dataclass(frozen=True)
class Query:
    """A PromQL expression and what its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Graph:
    """One panel: what it shows, in which of Grafana's units, by which queries."""

    title: str
    description: str
    unit: str
    queries: Sequence[Query]


def quantile(q: float, metric: str, *by: str, of: str = JOB) -> str:
    """The q-quantile of a histogram over the rate interval, by labels."""
    labels = ", ".join(("le", *by))
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{of}}}[$__rate_interval])))"


def rate(metric: str, *by: str, of: str = JOB) -> str:
    """A counter's events a second, by labels."""
    grouping = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouping} (rate({metric}{{{of}}}[$__rate_interval]))"


def quantiles(metric: str, of: str) -> list[Query]:
    """Median, 95th and 99th percentile."""
    return [Query(quantile(q, metric, of=of), f"p{round(q * 100)}") for q in (0.5, 0.95, 0.99)]


def service() -> list[Graph]:
    """What clients see, and where the time goes."""
    requests, stages = "espalier_request_duration_seconds", "espalier_stage_duration_seconds"
    by_stage = [
        Graph(
            f"Stage duration, p{round(q * 100)}",
            "Of recommendations: history (Redis), prompt, queue, prefill, decode.",
            "s",
            [Query(quantile(q, stages, "stage"), "{{stage}}")],
        )
        for q in (0.5, 0.95, 0.99)
    ]
    answered = f"{requests}_count"
    failed = f"{rate(answered, of=FAILED)} / {rate(answered, of=ASKED)}"
    return [
        Graph(
            "Requests",
            "Answers a second, by route.",
            "reqps",
            [Query(rate(answered, "route", of=ASKED), "{{route}}")],
        ),
        Graph(
            "Answers by status",
            "Answers a second, by HTTP status; 499 is a client that left.",
            "reqps",
            [Query(rate(answered, "status", of=ASKED), "{{status}}")],
        ),
        Graph(
            "Errors",
            "Share of answers with a 5xx status. The objective allows 0.1 %.",
            "percentunit",
            [Query(failed, "5xx")],
        ),
        Graph(
            "Rejections",
            "Requests turned away a second, by problem.",
            "reqps",
            [Query(rate("espalier_rejections_total", "reason"), "{{reason}}")],
        ),
        Graph(
            "Duration of /recommend",
            "From the first byte of a request to the last of its answer.",
            "s",
            quantiles(requests, f'{JOB},route="/recommend"'),
        ),
        *by_stage,
        Graph(
            "Queue and requests in flight",
            "Waiting for the engine, and HTTP requests being answered, by replica.",
            "short",
            [
                Query(f"espalier_queue_depth{{{JOB}}}", "queue {{instance}}"),
                Query(f"espalier_requests_in_flight{{{JOB}}}", "in flight {{instance}}"),
            ],
        ),
        Graph(
            "Batch size, mean",
            "Requests that a replica searches at once, averaged over time (Little's law: their rate times "
            "the time each spends in prefill and decode).",
            "short",
            [Query(rate(f"{stages}_sum", "instance", of=f'{JOB},stage=~"prefill|decode"'), "{{instance}}")],
        ),
        Graph(
            "Recommendations",
            "Given a second, by strategy and reason of degradation.",
            "reqps",
            [
                Query(
                    rate("espalier_recommendations_total", "strategy", "degraded"),
                    "{{strategy}}, degraded: {{degraded}}",
                )
            ],
        ),
        Graph(
            "Prompt tokens",
            "Read a second, and those of them that were found in a cache.",
            "short",
            [
                Query(rate("espalier_prompt_tokens_total"), "all"),
                Query(rate("espalier_prompt_tokens_cached_total"), "cached"),
            ],
        ),
        Graph(
            "Decode steps of a recommendation",
            "Search steps after the prefill, mean.",
            "short",
            [
                Query(
                    f"{rate('espalier_decode_steps_total')} / "
                    + rate("espalier_recommendations_total", of=f'{JOB},strategy="model"'),
                    "steps",
                )
            ],
        ),
    ]


def model() -> list[Graph]:
    """What serves, how good it was measured to be, and how it came to serve."""
    return [
        Graph(
            "Checkpoint of each replica",
            "One line a replica and checkpoint; a line that ends is a checkpoint that was replaced.",
            "short",
            [Query(f"espalier_checkpoint_info{{{JOB}}}", "{{instance}}: {{name}}@{{digest}}")],
        ),
        Graph(
            "Generation",
            "The fleet's checkpoint counter: wanted, and served by each replica.",
            "none",
            [Query(f"espalier_generation{{{JOB}}}", "{{instance}} {{state}}")],
        ),
        Graph(
            "Parameters",
            "Of the model that serves; the vocabulary's matrices are the difference.",
            "short",
            [Query(f"max by (part) (espalier_model_parameters{{{JOB}}})", "{{part}}")],
        ),
        Graph(
            "Quality",
            "From the manifest: ranking quality on the test rows, and the teacher's on the same rows.",
            "percentunit",
            [Query(f"max by (measure, of) (espalier_model_quality_ratio{{{JOB}}})", "{{measure}} {{of}}")],
        ),
        Graph(
            "Retention",
            "The model's quality divided by its teacher's.",
            "percentunit",
            [
                Query(
                    f'max by (measure) (espalier_model_quality_ratio{{{JOB},of="model"}}) / '
                    f'max by (measure) (espalier_model_quality_ratio{{{JOB},of="teacher"}})',
                    "{{measure}}",
                )
            ],
        ),
        Graph(
            "Swaps",
            "Since each replica started, by outcome.",
            "short",
            [Query(f"sum by (outcome) (espalier_swaps_total{{{JOB}}})", "{{outcome}}")],
        ),
        Graph(
            "Duration of swaps, mean",
            "Since each replica started: from verification to the old checkpoint's end.",
            "s",
            [
                Query(
                    f"sum (espalier_swap_duration_seconds_sum{{{JOB}}}) / "
                    f"sum (espalier_swap_duration_seconds_count{{{JOB}}})",
                    "mean",
                )
            ],
        ),
        Graph(
            "Fallback",
            "1 while a replica serves an older checkpoint because the wanted one cannot be.",
            "short",
            [Query(f"espalier_checkpoint_fallback{{{JOB}}}", "{{instance}}")],
        ),
        Graph(
            "Build",
            "The version that runs.",
            "short",
            [Query(f"espalier_build_info{{{JOB}}}", "{{instance}}: {{version}}, Python {{python}}")],
        ),
    ]


def memory() -> list[Graph]:
    """What holds how much, beside what may be held."""
    kinds = [
        Graph(
            title,
            description,
            "bytes",
            [Query(f'espalier_memory_bytes{{{JOB},kind="{kind}"}}', "{{instance}}")],
        )
        for title, (kind, description) in MEMORY_KINDS.items()
    ]
    process = f'espalier_memory_bytes{{{JOB},kind="process"}}'
    return [
        Graph(
            "Process and its limit",
            "Resident memory of the process and its children; the limit is the cgroup's or the machine's.",
            "bytes",
            [
                Query(process, "{{instance}}"),
                Query(f"espalier_memory_limit_bytes{{{JOB}}}", "limit of {{instance}}"),
            ],
        ),
        Graph(
            "Share of the limit",
            "The alert fires above 90 %.",
            "percentunit",
            [Query(f"{process} / ignoring (kind) espalier_memory_limit_bytes{{{JOB}}}", "{{instance}}")],
        ),
        *kinds,
        Graph(
            "The model, by what it needs",
            "Summed over replicas.",
            "bytes",
            [
                Query(
                    f'sum by (kind) (espalier_memory_bytes{{{JOB},kind=~"weights|kv_cache|trie"}})',
                    "{{kind}}",
                )
            ],
        ),
    ]


def redis() -> list[Graph]:
    """The history store as the service meets it."""
    operations = "espalier_history_operations_total"
    return [
        Graph(
            "Redis up",
            "As each replica last saw it.",
            "short",
            [Query(f"espalier_redis_up{{{JOB}}}", "{{instance}}")],
        ),
        Graph(
            "Operations",
            "A second, by operation.",
            "ops",
            [Query(rate(operations, "operation"), "{{operation}}")],
        ),
        Graph(
            "Operations by outcome",
            "A second: ok, refused (full), timeout, error (away), cancelled (the client left).",
            "ops",
            [Query(rate(operations, "outcome"), "{{outcome}}")],
        ),
        Graph(
            "Time of reading a history",
            "The history stage of recommendations; 0 where the request carried its own.",
            "s",
            quantiles("espalier_stage_duration_seconds", f'{JOB},stage="history"'),
        ),
        Graph(
            "Recommendations without the stored history",
            "Share of answers that were degraded because Redis was away.",
            "percentunit",
            [
                Query(
                    rate("espalier_recommendations_total", of=f'{JOB},degraded="history_unavailable"')
                    + f" / {rate('espalier_recommendations_total')}",
                    "degraded",
                )
            ],
        ),
    ]


DASHBOARDS = {
    "service": ("Espalier: service", service),
    "model": ("Espalier: model", model),
    "memory": ("Espalier: memory", memory),
    "redis": ("Espalier: Redis", redis),
}
