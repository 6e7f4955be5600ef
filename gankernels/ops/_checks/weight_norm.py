"""Checks of the arguments of weight_norm."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gankernels._checks import check_floats, describe, kind


def check(v: Sequence[Tensor], g: Sequence[Tensor], dims: Sequence[object]) -> None:
    """Refuse what weights cannot be made of."""
    op = "weight_norm"
    if len(v) != len(g) or len(v) != len(dims):
        raise ValueError(
            f"{op}: expected one g and one dim for each v, got {len(v)} v, {len(g)} g and "
            f"{len(dims)} dims"
        )
    for k, (direction, size, dim) in enumerate(zip(v, g, dims, strict=True)):
        suffix = "" if len(v) == 1 else f"[{k}]"
        check_floats(op, f"v{suffix}", direction)
        check_floats(op, f"g{suffix}", size)
        if direction.dim() == 0 or direction.numel() == 0:
            raise ValueError(
                f"{op}: expected v{suffix} to have a dimension and elements, "
                f"got shape {tuple(direction.shape)}"
            )
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int)):
            raise TypeError(f"{op}: expected dim to be an int or None, got {kind(dim)}")
        if dim is not None and not 0 <= dim < direction.dim():
            raise ValueError(
                f"{op}: expected dim from 0 to {direction.dim() - 1} for v{suffix} of shape "
                f"{tuple(direction.shape)}, or None for one norm of all elements, got {dim} "
                "(torch's -1 is None here)"
            )
        rows = 1 if dim is None else direction.shape[dim]
        if size.numel() != rows:
            raise ValueError(
                f"{op}: expected g{suffix} of {rows} elements, one for each slice along dim {dim} "
                f"of v{suffix}, got shape {tuple(size.shape)}"
            )
        for name, x in ((f"v{suffix}", direction), (f"g{suffix}", size)):
            if x.dtype != v[0].dtype or x.device != v[0].device:
                raise ValueError(
                    f"{op}: expected v and g of one dtype and device, got {describe(v[0])} and "
                    f"{name} {describe(x)}; convert them, or make a call for each"
                )
