"""Gradient penalties: who is measured, on which gradients, and the check of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import gankernels
from benchmarks.core.bandwidth import Bandwidth
from benchmarks.core.harness import FEWEST_ROUNDS, interleaved
from benchmarks.suites.spectral_norm import BACKWARD, COMPILED, FORWARD, WrongResultError
from benchmarks.suites.workloads import BYTES_PER_ELEMENT

USUAL, EAGER, OURS = "usual", "eager", "gankernels"
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


@dataclass(frozen=True)
class Case:
    """Gradients of one shape and layout, and the penalty on them."""

    shape: tuple[int, ...]
    channels_last: bool
    center: float

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
        return x.requires_grad_()


def shape_name(shape: Sequence[int]) -> str:
    """64x3x32x32."""
    return "x".join(map(str, shape))


def cases(shapes: Sequence[tuple[int, ...]] = SHAPES) -> Iterator[Case]:
    """Both penalties on every shape; images in both layouts."""
    for shape in shapes:
        for channels_last in (False, True) if len(shape) == 4 else (False,):
            for center in PENALTIES:
                yield Case(shape, channels_last, center)


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
class Contestant:
    """One way of penalising `grads`."""

    kind: str
    call: Callable[[], Tensor]
    grads: Tensor
    form: str = ""

    def forward(self) -> None:
        self.call()

    def forward_backward(self) -> None:
        self.grads.grad = None
        self.call().backward()

    def timed(self, which: str) -> Callable[[], None]:
        return {FORWARD: self.forward, BACKWARD: self.forward_backward}[which]


def build(kind: str, grads: Tensor, center: float, form: str = "") -> Contestant:
    """The usual form, or ours, or the eager one called `form`, or that compiled."""
    if kind in (USUAL, OURS):
        written: Penalty = _usual if kind == USUAL else _ours
        return Contestant(kind, partial(written, grads, center), grads)
    penalty = eager_forms(center)[form]
    if kind == COMPILED:
        torch._dynamo.reset()
        penalty = torch.compile(penalty, dynamic=False)
    return Contestant(kind, partial(penalty, grads, center), grads, form)


def fastest_form(grads: Tensor, center: float) -> str:
    """The name of the eager form that takes the least time forward and backward, of the right."""
    entered = {name: build(EAGER, grads, center, name) for name in eager_forms(center)}
    calls = {name: contestant.forward_backward for name, contestant in entered.items()}
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


def check(contestant: Contestant, center: float) -> float:
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
    if not worst <= WRONG:
        raise WrongResultError(f"{LABELS[contestant.kind]} is off by {worst:.1e} from float64")
    return worst


def line_up(
    case: Case, kinds: Sequence[str]
) -> tuple[list[Contestant], dict[str, float], dict[str, str]]:
    """Builds and checks every kind: the contestants, their errors, and why any is left out."""
    grads = case.grads()
    entered: list[Contestant] = []
    errors: dict[str, float] = {}
    left_out: dict[str, str] = {}
    form = fastest_form(grads, case.center) if {EAGER, COMPILED} & set(kinds) else ""
    for kind in kinds:
        try:
            contestant = build(kind, grads, case.center, form)
            errors[kind] = check(contestant, case.center)
            entered.append(contestant)
        except Exception as error:
            left_out[kind] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return entered, errors, left_out


def floor(nbytes: int, speed: Bandwidth, which: str) -> tuple[int, float]:
    """Bytes that must move and their least time. Forward: a read; backward: a read and a write."""
    if which == FORWARD:
        return nbytes, nbytes / speed.read
    return 3 * nbytes, nbytes / speed.read + 2 * nbytes / speed.copy
