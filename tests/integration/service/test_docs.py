"""Every call in the documentation, typed from top to bottom as a newcomer would, on a small data set.

What cannot be typed here is named below with its reason; a call that is neither run nor named fails.
"""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from doc_calls import PAGES, ROOT, Call, calls, other_pages, strange_blocks
from small_run import write_source

pytestmark = [pytest.mark.slow, pytest.mark.redis]

# What is not run, by how it begins.
ELSEWHERE = {
    "make ": "makes environments, or runs all of this again",
    "docker": "needs Docker: tests/e2e/compose.sh types it",
    "pip ": "changes the tests' own environment, or fetches 93 MB (tests/unit/pruning/teacher does)",
    "accelerate launch --multi_gpu": "needs several GPUs",
    "espalier train data/mine --out teachers/smollm2": "needs the pretrained model: hours",
    "espalier prune data/mine teachers/smollm2": "needs the pretrained model: hours",
    "ESPALIER_VLLM_PYTHON=": "needs vLLM: tests/integration/service/test_vllm.py starts it so",
    "python -m benchmarks.": "minutes; tests/integration/service/test_overload.py runs a short one",
    "espalier serve ARTIFACT --engine vllm": "needs vLLM: tests/integration/service/test_vllm.py",
    "ESPALIER_ARTIFACTS=./artifacts docker": "needs Docker: tests/e2e/compose.sh",
}
# What is made shorter: these options are added.
SHORTER = {
    "espalier train data/mine": "--shape hidden_size=64 --shape intermediate_size=128 "
    "--shape num_hidden_layers=3 --shape num_attention_heads=4 --max-steps 30 --validation-rows 20",
    "espalier prune data/mine": "--validation-rows 20",
    "torchrun --standalone --nproc-per-node 2 -m espalier prune data/mine": "--validation-rows 20",
}
# What a page of results says was typed on the machine and the data that it names.
RESULTS = {
    "python benchmarks/": "minutes, on the artifacts that it names",
    "espalier demo": "ten minutes",
    "espalier prune var/demo/dataset": "minutes, on what the demo made",
    "kill -9": "no command to type but what a test does",
    "python -m service.engine.vllm.child": "started by the service",
}
# What stands in a block and is no call: drawings, and what a command printed.
SHOWN = {
    "README.md": ["Data set ml-100k (recbole)"],
    "docs/histories.md": ["user espalier on >PASSWORD"],
    "docs/architecture.md": ["interactions + titles ─prepare→ data set ─train→ teacher"],
}


@dataclass
class Shell:
    """A folder, an environment that `export` changes, and at most one service."""

    folder: Path
    words: dict[str, str]
    environment: dict[str, str]
    service: subprocess.Popen[str] | None = None

    def type(self, command: str) -> None:
        """Runs a command as the documentation has it."""
        for word, meant in self.words.items():
            command = re.sub(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", meant, command)
        assignment = re.fullmatch(r"export (\w+)=(\S+)", command)
        if assignment:
            self.environment[assignment[1]] = assignment[2]
        elif command.startswith("espalier serve ") and "--help" not in command:
            self._serve(command)
        else:
            self._run(command)

    def end(self) -> None:
        if self.service is not None:
            self.service.terminate()
            assert self.service.wait(timeout=60) == 0
            assert self.service.stdout is not None
            self.service.stdout.close()
            self.service = None

    def _run(self, command: str) -> None:
        shown = command.replace("curl ", "curl --show-error --write-out '\\n%{http_code}' ", 1)
        done = subprocess.run(
            ["bash", "-c", shown],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        if command.startswith("curl "):
            _, _, status = done.stdout.rpartition("\n")
            assert 200 <= int(status) < 300, f"{command}\n{done.stdout}"

    def _serve(self, command: str) -> None:
        self.end()
        with (self.folder / "log").open("a") as log:
            self.service = subprocess.Popen(
                ["bash", "-c", f"exec {command} --port {self.words['8000']}"],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.service.stdout is not None
        line = self.service.stdout.readline()
        assert "Serving" in line, (self.folder / "log").read_text()


@pytest.fixture
def shell(tmp_path: Path, redis_server: Any) -> Iterator[Shell]:
    write_source(tmp_path / "source", users=60)
    (tmp_path / "token").write_text("root\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    words = {
        "SOURCE": "source",
        "NAME": "next",
        "localhost:6379": redis_server.url.removeprefix("redis://"),
        "localhost:8000": f"127.0.0.1:{port}",
        "8000": port,
    }
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "ESPALIER_URL": f"http://127.0.0.1:{port}",
        "ESPALIER_CHECKPOINT": "mine",
        "ESPALIER_REDIS_TIMEOUT_S": "5",  # a busy machine is no slow Redis
        "ESPALIER_DEADLINE_S": "30",
        "URL": redis_server.url,
    }
    shell = Shell(tmp_path, words, environment)
    yield shell
    shell.end()


def named(command: str, names: dict[str, str]) -> str | None:
    """What stands beside the beginning of a command."""
    return next((told for begin, told in names.items() if command.startswith(begin)), None)


def prepare_next(shell: Shell) -> None:
    """A second checkpoint, for `activate NAME`: the documentation takes for granted that there is one."""
    if (shell.folder / "runs" / "mine").exists() and not (shell.folder / "artifacts" / "next").exists():
        shell.type("espalier export runs/mine --out artifacts/next")


def about_a_command(call: Call) -> bool:
    """Whether the text only names a command, as in "`espalier histories import` fills …"."""
    words = call.command.split()
    complete = words[1:2] == ["checkpoints"] and words[2:3] != ["list|activate"]
    return call.inline and words[0] == "espalier" and not complete


def test_every_call_in_the_documentation_works(shell: Shell) -> None:
    run = 0
    for call in (call for page in PAGES for call in calls(page)):
        if named(call.command, ELSEWHERE):
            continue
        if about_a_command(call):
            command = re.split(r" (?=[^a-z])", call.command)[0]
            shell.type(f"{' '.join(word for word in command.split() if word.isalpha())} --help")
            continue
        if call.command.startswith("espalier checkpoints"):
            prepare_next(shell)
        shell.type(f"{call.command} {named(call.command, SHORTER) or ''}".strip())
        run += 1
    assert run >= 15


def test_no_page_is_left_out() -> None:
    found = (call for page in other_pages() for call in calls(page))
    left = [call.command for call in found if not about_a_command(call)]
    unknown = [command for command in left if not named(command, ELSEWHERE | RESULTS)]
    assert not unknown, f"add their pages to doc_calls.PAGES: {unknown}"


def test_every_block_is_a_call_or_known_to_be_none() -> None:
    for page in (*PAGES, *other_pages()):
        known = SHOWN.get(page.relative_to(ROOT).as_posix(), [])
        assert [first for first in strange_blocks(page) if not first.startswith(tuple(known))] == [], page
