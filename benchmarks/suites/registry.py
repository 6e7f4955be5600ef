"""The suites: what tables and charts need to know of them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.core.contest import OURS, PLAIN
from benchmarks.core.events import (
    AUGMENTATION,
    GRADIENT_PENALTY,
    SPECTRAL_NORM,
    Event,
    LeftOut,
    Row,
    TrainingStep,
)
from benchmarks.suites import augmentation, gradient_penalty, spectral_norm


@dataclass(frozen=True)
class Suite:
    """What the rows of a suite have in common."""

    name: str  # as events and jobs have it
    title: str
    subject: str  # what the rows are of
    labels: dict[str, str]  # by kind, in the order of the columns
    baseline: str  # every ratio is against this one
    ours: str
    tolerance: float  # a row that is off by more says so
    moved: str  # what the bytes of forward + backward are


SUITES = {
    SPECTRAL_NORM: Suite(
        name=SPECTRAL_NORM,
        title="Spectral norm",
        subject="All weights of a network",
        labels=spectral_norm.LABELS | {PLAIN: "no spectral norm"},
        baseline=spectral_norm.BASELINE,
        ours=spectral_norm.FUSED,
        tolerance=spectral_norm.TOLERANCE,
        moved="5 reads and 2 writes of the weights",
    ),
    GRADIENT_PENALTY: Suite(
        name=GRADIENT_PENALTY,
        title="Gradient penalties",
        subject="The penalty of given gradients",
        labels=gradient_penalty.LABELS | {PLAIN: "no penalty"},
        baseline=gradient_penalty.USUAL,
        ours=OURS,
        tolerance=gradient_penalty.ACCURACY,
        moved="2 reads and 1 write of the gradients",
    ),
    AUGMENTATION: Suite(
        name=AUGMENTATION,
        title="Augmentation",
        subject="A batch of images, random parameters included",
        labels=augmentation.LABELS,
        baseline=augmentation.MULTI_PASS,
        ours=OURS,
        tolerance=augmentation.ACCURACY,
        moved="2 reads and 2 writes of the images",
    ),
}


def suite_of(event: Event) -> Suite:
    """The suite of an event."""
    return SUITES[event.suite]


def who(event: Row | TrainingStep | LeftOut) -> str:
    """The contestant of an event, by the name that people read."""
    label = suite_of(event).labels.get(event.kind, event.kind)
    form = event.form if isinstance(event, Row) else ""
    return f"{label}: {form}" if form else label
