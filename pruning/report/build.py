"""`espalier report`: gathers, draws, and writes the page in one step."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from pruning.pipeline.results import RunReport
from pruning.progress import Reporter
from pruning.report.findings import gather
from pruning.report.latency import LatencyReport
from pruning.report.page import report_page
from recommender.storage import write_file

PAGE_FILE = "report.html"


class ReportResult(BaseModel):
    """What was written, and what could not be shown.

    Attributes:
        run: None until the run is finished.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    page: Path
    missing: tuple[str, ...]
    latency: LatencyReport | None
    run: RunReport | None


def write_report(
    run: Path, reporter: Reporter, dataset: Path | None = None, teacher: Path | None = None
) -> ReportResult:
    """Writes RUN/report.html, whole or not at all, for a run in any state.

    Args:
        run: the run's folder.
        reporter: told of every step.
        dataset: where the run's data set is now, if not where it was.
        teacher: the same for its teacher.

    Raises:
        InputError: no run, a damaged one, or a data set or teacher that is not the run's.
    """
    findings = gather(run, dataset, teacher, reporter)
    page = run / PAGE_FILE
    write_file(page, report_page(findings))
    return ReportResult(
        page=page, missing=findings.missing, latency=findings.latency, run=findings.view.report
    )
