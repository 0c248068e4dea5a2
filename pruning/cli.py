"""The offline commands: prepare, train, prune, export, evaluate, report, compare.

Heavy imports stand inside the commands, so that `espalier --help` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from recommender.errors import InputError, first_problem

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.table import Table

ConfigT = TypeVar("ConfigT", bound="BaseModel")

app = typer.Typer()

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
DatasetFolder = Annotated[Path, typer.Argument(metavar="DATASET", help="A prepared data set.")]


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="A folder or file of interactions and titles.")],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    format: Annotated[  # noqa: A002 - the option's name
        str, typer.Option(help="auto, table, recbole, movielens, amazon or splits.")
    ] = "auto",
    history: Annotated[int, typer.Option(min=1, help="Items in a row's history at most.")] = 10,
    k_core: Annotated[
        int, typer.Option(min=0, help="Drop users and items with fewer interactions; 0: keep all.")
    ] = 0,
    min_rating: Annotated[float | None, typer.Option(help="Drop interactions rated lower.")] = None,
    name: Annotated[str | None, typer.Option(help="What to call it; default: the source's name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read interactions and titles, split them by time, and write a data set."""
    from pruning.data.prepare import PrepareOptions, prepare
    from pruning.progress import console_reporter
    from pruning.tables import dataset_table

    options = _checked(
        PrepareOptions,
        format=format,
        history=history,
        k_core=k_core,
        min_rating=min_rating,
        name=name,
    )
    with console_reporter() as reporter:
        card = prepare(source, out, options, reporter.say)
    _show(card, [dataset_table(card)], as_json)


@app.command()
def train(
    dataset: DatasetFolder,
    out: Annotated[Path, typer.Option(help="The teacher's folder; the same command resumes.")],
    base: Annotated[
        str, typer.Option(help="scratch, a Hugging Face model folder, or a GGUF file.")
    ] = "scratch",
    shape: Annotated[
        list[str] | None,
        typer.Option(help="From scratch: KEY=VALUE, such as hidden_size=192; repeatable."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training split at most.")] = 20,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak; default 1e-3 from scratch, 3e-4 otherwise.")
    ] = None,
    weight_decay: Annotated[float, typer.Option(min=0)] = 0.1,
    among: Annotated[
        str,
        typer.Option(
            help="What the next token is chosen among: the vocabulary at every token of a title, or the "
            "catalogue's tokens where titles part, which is what is ranked by."
        ),
    ] = "vocabulary",
    label_smoothing: Annotated[float, typer.Option(min=0, max=0.99)] = 0.0,
    collaborative: Annotated[
        float | None,
        typer.Option(
            help="With --among catalogue: what part of the loss, such as 0.5, is to agree with a small "
            "sequence model of the same histories, which is trained first."
        ),
    ] = None,
    tokens_per_batch: Annotated[int, typer.Option(min=16)] = 2048,
    patience: Annotated[int, typer.Option(min=1, help="Validations without a gain before it stops.")] = 3,
    precision: Annotated[
        str | None,
        typer.Option(help="float32 or bfloat16; default float32 from scratch, bfloat16 otherwise."),
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(min=1, help="Train adapters of this rank, merged at the end, instead of all weights."),
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory for more time; the same result.")
    ] = False,
    validation_rows: Annotated[int, typer.Option(min=1, help="Rows ranked at a validation.")] = 1000,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a base, or a small model from scratch, to generate the next title."""
    from pruning import processes
    from pruning.progress import console_reporter
    from pruning.tables import metrics_table
    from pruning.teacher.scratch import ScratchConfig
    from pruning.teacher.train import TeacherConfig, train_teacher
    from pruning.training.loop import TrainingConfig

    scratch = base == "scratch"
    if shape and not scratch:
        raise InputError("--shape goes with --base scratch only; a pretrained base has its shape")
    if lora_rank is not None and scratch:
        raise InputError(
            "--lora-rank goes with a pretrained --base only; drawn weights must all be trained"
        )
    training = _checked(
        TrainingConfig,
        epochs=epochs,
        max_steps=max_steps,
        learning_rate=(1e-3 if scratch else 3e-4) if learning_rate is None else learning_rate,
        weight_decay=weight_decay,
        tokens_per_batch=tokens_per_batch,
        patience=patience,
        precision=precision or ("float32" if scratch else "bfloat16"),
        gradient_checkpointing=gradient_checkpointing,
        best_by="hr10",
        seed=seed,
    )
    config = _checked(
        TeacherConfig,
        # A base is known by its place: however the path was spelt, it is the same one.
        base=None if scratch else Path(base).resolve(),
        scratch=_checked(ScratchConfig, **_sizes(shape) | {"seed": seed}),
        training=training,
        lora_rank=lora_rank,
        among=among,
        label_smoothing=label_smoothing,
        collaborative=collaborative,
        validation_rows=validation_rows,
    )
    with processes.joined(), console_reporter(quiet=not processes.is_main()) as reporter:
        record = train_teacher(dataset, out, config, reporter)
        if not record.beats_popularity:
            reporter.say(
                "WARNING: this teacher is not better than popularity beyond chance on the validation rows "
                f"(NDCG@10 {record.quality.ndcg10:.4f} against {record.popularity.ndcg10:.4f}); "
                "nothing pruned from it is worth serving. Train longer, or on more data."
            )
        if not processes.is_main():
            return
    kept = {"teacher": (record.quality, None, None), "popularity": (record.popularity, None, None)}
    _show(record, [metrics_table(kept, "valid (sampled)")], as_json)


@app.command()
def prune(
    dataset: DatasetFolder,
    teacher: Annotated[Path, typer.Argument(help="A teacher's folder.")],
    out: Annotated[Path, typer.Option(help="The run's folder; the same command resumes.")],
    recipe: Annotated[str, typer.Option(help="A packaged recipe's name, or a TOML file.")] = "paper",
    target_ratio: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of non-embedding parameters that must go, such as .95."),
    ] = None,
    target_params: Annotated[
        int | None, typer.Option(min=1, help="Non-embedding parameters at most.")
    ] = None,
    shape: Annotated[list[str] | None, typer.Option(help="A final size as KEY=VALUE; repeatable.")] = None,
    validation_rows: Annotated[
        int, typer.Option(min=1, help="Validation rows ranked for each stage's figures.")
    ] = 1000,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: AsJson = False,
) -> None:
    """Prune a teacher in stages, restored by distillation where the recipe says so."""
    from pruning import processes
    from pruning.pipeline.plan import Target
    from pruning.pipeline.recipe import load_recipe
    from pruning.pipeline.run import PruneConfig, prune
    from pruning.progress import console_reporter
    from pruning.tables import stage_table, test_table

    target = _checked(
        Target, nonembedding_parameters=target_params, removed_share=target_ratio, sizes=_sizes(shape)
    )
    config = _checked(
        PruneConfig,
        recipe=load_recipe(recipe),
        target=target,
        seed=seed,
        validation_rows=validation_rows,
    )
    with processes.joined(), console_reporter(quiet=not processes.is_main()) as reporter:
        report = prune(dataset, teacher, out, config, reporter)
        if not processes.is_main():
            return
    _show(report, [stage_table(report), test_table(report)], as_json)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    out: Annotated[Path, typer.Option(help="ARTIFACTS/NAME; never overwritten.")],
    catalogue: Annotated[
        Path | None, typer.Option(help="Another catalogue: a CSV or Parquet file of item_id, title.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's last student as an artifact that can be served."""
    from pruning.export import export
    from pruning.models import quiet_transformers

    with quiet_transformers():
        artifact = export(run, out, catalogue, lambda line: typer.echo(line, err=True))
    if as_json:
        record = {"identity": artifact.identity, "path": str(out), "bytes": artifact.nbytes}
        typer.echo(json.dumps(record))
    else:
        typer.echo(f"{artifact.identity}: {artifact.nbytes / 1e6:.1f} MB in {out}")


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="A teacher, a run, a checkpoint or an artifact.")],
    dataset: DatasetFolder,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    as_json: AsJson = False,
) -> None:
    """Rank the whole catalogue for every row of a split; popularity stands beside it."""
    from pruning.judging import evaluate
    from pruning.progress import console_reporter
    from pruning.tables import metrics_table

    with console_reporter() as reporter:
        judgement = evaluate(model, dataset, split, reporter)
    _show(judgement, [metrics_table(judgement.by_model(), split)], as_json)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run, finished or not.")],
    dataset: Annotated[
        Path | None, typer.Option(help="Where its data set is now, if not where it was.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Where its teacher is now, if not where it was.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write RUN/report.html: what was pruned and why, what it kept, and what it costs."""
    from pruning.progress import console_reporter
    from pruning.report.build import write_report
    from pruning.tables import stage_table, test_table

    with console_reporter() as reporter:
        found = write_report(run, reporter, dataset, teacher)
        for words in found.missing:
            reporter.say(f"missing: {words}")
    tables = [stage_table(found.run), test_table(found.run)] if found.run else []
    _show(found, tables, as_json)
    if not as_json:
        typer.echo(f"report: {found.page}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN…", help="Finished runs on one data set.")],
    out: Annotated[Path | None, typer.Option(help="A page to write too, such as compare.html.")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Where their data set is now, if not where it was.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Set finished runs side by side: quality against parameters and latency."""
    from pruning.progress import console_reporter
    from pruning.report.compare import compare
    from pruning.report.compared import comparison_table, write_comparison

    with console_reporter() as reporter:
        comparison = compare(runs, dataset, reporter)
    if out is not None:
        write_comparison(comparison, out)
    _show(comparison, [comparison_table(comparison)], as_json)
    if out is not None and not as_json:
        typer.echo(f"comparison: {out}")


def _show(record: BaseModel, tables: Sequence[Table], as_json: bool) -> None:
    if as_json:
        typer.echo(record.model_dump_json())
        return
    # Wide enough for every table where nobody's terminal says how wide it is.
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    for table in tables:
        console.print(table)


def _sizes(pairs: Sequence[str] | None) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for pair in pairs or ():
        key, sign, value = pair.partition("=")
        if not sign or not value.isdecimal():
            raise InputError(f"--shape {pair}: write KEY=NUMBER, such as hidden_size=192")
        if key == "seed":
            raise InputError(f"--shape {pair}: a seed is no size; give --seed {value}")
        sizes[key] = int(value)
    return sizes


def _checked(kind: type[ConfigT], **values: object) -> ConfigT:
    """Builds a config, with one line for the first value that is not allowed."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(first_problem(error)) from error
