"""`python -m benchmarks.gpu_model`: what an H100 should take, by counting. A model, no measurement.

A launch costs 3 us where the host queues it, a byte of weights 1 / (3 TB/s); nothing overlaps, and
no cache helps. `make gpu-check` measures.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import workloads

LAUNCH_S = 3e-6
BYTES_PER_S = 3e12
LAYERS_A_CALL = 64


@dataclass(frozen=True)
class Cost:
    """Launches, of a layer or of 64 of them, and passes over the weights (reads and writes)."""

    launches: int
    passes: int
    by_layer: bool

    def seconds(self, workload: workloads.Workload) -> float:
        layers = len(workload.weights)
        calls = layers if self.by_layer else -(-layers // LAYERS_A_CALL)
        return self.launches * calls * LAUNCH_S + self.passes * workload.nbytes / BYTES_PER_S


#: torch.nn.utils.parametrizations.spectral_norm, one iteration, counted with a dispatch mode.
TORCH = {"forward": Cost(13, 5, True), "forward + backward": Cost(22, 21, True)}
#: csrc/spectral_norm.h: a fill, two products and the output; then the sums and the gradient.
OURS = {"forward": Cost(4, 4, False), "forward + backward": Cost(6, 8, False)}


def table() -> str:
    """The model of every workload, in Markdown."""
    lines = [
        "| network | layers | weights | pass | torch | gankernels | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for workload in sorted(workloads.load().values(), key=lambda workload: workload.nbytes):
        for name, ours in OURS.items():
            theirs_s, ours_s = TORCH[name].seconds(workload), ours.seconds(workload)
            lines.append(
                f"| {workload.name} | {len(workload.weights)} | {workload.nbytes / 2**20:.1f} MiB "
                f"| {name} | {theirs_s * 1e6:.0f} us | {ours_s * 1e6:.0f} us "
                f"| {theirs_s / ours_s:.1f}x |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
