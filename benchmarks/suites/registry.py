"""The suites: what tables and charts need to know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.suites import augmentation
from benchmarks.suites import gradient_penalty as penalties
from benchmarks.suites import spectral_norm as contestants

Event = dict[str, Any]

PLAIN = "plain"  # a whole step without the suite's subject


@dataclass(frozen=True)
class Suite:
    """What the rows of a suite have in common."""

    title: str
    subject: str  # what the rows are of
    labels: dict[str, str]  # by kind, in the order of the columns
    baseline: str  # every ratio is against this one
    ours: str
    tolerance: float  # a row that is off by more says so
    moved: str  # what the bytes of forward + backward are


SPECTRAL_NORM, GRADIENT_PENALTY = "spectral norm", "gradient penalty"
AUGMENTATION = "augmentation"
SUITES = {
    SPECTRAL_NORM: Suite(
        title="Spectral norm",
        subject="All weights of a network",
        labels=contestants.LABELS | {PLAIN: "no spectral norm"},
        baseline=contestants.BASELINE,
        ours=contestants.FUSED,
        tolerance=contestants.TOLERANCE,
        moved="5 reads and 2 writes of the weights",
    ),
    GRADIENT_PENALTY: Suite(
        title="Gradient penalties",
        subject="The penalty of given gradients",
        labels=penalties.LABELS | {PLAIN: "no penalty"},
        baseline=penalties.USUAL,
        ours=penalties.OURS,
        tolerance=penalties.ACCURACY,
        moved="2 reads and 1 write of the gradients",
    ),
    AUGMENTATION: Suite(
        title="Augmentation",
        subject="A batch of images, random parameters included",
        labels=augmentation.LABELS,
        baseline=augmentation.MULTI_PASS,
        ours=augmentation.OURS,
        tolerance=augmentation.ACCURACY,
        moved="2 reads and 2 writes of the images",
    ),
}


def suite_of(event: Event) -> Suite:
    """The suite of an event."""
    return SUITES[event["suite"]]


def of_suite(events: list[Event], suite: Suite) -> list[Event]:
    """The events of a suite."""
    return [event for event in events if suite_of(event) is suite]


def who(event: Event) -> str:
    """The contestant of an event, by the name that people read."""
    kind: str = event["kind"]
    label = suite_of(event).labels.get(kind, kind)
    return f"{label}: {event['form']}" if event.get("form") else label
