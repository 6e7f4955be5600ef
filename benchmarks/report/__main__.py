"""`python -m benchmarks.report [--quick|--full] [--bars] [--out DIR]`: measures, shows, writes."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

try:
    from rich.console import Console
except ModuleNotFoundError:
    sys.exit('benchmarks.report: rich is missing; make bench, or pip install ".[bench]"')

from benchmarks.core import environment
from benchmarks.report import bars, page, terminal
from benchmarks.report.jobs import Job, full_jobs, quick_jobs
from benchmarks.report.processes import measure

RESULTS = environment.ROOT / "benchmarks" / "results"
QUICK_SECONDS = 345.0
FULL_SECONDS = 1950.0


def collect(
    jobs: list[Job], mode: str, total_s: float, console: Console, *, judged: bool = False
) -> dict[str, Any]:
    """The whole report, as data; `judged`, with the bars."""
    started = time.monotonic()
    report: dict[str, Any] = {
        "mode": mode,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment.facts(),
    }
    report["events"] = measure(jobs, total_s, console)
    if judged:
        report["bars"] = [verdict.to_dict() for verdict in bars.verdicts(report["events"])]
    report["seconds"] = time.monotonic() - started
    return report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--quick", action="store_true", help="within 6 minutes (the default)")
    modes.add_argument("--full", action="store_true", help="everything, within 33 minutes")
    parser.add_argument(
        "--bars", action="store_true", help="also the bars this project set itself, for developers"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the report")
    chosen = parser.parse_args(arguments)
    console = Console()
    jobs = list(full_jobs() if chosen.full else quick_jobs())
    total_s = FULL_SECONDS if chosen.full else QUICK_SECONDS
    mode = "full" if chosen.full else "quick"
    report = collect(jobs, mode, total_s, console, judged=chosen.bars)
    terminal.show(report, console)
    files = [shorter(path) for path in page.write(report, chosen.out)]
    terminal.say(["", *terminal.summary(report, files, console.width)], console)
    return 0


def shorter(path: Path) -> Path:
    """As seen from the working folder, where it lies below it."""
    here = Path.cwd()
    return path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path


if __name__ == "__main__":
    sys.exit(main())
