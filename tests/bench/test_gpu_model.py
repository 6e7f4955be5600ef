"""The model of GPUs: its counts, its arithmetic, and that docs/cuda.md has it as it is."""

import math

import pytest
import torch

from benchmarks.gpu.model import comparisons, counts, section, traffic
from benchmarks.gpu.model.costs import GPUS, LAUNCH_S, Comparison, Cost, Executed

CURE = "python -m benchmarks.gpu.model --write; of new kernels python tests/ptx/count.py --write"


def test_docs_have_the_model():
    text = section.DOCS.read_text()
    begin = text.index(section.BEGIN)
    assert text[begin : text.index(section.END)] == section.section(), CURE


def test_the_published_passes_are_those_counted():
    assert counts.Counts().found["published"] == counts.published(), CURE


def test_the_longer_of_bytes_and_instructions():
    gpu = GPUS[0]
    assert gpu.instructions_per_s == pytest.approx(132 * 2 * 32 * 1.755e9)
    memory = Cost(2, 3.35e9, Executed(1e9, 0))
    assert memory.seconds(gpu) == pytest.approx(2 * LAUNCH_S + 1e-3)
    issue = Cost(1, 3.35e9, Executed(gpu.instructions_per_s, 0))
    assert issue.seconds(gpu) == pytest.approx(LAUNCH_S + 1)
    t4 = GPUS[3]
    assert Cost(1, 0, Executed(1, 80 * 1.59e9)).seconds(t4) == pytest.approx(LAUNCH_S + 1)
    assert Comparison(("a",), [memory, memory], memory).faster(gpu) == pytest.approx(2)


def test_the_cache():
    gpu = GPUS[0]
    outside = Cost(0, 4 * 3.35e9, first_bytes=2 * 3.35e9, working_set=gpu.cache_bytes + 1)
    inside = Cost(0, 4 * 3.35e9, first_bytes=2 * 3.35e9, working_set=gpu.cache_bytes)
    assert outside.seconds(gpu) == pytest.approx(4e-3)
    assert inside.seconds(gpu) == pytest.approx(3e-3)


@pytest.mark.parametrize("p", counts.P)
def test_shares(p):
    assert math.fsum(comparisons.shares(p)) == pytest.approx(1)


def test_traffic():
    """A read and a write for each operator; views and empty tensors are nothing."""
    x = torch.empty(4, 3, device="meta")
    with traffic.Counter() as counter:
        y = x.mT.contiguous()
        torch.empty_like(y)
        torch.stack([y, y])
    expected = traffic.Traffic(launches=2, nbytes=4 * (24 + 48), working_set=4 * 48)
    assert counter.traffic == expected


def test_losses_are_named():
    slow, fast = Cost(2, 0), Cost(1, 0)
    assert "a, b: 0.50x on the H100" in section._losses([Comparison(("a", "b"), [fast], slow)])
    assert "nowhere; the least is 2.00x" in section._losses([Comparison(("a",), [slow], fast)])
