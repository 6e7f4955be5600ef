"""`python -m benchmarks.gpu.model`: what an H100 should take, by counting. A model, no measurement.

A launch costs 3 us where the host queues it, a byte of weights or gradients 1 / (3 TB/s); nothing
overlaps, and no cache helps. `make gpu-check` measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from benchmarks.suites import workloads

LAUNCH_S = 3e-6
BYTES_PER_S = 3e12
TENSORS_A_CALL = 64


@dataclass(frozen=True)
class Cost:
    """Launches, of a tensor or of 64 of them, and passes over the tensors (reads and writes)."""

    launches: int
    passes: int
    by_tensor: bool = False

    def seconds(self, tensors: int, nbytes: int) -> float:
        calls = tensors if self.by_tensor else -(-tensors // TENSORS_A_CALL)
        return self.launches * calls * LAUNCH_S + self.passes * nbytes / BYTES_PER_S


#: torch.nn.utils.parametrizations.spectral_norm, one iteration, counted with a dispatch mode.
TORCH = {"forward": Cost(13, 5, by_tensor=True), "forward + backward": Cost(22, 21, by_tensor=True)}
#: csrc/spectral_norm.h: a fill, two products and the output; then the sums and the gradient.
OURS = {"forward": Cost(4, 4), "forward + backward": Cost(6, 8)}

#: Of (B, C, H, W) in float32: what penalties take of critics' inputs.
GRADIENTS = ((64, 3, 32, 32), (64, 3, 64, 64), (64, 3, 128, 128), (64, 3, 256, 256))
#: (g.flatten(1).norm(2, dim=1) - 1).square().mean(), counted with a dispatch mode.
TORCH_PENALTY = {"forward": Cost(4, 1), "forward + backward": Cost(12, 7)}
#: csrc/gradient_penalty.h: the squares and the norms; then the gradient.
OUR_PENALTY = {"forward": Cost(2, 1), "forward + backward": Cost(3, 3)}


def table() -> str:
    """The model of every workload, in Markdown."""
    lines = [
        "| network | layers | weights | pass | torch | gankernels | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for workload in sorted(workloads.load().values(), key=lambda workload: workload.nbytes):
        for name, ours in OURS.items():
            size = len(workload.weights), workload.nbytes
            lines.append(
                f"| {workload.name} | {len(workload.weights)} | {workload.nbytes / 2**20:.1f} MiB "
                f"| {name} | {_compared(TORCH[name].seconds(*size), ours.seconds(*size))}"
            )
    return "\n".join(lines)


def penalties() -> str:
    """The model of a gradient penalty, in Markdown."""
    lines = ["| gradient | size | pass | torch | gankernels | ratio |", "|---|---|---|---|---|---|"]
    for shape in GRADIENTS:
        nbytes = 4 * math.prod(shape)
        for name, ours in OUR_PENALTY.items():
            theirs_s, ours_s = TORCH_PENALTY[name].seconds(1, nbytes), ours.seconds(1, nbytes)
            lines.append(
                f"| {shape} | {nbytes / 2**20:.2f} MiB | {name} | {_compared(theirs_s, ours_s)}"
            )
    return "\n".join(lines)


def _compared(theirs_s: float, ours_s: float) -> str:
    return f"{theirs_s * 1e6:.0f} us | {ours_s * 1e6:.0f} us | {theirs_s / ours_s:.1f}x |"


if __name__ == "__main__":
    print(table(), penalties(), sep="\n\n")
