"""Spectral norm under pytest-benchmark: `pytest benchmarks/ --benchmark-only`.

A group is a network and a pass; pick some with -k, for example -k "mlp_critic and backward".
Every contestant is checked against float64 before it is timed. For interleaved ratios, both
allocators and the bars, see `python -m benchmarks.report`.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.core import bandwidth
from benchmarks.suites import spectral_norm as contestants
from benchmarks.suites import workloads
from benchmarks.suites.spectral_norm import (
    BACKWARD,
    COMPILED,
    FORWARD,
    FUSED,
    HOOK,
    LABELS,
    LAYER,
    TORCH,
)

WORKLOADS = sorted(workloads.load().values(), key=lambda workload: workload.nbytes)
THREADS = 2


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [HOOK, TORCH, COMPILED, LAYER, FUSED])
@pytest.mark.parametrize("which", [FORWARD, BACKWARD])
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_all_weights(benchmark, workload: workloads.Workload, which: str, kind: str) -> None:
    """All the weights of a network normalised once."""
    weights = workloads.random_weights(workload.weights)
    torch._dynamo.reset()
    entered, errors, left_out = contestants.line_up([kind], weights)
    if not entered:
        pytest.fail(left_out[kind])
    benchmark.group = f"{workload.name}, {which}"
    benchmark.name = LABELS[kind]
    benchmark.extra_info.update(
        error=errors[kind],
        floor_bytes=bandwidth.floor_bytes(workload.nbytes, which == BACKWARD),
        threads=THREADS,
        torch=torch.__version__,
    )
    benchmark(entered[0].timed(which))
