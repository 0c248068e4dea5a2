"""The readable page of all rows: tables, paired differences, the goals, and what is still missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import numpy.typing as npt

from benchmarks.quality.curve import curve_svg
from benchmarks.quality.rows import Method, Row, read_quality, read_ranks
from benchmarks.records import table
from recommender.ranking import Interval, UserBootstrap, gains
from recommender.storage import write_file

SETS = ("cds_and_vinyl", "movies_and_tv", "video_games")
CONTROLS: tuple[Method, ...] = ("scratch-distilled", "scratch", "random", "depth-only", "paper")
CURVE: tuple[Method, ...] = ("espalier", "paper", "scratch-distilled")
BUDGETS = (0.125, 0.25, 0.5, 1.0, 2.0)
_GOALS = {95: 1.00, 98: 0.98}
_WANTED: dict[int, tuple[Method, ...]] = {
    95: ("espalier", *CONTROLS),
    98: ("espalier", "paper", "scratch-distilled"),
}


@dataclass(frozen=True)
class Paired:
    """How much better `espalier` is than a control on the same test rows; `sets` were pooled."""

    control: Method
    size: int
    budget: float
    sets: tuple[str, ...]
    difference: Interval


class Results:
    """Rows, and the gains (1 / log2(rank + 1)) of every test row, for comparisons in pairs."""

    def __init__(self, folder: Path) -> None:
        self.rows = read_quality(folder).runs
        self._ranks = {name: read_ranks(folder, name) for name in {row.dataset for row in self.rows}}

    def of(self, dataset: str, method: Method, size: int | None, budget: float | None) -> list[Row]:
        """A method's rows, one a seed."""
        wanted = (dataset, method, size, budget)
        return [row for row in self.rows if (row.dataset, row.method, row.size, row.budget) == wanted]

    def gains(self, rows: Sequence[Row]) -> npt.NDArray[np.float64]:
        """(R,) NDCG@10 of each test row, averaged over the seeds."""
        ranks = [self._ranks[row.dataset][row.key] for row in rows]
        averaged: npt.NDArray[np.float64] = np.mean([gains(ranks_R, 10) for ranks_R in ranks], axis=0)
        return averaged

    def users(self, dataset: str) -> list[str]:
        """Whose each test row is, distinct between data sets."""
        return [f"{dataset} {user}" for user in self._ranks[dataset]["users"].tolist()]

    def paired(self, control: Method, size: int, budget: float, sets: Iterable[str]) -> Paired | None:
        """`espalier` minus the control, pooled over the sets that have both; None: none has."""
        ours: list[npt.NDArray[np.float64]] = []
        theirs: list[npt.NDArray[np.float64]] = []
        users: list[str] = []
        pooled = []
        for name in sets:
            a, b = (self.of(name, method, size, budget) for method in ("espalier", control))
            if a and b:
                ours.append(self.gains(a))
                theirs.append(self.gains(b))
                users += self.users(name)
                pooled.append(name)
        if not pooled:
            return None
        difference = UserBootstrap(users).difference(np.concatenate(ours), np.concatenate(theirs))
        return Paired(control, size, budget, tuple(pooled), difference)

    def retention(self, size: int) -> dict[str, tuple[float, float]]:
        """HR@10 and NDCG@10 that `espalier` keeps at the full budget, a set's seeds averaged."""
        kept = {}
        for name in sorted(self._ranks):
            rows = self.of(name, "espalier", size, 1.0)
            if rows:
                kept[name] = (
                    mean(row.retention_hr10 or 0 for row in rows),
                    mean(row.retention_ndcg10 or 0 for row in rows),
                )
        return kept

    def gate(self, dataset: str) -> Interval | None:
        """The teacher's NDCG@10 over that of the pruned shape from scratch; None: a row is missing."""
        teacher = self.of(dataset, "teacher", None, None)
        scratch = self.of(dataset, "scratch", 95, 1.0)
        if not teacher or not scratch:
            return None
        return UserBootstrap(self.users(dataset)).ratio(self.gains(teacher), self.gains(scratch))

    def missing(self) -> list[str]:
        """The rows that the whole comparison has and these results have not."""
        absent = []
        for name in SETS:
            peers: tuple[Method, ...] = ("teacher", "sasrec", "popularity")
            absent += [f"{name} {peer}" for peer in peers if not self.of(name, peer, None, None)]
            for size, methods in _WANTED.items():
                absent += [
                    f"{name} {method} at {size} %"
                    for method in methods
                    if not self.of(name, method, size, 1.0)
                ]
        return absent


def write_page(folder: Path) -> None:
    """Writes `quality.md` and its picture beside `quality.json`."""
    results = Results(folder)
    parts = ["# What pruning keeps", _introduction(), *_sets(results), *_comparison(results)]
    parts += [*_curve(results), *_goals(results), *_commands(results)]
    write_file(folder / "quality.md", "\n\n".join(parts) + "\n")
    points = _points(results)
    if points:
        teacher = results.of("movies_and_tv", "teacher", None, None)
        write_file(folder / "quality_curve.svg", curve_svg(points, teacher[0].ndcg10 if teacher else None))


def _introduction() -> str:
    return (
        "SmolLM2-135M-Instruct fine-tuned on each data set, pruned, and ranked over the whole test "
        "split and the whole catalogue (`quality.json`; a hit is a title match, histories of at most "
        "ten items). Intervals are bootstrapped over users, retention and differences in pairs. Every "
        "choice was made on the validation split of movies_and_tv; the trials are in "
        "`quality_trials.csv`. All methods of a size have one final shape (depth-only: whole layers "
        "of full width under the same limit) and read equally many training tokens; budget 1 is "
        "twelve readings of the training histories. `scratch-distilled`, `scratch` and `random` "
        "differ from `espalier` in one thing each: drawn weights; those, and no teacher; what is "
        "kept."
    )


def _sets(results: Results) -> list[str]:
    parts = []
    for name in sorted({row.dataset for row in results.rows}):
        rows = [row for row in results.rows if row.dataset == name]
        head = [
            "model",
            "gone",
            "parameters",
            "MB",
            "budget",
            "tokens",
            "HR@10",
            "NDCG@10",
            "keeps NDCG@10",
        ]
        parts += [f"## {name}", table(head, [_cells(row) for row in rows])]
        gate = results.gate(name)
        if gate is not None:
            verdict = (
                "so retention counts" if gate.low > 1 and gate.value >= 1.15 else "so retention says little"
            )
            parts.append(
                f"The teacher's NDCG@10 is {_words(gate)} times that of the pruned shape trained "
                f"from scratch, {verdict}."
            )
    return parts


def _cells(row: Row) -> list[str]:
    name = row.method if row.size is None else f"{row.method}, seed {row.seed}"
    gone = "" if row.pruned_nonembedding is None else f"{row.pruned_nonembedding:.1%}"
    total = row.parameters_total
    return [
        name,
        gone,
        "" if total is None else f"{total / 1e6:.2f}M",
        "" if row.bytes is None else f"{row.bytes / 1e6:.0f}",
        "" if row.budget is None else f"{row.budget:g}",
        "" if row.training_tokens is None else f"{row.training_tokens / 1e6:.2f}M",
        _bounded(row.hr10, row.hr10_interval),
        _bounded(row.ndcg10, row.ndcg10_interval),
        ""
        if row.retention_ndcg10_interval is None or row.retention_ndcg10 is None
        else _bounded(row.retention_ndcg10, row.retention_ndcg10_interval, 3),
    ]


def _comparison(results: Results) -> list[str]:
    cells = []
    for size, methods in _WANTED.items():
        for budget in BUDGETS:
            for control in methods[1:]:
                for sets in (*[(name,) for name in SETS], SETS):
                    found = results.paired(control, size, budget, sets)
                    if found is not None and (len(sets) == 1 or len(found.sets) > 1):
                        where = ", ".join(found.sets)
                        cells.append(
                            [control, f"{size} %", f"{budget:g}", where, _words(found.difference, 4)]
                        )
    if not cells:
        return []
    head = ["`espalier` minus", "gone", "budget", "test rows of", "NDCG@10"]
    return ["## Espalier against its controls", table(head, cells)]


def _curve(results: Results) -> list[str]:
    rows = []
    for budget in BUDGETS:
        found = [results.of("movies_and_tv", method, 95, budget) for method in CURVE]
        if any(found):
            cells = [f"{mean(row.ndcg10 for row in of_one):.4f}" if of_one else "—" for of_one in found]
            rows.append([f"{budget:g}", *cells])
    if not rows:
        return []
    picture = "![Quality against training tokens](quality_curve.svg)"
    key = "Circles are espalier, squares paper, diamonds scratch-distilled; the level is the teacher's."
    return ["## Quality against training tokens", table(["budget", *CURVE], rows), picture, key]


def _points(results: Results) -> dict[str, list[tuple[float, float]]]:
    """Millions of training tokens and NDCG@10 of each method on the curve, seeds averaged."""
    points: dict[str, list[tuple[float, float]]] = {}
    for method in CURVE:
        of_budgets = [results.of("movies_and_tv", method, 95, budget) for budget in BUDGETS]
        points[method] = [
            (mean((row.training_tokens or 0) / 1e6 for row in rows), mean(row.ndcg10 for row in rows))
            for rows in of_budgets
            if rows
        ]
    return {method: series for method, series in points.items() if series}


def _goals(results: Results) -> list[str]:
    lines = ["## Against the goals"]
    for size, goal in _GOALS.items():
        kept = results.retention(size)
        if kept:
            hr10, ndcg10 = (mean(column) for column in zip(*kept.values(), strict=True))
            lines.append(
                f"At {size} %: mean retention over {len(kept)} of {len(SETS)} sets is {hr10:.3f} (HR@10) "
                f"and {ndcg10:.3f} (NDCG@10); the goal is {goal:.2f}."
            )
    absent = results.missing()
    lines.append(
        f"Missing from the whole comparison: {', '.join(absent)}." if absent else "Nothing is missing."
    )
    return lines


def _commands(results: Results) -> list[str]:
    lines = [
        f"- {row.dataset}, {row.key}: `{row.command}` at {row.commit}, {row.date}" for row in results.rows
    ]
    return ["## Commands", "\n".join(lines)]


def _bounded(value: float, bounds: tuple[float, float], digits: int = 4) -> str:
    return f"{value:.{digits}f} [{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def _words(one: Interval, digits: int = 3) -> str:
    return _bounded(one.value, (one.low, one.high), digits)
