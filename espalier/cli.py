"""The command `espalier`: the rooms' commands under one roof, and how errors leave it.

Exit codes: 0 done, 1 failed, 2 wrong use or input. An error that we know is one line without a
traceback; one that we do not know keeps its traceback, since it is our bug.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

import pruning.cli
import service.cli
from espalier.demo import demo
from recommender.errors import EspalierError, InputError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Language models that recommend: train one, prune it to a twentieth, serve it.",
)
app.add_typer(pruning.cli.app)
app.add_typer(service.cli.app)
app.command()(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"espalier {version('espalier')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line."""
    try:
        app()
    except Exception as error:
        if _another_process_has_told():
            sys.exit(1)
        if not isinstance(error, EspalierError):
            raise
        typer.echo(f"espalier: {error}", err=True)
        sys.exit(2 if isinstance(error, InputError) else 1)


def _another_process_has_told() -> bool:
    """Whether this is one of several processes of a training, and not the first of them to fail."""
    if "WORLD_SIZE" not in os.environ:
        return False
    from pruning.processes import first_to_fail  # torch comes with it, which takes seconds

    return not first_to_fail()
