"""Gradient penalties: who is measured, on which gradients, and the check of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import gankernels
from benchmarks.core.contest import (
    BACKWARD,
    BYTES_PER_ELEMENT,
    COMPILED,
    FORWARD,
    OURS,
    Case,
    Contestant,
    Traffic,
    WrongResultError,
    finished,
    shape_name,
    tolerated,
)
from benchmarks.core.harness import FEWEST_ROUNDS, interleaved

USUAL, EAGER = "usual", "eager"
LABELS = {
    USUAL: "view, norm(2, 1)",
    EAGER: "fastest eager form",
    COMPILED: "torch.compile of that",
    OURS: "gankernels",
}
PENALTIES = {0.0: "R1", 1.0: "WGAN-GP"}  # by center
SHAPES = (
    (16, 1, 8192),
    (64, 3, 32, 32),
    (64, 3, 64, 64),
    (32, 3, 256, 256),
    (8, 3, 1024, 1024),
)

ACCURACY = 1e-6  # ours must be as close to float64 as that
WRONG = 1e-3  # torch's norm sums large samples in float32 and is off by 1e-4 or more; that passes
RANKING_S = 0.25  # seconds for finding the fastest eager form

Penalty = Callable[[Tensor, float], Tensor]


# --- the forms ---------------------------------------------------------------------------------


def _of_norms(norms: Tensor, center: float) -> Tensor:
    return (norms - center if center else norms).square().mean()


def _usual(g: Tensor, center: float) -> Tensor:
    """What most code has. A channels_last gradient cannot be viewed so: it is copied."""
    return _of_norms(g.reshape(len(g), -1).norm(2, 1), center)


def _rows(g: Tensor) -> Tensor:
    """(B, elements), of both layouts without a copy; the order of elements is none of a norm's."""
    return (g if g.is_contiguous() else g.permute(0, 2, 3, 1)).flatten(1)


def _vector_norm(g: Tensor, center: float) -> Tensor:
    return _of_norms(torch.linalg.vector_norm(_rows(g), dim=1), center)


def _from_squares(squares: Callable[[Tensor], Tensor], g: Tensor, center: float) -> Tensor:
    found = squares(g)
    return _of_norms(found.sqrt(), center) if center else found.mean()


def _dims(g: Tensor) -> tuple[int, ...]:
    return tuple(range(1, g.dim()))


_SQUARES: dict[str, Callable[[Tensor], Tensor]] = {
    "square().sum": lambda g: g.square().sum(_dims(g)),
    "(g * g).sum": lambda g: (g * g).sum(_dims(g)),
    "addcmul().sum": lambda g: torch.addcmul(g.new_zeros(()), g, g).sum(_dims(g)),
    "einsum": lambda g: torch.einsum("bi,bi->b", _rows(g), _rows(g)),
    "bmm": lambda g: torch.bmm(_rows(g).unsqueeze(1), _rows(g).unsqueeze(2)).flatten(),
}


def _dot(g: Tensor, _center: float) -> Tensor:
    flat = _rows(g).flatten()
    return torch.dot(flat, flat) / len(g)


def _sum(g: Tensor, _center: float) -> Tensor:
    return g.square().sum() / len(g)


def eager_forms(center: float) -> dict[str, Penalty]:
    """The ways of writing the penalty in plain PyTorch; R1 needs no norm of a single sample."""
    forms: dict[str, Penalty] = {
        name: partial(_from_squares, squares) for name, squares in _SQUARES.items()
    }
    forms["vector_norm"] = _vector_norm
    return forms if center else forms | {"dot of all": _dot, "square().sum of all": _sum}


def _ours(g: Tensor, center: float) -> Tensor:
    return gankernels.gradient_penalty(g, center=center)


# --- contestants -------------------------------------------------------------------------------


@dataclass
class PenaltyContestant(Contestant):
    """One way of penalizing `grads`."""

    call: Callable[[], Tensor]
    grads: Tensor

    def forward(self) -> None:
        self.call()

    def forward_backward(self) -> None:
        self.grads.grad = None
        self.call().backward()

    def passes(self) -> dict[str, Callable[[], None]]:
        return {FORWARD: self.forward, BACKWARD: self.forward_backward}


def build(kind: str, grads: Tensor, center: float, form: str = "") -> PenaltyContestant:
    """The usual form, or ours, or the eager one called `form`, or that compiled."""
    if kind in (USUAL, OURS):
        written: Penalty = _usual if kind == USUAL else _ours
        return PenaltyContestant(kind, partial(written, grads, center), grads)
    penalty = eager_forms(center)[form]
    if kind == COMPILED:
        torch._dynamo.reset()
        penalty = torch.compile(penalty, dynamic=False)
    return PenaltyContestant(kind, partial(penalty, grads, center), grads, form=form)


def fastest_form(grads: Tensor, center: float) -> str:
    """The name of the eager form that takes the least time forward and backward, of the right."""
    entered = {name: build(EAGER, grads, center, name) for name in eager_forms(center)}
    calls = {
        name: finished(contestant.forward_backward, grads.device.type)
        for name, contestant in entered.items()
    }
    timings = interleaved(calls, RANKING_S, min_rounds=FEWEST_ROUNDS)

    # The best of few samples, not their median: it says most where others use the processors too.
    def best(name: str) -> float:
        return min(sample.seconds for sample in timings.samples[name])

    for name in sorted(entered, key=best):
        try:
            check(entered[name], center)
        except WrongResultError:
            continue
        return name
    raise WrongResultError("no eager form is right")


def check(contestant: PenaltyContestant, center: float) -> float:
    """The largest relative error of the penalty and of its gradient, against float64."""
    grads = contestant.grads
    grads.grad = None
    value = contestant.call()
    value.backward()
    assert grads.grad is not None
    wanted, largest, errors = 0.0, 0.0, []
    with torch.no_grad():
        for g, actual in zip(grads, grads.grad, strict=True):
            exact = g.double()
            norm = float(exact.square().sum().sqrt())
            wanted += (norm - center) ** 2 / len(grads)
            exact *= 2 * (norm - center) / norm / len(grads)
            largest = max(largest, float(exact.abs().max()))
            errors.append((actual.double() - exact).abs().max())
    grads.grad = None
    of_gradient = torch.stack(errors).max() / largest
    of_value = (value.detach().double() - wanted).abs() / wanted
    worst = float(torch.maximum(of_value, of_gradient).nan_to_num(nan=math.inf))
    return tolerated(worst, WRONG, LABELS[contestant.kind])


# --- cases ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PenaltyCase(Case[PenaltyContestant]):
    """Gradients of one shape and layout, and the penalty on them."""

    shape: tuple[int, ...]
    channels_last: bool
    center: float
    device: str = "cpu"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return BYTES_PER_ELEMENT * self.numel

    @property
    def name(self) -> str:
        layout = " channels_last" if self.channels_last else ""
        return f"{shape_name(self.shape)}{layout}, {PENALTIES[self.center]}"

    def grads(self, seed: int = 0) -> Tensor:
        """A leaf: normal numbers, with norms from 0.5 to 2 as those of a critic in training."""
        generator = torch.Generator().manual_seed(seed)
        norms = torch.linspace(0.5, 2, self.shape[0]).view(-1, *[1] * (len(self.shape) - 1))
        x = torch.randn(self.shape, generator=generator)
        x *= norms / math.sqrt(self.numel / self.shape[0])
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x.to(self.device).requires_grad_()

    def builder(self, kinds: Sequence[str]) -> Callable[[str], PenaltyContestant]:
        grads = self.grads()
        form = fastest_form(grads, self.center) if {EAGER, COMPILED} & set(kinds) else ""
        return partial(build, grads=grads, center=self.center, form=form)

    def check(self, contestant: PenaltyContestant) -> float:
        return check(contestant, self.center)

    def traffic(self, which: str) -> Traffic:
        """Forward: a read. Backward: a read and a write more."""
        return Traffic(self.nbytes, 2 * self.nbytes if which == BACKWARD else 0)


def cases(shapes: Sequence[tuple[int, ...]] = SHAPES) -> Iterator[PenaltyCase]:
    """Both penalties on every shape; images in both layouts."""
    for shape in shapes:
        for channels_last in (False, True) if len(shape) == 4 else (False,):
            for center in PENALTIES:
                yield PenaltyCase(shape, channels_last, center)
