"""Turns a finished run into an artifact that can be served.

The weights are the last student's. The catalogue is the run's, or another one given by its items file: the
model reads and writes titles, so most new items need no training. What a title begins with is an exception,
of which the export says so (`_untaught`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from pruning.checkpoint import load_checkpoint
from pruning.data.interactions import items_from_table
from pruning.data.records import open_table
from pruning.errors import RunError
from pruning.evaluation import lean_transformer
from pruning.pipeline.files import read_record
from pruning.pipeline.record import read_plan
from pruning.pipeline.results import RunReport
from pruning.pipeline.run import (
    CATALOGUE_FILE,
    HISTORIES_FILE,
    REPORT_FILE,
    ReferenceHistories,
)
from pruning.pipeline.stage import STUDENT_FOLDER, stage_folder
from recommender.artifact import (
    MANIFEST,
    WEIGHTS,
    Artifact,
    Description,
    Lineage,
    ParameterCounts,
    Quality,
    ReferenceAnswer,
    StageRecord,
    write_artifact,
)
from recommender.catalogue import Catalogue
from recommender.errors import InputError, first_problem
from recommender.prompt import PromptEncoder
from recommender.ranker import Ranker
from recommender.search.frontier import Query
from recommender.storage import sha256_of
from recommender.trie import TitleTrie

_REFERENCE_K = 10


def read_report(run: Path) -> RunReport:
    """The report of a finished run.

    Raises:
        RunError: the run is not finished, or the report is damaged.
    """
    file = run / REPORT_FILE
    if not file.is_file():
        raise RunError(f"{run}: no {REPORT_FILE}; finish the run with `espalier prune` first")
    try:
        return RunReport.model_validate_json(file.read_bytes())
    except ValidationError as error:
        problem = first_problem(error)
        raise RunError(f"{file}: damaged ({problem}); remove it and repeat the prune command") from error


def export(
    run: Path, out: Path, items_file: Path | None = None, say: Callable[[str], None] = lambda _: None
) -> Artifact:
    """Writes the artifact `out`, whose name is the folder's; repeated, it says what stands there.

    Args:
        run: a finished one.
        out: ARTIFACTS/NAME.
        items_file: another catalogue than the run's.
        say: told what to be careful of.

    Raises:
        InputError: an unfinished run, a bad items file, a name that artifacts cannot bear, or an
            `out` that holds something else.
    """
    report, plan = read_report(run), read_plan(run)
    checkpoint = stage_folder(run, len(report.stages), report.stages[-1]) / STUDENT_FOLDER
    trained = catalogue = Catalogue.from_parquet(run / CATALOGUE_FILE)
    if items_file is not None:
        catalogue = _another_catalogue(items_file, trained)
    student = load_checkpoint(checkpoint)
    encoder = PromptEncoder(student.template, student.tokenizer)
    paths = encoder.encode_titles(catalogue.titles)
    if items_file is not None and plan.recipe.restores_among_catalogue:
        untaught = _untaught(encoder.encode_titles(trained.titles), paths)
        if untaught:
            say(_careful(items_file, catalogue, untaught))
    trie = TitleTrie.build(paths, catalogue.popularity)
    ranker = Ranker(catalogue, encoder, trie, lean_transformer(student.model))
    histories = read_record(run / HISTORIES_FILE, ReferenceHistories).histories
    try:
        description = Description(
            name=out.name,
            created=datetime.now(UTC).replace(microsecond=0),
            prompt=student.template,
            lineage=_lineage(report),
            parameters=_parameters(report),
            quality=_quality(report) if items_file is None else None,
            reference=tuple(reference_answer(ranker, history) for history in histories),
        )
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise InputError(f"{out.name!r} cannot be an artifact's name ({problem})") from error
    if out.exists():
        return _standing(out, description, checkpoint, catalogue)
    return write_artifact(out, description, checkpoint, catalogue, trie)


def _standing(out: Path, wanted: Description, checkpoint: Path, catalogue: Catalogue) -> Artifact:
    """The artifact that stands at `out` already, if it is the one that was asked for.

    The reference scores are not compared: another number of threads moves their last digits.
    """
    if not (out / MANIFEST).is_file():
        raise InputError(f"{out} exists and is no artifact; choose another name, or remove it")
    artifact = Artifact.open(out)
    artifact.verify()
    stands = Description.model_validate(artifact.manifest.model_dump(exclude={"files"}))
    incidental = {"created": wanted.created, "reference": wanted.reference}
    same = (
        stands.model_copy(update=incidental) == wanted
        and artifact.manifest.files[WEIGHTS.name].sha256 == sha256_of(checkpoint / WEIGHTS.name)
        and artifact.load_catalogue() == catalogue
    )
    if not same:
        raise InputError(
            f"{out} holds another artifact; artifacts are never overwritten, choose another name"
        )
    return artifact


def _another_catalogue(items_file: Path, trained: Catalogue) -> Catalogue:
    items = items_from_table(open_table(items_file, ("item_id", "title")), "item_id", "title")
    for item_id, row in items.untitled.items():
        raise InputError(f"{items_file}: row {row}: item {item_id!r} has no title; give it one")
    known = dict(zip(trained.item_ids, trained.popularity, strict=True))
    ids = list(items.titles)
    return Catalogue.create(ids, list(items.titles.values()), [known.get(i, 0) for i in ids])


def _untaught(trained: Sequence[Sequence[int]], paths: Sequence[Sequence[int]]) -> list[int]:
    """Which titles begin with a token that no trained title begins with.

    A student that is restored at the trie's decisions learns how likely a first token is beside the other
    first ones of its catalogue. Of any other token it has learnt nothing, and such a one may outrank them
    all. Further in, a new branch can but take what its own beginning is worth.
    """
    taught = {path[0] for path in trained}
    return [index for index, path in enumerate(paths) if path[0] not in taught]


def _careful(items_file: Path, catalogue: Catalogue, untaught: Sequence[int]) -> str:
    first = catalogue.titles[untaught[0]]
    return (
        f"careful: {len(untaught):,} of the {len(catalogue.titles):,} titles in {items_file} begin as no "
        f"title did that the student learnt to choose among, first {first!r}; nothing has taught it how "
        "likely these are, and they may outrank all others. Leave them out, or prepare, train and prune "
        "again with them in the catalogue"
    )


def reference_answer(ranker: Ranker, history: tuple[str, ...]) -> ReferenceAnswer:
    """What the model answers to the part of the history that this catalogue knows."""
    indices = [i for item_id in history if (i := ranker.catalogue.index_of(item_id)) is not None]
    query = Query(ranker.prompt(indices), _REFERENCE_K)
    (found,) = ranker.search.rank([query])
    ranked = ranker.items(found, query)
    return ReferenceAnswer(
        history=tuple(ranker.catalogue.item_ids[index] for index in indices),
        item_ids=tuple(ranker.catalogue.item_ids[item.index] for item in ranked),
        scores=tuple(item.score for item in ranked),
    )


def _lineage(report: RunReport) -> Lineage:
    return Lineage(
        dataset=report.dataset,
        dataset_sha256=report.dataset_sha256,
        base=report.base,
        teacher_sha256=report.teacher_sha256,
        recipe=report.recipe,
        seed=report.seed,
        stages=tuple(
            StageRecord(
                name=stage.name,
                shape={k: v for k, v in stage.shape.model_dump().items() if type(v) is int},
                loss_after_cut=stage.after_cut.nats,
                loss_after_restoration=stage.after_restoration.nats,
            )
            for stage in report.stages
        ),
    )


def _parameters(report: RunReport) -> ParameterCounts:
    return ParameterCounts(
        nonembedding=report.student_shape.nonembedding_parameters,
        total=report.student_shape.total_parameters,
        teacher_nonembedding=report.teacher_shape.nonembedding_parameters,
        teacher_total=report.teacher_shape.total_parameters,
    )


def _quality(report: RunReport) -> Quality:
    test = report.test
    return Quality(
        split="test",
        rows=test.student.metrics.rows,
        hr10=test.student.metrics.hr10,
        ndcg10=test.student.metrics.ndcg10,
        teacher_hr10=test.teacher.metrics.hr10,
        teacher_ndcg10=test.teacher.metrics.ndcg10,
        popularity_ndcg10=test.popularity.metrics.ndcg10,
    )
