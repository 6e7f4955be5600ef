"""What a measuring process found out, as it is printed line by line and kept in results.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from benchmarks.core.harness import Spread

SPECTRAL_NORM, GRADIENT_PENALTY = "spectral norm", "gradient penalty"
AUGMENTATION = "augmentation"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Where and of what something was found; the measuring process fills it in from its job."""

    suite: str = ""
    allocator: str = ""
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class LeftOut(Event):
    """Who was not measured, and why."""

    network: str
    kind: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Checked(Event):
    """How long the contestants of a case took to build and check."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Row(Event):
    """A contestant's pass over a case, next to the bandwidth."""

    network: str
    which: str
    kind: str
    nbytes: int
    seconds: Spread
    times_faster_than: dict[str, Spread]  # by kind
    error: float
    form: str = ""
    shape: str = ""  # of a gradient
    layers: int = 0  # of a network
    dropped: int = 0
    calm: bool = True
    page_faults: float = 0.0
    floor_bytes: int = 0
    floor_seconds: float = 0.0
    bytes_per_second: float = 0.0
    read_bandwidth: float = 0.0
    copy_bandwidth: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Layer(Event):
    """The drop-in on one weight shape, against torch's."""

    shape: list[int]
    nbytes: int
    which: str
    torch_seconds: Spread
    our_seconds: Spread
    times_faster: Spread
    error: float
    calm: bool


@dataclass(frozen=True, kw_only=True)
class TrainingStep(Event):
    """A whole training step; its share is what it takes more than one without the subject."""

    network: str
    title: str
    batch: int
    full_batch: int
    kind: str
    seconds: Spread
    share: float
    share_q25: float
    share_q75: float
    calm: bool


@dataclass(frozen=True, kw_only=True)
class Reduction(Event):
    """The penalty's own arithmetic, as shares of a whole step with R1, by kind."""

    network: str
    title: str
    batch: int
    shares: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class StepMemory(Event):
    """How far a whole step pushes up the peak of the process."""

    network: str
    kind: str
    peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class Memory(Event):
    """How far one forward pushes up the peak of the process, next to what it is of."""

    network: str
    kind: str
    peak_bytes: int
    result_bytes: int = 0
    largest_weight_bytes: int = 0
    gradient_bytes: int = 0
    image_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Figure(Event):
    """A number that is no ratio."""

    network: str
    kind: str
    what: str
    value: float


@dataclass(frozen=True, kw_only=True)
class GradientAccuracy(Event):
    """How far the gradient of a penalty is from the exact one."""

    critic: str
    precision: str
    method: str
    sigma: float
    error: float
    cosine: float


@dataclass(frozen=True, kw_only=True)
class MethodStep(Event):
    """A whole step with a penalty by some method; times over the exact one, in eager mode."""

    kind: str
    compiled: bool
    seconds: Spread
    over_exact: Spread
    peak_bytes: int
    calm: bool


@dataclass(frozen=True, kw_only=True)
class CompiledStep(Event):
    """A whole critic step as one compiled graph, next to the same in eager mode."""

    network: str
    title: str
    batch: int
    full_batch: int
    eager_seconds: Spread
    compiled_seconds: Spread
    times_faster: Spread
    first_seconds: float  # of the call that compiles, and checks itself
    calm: bool


E = TypeVar("E", bound=Event)


def only(events: Iterable[Event], event: type[E], /, **wanted: Any) -> list[E]:
    """The events of a kind whose fields are as wanted."""
    return [
        found
        for found in events
        if isinstance(found, event)
        and all(getattr(found, name) == value for name, value in wanted.items())
    ]


KINDS = {
    "left out": LeftOut,
    "checked": Checked,
    "row": Row,
    "layer": Layer,
    "step": TrainingStep,
    "reduction": Reduction,
    "step memory": StepMemory,
    "memory": Memory,
    "figure": Figure,
    "gradient accuracy": GradientAccuracy,
    "method step": MethodStep,
    "compiled step": CompiledStep,
}
NAMES = {kind: name for name, kind in KINDS.items()}
SPREAD = {part.name for part in fields(Spread)}


def to_dict(event: Event) -> dict[str, Any]:
    """The event for JSON; `revive` is the way back."""
    return {"event": NAMES[type(event)], **asdict(event)}


def revive(found: dict[str, Any]) -> Any:
    """Makes events and spreads of what they were in JSON: an `object_hook` of json.loads."""
    if found.keys() == SPREAD:
        return Spread(**found)
    if "event" in found:
        return KINDS[found.pop("event")](**found)
    return found


def parse(text: str) -> Any:
    """JSON with its events."""
    return json.loads(text, object_hook=revive)
