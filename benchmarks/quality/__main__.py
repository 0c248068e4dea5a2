"""The command: one row, or the page of all rows."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from benchmarks.quality.page import write_page
from benchmarks.quality.reproduce import reproduce
from benchmarks.quality.rows import Method
from benchmarks.quality.trials import log_trial
from benchmarks.quality.work import Asked, make_row
from pruning.progress import console_reporter
from pruning.training.precision import Precision
from recommender.errors import EspalierError

RESULTS = Path("docs/results")


def main() -> None:
    """Makes a row, notes a trial, or writes the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows, ranks and page stand")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="one row; repeated, it resumes")
    run.add_argument("dataset", help="what the data set is called in all rows")
    run.add_argument("--source", type=Path, required=True, help="its interactions, items and splits")
    run.add_argument("--base", type=Path, required=True, help="the pretrained model: a folder or GGUF file")
    run.add_argument("--method", choices=get_args(Method), required=True)
    run.add_argument("--size", type=int, choices=(95, 98), default=95, help="per cent that must go")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--budget", type=float, default=1.0, help="share of the full training tokens")
    run.add_argument("--trials", type=int, default=1, help="settings tried before, on validation")
    _add_precision(run)
    run.add_argument("--work", type=Path, default=Path("var/quality"))
    trial = commands.add_parser("trial", help="adds a finished run to the log of trials")
    trial.add_argument("run", type=Path)
    trial.add_argument("--note", required=True, help="what was tried")
    again = commands.add_parser("reproduce", help="a data set's espalier row from nothing, beside ours")
    again.add_argument("dataset")
    again.add_argument("--source", type=Path, required=True, help="its interactions, items and splits")
    _add_precision(again)
    again.add_argument("--work", type=Path, default=Path("var/quality"))
    commands.add_parser("page", help="writes quality.md and its plots")
    given = parser.parse_args()
    try:
        _do(given)
    except EspalierError as error:
        sys.exit(f"{parser.prog}: {error}")


def _add_precision(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="of all products: which is the faster one depends on the processor",
    )


def _do(given: argparse.Namespace) -> None:
    if given.command == "page":
        write_page(given.results)
    elif given.command == "trial":
        log_trial(given.run, given.results, given.note)
    elif given.command == "reproduce":
        with console_reporter() as reporter:
            found = reproduce(
                given.dataset,
                given.source,
                given.work,
                given.results,
                reporter,
                precision=given.precision,
            )
        print("\n".join(found.lines()))
    else:
        asked = Asked(
            dataset=given.dataset,
            source=given.source,
            base=given.base,
            work=given.work,
            results=given.results,
            method=given.method,
            size=given.size,
            seed=given.seed,
            budget=given.budget,
            trials=given.trials,
            precision=given.precision,
        )
        with console_reporter() as reporter:
            print(make_row(asked, reporter).model_dump_json(indent=2))


if __name__ == "__main__":
    main()
