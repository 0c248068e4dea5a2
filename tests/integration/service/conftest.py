"""The service as a process of its own, and a real redis-server to be killed and paused."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from redis_servers import RedisServer
from served_artifact import write_other_artifact, write_served_artifact

from recommender.artifact import Artifact


@dataclass
class Service:
    """A running `espalier serve`."""

    process: subprocess.Popen[str]
    url: str
    model: str | None
    log: Path

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


StartService = Callable[..., Service]


@pytest.fixture(scope="session")
def served_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_served_artifact(tmp_path_factory)


@pytest.fixture(scope="session")
def other_artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_other_artifact(tmp_path_factory)


@pytest.fixture
def two_artifacts(served_artifact: Artifact, other_artifact: Artifact, tmp_path: Path) -> Path:
    """A folder with `tiny` and `other`, of another shape, vocabulary and catalogue."""
    for artifact in (served_artifact, other_artifact):
        shutil.copytree(artifact.path, tmp_path / "artifacts" / artifact.path.name)
    return tmp_path / "artifacts"


@pytest.fixture
def start_service(served_artifact: Artifact, tmp_path: Path) -> Iterator[StartService]:
    """`start_service("--redis", url, artifacts=folder, NAME="value")`; waits until it says where it is."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, artifacts: Path = served_artifact.path, **environment: str) -> Service:
        log = tmp_path / f"service-{len(started)}.log"
        variables = {
            "ESPALIER_STATE_DIR": str(tmp_path / "state"),
            "ESPALIER_REDIS_TIMEOUT_S": "2",  # a busy machine is no slow Redis
            "ESPALIER_DEADLINE_S": "30",
        }
        command = [sys.executable, "-m", "espalier", "serve", str(artifacts)]
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [*command, "--port", "0", "--json", *arguments],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=os.environ | variables | environment,
            )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        return Service(process, **json.loads(line), log=log)

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()  # killed, it would leave its Valkey behind
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=30)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    yield server
    server.process.send_signal(signal.SIGCONT)
    server.kill()


@pytest.fixture
def refused(served_artifact: Artifact, tmp_path: Path) -> Callable[..., str]:
    """`refused("--redis", url, NAME="value")` starts a service that refuses to; returns what it said."""

    def start(*arguments: str, **environment: str) -> str:
        command = [sys.executable, "-m", "espalier", "serve", str(served_artifact.path), "--port", "0"]
        done = subprocess.run(
            [*command, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=os.environ | {"ESPALIER_STATE_DIR": str(tmp_path / "state")} | environment,
        )
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        return done.stderr

    return start
