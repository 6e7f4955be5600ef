"""The check's report as one self-contained HTML page, and its tables for the terminal."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from benchmarks.core.contest import COMPILED, OURS
from benchmarks.core.html import CSS, table
from benchmarks.gpu.measure import (
    AUGMENT_GRAPH,
    EAGER,
    GPU_LABELS,
    GRAPH,
    GRID,
    INDUCTOR,
    PENALTY,
    PENALTY_GRAPH,
    PUBLISHED,
    PUBLISHED_COMPILED,
)
from benchmarks.gpu.profile import FIGURES
from benchmarks.suites.spectral_norm import FUSED, LAYER, TORCH

Facts = dict[str, Any]
Table = tuple[str, list[str], list[list[str]]]

DRY_RUN = "DRY RUN: nothing was measured on a GPU"
BAR_COLORS = {
    TORCH: "#5b6675",
    COMPILED: "#8a94a3",
    LAYER: "#8fc1f0",
    FUSED: "#1769c7",
    GRAPH: "#0b3f7d",
    EAGER: "#5b6675",
    INDUCTOR: "#8a94a3",
    PENALTY: "#1769c7",
    PENALTY_GRAPH: "#0b3f7d",
    PUBLISHED: "#5b6675",
    PUBLISHED_COMPILED: "#8a94a3",
    GRID: "#c3cad3",
    OURS: "#1769c7",
    AUGMENT_GRAPH: "#0b3f7d",
}
STATUS_CLASS = {"passed": "yes", "failed": "no", "skipped": "no"}
MORE_CSS = """
.banner { background: #fff4d6; border: 1px solid #e0b84c; border-radius: 10px; padding: 12px 18px;
  color: #20262e; font-weight: 600; } pre { white-space: pre-wrap; font-size: 12px; }
td.l { max-width: 60ch; }
"""


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(x)}" for key, x in value.items())
    if isinstance(value, list):
        return "; ".join(_text(x) for x in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _microseconds(spread: Facts) -> str:
    return f"{1e6 * spread['median']:.1f}"


def _quartiles(spread: Facts) -> str:
    return f"{1e6 * spread['q25']:.1f} to {1e6 * spread['q75']:.1f}"


# --- tables, for the page and for the terminal -------------------------------------------------


def _sanitizer(facts: Facts) -> list[Table]:
    rows = [
        [
            row["tool"],
            "clean" if row["passed"] else "; ".join(row["messages"][:3]) or "no summary",
            "-" if row["errors"] is None else str(row["errors"]),
            str(row["exit status"]),
        ]
        for row in facts["rows"]
    ]
    return [("compute-sanitizer", ["tool", "", "errors", "exit status"], rows)]


def _launches(facts: Facts) -> list[Table]:
    rows = [
        [r["op"], r["pass"], str(r["tensors"]), str(r["kernels"]), str(r["promised"]),
         str(r["copies and fills"])]
        for r in facts["rows"] if "kernels" in r
    ]  # fmt: skip
    header = ["operator", "pass", "tensors", "kernels", "at most", "copies and fills"]
    return [("Kernel launches, by the number of weights or gradients", header, rows)]


def _benchmark(facts: Facts, title: str = "Times of all weights of a network") -> list[Table]:
    timed = [row for row in facts["rows"] if "seconds" in row]
    rows = [
        [
            row["network"],
            f"{row['pass']}, {GPU_LABELS[row['kind']]}",
            _microseconds(row["seconds"]),
            _quartiles(row["seconds"]),
            f"{row['times_faster']['median']:.2f}" if "times_faster" in row else "",
            f"{1e6 * row['before']:.1f}" if "before" in row else "",
            f"{row['error']:.0e}",
        ]
        for row in timed
    ]
    header = ["network", "who", "us", "quartiles", "times faster", "us before", "error"]
    gone = [[row["network"], GPU_LABELS[row["kind"]], row["reason"]] for row in facts["left_out"]]
    return [
        (title, header, rows),
        ("Left out", ["network", "who", "why"], gone),
    ]


def _penalties(facts: Facts) -> list[Table]:
    return _benchmark(facts, "Times of a penalty on one gradient")


def _augmentation(facts: Facts) -> list[Table]:
    return _benchmark(facts, "Times of augmenting a batch; faster than the published pipeline")


def _profile(facts: Facts) -> list[Table]:
    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}" if value < 1000 else f"{value:.0f}"

    rows = [
        [row["pass"], row["kernel"], *(cell(row[label]) for label in FIGURES)]
        for row in facts["rows"]
    ]
    return [("Kernels by Nsight Compute", ["pass", "kernel", *FIGURES], rows)]


def _bandwidth(facts: Facts) -> list[Table]:
    rows = [
        [
            row["network"],
            row["pass"],
            f"{row['bytes'] / 1e6:.1f}",
            _microseconds(row["seconds"]),
            f"{row['bytes_per_second'] / 1e9:.0f}",
            f"{100 * row['of_copy']:.0f} %",
            "yes" if row["fits_in_l2"] else "no",
            row["timed"],
            f"{1e6 * row['before']:.1f}" if "before" in row else "",
        ]
        for row in facts["rows"]
        if "seconds" in row
    ]
    if rows:
        copy = f"{facts['copy_bytes_per_second'] / 1e9:.0f}"
        rows.append(
            ["copy of 256 MiB", "read + write", "536.9", "", copy, "100 %", "", "calls", ""]
        )
    header = ["network", "pass", "MB", "us", "GB/s", "of the copy", "fits in L2", "timed as"]
    header.append("us before")
    return [("Bytes that must be moved, over time", header, rows)]


def _values(facts: Facts) -> list[Table]:
    rows = [
        [row["case"], row["worst"], f"{row['share of tolerance']:.3f}"] for row in facts["rows"]
    ]
    title = f"Awkward tensors against float64, on {facts['device']}"
    return [(title, ["case", "worst result", "share of what is tolerated"], rows)]


_TABLES = {
    "values": _values,
    "sanitizer": _sanitizer,
    "launches": _launches,
    "benchmark": _benchmark,
    "penalties": _penalties,
    "bandwidth": _bandwidth,
    "augmentation": _augmentation,
    "devices": _values,
    "profile": _profile,
}


def tables(step: Facts) -> list[Table]:
    """The tables of a step that have rows; of a failed one, those of what it did find."""
    if step["name"] not in _TABLES or "rows" not in step["facts"]:
        return []
    return [table for table in _TABLES[step["name"]](step["facts"]) if table[2]]


# --- the page ----------------------------------------------------------------------------------


def chart(rows: list[Facts]) -> str:
    """Times faster than torch, as bars grouped by network and pass."""
    rows = [row for row in rows if "times_faster" in row]
    if not rows:
        return ""
    largest = max(row["times_faster"]["median"] for row in rows)
    left, width, bar = 250, 720, 17
    parts: list[str] = []
    y, group = 4, ("", "")
    for row in rows:
        if (row["network"], row["pass"]) != group:
            group = (row["network"], row["pass"])
            y += 22
            parts.append(f"<text x=0 y={y - 4} font-weight=600>{escape(', '.join(group))}</text>")
        ratio = row["times_faster"]["median"]
        length = max(1.0, width * ratio / largest * 0.9)
        parts.append(
            f"<text x={left - 8} y={y + 12} text-anchor=end>{escape(GPU_LABELS[row['kind']])}"
            f"</text><rect x={left} y={y} width={length:.1f} height={bar - 3} rx=2 "
            f"fill='{BAR_COLORS[row['kind']]}'/>"
            f"<text x={left + length + 6:.1f} y={y + 12}>{ratio:.2f}</text>"
        )
        y += bar
    return (
        "<p class=dim>Times faster than the first of each group; longer is better.</p>"
        f"<div class=card><svg viewBox='0 0 {left + width} {y + 6}' width={left + width} "
        "font-family='system-ui, sans-serif' font-size=12 fill='currentColor'>"
        f"{''.join(parts)}</svg></div>"
    )


def _section(step: Facts) -> str:
    parts = [f"<h2>{escape(step['title'])}</h2>"]
    facts = step["facts"]
    if step["name"] in ("augmentation", "benchmark", "penalties"):
        parts.append(chart(facts.get("rows", [])))
    for title, header, rows in tables(step):
        cells = [[escape(cell) for cell in row] for row in rows]
        parts.append(f"<p>{escape(title)}</p>" + table(header, cells, left=2))
    plain = [[escape(key), escape(_text(x))] for key, x in facts.items()
             if key not in ("rows", "left_out", "output")]  # fmt: skip
    if plain:
        parts.append(table(["", ""], plain, left=2))
    for row in [facts, *facts.get("rows", [])]:
        if "output" in row:
            parts.append(f"<div class=card><pre>{escape(row['output'])}</pre></div>")
    return "".join(parts)


def render(report: Facts) -> str:
    """The whole page."""
    steps = report["steps"]
    counts = {status: sum(s["status"] == status for s in steps)
              for status in dict.fromkeys(s["status"] for s in steps)}  # fmt: skip
    rows = [
        [
            escape(f"{step['part']}  {step['title']}"),
            f"<span class={STATUS_CLASS.get(step['status'], 'dim')}>{step['status']}</span>",
            escape(step["reason"]),
            f"{step['seconds']:.0f} s",
        ]
        for step in steps
    ]
    title = "gankernels: check on a GPU"
    device = "no GPU" if report["dry_run"] else report["device"]
    banner = f"<p class=banner>{escape(DRY_RUN)}.</p>" if report["dry_run"] else ""
    tiles = "".join(f"<div class=tile><b>{n}</b>{status}</div>" for status, n in counts.items())
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>{title}{' (DRY RUN)' if report['dry_run'] else ''}</title>"
        f"<style>{CSS}{MORE_CSS}</style><main><h1>{title}</h1>"
        f"<p class=dim>{escape(device)}; {escape(report['started'])}; "
        f"took {report['seconds']:.0f} s</p>{banner}<div class=tiles>{tiles}</div>"
        + table(["step", "", "", "took"], rows, left=3)
        + "".join(_section(step) for step in steps)
        + "<h2>All of it, as data</h2><details><summary>JSON</summary>"
        f"<pre>{escape(json.dumps(report, indent=1))}</pre></details></main></html>"
    )
