"""`python -m benchmarks.report.compare OLD NEW`: what became slower beyond noise.

Both are results.json of a report, or a file of benchmarks/history/. The exit status is 1 where
something became slower.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.core.harness import Spread
from benchmarks.report import findings
from benchmarks.report.findings import Ratio
from benchmarks.report.history import load
from benchmarks.report.words import quartiles, times

LEAST = 0.05  # a median that moved by less is no news, however narrow the quartiles

Facts = dict[str, Any]


@dataclass(frozen=True)
class Change:
    """A row in both files."""

    name: str
    old: Spread
    new: Spread

    def __str__(self) -> str:
        old, new = (f"{times(s.median)} ({quartiles(s)})" for s in (self.old, self.new))
        return f"slower: {self.name}: {old} before, {new} now"


def slower(old: Facts, new: Facts) -> list[Change]:
    """Ratios that fell beyond noise, the worst first.

    That is where the quartiles of the ratio to what took turns with it are apart and its median
    fell by 5 %: drift of a machine hits both. On the same machine the seconds must say so as well,
    or the other has become faster. What others disturbed is not judged.
    """
    same = old["machine"] == new["machine"]
    found = []
    for before, now in common(old, new):
        apart = now.spread.q75 < before.spread.q25
        apart &= now.spread.median < (1 - LEAST) * before.spread.median
        longer = not (same and before.seconds and now.seconds) or (
            now.seconds.q25 > before.seconds.q75
        )
        if before.calm and now.calm and apart and longer:
            found.append(Change(before.name, before.spread, now.spread))
    return sorted(found, key=lambda change: change.new.median / change.old.median)


def common(old: Facts, new: Facts) -> list[tuple[Ratio, Ratio]]:
    """The ratios that both have."""
    now = {ratio.name: ratio for ratio in findings.ratios(new["events"])}
    before = findings.ratios(old["events"])
    return [(ratio, now[ratio.name]) for ratio in before if ratio.name in now]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    chosen = parser.parse_args(arguments)
    old, new = load(chosen.old), load(chosen.new)
    shared = common(old, new)
    if not shared:
        parser.error("expected ratios that both files have, got none: nothing can be compared")
    for label, facts in (("old", old), ("new", new)):
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        print(f"{label}: {facts['machine']}; {versions}; {facts['started']}")
    if old["machine"] != new["machine"]:
        print("Two machines: ratios alone are compared.")
    found = slower(old, new)
    print(*found, sep="\n", end="\n" if found else "")
    calm = sum(before.calm and now.calm for before, now in shared)
    alone = sum(len(list(findings.ratios(x["events"]))) for x in (old, new)) - 2 * len(shared)
    print(
        f"{len(found)} of {calm} ratios slower beyond noise; {len(shared) - calm} not judged, as "
        f"disturbed; {alone} in one file only"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
