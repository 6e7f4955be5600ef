"""Every operator once on awkward tensors, against float64: what compute-sanitizer is let loose on.

It runs on any device, so that the dry run exercises it on the CPU. The cases here are those of
spectral normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

import gankernels
from gankernels import _library, ops

#: Largest error against float64, relative to the largest number of the tensor.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 5e-3,
    torch.float16: 6e-4,
}
SECOND_ORDER = 10  # times the tolerance: sums of products of sums

Draw = Callable[..., Tensor]
Results = dict[str, list[Tensor]]
Work = Callable[[Any], Results]


class Workout(Protocol):
    """What the checks know of a case, whatever it is of."""

    @property
    def name(self) -> str: ...

    def data(self, device: str, seed: int = 0) -> Any:
        """The inputs; `reset` takes back what a work moved, `exact` copies them in float64."""

    def works(self) -> tuple[Work, ...]:
        """What is compared with float64; the first is also repeated and captured."""

    def floors(self, exact: Any, wanted: Results) -> dict[str, list[float]]:
        """Of results whose terms cancel: how large those are."""


def drawer(seed: int, device: str, dtype: torch.dtype) -> Draw:
    """Draws normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    return draw


# --- spectral normalisation --------------------------------------------------------------------


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


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
class Case:
    """Weights, and how they are normalised."""

    name: str
    weights: Callable[[Draw], list[Tensor]]
    dtype: torch.dtype = torch.float32
    n: int = 1
    order: Any = "u_first"
    guard: bool = False
    coefficient: float | None = None

    def data(self, device: str, seed: int = 0) -> Data:
        return data(self, device, seed)

    def works(self) -> tuple[Work, ...]:
        return lambda given: training_step(self, given), lambda given: apart(self, given)

    def floors(self, exact: Data, wanted: Results) -> dict[str, list[float]]:
        return _floors(exact, wanted["sigma"][0])


CASES = (
    Case("float32", awkward),
    Case("float32, v_first, n=2", awkward, n=2, order="v_first"),
    Case("float64, coefficient", awkward, torch.float64, coefficient=0.5),
    Case("bfloat16, n=2", awkward, torch.bfloat16, n=2),
    Case("float16, v_first", awkward, torch.float16, order="v_first"),
    Case("guard", with_zero, guard=True),
    Case("guard, v_first, coefficient", with_zero, order="v_first", guard=True, coefficient=0.5),
    Case("131 weights", many),
)
REPEATED = (
    Case("awkward, float32", awkward),
    Case("awkward, bfloat16, v_first, n=2", awkward, torch.bfloat16, n=2, order="v_first"),
    Case("131 weights", many),
    Case("large, float32", large, guard=True),
    Case("large, float16", large, torch.float16, coefficient=0.5),
)


@dataclass
class Data:
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

    def exact(self) -> Data:
        """The same numbers in float64 on the CPU."""

        def wide(tensors: Sequence[Tensor]) -> list[Tensor]:
            copies = [x.detach().cpu().double().clone() for x in tensors]
            return [c.requires_grad_(x.requires_grad) for c, x in zip(copies, tensors, strict=True)]

        return Data(
            wide(self.weights),
            wide(self.u),
            wide(self.v),
            None if self.skipped is None else self.skipped.cpu().clone(),
            wide(self.grads),
            *wide([self.grad_sigma]),
            wide(self.h),
        )


def data(case: Case, device: str, seed: int = 0) -> Data:
    """The inputs, the same on every device."""
    draw = drawer(seed, device, case.dtype)
    weights = [w.requires_grad_() for w in case.weights(draw)]
    wide = torch.float64 if case.dtype == torch.float64 else torch.float32
    return Data(
        weights,
        [draw(w.shape[0]) for w in weights],
        [draw(w.numel() // w.shape[0]) for w in weights],
        torch.zeros(len(weights), dtype=torch.int64, device=device) if case.guard else None,
        [draw(*w.shape).requires_grad_() for w in weights],
        draw(len(weights), dtype=wide).requires_grad_(),
        [draw(*w.shape) for w in weights],
    )


def training_step(case: Case, given: Data) -> Results:
    """Forward, backward and double backward, from the state of `given`, which it moves."""
    outputs, sigma = ops.spectral_norm(
        given.weights,
        given.u,
        given.v,
        case.n,
        order=case.order,
        skipped=given.skipped,
        coefficient=case.coefficient,
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


def apart(case: Case, given: Data) -> Results:
    """The operators one by one: the iteration, and normalising with and without its sigma."""
    packed = ops.power_iteration_(
        given.weights, given.u, given.v, case.n, order=case.order, skipped=given.skipped
    )
    u, v, sigma = ops.unpack(packed, given.weights)
    with torch.no_grad():
        outputs, _ = ops.spectral_normalize(
            given.weights, u, v, sigma, coefficient=case.coefficient
        )
    found: list[Tensor] = []
    gradients: Sequence[Tensor] = []
    if not case.guard:  # u . (W v) of a zero weight is a sigma of zero
        found, sigma = ops.spectral_normalize(given.weights, u, v, coefficient=case.coefficient)
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


def _floors(exact: Data, sigma: Tensor) -> dict[str, list[float]]:
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


# --- the check of a case -----------------------------------------------------------------------


def relative_error(got: Tensor, wanted: Tensor, floor: float = 1e-300) -> float:
    """Over the largest number wanted, or `floor`; NaN counts as infinitely wrong."""
    got = got.detach().cpu().double()
    wanted = wanted.detach().double()
    if got.shape != wanted.shape:
        return float("inf")
    error = (got - wanted).abs().max() / wanted.abs().max().clamp_min(floor)
    return float(error.nan_to_num(nan=float("inf")))


def check_case(case: Workout, device: str) -> dict[str, Any]:
    """Runs a case and compares every result; an error over the tolerance is a ValueError."""
    told = set(_library._told)
    _library._told.clear()
    worst, where = 0.0, ""
    for work in case.works():
        given = case.data(device)
        exact = given.exact()
        got = work(given)
        with gankernels.backend("reference"):
            wanted = work(exact)
        floors = case.floors(exact, wanted)
        for what, tensors in got.items():
            for i, (x, want) in enumerate(zip(tensors, wanted[what], strict=True)):
                factor = SECOND_ORDER if "second" in what else 1
                floor = floors[what][i] if what in floors else 1e-300
                error = relative_error(x, want, floor) / factor / TOLERANCE.get(x.dtype, 1e-12)
                if error > worst:
                    worst, where = error, f"{what}[{i}]"
    fell_back = set(_library._told)
    _library._told.update(told)
    if fell_back:
        raise ValueError(f"{case.name}: expected the kernels, got the reference: {fell_back}")
    if not worst <= 1:
        raise ValueError(f"{case.name}: {where} is off by {worst:.1e} times what is tolerated")
    return {"case": case.name, "worst": where, "share of tolerance": round(worst, 4)}


def check_all(
    cases: Sequence[Workout], device: str, say: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Every case, also after one that fails; then a ValueError with what all of them found."""
    rows, wrong = [], []
    for case in cases:
        say(case.name)
        try:
            rows.append(check_case(case, device))
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
    if wrong:
        raise ValueError("; ".join(wrong))
    return rows
