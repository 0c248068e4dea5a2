"""What is kept of a finished run: its row of figures, and the rank of every test row's target.

    quality.json            `Quality`: all rows of all data sets
    quality_ranks/SET.npz   `users` and `seen` of `TestRows`; and `ranks` under each row's key

Ranks are small numbers without a title or an id, so runs of different days can be compared in pairs.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from recommender.ranking import RankArray
from recommender.storage import write_file

Method = Literal[
    "espalier",
    "paper",
    "scratch",
    "scratch-distilled",
    "depth-only",
    "random",
    "teacher",
    "sasrec",
    "popularity",
]
Bounds = tuple[float, float]
QUALITY_FILE = "quality.json"
RANKS_FOLDER = "quality_ranks"


class Row(BaseModel):
    """One model on one data set's whole test split; None: it has no such figure.

    Attributes:
        size: per cent of the teacher's non-embedding parameters that had to go; None: nothing was pruned.
        budget: training tokens as a share of the full budget.
        training_tokens: tokens read in all restorations; a teacher's, in its fine-tuning.
        machine: what made it, and the versions there; None: made before this was recorded.
        trials: how many settings were tried on the validation split before this one was taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    base: str | None
    method: Method
    recipe: str | None
    seed: int
    size: int | None
    budget: float | None
    pruned_nonembedding: float | None
    parameters_nonembedding: int | None
    parameters_total: int | None
    bytes: int | None
    hr10: float
    ndcg10: float
    hr10_interval: Bounds
    ndcg10_interval: Bounds
    retention_hr10: float | None
    retention_ndcg10: float | None
    retention_ndcg10_interval: Bounds | None
    teacher_hr10: float | None
    teacher_ndcg10: float | None
    training_tokens: int | None
    trials: int
    command: str
    commit: str
    date: str
    machine: str | None = None

    @property
    def key(self) -> str:
        """Names the row within its data set."""
        if self.size is None:
            return f"{self.method}-{self.seed}"
        return f"{self.method}-{self.size}-{self.seed}-{self.budget:g}"


@dataclass(frozen=True)
class TestRows:
    """What is known of a set's test rows, whatever ranks them.

    Attributes:
        users_R: a number for each row's user.
        seen_R: how many training interactions have the row's target title.
    """

    __test__ = False  # pytest takes it for a test by its name

    users_R: npt.NDArray[np.int32]
    seen_R: npt.NDArray[np.int32]


class Quality(BaseModel):
    """All rows, in the order in which a page shows them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: tuple[Row, ...] = ()


def read_quality(results: Path) -> Quality:
    """The rows that stand; none before the first."""
    file = results / QUALITY_FILE
    return Quality.model_validate_json(file.read_text("utf-8")) if file.exists() else Quality()


def read_ranks(results: Path, dataset: str) -> dict[str, npt.NDArray[np.int32]]:
    """`users`, `seen` and each row's ranks, by key; empty before the first."""
    file = results / RANKS_FOLDER / f"{dataset}.npz"
    if not file.exists():
        return {}
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name].astype(np.int32) for name in stored.files}


def keep(results: Path, row: Row, test_rows: TestRows, ranks_R: RankArray) -> None:
    """Adds a row and its ranks, in place of those of the same key."""
    rows = [r for r in read_quality(results).runs if (r.dataset, r.key) != (row.dataset, row.key)]
    ordered = sorted(
        [*rows, row], key=lambda r: (r.dataset, r.size or 0, r.method, r.seed, -(r.budget or 0))
    )
    traits = {"users": test_rows.users_R, "seen": test_rows.seen_R}
    stored = read_ranks(results, row.dataset) | traits | {row.key: ranks_R}
    (results / RANKS_FOLDER).mkdir(parents=True, exist_ok=True)
    write_file(results / RANKS_FOLDER / f"{row.dataset}.npz", _compressed(stored))
    write_file(results / QUALITY_FILE, Quality(runs=tuple(ordered)).model_dump_json(indent=2) + "\n")


def _compressed(arrays: Mapping[str, npt.NDArray[np.int32]]) -> bytes:
    buffer = io.BytesIO()
    narrow = {
        name: array.astype(np.int16 if name in ("users", "seen") else np.int8)
        for name, array in arrays.items()
    }
    np.savez_compressed(buffer, allow_pickle=False, **narrow)
    return buffer.getvalue()
