"""The bars this project set itself, and what a run measured against each; all else is measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from benchmarks.core.contest import BACKWARD, COMPILED, FORWARD, OURS, shape_name
from benchmarks.core.environment import DEFAULT, TUNED
from benchmarks.core.events import (
    AUGMENTATION,
    GRADIENT_PENALTY,
    SPECTRAL_NORM,
    E,
    Event,
    Figure,
    GradientAccuracy,
    Layer,
    Memory,
    MethodStep,
    Row,
    only,
)
from benchmarks.core.harness import Spread
from benchmarks.suites import augmentation, first_order
from benchmarks.suites.gradient_penalty import ACCURACY, EAGER, SHAPES, USUAL
from benchmarks.suites.spectral_norm import BASELINE, FUSED, LAYER

FUSED_BARS = {  # network: times faster than torch's parametrization, forward and with backward
    "mlp_critic": (5.0, 3.5),
    "sngan_resnet_cifar10": (5.0, 3.5),
    "biggan_cifar10": (5.0, 3.5),
    "dcgan_64": (3.0, 3.0),
    "patchgan_70": (3.0, 3.0),
    "projected_gan": (3.0, 3.0),
    "hifigan_msd": (3.2, 3.8),
    "biggan_128": (3.2, 3.8),
    "stylegan2_256": (3.2, 3.8),
}
COMPILED_BARS = {FORWARD: 2.0, BACKWARD: 1.5}
FLOOR_NETWORK, FLOOR_BAR = "biggan_128", 1.2
DEFAULT_MALLOC_BAR = 10.0
LAYER_NETWORK_BAR = 1.5
LAYER_SHAPE_BAR = 1.0
MEMORY_BAR = 1.05  # W/sigma, and 5 % for all that is smaller than a weight
THREADS = 2

PENALTY_BARS = {  # times faster, forward + backward: on the smallest shape, and on the others
    USUAL: (2.5, 3.0),
    EAGER: (1.7, 2.0),
    COMPILED: (1.2, 1.2),
}
PENALTY_BANDWIDTH_BAR = 0.6
PENALTY_MEMORY_BAR = 0.05  # of the gradients: all that is smaller than they are
PENALTY_SHAPES = [shape_name(shape) for shape in SHAPES]  # the smallest first
LARGE_PENALTY_SHAPES = PENALTY_SHAPES[-2:]


METHOD_BARS = {first_order.ONE_SIDED: 0.8, first_order.CENTRAL: 1.25}  # of an exact step's time
#: Of differences at a sigma: critics, precision, the largest error, the least cosine.
SMOOTH = (first_order.ATTENTION, first_order.GELU)
ACCURACY_BARS = {
    (first_order.FLOAT32, 0.01): (SMOOTH, 2e-2, 0.0),
    (first_order.FLOAT32, 0.002): (SMOOTH, 1e-3, 0.0),
    (first_order.BFLOAT16, 0.01): (SMOOTH, 6e-2, 0.998),
}
LEAKY_COSINE_BAR = 0.85
NOISE_BAR = 30.0  # times the error of differences at the same sigma

AUGMENT_BARS = {  # case: times faster than plain PyTorch, by pass
    augmentation.GEOMETRY[0].name: {FORWARD: 25.0, BACKWARD: 45.0},
    augmentation.GEOMETRY[1].name: {FORWARD: 50.0, BACKWARD: 60.0},
    augmentation.COLOR.name: {FORWARD: 30.0, augmentation.R1: 30.0},
}
AUGMENT_FIGURES = {
    "cycles a pixel": 50.0,
    "floats saved a sample": 64.0,
    "error over the range, in 1e-6": 1.0,
    "transpose over forward": 1.6,
    "plain filters over grid_sample, forward": 1.0,
    "plain filters over grid_sample, forward + backward": 1 / 1.5,
    "AVX-512 over AVX2": 1.02,  # as fast, and what is measured beside others' work
}
AUGMENT_MEMORY_BAR = 0.05  # of the images, in and out


@dataclass(frozen=True)
class Verdict:
    """A bar, the measured value, and whether it was reached.

    That is None where nothing was measured, or where others used the processors meanwhile.
    """

    group: str
    subject: str
    bar: float
    measured: float | None
    at_most: bool = False
    note: str = ""
    calm: bool = True

    @property
    def reached(self) -> bool | None:
        if self.measured is None or not self.calm:
            return None
        return self.measured <= self.bar if self.at_most else self.measured >= self.bar

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"reached": self.reached}


def _find(events: Iterable[Event], event: type[E], /, **wanted: Any) -> E | None:
    return next(iter(only(events, event, **wanted)), None)


def _row(events: list[Event], network: str, which: str, kind: str, allocator: str) -> Row | None:
    return _find(
        events,
        Row,
        suite=SPECTRAL_NORM,
        network=network,
        which=which,
        kind=kind,
        allocator=allocator,
        threads=THREADS,
    )


def _faster(row: Row | None, than: str) -> float | None:
    ratio = row.times_faster_than.get(than) if row else None
    return ratio.median if ratio else None


def _calm(row: Row | Layer | None) -> bool:
    return row is None or row.calm


def verdicts(events: list[Event]) -> Iterator[Verdict]:
    """Every bar, in the order of the tables."""
    yield from _spectral_norm(events)
    yield from _gradient_penalty(events)
    yield from _methods(events)
    yield from _augmentation(events)


def _spectral_norm(events: list[Event]) -> Iterator[Verdict]:
    rows = only(events, Row, suite=SPECTRAL_NORM)
    networks = dict.fromkeys(row.network for row in rows)
    for network, bars in FUSED_BARS.items():
        for which, bar in zip((FORWARD, BACKWARD), bars, strict=True):
            row = _row(events, network, which, FUSED, TUNED)
            yield Verdict(
                "fused vs torch",
                f"{network}, {which}",
                bar,
                _faster(row, BASELINE),
                calm=_calm(row),
            )
    for network in networks:
        for which, bar in COMPILED_BARS.items():
            row = _row(events, network, which, COMPILED, TUNED)
            slower = _faster(row, FUSED)
            if slower is not None:
                faster = 1 / slower
                yield Verdict(
                    "fused vs torch.compile", f"{network}, {which}", bar, faster, calm=_calm(row)
                )
    for which in (FORWARD, BACKWARD):
        row = _row(events, FLOOR_NETWORK, which, FUSED, TUNED)
        over = row.seconds.median / row.floor_seconds if row else None
        name = f"{FLOOR_NETWORK}, {which}"
        yield Verdict(
            "time over the floor of bytes", name, FLOOR_BAR, over, at_most=True, calm=_calm(row)
        )
    row = _row(events, FLOOR_NETWORK, BACKWARD, FUSED, DEFAULT)
    name = f"{FLOOR_NETWORK}, {BACKWARD}"
    yield Verdict(
        "fused, default malloc", name, DEFAULT_MALLOC_BAR, _faster(row, BASELINE), calm=_calm(row)
    )
    for network in networks:
        for which in (FORWARD, BACKWARD):
            row = _row(events, network, which, LAYER, TUNED)
            name = f"{network}, {which}"
            yield Verdict(
                "per layer, network",
                name,
                LAYER_NETWORK_BAR,
                _faster(row, BASELINE),
                calm=_calm(row),
            )
    yield from _slowest_layers(events)
    memory = _find(events, Memory, suite=SPECTRAL_NORM, kind=FUSED)
    yield Verdict(
        "peak memory over W/sigma",
        memory.network if memory else FLOOR_NETWORK,
        MEMORY_BAR,
        memory.peak_bytes / memory.result_bytes if memory else None,
        at_most=True,
    )


def _slowest_layers(events: list[Event]) -> Iterator[Verdict]:
    for which in (FORWARD, BACKWARD):
        layers = only(events, Layer, which=which, threads=THREADS)
        yield _least(
            "per layer, slowest shape",
            which,
            LAYER_SHAPE_BAR,
            layers,
            lambda e: e.times_faster,
            lambda e: str(e.shape),
        )


def _gradient_penalty(events: list[Event]) -> Iterator[Verdict]:
    """Every bar on a shape is on the worst of its rows: layouts, penalties, numbers of threads."""
    rows = only(events, Row, suite=GRADIENT_PENALTY, allocator=TUNED, which=BACKWARD)
    ours = only(rows, Row, kind=OURS)
    for other, bars in PENALTY_BARS.items():
        group = {
            USUAL: "penalty vs usual form",
            EAGER: "penalty vs fastest eager form",
            COMPILED: "penalty vs torch.compile",
        }[other]
        for shape in PENALTY_SHAPES:
            met = [e for e in ours if e.shape == shape and other in e.times_faster_than]
            bar = bars[0] if shape == PENALTY_SHAPES[0] else bars[1]

            def faster(e: Row, other: str = other) -> Spread:
                return e.times_faster_than[other]

            yield _least(group, shape, bar, met, faster, _which_row)
    for shape in LARGE_PENALTY_SHAPES:
        yield _least(
            "penalty, bytes per second over a copy's",
            shape,
            PENALTY_BANDWIDTH_BAR,
            [e for e in ours if e.shape == shape],
            _of_copy,
            _which_row,
        )
    wrongest = max(ours, key=lambda e: e.error, default=None)
    yield Verdict(
        "penalty, error against float64, in 1e-6",
        "value and gradient",
        ACCURACY * 1e6,
        wrongest.error * 1e6 if wrongest else None,
        at_most=True,
        note=f"largest: {wrongest.network}" if wrongest else "",
    )
    memory = _find(events, Memory, suite=GRADIENT_PENALTY, kind=OURS)
    yield Verdict(
        "penalty, peak memory of a forward over the gradients",
        memory.network if memory else PENALTY_SHAPES[-1],
        PENALTY_MEMORY_BAR,
        memory.peak_bytes / memory.gradient_bytes if memory else None,
        at_most=True,
    )


def _methods(events: list[Event]) -> Iterator[Verdict]:
    """Of penalties without second derivatives."""
    exact = _find(events, MethodStep, kind=first_order.EXACT)
    for kind, bar in METHOD_BARS.items():
        step = _find(events, MethodStep, kind=kind, compiled=False)
        time = step.over_exact.median if step else None
        calm = step is None or step.calm
        yield Verdict("step over an exact one, time", kind, bar, time, at_most=True, calm=calm)
        peak = step.peak_bytes / exact.peak_bytes if step and exact else None
        yield Verdict("step over an exact one, peak memory", kind, 1.0, peak, at_most=True)
    found = only(events, GradientAccuracy)
    ours = [e for e in found if e.method == first_order.DIFFERENCE]
    for (precision, sigma), (critics, error, cosine) in ACCURACY_BARS.items():
        mine = [e for e in ours if (e.precision, e.sigma) == (precision, sigma)]
        mine = [e for e in mine if e.critic in critics]
        subject = f"{precision}, sigma {sigma:g}, smooth critics"
        most = max((e.error for e in mine), default=None)
        yield Verdict("differences, error of the gradient", subject, error, most, at_most=True)
        if cosine:
            least = min((e.cosine for e in mine), default=None)
            yield Verdict("differences, cosine of the gradient", subject, cosine, least)
    leaky = [e.cosine for e in ours if (e.critic, e.sigma) == (first_order.LEAKY, 0.01)]
    yield Verdict(
        "differences, cosine of the gradient",
        f"sigma 0.01, {first_order.LEAKY}",
        LEAKY_COSINE_BAR,
        min(leaky, default=None),
    )
    noise = {
        (e.critic, e.precision, e.sigma): e.error for e in found if e.method == first_order.NOISE
    }
    times = {e: noise[e.critic, e.precision, e.sigma] / e.error for e in ours if e.sigma <= 0.01}
    least_of = min(times, key=lambda e: times[e], default=None)
    yield Verdict(
        "differences, how many times less error than noise",
        "sigma at most 0.01",
        NOISE_BAR,
        times[least_of] if least_of else None,
        note=f"least: {least_of.critic}, {least_of.precision}, {least_of.sigma:g}"
        if least_of
        else "",
    )


def _augmentation(events: list[Event]) -> Iterator[Verdict]:
    ours: dict[str, Any] = {"suite": AUGMENTATION, "kind": OURS}
    for name, bars in AUGMENT_BARS.items():
        for which, bar in bars.items():
            row = _find(events, Row, **ours, network=name, which=which, threads=THREADS)
            yield Verdict(
                "augmentation vs plain PyTorch",
                f"{name}, {which}",
                bar,
                _faster(row, augmentation.MULTI_PASS),
                calm=_calm(row),
            )
    for what, bar in AUGMENT_FIGURES.items():
        most = max(only(events, Figure, **ours, what=what), key=lambda e: e.value, default=None)
        yield Verdict(
            f"augmentation, {what}",
            most.network if most else "",
            bar,
            most.value if most else None,
            at_most=True,
        )
    memory = _find(events, Memory, **ours)
    peak: float | None = None
    if memory:
        images = memory.image_bytes + memory.result_bytes
        peak = max(0, memory.peak_bytes - memory.result_bytes) / images
    yield Verdict(
        "augmentation, memory beyond the images'",
        memory.network if memory else "",
        AUGMENT_MEMORY_BAR,
        peak,
        at_most=True,
    )


def _of_copy(row: Row) -> Spread:
    """The bytes per second, over those of a copy."""
    seconds, least = row.seconds, row.floor_bytes / row.copy_bandwidth
    # What takes longer is slower: the quartiles change places.
    return Spread(
        least / seconds.median, least / seconds.q75, least / seconds.q25, row.seconds.count
    )


def _which_row(row: Row) -> str:
    return f"{row.network}, {row.threads} thr."


R = TypeVar("R", Row, Layer)


def _least(
    group: str,
    subject: str,
    bar: float,
    rows: Sequence[R],
    value: Callable[[R], Spread],
    name: Callable[[R], str],
) -> Verdict:
    """A bar on the least of many measurements; which, and its quartiles: it leans to the low."""
    if not rows:
        return Verdict(group, subject, bar, None)
    least = min(rows, key=lambda e: value(e).median)
    found = value(least)
    note = f"least of {len(rows)}: {name(least)}, "
    note += f"quartiles {found.q25:.2f} to {found.q75:.2f}"
    return Verdict(group, subject, bar, found.median, note=note, calm=_calm(least))
