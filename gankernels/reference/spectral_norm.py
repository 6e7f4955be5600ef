"""Spectral normalization in plain PyTorch (Miyato et al. 2018, arXiv 1802.05957, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gankernels._dtypes import accumulation_dtype, without_autocast
from gankernels._torch import in_forward_ad, in_functorch, is_batched


class PowerIteration(NamedTuple):
    """The result of the power method for a list of weights."""

    u: Sequence[Tensor]  # of every weight
    v: Sequence[Tensor]
    sigma: Tensor  # (L,)


def unit_vector(x: Tensor, eps: float) -> Tensor:
    """``x / max(||x||, eps)``, of complex vectors too: torch's ``normalize`` depends on the version
    there."""
    return x / x.norm(2, 0, keepdim=True).clamp_min(eps)


def power_iteration_(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    n: int = 1,
    eps: float = 1e-12,
    order: str = "u_first",
    *,
    skipped: Tensor | None = None,
) -> PowerIteration:
    """See :func:`gankernels.ops.power_iteration_`."""
    left, right, sigmas = move_(weights, u, v, n, eps, order, skipped=skipped)
    return PowerIteration(left, right, torch.stack(sigmas))


def move_(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    n: int,
    eps: float,
    order: str,
    *,
    skipped: Tensor | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The power iteration; returns every left vector, right vector and sigma, all new tensors.

    The left vector is the one whose conjugate sigma is the product with: u, but for complex weights
    in the order of torch's hook, which conjugates nothing, the conjugate of u.
    """
    left, right, sigmas = [], [], []
    with torch.no_grad(), without_autocast(weights[0]):
        for i, w in enumerate(weights):
            if skipped is not None:
                _write(u[i], repaired(u[i]))
                _write(v[i], repaired(v[i]))
            state = _iterate(_matrix(_constant(w)), u[i], v[i], n, eps, order)
            if skipped is not None:
                state = _guard(state, u[i], v[i], skipped[i])
            _write(u[i], state[0])
            _write(v[i], state[1])
            bilinear = order == "v_first" and w.is_complex()
            left.append(state[0].conj().resolve_conj() if bilinear else state[0])
            right.append(state[1])
            sigmas.append(state[2])
    return left, right, sigmas


def spectral_normalize(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    sigma: Tensor | None = None,
    *,
    max_norm: float | None = None,
    retain: bool = False,
    guard: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """See :func:`gankernels.ops.spectral_normalize`. Differentiable to any order."""
    values = None if sigma is None else [sigma[i] for i in range(len(weights))]
    return _normalize(weights, u, v, values, max_norm, guard)


def spectral_norm(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    n: int = 1,
    eps: float = 1e-12,
    order: str = "u_first",
    *,
    skipped: Tensor | None = None,
    max_norm: float | None = None,
    retain: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """See :func:`gankernels.ops.spectral_norm`. Differentiable to any order."""
    left, right, sigmas = move_(weights, u, v, n, eps, order, skipped=skipped)
    # Without a guard sigma is the product that the gradient needs anyhow.
    return _normalize(weights, left, right, None if skipped is None else sigmas, max_norm)


def _normalize(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    values: Sequence[Tensor] | None,
    max_norm: float | None,
    guard: bool = False,
) -> tuple[list[Tensor], Tensor]:
    outputs, sigmas = [], []
    with without_autocast(weights[0]):
        for i, w in enumerate(weights):
            matrix = _matrix(w)
            dtype = matrix.dtype
            s = _inner(_to(u[i].detach(), dtype), matrix @ _to(v[i].detach(), dtype))
            if values is not None:
                # The value that the iteration found, with the gradient of u . (W v).
                s = values[i] + _tangent(s)
            elif guard:
                s = torch.where(torch.isfinite(s) & (s != 0), s, 1 + _tangent(s))
            output = _to(w, dtype)
            if max_norm is None:
                output = output / s
            else:  # the identity, gradient included, where sigma is within the bound
                output = output * (max_norm / torch.where(_size(s) <= max_norm, max_norm, s))
            outputs.append(_to(output, w.dtype))
            sigmas.append(s)
        return outputs, torch.stack(sigmas)


def _tangent(s: Tensor) -> Tensor:
    """Zero, with the gradient of s where that is finite."""
    return torch.where(torch.isfinite(s.detach()), s - s.detach(), 0)


def _constant(x: Tensor) -> Tensor:
    # u and v are constants of differentiation. no_grad does not stop forward-mode AD, and a trace
    # does not record it.
    return (forward_ad.unpack_dual(x).primal if in_forward_ad() else x).detach()


def _write(x: Tensor, value: Tensor) -> None:
    # Transforms of torch.func refuse to write into what they have not made, except by out=.
    if in_functorch() and not is_batched(x):
        torch.mul(value, 1, out=x)
    else:
        x.copy_(value)


def _matrix(w: Tensor) -> Tensor:
    matrix = w.flatten(1) if w.dim() > 1 else w.unsqueeze(1)
    return _to(matrix, accumulation_dtype(w.dtype))


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    # A trace that converted nothing may then be converted itself.
    return x if x.dtype == dtype else x.to(dtype)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).sum()


def _size(s: Tensor) -> Tensor:
    return s.abs() if s.is_complex() else s


def _iterate(
    w: Tensor, u: Tensor, v: Tensor, n: int, eps: float, order: str
) -> tuple[Tensor, Tensor, Tensor]:
    u, v = _to(u, w.dtype), _to(v, w.dtype)
    for _ in range(n):
        if order == "u_first":
            u = unit_vector(w @ v, eps)
            v = unit_vector(w.mH @ u, eps)
        else:
            v = unit_vector(w.mT @ u, eps)
            u = unit_vector(w @ v, eps)
    return u, v, _inner(u, w @ v) if order == "u_first" else (u * (w @ v)).sum()


def repaired(x: Tensor) -> Tensor:
    # From a vector that is zero or not finite no iteration leads anywhere: start_of of
    # csrc/spectral_norm.h.
    norm = x.to(accumulation_dtype(x.dtype)).norm()
    i = torch.ones_like(x, dtype=torch.int64).cumsum(0)  # of a subclass, if x is
    start = (i * 2654435761 & 0xFFFFFFFF).double() / 2**31 - 1
    good = torch.isfinite(norm) & (norm > 0)
    return torch.where(good, x, (start / start.norm()).to(x.dtype))


def _guard(
    state: tuple[Tensor, Tensor, Tensor], u: Tensor, v: Tensor, skipped: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    u_new, v_new, sigma = state
    good = torch.isfinite(sigma) & (_size(sigma) > 0)
    _write(skipped, skipped + (~good).to(skipped.dtype))
    return (
        torch.where(good, u_new, u.to(u_new.dtype)),
        torch.where(good, v_new, v.to(v_new.dtype)),
        torch.where(good, sigma, torch.ones_like(sigma)),
    )


__all__ = ["power_iteration_", "spectral_norm", "spectral_normalize"]
