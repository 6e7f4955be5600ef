"""Every operator once on awkward tensors, against float64: what compute-sanitizer is let loose on.

It runs on any device, so that the dry run exercises it on the CPU. The workouts are in the
folder of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

import gankernels
from benchmarks.core.contest import relative_error
from gankernels import _library

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
    """What the checks know of a workout, whatever it is of."""

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


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def check_case(case: Workout, device: str) -> dict[str, Any]:
    """Runs a case and compares every result; an error over the tolerance is a ValueError."""
    worst, where = 0.0, ""
    with _library.fallbacks() as fell_back:
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
