"""A real Prometheus scrapes the real service under load: every panel has data, every alert has series."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

DEPLOY = Path(__file__).parents[3] / "deploy"
CLIENTS = 8
PATIENCE_S = 120
# An instant vector selector, or a rule's recorded name.
SELECTOR = re.compile(r"\b(?:espalier[\w:]*|up)\b(?:\{[^}]*\})?")


class Prometheus:
    """What the test asks of Prometheus' HTTP interface."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)
        self._begin = time.time()

    def ask(self, path: str, **parameters: Any) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, f"{parameters}: {answer.text}"
        return answer.json()["data"]

    def ready(self) -> bool:
        with suppress(httpx.TransportError):
            return self._client.get("/-/ready").status_code == 200
        return False

    def has_data(self, expression: str) -> bool:
        """Whether a graph of the time since the beginning would show a point."""
        found = self.ask("query_range", query=expression, start=self._begin, end=time.time(), step=1)[
            "result"
        ]
        return any(value != "NaN" for series in found for _, value in series["values"])

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def scrape(tmp_path: Path) -> Iterator[Any]:
    """`with scrape(url) as prometheus`: the committed configuration, with this one target."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian's package prometheus)")

    @contextmanager
    def started(target: str) -> Iterator[Prometheus]:
        folder = tmp_path / "prometheus"
        shutil.copytree(DEPLOY / "prometheus", folder)
        configuration = yaml.safe_load((folder / "prometheus.yml").read_text())
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        for job in configuration["scrape_configs"]:
            del job["dns_sd_configs"]  # there is no such name here
            job["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        options = {
            "config.file": folder / "prometheus.yml",
            "storage.tsdb.path": tmp_path / "tsdb",
            "web.listen-address": address,
        }
        with (tmp_path / "prometheus.log").open("w") as log:
            process = subprocess.Popen(
                [program, *(f"--{name}={value}" for name, value in options.items())], stderr=log
            )
        prometheus = Prometheus(f"http://{address}")
        try:
            wait_until(prometheus.ready, "Prometheus is ready")
            yield prometheus
        finally:
            prometheus.close()
            process.terminate()
            process.wait(timeout=30)

    return started


def wait_until(holds: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, f"never came true: {what}"
        time.sleep(0.5)


@contextmanager
def load(url: str) -> Iterator[None]:
    """Clients that ask for everything at once, some of it wrong, until the block ends."""
    stop = threading.Event()

    def client(number: int) -> None:
        user = f"/users/user-{number}"
        with httpx.Client(base_url=url, timeout=60) as http:
            while not stop.is_set():
                http.post("/recommend", json={"history": ["g1", "g2", "g7"], "k": 20})
                http.post(f"{user}/events", json={"item_id": f"g{number}"})
                http.post("/recommend", json={"user_id": f"user-{number}"})
                http.get(f"{user}/history")
                http.get("/items", params={"query": "portal"})
                http.post("/recommend", json={"k": 0})

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def panel_queries() -> dict[str, str]:
    """Every query of every dashboard, by where it stands."""
    return {
        f"{file.stem} / {part.get('title', part.get('name'))} / {number}": query.replace(
            "$__rate_interval", "10s"
        )
        for file in (DEPLOY / "grafana" / "dashboards").glob("*.json")
        for dashboard in [json.loads(file.read_text())]
        for part in (*dashboard["panels"], *dashboard["annotations"]["list"])
        for number, query in enumerate([target["expr"] for target in part.get("targets", [part])])
    }


@pytest.mark.redis
@pytest.mark.prometheus
@pytest.mark.slow
def test_every_panel_has_data_and_every_alert_has_series(
    start_service: Any, redis_server: Any, scrape: Any, two_artifacts: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("root")
    service = start_service(
        "--redis",
        redis_server.url,
        artifacts=two_artifacts,
        ESPALIER_CHECKPOINT="tiny",
        ESPALIER_ADMIN_TOKEN_FILE=str(tmp_path / "token"),
        ESPALIER_MAX_BATCH="1",
        ESPALIER_MAX_WAITING="1",
    )
    with scrape(service.url.removeprefix("http://")) as prometheus, load(service.url):
        stored = 'espalier_history_operations_total{operation="append",outcome="ok"}'
        wait_until(lambda: prometheus.has_data(stored), "events are stored and scraped")
        with service.client() as http:
            swap = http.post(
                "/checkpoints/other/activate?wait=true", headers={"Authorization": "Bearer root"}
            )
        assert swap.json()["step"] == "done"
        redis_server.kill()  # from here on: 503s, and popular titles instead of stored histories

        queries = panel_queries()
        assert len(queries) > 30
        for place, query in queries.items():
            wait_until(lambda query=query: prometheus.has_data(query), f"data for {place}: {query}")

        for job in ("espalier", "espalier-vllm"):
            wait_until(lambda job=job: prometheus.has_data(f'up{{job="{job}"}} == 1'), f"{job} is scraped")
        rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
        for rule in rules:
            assert (rule["health"], rule.get("lastError")) == ("ok", None), rule["name"]
            for selector in SELECTOR.findall(rule["query"]):
                wait_until(
                    lambda selector=selector: prometheus.has_data(selector),
                    f"series for {selector} of {rule['name']}",
                )
        assert {rule["type"] for rule in rules} == {"alerting", "recording"}
