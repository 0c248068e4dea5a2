"""The pipeline benchmark's record for a reader."""

from __future__ import annotations

from benchmarks.records import Record, provenance, table

_STEP_HEAD = ("", "titles/s", "step p50 s", "an epoch, s", "peak RSS, MB", "times plain")
_STEP_FIGURES = ("titles_per_s", "step_p50_s", "epoch_s", "peak_rss_mb", "times_plain")


def page(record: Record) -> str:
    """The record as Markdown."""
    vocabulary, training = record["vocabulary"], record["training"]
    recipes = "".join(
        _recipe(name, one, record["goals"]["whole"]) for name, one in record["recipes"].items()
    )
    return f"""# Speed of the pipeline

{provenance(record)}
{record["base"]} ({record["parameters"]:,} parameters) on {record["dataset"]}, {record["threads"]} threads;
{record["steps"]} steps measured after one that warms up; a contender is a process, and they take turns step
by step. Of {record["windows"]:,} packed windows with {record["titles"]:,} target titles
{record["sampled_windows"]} are sampled, the same for all.
Ours: batches of about {record["tokens_per_batch"]} padded tokens, a vocabulary trimmed to
{vocabulary["ours"]:,} tokens. Plain: {record["windows_per_batch"]} windows a batch, as many as ours have on
average, padded to the longest; {vocabulary["plain"]:,} tokens in the head; float32.

**Epochs and wholes are extrapolated** from medians; validation is in none of them. A ratio is the median
over the rounds; what stands below `plain` ran apart, and its ratio is that of medians. Each peak is that of
a process, loading the model included.

## Teacher fine-tuning
Plain is Hugging Face's `Trainer` as it comes.

{_steps(training)}

Ours has {training["ours, bfloat16"]["times_plain"]} times the titles a second of the plain `Trainer` (goal:
{record["goals"]["training"]}).

## The recipes
Caching the teacher's signals, once a run: {record["caching"]["epoch_s"]} s.

{recipes}{_half(record)}"""


def _steps(contenders: Record) -> str:
    return table(
        _STEP_HEAD,
        ((name, *(one[figure] for figure in _STEP_FIGURES)) for name, one in contenders.items()),
    )


def _recipe(name: str, record: Record, goal: float) -> str:
    calibrated, whole = record["calibration"], record["whole"]
    stages = "\n\n".join(
        f"Restoration after `{stage['stage']}` ({stage['nonembedding_parameters']:,} non-embedding "
        f"parameters, {stage['epochs']} epochs, packaged as {stage['precision']}):\n\n"
        f"{_steps(stage['contenders'])}"
        for stage in record["restoration"]
    )
    scores = table(
        ("", *calibrated["ours"]["seconds"], "peak RSS, MB"),
        (
            (side, *calibrated[side]["seconds"].values(), calibrated[side]["peak_rss_mb"])
            for side in ("ours", "plain")
        ),
    )
    return f"""### `{name}`
{stages}

Importance scores of {calibrated["windows"]} windows, seconds by stage:

{scores}

All stages: ours {whole["ours_s"]:,} s, plain {whole["plain_s"]:,} s, which is {whole["ratio"]}
times as long (goal: {goal}); with a row per target {whole["plain, a row per target_s"]:,} s.

"""


def _half(record: Record) -> str:
    half = record["half_billion"]
    if half is None:
        return ""
    return f"""## A 0.5B-class teacher
A random one of {half["teacher_parameters"]:,} parameters went through all stages of `activation`,
{half["steps"]} training steps in all, to {half["student_nonembedding_parameters"]:,} non-embedding
parameters, in {half["peak_rss_gb"]} GB at most (goal: {record["goals"]["half_billion_peak_gb"]}).
"""
