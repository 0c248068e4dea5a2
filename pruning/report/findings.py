"""Gathers what the page shows: reads the run, and measures what a run does not keep.

Teacher and data set are found where the run was made from, or where the caller says. What cannot be found
is named on the page, and the rest of the page stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from pruning.checkpoint import Checkpoint, load_checkpoint
from pruning.errors import RunError
from pruning.evaluation import RankingTask, lean_transformer
from pruning.pipeline.files import read_record
from pruning.pipeline.record import SOURCES_FILE, RunSources
from pruning.pipeline.run import (
    CATALOGUE_FILE,
    HISTORIES_FILE,
    ReferenceHistories,
    calibration_batches,
    read_directions,
)
from pruning.pipeline.stage import STUDENT_FOLDER
from pruning.progress import Reporter
from pruning.report.examples import COUNT, Example, examples
from pruning.report.latency import LatencyReport, measure_latency
from pruning.report.reading import RunView, read_run
from pruning.report.redundancy import Redundancy, measure_redundancy
from pruning.surgery.canonical import canonical
from pruning.surgery.rotation import rotated
from pruning.teacher.folder import RECORD_FILE, TeacherRecord, open_teacher
from pruning.training.windows import UserPacker
from recommender.catalogue import Catalogue
from recommender.dataset import CARD_FILE, Dataset
from recommender.prompt import PromptEncoder
from recommender.ranker import Ranker
from recommender.trie import TitleTrie

_WINDOWS = 64  # users that the redundancy is measured on


@dataclass(frozen=True)
class Findings:
    """Everything on the page.

    Attributes:
        missing: what is not there and why, one sentence each.
        turned: whether redundancy is that of the teacher turned into its principal directions.
        latency: by `teacher` and `student`, as far as they are there.
    """

    view: RunView
    missing: tuple[str, ...]
    teacher: TeacherRecord | None = None
    redundancy: Redundancy | None = None
    turned: bool = False
    examples: tuple[Example, ...] = field(default=())
    latency: LatencyReport | None = None


@dataclass(frozen=True)
class _Found:
    dataset: Dataset | None
    teacher: tuple[TeacherRecord, Path] | None
    missing: tuple[str, ...]


def gather(run: Path, dataset: Path | None, teacher: Path | None, reporter: Reporter) -> Findings:
    """Reads and measures; writes nothing.

    Args:
        run: the run's folder, finished or not.
        dataset: where the data set is now, if not where it was.
        teacher: the same for the teacher.
        reporter: told of every step.

    Raises:
        InputError: no run, a damaged one, or a data set or teacher that is not the run's.
    """
    view = read_run(run)
    found = _find(view, dataset, teacher)
    missing = [*view.missing, *found.missing]
    checkpoint = None if found.teacher is None else load_checkpoint(found.teacher[1])
    directions = view.plan.directions_file(view.path, view.settings)
    basis_CC = read_directions(directions) if directions.is_file() else None
    redundancy = None
    if checkpoint is not None and found.dataset is not None:
        reporter.say("measuring what the teacher repeats")
        redundancy = _redundancy(view, checkpoint, found.dataset, basis_CC, reporter)
    models = _models(view, checkpoint)
    latency = None
    if models:
        reporter.say(f"timing {' and '.join(models)}")
        latency = _latency(view.path, models)
    shown: list[Example] = []
    if found.dataset is not None and len(models) > 1:
        reporter.say("asking teacher and student about some test users")
        shown = _examples(view, models, found.dataset)
    return Findings(
        view=view,
        missing=tuple(missing),
        teacher=None if found.teacher is None else found.teacher[0],
        redundancy=redundancy,
        turned=basis_CC is not None,
        examples=tuple(shown),
        latency=latency,
    )


def find_dataset(view: RunView, given: Path | None) -> Dataset | None:
    """The run's data set: the given one, or the one it was made from if it still stands there.

    Raises:
        RunError: the given one is not the run's.
        DatasetError: the given one is no data set.
    """
    if given is not None:
        dataset = Dataset(given)
        if dataset.digest != view.settings.dataset_sha256:
            raise RunError(f"{given} is not the data set of {view.path}; give the one it was pruned on")
        return dataset
    folder = view.path / _sources(view).dataset
    if (folder / CARD_FILE).is_file():
        dataset = Dataset(folder)
        if dataset.digest == view.settings.dataset_sha256:
            return dataset
    return None


def _find(view: RunView, dataset_folder: Path | None, teacher_folder: Path | None) -> _Found:
    missing: list[str] = []
    dataset = find_dataset(view, dataset_folder)
    if dataset is None:
        missing.append("the data set is not where it was; name it with --dataset")
    teacher = None
    folder = teacher_folder or view.path / _sources(view).teacher
    if dataset is None:
        missing.append("without the data set the teacher is not measured")
    elif teacher_folder is not None or (folder / RECORD_FILE).is_file():
        record, model = open_teacher(folder, dataset)
        if record.model_sha256 == view.settings.teacher_sha256:
            teacher = record, model
        elif teacher_folder is not None:
            raise RunError(f"{folder} is not the teacher of {view.path}; give the one it was pruned from")
    if dataset is not None and teacher is None:
        missing.append("the teacher is not where it was; name it with --teacher")
    return _Found(dataset, teacher, tuple(missing))


def _sources(view: RunView) -> RunSources:
    return read_record(view.path / SOURCES_FILE, RunSources)


def _redundancy(
    view: RunView, checkpoint: Checkpoint, dataset: Dataset, basis_CC: Tensor | None, reporter: Reporter
) -> Redundancy:
    encoder = PromptEncoder(checkpoint.template, checkpoint.tokenizer)
    windows = UserPacker(encoder, dataset.catalogue.titles).training(dataset)
    batches = calibration_batches(windows, _WINDOWS, view.settings.seed)
    whole = canonical(checkpoint.model)
    if basis_CC is not None:
        whole = rotated(whole, basis_CC)
    return measure_redundancy(whole, batches, reporter.counter("measuring"))


def _models(view: RunView, teacher: Checkpoint | None) -> dict[str, Checkpoint]:
    models = {} if teacher is None else {"teacher": teacher}
    if view.newest is not None:
        models["student"] = load_checkpoint(view.newest.planned.folder(view.path) / STUDENT_FOLDER)
    return models


def rankers_of(run: Path, models: Mapping[str, Checkpoint]) -> dict[str, Ranker]:
    """Rankers of models that share a tokenizer, over the run's catalogue."""
    catalogue = Catalogue.from_parquet(run / CATALOGUE_FILE)
    first = next(iter(models.values()))
    encoder = PromptEncoder(first.template, first.tokenizer)
    trie = TitleTrie.build(encoder.encode_titles(catalogue.titles), catalogue.popularity)
    return {
        name: Ranker(catalogue, encoder, trie, lean_transformer(one.model)) for name, one in models.items()
    }


def reference_histories(run: Path, catalogue: Catalogue) -> list[list[int]]:
    """The run's own histories as item indices."""
    record = read_record(run / HISTORIES_FILE, ReferenceHistories)
    return [
        [index for item_id in history if (index := catalogue.index_of(item_id)) is not None]
        for history in record.histories
    ]


def _latency(run: Path, models: Mapping[str, Checkpoint]) -> LatencyReport | None:
    rankers = rankers_of(run, models)
    histories = reference_histories(run, next(iter(rankers.values())).catalogue)
    return measure_latency(rankers, histories) if histories else None


def _examples(view: RunView, models: Mapping[str, Checkpoint], dataset: Dataset) -> list[Example]:
    teacher = models["teacher"]
    rows = dataset.rows("test").sample(COUNT, view.settings.seed)
    task = RankingTask(dataset.catalogue, PromptEncoder(teacher.template, teacher.tokenizer), rows)
    rankers = {name: task.ranker(lean_transformer(one.model)) for name, one in models.items()}
    return examples(task, rankers, rows)
