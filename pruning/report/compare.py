"""`espalier compare`: finished runs on one data set, what each keeps and what it costs.

Differences to the first run are paired: the same users' rows in both. Latency is measured here and now, all
models in turn, since times of other days and machines cannot be set side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from pruning.checkpoint import Checkpoint, load_checkpoint
from pruning.errors import RunError
from pruning.evaluation import lean_transformer
from pruning.pipeline.results import RunReport
from pruning.pipeline.run import CATALOGUE_FILE, TEST_FOLDER
from pruning.pipeline.stage import STUDENT_FOLDER
from pruning.progress import Reporter
from pruning.report.findings import find_dataset, reference_histories
from pruning.report.latency import Latency, measure_latency
from pruning.report.reading import RunView, read_run
from recommender.catalogue import Catalogue
from recommender.prompt import PromptEncoder
from recommender.ranker import Ranker
from recommender.ranking import Interval, RankArray, UserBootstrap, gains, hits
from recommender.trie import TitleTrie


class ComparedRun(BaseModel):
    """One run.

    Attributes:
        retention_hr10, retention_ndcg10: over its own teacher, paired.
        difference_hr10, difference_ndcg10: to the first run, paired; None for the first itself, and where
            the data set is not at hand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    recipe: str
    seed: int
    teacher_sha256: str
    pruned_nonembedding: float
    parameters_nonembedding: int
    parameters_total: int
    bytes: int
    hr10: Interval
    ndcg10: Interval
    retention_hr10: Interval
    retention_ndcg10: Interval
    difference_hr10: Interval | None
    difference_ndcg10: Interval | None
    latency: Latency


class Comparison(BaseModel):
    """Runs on the same test rows, the first being what the others are compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    rows: int
    machine: str
    requests: int
    runs: tuple[ComparedRun, ...]


def compare(runs: Sequence[Path], dataset: Path | None, reporter: Reporter) -> Comparison:
    """Compares two runs or more.

    Raises:
        RunError: fewer than two, one that is not finished, or of another data set than the first.
    """
    if len(runs) < 2:
        raise RunError("one run cannot be compared; give two or more")
    if len({run.resolve() for run in runs}) < len(runs):
        raise RunError("a run is named twice; name each once")
    views = [read_run(run) for run in runs]
    reports = [_finished(view) for view in views]
    for view, report in zip(views, reports, strict=True):
        if report.dataset_sha256 != reports[0].dataset_sha256:
            raise RunError(
                f"{view.path} was judged on another data set or split ({report.dataset}, "
                f"{report.dataset_sha256[:12]}) than {views[0].path} ({reports[0].dataset}, "
                f"{reports[0].dataset_sha256[:12]}); compare runs on one"
            )
    names = _names(views)
    reporter.say(f"timing {len(views)} models in turn")
    rankers = {
        name: _ranker(view, report) for name, view, report in zip(names, views, reports, strict=True)
    }
    first = next(iter(rankers.values()))
    timed = measure_latency(rankers, reference_histories(views[0].path, first.catalogue))
    differences = _differences(views, reports, dataset, reporter)
    return Comparison(
        dataset=reports[0].dataset,
        rows=reports[0].test.student.metrics.rows,
        machine=timed.machine,
        requests=timed.requests,
        runs=tuple(
            _compared(name, report, timed.models[name], difference)
            for name, report, difference in zip(names, reports, differences, strict=True)
        ),
    )


def _finished(view: RunView) -> RunReport:
    if view.report is None:
        raise RunError(f"{view.path}: not finished ({view.missing[0]}); prune it first")
    return view.report


def _names(views: Sequence[RunView]) -> list[str]:
    """The folders' names, with as many of the folders above as it takes to tell them apart."""
    parts = [view.path.resolve().parts for view in views]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            break
    return names


def _student(view: RunView, report: RunReport) -> Checkpoint:
    assert view.newest is not None
    assert view.newest.planned.key == report.stages[-1].key
    return load_checkpoint(view.newest.planned.folder(view.path) / STUDENT_FOLDER)


def _ranker(view: RunView, report: RunReport) -> Ranker:
    student = _student(view, report)
    catalogue = Catalogue.from_parquet(view.path / CATALOGUE_FILE)
    encoder = PromptEncoder(student.template, student.tokenizer)
    trie = TitleTrie.build(encoder.encode_titles(catalogue.titles), catalogue.popularity)
    return Ranker(catalogue, encoder, trie, lean_transformer(student.model))


def _differences(
    views: Sequence[RunView], reports: Sequence[RunReport], given: Path | None, reporter: Reporter
) -> list[tuple[Interval, Interval] | None]:
    """HR@10 and NDCG@10 of each run minus the first one's."""
    found = (find_dataset(view, given) for view in views)
    dataset = next((one for one in found if one is not None), None)
    if dataset is None:
        reporter.say("missing: the data set, so the differences have no intervals; name it with --dataset")
        return [None] * len(views)
    users = dataset.rows("test").user_ids
    bootstrap = UserBootstrap(users)
    ranks = [_ranks(view, report, len(users)) for view, report in zip(views, reports, strict=True)]
    return [
        None,
        *(
            (
                bootstrap.difference(hits(other_R, 10), hits(ranks[0], 10)),
                bootstrap.difference(gains(other_R, 10), gains(ranks[0], 10)),
            )
            for other_R in ranks[1:]
        ),
    ]


def _ranks(view: RunView, report: RunReport, rows: int) -> RankArray:
    file = view.path / TEST_FOLDER / f"student-{report.stages[-1].key}.npy"
    try:
        ranks_R: RankArray = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise RunError(f"{file}: cannot be read ({error}); remove it and prune again") from error
    if len(ranks_R) != rows:
        raise RunError(f"{file}: {len(ranks_R)} ranks for {rows} test rows; remove it and prune again")
    return ranks_R


def _compared(
    name: str, report: RunReport, latency: Latency, difference: tuple[Interval, Interval] | None
) -> ComparedRun:
    hr10, ndcg10 = difference or (None, None)
    return ComparedRun(
        name=name,
        recipe=report.recipe,
        seed=report.seed,
        teacher_sha256=report.teacher_sha256,
        pruned_nonembedding=report.pruned_nonembedding,
        parameters_nonembedding=report.student_shape.nonembedding_parameters,
        parameters_total=report.student_shape.total_parameters,
        bytes=report.stages[-1].bytes,
        hr10=report.test.student.hr10,
        ndcg10=report.test.student.ndcg10,
        retention_hr10=report.test.retention_hr10,
        retention_ndcg10=report.test.retention_ndcg10,
        difference_hr10=hr10,
        difference_ndcg10=ndcg10,
        latency=latency,
    )
