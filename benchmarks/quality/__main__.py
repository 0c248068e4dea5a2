"""The command: one row, one trial, or the page of all rows."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from benchmarks.quality.page import write_page
from benchmarks.quality.reproduce import reproduce
from benchmarks.quality.rows import Method
from benchmarks.quality.trials import make_trial
from benchmarks.quality.work import PEERS, Asked, make_row
from pruning.progress import console_reporter
from pruning.training.precision import Precision
from recommender.errors import EspalierError

RESULTS = Path("docs/results")


def main() -> None:
    """Makes a row or a trial, or writes the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where rows, ranks and page stand")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="one row; repeated, it resumes")
    _add_asked(run, get_args(Method))
    run.add_argument("--trials", type=int, default=1, help="settings tried before, on validation")
    trial = commands.add_parser("trial", help="other settings, on the validation split alone, in the log")
    _add_asked(trial, [method for method in get_args(Method) if method not in PEERS])
    trial.add_argument(
        "--set", action="append", default=[], type=_setting, help="of the training: learning_rate=7e-4"
    )
    trial.add_argument("--note", required=True, help="what is tried, in words")
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


def _add_asked(command: argparse.ArgumentParser, methods: Sequence[str]) -> None:
    command.add_argument("dataset", help="what the data set is called in all rows")
    command.add_argument("--source", type=Path, required=True, help="its interactions, items and splits")
    command.add_argument(
        "--base", type=Path, required=True, help="the pretrained model: a folder or GGUF file"
    )
    command.add_argument("--method", choices=methods, required=True)
    command.add_argument("--size", type=int, choices=(95, 98), default=95, help="per cent that must go")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--budget", type=float, default=1.0, help="share of the full training tokens")
    _add_precision(command)
    command.add_argument("--work", type=Path, default=Path("var/quality"))


def _setting(words: str) -> tuple[str, str]:
    name, equals, value = words.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{words}: write it as NAME=VALUE")
    return name, value


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
            precision=given.precision,
        )
        with console_reporter() as reporter:
            if given.command == "trial":
                print(json.dumps(make_trial(asked, dict(given.set), given.note, reporter), indent=2))
            else:
                row = make_row(replace(asked, trials=given.trials), reporter)
                print(row.model_dump_json(indent=2))


if __name__ == "__main__":
    main()
