"""Penalties on gradient norms in plain PyTorch (Gulrajani et al. 2017, arXiv 1704.00028, eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gankernels._dtypes import accumulation_dtype


def gradient_penalty(
    grads: Tensor | Sequence[Tensor],
    *,
    center: float = 0.0,
    one_sided: bool = False,
    weight: float = 1.0,
    sample_weight: Tensor | None = None,
    inv_scale: Tensor | None = None,
    per_tensor: bool = False,
    reduction: str = "mean",
    return_norms: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """See :func:`gankernels.ops.gradient_penalty`. Differentiable to any order."""
    grads = [grads] if isinstance(grads, Tensor) else grads
    dtype = accumulation_dtype(grads[0].dtype)
    with torch.autocast(grads[0].device.type, enabled=False):
        squares = torch.stack(
            [g.to(dtype).square().flatten(1).sum(1) for g in _with_elements(grads)]
        )
        if inv_scale is not None:
            squares = squares * inv_scale.detach().to(dtype).reshape(()).square()
        if not per_tensor:
            squares = squares.sum(0)
        # The square root has no derivative at zero; the norm there is the constant 0.
        some = squares > 0
        norms = torch.where(some, torch.where(some, squares, 1).sqrt(), 0)
        norms = torch.where(squares.isnan(), squares, norms)
        if center == 0:
            values = squares
        else:
            distance = norms - center
            values = (distance.relu() if one_sided else distance).square()
        values = weight * values
        if sample_weight is not None:
            values = values * sample_weight.to(dtype)
        if reduction == "mean":
            values = values.mean(-1)
        elif reduction == "sum":
            values = values.sum(-1)
    return (values, norms.detach()) if return_norms else values


def _with_elements(grads: Sequence[Tensor]) -> list[Tensor]:
    return [g.unsqueeze(1) if g.dim() == 1 else g for g in grads]


__all__ = ["gradient_penalty"]
