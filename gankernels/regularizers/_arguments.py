"""Checks of samples, common to all regularizers."""

from __future__ import annotations

from torch import Tensor

from gankernels._checks import check_floats, kind


def check_samples(op: str, name: str, x: object, shape: str, dims: int) -> None:
    """Refuse what is not a real, filled tensor of at least ``dims`` dimensions, the batch first."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor of shape {shape}, got {kind(x)}")
    check_floats(op, name, x)
    if x.dim() < dims or x.numel() == 0:
        raise ValueError(
            f"{op}: expected {name} of shape {shape} with elements, got shape {tuple(x.shape)}"
        )
