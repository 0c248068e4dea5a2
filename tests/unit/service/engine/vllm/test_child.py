import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import lean_vllm_child
import pytest

from recommender.artifact import Artifact
from recommender.ranker import Ranker
from service.engine.vllm.messages import FROM_CHILD, Rank, Ready

Start = Callable[..., tuple[subprocess.Popen[bytes], socket.socket]]


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    (folder / "left").write_text("behind")
    return folder


@pytest.fixture
def start(served_artifact: Artifact, scratch: Path) -> Iterator[Start]:
    """A child and our end of its socket; nobody supervises it."""
    started = []

    def launch(*arguments: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [
                    *(sys.executable, lean_vllm_child.__file__, *arguments),
                    *("--artifact", str(served_artifact.path), "--context", "128", "--kv-cache", "0"),
                    *("--socket", str(theirs.fileno()), "--scratch", str(scratch)),
                ],
                pass_fds=(theirs.fileno(),),
                env=os.environ | {"TMPDIR": str(scratch)},
            )
        started.append((process, ours))
        return process, ours

    yield launch
    for process, ours in started:
        ours.close()
        process.kill()
        process.wait()


def read_ready(connection: socket.socket) -> None:
    with connection.makefile("rb") as lines:
        assert isinstance(FROM_CHILD.validate_json(lines.readline()), Ready)


def test_it_ends_when_the_service_is_gone(start: Start, scratch: Path) -> None:
    process, ours = start()
    read_ready(ours)
    ours.close()
    assert process.wait(30) == 0
    assert not scratch.exists()


def test_even_if_it_hangs(start: Start, scratch: Path, served_artifact: Artifact) -> None:
    process, ours = start("--fail", "hang")
    read_ready(ours)
    prompt = Ranker.from_artifact(served_artifact).prompt((1,))
    ours.sendall(Rank(id=1, prompt=prompt, k=1, exclude=(), candidates=None).line())
    ours.close()
    assert process.wait(30) == 0
    assert not scratch.exists()


def test_even_before_it_is_ready(start: Start, scratch: Path) -> None:
    process, ours = start()
    ours.close()
    assert process.wait(60) == 0
    assert not scratch.exists()
