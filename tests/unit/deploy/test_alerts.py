"""Every alert fires and is silent where it should, and says what to do."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTS = re.findall(r"- alert: (\w+)", (PROMETHEUS / "alerts.yml").read_text())


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    done = subprocess.run(
        [program, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
def test_prometheus_takes_the_configuration() -> None:
    promtool("check", "config", "prometheus.yml")


@pytest.mark.prometheus
def test_alerts_fire_and_are_silent() -> None:
    promtool("test", "rules", "tests.yml")


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_tested_both_ways_and_has_a_runbook(alert: str) -> None:
    tests = (PROMETHEUS / "tests.yml").read_text()
    assert f"name: {alert} fires\n" in tests
    assert f"name: {alert} is silent\n" in tests
    assert f"runbook: docs/runbook.md#{alert.lower()}\n" in (PROMETHEUS / "alerts.yml").read_text()
    assert f"\n## {alert}\n" in (ROOT / "docs" / "runbook.md").read_text()
