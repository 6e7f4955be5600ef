"""Affine resampling under pytest-benchmark: `pytest benchmarks/ --benchmark-only`.

All geometric transforms of adaptive discriminator augmentation at full strength, against the same
in plain PyTorch, forward and with the backward. What both return is checked before it is timed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels import ops, reference
from gankernels.ops.ada_parameters import NORMALS, UNIFORMS, AdaMultipliers
from gankernels.reference.affine_resample import affine_resample as reference_affine_resample

GEOMETRY = AdaMultipliers(xflip=1, rotate90=1, xint=1, scale=1, rotate=1, aniso=1, xfrac=1)


def maps_of(batch: int, size: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    options: Any = {"dtype": torch.float64, "generator": generator}
    uniforms = torch.rand(batch, UNIFORMS, **options).to(device)
    normals = torch.randn(batch, NORMALS, **options).to(device)
    p = torch.ones((), device=device)
    maps = ops.ada_parameters(
        p, GEOMETRY, uniforms=uniforms, normals=normals, height=size, width=size
    ).maps
    assert maps is not None
    return maps


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with backward"])
@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("kind", ["PyTorch", "gankernels"])
def test_geometry(measure, device: str, kind: str, size: int, backward: bool) -> None:
    """16 images of 3 channels."""
    batch = 16
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)
    maps = maps_of(batch, size, device)
    resample = {"PyTorch": reference, "gankernels": ops}[kind].affine_resample
    given = torch.randn_like(x)

    def run() -> Tensor:
        if not backward:
            return resample(x, maps)
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(resample(leaf, maps), leaf, given)[0]

    exact = x.double()
    expected = reference_affine_resample(exact, maps)
    if backward:
        expected = reference.affine_resample_transpose(
            given.double(), maps, input_size=(size, size)
        )
    torch.testing.assert_close(run().double(), expected, rtol=0, atol=1e-4)
    group = f"{batch}x3x{size}x{size}, {'with backward' if backward else 'forward'}"
    measure(run, group=group, name=kind)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with backward"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("filter", ["bilinear", "nearest"])
@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("kind", ["grid_sample", "gankernels"])
def test_plain_filters(
    measure, device: str, kind: str, size: int, filter: str, padding_mode: str, backward: bool
) -> None:
    """16 images of 3 channels, against `affine_grid` and `grid_sample`."""
    batch = 16
    x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)
    maps = maps_of(batch, size, device)
    theta = maps.float()
    theta[:, :, 2] *= 2 / (size - 1)
    given = torch.randn_like(x)
    options: Any = {"filter": filter, "padding_mode": padding_mode}

    def resample(x: Tensor) -> Tensor:
        if kind == "gankernels":
            return ops.affine_resample(x, maps, **options)
        grid = F.affine_grid(theta, list(x.shape), align_corners=True)
        return F.grid_sample(x, grid, filter, padding_mode, align_corners=True)

    def run() -> Tensor:
        if not backward:
            return resample(x)
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(resample(leaf), leaf, given)[0]

    if filter == "bilinear" and not backward:  # nearest pixels hang on roundings of the grid
        expected = reference_affine_resample(x.double(), maps, **options)
        torch.testing.assert_close(run().double(), expected, rtol=0, atol=1e-3)
    way = "with backward" if backward else "forward"
    group = f"{filter}, {padding_mode}, {batch}x3x{size}x{size}, {way}"
    measure(run, group=group, name=kind)
