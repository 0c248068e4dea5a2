"""Thousands of requests that schemathesis draws from the interface, at the running service, keys on."""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SUPPORT = Path(__file__).parents[2] / "support"
CASES = 2000


@pytest.mark.redis
@pytest.mark.slow
def test_no_request_breaks_the_interfaces_word(
    start_service: Callable[..., Any], redis_server: Any, two_artifacts: Path, tmp_path: Path
) -> None:
    for name, content in (("keys", "client\n"), ("token", "root\n")):
        (tmp_path / name).write_text(content)
    service = start_service(
        "--redis",
        redis_server.url,
        artifacts=two_artifacts,
        ESPALIER_CHECKPOINT="tiny",
        ESPALIER_API_KEYS_FILE=str(tmp_path / "keys"),
        ESPALIER_ADMIN_TOKEN_FILE=str(tmp_path / "token"),
    )
    report = tmp_path / "cases.ndjson"
    options = {
        "--max-examples": "170",
        "--workers": "2",
        "--report-ndjson-path": str(report),
    }
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "--config-file",
            str(SUPPORT / "schemathesis.toml"),
            "run",
            f"{service.url}/openapi.json",
            *(part for option in options.items() for part in option),
        ],
        cwd=tmp_path,
        env=os.environ
        | {
            "PYTHONPATH": str(SUPPORT),
            "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
            "SCHEMATHESIS_KEY": "client",
            "SCHEMATHESIS_TOKEN": "root",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    statuses = statuses_by_operation(report)
    with service.client() as client:
        interface = client.get("/openapi.json").json()
        assert client.get("/readyz").status_code == 200
    operations = {
        f"{method.upper()} {path}" for path, methods in interface["paths"].items() for method in methods
    }
    without = {name for name in operations if not any(200 <= s < 300 for s in statuses[name])}
    assert not without, f"never reached a 2xx: {without}"
    assert sum(sum(found.values()) for found in statuses.values()) >= CASES
    for found in statuses.values():
        assert not [status for status in found if status >= 500]
    for name, schema in interface["components"]["schemas"].items():
        assert schema["additionalProperties"] is False, name


def statuses_by_operation(report: Path) -> dict[str, Counter[int]]:
    """How often each operation answered with each status, by `METHOD /path`."""
    found: dict[str, Counter[int]] = defaultdict(Counter)
    with report.open() as lines:
        for line in lines:
            scenario = json.loads(line).get("ScenarioFinished")
            if scenario is None:
                continue
            recorder = scenario["recorder"]
            for identity, case in recorder.get("cases", {}).items():
                answer = recorder["interactions"].get(identity, {}).get("response")
                if answer is not None:
                    value = case["value"]
                    found[f"{value['method']} {value['path']}"][answer["status_code"]] += 1
    return found
