"""`python -m benchmarks.report.history RESULTS`: keeps a report in benchmarks/history/.

A small file a machine and version: what was found, with four digits, a line each. Two of them can
be compared (`benchmarks.report.compare`), and the page of the site is made of them.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.core import environment, events
from benchmarks.core.events import KINDS, Checked, Event, Row
from benchmarks.core.harness import Spread
from benchmarks.report.findings import OURS_IN
from benchmarks.suites.registry import suite_of

HISTORY = environment.ROOT / "benchmarks" / "history"
MACHINE = ("cpu", "cores", "caches", "memory_gib", "system", "libc", "torch_isa")
VERSIONS = ("torch", "python")
SUFFIX = ".json"
#: What no ratio, table or sentence is made of.
SPARED = {"dropped", "page_faults", "floor_bytes", "floor_seconds", "read_bandwidth", "layers"}

Facts = dict[str, Any]


def condense(report: Facts) -> Facts:
    """What is kept of a report: machine, versions, and what was found."""
    facts = report["environment"]
    return {
        "machine": f"{facts['cpu']}, {facts['cores']} cores",
        "versions": {
            "gankernels": facts["gankernels"].get("gankernels", "unknown"),
            **{name: facts[name] for name in VERSIONS if name in facts},
        },
        "environment": {name: facts[name] for name in MACHINE if name in facts},
        "mode": report["mode"],
        "started": report["started"],
        "events": [_shortened(e) for e in report["events"] if not isinstance(e, Checked)],
    }


def _shortened(event: Event) -> Facts:
    """Without what is as always; four digits are more than was measured."""
    found = events.to_dict(event)
    if isinstance(event, Row):
        found["times_faster_than"] = dict(_of_interest(event))
    usual = {part.name: part.default for part in fields(event) if part.default is not MISSING}
    return {
        name: _rounded(value)
        for name, value in found.items()
        if name not in SPARED and (name not in usual or value != usual[name])
    }


def _of_interest(row: Row) -> Iterator[tuple[str, Facts]]:
    """Ratios to the baseline, and between gankernels and the others."""
    ours = OURS_IN[row.suite]
    for kind, ratio in row.times_faster_than.items():
        if kind != row.kind and (row.kind in ours or kind in (suite_of(row).baseline, *ours)):
            yield kind, asdict(ratio)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        numbers = {key: _rounded(x) for key, x in value.items()}
        return list(numbers.values()) if value.keys() == events.SPREAD else numbers
    return value


def _revived(found: Facts) -> Event:
    """The way back: a spread is a list of its numbers."""
    kind = KINDS[found["event"]]
    values = {}
    for part in fields(kind):
        value = found.get(part.name, MISSING)
        if value is MISSING:
            continue
        if part.type == "Spread":
            value = Spread(*value)
        elif part.type == "dict[str, Spread]":
            value = {key: Spread(*numbers) for key, numbers in value.items()}
        values[part.name] = value
    return kind(**values)


def load(path: Path) -> Facts:
    """A report that was kept, or results.json, as if it had been kept; with its events."""
    found: Facts = json.loads(path.read_text())
    if "machine" not in found:
        found = condense(events.parse(path.read_text()))
    return found | {"events": [_revived(e) for e in found["events"]]}


def keep(report: Facts, folder: Path = HISTORY) -> Path:
    """The file of this machine and version, which a later run replaces."""
    made = condense(report)
    name = f"{made['machine']} {made['versions']['gankernels']}".lower()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{re.sub(r'[^a-z0-9.]+', '-', name).strip('-')}{SUFFIX}"
    # A line an event, so that a diff is one of events.
    lines = [json.dumps(event, separators=(",", ":")) for event in made.pop("events")]
    head = json.dumps(made, indent=1)[:-2]
    path.write_text(f'{head},\n "events": [\n' + ",\n".join(lines) + "\n ]\n}\n")
    return path


def kept(folder: Path = HISTORY) -> list[Facts]:
    """All reports that were kept, the newest first."""
    found = map(load, folder.glob(f"*{SUFFIX}"))
    return sorted(found, key=lambda report: str(report["started"]), reverse=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report.history",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results", type=Path, metavar="RESULTS", help="results.json of a report")
    chosen = parser.parse_args(arguments)
    print(keep(events.parse(chosen.results.read_text())))


if __name__ == "__main__":
    main()
