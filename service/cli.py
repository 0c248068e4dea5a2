"""`espalier serve`, `espalier histories import` and `espalier checkpoints list|activate|rollback`.

The `espalier` command mounts this file, so it imports nothing heavy until a command runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)
histories = typer.Typer(no_args_is_help=True, help="Users' histories in Redis.")
app.add_typer(histories, name="histories")
checkpoints = typer.Typer(no_args_is_help=True, help="Which checkpoint a running service serves.")
app.add_typer(checkpoints, name="checkpoints")

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
_Url = Annotated[str, typer.Option(help="Where the service is.", envvar="ESPALIER_URL")]
_Token = Annotated[
    Path | None,
    typer.Option(help="File with the admin token.", envvar="ESPALIER_ADMIN_TOKEN_FILE"),
]
_HERE = "http://127.0.0.1:8000"


@app.command()
def serve(
    artifacts: Annotated[Path, typer.Argument(help="An artifact, or a folder of artifacts.")],
    engine: Annotated[str | None, typer.Option(help="What runs the model: native or vllm.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to bind. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to bind; 0: a free one. [default: 8000]")] = None,
    redis: Annotated[
        str | None,
        typer.Option(help="URL of the Redis that holds histories, or embedded. [default: embedded]"),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Bind beyond loopback although no keys are configured.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Serves an artifact over HTTP.

    More settings are environment variables with the prefix ESPALIER_.
    """
    from service.logs import log_as_json
    from service.server import serve as run
    from service.settings import Settings, read_settings

    def announce(url: str, model: str | None) -> None:
        if as_json:
            typer.echo(json.dumps({"url": url, "model": model}))
        else:
            typer.echo(f"Serving {model or 'no checkpoint yet'} on {url} (docs: {url}/docs)")

    given = {
        "artifacts": artifacts,
        "engine": engine,
        "host": host,
        "port": port,
        "redis_url": redis,
        "insecure": insecure or None,
    }
    settings = read_settings(Settings, given)
    log_as_json()
    run(settings, announce)


@histories.command("import")
def import_dataset(
    dataset: Annotated[Path, typer.Argument(help="A data set that `espalier prepare` made.")],
    redis: Annotated[
        str | None,
        typer.Option(help="URL of the Redis to fill, or embedded. [default: embedded]"),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Appends the histories of a data set's users. Importing again changes nothing."""
    import asyncio
    from dataclasses import asdict

    from rich.console import Console
    from rich.progress import Progress

    from recommender.dataset import Dataset
    from service.history.client import connect
    from service.history.embedded import history_url
    from service.history.importer import Imported, import_histories
    from service.settings import HistorySettings, read_settings

    seconds_for_a_pipeline = 30.0
    settings = read_settings(HistorySettings, {"redis_url": redis})
    source = Dataset(dataset)

    async def run(url: str) -> Imported:
        client = connect(url, seconds_for_a_pipeline, connections=1)
        try:
            with Progress(console=Console(stderr=True)) as bar:
                task = bar.add_task("users", total=None)
                return await import_histories(
                    source,
                    client,
                    settings,
                    lambda done, total: bar.update(task, completed=done, total=total),
                )
        finally:
            await client.aclose()

    with history_url(settings) as url:
        done = asyncio.run(run(url))
    if as_json:
        typer.echo(json.dumps(asdict(done)))
    else:
        typer.echo(f"{done.users} users, {done.events} events, {done.accepted} of them new")


@checkpoints.command("list")
def list_checkpoints(url: _Url = _HERE, token_file: _Token = None, as_json: _Json = False) -> None:
    """Lists what can be served, and what is."""
    from service.checkpoints.client import CheckpointClient

    found = CheckpointClient(url, token_file).list()
    if as_json:
        typer.echo(found.model_dump_json())
        return
    for checkpoint in found.checkpoints:
        size = f"{checkpoint.size_bytes / 1e6:.1f} MB"
        typer.echo(f"{checkpoint.state:9}  {checkpoint.name}  {checkpoint.digest[:12]}  {size}")
    for replica in found.replicas:
        serving = "nothing" if replica.serving is None else replica.serving.name
        typer.echo(f"replica {replica.replica} serves {serving} (generation {replica.generation})")


@checkpoints.command("activate")
def activate(
    name: Annotated[str, typer.Argument(help="Name of an artifact in the service's folder.")],
    url: _Url = _HERE,
    token_file: _Token = None,
    as_json: _Json = False,
) -> None:
    """Serves another checkpoint, without losing a request."""
    from urllib.parse import quote

    _exchange(f"/checkpoints/{quote(name, safe='')}/activate", url, token_file, as_json)


@checkpoints.command("rollback")
def rollback(url: _Url = _HERE, token_file: _Token = None, as_json: _Json = False) -> None:
    """Goes back to the newest earlier checkpoint that is another one."""
    _exchange("/checkpoints/rollback", url, token_file, as_json)


def _exchange(path: str, url: str, token_file: Path | None, as_json: bool) -> None:
    from service.checkpoints.client import CheckpointClient

    ended = CheckpointClient(url, token_file).exchange(path, lambda step: typer.echo(f"{step} …", err=True))
    if as_json:
        typer.echo(ended.model_dump_json())
    else:
        typer.echo(f"{ended.step}: {ended.checkpoint.name} serves (generation {ended.generation})")
        for straggler in ended.stragglers:
            typer.echo(f"not on {straggler.replica}: {straggler.reason}")
    if ended.stragglers:
        raise typer.Exit(1)
