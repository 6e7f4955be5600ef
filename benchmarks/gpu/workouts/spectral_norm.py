"""Spectral normalization of awkward weights: its workouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.workout import Draw, Results, Work, channels_last, drawer
from gankernels import ops


def awkward(draw: Draw) -> list[Tensor]:
    """Odd sizes, single rows and columns, every kind of strides, one of several blocks."""
    return [
        draw(1, 1),
        draw(1, 37),
        draw(37, 1),
        draw(13),
        draw(31, 33),
        draw(3, 1031),
        draw(257, 5),
        draw(33, 31).t(),
        draw(521, 7).t(),
        draw(16, 3, 3, 3),
        draw(5, 3, 2, 3, 4),
        channels_last(draw(12, 7, 3, 5)),
        draw(6, 37, 4, 3).movedim(1, 0),
        channels_last(draw(6, 10, 4, 3)).movedim(1, 0),
        draw(5, 6, 7, 4).permute(3, 1, 0, 2),
        draw(9, 33)[1:],
        draw(12, 31)[:, 1:-1],
        draw(130, 1027),
    ]


def with_zero(draw: Draw) -> list[Tensor]:
    """For the guard: some whose sigma is zero."""
    return [draw(7, 9), draw(5, 11) * 0, draw(33, 65), draw(64) * 0]


def many(draw: Draw) -> list[Tensor]:
    """More than 64, which is more than one launch may hold."""
    return [draw(1 + i % 7, 1 + i % 5) for i in range(131)]


def large(draw: Draw) -> list[Tensor]:
    """Big enough that many blocks share a weight."""
    return [draw(1024, 9 * 513), channels_last(draw(512, 257, 3, 3)), draw(3, 150_001), draw(7, 5)]


@dataclass(frozen=True)
class NormWorkout:
    """Weights, and how they are normalized."""

    name: str
    weights: Callable[[Draw], list[Tensor]]
    dtype: torch.dtype = torch.float32
    n: int = 1
    order: Any = "u_first"
    guard: bool = False
    max_norm: float | None = None

    def data(self, device: str, seed: int = 0) -> NormData:
        return data(self, device, seed)

    def works(self) -> tuple[Work, ...]:
        return lambda given: training_step(self, given), lambda given: apart(self, given)

    def floors(self, exact: NormData, wanted: Results) -> dict[str, list[float]]:
        return _floors(exact, wanted["sigma"][0])


CASES = (
    NormWorkout("float32", awkward),
    NormWorkout("float32, v_first, n=2", awkward, n=2, order="v_first"),
    NormWorkout("float64, max_norm", awkward, torch.float64, max_norm=0.5),
    NormWorkout("bfloat16, n=2", awkward, torch.bfloat16, n=2),
    NormWorkout("float16, v_first", awkward, torch.float16, order="v_first"),
    NormWorkout("guard", with_zero, guard=True),
    NormWorkout("guard, v_first, max_norm", with_zero, order="v_first", guard=True, max_norm=0.5),
    NormWorkout("131 weights", many),
)
REPEATED = (
    NormWorkout("awkward, float32", awkward),
    NormWorkout("awkward, bfloat16, v_first, n=2", awkward, torch.bfloat16, n=2, order="v_first"),
    NormWorkout("131 weights", many),
    NormWorkout("large, float32", large, guard=True),
    NormWorkout("large, float16", large, torch.float16, max_norm=0.5),
)


@dataclass
class NormData:
    """The inputs of a case. `u`, `v` and `skipped` are moved by it, the rest is constant."""

    weights: list[Tensor]
    u: list[Tensor]
    v: list[Tensor]
    skipped: Tensor | None
    grads: list[Tensor]
    grad_sigma: Tensor
    h: list[Tensor]
    start: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.start = [x.clone() for x in self.state]

    @property
    def state(self) -> list[Tensor]:
        return [*self.u, *self.v, *([] if self.skipped is None else [self.skipped])]

    def reset(self) -> None:
        """The state that the case started from."""
        for x, start in zip(self.state, self.start, strict=True):
            x.copy_(start)

    def exact(self) -> NormData:
        """The same numbers in float64 on the CPU."""

        def wide(tensors: Sequence[Tensor]) -> list[Tensor]:
            copies = [x.detach().cpu().double().clone() for x in tensors]
            return [c.requires_grad_(x.requires_grad) for c, x in zip(copies, tensors, strict=True)]

        return NormData(
            wide(self.weights),
            wide(self.u),
            wide(self.v),
            None if self.skipped is None else self.skipped.cpu().clone(),
            wide(self.grads),
            wide([self.grad_sigma])[0],
            wide(self.h),
        )


def data(case: NormWorkout, device: str, seed: int = 0) -> NormData:
    """The inputs, the same on every device."""
    draw = drawer(seed, device, case.dtype)
    weights = [w.requires_grad_() for w in case.weights(draw)]
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    return NormData(
        weights,
        [draw(w.shape[0]) for w in weights],
        [draw(w.numel() // w.shape[0]) for w in weights],
        torch.zeros(len(weights), dtype=torch.int64, device=device) if case.guard else None,
        [draw(*w.shape).requires_grad_() for w in weights],
        draw(len(weights), dtype=wide).requires_grad_(),
        [draw(*w.shape) for w in weights],
    )


def training_step(case: NormWorkout, given: NormData) -> Results:
    """Forward, backward and double backward, from the state of `given`, which it moves."""
    outputs, sigma = ops.spectral_norm(
        given.weights,
        given.u,
        given.v,
        case.n,
        order=case.order,
        skipped=given.skipped,
        max_norm=case.max_norm,
    )
    seeds = [*given.grads, given.grad_sigma]
    first = torch.autograd.grad([*outputs, sigma], given.weights, seeds, create_graph=True)
    second = torch.autograd.grad(first, [*given.weights, *seeds], given.h)
    return {
        "outputs": [x.detach() for x in outputs],
        "sigma": [sigma.detach()],
        "gradients": [x.detach() for x in first],
        "second gradients": list(second),
        "u": list(given.u),
        "v": list(given.v),
        "skipped": [] if given.skipped is None else [given.skipped],
    }


def apart(case: NormWorkout, given: NormData) -> Results:
    """The operators one by one: the iteration, and normalizing with and without its sigma."""
    u, v, sigma = ops.power_iteration_(
        given.weights, given.u, given.v, case.n, order=case.order, skipped=given.skipped
    )
    with torch.no_grad():
        outputs, _ = ops.spectral_normalize(given.weights, u, v, sigma, max_norm=case.max_norm)
    found: list[Tensor] = []
    gradients: Sequence[Tensor] = []
    if not case.guard:  # u . (W v) of a zero weight is a sigma of zero
        found, sigma = ops.spectral_normalize(given.weights, u, v, max_norm=case.max_norm)
        seeds = [*given.grads, given.grad_sigma]
        gradients = torch.autograd.grad([*found, sigma], given.weights, seeds)
    return {
        "sigma": [sigma.detach()],
        "packed u": list(u),
        "packed v": list(v),
        "outputs with sigma": outputs,
        "outputs without sigma": [x.detach() for x in found],
        "gradients without sigma": list(gradients),
    }


def _floors(exact: NormData, sigma: Tensor) -> dict[str, list[float]]:
    """How large the terms of gradients are; of vectors and rows they cancel to almost nothing."""
    sigmas = sigma.detach().tolist()
    g = [float(x.detach().abs().max()) for x in exact.grads]
    h = [float(x.abs().max()) for x in exact.h]
    first = [a / s for a, s in zip(g, sigmas, strict=True)]
    by_grad = [a / s for a, s in zip(h, sigmas, strict=True)]
    by_weight = [a * b for a, b in zip(first, by_grad, strict=True)]
    return {
        "gradients": first,
        "gradients without sigma": first,
        "second gradients": [*by_weight, *by_grad, max(h)],
    }
