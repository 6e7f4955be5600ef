"""`python -m benchmarks.report [--quick|--full] [--out DIR]`: measures, shows and writes."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks import bars, environment, page, workloads
from benchmarks.contestants import (
    BACKWARD,
    BASELINE,
    COMPILED,
    FORWARD,
    FUSED,
    HOOK,
    LABELS,
    LAYER,
    PASSES,
    TOLERANCE,
    TORCH,
)
from benchmarks.environment import DEFAULT, TUNED
from benchmarks.networks import NETWORKS

Event = dict[str, Any]

RESULTS = Path(__file__).with_name("results")
QUICK_COMPILED = ("sngan_resnet_cifar10", "biggan_128")  # compiling takes its time
QUICK_DEFAULT = ("mlp_critic", "hifigan_msd", "biggan_128")
LARGE_BYTES = 1 << 27
QUICK_SECONDS = 285.0
FULL_SECONDS = 1180.0


def quick_jobs() -> Iterator[Event]:
    """Two threads; every network with tuned malloc, a few with default malloc. Long ones last."""
    loaded = sorted(workloads.load().values(), key=lambda workload: workload.nbytes)
    for workload in loaded:
        yield _network(workload, [TORCH, LAYER, FUSED], [FORWARD, BACKWARD], TUNED, 2, 1.5)
    for kind in (TORCH, FUSED):
        yield _memory(kind)
    for workload in loaded:
        if workload.name in QUICK_DEFAULT:
            kinds = [TORCH, LAYER, FUSED]
            yield _network(workload, kinds, [FORWARD, BACKWARD], DEFAULT, 2, 1.5)
    for name in NETWORKS:
        yield _step(name, quick=True, threads=2, budget_s=6.0)
    yield _job("layers", passes=[FORWARD, BACKWARD], budget_s=0.1, cost_s=35.0)
    for workload in loaded:
        if workload.name in QUICK_COMPILED:
            kinds = [TORCH, FUSED, COMPILED]
            job = _network(workload, kinds, [FORWARD, BACKWARD], TUNED, 2, 1.5)
            yield job | {"show": [COMPILED]}  # the others have their rows already


def full_jobs() -> Iterator[Event]:
    """Everything: every contestant and pass, both allocators, one and two threads."""
    kinds = [HOOK, TORCH, COMPILED, LAYER, FUSED]
    for workload in workloads.load().values():
        yield _network(workload, kinds, list(PASSES), TUNED, 2, 5.0)
        yield _network(workload, [HOOK, TORCH, LAYER, FUSED], list(PASSES), TUNED, 1, 3.0)
        some = [HOOK, TORCH, LAYER, FUSED]
        yield _network(workload, some, [FORWARD, BACKWARD], DEFAULT, 2, 3.0)
    for kind in (TORCH, LAYER, FUSED):
        yield _memory(kind)
    for threads in (2, 1):
        yield _job("layers", passes=[FORWARD, BACKWARD], budget_s=0.3, cost_s=70.0, threads=threads)
    for name in NETWORKS:
        yield _step(name, quick=False, threads=2, budget_s=30.0)


def _job(work: str, cost_s: float, **more: Any) -> Event:
    return {"work": work, "allocator": TUNED, "threads": 2, "cost_s": cost_s} | more


def _network(
    workload: workloads.Workload,
    kinds: list[str],
    passes: list[str],
    allocator: str,
    threads: int,
    budget_s: float,
) -> Event:
    large = workload.nbytes > LARGE_BYTES
    budget_s *= 2 if large else 1
    extra = (12.0 if large else 2.0) + (40.0 if COMPILED in kinds else 0.0)
    return _job(
        "network",
        network=workload.name,
        kinds=kinds,
        passes=passes,
        allocator=allocator,
        threads=threads,
        budget_s=budget_s,
        cost_s=extra + budget_s * len(passes),
    )


def _memory(kind: str) -> Event:
    return _job("memory", network="biggan_128", kind=kind, allocator=DEFAULT, cost_s=5.0)


def _step(name: str, quick: bool, threads: int, budget_s: float) -> Event:
    kinds = ["plain", TORCH, LAYER, FUSED]
    return _job(
        "step",
        network=name,
        kinds=kinds,
        quick=quick,
        threads=threads,
        budget_s=budget_s,
        cost_s=budget_s + 4.0,
    )


def title(job: Event) -> str:
    """What a job measures, for the progress bar."""
    what = {"network": "weights", "step": "whole step", "memory": "peak memory"}
    name = job.get("network", "every weight shape")
    return f"{name} ({what.get(job['work'], 'per layer')}, {job['allocator']} malloc)"


def run(job: Event, limit_s: float) -> Iterator[Event]:
    """Runs a job in a process of its own: its events, and why it broke off if it did."""
    if limit_s < 3.0:
        yield _broke_off(job, "not started: this mode's time was up")
        return
    command = [sys.executable, "-m", "benchmarks.measure", json.dumps(job)]
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
            yield json.loads(line)
    if process.returncode != 0:
        yield _broke_off(job, reason)


def _broke_off(job: Event, reason: str) -> Event:
    return {
        "event": "left out",
        "network": job.get("network", job["work"]),
        "kind": job.get("kind", "the rest"),
        "reason": reason,
        "allocator": job["allocator"],
        "threads": job["threads"],
    }


def measure(jobs: list[Event], total_s: float, console: Console) -> list[Event]:
    """Runs every job for which there is time, behind a progress bar."""
    events: list[Event] = []
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
            events.extend(run(job, deadline - time.monotonic()))
            progress.advance(task, job["cost_s"])
    return events


def collect(jobs: list[Event], mode: str, total_s: float, console: Console) -> Event:
    """The whole report, as data."""
    started = time.monotonic()
    report: Event = {
        "mode": mode,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment.facts(),
    }
    report["events"] = measure(jobs, total_s, console)
    report["bars"] = [verdict.to_dict() for verdict in bars.verdicts(report["events"])]
    report["seconds"] = time.monotonic() - started
    return report


def _time_and_ratio(row: Event | None) -> str:
    if row is None:
        return "[dim]-[/]"
    text = f"{1e3 * row['seconds']['median']:.3g} ms"
    ratio = row["times_faster_than"].get(BASELINE)
    if row["kind"] != BASELINE and ratio:
        text += f"  [bold]{ratio['median']:.1f}x[/]"
    if row["error"] > TOLERANCE:
        text += f"  [red]wrong by {row['error']:.0e}[/]"
    return text + ("" if row["calm"] else " *")


def network_table(events: list[Event], allocator: str, threads: int) -> Table | None:
    """A line for each network and pass, a column for each contestant."""
    rows = [
        e
        for e in events
        if e["event"] == "row" and e["allocator"] == allocator and e["threads"] == threads
    ]
    if not rows:
        return None
    table = Table(title=f"All weights of a network, {allocator} malloc, {threads} thread(s)")
    table.add_column("network")
    table.add_column("pass")
    kinds = [kind for kind in LABELS if any(row["kind"] == kind for row in rows)]
    for kind in kinds:
        table.add_column(LABELS[kind], justify="right")
    table.add_column("fused IQR", justify="right")
    table.add_column("GB/s (copy)", justify="right")
    for network, which in dict.fromkeys((row["network"], row["pass"]) for row in rows):
        found = {r["kind"]: r for r in rows if (r["network"], r["pass"]) == (network, which)}
        cells = [_time_and_ratio(found.get(kind)) for kind in kinds]
        fused = found.get(FUSED)
        if fused:
            seconds = fused["seconds"]
            cells.append(f"{1e3 * (seconds['q75'] - seconds['q25']):.2g} ms")
            speeds = fused["bytes_per_second"] / 1e9, fused["copy_bandwidth"] / 1e9
            cells.append(f"{speeds[0]:.0f} ({speeds[1]:.0f})")
        table.add_row(network, which, *cells)
    return table


def step_table(events: list[Event]) -> Table | None:
    """Share of a whole discriminator step."""
    steps = [e for e in events if e["event"] == "step"]
    if not steps:
        return None
    table = Table(title="A whole discriminator step: time, and spectral norm's share of it")
    for name in ("network", "batch"):
        table.add_column(name)
    kinds = list(dict.fromkeys(step["kind"] for step in steps))
    for kind in kinds:
        table.add_column(LABELS.get(kind, "no spectral norm"), justify="right")
    for network, threads in dict.fromkeys((s["network"], s["threads"]) for s in steps):
        found = {s["kind"]: s for s in steps if (s["network"], s["threads"]) == (network, threads)}
        first = next(iter(found.values()))
        batch = str(first["batch"])
        if first["batch"] != first["full_batch"]:
            batch += f" (authors: {first['full_batch']})"
        cells = []
        for kind in kinds:
            step = found.get(kind)
            text = f"{1e3 * step['seconds']['median']:.4g} ms" if step else "[dim]-[/]"
            if step and kind != "plain":
                text += f"  [bold]{100 * step['share']:.1f} %[/]"
            cells.append(text)
        table.add_row(first["title"], batch, *cells)
    return table


def bars_table(verdicts: list[Event]) -> Table:
    """Every bar, as measured."""
    table = Table(title="Bars")
    for name in ("what", "where"):
        table.add_column(name)
    for name in ("bar", "measured"):
        table.add_column(name, justify="right")
    table.add_column("")
    colour = {True: "green", False: "red", None: "dim"}
    for bar in verdicts:
        sign = "<=" if bar["at_most"] else ">="
        measured = "" if bar["measured"] is None else f"{bar['measured']:.2f}"
        mark = f"[{colour[bar['reached']]}]{page.verdict_mark(bar)}[/]"
        where = bar["subject"] + (f" ({bar['note']})" if bar["note"] else "")
        table.add_row(bar["group"], where, f"{sign} {bar['bar']:g}", measured, mark)
    return table


def show(report: Event, console: Console) -> None:
    """The report in the terminal."""
    events = report["events"]
    setups = dict.fromkeys((e["allocator"], e["threads"]) for e in events if e["event"] == "row")
    tables = [network_table(events, allocator, threads) for allocator, threads in setups]
    for table in [*tables, step_table(events), bars_table(report["bars"])]:
        if table is not None:
            console.print(table)
    for event in events:
        if event["event"] == "left out":
            who = LABELS.get(event["kind"], event["kind"])
            console.print(f"[yellow]left out[/] {event['network']}, {who}: ", end="")
            console.print(event["reason"], markup=False)
    if any(not e["calm"] for e in events if e["event"] == "row"):
        console.print("* others used the processors during most samples; treat with care")


def write(report: Event, out: Path) -> tuple[Path, Path]:
    """results.json and report.html in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    data, html = out / "results.json", out / "report.html"
    data.write_text(json.dumps(report, indent=1))
    html.write_text(page.render(report))
    return data, html


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--quick", action="store_true", help="within 5 minutes (the default)")
    modes.add_argument("--full", action="store_true", help="everything, about 20 minutes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the report")
    chosen = parser.parse_args(arguments)
    console = Console()
    jobs = list(full_jobs() if chosen.full else quick_jobs())
    total_s = FULL_SECONDS if chosen.full else QUICK_SECONDS
    report = collect(jobs, "full" if chosen.full else "quick", total_s, console)
    show(report, console)
    data, html = write(report, chosen.out)
    console.print(f"\nreport  {html}\ndata    {data}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
