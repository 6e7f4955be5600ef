"""Runs jobs, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.core import environment, events
from benchmarks.core.events import Event, LeftOut
from benchmarks.report.jobs import Job, title

LINE_EVERY_S = 10.0  # where nothing can be redrawn: a log shows that it goes on


def run(job: Job, limit_s: float, waiting: Callable[[], None] = lambda: None) -> Iterator[Event]:
    """Runs a job in a process of its own: its events, and why it broke off if it did.

    `waiting` is called every second meanwhile.
    """
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
    deadline = time.monotonic() + limit_s
    while True:
        try:
            left = deadline - time.monotonic()
            output, errors = process.communicate(timeout=max(0.0, min(1.0, left)))
            reason = (errors.strip().splitlines() or ["no message"])[-1]
            break
        except subprocess.TimeoutExpired:
            waiting()
            if time.monotonic() >= deadline:
                process.kill()
                output, _ = process.communicate()
                reason = f"stopped after {limit_s:.0f} s: this mode's time was up"
                break
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


class Log:
    """Progress where nothing can be redrawn, as in a pipe: a line every ten seconds."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic):
        self.say, self.clock = say, clock
        self.started = clock()
        self.next = self.started + LINE_EVERY_S

    def tell(self, share: float, what: str) -> None:
        """Says how far it is, if the last line is old enough."""
        now = self.clock()
        if now < self.next:
            return
        self.next = now + LINE_EVERY_S
        minutes, seconds = divmod(round(now - self.started), 60)
        self.say(f"{share:4.0%}  {minutes}:{seconds:02}  {what}")


def measure(jobs: list[Job], total_s: float, console: Console) -> list[Event]:
    """Runs every job for which there is time, behind a progress bar, or a line now and then."""
    found: list[Event] = []
    deadline = time.monotonic() + total_s
    total, done = sum(job["cost_s"] for job in jobs), 0.0
    columns = (
        TextColumn("{task.description}"),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    log = Log(lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        for job in jobs:

            def waiting(job: Job = job, done: float = done) -> None:
                if not console.is_terminal:
                    log.tell(done / total, title(job))

            progress.update(task, description=title(job))
            found.extend(run(job, deadline - time.monotonic(), waiting))
            done += job["cost_s"]
            progress.advance(task, job["cost_s"])
    return found
