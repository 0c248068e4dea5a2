"""What `decoding.py` makes of what it measured: ratios, shares, a page and its picture."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from typing import Any

from markupsafe import Markup

from benchmarks.decoding_contenders import Answer, K, Prompt
from benchmarks.records import Record, provenance, table
from pruning.report.svg import Scale, compact, drawing, hint, tag, text

OUR_VLLM = ("vllm_eager", "vllm_compiled")
NAMES = {
    "native": "native",
    "transformers": "transformers, constrained beams",
    "vllm_eager": "our vLLM engine, eager",
    "vllm_compiled": "our vLLM engine, compiled",
    "vllm_beams": "vLLM's beams, unconstrained",
}
_WIDTH, _NAMES_WIDTH, _BAR, _TOP, _BOTTOM = 720, 210, 22, 26, 34


def overlap(answers: Sequence[Answer], exact: Sequence[Answer]) -> float:
    """Mean share of the exact ten that an answer holds."""
    return statistics.fmean(
        len({*one} & {*other}) / len(other) for one, other in zip(answers, exact, strict=True)
    )


def illegal_share(sequences: Sequence[Sequence[Prompt]], titles: Collection[Prompt]) -> float:
    """Which share of the best ten sequences of each request is no title of the catalogue."""
    best = [sequence for one in sequences for sequence in one[:K]]
    return statistics.fmean(sequence not in titles for sequence in best)


def best_vllm(
    milliseconds: Mapping[str, Mapping[str, float]], rates: Mapping[str, Mapping[str, float]]
) -> dict[str, str]:
    """The better of our engine's modes on vLLM for each ratio; nothing where it did not run."""
    ran = [name for name in OUR_VLLM if name in milliseconds]
    if not ran:
        return {}
    return {
        "p50": min(ran, key=lambda name: milliseconds[name]["p50_ms"]),
        "throughput32": max(ran, key=lambda name: rates[name]["32"]),
    }


def ratios(
    milliseconds: Mapping[str, Mapping[str, float]], rates: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """How many times faster native is than transformers, and than the best of our modes on vLLM."""
    best = best_vllm(milliseconds, rates)
    found = {}
    for other, p50, throughput in (
        ("transformers", "transformers", "transformers"),
        ("vllm", best.get("p50"), best.get("throughput32")),
    ):
        if p50 is not None and throughput is not None:
            found[f"p50_vs_{other}"] = milliseconds[p50]["p50_ms"] / milliseconds["native"]["p50_ms"]
            found[f"throughput32_vs_{other}"] = rates["native"]["32"] / rates[throughput]["32"]
    return {name: round(value, 2) for name, value in sorted(found.items())}


def page(record: Record) -> str:
    """The record for a reader; its picture is a file beside the page, named in the record."""
    ratio, share, floors = record["ratios"], record["floor_fraction"], record["floors"]
    rows = [
        (
            NAMES[name],
            f"{times['p50_ms']} / {times['p95_ms']} / {times['p99_ms']}",
            *(f"{record['requests_per_s'][name][at]:.1f}" for at in ("1", "8", "32")),
            f"{record['peak_bytes'][name] / 2**20:,.0f}",
            f"{record['overlap10'][name]:.3f}",
        )
        for name, times in record["ms"].items()
    ]
    rows += [
        (
            f"floor: {words}, whole request",
            floors["ms"][f"request_{kind}"],
            *(f"{floors['requests_per_s'][at][f'request_{kind}']:.1f}" for at in ("1", "8", "32")),
            "–",
            "–",
        )
        for kind, words in _FLOORS.items()
    ]
    head = ("", "p50 / p95 / p99 ms", "1 at once, 1/s", "8", "32", "peak MiB", "overlap@10")
    parts = [
        (
            part,
            floors["native_ms"][key],
            *(f"{floors['ms'][f'{key}_{kind}']} ({share[f'{key}_{kind}']:.0%})" for kind in _FLOORS),
        )
        for part, key in (("packed prefill", "prefill"), ("whole request", "request"))
    ]
    verdicts = [
        f"Native is {ratio[f'p50_vs_{key}']:.1f} times as fast as {name} at p50 and answers "
        f"{ratio[f'throughput32_vs_{key}']:.1f} times as many requests, 32 at once."
        for key, name in (("transformers", "transformers"), ("vllm", "the better of our modes on vLLM"))
        if f"p50_vs_{key}" in ratio
    ]
    files, mean = record["files"], record["prompt_tokens_mean"]
    parts_head = (
        "native, one request",
        "median ms",
        *(f"{words} ms (share)" for words in _FLOORS.values()),
    )
    return f"""# Decoding: a catalogue-constrained top {record["k"]}

{provenance(record)}
Artifact {record["artifact"]}, {record["titles"]} titles of at most {record["longest_title"]} tokens,
weights of {record["weights"]} multiplied in {record["dtype"]} by all, {record["threads"]} threads; the
same {record["rows"]} test histories for all and at every concurrency, {mean} prompt tokens on average.
The contenders take turns of eight requests or one call.
All figures: [{files}.json]({files}.json).

{" ".join(verdicts)}

![p50 and requests/s of every contender, on logarithmic axes, with the floors]({files}.svg)

{table(head, rows)}

A call holds 1, 8 or 32 requests and ends with the last of them. What a contender remembers across requests
is emptied before each pass: native's prefix cache holds the warm-up's prompts alone, transformers has none,
our engine on vLLM starts a new process, and vLLM's beams empty their cache. Peak memory is the highest
resident memory (VmHWM) of the contender's own process, libraries included: native's and transformers' of
processes made for it, which answered eight requests alone and {record["memory_rows"]} together; vLLM's of
its children over the timed run. Overlap@10, the lowest of the three passes, is with the exact answer: the
search's torch reference gave it, its frontier never cut.

## Beside the floors

{table(parts_head, parts)}

The floors of `benchmarks/floors.py`, measured in the same run on {record["floor_rows"]} of the histories:
*roofline* is the needed operations at the machine's peak or their bytes at its bandwidth, *products* the
needed matrix products back to back. The share is how much of native's time the floor makes up. The floors
at 8 and 32 are those of requests read together, level by level.{_disturbed(record)}
{_on_vllm(record)}

All of this is a CPU's. On a GPU none of it has been measured; there the engine is vLLM's.
"""


_FLOORS = {"roofline": "roofline", "gemm": "products"}


def _disturbed(record: Record) -> str:
    """What must be said where a floor lies above a time."""
    shares, said = record["floor_fraction"], []
    if max(share for key, share in shares.items() if key.endswith("gemm")) > 1:
        said.append(
            "The products are torch's; a share above 100 % says that the kernels' own, of packed weights, "
            "take less time."
        )
    if max(share for key, share in shares.items() if key.endswith("roofline")) > 1:
        said.append(
            "A roofline above 100 % says that other work on the machine disturbed the measuring; the load "
            f"was {record['load_before']} when the run began."
        )
    return "".join(f"\n{one}" for one in said)


def _on_vllm(record: Record) -> str:
    if not record["tuning"]:
        return "\nvLLM did not run: no interpreter that has it was named.\n"
    rows = [
        (NAMES[one["mode"]], one["block_tokens"], one["p50_ms"] or "–", one["refused"] or "")
        for one in record["tuning"]
    ]
    chosen = ", ".join(f"{NAMES[name]}: {block}" for name, block in record["block_tokens"].items())
    said = f"""
## On vLLM

{table(("tried", "tokens of a block", "p50 ms", "did not run"), rows)}

Before the timed passes each mode of our engine answered {record["tuning_rows"]} validation histories, one
by one, for every block size. What went on into the timed run ({chosen or "nothing"}) was each
one's fastest.
"""
    if "vllm_beams" in record["overlap10"]:
        illegal = record["illegal_share10"]
        said += f"""
vLLM's own beam search has {record["beams"]} beams, runs eagerly and without any constraint, takes the line
feed for its tokenizer's end, and stops after as many tokens as the longest title has. It is slow, so it
answered only the first {record["beam_rows"]} of the histories at every concurrency. **{illegal:.1%}** of
its best ten sequences are no title of the catalogue; its overlap@10 counts those that are one.
"""
    return said


def picture(record: Record) -> str:
    """Two panels of bars, p50 and requests/s, logarithmic; the floors are lines."""
    names = list(record["ms"])
    floors = record["floors"]
    panels = [
        _panel(
            "p50 at one request at a time, ms (shorter is better)",
            {name: record["ms"][name]["p50_ms"] for name in names},
            {words: floors["ms"][f"request_{kind}"] for kind, words in _FLOORS.items()},
            0,
        ),
        _panel(
            "requests/s, 32 at once (longer is better)",
            {name: record["requests_per_s"][name]["32"] for name in names},
            {words: floors["requests_per_s"]["32"][f"request_{kind}"] for kind, words in _FLOORS.items()},
            _height(len(names)),
        ),
    ]
    alt = "p50 and requests/s of " + ", ".join(NAMES[name] for name in names)
    chart = str(drawing(_WIDTH, 2 * _height(len(names)), alt, *panels))
    # A file of its own needs what a page would give it: a namespace, the colours and a ground.
    style = resources.files("pruning.report").joinpath("templates/style.css").read_text("utf-8")
    opened = chart.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    at = opened.index(">") + 1
    return f"{opened[:at]}{tag('style', Markup(style + 'svg { background: var(--card); }'))}{opened[at:]}\n"


def _height(bars: int) -> int:
    return _TOP + _BAR * bars + _BOTTOM


def _panel(title: str, values: Mapping[str, float], floors: Mapping[str, float], top: int) -> Markup:
    every = [*values.values(), *floors.values()]
    across = Scale(min(every) / 2, max(every) * 2, _NAMES_WIDTH, _WIDTH - 20, logarithmic=True)
    first, last = top + _TOP, top + _TOP + _BAR * len(values)
    drawn: list[Any] = [text(_NAMES_WIDTH, top + 16, title, class_="ink")]
    for tick in across.ticks():
        x = across(tick)
        drawn.append(tag("line", x1=x, x2=x, y1=first, y2=last, class_="grid"))
        drawn.append(text(x, last + 14, compact(tick), "middle"))
    for place, (name, value) in enumerate(values.items()):
        y = first + _BAR * place
        end = across(value)
        bar = tag("rect", x=_NAMES_WIDTH, y=y + 3, width=end - _NAMES_WIDTH, height=_BAR - 6, class_="bars")
        drawn.append(tag("g", hint(f"{NAMES[name]}: {value:.4g}"), bar))
        drawn.append(text(_NAMES_WIDTH - 8, y + 15, NAMES[name], "end", class_="ink"))
        drawn.append(text(end + 5, y + 15, compact(value), class_="ink"))
    for name, value in floors.items():
        x = across(value)
        line = tag("line", x1=x, x2=x, y1=first, y2=last + 18, class_="level")
        drawn.append(tag("g", hint(f"{name}: {value:.4g}"), line))
    # The two floors may lie close together: one is named to the left of its line, the other to the right.
    low, high = sorted(floors, key=lambda name: floors[name])
    drawn.append(text(across(floors[low]) - 4, last + 28, low, "end"))
    drawn.append(text(across(floors[high]) + 4, last + 28, high))
    return tag("g", *drawn)
