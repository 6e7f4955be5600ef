"""Weight normalization in plain PyTorch (Salimans & Kingma 2016, arXiv 1602.07868, eq. 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gankernels._dtypes import accumulation_dtype


def weight_norm(
    v: Tensor | Sequence[Tensor],
    g: Tensor | Sequence[Tensor],
    *,
    dim: int | Sequence[int | None] | None = 0,
) -> Tensor | list[Tensor]:
    """See :func:`gankernels.ops.weight_norm`. Differentiable to any order."""
    if isinstance(v, Tensor):
        assert isinstance(g, Tensor)
        assert dim is None or isinstance(dim, int)
        return _one(v, g, dim)
    dims = dim if isinstance(dim, (list, tuple)) else [dim] * len(v)
    return [_one(a, b, d) for a, b, d in zip(v, g, dims, strict=True)]


def _one(v: Tensor, g: Tensor, dim: int | None) -> Tensor:
    dtype = accumulation_dtype(v.dtype)
    others = [d for d in range(v.dim()) if d != dim]
    with torch.autocast(v.device.type, enabled=False):
        wide = v.to(dtype)
        norm = wide.square().sum(others, keepdim=True).sqrt() if others else wide.abs()
        shape = [n if d == dim else 1 for d, n in enumerate(v.shape)]
        return (wide * (g.to(dtype).reshape(shape) / norm)).to(v.dtype)


__all__ = ["weight_norm"]
