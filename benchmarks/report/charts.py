"""The report's charts, of HTML and SVG: they have the width, and light or dark, of their page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

from benchmarks.core.contest import BACKWARD, FORWARD, PLAIN
from benchmarks.core.environment import DEFAULT, TUNED
from benchmarks.core.events import (
    AUGMENTATION,
    GRADIENT_PENALTY,
    SPECTRAL_NORM,
    Event,
    GradientAccuracy,
    Layer,
    Row,
    TrainingStep,
    only,
)
from benchmarks.core.harness import Spread
from benchmarks.report import words
from benchmarks.report.findings import OURS_IN, Ratio, ratios
from benchmarks.suites.augmentation import PASSES
from benchmarks.suites.first_order import DIFFERENCE, NOISE
from benchmarks.suites.registry import SUITES, Suite, who
from benchmarks.suites.spectral_norm import LAYER

CSS = """
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 4px 32px; } figure { margin: 12px 0; } figcaption { max-width: 78ch; }
figcaption b { color: var(--ink); } .chart { font-size: 12px; }
.group { font-weight: 600; margin-top: 8px; }
.bar { display: grid; grid-template-columns: 12em 1fr 11em;
  gap: 8px; align-items: center; line-height: 1.35; }
.bar > :last-child { text-align: right; }
@media (max-width: 700px) { .bar { grid-template-columns: 8.5em 1fr 10em; } }
.track { position: relative; height: 12px; } .track i { position: absolute; top: 0; bottom: 0; }
.fill { left: 0; border-radius: 2px; background: var(--other); }
.fill.ours { background: var(--blue); } .fill.layer { background: var(--layer); }
.fill.disturbed { opacity: 0.35; } .range { border-top: 1px solid var(--ink); margin-top: 6px; }
.at { border-left: 2px solid var(--ink); } .beyond { right: 0; }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; } .grid { stroke: var(--line); }
.one { stroke: var(--dim); } .key { white-space: nowrap; margin-right: 14px; }
:root { --other: #98a2af; --layer: #8fc1f0; --second: #b4531a; --third: #1a7f4b; }
@media (prefers-color-scheme: dark) { :root { --other: #6b7683; --layer: #2f6ea8;
  --second: #f0a46b; --third: #5fcf95; } }
"""


@dataclass(frozen=True)
class Chart:
    """What is shown, what its numbers count, and what to conclude from them."""

    title: str
    unit: str
    conclusion: str
    body: str

    def html(self) -> str:
        """A figure; who cannot see it is told its subject, unit and conclusion."""
        said = f"{self.title}. {self.unit} {self.conclusion}"
        return (
            f"<figure><figcaption>{escape(self.unit)} <b>{escape(self.conclusion)}</b></figcaption>"
            f'<div class="card chart" role=img aria-label="{escape(said)}">{self.body}</div>'
            "</figure>"
        )


# --- bars ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A median with its quartiles; `at` marks a number to compare it with."""

    group: str
    label: str
    spread: Spread
    text: str
    look: str = ""
    calm: bool = True
    at: float | None = None


def bars(panels: dict[str, list[Bar]]) -> str:
    """Horizontal bars, on one axis; what others disturbed is pale, and may reach beyond it."""
    found = [bar for panel in panels.values() for bar in panel]
    # Neither a disturbed row nor a long whisker sets the axis.
    calm = [bar for bar in found if bar.calm] or found
    limit = 1.1 * max(max(bar.spread.median, bar.at or 0.0) for bar in calm) or 1.0
    parts = []
    for title, panel in panels.items():
        parts.append(f"<div><h3>{escape(title)}</h3>" if title else "<div>")
        for group in dict.fromkeys(bar.group for bar in panel):
            parts.append(f"<div class=group>{escape(group)}</div>")
            parts += [_bar(bar, limit) for bar in panel if bar.group == group]
        parts.append("</div>")
    return f"<div class=panels>{''.join(parts)}</div>"


def _bar(bar: Bar, limit: float) -> str:
    def percent(value: float) -> float:
        return round(100 * min(max(value / limit, 0.0), 1.0), 1)

    low, high = percent(bar.spread.q25), percent(bar.spread.q75)
    look = " ".join(filter(None, ["fill", bar.look, "" if bar.calm else "disturbed"]))
    at = "" if bar.at is None else f'<i class=at style="left:{percent(bar.at)}%"></i>'
    beyond = "<i class=beyond>&#9656;</i>" if bar.spread.median > limit else ""
    return (
        f"<div class=bar><span>{escape(bar.label)}</span><span class=track>"
        f'<i class="{look}" style="width:{percent(bar.spread.median)}%"></i>'
        f'<i class=range style="left:{low}%;width:{round(high - low, 1)}%"></i>{at}{beyond}</span>'
        f"<span>{escape(bar.text)}{'' if bar.calm else ' *'}</span></div>"
    )


def _look(suite: Suite, kind: str) -> str:
    return "ours" if kind == suite.ours else "layer" if kind == LAYER else ""


def conclude(found: Iterable[Ratio], other: str) -> str:
    """One sentence about ratios to one alternative."""
    calm = [ratio for ratio in found if ratio.calm]
    if not calm:
        return "Others disturbed all of it: nothing is concluded."
    medians = [ratio.spread.median for ratio in calm]
    low, high = words.times(min(medians)), words.times(max(medians))
    faster, lost = ([r for r in calm if r.verdict == v] for v in ("faster", "slower"))
    said = f"{calm[0].ours} is {low if low == high else f'{low} to {high}'} as fast as {other}"
    if len(faster) == len(calm):
        return f"{said}, faster in all {len(calm)}."
    worst = min(lost, key=lambda r: r.spread.median, default=None)
    where = f" ({worst.where}: {words.times(worst.spread.median)})" if worst else ""
    within = len(calm) - len(faster) - len(lost)
    return (
        f"{said}: faster in {len(faster)} of {len(calm)}, slower in {len(lost)}{where}, "
        f"within noise in {within}."
    )


def speedups(
    events: list[Event],
    suite: Suite,
    title: str,
    panels: dict[str, tuple[str, int]],
    allocator: str = TUNED,
) -> Chart | None:
    """Times faster than the baseline: panels by title, each a pass and a number of threads."""
    shown: dict[str, list[Bar]] = {}
    rows: list[Row] = []
    for name, (which, threads) in panels.items():
        wanted = {"which": which, "threads": threads, "allocator": allocator}
        mine = only(events, Row, suite=suite.name, **wanted)
        mine = sorted(mine, key=lambda r: (r.nbytes, r.network, list(suite.labels).index(r.kind)))
        made = []
        for row in mine:
            ratio = row.times_faster_than.get(suite.baseline)
            if row.kind == suite.baseline or ratio is None:
                continue
            text = f"{words.times(ratio.median)} ({words.quartiles(ratio)})"
            look = _look(suite, row.kind)
            made.append(Bar(row.network, who(row), ratio, text, look, row.calm, 1.0))
        if made:
            shown[name] = made
            rows += mine
    if not shown:
        return None
    baseline = suite.labels[suite.baseline]
    found = [
        r for r in ratios([*rows]) if (r.ours, r.other) == (suite.labels[suite.ours], baseline)
    ]
    unit = (
        f"Times as fast as {baseline}, which the upright line marks: medians of the ratios within "
        "interleaved rounds, and quartiles; longer is better."
    )
    return Chart(title, unit, conclude(found, baseline), bars(shown))


def bandwidth(events: list[Event], suite: Suite) -> Chart | None:
    """Bytes a fused pass must move, per second, against what a copy reaches here."""
    pair = (suite.baseline, suite.ours)
    wanted = {"suite": suite.name, "which": BACKWARD, "allocator": TUNED, "threads": 2}
    rows = [r for r in only(events, Row, **wanted) if r.kind in pair]
    if not rows:
        return None
    rows = sorted(rows, key=lambda r: (r.nbytes, r.network, pair.index(r.kind)))
    made, reached = [], []
    for row in rows:
        moved, s = row.floor_bytes / 1e9, row.seconds
        speed = Spread(moved / s.median, moved / s.q75, moved / s.q25, s.count)
        most = moved / row.floor_seconds
        look = _look(suite, row.kind)
        text = f"{speed.median:.3g} of {most:.3g}"
        made.append(Bar(row.network, who(row), speed, text, look, row.calm, most))
        if row.kind == suite.ours and row.calm:
            reached.append(100 * speed.median / most)
    conclusion = (
        f"{suite.labels[suite.ours]} reaches {min(reached):.2g} % to {max(reached):.2g} % of what "
        "the memory allows."
        if reached
        else "Others disturbed all of it: nothing is concluded."
    )
    unit = (
        f"GB/s: {suite.moved}, the least a fused pass moves, over the time it took; the upright "
        "line is what the memory allows, as measured beside it. What fits in the caches is bound "
        "by the overhead of calls."
    )
    title = f"{suite.title}: against the memory, forward + backward"
    return Chart(title, unit, conclusion, bars({"": made}))


def shares(events: list[Event], suite: Suite) -> Chart | None:
    """Share of a whole step that goes into the suite's subject."""
    found = [e for e in only(events, TrainingStep, suite=suite.name) if e.kind != PLAIN]
    if not found:
        return None
    made = []
    for e in found:
        count = e.seconds.count
        spread = Spread(100 * e.share, 100 * e.share_q25, 100 * e.share_q75, count)
        group = f"{e.title}, batch {e.batch}, {e.threads} threads"
        look = _look(suite, e.kind) if e.kind in suite.labels else "ours"  # penalties all are
        made.append(Bar(group, who(e), spread, words.share(e), look, e.calm))
    ours = [e for e in found if e.kind in OURS_IN[suite.name]] or found
    clear = [100 * e.share for e in ours if e.calm and e.share_q25 > 0]
    said = f"With gankernels it is more than noise in {len(clear)} of {len(ours)} measurements"
    if clear:
        said += f", {min(clear):.1f} % to {max(clear):.1f} % of a step there"
    unit = (
        "% of a whole step (D(real), D(fake), backward, SGD): what it takes more than a step "
        "without, paired by round, and quartiles; shorter is better."
    )
    title = f"{suite.title}: in a whole step"
    return Chart(title, unit, said + ".", bars({"": made}))


# --- points --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """Points of one look, (x, y), and for each whether it was calm."""

    label: str
    color: str
    points: list[tuple[float, float]]
    line: str = ""  # stroke-dasharray of what joins them; "" for points alone, "0" for no gaps
    calm: list[bool] = field(default_factory=list)


DASHED = "4 3"
_KEYS = {"": "&#9679;", "0": "&#9473;", DASHED: "&#9549;"}


def plot(series: Sequence[Series], x_name: str, y_name: str, x_ticks: dict[float, str]) -> str:
    """Points on logarithmic axes, as wide as a phone, with their legend."""
    left, top, right, bottom = 46.0, 22.0, 335.0, 218.0
    ys = [y for s in series for i, (_, y) in enumerate(s.points) if not s.calm or s.calm[i]]
    ys = ys or [y for s in series for _, y in s.points]
    low, high = min(1.0, *ys) / 1.3, max(1.0, *ys) * 1.3
    x_low, x_high = min(x_ticks) / 1.3, max(x_ticks) * 1.3

    def at(value: float, of: tuple[float, float], to: tuple[float, float]) -> float:
        share = math.log(value / of[0]) / math.log(of[1] / of[0])
        return to[0] + min(max(share, 0.0), 1.0) * (to[1] - to[0])

    def x(value: float) -> str:
        return f"{at(value, (x_low, x_high), (left, right)):.1f}"

    def y(value: float) -> str:
        return f"{at(value, (low, high), (bottom, top)):.1f}"

    parts = [f"<text x=2 y=11>{escape(y_name)}</text>"]
    parts.append(f"<text x={right} y=250 text-anchor=end>{escape(x_name)}</text>")
    for tick in {*_ticks(low, high), 1.0}:
        parts.append(f"<path class=grid d='M{left} {y(tick)}H{right}'/>")
        parts.append(f"<text x={left - 6} y={y(tick)} dy=4 text-anchor=end>{tick:g}</text>")
    for value, name in x_ticks.items():
        parts.append(f"<text x={x(value)} y=234 text-anchor=middle>{escape(name)}</text>")
    parts.append(f"<path class=one d='M{left} {y(1)}H{right}'/>")
    for s in series:
        if s.line:
            path = "L".join(f"{x(a)} {y(b)}" for a, b in s.points)
            look = f"stroke='{s.color}' stroke-dasharray='{s.line}'"
            parts.append(f"<path d='M{path}' fill='none' {look}/>")
        for i, (a, b) in enumerate(s.points):
            pale = "" if not s.calm or s.calm[i] else " fill-opacity=0.25"
            parts.append(f"<circle cx={x(a)} cy={y(b)} r=3 fill='{s.color}'{pale}/>")
    keys = "".join(
        f"<span class=key><span style='color:{s.color}'>{_KEYS[s.line]}"
        f"</span> {escape(s.label)}</span> "
        for s in series
    )
    return f"<svg viewBox='0 0 360 256' width=560>{''.join(parts)}</svg><div>{keys}</div>"


def _ticks(low: float, high: float) -> Iterator[float]:
    """1, 2 and 5 of every power of ten; of many powers every second one alone."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for power in powers[:: 2 if len(powers) > 5 else 1]:
        for digit in (1, 2, 5) if len(powers) < 4 else (1,):
            if low <= digit * 10.0**power <= high:
                yield digit * 10.0**power


def layers(events: list[Event]) -> Chart | None:
    """The per-layer drop-in on every weight shape."""
    found = only(events, Layer)
    if not found:
        return None
    series = []
    for which, color in ((FORWARD, "var(--layer)"), (BACKWARD, "var(--blue)")):
        of = [e for e in found if e.which == which]
        points = [(float(e.nbytes), e.times_faster.median) for e in of]
        if points:
            series.append(Series(which, color, points, calm=[e.calm for e in of]))
    ticks = {2.0**10: "1 KiB", 2.0**15: "32 KiB", 2.0**20: "1 MiB", 2.0**25: "32 MiB"}
    suite = SUITES[SPECTRAL_NORM]
    baseline = suite.labels[suite.baseline]
    unit = (
        f"Times as fast as {baseline}, every weight shape by itself, over its size; only the "
        "import line changed. On the line both are as fast; pale points were disturbed."
    )
    body = plot(series, "size of the weight", "times as fast", ticks)
    return Chart("Spectral norm: without fusing", unit, conclude(ratios([*found]), baseline), body)


def accuracy(events: list[Event]) -> Chart | None:
    """Errors of gradients over sigma: a panel for each precision, a color for each critic."""
    found = only(events, GradientAccuracy)
    if not found:
        return None
    colors = dict(
        zip(
            dict.fromkeys(e.critic for e in found),
            ("var(--third)", "var(--blue)", "var(--second)"),
            strict=False,
        )
    )
    panels = []
    for precision in dict.fromkeys(e.precision for e in found):
        series = []
        for critic, color in colors.items():
            for method, line in ((DIFFERENCE, "0"), (NOISE, DASHED)):
                of = {"precision": precision, "critic": critic, "method": method}
                points = [(e.sigma, e.error) for e in only(found, GradientAccuracy, **of)]
                if points:
                    series.append(Series(f"{critic}, {method}", color, points, line))
        ticks = {e.sigma: f"{e.sigma:g}" for e in found}
        drawn = plot(series, "sigma: root mean square of a step, an element", "error", ticks)
        panels.append(f"<div><h3>{escape(precision)}</h3>{drawn}</div>")

    def worst(method: str, pick: Callable[[list[float]], float]) -> float:
        return pick([e.error for e in found if e.method == method])

    conclusion = (
        f"By differences the error is {worst(DIFFERENCE, min):.1e} to {worst(DIFFERENCE, max):.1e} "
        f"of the gradient, by noise {worst(NOISE, min):.1e} to {worst(NOISE, max):.1e}."
    )
    unit = (
        "Relative error of R1's gradient by all parameters, without second derivatives, against "
        "that of second derivatives in float64; 1 is as large as the gradient; lower is better."
    )
    title = "Gradient penalties: gradients without second derivatives"
    return Chart(title, unit, conclusion, f"<div class=panels>{''.join(panels)}</div>")


def all_charts(events: list[Event]) -> list[Chart]:
    """Every chart for which something was measured."""
    norms, penalties, augmentation = (
        SUITES[name] for name in (SPECTRAL_NORM, GRADIENT_PENALTY, AUGMENTATION)
    )
    both = {which: (which, 2) for which in (FORWARD, BACKWARD)}
    threads = {f"{n} thread(s)": (BACKWARD, n) for n in (2, 1)}
    of_given = "Gradient penalties: of given gradients, forward + backward"
    default = "Spectral norm: with default malloc, whose large outputs page-fault in every call"
    made = [
        speedups(events, norms, "Spectral norm: every network, no page faults", both),
        bandwidth(events, norms),
        speedups(events, norms, default, both, DEFAULT),
        layers(events),
        shares(events, norms),
        speedups(events, penalties, of_given, threads),
        bandwidth(events, penalties),
        shares(events, penalties),
        accuracy(events),
        speedups(
            events,
            augmentation,
            "Augmentation: all of it, random parameters included",
            {which: (which, 2) for which in PASSES},
        ),
    ]
    return [chart for chart in made if chart is not None]
