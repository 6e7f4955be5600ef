"""The report as one self-contained HTML page."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

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
    to_dict,
)
from benchmarks.core.html import CSS, table
from benchmarks.report import charts
from benchmarks.report.words import (
    ACCURACY_COLUMNS,
    COMPILED_COLUMNS,
    COMPILED_TITLE,
    METHOD_COLUMNS,
    accuracy_rows,
    augmentation_sentences,
    batch,
    compiled_rows,
    method_rows,
    milliseconds,
    reduction_sentence,
    step_peaks,
    verdict_mark,
)
from benchmarks.suites.first_order import STEP_TITLE
from benchmarks.suites.registry import SUITES, suite_of, who

Facts = dict[str, Any]

_CAPTIONS = {
    "speedup": (
        "Spectral norm: every network, allocator-neutral",
        "Median of the ratios within interleaved rounds, 2 threads; black lines are quartiles, "
        "dotted red ticks the bars this project set itself.",
    ),
    "bandwidth": (
        "Spectral norm: against the memory",
        "What a fused pass must move at the least, over the time it took. Networks that fit in "
        "cache are bound by call overhead instead.",
    ),
    "default_malloc": (
        "Spectral norm: with default malloc",
        "What a user of plain glibc sees: torch's large outputs are mapped anew, and page-fault, "
        "on every call.",
    ),
    "layers": ("Spectral norm: without fusing", "Only the import line changed."),
    "shares": (
        "Spectral norm: in a whole training step",
        "(t - t without spectral norm) / t, paired by round.",
    ),
    "penalty_speedup": (
        "Gradient penalties: from given gradients, forward and backward",
        "Median of the ratios within interleaved rounds; black lines are quartiles, dotted red "
        "ticks the bars this project set itself.",
    ),
    "penalty_bandwidth": (
        "Gradient penalties: against the memory",
        "Forward reads the gradients; backward reads them and writes theirs.",
    ),
    "penalty_accuracy": (
        "Gradient penalties: gradients without second derivatives",
        "R1's gradient by all parameters, against that of second derivatives in float64. By "
        "differences along the gradient it is nearly that; by noise it is mostly noise.",
    ),
    "penalty_shares": (
        "Gradient penalties: in a whole critic step",
        "(t - t without a penalty) / t, paired by round, all with gankernels. Nearly all of that "
        "is the critic's: its gradient, and the derivatives of that.",
    ),
    "augment_speedup": (
        "Augmentation: all of it, random parameters included",
        "Median of the ratios within interleaved rounds; black lines are quartiles, dotted red "
        "ticks the bars this project set itself, with a slower opponent than this one.",
    ),
}


def _bars_table(bars: list[Facts]) -> str:
    body = []
    for bar in bars:
        style = {True: "yes", False: "no", None: "dim"}[bar["reached"]]
        measured = "" if bar["measured"] is None else f"{bar['measured']:.2f}"
        body.append(
            [
                escape(bar["group"]),
                escape(bar["subject"]),
                ("at most " if bar["at_most"] else "at least ") + f"{bar['bar']:g}",
                measured,
                f"<span class={style}>{verdict_mark(bar)}</span>",
                escape(bar["note"]),
            ]
        )
    return table(["what", "where", "bar", "measured", "", ""], body, left=2)


def _rows_table(rows: list[Row]) -> str:
    body = []
    for row in rows:
        seconds = row.seconds
        suite = suite_of(row)
        ratio = row.times_faster_than.get(suite.baseline)
        body.append(
            [
                escape(row.network),
                escape(row.which),
                escape(who(row)),
                f"{row.allocator}, {row.threads} thr.",
                milliseconds(seconds.median),
                f"{milliseconds(seconds.q25)} to {milliseconds(seconds.q75)}",
                f"{seconds.count}" + ("" if row.calm else " *"),
                f"{ratio.median:.2f}" if ratio else "",
                f"{ratio.q25:.2f} to {ratio.q75:.2f}" if ratio else "",
                f"{row.floor_bytes / 1e6:.1f}",
                f"{row.bytes_per_second / 1e9:.1f}",
                f"{row.copy_bandwidth / 1e9:.0f}",
                f"{seconds.median / row.floor_seconds:.2f}",
                f"{row.page_faults:.0f}",
                f"{row.error:.0e}"
                if row.error <= suite.tolerance
                else f"<span class=no>{row.error:.0e}</span>",
            ]
        )
    header = ["what", "pass", "who", "allocator", "ms", "quartiles", "samples", "times faster"]
    header += ["quartiles", "floor MB", "GB/s", "copy GB/s", "over floor", "page faults", "error"]
    return table(header, body, left=4)


def _steps_table(events: list[Event]) -> str:
    peaks = step_peaks(events)
    body = []
    for step in only(events, TrainingStep):
        plain = step.kind == PLAIN
        peak = peaks.get((step.network, step.kind))
        body.append(
            [
                escape(step.title),
                escape(who(step)),
                batch(step),
                str(step.threads),
                milliseconds(step.seconds.median),
                f"{milliseconds(step.seconds.q25)} to {milliseconds(step.seconds.q75)}",
                "" if plain else f"{100 * step.share:.1f} %",
                "" if plain else f"{100 * step.share_q25:.1f} to {100 * step.share_q75:.1f} %",
                "" if peak is None else f"{peak / 1e6:.0f}",
            ]
        )
    header = ["network", "who", "batch", "threads", "ms a step", "quartiles", "share", "quartiles"]
    return table([*header, "peak MB"], body, left=2)


def _figures_table(events: list[Event]) -> str:
    body = [
        [escape(figure.what), escape(figure.network), f"{figure.value:.3g}"]
        for figure in only(events, Figure)
    ]
    return table(["what", "where", "measured"], body, left=2)


def _environment_table(facts: Facts) -> str:
    body = []
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k}: {v}" for k, v in value.items())
        elif isinstance(value, float):
            value = f"{value:.1f}"
        body.append([escape(key), escape(str(value))])
    return table(["", ""], body, left=2)


def _tiles(report: Facts) -> str:
    bars = report["bars"]
    measured = [bar for bar in bars if bar["reached"] is not None]
    tiles = [f"<b>{sum(b['reached'] for b in measured)} of {len(measured)}</b>bars reached"]
    fused = [b["measured"] for b in measured if b["group"] == "fused vs torch"]
    if fused:
        tiles.append(f"<b>{min(fused):.1f}x to {max(fused):.1f}x</b>fused, over torch")
    faster = [b["measured"] for b in measured if b["group"] == "penalty vs usual form"]
    if faster:
        tiles.append(f"<b>{min(faster):.1f}x to {max(faster):.1f}x</b>penalty, over the usual form")
    for name in ("fused, default malloc", "time over the floor of bytes"):
        for bar in [b for b in measured if b["group"] == name]:
            tiles.append(f"<b>{bar['measured']:.2f}x</b>{escape(name)}<br>{escape(bar['subject'])}")
    return "<div class=tiles>" + "".join(f"<div class=tile>{t}</div>" for t in tiles) + "</div>"


def render(report: Facts) -> str:
    """The whole page."""
    events = report["events"]
    facts = report["environment"]
    parts = [
        "<h1>gankernels, measured</h1>",
        f"<p class=dim>{escape(facts['cpu'])}, {facts['cores']} cores; "
        f"torch {escape(facts['torch'])}; {escape(report['mode'])} mode, "
        f"{report['seconds']:.0f} s, {escape(report['started'])}</p>",
        _tiles(report),
    ]
    with charts.styled():
        for name, figure in charts.all_charts(events).items():
            title, caption = _CAPTIONS[name]
            parts.append(f"<h2>{escape(title)}</h2><p class=dim>{escape(caption)}</p>")
            parts.append(f"<div class=card>{charts.svg(figure)}</div>")
    parts.append("<h2>The bars</h2>" + _bars_table(report["bars"]))
    for suite in SUITES.values():
        mine = [event for event in events if event.suite == suite.name]
        if only(mine, TrainingStep):
            parts.append(f"<h2>{suite.title}: whole steps</h2>" + _steps_table(mine))
    for event in only(events, Reduction):
        parts.append(f"<p>{escape(reduction_sentence(event))}</p>")
    if only(events, MethodStep):
        parts.append("<h2>Gradient penalties without second derivatives: a whole step</h2>")
        parts.append(f"<p>{escape(STEP_TITLE)}. Eager, and with the critic compiled.</p>")
        parts.append(table(METHOD_COLUMNS, method_rows(events), left=1))
    if only(events, CompiledStep):
        parts.append(f"<h2>{escape(COMPILED_TITLE)}</h2>")
        parts.append(
            "<p>gankernels.compile_step against the same step in eager mode, forward to the "
            "optimizer's step. The first call compiles, and checks itself.</p>"
        )
        parts.append(table(COMPILED_COLUMNS, compiled_rows(events), left=1))
    if only(events, GradientAccuracy):
        parts.append(
            "<h2>Gradient penalties without second derivatives: gradients</h2>"
            "<p>R1's gradient by all parameters: the norm of its difference from that of second "
            "derivatives in float64, relative, and the cosine.</p>"
        )
        parts.append(table(ACCURACY_COLUMNS, accuracy_rows(events), left=2))
    if only(events, Figure):
        said = "".join(f"<p>{escape(text)}</p>" for text in augmentation_sentences(events))
        parts.append(f"<h2>Augmentation: figures</h2>{said}" + _figures_table(events))
    parts.append(
        "<h2>Every row</h2><p class=dim>* others used the processors during most samples."
        " Error: largest difference from float64, relative, checked before timing; in red where it"
        " is more than gankernels may have.</p>"
    )
    for suite in SUITES.values():
        rows = only(events, Row, suite=suite.name)
        parts.append(f"<h3>{suite.title}</h3>" + _rows_table(rows))
    left_out = only(events, LeftOut)
    if left_out:
        body = [[escape(e.network), escape(who(e)), escape(e.reason)] for e in left_out]
        parts.append("<h2>Left out, and why</h2>" + table(["what", "who", "why"], body, 3))
    parts.append("<h2>Machine and versions</h2>" + _environment_table(facts))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>gankernels benchmarks</title><style>{CSS}</style>"
        f"<main>{''.join(parts)}</main></html>"
    )


def write(report: Facts, out: Path) -> tuple[Path, Path]:
    """results.json and report.html in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    data, html = out / "results.json", out / "report.html"
    data.write_text(json.dumps(report, indent=1, default=to_dict))
    html.write_text(render(report))
    return data, html
