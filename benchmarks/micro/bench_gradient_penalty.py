"""Gradient penalties under pytest-benchmark: `pytest benchmarks/ --benchmark-only`.

A group is a shape, a layout and a penalty; pick some with -k, for example -k "64x3x32x32 and R1".
Every contestant is checked against float64 before it is timed, forward and backward. For
interleaved ratios, both allocators and the bars, see `python -m benchmarks.report`.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.suites import gradient_penalty as penalties
from benchmarks.suites.gradient_penalty import EAGER, LABELS, OURS, USUAL
from benchmarks.suites.spectral_norm import BACKWARD, COMPILED

THREADS = 2


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", [USUAL, EAGER, COMPILED, OURS])
@pytest.mark.parametrize("case", list(penalties.cases()), ids=lambda case: case.name)
def test_penalty_of_gradients(benchmark, case: penalties.Case, kind: str) -> None:
    """The penalty of given gradients, and its gradient."""
    entered, errors, left_out = penalties.line_up(case, [kind])
    if not entered:
        pytest.fail(left_out[kind])
    benchmark.group = case.name
    benchmark.name = LABELS[kind]
    benchmark.extra_info.update(
        error=errors[kind],
        form=entered[0].form,
        floor_bytes=3 * case.nbytes,
        threads=THREADS,
        torch=torch.__version__,
    )
    benchmark(entered[0].timed(BACKWARD))
