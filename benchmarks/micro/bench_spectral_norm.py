"""Spectral norm under pytest-benchmark: `pytest benchmarks/ --benchmark-only`.

A group is a network and a pass; pick some with -k, for example -k "mlp_critic and backward".
Every contestant is checked against float64 before it is timed. For interleaved ratios, both
allocators and the bars, see `python -m benchmarks.report`.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.core.contest import BACKWARD, COMPILED, FORWARD, line_up
from benchmarks.suites import workloads
from benchmarks.suites.spectral_norm import FUSED, HOOK, LABELS, LAYER, TORCH, case_of

WORKLOADS = sorted(workloads.load().values(), key=lambda workload: workload.nbytes)


@pytest.mark.parametrize("kind", [HOOK, TORCH, COMPILED, LAYER, FUSED])
@pytest.mark.parametrize("which", [FORWARD, BACKWARD])
@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_all_weights(
    measure, device: str, workload: workloads.Workload, which: str, kind: str
) -> None:
    """All the weights of a network normalized once."""
    case = case_of(workload, device)
    torch._dynamo.reset()
    entered, errors, left_out = line_up(case, [kind])
    if not entered:
        pytest.fail(left_out[kind])
    measure(
        entered[0].timed(which),
        group=f"{workload.name}, {which}",
        name=LABELS[kind],
        error=errors[kind],
        floor_bytes=case.traffic(which).total,
    )
