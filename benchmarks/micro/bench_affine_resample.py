"""Affine resampling under pytest-benchmark: `pytest benchmarks/ --benchmark-only`.

All geometric transforms of adaptive discriminator augmentation at full strength, against the same
in plain PyTorch, forward and with the backward. What both return is checked before it is timed.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gankernels import ops, reference
from gankernels.ops.ada_parameters import NORMALS, UNIFORMS, AdaMultipliers

THREADS = 2
GEOMETRY = AdaMultipliers(xflip=1, rotate90=1, xint=1, scale=1, rotate=1, aniso=1, xfrac=1)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


def maps_of(batch: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    options = {"dtype": torch.float64, "generator": generator}
    uniforms = torch.rand(batch, UNIFORMS, **options)
    normals = torch.randn(batch, NORMALS, **options)
    p = torch.ones(())
    return ops.ada_parameters(
        p, GEOMETRY, uniforms=uniforms, normals=normals, height=size, width=size
    ).maps


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with backward"])
@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("kind", ["PyTorch", "gankernels"])
def test_geometry(benchmark, kind: str, size: int, backward: bool) -> None:
    """16 images of 3 channels."""
    batch = 16
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
    maps = maps_of(batch, size)
    resample = {"PyTorch": reference, "gankernels": ops}[kind].affine_resample
    given = torch.randn_like(x)

    def run() -> Tensor:
        if not backward:
            return resample(x, maps)
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(resample(leaf, maps), leaf, given)[0]

    exact = x.double()
    expected = reference.affine_resample(exact, maps)
    if backward:
        expected = reference.affine_resample_transpose(
            given.double(), maps, input_size=(size, size)
        )
    torch.testing.assert_close(run().double(), expected, rtol=0, atol=1e-4)
    benchmark.group = f"{batch}x3x{size}x{size}, {'with backward' if backward else 'forward'}"
    benchmark.name = kind
    benchmark.extra_info.update(threads=THREADS, torch=torch.__version__)
    benchmark(run)
