"""Runs jobs, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.core import environment, events
from benchmarks.core.events import Event, LeftOut
from benchmarks.report.jobs import Job, title


def run(job: Job, limit_s: float) -> Iterator[Event]:
    """Runs a job in a process of its own: its events, and why it broke off if it did."""
    if limit_s < 3.0:
        yield _broke_off(job, "not started: this mode's time was up")
        return
    command = [sys.executable, "-m", "benchmarks.report.measure", json.dumps(job)]
    process = subprocess.Popen(
        command,
        cwd=environment.ROOT,
        env=environment.process_environment(job["allocator"]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        output, errors = process.communicate(timeout=limit_s)
        reason = (errors.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        reason = f"stopped after {limit_s:.0f} s: this mode's time was up"
    for line in output.splitlines():
        if line.startswith("{") and line.endswith("}"):
            yield events.parse(line)
    if process.returncode != 0:
        yield _broke_off(job, reason)


def _broke_off(job: Job, reason: str) -> LeftOut:
    return LeftOut(
        suite=job["suite"],
        allocator=job["allocator"],
        threads=job["threads"],
        network=job["network"] if "network" in job else job["work"],
        kind=job.get("kind", "the rest"),
        reason=reason,
    )


def measure(jobs: list[Job], total_s: float, console: Console) -> list[Event]:
    """Runs every job for which there is time, behind a progress bar."""
    found: list[Event] = []
    deadline = time.monotonic() + total_s
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=sum(job["cost_s"] for job in jobs))
        for job in jobs:
            progress.update(task, description=title(job))
            found.extend(run(job, deadline - time.monotonic()))
            progress.advance(task, job["cost_s"])
    return found
