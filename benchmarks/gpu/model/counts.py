"""What was counted, in ``counts.json``: instructions of our kernels, bytes of published passes.

``python tests/ptx/count.py --write`` renews it, after ``make ptx``; a test of the backend "ptx"
counts again, and compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.contest import BACKWARD as BOTH
from benchmarks.core.contest import FORWARD, shape_name
from benchmarks.gpu.model import traffic
from benchmarks.gpu.model.costs import Cost, Executed
from benchmarks.published import stylegan2_ada
from benchmarks.suites import augmentation

PATH = Path(__file__).with_name("counts.json")
BACKWARD = "backward"
DIRECTIONS = (FORWARD, BACKWARD)

#: Layers as small and as large as networks: the more a thread has to do, the less it does besides.
WEIGHTS = ((256, 1024), (512, 512, 3, 3), (1024, 1024, 4, 4))
#: (B, C, H, W): what penalties take of critics' inputs.
GRADIENTS = ((64, 3, 32, 32), (64, 3, 64, 64), (64, 3, 128, 128), (64, 3, 256, 256))
#: Images: large ones, and those of which launches are all.
IMAGES = ((64, 3, 256, 256), (64, 3, 64, 64))
P = (1.0, 0.2)  # the probability of each transform
SEED = 0  # of the maps by which the published pipeline pads


class Counts:
    """The file's."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = json.loads(PATH.read_text())

    def executed(self, case: str) -> Executed:
        """By our kernels, of an element."""
        return Executed(*self.found["executed"][case])

    def published(self, case: str, direction: str, image_bytes: int) -> Cost:
        """A pass of the published pipeline, whose instructions are not counted."""
        found = self.found["published"][case][direction]
        return Cost(
            found["launches"],
            found["nbytes"],
            first_bytes=2 * image_bytes,
            working_set=found["working_set"],
        )


def rounded(executed: tuple[float, float]) -> list[float]:
    """What is kept of instructions an element, and of those in double."""
    return [float(f"{n:.3g}") for n in executed]


def write(executed: Mapping[str, tuple[float, float]]) -> None:
    """Renew the file, with instructions an element, and those in double, of every case."""
    parts: dict[str, Mapping[str, Any]] = {
        "executed": {name: rounded(n) for name, n in executed.items()},
        "published": published(),
    }
    lines = []
    for part, values in parts.items():
        inner = ",\n".join(f'"{name}": {json.dumps(value)}' for name, value in values.items())
        lines.append(f'"{part}": {{\n{inner}\n}}')
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def published() -> dict[str, Any]:
    """Launches and bytes of the published geometry and filter, by images."""
    found: dict[str, Any] = {}
    for shape in IMAGES:
        for p in P:
            margins = _margins(shape, p)
            passes = _by_direction(traffic.published_geometry(shape, margins))
            found[geometry_name(shape, p)] = {"margins": margins} | passes
        found[filter_name(shape)] = _by_direction(traffic.published_filter(shape))
    return found


def _by_direction(passes: Sequence[traffic.Traffic]) -> dict[str, Any]:
    return {name: asdict(t) for name, t in zip(DIRECTIONS, passes, strict=True)}


def _margins(shape: tuple[int, ...], p: float) -> list[int]:
    case = augmentation.AugmentCase("bg", p, shape[0], shape[2])
    torch.manual_seed(SEED)
    maps = augmentation.drawn(case, torch.empty(shape)).maps
    assert maps is not None
    margins: list[int] = stylegan2_ada.geometry_margins(maps, shape[2], shape[3]).tolist()
    return margins


def geometry_name(shape: tuple[int, ...], p: float) -> str:
    return f"geometry, p = {p:g}, {shape_name(shape)}"


def filter_name(shape: tuple[int, ...]) -> str:
    return f"image_filter, {shape_name(shape)}"


__all__ = ["BACKWARD", "BOTH", "FORWARD", "Counts", "filter_name", "geometry_name", "write"]
