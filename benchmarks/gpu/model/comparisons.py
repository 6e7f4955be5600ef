"""What is compared: spectral norm and penalties with torch's, augmentation with the published."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.core.contest import shape_name
from benchmarks.gpu.model.costs import NOTHING, Comparison, Cost, Executed, together
from benchmarks.gpu.model.counts import (
    BOTH,
    DIRECTIONS,
    FORWARD,
    GRADIENTS,
    IMAGES,
    WEIGHTS,
    Counts,
    P,
    filter_name,
    geometry_name,
)
from benchmarks.suites import workloads

TENSORS_A_CALL = 64
ITEM = 4  # bytes: all is float32


class Passes(NamedTuple):
    """Launches and passes over tensors; passes that no cache saves, tensors in use at a time."""

    launches: int
    passes: int
    first: int
    tensors: int

    def cost(self, nbytes: int, executed: Executed = NOTHING, calls: int = 1) -> Cost:
        """Of tensors of so many bytes, with what is executed an element."""
        return Cost(
            calls * self.launches,
            self.passes * nbytes,
            executed.times(nbytes / ITEM),
            self.first * nbytes,
            self.tensors * nbytes,
        )


#: torch.nn.utils.parametrizations.spectral_norm, one iteration, counted with a dispatch mode.
TORCH = {FORWARD: Passes(13, 5, 2, 2), BOTH: Passes(22, 21, 4, 3)}
#: csrc/spectral_norm.h: a fill, two products and the output; then the sums and the gradient.
OURS = {FORWARD: Passes(4, 4, 2, 2), BOTH: Passes(6, 8, 4, 3)}
#: (g.flatten(1).norm(2, dim=1) - 1).square().mean(), counted with a dispatch mode.
TORCH_PENALTY = {FORWARD: Passes(4, 1, 1, 1), BOTH: Passes(12, 7, 2, 3)}
#: csrc/gradient_penalty.h: the squares and the norms; then the gradient.
OUR_PENALTY = {FORWARD: Passes(2, 1, 1, 1), BOTH: Passes(3, 3, 2, 2)}

#: What happens to a sample.
KINDS = ("copied", "separable", "turned")


def _executed(counts: Counts, operator: str, shape: Sequence[int], which: str) -> Executed:
    parts = ("", " backward") if which == BOTH else ("",)
    return together(counts.executed(f"{operator}{p} {shape_name(shape)}") for p in parts)


def _weights_like(nbytes: int) -> tuple[int, ...]:
    """Of `WEIGHTS` the largest that are no larger, or the smallest."""
    smaller = [shape for shape in WEIGHTS if ITEM * math.prod(shape) <= nbytes]
    return smaller[-1] if smaller else WEIGHTS[0]


def norms(counts: Counts) -> Iterator[Comparison]:
    """All layers of a network, against torch's one by one."""
    for workload in sorted(workloads.load().values(), key=lambda workload: workload.nbytes):
        sizes = [ITEM * math.prod(shape) for shape in workload.weights]
        calls = -(-len(sizes) // TENSORS_A_CALL)
        counted = _weights_like(workload.nbytes)
        for which, passes in OURS.items():
            executed = _executed(counts, "spectral_norm", counted, which)
            yield Comparison(
                (workload.name, str(len(sizes)), f"{workload.nbytes / 2**20:.1f} MiB", which),
                [TORCH[which].cost(size) for size in sizes],
                passes.cost(workload.nbytes, executed, calls),
            )


def penalties(counts: Counts) -> Iterator[Comparison]:
    for shape in GRADIENTS:
        nbytes = ITEM * math.prod(shape)
        for which, passes in OUR_PENALTY.items():
            yield Comparison(
                (shape_name(shape), f"{nbytes / 2**20:.2f} MiB", which),
                [TORCH_PENALTY[which].cost(nbytes)],
                passes.cost(nbytes, _executed(counts, "gradient_penalty", shape, which)),
            )


def shares(p: float) -> tuple[float, float, float]:
    """Of samples of each of `KINDS`: of four transforms none, or the one of two rotations."""
    copied, straight = (1 - p) ** 4, 1 - p
    return copied, straight - copied, p


def resampling(counts: Counts, transpose: bool, p: float, nbytes: int) -> Cost:
    """A launch for the records of samples; one that reads images and writes others."""
    operator = "affine_resample_transpose" if transpose else "affine_resample"
    executed = together(
        counts.executed(f"{operator} {kind} 4x3x256x256").times(share)
        for share, kind in zip(shares(p), KINDS, strict=True)
    )
    return Cost(2, 2 * nbytes, executed.times(nbytes / ITEM))


def filtering(counts: Counts, transpose: bool, nbytes: int) -> Cost:
    operator = "image_filter_transpose" if transpose else "image_filter"
    executed = counts.executed(f"{operator} 2x3x256x256")
    return Cost(1, 2 * nbytes, executed.times(nbytes / ITEM))


def augmentations(counts: Counts) -> Iterator[Comparison]:
    """Geometry and the filter by bands, forward and backward."""
    for shape in IMAGES:
        nbytes = ITEM * math.prod(shape)
        ours = {
            (f"geometry, p = {p:g}", geometry_name(shape, p), transpose): resampling(
                counts, transpose, p, nbytes
            )
            for p in P
            for transpose in (False, True)
        } | {
            ("image_filter", filter_name(shape), transpose): filtering(counts, transpose, nbytes)
            for transpose in (False, True)
        }
        for (name, case, transpose), cost in ours.items():
            direction = DIRECTIONS[transpose]
            yield Comparison(
                (name, shape_name(shape), direction),
                [counts.published(case, direction, nbytes)],
                cost,
            )
