"""The readable page of all rows: tables, paired differences, the curve, the goals, and what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.quality.comparison import (
    BUDGETS,
    CURVE,
    CURVE_SET,
    SETS,
    SIZES,
    Averaged,
    Results,
    worth_keeping,
)
from benchmarks.quality.curve import curve_svg
from benchmarks.quality.rows import Method, Row
from benchmarks.quality.summary import HOW_TO_READ, in_short
from benchmarks.records import table
from pruning.report.plots import Point
from recommender.ranking import Interval
from recommender.storage import write_file

PAGE_FILE, CURVE_FILE = "quality.md", "quality_curve.svg"
_GOALS = {95: (1.00, 0.96), 98: (0.98, 0.93)}
"""What is to be kept on average over the sets, and on the worst of them."""
_DECIDING = (1.0, 0.25)
_HEAD = (
    *("model", "seeds", "non-embedding", "all parameters", "gone", "MB", "tokens", "budget", "trials"),
    *("HR@10", "NDCG@10", "keeps HR@10", "keeps NDCG@10"),
)


def write_page(folder: Path) -> None:
    """Writes `quality.md` and its picture beside `quality.json`."""
    results = Results(folder)
    write_file(folder / PAGE_FILE, page(results))
    points: dict[str, list[Point]] = {
        method: [(one.tokens / 1e6, one.ndcg10.value) for _, one in series if one.tokens]
        for method, series in results.curve().items()
    }
    if any(points.values()):
        teacher = results.of(CURVE_SET, "teacher", None, None)
        write_file(folder / CURVE_FILE, curve_svg(points, teacher[0].ndcg10 if teacher else None))


def page(results: Results) -> str:
    """All of it as Markdown."""
    parts = ["# What pruning keeps", *in_short(results), "## How to read this", HOW_TO_READ]
    for name in sorted({row.dataset for row in results.rows}):
        parts += _set(results, name)
    parts += [
        *_comparison(results),
        *_familiarity(results),
        *_curve(results),
        *_goals(results),
        *_missing(results),
    ]
    return "\n\n".join([*parts, *_commands(results)]) + "\n"


def _set(results: Results, name: str) -> list[str]:
    parts = [f"## {name}"]
    for title, size in (("Whole models", None), *((f"{size} % pruned", size) for size in SIZES)):
        kinds = dict.fromkeys(
            (row.method, row.budget) for row in results.rows if (row.dataset, row.size) == (name, size)
        )
        if kinds:
            found = [results.averaged(results.of(name, method, size, budget)) for method, budget in kinds]
            parts += [f"### {title}", table(_HEAD, [_cells(one) for one in found])]
    gate = results.gate(name)
    if gate is None:
        parts.append(
            "Whether the teacher is worth keeping is not known: it takes its own row and that of "
            "`scratch` at 95 %."
        )
    else:
        verdict = "so retention counts" if worth_keeping(gate) else "so retention says little"
        parts.append(
            f"The teacher's NDCG@10 is {_words(gate, 3)} times that of the pruned shape trained from "
            f"scratch (needed: 1.15, interval above 1), {verdict}."
        )
    return parts


def _cells(one: Averaged) -> list[str]:
    row = one.rows[0]
    return [
        row.method,
        ", ".join(str(row.seed) for row in one.rows),
        *(_millions(count) for count in (row.parameters_nonembedding, row.parameters_total)),
        "" if row.pruned_nonembedding is None else f"{row.pruned_nonembedding:.1%}",
        "" if row.bytes is None else f"{row.bytes / 1e6:.1f}",
        _millions(one.tokens),
        "" if row.budget is None else f"{row.budget:g}",
        f"{max(row.trials for row in one.rows)}",
        _words(one.hr10),
        _words(one.ndcg10),
        *("" if kept is None else _words(kept, 3) for kept in (one.keeps_hr10, one.keeps_ndcg10)),
    ]


def _comparison(results: Results) -> list[str]:
    head = [
        "`espalier` minus",
        "gone",
        "budget",
        "test rows of",
        "seeds",
        "NDCG@10",
        "tokens, ours for theirs",
    ]
    cells = [
        [
            one.control,
            f"{one.size} %",
            f"{one.budget:g}",
            ", ".join(one.sets),
            ", ".join(map(str, one.seeds)),
            _words(one.difference),
            "" if one.tokens is None else f"{one.tokens:.2f}",
        ]
        for size in SIZES
        for one in results.comparisons(size)
    ]
    return ["## Espalier against its controls", table(head, cells)] if cells else []


def _familiarity(results: Results) -> list[str]:
    """Where the quality lies: rare titles and frequent ones apart, at 95 % and the deciding budgets."""
    methods: tuple[Method, ...] = ("teacher", "sasrec", "espalier", "scratch-distilled")
    parts = []
    for name in SETS:
        for budget in _DECIDING:
            groups = results.by_familiarity(name, 95, budget)
            if not groups:
                continue
            rows = [
                [
                    _span(one.fewest, one.most),
                    f"{one.rows:,}",
                    *(f"{one.ndcg10[m]:.4f}" if m in one.ndcg10 else "—" for m in methods),
                    "—" if one.lead is None else _words(one.lead),
                ]
                for one in groups
            ]
            parts += [
                f"{name} at 95 %, budget {budget:g}:",
                table(["trained on", "test rows", *methods, "`espalier` minus `scratch-distilled`"], rows),
            ]
    if not parts:
        return []
    said = (
        "NDCG@10 by how often the target's title was trained on. What was chosen was not chosen by this: "
        "it was looked at afterwards, and of so many intervals some leave zero out by chance."
    )
    return ["## Rare titles and frequent ones", said, *parts]


def _span(fewest: int, most: int | None) -> str:
    if most is None:
        return f"{fewest}+"
    return f"{fewest}" if fewest == most else f"{fewest}-{most}"


def _curve(results: Results) -> list[str]:
    found = results.curve()
    if not found:
        return []
    by_budget = {method: dict(points) for method, points in found.items()}
    rows = []
    for budget in BUDGETS:
        cells = [by_budget.get(method, {}).get(budget) for method in CURVE]
        if any(cells):
            rows.append([f"{budget:g}", *("—" if one is None else _words(one.ndcg10) for one in cells)])
    return [
        "## Quality against training tokens",
        f"NDCG@10 on {CURVE_SET} at 95 %, seeds averaged.",
        table(["budget", *CURVE], rows),
        f"![NDCG@10 against training tokens: {', '.join(found)}]({CURVE_FILE})",
    ]


def _goals(results: Results) -> list[str]:
    lines = []
    for size, (goal, floor) in _GOALS.items():
        kept = results.retention(size)
        if kept:
            hr10, ndcg10 = (mean(column) for column in zip(*kept.values(), strict=True))
            worst = min(kept, key=lambda name: min(kept[name]))
            lines.append(
                f"- At {size} %: mean retention over {len(kept)} of {len(SETS)} sets is {hr10:.3f} (HR@10) "
                f"and {ndcg10:.3f} (NDCG@10); the goal is {goal:.2f}: "
                f"{_verdict(min(hr10, ndcg10) >= goal, len(kept))}. The least is {min(kept[worst]):.3f}, "
                f"on {worst}; the floor is {floor:.2f}: {_verdict(min(kept[worst]) >= floor, len(kept))}."
            )
        else:
            lines.append(f"- At {size} %: no row of `espalier` at the full budget.")
        lines += [_standing(results, size, budget) for budget in _DECIDING]
    return ["## Against the goals", "\n".join(lines)]


def _verdict(holds: bool, sets: int) -> str:
    if sets < len(SETS):
        return "open, sets are missing"
    return "reached" if holds else "not reached"


def _standing(results: Results, size: int, budget: float) -> str:
    standing = results.standing(size, budget)
    above = [name for name, one in standing.items() if one and one.above and len(one.sets) == len(SETS)]
    below = [name for name, one in standing.items() if one and not one.above and len(one.sets) == len(SETS)]
    unknown = [name for name in standing if name not in above and name not in below]
    return (
        f"- At {size} %, budget {budget:g}, pooled over all sets, `espalier` is above {_named(above)}; "
        f"not clearly above {_named(below)}; not measured on all sets: {_named(unknown)}."
    )


def _missing(results: Results) -> list[str]:
    parts = ["## What is missing"]
    absent = results.missing()
    if absent:
        parts.append("\n".join(["Of the whole comparison these rows are not there:", "", *_listed(absent)]))
    else:
        parts.append("Nothing: every row of the whole comparison is there.")
    strangers = results.of_another_teacher()
    if strangers:
        said = "These rows were pruned from another teacher than the one above, and are to be made again:"
        parts.append("\n".join([said, "", *_listed(_place(row) for row in strangers)]))
    return parts


def _commands(results: Results) -> list[str]:
    lines = [
        f"{_place(row)}: `{row.command}` at {row.commit}, {row.date}"
        + ("" if row.machine is None else f", on {row.machine}")
        for row in results.rows
    ]
    return ["## Commands", "\n".join(_listed(lines))]


def _place(row: Row) -> str:
    return f"{row.dataset}, {row.key}"


def _listed(lines: Iterable[str]) -> list[str]:
    return [f"- {line}" for line in lines]


def _named(methods: Sequence[Method]) -> str:
    return ", ".join(f"`{method}`" for method in methods) or "none"


def _millions(count: float | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f}M"


def _words(one: Interval, digits: int = 4) -> str:
    """The value with its bounds, where it has some."""
    value = f"{one.value:.{digits}f}"
    if math.isnan(one.low):
        return value
    return f"{value} [{one.low:.{digits}f}, {one.high:.{digits}f}]"
