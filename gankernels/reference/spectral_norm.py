"""Spectral normalisation in plain PyTorch (Miyato et al. 2018, arXiv 1802.05957, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

#: Every part of a packed result starts at a multiple of this many elements.
PACK = 16


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a product is summed in: float32, or the dtype itself where that is wider."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def power_iteration_(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    n: int = 1,
    eps: float = 1e-12,
    order: str = "u_first",
    *,
    skipped: Tensor | None = None,
) -> Tensor:
    """See :func:`gankernels.ops.power_iteration_`."""
    u_new, v_new, sigmas = [], [], []
    with torch.no_grad(), torch.autocast(weights[0].device.type, enabled=False):
        for i, w in enumerate(weights):
            if skipped is not None:
                u[i].copy_(_repaired(u[i]))
                v[i].copy_(_repaired(v[i]))
            state = _iterate(_matrix(w), u[i], v[i], n, eps, order)
            if skipped is not None:
                state = _guard(state, u[i], v[i], skipped[i])
            u[i].copy_(state[0])
            v[i].copy_(state[1])
            u_new.append(state[0])
            v_new.append(state[1])
            sigmas.append(state[2])
        parts = [torch.stack(sigmas)]
        for pair in zip(u_new, v_new, strict=True):
            parts.extend(pair)
        return torch.cat([pad(part, (0, -part.numel() % PACK)) for part in parts])


def spectral_normalize(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    sigma: Tensor | None = None,
    *,
    coefficient: float | None = None,
    retain: bool = False,
    guard: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """See :func:`gankernels.ops.spectral_normalize`. Differentiable to any order."""
    outputs, sigmas = [], []
    with torch.autocast(weights[0].device.type, enabled=False):
        for i, w in enumerate(weights):
            matrix = _matrix(w)
            s = _inner(u[i].detach().to(matrix.dtype), matrix @ v[i].detach().to(matrix.dtype))
            if sigma is not None:
                # The value that the iteration found, with the gradient of u . (W v).
                s = sigma[i] + torch.nan_to_num(s - s.detach())
            elif guard:
                s = torch.where(
                    torch.isfinite(s) & (s != 0), s, 1 + torch.nan_to_num(s - s.detach())
                )
            wide = w.to(matrix.dtype)
            if coefficient is None:
                output = wide / s
            else:  # the identity, gradient included, where sigma is within the bound
                output = wide * (coefficient / torch.where(s.real <= coefficient, coefficient, s))
            outputs.append(output.to(w.dtype))
            sigmas.append(s)
        return outputs, torch.stack(sigmas)


def _matrix(w: Tensor) -> Tensor:
    return w.reshape(w.shape[0], -1).to(accumulation_dtype(w.dtype))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.conj() * b).sum()


def _iterate(
    w: Tensor, u: Tensor, v: Tensor, n: int, eps: float, order: str
) -> tuple[Tensor, Tensor, Tensor]:
    u, v = u.to(w.dtype), v.to(w.dtype)
    for _ in range(n):
        if order == "u_first":
            u = normalize(w @ v, dim=0, eps=eps)
            v = normalize(w.mH @ u, dim=0, eps=eps)
        else:
            v = normalize(w.mT @ u, dim=0, eps=eps)
            u = normalize(w @ v, dim=0, eps=eps)
    return u, v, _inner(u, w @ v)


def _repaired(x: Tensor) -> Tensor:
    # From a vector that is zero or not finite no iteration leads anywhere: start_of of
    # csrc/spectral_norm.h.
    norm = x.to(accumulation_dtype(x.dtype)).norm()
    i = torch.arange(1, x.numel() + 1, dtype=torch.int64, device=x.device)
    start = (i * 2654435761 & 0xFFFFFFFF).double() / 2**31 - 1
    good = torch.isfinite(norm) & (norm > 0)
    return torch.where(good, x, (start / start.norm()).to(x.dtype))


def _guard(
    state: tuple[Tensor, Tensor, Tensor], u: Tensor, v: Tensor, skipped: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    u_new, v_new, sigma = state
    good = torch.isfinite(sigma) & (sigma.real > 0)
    skipped.add_((~good).to(skipped.dtype))
    return (
        torch.where(good, u_new, u.to(u_new.dtype)),
        torch.where(good, v_new, v.to(v_new.dtype)),
        torch.where(good, sigma, torch.ones_like(sigma)),
    )
