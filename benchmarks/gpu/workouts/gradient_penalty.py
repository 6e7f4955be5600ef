"""Gradient penalties on awkward gradients: their cases of the workout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.workout import Draw, Results, Work, channels_last, drawer
from gankernels import ops


def awkward(draw: Draw) -> list[Tensor]:
    """Single elements, odd sizes, vectors, every kind of strides, samples of several blocks."""
    return [
        draw(5),
        draw(5, 3, 7, 9),
        draw(5, 64),
        draw(7, 33)[2:],
        draw(5, 2, 16)[:, 1],
        channels_last(draw(5, 3, 8, 8)),
        draw(5, 4, 6, 3).transpose(1, 3),
        draw(5, 3, 37, 41),
    ]


def many(draw: Draw) -> list[Tensor]:
    """More than 64, which is more than one launch may hold."""
    return [draw(3, 1 + i * 7 % 40) for i in range(131)]


def large(draw: Draw) -> list[Tensor]:
    """Big enough for larger chunks."""
    return [draw(16, 3, 301, 301), draw(16, 512, 32, 32), draw(16, 5)]


@dataclass
class PenaltyData:
    """The inputs of a case, and the cotangents of its two orders. Nothing is moved by it."""

    grads: list[Tensor]
    sample_weight: Tensor | None
    inv_scale: Tensor | None
    seed: Tensor
    h: list[Tensor]

    @property
    def inputs(self) -> list[Tensor]:
        return [*self.grads, *([] if self.sample_weight is None else [self.sample_weight])]

    def reset(self) -> None:
        pass

    def exact(self) -> PenaltyData:
        """The same numbers in float64 on the CPU."""

        def wide(x: Tensor) -> Tensor:
            return x.detach().cpu().double().clone().requires_grad_(x.requires_grad)

        return PenaltyData(
            [wide(g) for g in self.grads],
            None if self.sample_weight is None else wide(self.sample_weight),
            None if self.inv_scale is None else wide(self.inv_scale),
            wide(self.seed),
            [wide(h) for h in self.h],
        )


@dataclass(frozen=True)
class PenaltyWorkout:
    """Gradients, and how they are penalized."""

    name: str
    grads: Callable[[Draw], list[Tensor]]
    dtype: torch.dtype = torch.float32
    center: float = 1.0
    one_sided: bool = False
    per_tensor: bool = False
    reduction: Any = "mean"
    weighted: bool = True
    scaled: bool = False

    def data(self, device: str, seed: int = 0) -> PenaltyData:
        """The inputs, the same on every device. Norms are 0.5, 1.5 or 2.5, about, and one is 0."""
        draw = drawer(seed, device, self.dtype)
        grads = self.grads(draw)
        batch = grads[0].shape[0]
        norms = (torch.arange(1, batch + 1) % 3 + 0.5).to(device, self.dtype)
        norms[1] = 0
        sizes = [g[0].numel() for g in grads]
        for g, size in zip(grads, sizes, strict=True):
            elements = size if self.per_tensor else sum(sizes)
            g.mul_(norms.view(-1, *[1] * (g.dim() - 1)) / elements**0.5)
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        rows = [len(grads)] if self.per_tensor else []
        values = [*rows, batch] if self.reduction == "none" else rows
        return PenaltyData(
            [g.requires_grad_() for g in grads],
            draw(batch, dtype=wide).requires_grad_() if self.weighted else None,
            torch.tensor(0.75, dtype=wide, device=device) if self.scaled else None,
            draw(*values, dtype=wide).requires_grad_(),
            [draw(*g.shape) for g in grads] + ([draw(batch, dtype=wide)] if self.weighted else []),
        )

    def works(self) -> tuple[Work, ...]:
        return (self.step,)

    def step(self, given: PenaltyData) -> Results:
        """Forward, backward and double backward."""
        values, norms = ops.gradient_penalty(
            given.grads,
            center=self.center,
            one_sided=self.one_sided,
            weight=0.7,
            sample_weight=given.sample_weight,
            inv_scale=given.inv_scale,
            per_tensor=self.per_tensor,
            reduction=self.reduction,
            return_norms=True,
        )
        first = torch.autograd.grad(values, given.inputs, given.seed, create_graph=True)
        second = torch.autograd.grad(first, [*given.inputs, given.seed], given.h)
        return {
            "values": [values.detach()],
            "norms": [norms],
            "gradients": [x.detach() for x in first],
            "second gradients": list(second),
        }

    def floors(self, exact: PenaltyData, wanted: Results) -> dict[str, list[float]]:
        return {}


CASES = (
    PenaltyWorkout("penalty, float32", awkward),
    PenaltyWorkout(
        "penalty, one-sided, per tensor", awkward, one_sided=True, per_tensor=True, scaled=True
    ),
    PenaltyWorkout("penalty, float64, center 0", awkward, torch.float64, 0.0, reduction="sum"),
    PenaltyWorkout("penalty, bfloat16", awkward, torch.bfloat16, reduction="none", scaled=True),
    PenaltyWorkout("penalty, float16, unweighted", awkward, torch.float16, weighted=False),
    PenaltyWorkout("penalty of 131 gradients", many),
    PenaltyWorkout("penalty of each of 131 gradients", many, per_tensor=True, reduction="none"),
)
REPEATED = (
    PenaltyWorkout("penalty, float32", awkward),
    PenaltyWorkout("penalty of each of 131 gradients", many, torch.bfloat16, per_tensor=True),
    PenaltyWorkout("penalty, large, float32", large, scaled=True),
    PenaltyWorkout("penalty, large, float16", large, torch.float16, center=0.0),
)
