"""Sizes at which the unrolled loops of the kernels run, which no test of an operator reaches."""

from collections.abc import Callable

import pytest
import torch
from support.backends import BACKENDS, panel_of
from support.tensors import DTYPES, assert_near, drawer, dtype_name
from torch import Tensor

from gankernels import ops
from gankernels.ops import _operator

Cast = Callable[[Tensor], Tensor]
Run = Callable[[Cast], list[Tensor]]
pytestmark = pytest.mark.skipif("ptx" not in BACKENDS, reason="GANKERNELS_PTX is not set: make ptx")


def penalty(dtype: torch.dtype) -> Run:
    """48 MiB of gradients: chunks of 48 KiB, 12 vectors a thread."""
    draw = drawer(0, dtype)
    count = (48 << 20) // dtype.itemsize
    given = [draw(2, count // 4 + 24), draw(2, 3, count // 12)]
    cotangents = [drawer(1, dtype)(*x.shape) for x in given]

    def run(cast: Cast) -> list[Tensor]:
        grads = [cast(x).detach().requires_grad_() for x in given]
        value = ops.gradient_penalty(grads, center=0.7)
        first = torch.autograd.grad(value, grads, create_graph=True)
        second = torch.autograd.grad(first, grads, [cast(x) for x in cotangents])
        return [value, *first, *second]

    return run


def norm(dtype: torch.dtype) -> Run:
    """Every layout with rows and columns of more than a tile."""
    draw = drawer(0, dtype)
    shapes = [(1024, 512, 3, 3), (3, 2_000_003), (1_000_003, 3), (2048, 2048), (700, 1900)]
    given = [draw(*shape) for shape in shapes]
    given.append(draw(512, 1024, 4, 4).contiguous(memory_format=torch.channels_last))
    given += [draw(1900, 700).t(), draw(256, 500, 4, 4).movedim(1, 0)]
    unit = torch.nn.functional.normalize
    u = [unit(drawer(1, dtype)(w.shape[0]), dim=0) for w in given]
    v = [unit(drawer(2, dtype)(w.numel() // w.shape[0]), dim=0) for w in given]
    cotangents = [drawer(3, dtype)(*w.shape) for w in given]

    def run(cast: Cast) -> list[Tensor]:
        weights = [cast(w).detach().requires_grad_() for w in given]
        left, right = ([cast(x).clone() for x in vectors] for vectors in (u, v))
        out, sigma = ops.spectral_norm(weights, left, right, 1)
        seeds = [cast(x) for x in cotangents]
        first = torch.autograd.grad(out, weights, seeds, create_graph=True)
        second = torch.autograd.grad(first, weights, seeds)
        return [sigma, *left, *right, *out, *first, *second]

    return run


def resample(dtype: torch.dtype) -> Run:
    x = drawer(0, dtype)(3, 3, 150, 180)
    rows = [
        [0.8, -0.6, 3.25, 0.6, 0.8, -7.5],
        [2.7, 0.3, 0, -0.2, 1.9, 4],
        [0.31, 0, 9, 0, 0.43, 2.5],
    ]
    maps = torch.tensor(rows, dtype=torch.float64).view(3, 2, 3)
    plain = {"filter": "bilinear", "padding_mode": "zeros", "output_size": (97, 133)}

    def run(cast: Cast) -> list[Tensor]:
        found = []
        for images in (x, x.contiguous(memory_format=torch.channels_last), x[:, :1], x[..., 1:]):
            for options in ({}, {"mode": "stylegan2-ada"}, {"filter": "bilinear"}, plain):
                leaf = cast(images).detach().requires_grad_()
                out = ops.affine_resample(leaf, maps, **options)
                seed = cast(drawer(1, dtype)(*out.shape))
                found += [out, *torch.autograd.grad(out, leaf, seed)]
        return found

    return run


def filtering(dtype: torch.dtype) -> Run:
    x = drawer(0, dtype)(3, 3, 150, 180)
    gains = drawer(1, torch.float64)(3, 4).abs() + 0.2

    def run(cast: Cast) -> list[Tensor]:
        found = []
        for images in (x, x.contiguous(memory_format=torch.channels_last), x[..., 1:]):
            leaf = cast(images).detach().requires_grad_()
            wide = torch.float64 if leaf.dtype == torch.float64 else torch.float32
            out = ops.image_filter(leaf, gains.float().to(wide))
            found += [out, *torch.autograd.grad(out, leaf, cast(drawer(1, dtype)(*out.shape)))]
        return found

    return run


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", [penalty, norm, resample, filtering], ids=lambda f: f.__name__)
def test_large(case, dtype, monkeypatch):
    """As the kernels of the processor in float64, of the same numbers."""
    run = case(dtype)
    expected = run(lambda x: x.double())
    panel = panel_of("ptx")
    panel.set_order(panel.Order.random, 1)
    monkeypatch.setattr(_operator, "kernels", torch.ops.gankernels_ptx)
    for i, (got, exact) in enumerate(zip(run(lambda x: x), expected, strict=True)):
        # Derivatives are of rounded numbers: a few roundings more.
        assert_near(got, exact, dtype, factor=3, what=f"{case.__name__} {i}")
