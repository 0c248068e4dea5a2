"""`espalier serve` as an operator meets it: a process, signals, exit codes, a folder of histories."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from redis_servers import until

from recommender.artifact import Artifact

pytestmark = pytest.mark.valkey


def run_espalier(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "espalier", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | environment,
    )


def test_a_whole_life(start_service: Callable[..., Any], served_artifact: Artifact) -> None:
    service = start_service()
    assert service.model == served_artifact.identity
    with service.client() as client:
        assert client.get("/readyz").json() == {"status": "ok"}
        user = "/users/a%2Fb%20%C3%BC"
        assert client.post(f"{user}/events", json={"item_id": "g3", "timestamp": 5}).status_code == 200
        history = client.get(f"{user}/history").json()
        assert history["user_id"] == "a/b ü"
        assert [item["title"] for item in history["items"]] == ["Portal 4"]
        answer = client.post("/recommend", json={"user_id": "a/b ü", "k": 3})
        assert answer.json()["strategy"] == "model"
        assert answer.headers["espalier-model"] == served_artifact.identity
        assert client.get("/users/%ff/history").status_code == 422
        assert "espalier_redis_up 1.0" in client.get("/metrics").text
    assert service.end() == 0
    log = service.log.read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"/recommend", "/users/{user_id}/history"} <= {line.get("route") for line in lines}
    assert "Portal" not in log
    assert "a/b" not in log
    assert "a%2Fb" not in log


def test_histories_outlive_a_killed_service(start_service: Callable[..., Any]) -> None:
    first = start_service()
    with first.client() as client:
        for item in range(5):
            client.post("/users/ann/events", json={"item_id": f"g{item}", "timestamp": item})
    assert first.end(signal.SIGKILL) == -signal.SIGKILL
    second = start_service()
    with second.client() as client:
        items = client.get("/users/ann/history").json()["items"]
    assert [item["item_id"] for item in items] == ["g0", "g1", "g2", "g3", "g4"]
    assert second.end(signal.SIGINT) == 0


@pytest.mark.killing
def test_a_killed_valkey_is_started_again_and_has_what_was_acknowledged(
    start_service: Callable[..., Any], tmp_path: Path
) -> None:
    service = start_service()
    socket_path = str(tmp_path / "state" / "histories" / "valkey.sock")
    with service.client() as client:
        events = "/users/ann/events"
        acknowledged = 0
        for _ in range(2):
            for _ in range(10):
                body = {"item_id": f"g{acknowledged}", "timestamp": acknowledged}
                assert client.post(events, json=body).status_code == 200
                acknowledged += 1
            with redis.Redis(unix_socket_path=socket_path) as direct:
                os.kill(direct.info("server")["process_id"], signal.SIGKILL)
            # Until it is back, whoever brings a history is answered all the same.
            answer = client.post("/recommend", json={"history": ["g1"]})
            assert answer.json()["strategy"] == "model"
            until(lambda: client.get("/users/ann/history").status_code == 200)
            items = client.get("/users/ann/history").json()["items"]
            assert [item["item_id"] for item in items] == [f"g{item}" for item in range(acknowledged)]
            assert client.get("/readyz").status_code == 200
    assert service.end() == 0
    assert "the embedded server died" in service.log.read_text()


def test_what_is_in_flight_is_answered_before_the_end(start_service: Callable[..., Any]) -> None:
    service = start_service()
    stop = threading.Event()

    def ask_until_refused() -> list[int]:
        """Asks until the service is gone; whatever was accepted must have been answered."""
        statuses = []
        with service.client() as client:
            while not stop.is_set():
                body = {"requests": [{"history": [f"g{n}"], "k": 30} for n in range(20)]}
                try:
                    client_answer = client.post("/recommend/batch", json=body)
                except Exception as error:
                    if type(error).__name__ in ("ConnectError", "RemoteProtocolError", "ReadError"):
                        break
                    raise
                statuses.append(client_answer.status_code)
                assert {entry["status"] for entry in client_answer.json()["responses"]} == {200}
        return statuses

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask_until_refused) for _ in range(4)]
        time.sleep(1)
        assert service.end() == 0
        stop.set()
        for statuses in (task.result(timeout=60) for task in asking):
            assert statuses
            assert set(statuses) == {200}


def test_while_it_drains_it_is_unready_and_still_accepts(start_service: Callable[..., Any]) -> None:
    service = start_service(ESPALIER_DRAIN_DELAY_S="2")
    service.process.send_signal(signal.SIGTERM)
    with service.client() as client:
        while (ready := client.get("/readyz")).status_code == 200:
            time.sleep(0.01)
        assert ready.json()["detail"] == "draining"
    with service.client() as client:  # a new connection
        assert client.post("/recommend", json={"history": ["g1"]}).status_code == 200
    assert service.process.wait(timeout=30) == 0


def test_two_services_do_not_share_a_folder(start_service: Callable[..., Any], tmp_path: Path) -> None:
    service = start_service()
    state = str(tmp_path / "state")
    artifact = str(next(iter(service.process.args[4:5])))
    done = run_espalier("serve", artifact, "--port", "0", ESPALIER_STATE_DIR=state)
    assert done.returncode == 2
    assert "another espalier serves from it" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["{artifact}", "--host", "0.0.0.0"], {}, "pass --insecure"),
        (["{artifact}", "--engine", "magic"], {}, "ESPALIER_ENGINE: Input should be 'native'"),
        (["{artifact}", "--redis", "nonsense"], {}, "ESPALIER_REDIS_URL"),
        (["{artifact}", "--port", "{taken}"], {}, "cannot be bound"),
        (["{artifact}"], {"ESPALIER_API_KEYS_FILE": "/nowhere"}, "cannot be read"),
        (["{artifact}"], {"ESPALIER_DEADLINE_S": "0"}, "ESPALIER_DEADLINE_S"),
        (["/nowhere"], {}, "no such folder"),
        (["{artifact}"], {"WEB_CONCURRENCY": "2"}, "one process serves one model"),
        (["{artifact}"], {"ESPALIER_ADMIN_TOKEN_FILE": "/nowhere"}, "ESPALIER_ADMIN_TOKEN_FILE"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    served_artifact: Artifact,
    tmp_path: Path,
    arguments: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {
            "artifact": served_artifact.path,
            "taken": taken.getsockname()[1],
        }
        filled = [argument.format(**places) for argument in arguments]
        if "--port" not in filled:
            filled += ["--port", "0"]
        state = {"ESPALIER_STATE_DIR": str(tmp_path / "state")}
        done = run_espalier("serve", *filled, **state, **environment)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
