"""What the page and the terminal say alike."""

from __future__ import annotations

from typing import Any

from benchmarks.core.contest import FORWARD, OURS
from benchmarks.core.events import (
    AUGMENTATION,
    Event,
    Reduction,
    Row,
    StepMemory,
    TrainingStep,
    only,
)
from benchmarks.suites import augmentation
from benchmarks.suites.gradient_penalty import USUAL

Facts = dict[str, Any]


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def verdict_mark(bar: Facts) -> str:
    """What is said of a bar."""
    if bar["reached"] is None:
        return "not measured" if bar["measured"] is None else "disturbed, not judged"
    return "reached" if bar["reached"] else "not reached"


def batch(step: TrainingStep) -> str:
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
