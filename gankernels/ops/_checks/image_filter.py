"""Checks of the arguments of image_filter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gankernels._checks import check_real, check_strided, describe, kind


def check(op: str, name: str, image: Any, gains: Any, sigma: Any, seed: Any, box: Any) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(image)}")
    check_strided(op, name, image)
    check_real(op, name, image)
    if image.dim() != 4 or image.shape[2] == 0 or image.shape[3] == 0:
        raise ValueError(
            f"{op}: expected {name} of shape (B, C, H, W) with pixels, got {describe(image)}"
        )
    for name, x, size in (("gains", gains, 4), ("sigma", sigma, 0), ("box", box, 3)):
        if x is not None or name == "gains":
            _check_numbers(op, name, x, image, size)
            check_real(op, name, x)
    if seed is not None:
        _check_numbers(op, "seed", seed, image, 0)
        if seed.dtype != torch.int64:
            raise TypeError(
                f"{op}: expected seed of dtype int64, got {seed.dtype}; draw it with "
                "torch.randint(2**63 - 1, (B,))"
            )
    if (sigma is None) != (seed is None):
        got, missing = ("seed", "sigma") if sigma is None else ("sigma", "seed")
        raise ValueError(
            f"{op}: expected sigma and seed together, got {got} alone; noise has both a standard "
            f"deviation and a seed for every sample: give {missing}, too"
        )


def _check_numbers(op: str, name: str, x: Any, image: Tensor, size: int) -> None:
    """Refuse what is not ``size`` numbers a sample, or a scalar where that is 0."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(x)}")
    check_strided(op, name, x)
    wanted = (image.shape[0], size) if size else (image.shape[0],)
    if tuple(x.shape) != wanted or x.device != image.device:
        raise ValueError(
            f"{op}: expected {name} of shape {tuple(wanted)} on {image.device}, got {describe(x)}"
        )
