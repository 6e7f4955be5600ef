"""What memory allows: the best read and the best scaled copy to be had here, for a given size."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from benchmarks.core.contest import BYTES_PER_ELEMENT, Traffic
from benchmarks.core.harness import Timings
from gankernels import ops

READ, COPY = "read:", "copy:"
COLUMNS = 1024


def _reused_target(numel: int) -> torch.Tensor:
    """Memory to copy into: on huge pages where the system grants them, and mapped already."""
    memory = mmap.mmap(-1, BYTES_PER_ELEMENT * numel)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).zero_()


def probes(numel: int) -> dict[str, Callable[[], None]]:
    """Calls that read `numel` floats, or copy them into memory that is reused; best one counts.

    Our own kernels are among them, so that nothing here can be faster than its floor by much.

    `memmove` is the C library's, one slice a thread: it bypasses the caches for large sizes.
    """
    source, target = torch.ones(numel), _reused_target(numel)
    half = numel // 2
    columns = min(numel, COLUMNS)
    matrix = source[: numel - numel % columns].view(-1, columns)
    u, v, sigma = torch.zeros(len(matrix)), torch.zeros(columns), torch.ones(1)
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads)
    step = BYTES_PER_ELEMENT * (-(-numel // threads))
    slices = [
        (target.data_ptr() + at, source.data_ptr() + at, min(step, source.nbytes - at))
        for at in range(0, source.nbytes, step)
    ]

    def read_sum() -> None:
        source.sum()

    def read_dot() -> None:
        torch.dot(source[:half], source[half : 2 * half])

    def read_products() -> None:  # ours: W v and W^T (W v) in one pass
        ops.power_iteration_([matrix], [u], [v], order="u_first")

    def copy_divided() -> None:  # ours: W / sigma, into recycled memory
        with torch.no_grad():
            ops.spectral_normalize([matrix], [u], [v], sigma)

    def copy_scaled() -> None:
        torch.mul(source, 0.5, out=target)

    def copy_plain() -> None:
        target.copy_(source)

    def copy_memmove() -> None:
        list(pool.map(lambda piece: ctypes.memmove(*piece), slices))

    return {
        READ + "sum": read_sum,
        READ + "dot": read_dot,
        READ + "products": read_products,
        COPY + "divided": copy_divided,
        COPY + "mul": copy_scaled,
        COPY + "copy_": copy_plain,
        COPY + "memmove": copy_memmove,
    }


@dataclass(frozen=True)
class Bandwidth:
    """Bytes per second: read only, and read + written by a copy."""

    read: float
    copy: float

    def seconds(self, traffic: Traffic) -> float:
        """The least time in which that moves."""
        return traffic.read / self.read + traffic.copied / self.copy


def from_timings(timings: Timings, numel: int) -> Bandwidth:
    """The bandwidth of the best probe of either kind, from its median."""
    best = {
        kind: min(timings.seconds(name).median for name in timings.samples if name.startswith(kind))
        for kind in (READ, COPY)
    }
    nbytes = BYTES_PER_ELEMENT * numel
    return Bandwidth(read=nbytes / best[READ], copy=2 * nbytes / best[COPY])
