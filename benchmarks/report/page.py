"""The report as one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

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
    to_dict,
)
from benchmarks.core.html import CSS, table
from benchmarks.report import charts, words
from benchmarks.report.findings import Against, against, slower
from benchmarks.suites.first_order import STEP_TITLE
from benchmarks.suites.registry import SUITES, suite_of, who

Facts = dict[str, Any]


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
                f"<span class={style}>{words.verdict_mark(bar)}</span>",
                escape(bar["note"]),
            ]
        )
    return table(["what", "where", "bar", "measured", "verdict", "note"], body, left=2)


def _rows_table(rows: list[Row]) -> str:
    body = []
    for row in rows:
        seconds, suite = row.seconds, suite_of(row)
        low, high = words.milliseconds(seconds.q25), words.milliseconds(seconds.q75)
        ratio = row.times_faster_than.get(suite.baseline)
        wrong = " class=no" if row.error > suite.tolerance else ""
        body.append(
            [
                escape(f"{row.network}, {row.which}"),
                escape(who(row)),
                f"{row.allocator}, {row.threads} thr.",
                f"{words.milliseconds(seconds.median)} ({low} to {high})",
                f"{seconds.count}" + ("" if row.calm else " *"),
                f"{words.times(ratio.median)} ({words.quartiles(ratio)})" if ratio else "",
                f"{row.bytes_per_second / 1e9:.1f} ({row.copy_bandwidth / 1e9:.0f})",
                f"{seconds.median / row.floor_seconds:.2f}" if row.floor_seconds else "",
                f"{row.page_faults:.0f}",
                f"<span{wrong}>{row.error:.0e}</span>",
            ]
        )
    header = ["what", "who", "malloc", "ms (quartiles)", "samples", "times faster", "GB/s (copy)"]
    return table([*header, "over floor", "faults", "error"], body, left=3)


def _steps_table(events: list[Event]) -> str:
    peaks = words.step_peaks(events)
    body = []
    for step in only(events, TrainingStep):
        peak = peaks.get((step.network, step.kind))
        low, high = words.milliseconds(step.seconds.q25), words.milliseconds(step.seconds.q75)
        body.append(
            [
                escape(step.title),
                escape(who(step)),
                words.batch(step),
                str(step.threads),
                f"{words.milliseconds(step.seconds.median)} ({low} to {high})"
                + words.mark(step.calm, step.seconds),
                words.share(step),
                "" if peak is None else f"{peak / 1e6:.0f}",
            ]
        )
    header = ["network", "who", "batch", "threads", "ms a step (quartiles)", "share (quartiles)"]
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
        if key == "gankernels":  # all of it is in the JSON
            value = ", ".join(filter(None, (value.get(key), value.get("error"))))
        elif isinstance(value, dict):
            value = ", ".join(f"{k}: {v}" for k, v in value.items())
        elif isinstance(value, float):
            value = f"{value:.1f}"
        body.append([escape(key), escape(str(value))])
    return table(["", ""], body, left=2)


def _tiles(groups: list[Against]) -> str:
    """What is faster by how much, a tile for each suite; and where gankernels is slower."""
    tiles = []
    for suite in SUITES.values():
        mine = suite.title, suite.labels[suite.ours], suite.labels[suite.baseline]
        for group in groups:
            if (group.suite, group.ours, group.other) == mine:
                said = f"{suite.title}, over {group.other}"
                tiles.append(f"<b>{escape(words.range_of(group))}</b>{escape(said)}")
    judged = sum(ratio.calm for group in groups for ratio in group.ratios)
    tiles.append(f"<b>{len(slower(groups))} of {judged}</b>comparisons in which it is slower")
    return "<div class=tiles>" + "".join(f"<div class=tile>{t}</div>" for t in tiles) + "</div>"


def _sections(report: Facts, groups: list[Against]) -> Iterator[tuple[str, str]]:
    """Titles, and what stands below each."""
    events = report["events"]
    if groups:
        cells = [[escape(cell) for cell in row] for row in words.against_rows(groups)]
        yield (
            "Against each alternative",
            "<p class=dim>Lowest to highest median of all places. Faster or slower is said where "
            "both quartiles are on that side of 1; what others disturbed is not judged.</p>"
            + table(words.AGAINST_COLUMNS, cells, left=2),
        )
        lost = "".join(f"<li>{escape(words.loss(ratio))}</li>" for ratio in slower(groups))
        yield "Where gankernels is slower", f"<ul>{lost}</ul>" if lost else "<p>Nowhere here.</p>"
    for chart in charts.all_charts(events):
        yield chart.title, chart.html()
    if "bars" in report:
        yield "The bars", _bars_table(report["bars"])
    for suite in SUITES.values():
        mine = [event for event in events if event.suite == suite.name]
        said = "".join(
            f"<p>{escape(words.reduction_sentence(e))}</p>" for e in only(mine, Reduction)
        )
        if only(mine, TrainingStep):
            yield f"{suite.title}: whole steps", _steps_table(mine) + said
    if only(events, MethodStep):
        said = f"<p>{escape(STEP_TITLE)}. Eager, and with the critic compiled.</p>"
        shown = table(words.METHOD_COLUMNS, words.method_rows(events), left=1)
        yield "Gradient penalties without second derivatives: a whole step", said + shown
    if only(events, CompiledStep):
        yield (
            words.COMPILED_TITLE,
            "<p>gankernels.compile_step against the same step in eager mode, forward to the "
            "optimizer's step. The first call compiles, and checks itself.</p>"
            + table(words.COMPILED_COLUMNS, words.compiled_rows(events), left=1),
        )
    if only(events, GradientAccuracy):
        shown = table(words.ACCURACY_COLUMNS, words.accuracy_rows(events), left=2)
        yield "Gradient penalties without second derivatives: gradients", shown
    if only(events, Figure):
        said = "".join(f"<p>{escape(text)}</p>" for text in words.AUGMENTATION_SENTENCES)
        yield "Augmentation: figures", said + _figures_table(events)
    tables = [
        f"<details><summary>{suite.title}, {len(rows)} rows</summary>{_rows_table(rows)}</details>"
        for suite in SUITES.values()
        if (rows := only(events, Row, suite=suite.name))
    ]
    yield (
        "Every row",
        "<p class=dim>* others used the processors during most samples. Over floor: the time over "
        "that of the least bytes at the bandwidth measured beside it. Error: largest difference "
        "from float64, relative, checked before timing; colored where it is more than gankernels "
        "may have.</p>" + "".join(tables),
    )
    left_out = "".join(f"<li>{escape(line)}</li>" for line in words.left_out_lines(events))
    if left_out:
        yield "Left out, and why", f"<ul>{left_out}</ul>"
    yield "Machine and versions", _environment_table(report["environment"])


def render(report: Facts) -> str:
    """The whole page."""
    facts = report["environment"]
    groups = against(report["events"])
    sections = list(_sections(report, groups))
    contents = "".join(
        f"<li><a href='#s{i}'>{escape(title)}</a></li>" for i, (title, _) in enumerate(sections)
    )
    parts = [
        "<h1>gankernels, measured</h1>",
        f"<p class=dim>{escape(facts['cpu'])}, {facts['cores']} cores; "
        f"torch {escape(facts['torch'])}; {escape(report['mode'])} mode, "
        f"{report['seconds']:.0f} s, {escape(report['started'])}</p>",
        _tiles(groups),
        f"<nav><ul>{contents}</ul></nav>",
        *(f"<h2 id=s{i}>{escape(title)}</h2>{body}" for i, (title, body) in enumerate(sections)),
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>gankernels benchmarks</title><style>{CSS}{charts.CSS}</style>"
        f"<main>{''.join(parts)}</main></html>"
    )


def write(report: Facts, out: Path) -> tuple[Path, Path]:
    """report.html and results.json in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    html, data = out / "report.html", out / "results.json"
    data.write_text(json.dumps(report, indent=1, default=to_dict))
    html.write_text(render(report))
    return html, data
