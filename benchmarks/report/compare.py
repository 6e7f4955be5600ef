"""`python -m benchmarks.report.compare OLD NEW`: what became slower beyond noise; `--keep RESULTS`.

Both are results.json of a report, or what `--keep` makes of one: a small file a machine and version
in benchmarks/history/. The exit status is 1 where something became slower.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.core import environment, events
from benchmarks.core.contest import COMPILED, PLAIN
from benchmarks.core.events import CompiledStep, Event, Layer, MethodStep, Row, TrainingStep
from benchmarks.core.harness import Spread
from benchmarks.report.findings import OURS_IN, inverse
from benchmarks.report.words import quartiles, times
from benchmarks.suites.registry import suite_of

HISTORY = environment.ROOT / "benchmarks" / "history"
LEAST = 0.05  # a median that moved by less is no news, however narrow the quartiles

Facts = dict[str, Any]


def condense(report: Facts) -> Facts:
    """What is kept of a report: machine, versions, and of every row the spreads."""
    facts = report["environment"]
    rows: Facts = {}
    for key, seconds, ratio, calm in _rows(report["events"]):
        row = {"seconds": _numbers(seconds), "ratio": _numbers(ratio), "calm": calm}
        rows.setdefault(key, row)
    return {
        "machine": f"{facts['cpu']}, {facts['cores']} cores",
        "versions": {
            "gankernels": facts["gankernels"].get("gankernels", "unknown"),
            **{name: facts[name] for name in ("torch", "python") if name in facts},
        },
        "started": report["started"],
        "rows": rows,
    }


def _numbers(spread: Spread) -> list[float]:
    """Four digits are more than was measured."""
    return [*(float(f"{x:.4g}") for x in (spread.median, spread.q25, spread.q75)), spread.count]


def _rows(found: list[Event]) -> Iterator[tuple[str, Spread, Spread, bool]]:
    """Ours: a name, seconds, times faster than what took turns with it, and whether it was calm."""
    for e in found:
        where = f"{e.allocator} malloc, {e.threads} thr."
        if isinstance(e, Row) and e.kind in OURS_IN[e.suite]:
            ratio = e.times_faster_than.get(suite_of(e).baseline)
            if ratio:
                name = f"{e.suite}: {e.network}, {e.which}, {e.kind}, {where}"
                yield name, e.seconds, ratio, e.calm
        elif isinstance(e, Layer):
            name = f"{e.suite}: layer {'x'.join(map(str, e.shape))}, {e.which}, {where}"
            yield name, e.our_seconds, e.times_faster, e.calm
        elif isinstance(e, TrainingStep) and e.kind != PLAIN:
            ratio = Spread(1 - e.share, 1 - e.share_q75, 1 - e.share_q25, e.seconds.count)
            name = f"{e.suite}: step of {e.network}, batch {e.batch}, {e.kind}, {where}"
            yield name, e.seconds, ratio, e.calm
        elif isinstance(e, CompiledStep):
            name = f"{e.suite}: compiled step of {e.network}, batch {e.batch}, {where}"
            yield name, e.compiled_seconds, e.times_faster, e.calm
        elif isinstance(e, MethodStep):
            kind = f"{e.kind}, {COMPILED}" if e.compiled else e.kind
            yield f"{e.suite}: step, {kind}, {where}", e.seconds, inverse(e.over_exact), e.calm


def keep(report: Facts, folder: Path = HISTORY) -> Path:
    """The file of this machine and version, which a later run replaces."""
    made = condense(report)
    name = f"{made['machine']} {made['versions']['gankernels']}".lower()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^a-z0-9.]+', '-', name).strip('-')}.json"
    lines = [f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in made.pop("rows").items()]
    # A line a row, so that a diff is one of rows.
    head = json.dumps(made, indent=1)[:-2]
    path.write_text(f'{head},\n "rows": {{\n' + ",\n".join(lines) + "\n }\n}\n")
    return path


def load(path: Path) -> Facts:
    """A file of either kind, condensed."""
    found: Facts = events.parse(path.read_text())
    return condense(found) if "events" in found else found


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
    """Rows that became slower beyond noise, the worst first.

    That is where the quartiles of the ratio to what took turns with it are apart and its median
    fell by 5 %: drift of a machine hits both. On the same machine the seconds must say so as well,
    or the other has become faster. What others disturbed is not judged.
    """
    same = old["machine"] == new["machine"]
    found = []
    for name in common(old, new):
        before, now = old["rows"][name], new["rows"][name]
        ratios = Spread(*before["ratio"]), Spread(*now["ratio"])
        seconds = Spread(*before["seconds"]), Spread(*now["seconds"])
        apart = ratios[1].q75 < ratios[0].q25
        apart &= ratios[1].median < (1 - LEAST) * ratios[0].median
        longer = not same or seconds[1].q25 > seconds[0].q75
        if before["calm"] and now["calm"] and apart and longer:
            found.append(Change(name, *ratios))
    return sorted(found, key=lambda change: change.new.median / change.old.median)


def common(old: Facts, new: Facts) -> list[str]:
    return [name for name in old["rows"] if name in new["rows"]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--keep", action="store_true", help="keep one report in the history")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    chosen = parser.parse_args(arguments)
    if chosen.keep:
        for path in chosen.files:
            print(keep(events.parse(path.read_text())))
        return 0
    if len(chosen.files) != 2:
        parser.error(f"expected two files, OLD and NEW, got {len(chosen.files)}")
    old, new = map(load, chosen.files)
    shared = common(old, new)
    if not shared:
        parser.error("expected rows that both files have, got none: nothing can be compared")
    for label, facts in (("old", old), ("new", new)):
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        print(f"{label}: {facts['machine']}; {versions}; {facts['started']}")
    if old["machine"] != new["machine"]:
        print("Two machines: ratios alone are compared.")
    found = slower(old, new)
    print(*found, sep="\n", end="\n" if found else "")
    disturbed = sum(not (old["rows"][n]["calm"] and new["rows"][n]["calm"]) for n in shared)
    alone = len(old["rows"]) + len(new["rows"]) - 2 * len(shared)
    print(
        f"{len(found)} of {len(shared) - disturbed} rows slower beyond noise; {disturbed} not "
        f"judged, as disturbed; {alone} in one file only"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
