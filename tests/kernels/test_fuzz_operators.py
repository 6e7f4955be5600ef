"""Drawn calls of every operator on the CPU, against the reference in float64.

Views of any strides and offset, options, two derivatives. `tests/cpp/fuzz_*.cpp` draw more of it,
and without torch. ``GANKERNELS_FUZZ_SEED`` is the seed; a failure says it, and the case.
"""

import os
import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support.tensors import DTYPES, TOLERANCE
from torch import Tensor

import gankernels
from gankernels import ops, reference

SEED = os.environ.get("GANKERNELS_FUZZ_SEED") or "1"
CASES = 30  # of an operator
#: Where the kernels cut their work, and small ones.
SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65)
PIECES = (2047, 2048, 2049, 4096, 4097)

Result = Sequence[Tensor]


class Drawn(random.Random):
    """A case: what it draws, and in words what it has drawn."""

    def __init__(self, name: str, case: int) -> None:
        super().__init__(zlib.crc32(f"{SEED} {name} {case}".encode()))
        self.generator = torch.Generator().manual_seed(self.getrandbits(60))
        self.words: list[str] = [f"GANKERNELS_FUZZ_SEED={SEED}, {name} {case}:"]
        self.dtype = self.note("dtype", self.choice(DTYPES))
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32

    def note(self, name: str, value: Any) -> Any:
        self.words.append(f"{name} {value}")
        return value

    def chance(self, p: float) -> bool:
        return self.random() < p

    def numbers(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return x.to(dtype or self.dtype)

    def view(self, *shape: int) -> Tensor:
        """Normal numbers: dimensions in any order of memory, with steps and an offset."""
        order = list(range(len(shape)))
        if self.chance(0.7):
            self.shuffle(order)
        dense = self.chance(0.6)
        steps = [1 if dense or self.chance(0.6) else self.randint(2, 3) for _ in shape]
        base = self.numbers(
            self.randint(0, 5) + self._elements([shape[d] * steps[d] for d in order])
        )
        size = [shape[d] * steps[d] for d in order]
        x = base[len(base) - self._elements(size) :].view(size).permute(*self._inverse(order))
        x = x[tuple(slice(None, None, step) for step in steps)]
        if self.chance(0.05):
            d = self.randrange(len(shape))
            x = x.select(d, 0).unsqueeze(d).expand(shape)
        self.note("view", f"{tuple(x.shape)} strides {x.stride()} from {x.storage_offset()}")
        assert x.shape == shape
        return x

    @staticmethod
    def _elements(size: Sequence[int]) -> int:
        return int(torch.Size(size).numel())

    @staticmethod
    def _inverse(order: Sequence[int]) -> list[int]:
        return [order.index(d) for d in range(len(order))]


def close(case: Drawn, what: str, found: Result, expected: Result, factor: float) -> None:
    assert len(found) == len(expected)
    for x, right in zip(found, expected, strict=True):
        assert x.shape == right.shape, (what, x.shape, right.shape, *case.words)
        if x.numel() == 0:
            continue
        largest = max(1.0, right.abs().max().item())
        bound = TOLERANCE[x.dtype] * largest
        bound += factor * max(TOLERANCE[case.wide], TOLERANCE[x.dtype]) * largest
        off = (x.double() - right).abs().max().item()
        assert off <= bound, (what, f"off by {off} of {largest}", *case.words)


def compare(
    case: Drawn,
    inputs: Sequence[Tensor],
    function: Callable[..., Result],
    plain: Callable[..., Result],
    factor: float = 4.0,
) -> None:
    """Both functions and two derivatives of them by the inputs, along drawn cotangents."""
    before = [x.clone() for x in inputs]
    results = []
    for f, dtype in ((function, None), (plain, torch.float64)):
        x = [(i if dtype is None else i.to(dtype)).detach().requires_grad_() for i in inputs]
        out = f(*x)
        case.generator.manual_seed(3)
        seeds = [case.numbers(*y.shape, dtype=torch.float64).to(y.dtype) for y in out]
        again = [case.numbers(*i.shape, dtype=torch.float64).to(i.dtype) for i in inputs]
        first = torch.autograd.grad(out, x, seeds, create_graph=True)
        second: Result = []
        if any(g.requires_grad for g in first):
            weights = [g.detach() if dtype is None else g.to(dtype) for g in again]
            second = torch.autograd.grad(
                [g for g in first if g.requires_grad],
                x,
                [w for w, g in zip(weights, first, strict=True) if g.requires_grad],
                allow_unused=True,
                materialize_grads=True,
            )
        results.append((out, first, second))
    names = ("result", "first derivative", "second derivative")
    for name, found, right in zip(names, *results, strict=True):
        if not found or not right:  # linear: autograd may know it, or not
            assert all((x == 0).all() for x in (*found, *right)), (name, *case.words)
            continue
        close(case, name, found, right, factor)
    for x, was in zip(inputs, before, strict=True):
        assert torch.equal(x, was), ("an input was changed", *case.words)


def spectral_norm(case: Drawn) -> None:
    weights, u, v = [], [], []
    for _ in range(case.randint(1, 4)):
        rows = case.choice(SIZES)
        columns = [case.choice(SIZES[:9]) for _ in range(case.randint(1, 4))]
        if case.chance(0.3):
            rows, columns = case.choice(((1, [*PIECES]), (64, [32]), (2048, [1]), (32, [8, 8])))
            columns = [case.choice(columns)] if len(columns) > 2 else columns
        weights.append(case.view(rows, *columns))
        cols = weights[-1][0].numel()
        a = torch.nn.functional.normalize(case.numbers(rows, dtype=torch.float64), dim=0)
        b = torch.nn.functional.normalize(weights[-1].double().reshape(rows, cols).T @ a, dim=0)
        u.append(a.to(case.wide)), v.append(b.to(case.wide))
    max_norm = case.note("max_norm", case.choice((None, case.uniform(0.1, 30))))

    def normalized(f: Callable[..., Any], x: Sequence[Tensor]) -> Result:
        outputs, sigma = f(
            x,
            [a.to(x[0].dtype) if x[0].dtype == torch.float64 else a for a in u],
            [b.to(x[0].dtype) if x[0].dtype == torch.float64 else b for b in v],
            max_norm=max_norm,
        )
        return [*outputs, sigma]

    compare(
        case,
        weights,
        lambda *x: normalized(ops.spectral_normalize, x),
        lambda *x: normalized(reference.spectral_normalize, x),
        factor=16,
    )


def gradient_penalty(case: Drawn) -> None:
    batch = case.choice(SIZES[:12])
    shapes = []
    for _ in range(case.randint(1, 3)):
        shapes.append([case.choice(SIZES[:10]) for _ in range(case.randint(1, 3))])
        if case.chance(0.3):
            shapes[-1] = [case.choice((*PIECES, 32768, 32767, 34816))]
    grads = [case.view(batch, *shape) for shape in shapes]
    total = sum(g[0].numel() for g in grads)
    grads = [g.mul(total**-0.5) if g.is_contiguous() else g for g in grads]
    options: dict[str, Any] = {
        "center": case.choice((0.0, 1.0)),
        "weight": case.uniform(0.5, 5),
        "per_tensor": case.chance(0.4),
        "reduction": case.choice(("none", "mean", "sum")),
    }
    options["one_sided"] = options["center"] > 0 and case.chance(0.5)
    case.note("options", options)
    compare(
        case,
        grads,
        lambda *x: [gankernels.gradient_penalty(list(x), **options)],
        lambda *x: [reference.gradient_penalty(list(x), **options)],
        factor=32,
    )


def weight_norm(case: Drawn) -> None:
    weights, sizes, dims = [], [], []
    for _ in range(case.randint(1, 4)):
        shape = [case.choice(SIZES[:12]) for _ in range(case.randint(1, 4))]
        if case.chance(0.3):
            shape = [case.choice((1, 2, 5)), case.choice((*PIECES, 32768, 32767, 34816))]
        dim = case.note("dim", case.choice((0, None, *range(len(shape)))))
        rows = 1 if dim is None else shape[dim]
        v = case.view(*shape)
        # Far from 0, where derivatives of any size are.
        weights.append(v + (v.sign() * (2 if v.numel() < 9 * rows else 0.1)))
        g = case.view(rows) if case.chance(0.5) else case.numbers(*(1,) * case.randint(0, 3), rows)
        sizes.append(g)
        dims.append(dim)
    count = len(weights)
    compare(
        case,
        [*weights, *sizes],
        lambda *x: ops.weight_norm(x[:count], x[count:], dim=dims),
        lambda *x: reference.weight_norm(x[:count], x[count:], dim=dims),
        factor=32,
    )


def _image(case: Drawn) -> Tensor:
    return case.view(
        case.randint(1, 3), case.choice((1, 2, 3, 4, 5)), case.choice(SIZES), case.choice(SIZES)
    )


def affine_resample(case: Drawn) -> None:
    image = _image(case)
    maps = torch.eye(2, 3, dtype=torch.float64).repeat(image.shape[0], 1, 1)
    kind = case.note("maps", case.choice(("general", "axes", "whole")))
    if kind == "general":
        maps += 0.5 * case.numbers(*maps.shape, dtype=torch.float64)
    elif kind == "axes":
        maps[:, 0, 0] = case.uniform(0.3, 3)
        maps[:, 1, 2] = case.uniform(-5, 5)
    else:
        maps[:, 0] *= case.choice((-1, 1))
        maps[:, :, 2] = case.randint(-3, 3)
    filter = case.note("filter", case.choice(("sym6", "bilinear")))
    options: dict[str, Any] = {"filter": filter, "lossless_blits": case.chance(0.7)}
    if filter == "bilinear":
        options["padding_mode"] = case.choice(("reflection", "zeros", "border"))
    if case.chance(0.5):
        options["output_size"] = (case.choice(SIZES), case.choice(SIZES))
    case.note("options", options)
    compare(
        case,
        [image],
        lambda x: [ops.affine_resample(x, maps, **options)],
        lambda x: [reference.affine_resample(x, maps, **options)],
        factor=16,
    )


def image_filter(case: Drawn) -> None:
    image = _image(case)
    gains = case.numbers(image.shape[0], 4, dtype=case.wide).abs()
    gains[case.randrange(len(gains))] = 1
    box = None
    if case.chance(0.5):
        box = torch.rand(image.shape[0], 3, generator=case.generator, dtype=torch.float64)
    compare(
        case,
        [image],
        lambda x: [ops.image_filter(x, gains, box=box)],
        lambda x: [reference.image_filter(x, gains.double(), box=box)],
        factor=16,
    )


@pytest.mark.parametrize(
    "draw",
    [spectral_norm, gradient_penalty, weight_norm, affine_resample, image_filter],
    ids=lambda f: f.__name__,
)
def test_drawn_calls(draw):
    for case in range(CASES):
        drawn = Drawn(draw.__name__, case)
        try:
            draw(drawn)
        except Exception:
            print(*drawn.words)
            raise
