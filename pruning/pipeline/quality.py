"""The whole test split: teacher, student and popularity, with intervals over users.

Ranks are kept as files, so a killed run ranks nobody twice and a comparison can pair runs row by row.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from pruning.errors import RunError
from pruning.evaluation import RankingTask, lean_transformer
from pruning.pipeline.results import Contender, TestResult
from pruning.progress import Reporter
from recommender.ranking import Interval, Metrics, RankArray, UserBootstrap, gains, hits
from recommender.storage import write_file


def kept_ranks(task: RankingTask, model: PreTrainedModel, file: Path, reporter: Reporter) -> RankArray:
    """(R,) the ranks of the task's rows, from the file if it stands.

    Raises:
        RunError: the file is damaged.
    """
    if not file.exists():
        ranks_R = task.ranks(lean_transformer(model), reporter.counter("ranking"))
        buffer = io.BytesIO()
        np.save(buffer, ranks_R, allow_pickle=False)
        write_file(file, buffer.getvalue())
    try:
        kept: RankArray = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise RunError(f"{file}: damaged ({error}); remove it and run again") from error
    return kept


def contender(ranks_R: RankArray, bootstrap: UserBootstrap) -> Contender:
    """Metrics with intervals of one set of ranks."""
    return Contender(
        metrics=Metrics.of(ranks_R),
        hr10=bootstrap.mean(hits(ranks_R, 10)),
        ndcg10=bootstrap.mean(gains(ranks_R, 10)),
    )


def judge(teacher_R: RankArray, student_R: RankArray, task: RankingTask) -> TestResult:
    """Teacher, student and popularity on the same rows; ratios are paired."""
    bootstrap = UserBootstrap(task.rows.user_ids)
    popular_R = task.popularity_ranks()

    def ratio(
        above_R: RankArray,
        below_R: RankArray,
        measure: Callable[[RankArray, int], npt.NDArray[np.float64]],
    ) -> Interval:
        return bootstrap.ratio(measure(above_R, 10), measure(below_R, 10))

    return TestResult(
        teacher=contender(teacher_R, bootstrap),
        student=contender(student_R, bootstrap),
        popularity=contender(popular_R, bootstrap),
        retention_hr10=ratio(student_R, teacher_R, hits),
        retention_ndcg10=ratio(student_R, teacher_R, gains),
        teacher_over_popularity_ndcg10=ratio(teacher_R, popular_R, gains),
        student_over_popularity_ndcg10=ratio(student_R, popular_R, gains),
    )
