"""The bars this project set itself, and what a run measured against each; all else is measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.contestants import BACKWARD, BASELINE, COMPILED, FORWARD, FUSED, LAYER
from benchmarks.environment import DEFAULT, TUNED

Event = dict[str, Any]

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

    def to_dict(self) -> Event:
        return asdict(self) | {"reached": self.reached}


def _find(events: list[Event], **wanted: Any) -> Event | None:
    return next((e for e in events if all(e.get(k) == v for k, v in wanted.items())), None)


def _row(events: list[Event], network: str, which: str, kind: str, allocator: str) -> Event | None:
    return _find(
        events,
        **{"event": "row", "network": network, "pass": which, "kind": kind},
        allocator=allocator,
        threads=THREADS,
    )


def _faster(row: Event | None, than: str) -> float | None:
    ratio = row["times_faster_than"].get(than) if row else None
    return ratio["median"] if ratio else None


def _calm(row: Event | None) -> bool:
    return row is None or bool(row["calm"])


def verdicts(events: list[Event]) -> Iterator[Verdict]:
    """Every bar, in the order of the tables."""
    networks = dict.fromkeys(e["network"] for e in events if e["event"] == "row")
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
        over = row["seconds"]["median"] / row["floor_seconds"] if row else None
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
    memory = _find(events, event="memory", kind=FUSED)
    yield Verdict(
        "peak memory over W/sigma",
        memory["network"] if memory else FLOOR_NETWORK,
        MEMORY_BAR,
        memory["peak_bytes"] / memory["result_bytes"] if memory else None,
        at_most=True,
    )


def _slowest_layers(events: list[Event]) -> Iterator[Verdict]:
    for which in (FORWARD, BACKWARD):
        layers = [
            e
            for e in events
            if e["event"] == "layer" and e["pass"] == which and e["threads"] == THREADS
        ]
        slowest = min(layers, key=lambda e: e["times_faster"]["median"], default=None)
        yield Verdict(
            "per layer, slowest shape",
            which,
            LAYER_SHAPE_BAR,
            slowest["times_faster"]["median"] if slowest else None,
            note=_slowest_note(slowest, len(layers)) if slowest else "",
            calm=_calm(slowest),
        )


def _slowest_note(slowest: Event, shapes: int) -> str:
    """Which shape, and its quartiles: a minimum over many measurements leans towards the low."""
    ratio = slowest["times_faster"]
    note = f"{shapes} shapes, slowest {slowest['shape']}, "
    return note + f"quartiles {ratio['q25']:.2f} to {ratio['q75']:.2f}"
