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
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.core import environment
from benchmarks.core.environment import DEFAULT, TUNED
from benchmarks.report import bars, page
from benchmarks.suites import augmentation, critics, workloads
from benchmarks.suites import gradient_penalty as penalties
from benchmarks.suites.augmentation import KORNIA
from benchmarks.suites.gradient_penalty import EAGER, OURS, SHAPES, USUAL
from benchmarks.suites.networks import NETWORKS
from benchmarks.suites.registry import (
    AUGMENTATION,
    GRADIENT_PENALTY,
    PLAIN,
    SPECTRAL_NORM,
    SUITES,
    Suite,
    of_suite,
    suite_of,
    who,
)
from benchmarks.suites.spectral_norm import (
    BACKWARD,
    COMPILED,
    FORWARD,
    FUSED,
    HOOK,
    LAYER,
    PASSES,
    TORCH,
)

Event = dict[str, Any]

RESULTS = environment.ROOT / "benchmarks" / "results"
QUICK_COMPILED = ("sngan_resnet_cifar10", "biggan_128")  # compiling takes its time
QUICK_DEFAULT = ("mlp_critic", "hifigan_msd", "biggan_128")
LARGE_BYTES = 1 << 27
QUICK_COMPILED_PENALTIES = (
    penalties.Case((64, 3, 64, 64), False, 1.0),
    penalties.Case((32, 3, 256, 256), False, 1.0),
)
LARGE_PENALTY_BYTES = 1 << 26
QUICK_SECONDS = 345.0
FULL_SECONDS = 1360.0


def quick_jobs() -> Iterator[Event]:
    """Two threads; every network with tuned malloc, a few with default malloc. Compiled ones last.

    Of the penalties WGAN-GP's everywhere, R1 on contiguous gradients but the largest.
    """
    loaded = sorted(workloads.load().values(), key=lambda workload: workload.nbytes)
    for workload in loaded:
        yield _network(workload, [TORCH, LAYER, FUSED], [FORWARD, BACKWARD], TUNED, 2, 0.5)
    for shape in SHAPES:
        cases = [case for case in penalties.cases([shape]) if _in_quick(case)]
        rest = [case for case in cases if case not in QUICK_COMPILED_PENALTIES]
        yield _penalty(rest, [USUAL, EAGER, OURS], TUNED, 2, 0.5)
    for kind in (TORCH, FUSED):
        yield _memory(kind)
    yield _penalty_memory()
    for workload in loaded:
        if workload.name in QUICK_DEFAULT:
            kinds = [TORCH, LAYER, FUSED]
            yield _network(workload, kinds, [FORWARD, BACKWARD], DEFAULT, 2, 0.5)
    for case in augmentation.GEOMETRY:
        yield _augment(case, [FORWARD, BACKWARD], 2, 2.0)
    yield _augment(augmentation.COLOUR, [FORWARD, augmentation.R1], 2, 2.0)
    yield _augment_figures()
    for name in NETWORKS:
        yield _step(name, quick=True, threads=2, budget_s=2.5)
    for name in critics.CRITICS:
        yield _penalty_step(name, quick=True, budget_s=2.0, cost_s=7.0)
    yield _job("layers", passes=[FORWARD, BACKWARD], budget_s=0.05, cost_s=22.0)
    everyone = [USUAL, EAGER, COMPILED, OURS]
    yield _penalty(list(QUICK_COMPILED_PENALTIES), everyone, TUNED, 2, 0.5)
    for workload in loaded:
        if workload.name in QUICK_COMPILED:
            kinds = [TORCH, FUSED, COMPILED]
            job = _network(workload, kinds, [FORWARD, BACKWARD], TUNED, 2, 1.0)
            yield job | {"show": [COMPILED]}  # the others have their rows already


def _in_quick(case: penalties.Case) -> bool:
    return case.center == 1.0 or not (case.channels_last or case.shape == SHAPES[-1])


def full_jobs() -> Iterator[Event]:
    """Everything: every contestant and pass, both allocators, one and two threads."""
    kinds = [HOOK, TORCH, COMPILED, LAYER, FUSED]
    for workload in workloads.load().values():
        yield _network(workload, kinds, list(PASSES), TUNED, 2, 3.0)
        yield _network(workload, [HOOK, TORCH, LAYER, FUSED], list(PASSES), TUNED, 1, 1.5)
        some = [HOOK, TORCH, LAYER, FUSED]
        yield _network(workload, some, [FORWARD, BACKWARD], DEFAULT, 2, 1.5)
    for shape in SHAPES:
        cases = list(penalties.cases([shape]))
        yield _penalty(cases, [USUAL, EAGER, COMPILED, OURS], TUNED, 2, 1.0)
        yield _penalty(cases, [USUAL, EAGER, OURS], TUNED, 1, 1.0)
        if shape in SHAPES[-2:]:
            yield _penalty(cases, [USUAL, EAGER, OURS], DEFAULT, 2, 0.5)
    for kind in (TORCH, LAYER, FUSED):
        yield _memory(kind)
    yield _penalty_memory()
    for threads in (2, 1):
        for case in (*augmentation.GEOMETRY, augmentation.COLOUR):
            yield _augment(case, [FORWARD, BACKWARD, augmentation.R1], threads, 5.0)
    yield _augment_figures()
    for threads in (2, 1):
        yield _job("layers", passes=[FORWARD, BACKWARD], budget_s=0.2, cost_s=50.0, threads=threads)
    for name in NETWORKS:
        yield _step(name, quick=False, threads=2, budget_s=15.0)
    for name in critics.CRITICS:
        yield _penalty_step(name, quick=False, budget_s=12.0, cost_s=45.0)


def _job(work: str, cost_s: float, **more: Any) -> Event:
    suites = {"penalty": GRADIENT_PENALTY, "augment": AUGMENTATION}
    suite = suites.get(work.split()[0], SPECTRAL_NORM)
    common = {"suite": suite, "work": work, "allocator": TUNED, "threads": 2, "cost_s": cost_s}
    return common | more


def _penalty(
    cases: list[penalties.Case], kinds: list[str], allocator: str, threads: int, budget_s: float
) -> Event:
    compiling = COMPILED in kinds
    extra = [5.0 if case.nbytes > LARGE_PENALTY_BYTES else 0.5 for case in cases]
    each = budget_s + (4.0 if compiling else 0.0)
    return _job(
        "penalty",
        network=" and ".join(dict.fromkeys(penalties.shape_name(case.shape) for case in cases)),
        cases=[(case.shape, case.channels_last, case.center) for case in cases],
        kinds=kinds,
        passes=[BACKWARD],
        allocator=allocator,
        threads=threads,
        budget_s=budget_s,
        cost_s=(10.0 if compiling else 2.5) + each * len(cases) + sum(extra),
    )


def _penalty_memory() -> Event:
    shape = SHAPES[-1]
    return _job(
        "penalty memory",
        network=penalties.shape_name(shape),
        shape=shape,
        kinds=[USUAL, OURS],
        allocator=DEFAULT,
        cost_s=4.0,
    )


def _penalty_step(name: str, **more: Any) -> Event:
    return _job("penalty step", network=name, kinds=list(critics.STEPS), **more)


def _augment(case: augmentation.Case, passes: list[str], threads: int, budget_s: float) -> Event:
    return _job(
        "augment",
        network=case.name,
        case=(case.preset, case.p, case.batch, case.size),
        kinds=[k for k in augmentation.LABELS if k != KORNIA or case in augmentation.GEOMETRY],
        passes=passes,
        threads=threads,
        budget_s=budget_s,
        cost_s=4.0 + budget_s * len(passes),
    )


def _augment_figures() -> Event:
    return _job(
        "augment figures",
        network="ADAPipe",
        allocator=DEFAULT,
        budget_s=2.0,
        sizes=[(64, 16), (256, 4), (1024, 1)],
        cost_s=10.0,
    )


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
    kinds = [PLAIN, TORCH, LAYER, FUSED]
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
    what = {
        "network": "weights",
        "step": "whole step",
        "memory": "peak memory",
        "penalty": "penalty",
        "penalty step": "whole step with penalties",
        "penalty memory": "peak memory of the penalty",
        "augment": "augmentation",
        "augment figures": "cycles, accuracy, memory",
    }
    name = job.get("network", "every weight shape")
    return f"{name} ({what.get(job['work'], 'per layer')}, {job['allocator']} malloc)"


def run(job: Event, limit_s: float) -> Iterator[Event]:
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
            yield json.loads(line)
    if process.returncode != 0:
        yield _broke_off(job, reason)


def _broke_off(job: Event, reason: str) -> Event:
    return {
        "event": "left out",
        "suite": job["suite"],
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
    suite = suite_of(row)
    text = f"{1e3 * row['seconds']['median']:.3g} ms"
    ratio = row["times_faster_than"].get(suite.baseline)
    if row["kind"] != suite.baseline and ratio:
        text += f"  [bold]{ratio['median']:.1f}x[/]"
    if row["form"]:
        text += f" {escape(row['form'])}"
    if row["error"] > suite.tolerance:
        text += f"  [red]off by {row['error']:.0e}[/]"
    return text + ("" if row["calm"] else " *")


def rows_table(events: list[Event], suite: Suite, allocator: str, threads: int) -> Table | None:
    """A line for each network and pass, a column for each contestant."""
    rows = [
        e
        for e in of_suite(events, suite)
        if e["event"] == "row" and e["allocator"] == allocator and e["threads"] == threads
    ]
    if not rows:
        return None
    table = Table(title=f"{suite.subject}, {allocator} malloc, {threads} thread(s)")
    table.add_column("what")
    table.add_column("pass")
    kinds = [kind for kind in suite.labels if any(row["kind"] == kind for row in rows)]
    for kind in kinds:
        table.add_column(suite.labels[kind], justify="right")
    table.add_column("our IQR", justify="right")
    table.add_column("GB/s (copy)", justify="right")
    for network, which in dict.fromkeys((row["network"], row["pass"]) for row in rows):
        found = {r["kind"]: r for r in rows if (r["network"], r["pass"]) == (network, which)}
        cells = [_time_and_ratio(found.get(kind)) for kind in kinds]
        ours = found.get(suite.ours)
        if ours:
            seconds = ours["seconds"]
            cells.append(f"{1e3 * (seconds['q75'] - seconds['q25']):.2g} ms")
            speeds = ours["bytes_per_second"] / 1e9, ours["copy_bandwidth"] / 1e9
            cells.append(f"{speeds[0]:.0f} ({speeds[1]:.0f})")
        table.add_row(network, which, *cells)
    return table


def step_table(events: list[Event], suite: Suite) -> Table | None:
    """Whole steps: time, share of the suite's subject, and peak memory where it was measured."""
    mine = of_suite(events, suite)
    steps = [e for e in mine if e["event"] == "step"]
    if not steps:
        return None
    peaks = page.step_peaks(mine)
    table = Table(title=f"A whole critic step: time, and the share of it. {suite.title}")
    for name in ("network", "batch"):
        table.add_column(name)
    kinds = list(dict.fromkeys(step["kind"] for step in steps))
    for kind in kinds:
        table.add_column(suite.labels.get(kind, kind), justify="right")
    for network, threads in dict.fromkeys((s["network"], s["threads"]) for s in steps):
        found = {s["kind"]: s for s in steps if (s["network"], s["threads"]) == (network, threads)}
        first = next(iter(found.values()))
        cells = []
        for kind in kinds:
            step = found.get(kind)
            text = f"{1e3 * step['seconds']['median']:.4g} ms" if step else "[dim]-[/]"
            if step and kind != PLAIN:
                text += f"  [bold]{100 * step['share']:.1f} %[/]"
            if (network, kind) in peaks:
                text += f"  {peaks[network, kind] / 1e6:.0f} MB"
            cells.append(text)
        table.add_row(first["title"], page.batch(first), *cells)
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
    for suite in SUITES.values():
        tables = [rows_table(events, suite, allocator, threads) for allocator, threads in setups]
        for table in [*tables, step_table(events, suite)]:
            if table is not None:
                console.print(table)
    for event in events:
        if event["event"] == "reduction":
            console.print(page.reduction_sentence(event))
    if any(event["event"] == "figure" for event in events):
        for sentence in page.augmentation_sentences(events):
            console.print(sentence)
    console.print(bars_table(report["bars"]))
    for event in events:
        if event["event"] == "left out":
            console.print(f"[yellow]left out[/] {event['network']}, {who(event)}: ", end="")
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
    modes.add_argument("--quick", action="store_true", help="within 6 minutes (the default)")
    modes.add_argument("--full", action="store_true", help="everything, about 23 minutes")
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
