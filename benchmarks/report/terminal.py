"""The report in the terminal: whole names and numbers in whatever width there is."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.core.events import (
    CompiledStep,
    Event,
    Figure,
    GradientAccuracy,
    MethodStep,
    Reduction,
    Row,
    TrainingStep,
    only,
)
from benchmarks.report import findings, words
from benchmarks.suites import first_order
from benchmarks.suites.registry import SUITES, Suite, who

Facts = dict[str, Any]
GAP, HARD_SPACE = "  ", "\N{NO-BREAK SPACE}"
SUMMARY_LINES = 10


def table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    left: int = 1,
    optional: Collection[str] = (),
) -> list[str]:
    """A table as lines of at most `width`; its first `left` columns are flush left.

    Where it is too wide it takes the short names, then goes without the optional columns, the last
    first; then a row has its first cells on a line of their own, and the others below, each named.
    """
    lines = [[*header], *([*row] for row in rows)]
    if _width(lines) > width:
        lines = [[words.short(cell) for cell in line] for line in lines]
    for column in reversed(range(len(header))):
        if _width(lines) > width and header[column] in optional:
            lines = [line[:column] + line[column + 1 :] for line in lines]
    made = ["", *wrap(title, width)]
    if _width(lines) <= width:
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            cells = [
                cell.ljust(w) if i < left else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ]
            made.append(GAP.join(cells).rstrip())
        return made
    for line in lines[1:]:
        made += wrap(", ".join(line[:left]), width)
        named = zip(lines[0][left:], line[left:], strict=True)
        # A name and its number stay together.
        items = [f"{name} {cell}".replace(" ", HARD_SPACE) for name, cell in named if cell]
        made += [GAP + part for part in wrap(", ".join(items), width - len(GAP))]
    return [line.replace(HARD_SPACE, " ") for line in made]


def wrap(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of whole words: neither a long one nor one with a hyphen is broken."""
    return textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _width(lines: list[list[str]]) -> int:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return sum(widths) + len(GAP) * (len(widths) - 1)


def rows_table(
    events: list[Event], suite: Suite, allocator: str, threads: int, width: int
) -> list[str]:
    """A line for each network and pass: the baseline's time, then times faster than that."""
    rows = only(events, Row, suite=suite.name, allocator=allocator, threads=threads)
    if not rows:
        return []
    present = {row.kind for row in rows}
    kinds = [kind for kind in suite.labels if kind in present]
    passes = dict.fromkeys(row.which for row in rows)
    only_pass = f", {next(iter(passes))}" if len(passes) == 1 else ""
    header = ["what", *([] if only_pass else ["pass"]), *(suite.labels[kind] for kind in kinds)]
    optional = ["quartiles", "GB/s (copy)", "eager form"]
    forms = any(row.form for row in rows)
    body = []
    for network, which in dict.fromkeys((row.network, row.which) for row in rows):
        found = {r.kind: r for r in rows if (r.network, r.which) == (network, which)}
        cells = [network, *([] if only_pass else [which])]
        cells += [_cell(found.get(kind), suite) for kind in kinds]
        ours = found.get(suite.ours)
        ratio = ours.times_faster_than.get(suite.baseline) if ours else None
        cells.append(words.quartiles(ratio) if ratio else "")
        speeds = (ours.bytes_per_second / 1e9, ours.copy_bandwidth / 1e9) if ours else None
        cells.append(f"{speeds[0]:.0f} ({speeds[1]:.0f})" if speeds else "")
        body.append(cells + [next((r.form for r in found.values() if r.form), "")] * forms)
    title = (
        f"{suite.subject}{only_pass}, {allocator} malloc, {threads} thread(s): "
        f"ms of {suite.labels[suite.baseline]}, times faster than it of the others; quartiles of "
        f"{suite.labels[suite.ours]}"
    )
    header += [*optional[:2], *optional[2:][:forms]]
    lines = table(title, header, body, width, 1 if only_pass else 2, optional)
    wrong = {who(row): row for row in rows if row.error > suite.tolerance}
    for name, row in wrong.items():
        lines += wrap(f"{name} is off by {row.error:.0e} at {row.network}", width)
    return lines


def _cell(row: Row | None, suite: Suite) -> str:
    if row is None:
        return "-"
    ratio = row.times_faster_than.get(suite.baseline)
    if row.kind == suite.baseline or ratio is None:
        text = f"{words.milliseconds(row.seconds.median)} ms"
    else:
        text = words.times(ratio.median)
    return text + ("" if row.calm else "*")


def steps_table(events: list[Event], suite: Suite, width: int) -> list[str]:
    """Whole steps: time, share of the suite's subject, and peak memory where it was measured."""
    steps = only(events, TrainingStep, suite=suite.name)
    if not steps:
        return []
    peaks = words.step_peaks([event for event in events if event.suite == suite.name])
    body = []
    for step in steps:
        peak = peaks.get((step.network, step.kind))
        body.append(
            [
                f"{step.network}, {step.batch}",
                suite.labels.get(step.kind, step.kind) + words.mark(step.calm, step.seconds),
                words.milliseconds(step.seconds.median),
                words.share(step),
                "" if peak is None else f"{peak / 1e6:.0f}",
            ]
        )
    title = f"A whole critic step, and the share in it. {suite.title}"
    return table(
        title, ["network, batch", "who", "ms", "share (quartiles)", "peak MB"], body, width, 2
    )


def bars_table(verdicts: list[Facts], width: int) -> list[str]:
    """Every bar, as measured."""
    body = []
    for bar in verdicts:
        measured = "" if bar["measured"] is None else f"{bar['measured']:.2f}"
        sign = "<=" if bar["at_most"] else ">="
        what = f"{bar['group']}: {bar['subject']}"
        body.append([what, f"{sign} {bar['bar']:g}", measured, words.verdict_mark(bar)])
    return table("Bars", ["what", "bar", "measured", ""], body, width)


def tables(report: Facts, width: int) -> Iterator[list[str]]:
    """All that is shown above the summary."""
    events = report["events"]
    rows = only(events, Row)
    setups = dict.fromkeys((row.allocator, row.threads) for row in rows)
    for suite in SUITES.values():
        for allocator, threads in setups:
            yield rows_table(events, suite, allocator, threads, width)
        yield steps_table(events, suite, width)
    for event in only(events, Reduction):
        yield wrap(words.reduction_sentence(event), width)
    if only(events, MethodStep):
        title = f"A whole step without second derivatives: {first_order.STEP_TITLE}"
        yield table(title, words.METHOD_COLUMNS, words.method_rows(events), width)
    if only(events, CompiledStep):
        found = words.compiled_rows(events)
        yield table(words.COMPILED_TITLE, words.COMPILED_COLUMNS, found, width, 1, ["first call s"])
    if only(events, GradientAccuracy):
        title = "R1's gradient without second derivatives: error and cosine against the exact one"
        found = words.accuracy_rows(events)
        yield table(title, words.ACCURACY_COLUMNS, found, width, 2, ["its cosine"])
    if only(events, Figure):
        for sentence in words.AUGMENTATION_SENTENCES:
            yield wrap(sentence, width)
    if "bars" in report:
        yield bars_table(report["bars"], width)
    groups = findings.against(events)
    title = "Against each alternative: lowest to highest median, and what the quartiles say"
    if groups:
        found = words.against_rows(groups)
        yield table(title, words.AGAINST_COLUMNS, found, width, 2, words.AGAINST_COLUMNS[4:])
    for ratio in findings.slower(groups):
        yield wrap(words.loss(ratio), width, GAP)
    for line in words.left_out_lines(events):
        yield wrap(line, width, GAP)
    if not all(row.calm for row in rows):
        yield wrap("* others used the processors during most samples", width)


def summary(report: Facts, files: Sequence[Path], width: int) -> list[str]:
    """The last lines, ten at most: what is faster by how much, where we lose, the report."""
    groups = findings.against(report["events"])
    lines = []
    for suite in SUITES.values():
        mine = suite.title, suite.labels[suite.ours], suite.labels[suite.baseline]
        for group in groups:
            if (group.suite, group.ours, group.other) == mine:
                known = f" as fast as {group.other}" if group.range else ""
                lines.append(f"{group.suite}: {words.range_of(group)}{known}")
    lost, judged = findings.slower(groups), [r for g in groups for r in g.ratios if r.calm]
    if judged:
        lines.append(f"Slower in {len(lost)} of {len(judged)} comparisons")
    lines += [f"The most: {words.loss(lost[0])}"] if lost else []
    disturbed = sum(group.count("disturbed") for group in groups)
    lines += [f"Disturbed by others, and not counted: {disturbed}"] if disturbed else []
    wrapped = [part for line in lines for part in wrap(line, width)]
    # A path is never broken: it is copied, and the terminal wraps it by itself.
    return [*wrapped[: SUMMARY_LINES - len(files)], *map(str, files)]


def show(report: Facts, console: Console) -> None:
    """The report in the terminal."""
    for lines in tables(report, console.width):
        say(lines, console)


def say(lines: Sequence[str], console: Console) -> None:
    """Lines as they are: nothing is wrapped, colored or read as markup."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
