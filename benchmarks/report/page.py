"""The report as one self-contained HTML page."""

from __future__ import annotations

from html import escape
from typing import Any

from benchmarks.report import charts
from benchmarks.suites import augmentation
from benchmarks.suites.gradient_penalty import OURS, USUAL
from benchmarks.suites.registry import AUGMENTATION, PLAIN, SUITES, of_suite, suite_of, who
from benchmarks.suites.spectral_norm import FORWARD

Event = dict[str, Any]

_CSS = """
body { font: 15px/1.55 system-ui, sans-serif; color: #20262e; background: #f6f7f9; margin: 0; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 80px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 8px; }
p { max-width: 78ch; } .dim { color: #66707d; }
.card { background: #fff; border: 1px solid #e3e7ec; border-radius: 10px; padding: 16px;
  overflow-x: auto; }
.card svg { max-width: 100%; height: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.tile { background: #fff; border: 1px solid #e3e7ec; border-radius: 10px; padding: 12px 18px; }
.tile b { display: block; font-size: 24px; color: #1769c7; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid #eef0f3;
  white-space: nowrap; }
th { color: #66707d; font-weight: 600; } th.l, td.l { text-align: left; }
.yes { color: #15803d; font-weight: 600; } .no { color: #c2410c; font-weight: 600; }
details summary { cursor: pointer; margin: 8px 0; }
"""

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


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def _table(header: list[str], body: list[list[str]], left: int) -> str:
    def cell(tag: str, column: int, text: str) -> str:
        return f"<{tag}{' class=l' if column < left else ''}>{text}</{tag}>"

    head = "".join(cell("th", i, escape(text)) for i, text in enumerate(header))
    lines = ["".join(cell("td", i, text) for i, text in enumerate(row)) for row in body]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class=card><table><tr>{head}</tr>{rows}</table></div>"


def verdict_mark(bar: Event) -> str:
    """What is said of a bar."""
    if bar["reached"] is None:
        return "not measured" if bar["measured"] is None else "disturbed, not judged"
    return "reached" if bar["reached"] else "not reached"


def _bars_table(bars: list[Event]) -> str:
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
    return _table(["what", "where", "bar", "measured", "", ""], body, left=2)


def _rows_table(rows: list[Event]) -> str:
    body = []
    for row in rows:
        seconds = row["seconds"]
        suite = suite_of(row)
        ratio = row["times_faster_than"].get(suite.baseline)
        body.append(
            [
                escape(row["network"]),
                escape(row["pass"]),
                escape(who(row)),
                f"{row['allocator']}, {row['threads']} thr.",
                _milliseconds(seconds["median"]),
                f"{_milliseconds(seconds['q25'])} to {_milliseconds(seconds['q75'])}",
                f"{seconds['count']}" + ("" if row["calm"] else " *"),
                f"{ratio['median']:.2f}" if ratio else "",
                f"{ratio['q25']:.2f} to {ratio['q75']:.2f}" if ratio else "",
                f"{row['floor_bytes'] / 1e6:.1f}",
                f"{row['bytes_per_second'] / 1e9:.1f}",
                f"{row['copy_bandwidth'] / 1e9:.0f}",
                f"{seconds['median'] / row['floor_seconds']:.2f}",
                f"{row['page_faults']:.0f}",
                f"{row['error']:.0e}"
                if row["error"] <= suite.tolerance
                else f"<span class=no>{row['error']:.0e}</span>",
            ]
        )
    header = ["what", "pass", "who", "allocator", "ms", "quartiles", "samples", "times faster"]
    header += ["quartiles", "floor MB", "GB/s", "copy GB/s", "over floor", "page faults", "error"]
    return _table(header, body, left=4)


def batch(step: Event) -> str:
    """The batch of a step, and that of the full mode where it is another."""
    taken, full = step["batch"], step["full_batch"]
    return str(taken) if taken == full else f"{taken} (in full: {full})"


def step_peaks(events: list[Event]) -> dict[tuple[str, str], int]:
    """Peak memory by network and kind, of the steps where it was measured."""
    found = [e for e in events if e["event"] == "step memory"]
    return {(e["network"], e["kind"]): e["peak_bytes"] for e in found}


def reduction_sentence(event: Event) -> str:
    """How little of a step the penalty's own arithmetic is."""
    usual, ours = (100 * event["shares"][kind] for kind in (USUAL, OURS))
    return (
        f"{event['title']}: of a whole step with R1, the penalty's reduction of the gradients, "
        f"which is what gankernels makes faster, is {usual:.2f} % in the usual form and "
        f"{ours:.2f} % in gankernels. The rest is the critic's own."
    )


def _steps_table(events: list[Event]) -> str:
    peaks = step_peaks(events)
    body = []
    for step in [e for e in events if e["event"] == "step"]:
        plain = step["kind"] == PLAIN
        peak = peaks.get((step["network"], step["kind"]))
        body.append(
            [
                escape(step["title"]),
                escape(who(step)),
                batch(step),
                str(step["threads"]),
                _milliseconds(step["seconds"]["median"]),
                f"{_milliseconds(step['seconds']['q25'])} to "
                f"{_milliseconds(step['seconds']['q75'])}",
                "" if plain else f"{100 * step['share']:.1f} %",
                ""
                if plain
                else f"{100 * step['share_q25']:.1f} to {100 * step['share_q75']:.1f} %",
                "" if peak is None else f"{peak / 1e6:.0f}",
            ]
        )
    header = ["network", "who", "batch", "threads", "ms a step", "quartiles", "share", "quartiles"]
    return _table([*header, "peak MB"], body, left=2)


def augmentation_sentences(events: list[Event]) -> list[str]:
    """What a reader must know of augmentation's rows and figures."""
    case = augmentation.GEOMETRY[-1]
    found = [
        f"{_milliseconds(e['seconds']['median'])} ms ({e['threads']} thr.)"
        for e in of_suite(events, SUITES[AUGMENTATION])
        if e["event"] == "row"
        and e["calm"]
        and (e["network"], e["pass"]) == (case.name, FORWARD)
        and e["kind"] == augmentation.MULTI_PASS
    ]
    here = f" It takes {', '.join(found)} for {case.name}, {FORWARD}." if found else ""
    return [
        "The plain PyTorch that ratios are against is gankernels' own composition of the published "
        f"passes; the bars were set with a slower one.{here}",
        "kornia's RandomAffine interpolates bilinearly and does not anti-alias: it does less work, "
        "and another.",
        "Cycles a pixel are for all 3 channels: processor seconds of one thread times the frequency"
        " in /proc/cpuinfo, which on virtual machines is that of the time-stamp counter.",
    ]


def _figures_table(events: list[Event]) -> str:
    known = {"event", "network", "kind", "suite", "allocator", "threads"}
    body = [
        [escape(what), escape(event["network"]), f"{event[what]:.3g}"]
        for event in events
        if event["event"] == "figure"
        for what in event
        if what not in known
    ]
    return _table(["what", "where", "measured"], body, left=2)


def _environment_table(facts: Event) -> str:
    body = []
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k}: {v}" for k, v in value.items())
        elif isinstance(value, float):
            value = f"{value:.1f}"
        body.append([escape(key), escape(str(value))])
    return _table(["", ""], body, left=2)


def _tiles(report: Event) -> str:
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


def render(report: Event) -> str:
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
        mine = of_suite(events, suite)
        if any(e["event"] == "step" for e in mine):
            parts.append(f"<h2>{suite.title}: whole steps</h2>" + _steps_table(mine))
    for event in events:
        if event["event"] == "reduction":
            parts.append(f"<p>{escape(reduction_sentence(event))}</p>")
    if any(e["event"] == "figure" for e in events):
        said = "".join(f"<p>{escape(text)}</p>" for text in augmentation_sentences(events))
        parts.append(f"<h2>Augmentation: figures</h2>{said}" + _figures_table(events))
    parts.append(
        "<h2>Every row</h2><p class=dim>* others used the processors during most samples."
        " Error: largest difference from float64, relative, checked before timing; in red where it"
        " is more than gankernels may have.</p>"
    )
    for suite in SUITES.values():
        rows = [e for e in of_suite(events, suite) if e["event"] == "row"]
        parts.append(f"<h3>{suite.title}</h3>" + _rows_table(rows))
    left_out = [e for e in events if e["event"] == "left out"]
    if left_out:
        body = [[escape(e["network"]), escape(who(e)), escape(e["reason"])] for e in left_out]
        parts.append("<h2>Left out, and why</h2>" + _table(["what", "who", "why"], body, 3))
    parts.append("<h2>Machine and versions</h2>" + _environment_table(facts))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>gankernels benchmarks</title><style>{_CSS}</style>"
        f"<main>{''.join(parts)}</main></html>"
    )
