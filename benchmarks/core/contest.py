"""A contest: a case, its contestants, and the check that each passes before it is timed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

FORWARD, NO_GRAD, BACKWARD = "forward", "forward, no_grad", "forward + backward"
COMPILED, OURS = "compiled", "gankernels"
BYTES_PER_ELEMENT = 4  # everything here is measured in float32
PLAIN = "plain"  # a whole step without the suite's subject


class WrongResultError(RuntimeError):
    """A contestant's numbers are off, so its time is worth nothing."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that move: those only read, and those read and written as a copy does."""

    read: int
    copied: int

    @property
    def total(self) -> int:
        return self.read + self.copied


@dataclass
class Contestant(ABC):
    """One way of computing what a case asks for."""

    kind: str
    form: str = field(default="", kw_only=True)  # which of several, by name

    @abstractmethod
    def passes(self) -> Mapping[str, Callable[[], object]]:
        """What can be timed, by name."""

    def timed(self, which: str) -> Callable[[], object]:
        return self.passes()[which]


C = TypeVar("C", bound=Contestant)


class Case(ABC, Generic[C]):
    """What contestants are measured on."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """The size of what every contestant reads."""

    @abstractmethod
    def builder(self, kinds: Sequence[str]) -> Callable[[str], C]:
        """Builds contestants of `kinds`, on inputs that all of them share."""

    @abstractmethod
    def check(self, contestant: C) -> float:
        """The largest error against float64; one that is too large is a WrongResultError."""

    @abstractmethod
    def traffic(self, which: str) -> Traffic:
        """What a fused pass moves at the least."""


def line_up(
    case: Case[C], kinds: Sequence[str], say: Callable[[str], None] = lambda _: None
) -> tuple[list[C], dict[str, float], dict[str, str]]:
    """Builds and checks every kind: the contestants, their errors, and why any is left out."""
    build = case.builder(kinds)
    entered: list[C] = []
    errors: dict[str, float] = {}
    left_out: dict[str, str] = {}
    for kind in kinds:
        say(kind)
        try:
            contestant = build(kind)
            errors[kind] = case.check(contestant)
            entered.append(contestant)
        except Exception as error:
            left_out[kind] = reason_of(error)
    return entered, errors, left_out


def reason_of(error: Exception) -> str:
    """Why a contestant is left out, in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"


def finished(call: Callable[[], object], device: str) -> Callable[[], None]:
    """The call, until the device is done with it."""

    def run() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def relative_error(actual: Tensor, wanted: Tensor, floor: float = 1e-300) -> float:
    """Largest difference over the largest element wanted, or `floor`.

    NaN and another shape count as infinitely wrong.
    """
    wanted = wanted.detach().double()
    actual = actual.detach().to(wanted.device).double()
    if actual.shape != wanted.shape:
        return float("inf")
    error = (actual - wanted).abs().max() / wanted.abs().max().clamp_min(floor)
    return float(error.nan_to_num(nan=float("inf")))


def tolerated(error: float, most: float, label: str) -> float:
    """The error, if it is at most that; else a WrongResultError."""
    if not error <= most:
        raise WrongResultError(f"{label} is off by {error:.1e} from float64")
    return error


def shape_name(shape: Sequence[int]) -> str:
    """64x3x32x32."""
    return "x".join(map(str, shape))
