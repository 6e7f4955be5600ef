"""The report as one self-contained HTML page."""

from __future__ import annotations

from html import escape
from typing import Any

from benchmarks import charts
from benchmarks.contestants import BASELINE, LABELS, TOLERANCE

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
        "Every network, allocator-neutral",
        "Median of the ratios within interleaved rounds, 2 threads; black lines are quartiles, "
        "dotted red ticks the bars this project set itself.",
    ),
    "bandwidth": (
        "Against the memory",
        "What a fused pass must move at the least, over the time it took. Networks that fit in "
        "cache are bound by call overhead instead.",
    ),
    "default_malloc": (
        "With default malloc",
        "What a user of plain glibc sees: torch's large outputs are mapped anew, and page-fault, "
        "on every call.",
    ),
    "layers": ("Without fusing", "Only the import line changed."),
    "shares": ("In a whole training step", "(t - t without spectral norm) / t, paired by round."),
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
        ratio = row["times_faster_than"].get(BASELINE)
        body.append(
            [
                escape(row["network"]),
                escape(row["pass"]),
                escape(LABELS[row["kind"]]),
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
                if row["error"] <= TOLERANCE
                else f"<span class=no>{row['error']:.0e} wrong</span>",
            ]
        )
    header = ["network", "pass", "who", "allocator", "ms", "quartiles", "samples", "times faster"]
    header += ["quartiles", "floor MB", "GB/s", "copy GB/s", "over floor", "page faults", "error"]
    return _table(header, body, left=4)


def _steps_table(steps: list[Event]) -> str:
    body = []
    for step in steps:
        batch = f"{step['batch']}"
        if step["batch"] != step["full_batch"]:
            batch += f" (authors: {step['full_batch']})"
        body.append(
            [
                escape(step["title"]),
                LABELS.get(step["kind"], "no spectral norm"),
                batch,
                str(step["threads"]),
                _milliseconds(step["seconds"]["median"]),
                f"{_milliseconds(step['seconds']['q25'])} to "
                f"{_milliseconds(step['seconds']['q75'])}",
                "" if step["kind"] == "plain" else f"{100 * step['share']:.1f} %",
                ""
                if step["kind"] == "plain"
                else f"{100 * step['share_q25']:.1f} to {100 * step['share_q75']:.1f} %",
            ]
        )
    header = ["network", "who", "batch", "threads", "ms a step", "quartiles", "share", "quartiles"]
    return _table(header, body, left=2)


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
    for name in ("fused, default malloc", "time over the floor of bytes"):
        for bar in [b for b in measured if b["group"] == name]:
            tiles.append(f"<b>{bar['measured']:.2f}x</b>{escape(name)}<br>{escape(bar['subject'])}")
    return "<div class=tiles>" + "".join(f"<div class=tile>{t}</div>" for t in tiles) + "</div>"


def render(report: Event) -> str:
    """The whole page."""
    events = report["events"]
    facts = report["environment"]
    parts = [
        "<h1>gankernels: spectral norm, measured</h1>",
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
    steps = [e for e in events if e["event"] == "step"]
    if steps:
        parts.append("<h2>Discriminator steps</h2>" + _steps_table(steps))
    parts.append(
        "<h2>Every row</h2><p class=dim>* others used the processors during most samples."
        " Error: largest difference from float64, relative, checked before timing.</p>"
    )
    parts.append(_rows_table([e for e in events if e["event"] == "row"]))
    left_out = [e for e in events if e["event"] == "left out"]
    if left_out:
        body = [
            [escape(e["network"]), escape(LABELS.get(e["kind"], e["kind"])), escape(e["reason"])]
            for e in left_out
        ]
        parts.append("<h2>Left out, and why</h2>" + _table(["network", "who", "why"], body, 3))
    parts.append("<h2>Machine and versions</h2>" + _environment_table(facts))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>gankernels benchmarks</title><style>{_CSS}</style>"
        f"<main>{''.join(parts)}</main></html>"
    )
