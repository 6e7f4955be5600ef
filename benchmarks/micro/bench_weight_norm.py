"""Weight normalization under pytest-benchmark: `pytest benchmarks/ --benchmark-only`.

All weights of a real discriminator, in one call, against torch's own operator called for each; both
are checked against float64 before they are timed. `W + dW` includes the gradients of v and g.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from benchmarks.suites import workloads
from gankernels import ops, reference

Weights = Sequence[Tensor]
NETWORKS = sorted(workloads.load(), key=lambda name: workloads.load()[name].nbytes)


def torchs(v: Weights, g: Weights) -> Weights:
    return [torch._weight_norm(a, b, 0) for a, b in zip(v, g, strict=True)]


def ours(v: Weights, g: Weights) -> Weights:
    return ops.weight_norm(v, g)


KINDS: dict[str, Callable[[Weights, Weights], Weights]] = {
    "torch._weight_norm": torchs,
    "gankernels": ours,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["W", "W + dW"])
@pytest.mark.parametrize("network", NETWORKS)
def test_network(measure, device: str, network: str, what: str, kind: str) -> None:
    """Every weight of a network, in float32, and its gradient."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    shapes = workloads.load()[network].weights
    v = [draw(shape).requires_grad_() for shape in shapes]
    g = [draw((shape[0], *(1,) * (len(shape) - 1))).requires_grad_() for shape in shapes]
    x = [draw(shape) for shape in shapes]
    run = KINDS[kind]

    def call() -> Sequence[Tensor]:
        if what == "W":
            with torch.no_grad():
                return run(v, g)
        return torch.autograd.grad(run(v, g), [*v, *g], x)

    exact_v, exact_g = ([t.detach().double().requires_grad_() for t in each] for each in (v, g))
    expected: Sequence[Tensor] = reference.weight_norm(exact_v, exact_g)  # type: ignore[assignment]
    if what != "W":
        expected = torch.autograd.grad(expected, [*exact_v, *exact_g], [t.double() for t in x])
    for found, right in zip(call(), expected, strict=True):
        atol = 2e-5 * right.abs().max().item()
        torch.testing.assert_close(found.double(), right, rtol=0, atol=atol)
    size = sum(t.nbytes for t in v)
    streams = 2 if what == "W" else 5  # v, W; v, dW, dv
    measure(call, group=f"weight_norm, {network}, {what}", name=kind, floor_bytes=streams * size)
