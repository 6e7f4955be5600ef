"""What the pages and the terminal say alike: sentences, and tables as rows of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.core.contest import OURS, PLAIN
from benchmarks.core.events import (
    CompiledStep,
    Event,
    Figure,
    GradientAccuracy,
    LeftOut,
    MethodStep,
    Reduction,
    Row,
    StepMemory,
    TrainingStep,
    only,
)
from benchmarks.core.harness import MIN_ROUNDS, Spread
from benchmarks.report import findings
from benchmarks.report.findings import Against, Ratio
from benchmarks.suites.first_order import CENTRAL, DIFFERENCE, EXACT, NOISE, ONE_SIDED, STEP_TITLE
from benchmarks.suites.gradient_penalty import USUAL
from benchmarks.suites.registry import SUITES, Suite, who

Facts = dict[str, Any]

#: What long names become where the width is short, in this order.
SHORT = {
    "gankernels.compile_step": "compile_step",
    "gankernels, eager": "eager mode",
    "gankernels per layer": "per layer",
    "gankernels fused": "fused",
    "torch parametrization": "torch",
    "torch hook": "hook",
    "torch.compile of it": "compiled",
    "torch.compile of that": "compiled",
    "view, norm(2, 1)": "norm(2, 1)",
    "fastest eager form": "eager",
    "published pipeline": "published",
    "kornia, bilinear, compiled": "kornia c.",
    "kornia, bilinear": "kornia",
    "torchvision, one by one": "torchvis.",
    "forward, no_grad": "no_grad",
    "forward + backward": "fwd+bwd",
    "R1 double backward": "R1",
    "forward": "fwd",
    " channels_last": " NHWC",
    " at p = ": " ",
    "convolutions": "conv",
    " autocast": "",
    "difference, ": "",
    " (in full: ": " (",
    "Spectral norm: ": "norm: ",
    "Gradient penalties: ": "penalties: ",
    "exact, second derivatives": "exact",
    "times faster": "faster",
}


def short(text: str) -> str:
    """The same with the short names."""
    for long, brief in SHORT.items():
        text = text.replace(long, brief)
    return text


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def times(ratio: float) -> str:
    """1.24x, 3.4x, 20x."""
    return f"{ratio:.{2 if ratio < 1.995 else 1 if ratio < 9.95 else 0}f}x"


def quartiles(spread: Spread) -> str:
    return f"{times(spread.q25)[:-1]} to {times(spread.q75)[:-1]}"


def range_of(group: Against) -> str:
    """From the lowest median to the highest."""
    if group.range is None:
        return "all disturbed"
    low, high = map(times, group.range)
    return low if low == high else f"{low} to {high}"


AGAINST_COLUMNS = ["gankernels", "against", "as fast", "slower", "faster", "same", "disturbed"]


def against_rows(groups: list[Against]) -> list[list[str]]:
    """By alternative: the range, and how many measurements say what."""
    return [
        [
            f"{group.suite}: {group.ours}",
            group.other,
            range_of(group),
            str(group.count("slower")),
            *(str(group.count(verdict) or "") for verdict in AGAINST_COLUMNS[4:]),
        ]
        for group in groups
    ]


def loss(ratio: Ratio) -> str:
    """Where gankernels is slower, and by how much."""
    found = f"{times(ratio.spread.median)} ({quartiles(ratio.spread)})"
    return f"{ratio.ours} is slower than {ratio.other}, {ratio.where}: {found}"


def mark(calm: bool, seconds: Spread) -> str:
    """What a reader must know of a time that little stands behind."""
    few = f" ({seconds.count} samples)" if seconds.count < MIN_ROUNDS else ""
    return ("" if calm else " *") + few


def share(step: TrainingStep) -> str:
    """What of a step the suite's subject takes; no number where that may as well be nothing."""
    if step.kind == PLAIN:
        return ""
    low, high = 100 * step.share_q25, 100 * step.share_q75
    if low <= 0 <= high:
        return f"within noise ({low:.1f} to {high:.1f} %)"
    return f"{100 * step.share:.1f} % ({low:.1f} to {high:.1f})"


def left_out_lines(events: list[Event]) -> list[str]:
    """Who was left out, and why: a line for all missing packages, and one for each other reason."""
    missing: dict[str, None] = {}
    others: dict[tuple[str, str], list[str]] = {}
    for event in only(events, LeftOut):
        if event.reason.startswith("ModuleNotFoundError"):
            missing[event.reason.rpartition("'")[0].rpartition("'")[2]] = None
        else:
            others.setdefault((who(event), event.reason), []).append(event.network)
    lines = [f"Not compared, as not installed: {', '.join(missing)}"] if missing else []
    for (contestant, reason), networks in others.items():
        lines.append(f"Left out: {contestant} ({'; '.join(dict.fromkeys(networks))}): {reason}")
    return lines


def verdict_mark(bar: Facts) -> str:
    """What is said of a bar."""
    if bar["reached"] is None:
        return "not measured" if bar["measured"] is None else "disturbed, not judged"
    return "reached" if bar["reached"] else "not reached"


def batch(step: TrainingStep | CompiledStep) -> str:
    """The batch of a step, and that of the full mode where it is another."""
    taken, full = step.batch, step.full_batch
    return str(taken) if taken == full else f"{taken} (in full: {full})"


def step_peaks(events: list[Event]) -> dict[tuple[str, str], int]:
    """Peak memory by network and kind, of the steps where it was measured."""
    return {(e.network, e.kind): e.peak_bytes for e in only(events, StepMemory)}


def reduction_sentence(event: Reduction) -> str:
    """How little of a step the penalty's own arithmetic is."""
    usual, ours = (100 * event.shares[kind] for kind in (USUAL, OURS))
    return (
        f"{event.title}: of a whole step with R1, the penalty's reduction of the gradients, "
        f"which is what gankernels makes faster, is {usual:.2f} % in the usual form and "
        f"{ours:.2f} % in gankernels. The rest is the critic's own."
    )


METHODS = {
    PLAIN: "no penalty",
    NOISE: "noise",
    ONE_SIDED: "difference, one-sided",
    CENTRAL: "difference, central",
    EXACT: "exact, second derivatives",
}


def method_rows(events: list[Event]) -> list[list[str]]:
    """By method: milliseconds a step and times the exact one's, eager and compiled; peak memory."""
    rows = []
    for kind, label in METHODS.items():
        cells = [label]
        for compiled in (False, True):
            found = only(events, MethodStep, kind=kind, compiled=compiled)
            for step in found[:1]:
                cells += [milliseconds(step.seconds.median), f"{step.over_exact.median:.2f}"]
            cells += [] if found else ["", ""]
        peaks = [e.peak_bytes / 1e6 for e in only(events, MethodStep, kind=kind, compiled=False)]
        rows.append([*cells, f"{peaks[0]:.0f}" if peaks else ""])
    return rows


METHOD_COLUMNS = ["R1 + R2", "ms", "over exact", "compiled ms", "over exact", "peak MB"]


def compiled_rows(events: list[Event]) -> list[list[str]]:
    """By network: a whole step in eager mode and compiled, and what the first call takes."""
    return [
        [
            e.title + mark(e.calm, e.compiled_seconds),
            batch(e),
            milliseconds(e.eager_seconds.median),
            milliseconds(e.compiled_seconds.median),
            f"{e.times_faster.median:.2f}",
            f"{e.first_seconds:.0f}",
        ]
        for e in only(events, CompiledStep)
    ]


COMPILED_COLUMNS = ["critic", "batch", "eager ms", "compiled ms", "times faster", "first call s"]
COMPILED_TITLE = "A whole step with R1 of a spectrally normalized critic, as one compiled graph"


def accuracy_rows(events: list[Event]) -> list[list[str]]:
    """Relative error and cosine of gradients, a line for each critic, precision and sigma."""
    rows = []
    found = only(events, GradientAccuracy)
    for key in dict.fromkeys((e.critic, e.precision, e.sigma) for e in found):
        cells = [*key[:2], f"{key[2]:g}"]
        for method in (DIFFERENCE, NOISE):
            for e in found:
                if (e.critic, e.precision, e.sigma) == key and e.method == method:
                    cells += [f"{e.error:.1e}", f"{e.cosine:.4f}"]
        rows.append(cells)
    return rows


ACCURACY_COLUMNS = ["critic", "precision", "sigma", "error", "cosine", "noise: error", "its cosine"]


AUGMENTATION_SENTENCES = (
    "The published pipeline is composed of its passes in plain PyTorch, as benchmarks/published "
    "has it, without its own CUDA operators.",
    "kornia and torchvision interpolate bilinearly and do not anti-alias: they do less work, and "
    "another. torchvision takes images one by one, as it draws one transform a call.",
    "Cycles a pixel are for all 3 channels: processor seconds of one thread times the frequency "
    "in /proc/cpuinfo, which on virtual machines is that of the time-stamp counter.",
)


DISTURBED = "* others used the processors during most samples"


@dataclass(frozen=True)
class Table:
    """Rows of text under a title: the first `left` columns are names, optional ones can go."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    optional: Sequence[str] = ()


def rows_table(events: list[Event], suite: Suite, allocator: str, threads: int) -> Table:
    """A line for each network and pass: the baseline's time, then times faster than that."""
    rows = only(events, Row, suite=suite.name, allocator=allocator, threads=threads)
    present = {row.kind for row in rows}
    kinds = [kind for kind in suite.labels if kind in present]
    passes = dict.fromkeys(row.which for row in rows)
    only_pass = f", {next(iter(passes))}" if len(passes) == 1 else ""
    header = ["what", *([] if only_pass else ["pass"]), *(suite.labels[kind] for kind in kinds)]
    optional = ["quartiles", "GB/s (copy)", "eager form"]
    forms = any(row.form for row in rows)
    body = []
    for network, which in dict.fromkeys((row.network, row.which) for row in rows):
        found = {r.kind: r for r in rows if (r.network, r.which) == (network, which)}
        cells = [network, *([] if only_pass else [which])]
        cells += [_cell(found.get(kind), suite) for kind in kinds]
        ours = found.get(suite.ours)
        ratio = ours.times_faster_than.get(suite.baseline) if ours else None
        cells.append(quartiles(ratio) if ratio else "")
        speeds = (ours.bytes_per_second / 1e9, ours.copy_bandwidth / 1e9) if ours else None
        cells.append(f"{speeds[0]:.0f} ({speeds[1]:.0f})" if speeds else "")
        body.append(cells + [next((r.form for r in found.values() if r.form), "")] * forms)
    title = (
        f"{suite.subject}{only_pass}, {allocator} malloc, {threads} thread(s): "
        f"ms of {suite.labels[suite.baseline]}, times faster than it of the others; quartiles of "
        f"{suite.labels[suite.ours]}"
    )
    header += [*optional[:2], *optional[2:][:forms]]
    return Table(title, header, body, 1 if only_pass else 2, optional)


def _cell(row: Row | None, suite: Suite) -> str:
    if row is None:
        return "-"
    ratio = row.times_faster_than.get(suite.baseline)
    if row.kind == suite.baseline or ratio is None:
        text = f"{milliseconds(row.seconds.median)} ms"
    else:
        text = times(ratio.median)
    return text + ("" if row.calm else "*")


def inexact(rows: list[Row], suite: Suite) -> Iterator[str]:
    """Who is off by more than gankernels may be."""
    wrong = {who(row): row for row in rows if row.error > suite.tolerance}
    for name, row in wrong.items():
        yield f"{name} is off by {row.error:.0e} at {row.network}"


def steps_table(events: list[Event], suite: Suite) -> Table:
    """Whole steps: time, share of the suite's subject, and peak memory where it was measured."""
    peaks = step_peaks([event for event in events if event.suite == suite.name])
    body = []
    for step in only(events, TrainingStep, suite=suite.name):
        peak = peaks.get((step.network, step.kind))
        body.append(
            [
                f"{step.network}, {step.batch}",
                suite.labels.get(step.kind, step.kind) + mark(step.calm, step.seconds),
                milliseconds(step.seconds.median),
                share(step),
                "" if peak is None else f"{peak / 1e6:.0f}",
            ]
        )
    title = f"A whole critic step, and the share in it. {suite.title}"
    return Table(title, ["network, batch", "who", "ms", "share (quartiles)", "peak MB"], body, 2)


def bars_table(verdicts: list[Facts]) -> Table:
    """Every bar, as measured."""
    body = []
    for bar in verdicts:
        measured = "" if bar["measured"] is None else f"{bar['measured']:.2f}"
        sign = "<=" if bar["at_most"] else ">="
        what = f"{bar['group']}: {bar['subject']}"
        body.append([what, f"{sign} {bar['bar']:g}", measured, verdict_mark(bar)])
    return Table("Bars", ["what", "bar", "measured", ""], body)


def against_table(groups: list[Against]) -> Table:
    title = "Against each alternative: lowest to highest median, and what the quartiles say"
    optional = AGAINST_COLUMNS[4:]
    return Table(title, AGAINST_COLUMNS, against_rows(groups), 2, optional)


def of_suite(events: list[Event], suite: Suite) -> Iterator[Table | str]:
    """What was measured of a suite."""
    rows = only(events, Row, suite=suite.name)
    for allocator, threads in dict.fromkeys((row.allocator, row.threads) for row in rows):
        yield rows_table(events, suite, allocator, threads)
    yield from inexact(rows, suite)
    if only(events, TrainingStep, suite=suite.name):
        yield steps_table(events, suite)
    for event in only(events, Reduction, suite=suite.name):
        yield reduction_sentence(event)
    if only(events, MethodStep, suite=suite.name):
        title = f"A whole step without second derivatives: {STEP_TITLE}"
        yield Table(title, METHOD_COLUMNS, method_rows(events))
    if only(events, CompiledStep, suite=suite.name):
        found = compiled_rows(events)
        yield Table(COMPILED_TITLE, COMPILED_COLUMNS, found, 1, ["first call s"])
    if only(events, GradientAccuracy, suite=suite.name):
        title = "R1's gradient without second derivatives: error and cosine against the exact one"
        found = accuracy_rows(events)
        yield Table(title, ACCURACY_COLUMNS, found, 2, ["its cosine"])
    if only(events, Figure, suite=suite.name):
        yield from AUGMENTATION_SENTENCES


def contents(report: Facts) -> Iterator[Table | str]:
    """All that is shown, but for the summary."""
    events = report["events"]
    for suite in SUITES.values():
        yield from of_suite(events, suite)
    if "bars" in report:
        yield bars_table(report["bars"])
    if groups := findings.against(events):
        yield against_table(groups)
        yield from map(loss, findings.slower(groups))
    yield from left_out_lines(events)
    if not all(row.calm for row in only(events, Row)):
        yield DISTURBED


def headlines(report: Facts) -> Iterator[str]:
    """What is faster by how much, in how much it is slower, and where the most."""
    groups = findings.against(report["events"])
    for suite in SUITES.values():
        mine = suite.title, suite.labels[suite.ours], suite.labels[suite.baseline]
        for group in groups:
            if (group.suite, group.ours, group.other) == mine:
                cases = sum(ratio.calm and ratio.ranged for ratio in group.ratios)
                known = (
                    f" as fast as {group.other} ({cases} case{'s' * (cases > 1)})"
                    if group.range
                    else ""
                )
                yield f"{group.suite}: {range_of(group)}{known}"
    lost, judged = findings.slower(groups), [r for g in groups for r in g.ratios if r.calm]
    if judged:
        yield f"Slower in {len(lost)} of {len(judged)} comparisons"
    if lost:
        yield f"The most: {loss(lost[0])}"
    if disturbed := sum(group.count("disturbed") for group in groups):
        yield f"Disturbed by others, and not counted: {disturbed}"
