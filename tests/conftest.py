"""What every test needs: one rule about skipping.

`ESPALIER_REQUIRED_MARKERS` names markers (such as `redis valkey killing`) whose tests must run here. If
one of them was skipped, or none of them was collected, the whole run fails.
"""

import os

import pytest

_REQUIRED = frozenset(os.environ.get("ESPALIER_REQUIRED_MARKERS", "").split())
_skipped = pytest.StashKey[list[str]]()
_collected = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_skipped] = []
    config.stash[_collected] = set()


def pytest_collection_finish(session: pytest.Session) -> None:
    for item in session.items:
        session.config.stash[_collected].update(_REQUIRED & {m.name for m in item.iter_markers()})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    report = yield
    if report.skipped and _REQUIRED & {marker.name for marker in item.iter_markers()}:
        item.config.stash[_skipped].append(item.nodeid)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    missing = _REQUIRED - session.config.stash[_collected]
    if session.config.stash[_skipped] or missing:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for nodeid in config.stash[_skipped]:
        terminalreporter.write_line(f"FAILED: required here, but skipped: {nodeid}", red=True)
    for marker in sorted(_REQUIRED - config.stash[_collected]):
        terminalreporter.write_line(f"FAILED: no test is marked {marker}", red=True)
