"""The report in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.core.contest import PLAIN
from benchmarks.core.events import (
    CompiledStep,
    Event,
    Figure,
    GradientAccuracy,
    LeftOut,
    MethodStep,
    Reduction,
    Row,
    TrainingStep,
    only,
)
from benchmarks.report import words
from benchmarks.suites import first_order
from benchmarks.suites.registry import SUITES, Suite, suite_of, who

Facts = dict[str, Any]


def _time_and_ratio(row: Row | None) -> str:
    if row is None:
        return "[dim]-[/]"
    suite = suite_of(row)
    text = f"{1e3 * row.seconds.median:.3g} ms"
    ratio = row.times_faster_than.get(suite.baseline)
    if row.kind != suite.baseline and ratio:
        text += f"  [bold]{ratio.median:.1f}x[/]"
    if row.form:
        text += f" {escape(row.form)}"
    if row.error > suite.tolerance:
        text += f"  [red]off by {row.error:.0e}[/]"
    return text + ("" if row.calm else " *")


def rows_table(events: list[Event], suite: Suite, allocator: str, threads: int) -> Table | None:
    """A line for each network and pass, a column for each contestant."""
    rows = only(events, Row, suite=suite.name, allocator=allocator, threads=threads)
    if not rows:
        return None
    table = Table(title=f"{suite.subject}, {allocator} malloc, {threads} thread(s)")
    table.add_column("what")
    table.add_column("pass")
    kinds = [kind for kind in suite.labels if any(row.kind == kind for row in rows)]
    for kind in kinds:
        table.add_column(suite.labels[kind], justify="right")
    table.add_column("our IQR", justify="right")
    table.add_column("GB/s (copy)", justify="right")
    for network, which in dict.fromkeys((row.network, row.which) for row in rows):
        found = {r.kind: r for r in rows if (r.network, r.which) == (network, which)}
        cells = [_time_and_ratio(found.get(kind)) for kind in kinds]
        ours = found.get(suite.ours)
        if ours:
            seconds = ours.seconds
            cells.append(f"{1e3 * (seconds.q75 - seconds.q25):.2g} ms")
            speeds = ours.bytes_per_second / 1e9, ours.copy_bandwidth / 1e9
            cells.append(f"{speeds[0]:.0f} ({speeds[1]:.0f})")
        table.add_row(network, which, *cells)
    return table


def step_table(events: list[Event], suite: Suite) -> Table | None:
    """Whole steps: time, share of the suite's subject, and peak memory where it was measured."""
    steps = only(events, TrainingStep, suite=suite.name)
    if not steps:
        return None
    peaks = words.step_peaks([event for event in events if event.suite == suite.name])
    table = Table(title=f"A whole critic step: time, and the share of it. {suite.title}")
    for name in ("network", "batch"):
        table.add_column(name)
    kinds = list(dict.fromkeys(step.kind for step in steps))
    for kind in kinds:
        table.add_column(suite.labels.get(kind, kind), justify="right")
    for network, threads in dict.fromkeys((s.network, s.threads) for s in steps):
        found = {s.kind: s for s in steps if (s.network, s.threads) == (network, threads)}
        first = next(iter(found.values()))
        cells = []
        for kind in kinds:
            step = found.get(kind)
            text = f"{1e3 * step.seconds.median:.4g} ms" if step else "[dim]-[/]"
            if step and kind != PLAIN:
                text += f"  [bold]{100 * step.share:.1f} %[/]"
            if (network, kind) in peaks:
                text += f"  {peaks[network, kind] / 1e6:.0f} MB"
            cells.append(text)
        table.add_row(first.title, words.batch(first), *cells)
    return table


def _plain_table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    for cells in rows:
        table.add_row(*cells)
    return table


def bars_table(verdicts: list[Facts]) -> Table:
    """Every bar, as measured."""
    table = Table(title="Bars")
    for name in ("what", "where"):
        table.add_column(name)
    for name in ("bar", "measured"):
        table.add_column(name, justify="right")
    table.add_column("")
    color = {True: "green", False: "red", None: "dim"}
    for bar in verdicts:
        sign = "<=" if bar["at_most"] else ">="
        measured = "" if bar["measured"] is None else f"{bar['measured']:.2f}"
        mark = f"[{color[bar['reached']]}]{words.verdict_mark(bar)}[/]"
        where = bar["subject"] + (f" ({bar['note']})" if bar["note"] else "")
        table.add_row(bar["group"], where, f"{sign} {bar['bar']:g}", measured, mark)
    return table


def show(report: Facts, console: Console) -> None:
    """The report in the terminal."""
    events = report["events"]
    rows = only(events, Row)
    setups = dict.fromkeys((row.allocator, row.threads) for row in rows)
    for suite in SUITES.values():
        tables = [rows_table(events, suite, allocator, threads) for allocator, threads in setups]
        for table in [*tables, step_table(events, suite)]:
            if table is not None:
                console.print(table)
    for event in only(events, Reduction):
        console.print(words.reduction_sentence(event))
    if only(events, MethodStep):
        title = f"A whole step without second derivatives: {first_order.STEP_TITLE}"
        console.print(_plain_table(title, words.METHOD_COLUMNS, words.method_rows(events)))
    if only(events, CompiledStep):
        rows_of = words.compiled_rows(events)
        console.print(_plain_table(words.COMPILED_TITLE, words.COMPILED_COLUMNS, rows_of))
    if only(events, GradientAccuracy):
        title = "R1's gradient without second derivatives, against the exact one"
        console.print(_plain_table(title, words.ACCURACY_COLUMNS, words.accuracy_rows(events)))
    if only(events, Figure):
        for sentence in words.augmentation_sentences(events):
            console.print(sentence)
    console.print(bars_table(report["bars"]))
    for gone in only(events, LeftOut):
        console.print(f"[yellow]left out[/] {gone.network}, {who(gone)}: ", end="")
        console.print(gone.reason, markup=False)
    if not all(row.calm for row in rows):
        console.print("* others used the processors during most samples; treat with care")
