"""What a pass costs on a GPU, of its launches, bytes and instructions. Nothing is measured.

A launch takes a time of its own. Then a pass takes the longer of two: its bytes at the peak of the
memory, and its instructions at half the rate at which a GPU can issue them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

WARP = 32
SCHEDULERS = 4  # of a multiprocessor, each of which issues an instruction of a warp a clock
ISSUED = 0.5  # of that
CACHE_SPEEDUP = 2.0  # of the L2 cache over memory
LAUNCH_S = 3e-6


@dataclass(frozen=True)
class Gpu:
    """Peak figures of NVIDIA's data sheets, at the boost clock."""

    name: str
    multiprocessors: int
    clock_hz: float
    bytes_per_s: float
    cache_bytes: int
    doubles: int  # operations of a multiprocessor and clock, by the CUDA programming guide

    @property
    def instructions_per_s(self) -> float:
        """Of threads."""
        return self.multiprocessors * SCHEDULERS * ISSUED * WARP * self.clock_hz

    @property
    def doubles_per_s(self) -> float:
        return self.multiprocessors * self.doubles * self.clock_hz


GPUS = (
    Gpu("H100 SXM", 132, 1.755e9, 3.35e12, 50 << 20, 64),
    Gpu("A100 SXM 80 GB", 108, 1.41e9, 2.04e12, 40 << 20, 32),
    Gpu("RTX 4090", 128, 2.52e9, 1.008e12, 72 << 20, 2),
    Gpu("T4", 40, 1.59e9, 0.32e12, 4 << 20, 2),
)


class Executed(NamedTuple):
    """Instructions of threads, and those of them in double."""

    instructions: float
    double: float

    def times(self, factor: float) -> Executed:
        return Executed(factor * self.instructions, factor * self.double)


NOTHING = Executed(0, 0)


def together(parts: Iterable[Executed]) -> Executed:
    every = list(parts)
    return Executed(sum(e.instructions for e in every), sum(e.double for e in every))


@dataclass(frozen=True)
class Cost:
    """A pass. ``first_bytes`` are read for the first time or are results; the others come from the
    cache where ``working_set`` fits into it.
    """

    launches: int
    nbytes: float
    executed: Executed = NOTHING
    first_bytes: float = 0
    working_set: float = math.inf

    def memory_s(self, gpu: Gpu) -> float:
        again = self.nbytes - self.first_bytes
        if self.working_set <= gpu.cache_bytes:
            again /= CACHE_SPEEDUP
        return (self.first_bytes + again) / gpu.bytes_per_s

    def issue_s(self, gpu: Gpu) -> float:
        e = self.executed
        return max(e.instructions / gpu.instructions_per_s, e.double / gpu.doubles_per_s)

    def seconds(self, gpu: Gpu) -> float:
        return self.launches * LAUNCH_S + max(self.memory_s(gpu), self.issue_s(gpu))


@dataclass(frozen=True)
class Comparison:
    """One line of a table: the cells that name it, and the passes of either side."""

    name: tuple[str, ...]
    theirs: Sequence[Cost]
    ours: Cost

    def theirs_s(self, gpu: Gpu) -> float:
        return sum(cost.seconds(gpu) for cost in self.theirs)

    def faster(self, gpu: Gpu) -> float:
        return self.theirs_s(gpu) / self.ours.seconds(gpu)
