"""The report in the terminal: whole names and numbers in whatever width there is."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.report import words
from benchmarks.report.words import Table, contents, headlines

Facts = dict[str, Any]
GAP, HARD_SPACE = "  ", "\N{NO-BREAK SPACE}"
SUMMARY_LINES = 10


def drawn(table: Table, width: int) -> list[str]:
    """A table as lines of at most `width`, names flush left.

    Where it is too wide it takes the short names, then goes without the optional columns, the last
    first; then a row has its first cells on a line of their own, and the others below, each named.
    """
    header, left = table.header, table.left
    lines = [[*header], *([*row] for row in table.rows)]
    if _width(lines) > width:
        lines = [[words.short(cell) for cell in line] for line in lines]
    for column in reversed(range(len(header))):
        if _width(lines) > width and header[column] in table.optional:
            lines = [line[:column] + line[column + 1 :] for line in lines]
    made = ["", *wrap(table.title, width)]
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


def lines_of(report: Facts, width: int) -> Iterator[list[str]]:
    """All that is shown above the summary."""
    for part in contents(report):
        if isinstance(part, Table):
            yield drawn(part, width)
        else:
            yield wrap(part, width, GAP)


def summary(report: Facts, files: Sequence[Path], width: int) -> list[str]:
    """The last lines, ten at most: what is faster by how much, where we lose, the report."""
    wrapped = [part for line in headlines(report) for part in wrap(line, width)]
    # A path is never broken: it is copied, and the terminal wraps it by itself.
    return [*wrapped[: SUMMARY_LINES - len(files)], *map(str, files)]


def show(report: Facts, console: Console) -> None:
    """The report in the terminal."""
    for lines in lines_of(report, console.width):
        say(lines, console)


def say(lines: Sequence[str], console: Console) -> None:
    """Lines as they are: nothing is wrapped, colored or read as markup."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
