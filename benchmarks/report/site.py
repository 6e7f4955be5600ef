"""`python -m benchmarks.report.site`: writes the tables of docs/benchmarks.md and of README.md.

Both are made of benchmarks/history/; a test looks whether they are what the files say.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from benchmarks.core.contest import BACKWARD, FORWARD, OURS
from benchmarks.core.environment import DEFAULT, ROOT, TUNED
from benchmarks.core.events import (
    GRADIENT_PENALTY,
    SPECTRAL_NORM,
    Event,
    Figure,
    Reduction,
    Row,
    only,
)
from benchmarks.report import findings, history, words
from benchmarks.report.words import Table
from benchmarks.suites import augmentation
from benchmarks.suites.registry import SUITES, suite_of

PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
BEGIN = "<!-- from benchmarks/history: python -m benchmarks.report.site -->\n"
END = "<!-- until here -->\n"

Facts = dict[str, Any]


def page(reports: list[Facts]) -> str:
    """The sections of docs/benchmarks.md."""
    return "\n".join(part for report in reports for part in machine(report))


def machine(report: Facts) -> Iterator[str]:
    """The sections of a machine."""
    events, facts = report["events"], report["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    caches = ", ".join(f"{name} {size}" for name, size in facts["caches"].items())
    yield f"## {report['machine']}\n"
    yield (
        f"{versions}; {facts['torch_isa']}; {caches}; {facts['memory_gib']:.0f} GiB; "
        f"{facts['libc']}; {report['mode']} mode; {str(report['started'])[:10]}.\n"
    )
    yield "".join(f"- {_text(line)}\n" for line in words.headlines(report))
    if groups := findings.against(events):
        table = words.against_table(groups)
        heading, _, said = table.title.partition(": ")
        yield f"### {heading}\n"
        yield drawn(replace(table, title=said.capitalize()))
        yield "### Where gankernels is slower\n"
        lost = [f"- {_text(words.loss(ratio))}\n" for ratio in findings.slower(groups)]
        yield "".join(lost) or "Nowhere here.\n"
    for suite in SUITES.values():
        yield f"### {suite.title}\n"
        for part in words.of_suite(events, suite):
            yield drawn(part) if isinstance(part, Table) else f"{_text(part)}\n"
        if figures := only(events, Figure, suite=suite.name):
            found = [[e.what, e.network, f"{e.value:.3g}"] for e in figures]
            yield drawn(Table("Figures", ["what", "where", "measured"], found, 2))
    if left_out := list(words.left_out_lines(events)):
        yield "### Left out\n"
        yield "".join(f"- {_text(line)}\n" for line in left_out)


def drawn(table: Table) -> str:
    """A table in Markdown, without columns in which nothing stands."""
    columns = [i for i in range(len(table.header)) if any(row[i] for row in table.rows)]
    lines = [[_text(row[i]) for i in columns] for row in (table.header, *table.rows)]
    rule = ["---" if i < table.left else "---:" for i in columns]
    rows = [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]
    return "\n".join([f"{_text(table.title)}.\n", *rows, ""])


def _text(cell: str) -> str:
    return re.sub(r"([*|_<])", r"\\\1", cell)


def readme(reports: list[Facts]) -> str:
    """The table of README.md, over all machines."""
    events = [event for report in reports for event in report["events"]]
    rows = [row for row in only(events, Row) if row.kind == SUITES[row.suite].ours]
    norms = only(rows, Row, suite=SPECTRAL_NORM, which=BACKWARD)
    tuned = [row for row in norms if row.allocator == TUNED]
    most = max(row.nbytes for row in norms)
    largest = [row for row in norms if (row.nbytes, row.allocator) == (most, DEFAULT)]
    color = only(rows, Row, network=augmentation.COLOR.name)
    by_pass = [[row for row in color if row.which == which] for which in (FORWARD, augmentation.R1)]
    shares = [100 * event.shares[OURS] for event in only(events, Reduction)]
    found = {
        f"spectral norm of {len({row.network for row in tuned})} discriminators, forward + "
        "backward, over torch's parametrization": _range(tuned),
        f"the same of {most / 2**20:.0f} MiB of weights, with glibc's default malloc": _range(
            largest
        ),
        "R1 and WGAN-GP's reduction, over `view(B, -1).norm(2, 1)`": _range(
            only(rows, Row, suite=GRADIENT_PENALTY, allocator=TUNED)
        ),
        "ADA's `bgc`, 256 pixels, forward; R1 through it; over the pipeline in plain PyTorch": (
            "; ".join(map(_range, by_pass))
        ),
        "a critic's whole step, of which spectral norm is one part": _of_steps(events),
        f"a critic's whole step with R1, of which the reduction is {min(shares):.2f} to "
        f"{max(shares):.2f} %": "nothing to see",
    }
    lines = ["| measured, over what people use | faster |", "|---|---|"]
    lines += [f"| {what} | {times} |" for what, times in found.items()]
    return "\n".join([*lines, "", *map(_measured_on, reports), ""])


def _measured_on(report: Facts) -> str:
    (slower,) = (line for line in words.headlines(report) if line.startswith("Slower"))
    isa, torch = report["environment"]["torch_isa"], report["versions"]["torch"]
    return f"{report['machine']}, {isa}, torch {torch}: s{slower[1:]}."


def _of_steps(events: list[Event]) -> str:
    ours = f"whole step, {SUITES[SPECTRAL_NORM].labels[SUITES[SPECTRAL_NORM].ours]}"
    (group,) = (group for group in findings.against(events) if group.ours == ours)
    return words.range_of(group)


def _range(rows: list[Row]) -> str:
    """The lowest and the highest median, if possible of those that were not disturbed."""
    calm = [row for row in rows if row.calm] or rows
    ratios = [row.times_faster_than[suite_of(row).baseline].median for row in calm]
    return " to ".join(dict.fromkeys(map(words.times, (min(ratios), max(ratios)))))


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    reports = history.kept()
    for path, text in ((PAGE, page(reports)), (README, readme(reports))):
        written = path.read_text()
        begin, end = (written.index(mark) for mark in (BEGIN, END))
        path.write_text(f"{written[:begin]}{BEGIN}\n{text}\n{written[end:]}")


if __name__ == "__main__":
    main()
