"""The report's charts, as matplotlib figures. Blue is ours, gray is torch's."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FormatStrFormatter, LogLocator

from benchmarks.core.contest import BACKWARD, COMPILED, FORWARD, OURS, PLAIN
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
from benchmarks.report.bars import AUGMENT_BARS, FUSED_BARS, PENALTY_BARS, PENALTY_SHAPES
from benchmarks.suites import critics
from benchmarks.suites.augmentation import KORNIA, MULTI_PASS, R1
from benchmarks.suites.gradient_penalty import EAGER, USUAL
from benchmarks.suites.registry import SUITES, Suite
from benchmarks.suites.spectral_norm import BASELINE, FUSED, HOOK, LAYER

COLORS = {
    HOOK: "#c9ced6",
    COMPILED: "#8a94a3",
    BASELINE: "#5b6675",
    LAYER: "#8fc1f0",
    FUSED: "#1769c7",
    USUAL: "#5b6675",
    EAGER: "#c9ced6",
    MULTI_PASS: "#5b6675",
    KORNIA: "#c9ced6",
    OURS: "#1769c7",
    critics.R1: "#1769c7",
    critics.R1_R2: "#5b6675",
    critics.WGAN_GP: "#8fc1f0",
    critics.APPROXIMATE_R1: "#c9ced6",
}
_STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa3af",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ebef",
    "svg.fonttype": "none",
    "legend.frameon": False,
}


def _rows(
    events: list[Event], suite: Suite, which: str, allocator: str, threads: int = 2
) -> list[Row]:
    return only(events, Row, suite=suite.name, which=which, allocator=allocator, threads=threads)


def _networks(rows: list[Row]) -> list[str]:
    """Names, smallest network first."""
    size = {row.network: row.nbytes for row in rows}
    return sorted(size, key=lambda name: size[name])


def _barh(
    axes: Axes,
    groups: list[str],
    kinds: list[str],
    value: Callable[[str, str], tuple[float, float, float] | None],
    text: Callable[[float], str],
) -> None:
    """Grouped horizontal bars with their quartiles; `value` gives (median, q25, q75)."""
    height = 0.8 / max(len(kinds), 1)
    for k, kind in enumerate(kinds):
        for g, group in enumerate(groups):
            found = value(group, kind)
            if found is None:
                continue
            median, low, high = found
            y = g + (k - (len(kinds) - 1) / 2) * height
            axes.barh(y, median, height * 0.92, color=COLORS[kind])
            axes.plot([low, high], [y, y], color="#20262e", lw=0.9)
            axes.annotate(
                text(median),
                (max(median, high), y),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color="#39424e",
            )
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)


def _legend(figure: Figure, kinds: list[str], labels: dict[str, str]) -> None:
    handles = [Rectangle((0, 0), 1, 1, color=COLORS[kind]) for kind in kinds]
    names = [labels.get(kind, kind) for kind in kinds]
    figure.legend(handles, names, loc="outside upper left", ncols=len(kinds), fontsize=9)


def speedups(
    suite: Suite, panels: dict[str, list[Row]], bar: Callable[[Row, str], float | None]
) -> Figure | None:
    """Times faster than the baseline, a panel for each title; `bar(row, title)` is marked."""
    panels = {title: rows for title, rows in panels.items() if rows}
    rows = [row for found in panels.values() for row in found]
    networks = _networks(rows)
    present = {row.kind for row in rows} - {suite.baseline}
    kinds = [kind for kind in suite.labels if kind in present]
    if not kinds:
        return None
    figure, (columns,) = plt.subplots(
        1,
        len(panels),
        figsize=(11, 1.2 + 0.22 * len(networks) * (len(kinds) + 1)),
        layout="constrained",
        squeeze=False,
    )
    for axes, (title, found) in zip(columns, panels.items(), strict=True):
        by_key = {(row.network, row.kind): row for row in found}

        def value(
            network: str, kind: str, by_key: dict[tuple[str, str], Row] = by_key
        ) -> tuple[float, float, float] | None:
            row = by_key.get((network, kind))
            ratio = row.times_faster_than.get(suite.baseline) if row else None
            return (ratio.median, ratio.q25, ratio.q75) if ratio else None

        _barh(axes, networks, kinds, value, lambda x: f"{x:.1f}")
        axes.axvline(1, color=COLORS[suite.baseline], lw=1.2)
        for y, network in enumerate(networks):
            row = by_key.get((network, suite.ours))
            at = bar(row, title) if row else None
            if at is not None:
                axes.plot([at, at], [y - 0.42, y + 0.42], color="#d4572a", lw=1.4, ls=":")
        axes.set_title(title)
        axes.set_xlabel(f"times faster than {suite.labels[suite.baseline]}")
        axes.set_xlim(left=0)
    for axes in columns[1:]:
        axes.set_yticklabels([])
    _legend(figure, kinds, suite.labels)
    return figure


def _spectral_speedups(events: list[Event], allocator: str) -> Figure | None:
    def bar(row: Row, which: str) -> float | None:
        bars = FUSED_BARS.get(row.network) if allocator == TUNED else None
        return bars[which == BACKWARD] if bars else None

    suite = SUITES[SPECTRAL_NORM]
    panels = {which: _rows(events, suite, which, allocator) for which in (FORWARD, BACKWARD)}
    return speedups(suite, panels, bar)


def _penalty_speedups(events: list[Event]) -> Figure | None:
    def bar(row: Row, _title: str) -> float:
        return PENALTY_BARS[USUAL][row.shape != PENALTY_SHAPES[0]]

    suite = SUITES[GRADIENT_PENALTY]
    panels = {f"{n} thread(s)": _rows(events, suite, BACKWARD, TUNED, n) for n in (2, 1)}
    return speedups(suite, panels, bar)


def _augment_speedups(events: list[Event]) -> Figure | None:
    def bar(row: Row, which: str) -> float | None:
        return AUGMENT_BARS.get(row.network, {}).get(which)

    suite = SUITES[AUGMENTATION]
    panels = {which: _rows(events, suite, which, TUNED) for which in (FORWARD, BACKWARD, R1)}
    return speedups(suite, panels, bar)


def bandwidth(events: list[Event], suite: Suite) -> Figure | None:
    """Bytes a fused pass must move, per second, against what a copy reaches here."""
    pair = (suite.baseline, suite.ours)
    rows = [r for r in _rows(events, suite, BACKWARD, TUNED) if r.kind in pair]
    networks = _networks(rows)
    if not networks:
        return None
    kinds = [kind for kind in pair if any(r.kind == kind for r in rows)]
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.5 * len(networks)), layout="constrained")
    by_key = {(row.network, row.kind): row for row in rows}

    def value(network: str, kind: str) -> tuple[float, float, float] | None:
        row = by_key.get((network, kind))
        if row is None:
            return None
        seconds, moved = row.seconds, row.floor_bytes / 1e9
        return moved / seconds.median, moved / seconds.q75, moved / seconds.q25

    _barh(axes, networks, kinds, value, lambda x: f"{x:.0f}")
    for y, network in enumerate(networks):
        row = next(r for r in rows if r.network == network)
        copy = row.floor_bytes / row.floor_seconds / 1e9
        axes.plot([copy, copy], [y - 0.42, y + 0.42], color="#d4572a", lw=2)
    axes.set_xlabel(f"GB/s: {suite.moved}, over the measured time")
    axes.set_title("Forward + backward against the memory (red: floor at the measured bandwidth)")
    _legend(figure, kinds, suite.labels)
    return figure


def layers(events: list[Event]) -> Figure | None:
    """The per-layer drop-in on every weight shape."""
    found = only(events, Layer)
    if not found:
        return None
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    marks = {FORWARD: ("o", COLORS[LAYER]), BACKWARD: ("s", COLORS[FUSED])}
    for which, (marker, color) in marks.items():
        points = [e for e in found if e.which == which]
        x = [e.nbytes for e in points]
        middle = [e.times_faster.median for e in points]
        low = [m - e.times_faster.q25 for m, e in zip(middle, points, strict=True)]
        high = [e.times_faster.q75 - m for m, e in zip(middle, points, strict=True)]
        axes.errorbar(
            x, middle, [low, high], fmt=marker, ms=4, lw=0.8, color=color, label=which, alpha=0.85
        )
    axes.axhline(1, color=COLORS[BASELINE], lw=1.2)
    axes.set_xscale("log")
    medians = [e.times_faster.median for e in found]
    axes.set_yscale("log")
    axes.set_ylim(0.8 * min(0.8, *medians), 1.25 * max(4.0, *medians))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    ticks = {2**10: "1 KiB", 2**14: "16 KiB", 2**18: "256 KiB", 2**22: "4 MiB", 2**26: "64 MiB"}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set_xlabel("size of the weight")
    axes.set_ylabel("times faster than torch's")
    axes.set_title("Per-layer drop-in, every weight shape by itself (line: as fast as torch)")
    axes.legend(loc="upper left")
    return figure


def shares(events: list[Event], suite: Suite) -> Figure | None:
    """Share of a whole step that goes into the suite's subject."""
    found = [e for e in only(events, TrainingStep, suite=suite.name) if e.kind != PLAIN]
    if not found:
        return None
    titles = list(dict.fromkeys(_step_title(e) for e in found))
    kinds = list(dict.fromkeys(e.kind for e in found))
    by_key = {(_step_title(e), e.kind): e for e in found}
    figure, axes = plt.subplots(figsize=(9, 1.0 + 0.75 * len(titles)), layout="constrained")

    def value(title: str, kind: str) -> tuple[float, float, float] | None:
        e = by_key.get((title, kind))
        return (100 * e.share, 100 * e.share_q25, 100 * e.share_q75) if e else None

    _barh(axes, titles, kinds, value, lambda x: f"{x:.1f} %")
    axes.axvline(0, color="#9aa3af", lw=0.8)
    axes.set_xlabel(f"% of a whole step (D(real), D(fake), backward, SGD): {suite.title.lower()}")
    _legend(figure, kinds, suite.labels)
    return figure


def accuracy(events: list[Event]) -> Figure | None:
    """Errors of gradients over sigma: a panel for each precision, a color for each critic."""
    found = only(events, GradientAccuracy)
    if not found:
        return None
    precisions = list(dict.fromkeys(e.precision for e in found))
    figure, panels = plt.subplots(
        1, len(precisions), figsize=(11, 4), layout="constrained", sharey=True, squeeze=False
    )
    for axes, precision in zip(panels[0], precisions, strict=True):
        for color, critic in zip(
            ("#1a7f4b", "#2f6fb2", "#c0392b"), dict.fromkeys(e.critic for e in found), strict=False
        ):
            for method, style in (("difference", "o-"), ("noise", "x--")):
                points = [
                    (e.sigma, e.error)
                    for e in found
                    if (e.precision, e.critic, e.method) == (precision, critic, method)
                ]
                label = f"{critic}, {method}"
                axes.loglog(*zip(*points, strict=True), style, color=color, label=label)
        axes.axhline(1, color="#9aa3af", lw=0.8)
        axes.set_title(precision)
        axes.set_xlabel("sigma: root mean square of the step, an element")
    panels[0][0].set_ylabel("relative error of the gradient")
    panels[0][-1].legend(fontsize=8, loc="lower left")
    return figure


def _step_title(event: TrainingStep) -> str:
    return f"{event.title}\nbatch {event.batch}, {event.threads} threads"


def all_charts(events: list[Event]) -> dict[str, Figure]:
    """Name to figure, of every chart for which something was measured."""
    spectral_norm, penalty = SUITES[SPECTRAL_NORM], SUITES[GRADIENT_PENALTY]
    made = {
        "speedup": _spectral_speedups(events, TUNED),
        "bandwidth": bandwidth(events, spectral_norm),
        "default_malloc": _spectral_speedups(events, DEFAULT),
        "layers": layers(events),
        "shares": shares(events, spectral_norm),
        "penalty_speedup": _penalty_speedups(events),
        "penalty_bandwidth": bandwidth(events, penalty),
        "penalty_shares": shares(events, penalty),
        "penalty_accuracy": accuracy(events),
        "augment_speedup": _augment_speedups(events),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def styled() -> Any:
    """The look of every chart, as a context manager."""
    return plt.rc_context(_STYLE)


def svg(figure: Figure) -> str:
    """A figure as an <svg> element to stand inside a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
