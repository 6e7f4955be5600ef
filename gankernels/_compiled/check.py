"""Whether a compiled step has the numbers of eager mode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

#: How far norms may be off, relative to that of eager mode; by the coarsest dtype in the step.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.float16: 3e-2,
    torch.bfloat16: 1e-1,
}
#: The share of the norm of all gradients that counts as rounding in each: a bias whose gradient
#: cancels is all rounding.
FLOOR = 1e-2


class Compared(NamedTuple):
    """A number of the step, or a tensor, from both."""

    name: str
    compiled: Tensor | None
    eager: Tensor | None


class Error(NamedTuple):
    name: str
    figure: float


def tolerance_of(tensors: Iterable[Tensor], autocast: torch.dtype | None) -> float:
    dtypes = {x.dtype for x in tensors if x.is_floating_point()}
    if autocast is not None:
        dtypes.add(autocast)
    return max((TOLERANCES.get(dtype, 0.0) for dtype in dtypes), default=1e-3)


def largest_error(pairs: Sequence[Compared], floor: float = 0.0) -> Error | None:
    """The pair that is farthest apart, as a share of eager mode's norm; None where none is apart.

    ``floor``: a share of the norm of all of them that is added to each.
    """
    norms = [0.0 if pair.eager is None else _norm(pair.eager) for pair in pairs]
    finite = [n for n in norms if n == n and n != float("inf")]
    rounding = floor * sum(n * n for n in finite) ** 0.5
    worst: Error | None = None
    for pair, norm in zip(pairs, norms, strict=True):
        figure = _error(pair, norm + rounding)
        if figure > 0 and (worst is None or figure > worst.figure):
            worst = Error(pair.name, figure)
    return worst


def _error(pair: Compared, norm: float) -> float:
    compiled, eager = pair.compiled, pair.eager
    if compiled is None or eager is None:
        other = eager if compiled is None else compiled
        # An unused parameter has no gradient in eager mode, and may have zeros where compiled.
        return 0.0 if other is None or not other.any() else float("inf")
    if compiled.shape != eager.shape:
        return float("inf")
    same = torch.isfinite(compiled) == torch.isfinite(eager)
    if not bool(same.all()):
        return float("inf")
    apart = _norm(torch.where(torch.isfinite(eager), compiled - eager, 0))
    return apart / norm if norm > 0 else (float("inf") if apart > 0 else 0.0)


def _norm(x: Tensor) -> float:
    wide = torch.complex128 if x.is_complex() else torch.float64
    return float(torch.linalg.vector_norm(torch.nan_to_num(x.detach()).to(wide)))
