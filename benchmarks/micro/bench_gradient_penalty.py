"""Gradient penalties under pytest-benchmark: `pytest benchmarks/ --benchmark-only`.

A group is a shape, a layout and a penalty; pick some with -k, for example -k "64x3x32x32 and R1".
Every contestant is checked against float64 before it is timed, forward and backward. For
interleaved ratios, both allocators and the bars, see `python -m benchmarks.report`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.core.contest import BACKWARD, COMPILED, OURS, line_up
from benchmarks.suites.gradient_penalty import EAGER, LABELS, USUAL, PenaltyCase, cases


@pytest.mark.parametrize("kind", [USUAL, EAGER, COMPILED, OURS])
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_penalty_of_gradients(measure, device: str, case: PenaltyCase, kind: str) -> None:
    """The penalty of given gradients, and its gradient."""
    entered, errors, left_out = line_up(replace(case, device=device), [kind])
    if not entered:
        pytest.fail(left_out[kind])
    measure(
        entered[0].timed(BACKWARD),
        group=case.name,
        name=LABELS[kind],
        error=errors[kind],
        form=entered[0].form,
        floor_bytes=case.traffic(BACKWARD).total,
    )
