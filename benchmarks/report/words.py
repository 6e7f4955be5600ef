"""What the page and the terminal say alike."""

from __future__ import annotations

from typing import Any

from benchmarks.core.contest import FORWARD, OURS, PLAIN
from benchmarks.core.events import (
    AUGMENTATION,
    CompiledStep,
    Event,
    GradientAccuracy,
    MethodStep,
    Reduction,
    Row,
    StepMemory,
    TrainingStep,
    only,
)
from benchmarks.suites import augmentation
from benchmarks.suites.first_order import CENTRAL, DIFFERENCE, EXACT, NOISE, ONE_SIDED
from benchmarks.suites.gradient_penalty import USUAL

Facts = dict[str, Any]


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


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


METHOD_COLUMNS = ["R1 + R2", "ms", "x exact", "ms, compiled", "x exact", "peak MB"]


def compiled_rows(events: list[Event]) -> list[list[str]]:
    """By network: a whole step in eager mode and compiled, and what the first call takes."""
    return [
        [
            e.title + ("" if e.calm else " *"),
            batch(e),
            milliseconds(e.eager_seconds.median),
            milliseconds(e.compiled_seconds.median),
            f"{e.times_faster.median:.2f}",
            f"{e.first_seconds:.0f}",
        ]
        for e in only(events, CompiledStep)
    ]


COMPILED_COLUMNS = ["critic", "batch", "ms, eager", "ms, compiled", "times faster", "first call, s"]
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


ACCURACY_COLUMNS = ["critic", "precision", "sigma", "difference: error", "cosine", "noise: error"]
ACCURACY_COLUMNS += ["cosine"]


def augmentation_sentences(events: list[Event]) -> list[str]:
    """What a reader must know of augmentation's rows and figures."""
    case = augmentation.GEOMETRY[-1]
    found = [
        f"{milliseconds(e.seconds.median)} ms ({e.threads} thr.)"
        for e in only(events, Row, suite=AUGMENTATION, kind=augmentation.MULTI_PASS)
        if e.calm and (e.network, e.which) == (case.name, FORWARD)
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
