"""What the rows say together: seeds averaged, differences in pairs, the gate, the goals, what is missing.

A test row's value is averaged over the seeds before anything is compared, so that three lucky seeds count
as one model; and pairs are of equal seeds, or the mean of several would stand against one draw.

Shapes: R test rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import numpy.typing as npt

from benchmarks.quality.rows import Method, Row, read_quality, read_ranks
from recommender.ranking import Float64Array, Interval, RankArray, UserBootstrap, gains, hits

SETS = ("cds_and_vinyl", "movies_and_tv", "video_games")
SIZES = (95, 98)
CONTROLS: tuple[Method, ...] = ("scratch-distilled", "scratch", "random", "depth-only", "paper")
PEERS: tuple[Method, ...] = ("teacher", "sasrec", "popularity")
CURVE: tuple[Method, ...] = ("espalier", "paper", "scratch-distilled")
CURVE_SET = "movies_and_tv"
BUDGETS = (0.125, 0.25, 0.5, 1.0, 2.0)
_WANTED: dict[int, tuple[Method, ...]] = {95: ("espalier", *CONTROLS), 98: CURVE}
_SEEDS: dict[tuple[str, Method], tuple[int, ...]] = {
    (CURVE_SET, "espalier"): (0, 1, 2),
    (CURVE_SET, "paper"): (0, 1, 2),
}
_WORTH_KEEPING = 1.15
_LEADING: tuple[Method, Method] = ("espalier", "scratch-distilled")
_FAMILIARITY: tuple[tuple[int, int | None], ...] = ((0, 0), (1, 4), (5, 9), (10, 19), (20, 49), (50, None))


@dataclass(frozen=True)
class Averaged:
    """A method's rows of one set, size and budget, its seeds averaged; None: it keeps nothing of anyone's.

    The intervals of `keeps_…` are open where the teacher's own row is missing.
    """

    rows: tuple[Row, ...]
    hr10: Interval
    ndcg10: Interval
    keeps_hr10: Interval | None
    keeps_ndcg10: Interval | None

    @property
    def tokens(self) -> float | None:
        """Training tokens of one seed; None: not known."""
        return _tokens(self.rows)


@dataclass(frozen=True)
class Paired:
    """How much more NDCG@10 `espalier` has than a control on the same test rows.

    Attributes:
        sets: those whose rows were pooled.
        seeds: those that both have, in any of the sets.
        tokens: training tokens of `espalier` for each of the control's; None: not known.
    """

    control: Method
    size: int
    budget: float
    sets: tuple[str, ...]
    seeds: tuple[int, ...]
    difference: Interval
    tokens: float | None

    @property
    def above(self) -> bool:
        """`espalier` is better, and the interval leaves no doubt."""
        return self.difference.low > 0


@dataclass(frozen=True)
class Familiar:
    """The test rows whose target title has been trained on so often.

    Attributes:
        fewest, most: training interactions with the title; of the most familiar group `most` is None.
        rows: how many test rows that is.
        ndcg10: each method's.
        lead: `espalier` minus `scratch-distilled`; None: one of them has no row.
    """

    fewest: int
    most: int | None
    rows: int
    ndcg10: dict[Method, float]
    lead: Interval | None


class Results:
    """The rows of a folder with the ranks of all their test rows."""

    def __init__(self, folder: Path) -> None:
        self.rows = read_quality(folder).runs
        self._ranks = {name: read_ranks(folder, name) for name in {row.dataset for row in self.rows}}
        self._bootstraps: dict[tuple[str, ...], UserBootstrap] = {}

    def of(self, dataset: str, method: Method, size: int | None, budget: float | None) -> list[Row]:
        """A method's rows, one a seed."""
        wanted = (dataset, method, size, budget)
        return [row for row in self.rows if (row.dataset, row.method, row.size, row.budget) == wanted]

    def averaged(self, rows: Sequence[Row]) -> Averaged:
        """One method's rows as one model."""
        bootstrap = self._bootstrap((rows[0].dataset,))
        return Averaged(
            tuple(rows),
            bootstrap.mean(self._values(rows, hits)),
            bootstrap.mean(self._values(rows, gains)),
            self._kept(rows, [row.retention_hr10 for row in rows], hits),
            self._kept(rows, [row.retention_ndcg10 for row in rows], gains),
        )

    def paired(self, control: Method, size: int, budget: float, sets: Sequence[str]) -> Paired | None:
        """`espalier` minus the control over the sets where both have rows of equal seeds; None: nowhere."""
        found: list[tuple[str, list[Row], list[Row]]] = []
        for name in sets:
            ours, theirs = _of_equal_seeds(
                self.of(name, "espalier", size, budget), self.of(name, control, size, budget)
            )
            if ours:
                found.append((name, ours, theirs))
        if not found:
            return None
        pooled = tuple(name for name, _, _ in found)
        difference = self._bootstrap(pooled).difference(
            np.concatenate([self._values(ours, gains) for _, ours, _ in found]),
            np.concatenate([self._values(theirs, gains) for _, _, theirs in found]),
        )
        read = [(_tokens(ours), _tokens(theirs)) for _, ours, theirs in found]
        known = [(ours, theirs) for ours, theirs in read if ours and theirs]
        tokens = sum(a for a, _ in known) / sum(b for _, b in known) if len(known) == len(read) else None
        seeds = tuple(sorted({row.seed for _, ours, _ in found for row in ours}))
        return Paired(control, size, budget, pooled, seeds, difference, tokens)

    def comparisons(self, size: int) -> list[Paired]:
        """All that can be paired at a size: by control and budget, set by set and then pooled."""
        found = []
        for control in _WANTED[size][1:]:
            for budget in BUDGETS:
                alone = [self.paired(control, size, budget, [name]) for name in SETS]
                found += [one for one in alone if one]
                pooled = self.paired(control, size, budget, SETS)
                if pooled and len(pooled.sets) > 1:
                    found.append(pooled)
        return found

    def by_familiarity(self, dataset: str, size: int, budget: float) -> list[Familiar]:
        """NDCG@10 by how often the target's title was trained on; none where that is not known."""
        stored = self._ranks.get(dataset, {})
        wanted: list[tuple[Method, int | None, float | None]] = [
            ("teacher", None, None),
            ("sasrec", None, None),
            *((method, size, budget) for method in _LEADING),
        ]
        rows = {one[0]: found for one in wanted if (found := self.of(dataset, *one))}
        if "seen" not in stored or not set(_LEADING) & set(rows):
            return []
        values = {method: self._values(found, gains) for method, found in rows.items()}
        groups = []
        for fewest, most in _FAMILIARITY:
            among_R = (stored["seen"] >= fewest) & (stored["seen"] <= (math.inf if most is None else most))
            if not among_R.any():
                continue
            lead = None
            pair = _of_equal_seeds(*(rows.get(method, []) for method in _LEADING))
            if all(pair):
                ours_R, theirs_R = (self._values(found, gains)[among_R] for found in pair)
                users = [f"{user:06d}" for user in stored["users"][among_R].tolist()]
                lead = UserBootstrap(users).difference(ours_R, theirs_R)
            means = {method: float(value_R[among_R].mean()) for method, value_R in values.items()}
            groups.append(Familiar(fewest, most, int(among_R.sum()), means, lead))
        return groups

    def standing(self, size: int, budget: float) -> dict[Method, Paired | None]:
        """`espalier` against each control that the size asks for, pooled; None: not measured."""
        return {control: self.paired(control, size, budget, SETS) for control in _WANTED[size][1:]}

    def retention(self, size: int) -> dict[str, tuple[float, float]]:
        """HR@10 and NDCG@10 that `espalier` keeps at the full budget, a set's seeds averaged."""
        kept = {}
        for name in SETS:
            rows = self.of(name, "espalier", size, 1.0)
            if rows:
                one = self.averaged(rows)
                if one.keeps_hr10 and one.keeps_ndcg10:
                    kept[name] = (one.keeps_hr10.value, one.keeps_ndcg10.value)
        return kept

    def gate(self, dataset: str) -> Interval | None:
        """The teacher's NDCG@10 over that of the pruned shape from scratch; None: a row is missing."""
        teacher = self.of(dataset, "teacher", None, None)
        scratch = self.of(dataset, "scratch", 95, 1.0)
        if not teacher or not scratch:
            return None
        above_R, below_R = self._values(teacher, gains), self._values(scratch, gains)
        return self._bootstrap((dataset,)).ratio(above_R, below_R)

    def curve(self) -> dict[Method, list[tuple[float, Averaged]]]:
        """Budget and figures of each method on the curve, from the least budget up."""
        found = {
            method: [
                (budget, self.averaged(rows))
                for budget in BUDGETS
                if (rows := self.of(CURVE_SET, method, 95, budget))
            ]
            for method in CURVE
        }
        return {method: points for method, points in found.items() if points}

    def missing(self) -> list[str]:
        """The rows that the whole comparison has and these results have not."""
        wanted = [(name, peer, None, None, 0) for name in SETS for peer in PEERS]
        pruned = [
            (name, method, size, 1.0, seed)
            for name in SETS
            for size, methods in _WANTED.items()
            for method in methods
            for seed in _SEEDS.get((name, method), (0,))
        ]
        curve = [(CURVE_SET, method, 95, budget, 0) for method in CURVE for budget in BUDGETS]
        stand = {(row.dataset, row.method, row.size, row.budget, row.seed) for row in self.rows}
        return [
            f"{name} {method}" + ("" if size is None else f" at {size} %, seed {seed}, budget {budget:g}")
            for name, method, size, budget, seed in dict.fromkeys([*wanted, *pruned, *curve])
            if (name, method, size, budget, seed) not in stand
        ]

    def of_another_teacher(self) -> list[Row]:
        """Rows whose teacher is not the one that stands here: what they keep is kept of something else."""
        teachers = {row.dataset: row.ndcg10 for row in self.rows if row.method == "teacher"}
        return [
            row
            for row in self.rows
            if row.teacher_ndcg10 is not None
            and row.dataset in teachers
            and not math.isclose(row.teacher_ndcg10, teachers[row.dataset], abs_tol=1e-9)
        ]

    def _values(
        self, rows: Sequence[Row], measure: Callable[[RankArray, int], Float64Array]
    ) -> Float64Array:
        """(R,) a figure at 10 of each test row, averaged over the seeds."""
        of_seeds = [measure(self._ranks[row.dataset][row.key], 10) for row in rows]
        averaged_R: npt.NDArray[np.float64] = np.mean(of_seeds, axis=0)
        return averaged_R

    def _kept(
        self,
        rows: Sequence[Row],
        stored: Sequence[float | None],
        measure: Callable[[RankArray, int], Float64Array],
    ) -> Interval | None:
        known = [value for value in stored if value is not None]
        if not known:
            return None
        teacher = self.of(rows[0].dataset, "teacher", None, None)
        if not teacher:
            return Interval(value=mean(known), low=math.nan, high=math.nan)
        ratio = self._bootstrap((rows[0].dataset,)).ratio(
            self._values(rows, measure), self._values(teacher, measure)
        )
        return ratio.model_copy(update={"value": mean(known)})

    def _bootstrap(self, sets: tuple[str, ...]) -> UserBootstrap:
        """Over the users of these sets, who are different people; drawn once, it serves all methods."""
        if sets not in self._bootstraps:
            # Padded, so that they sort as when the rows were measured and draw the same samples.
            users = [f"{name} {user:06d}" for name in sets for user in self._ranks[name]["users"].tolist()]
            self._bootstraps[sets] = UserBootstrap(users)
        return self._bootstraps[sets]


def _of_equal_seeds(ours: Sequence[Row], theirs: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    shared = {row.seed for row in ours} & {row.seed for row in theirs}
    return [row for row in ours if row.seed in shared], [row for row in theirs if row.seed in shared]


def worth_keeping(gate: Interval) -> bool:
    """Whether retention of such a teacher means anything: 15 % above the pruned shape from scratch."""
    return gate.value >= _WORTH_KEEPING and gate.low > 1


def _tokens(rows: Sequence[Row]) -> float | None:
    known = [row.training_tokens for row in rows if row.training_tokens is not None]
    return mean(known) if len(known) == len(rows) else None
