"""The discriminators to measure on: their weight shapes, and modules that hold such weights."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.core.contest import BYTES_PER_ELEMENT

WORKLOADS = Path(__file__).with_name("workloads.json")


@dataclass(frozen=True)
class Workload:
    """One real discriminator: every weight shape in order, and the batch it is trained on."""

    name: str
    batch: int
    image: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]

    @property
    def numel(self) -> int:
        return sum(math.prod(shape) for shape in self.weights)

    @property
    def nbytes(self) -> int:
        return BYTES_PER_ELEMENT * self.numel


def load() -> dict[str, Workload]:
    """Every workload of workloads.json, by name."""
    entries = json.loads(WORKLOADS.read_text())
    return {
        name: Workload(
            name, entry["batch"], tuple(entry["image"]), tuple(map(tuple, entry["weights"]))
        )
        for name, entry in entries.items()
        if not name.startswith("_")
    }


#: Eleven weights of next to no arithmetic, for what a layer costs on the host; on a GPU that is
#: the time of small networks, too.
HOST = Workload("eleven layers of 8x8", 1, (8,), ((8, 8),) * 11)


def named(name: str) -> Workload:
    return HOST if name == HOST.name else load()[name]


def unique_shapes() -> list[tuple[int, ...]]:
    """Every weight shape of every workload, once, smallest first."""
    shapes = {shape for workload in load().values() for shape in workload.weights}
    return sorted(shapes, key=lambda shape: (math.prod(shape), shape))


class OneWeight(nn.Module):
    """The least module that spectral norm can be put on: a weight, and nothing done with it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self) -> Tensor:
        return self.weight


class WeightStack(nn.Module):
    """All the weights of a network. Calling it normalizes every one and does nothing else."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(OneWeight(weight) for weight in weights)

    def forward(self) -> list[Tensor]:
        return [layer() for layer in self.layers]


def random_weights(shapes: Sequence[Sequence[int]], seed: int = 0) -> list[Tensor]:
    """Weights as DCGAN initializes them: normal, standard deviation 0.02."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).mul_(0.02) for shape in shapes]
