"""What every benchmark says about itself, and how its record reaches a file and a page."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recommender.artifact import Artifact
from recommender.storage import write_file

Record = dict[str, Any]


def described(packages: Iterable[str]) -> Record:
    """Date, command and machine of this run; `packages` are those whose versions matter."""
    return {
        "date": date.today().isoformat(),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "machine": {
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
            "cores": os.cpu_count(),
            "processor": _processor(),
        },
    }


def lineage(artifact: Artifact) -> str:
    """Which artifact was measured, and what it is: base, recipe, data set, size."""
    made, size = artifact.manifest.lineage, artifact.manifest.parameters.nonembedding
    return (
        f"{artifact.identity} ({made.base}, recipe {made.recipe}, {made.dataset}; "
        f"{size:,} non-embedding parameters)"
    )


def commit() -> str:
    """What is checked out here, shortened."""
    asked = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99 in milliseconds; None of nothing."""
    ordered = sorted(seconds)
    if not ordered:
        return None
    return {f"p{p}_ms": round(1e3 * ordered[len(ordered) * p // 100], 2) for p in (50, 95, 99)}


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def provenance(record: Mapping[str, Any]) -> str:
    """The sentence under a page's title: command, machine, versions, date."""
    return f"`{record['command']}`, {record['date']}, on {machine_in_words(record['machine'])}."


def machine_in_words(machine: Mapping[str, Any]) -> str:
    """The machine and the versions on it, of what `described` says."""
    versions = ", ".join(
        f"{name} {value}" for name, value in machine.items() if name not in ("cores", "processor")
    )
    return f"{machine['cores']} cores of {machine['processor']}; {versions}"


def publish(record: Record, out: Path | None, page: Callable[[Record], str] | None = None) -> None:
    """Prints the record; with `out`, writes it there, and its page beside it as Markdown."""
    text = json.dumps(record, indent=2) + "\n"
    print(text)
    if out is not None:
        write_file(out, text)
        if page is not None:
            write_file(out.with_suffix(".md"), page(record))


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
