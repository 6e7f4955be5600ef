"""What is counted of kernels whose work is known."""

import pytest
import torch
from ptx import count
from support.backends import BACKENDS, panel_of

from benchmarks.gpu.model import counts as kept


@pytest.fixture
def panel():
    if "ptx" not in BACKENDS:
        pytest.skip("GANKERNELS_PTX names no folder: make ptx")
    return panel_of("ptx")


@pytest.mark.parametrize("backend", ["ptx"] if "ptx" in BACKENDS else [], indirect=True)
def test_counts(panel, backend):
    """A penalty's backward reads and writes 16 bytes at a time, and computes in float."""
    torch.manual_seed(0)
    found, elements = count.measure(panel, lambda: count.penalty_backward(16, 3, 64, 64))
    backward = found["backward<float, 1>"]
    assert backward.kinds["global stores"] * 4 == elements
    # Of every 16 bytes, and of every thread's factor: norm and cotangent.
    assert elements / 4 < backward.kinds["global loads"] <= elements
    assert backward.double == 0
    assert elements < backward.instructions < 100 * elements
    assert backward.ptx == sum(backward.opcodes.values())


@pytest.mark.parametrize("backend", ["ptx"] if "ptx" in BACKENDS else [], indirect=True)
def test_counts_begin_anew(panel, backend):
    found, _ = count.measure(panel, lambda: count.penalty(2, 3, 8, 8))
    again, _ = count.measure(panel, lambda: count.penalty(2, 3, 8, 8))
    assert found == again
    panel.reset_counters()
    assert count.counts(panel) == {}


@pytest.mark.parametrize("backend", ["ptx"] if "ptx" in BACKENDS else [], indirect=True)
@pytest.mark.parametrize("transpose, most", [(False, 700), (True, 820)])
def test_affine_resample(panel, backend, transpose, most):
    """Instructions an element and channel, all images turned; double only once a sample."""
    found, elements = count.measure(panel, lambda: count.resample(transpose))
    assert found.keys() == {"prepare<float>", "gather<float>" if transpose else "resample<float>"}
    assert sum(kernel.instructions for kernel in found.values()) <= most * elements
    once = found.pop("prepare<float>")
    assert 0 < once.double <= 0.02 * elements
    (pixels,) = found.values()
    assert pixels.double == 0
    assert pixels.kinds["global stores"] == elements


@pytest.mark.parametrize("backend", ["ptx"] if "ptx" in BACKENDS else [], indirect=True)
@pytest.mark.parametrize("case", count.CASES)
def test_the_model_has_what_is_counted(panel, backend, case):
    torch.manual_seed(0)
    found = kept.rounded(count.totals(*count.measure(panel, count.CASES[case])))
    expected = list(kept.Counts().executed(case))
    cure = "after make ptx: python tests/ptx/count.py --write"
    assert found == pytest.approx(expected, rel=0.02, abs=1e-3), cure
