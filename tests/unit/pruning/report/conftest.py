"""One pair of finished runs for all tests of the report."""

from pathlib import Path

import pytest
from report_run import make_runs


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("report"))
