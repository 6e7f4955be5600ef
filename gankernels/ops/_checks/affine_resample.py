"""Checks of the arguments of affine_resample and affine_augment."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from gankernels._checks import check_bool, check_real, check_strided, describe, is_choice, kind
from gankernels._dtypes import accumulation_dtype

FILTERS = ("nearest", "bilinear", "sym6")  # the numbers are those of the C++ side
PADDINGS = ("reflection", "zeros", "border")
_LARGEST_SIDE = 2**31 - 1


def check_theta(op: str, theta: object) -> None:
    good = isinstance(theta, Tensor) and not theta.is_nested and theta.dim() == 3
    if not isinstance(theta, Tensor) or not good or tuple(theta.shape[1:]) != (2, 3):
        got = describe(theta) if isinstance(theta, Tensor) else kind(theta)
        raise ValueError(f"{op}: expected theta of shape (B, 2, 3), got {got}")
    check_strided(op, "theta", theta)
    if theta.is_complex():
        raise TypeError(f"{op}: expected theta of real numbers, got {theta.dtype}")


def check_pair(op: str, name: str, value: Any) -> tuple[int, int]:
    wanted = f"{op}: expected {name} to be (height, width)"
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or len(value) != 2:
        raise ValueError(f"{wanted}, got {value!r}")
    if any(not isinstance(n, (int, torch.SymInt, Integral)) or isinstance(n, bool) for n in value):
        raise TypeError(f"{wanted}, two integers, got {value!r}")
    if any(n < 1 for n in value):
        raise ValueError(f"{wanted} of at least 1, got {value}")
    if any(n > _LARGEST_SIDE for n in value):
        raise ValueError(f"{wanted} below 2^31, got {value}")
    return value[0], value[1]


def check_size(op: str, name: str, size: object, x: Tensor) -> tuple[int, int]:
    if size is None:
        return x.shape[2], x.shape[3]
    return check_pair(op, name, size)


def check(op, name, x, maps, filter, mode, margins, padding_mode, lossless_blits) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(x)}")
    check_strided(op, name, x)
    check_bool(op, "lossless_blits", lossless_blits)
    check_real(op, name, x)
    if x.dim() != 4 or 0 in x.shape[2:]:
        raise ValueError(
            f"{op}: expected {name} of shape (B, C, H, W) with pixels, got {tuple(x.shape)}"
        )
    if not is_choice(filter, FILTERS):
        raise ValueError(f"{op}: expected a filter of {', '.join(FILTERS)}, got {filter!r}")
    if not is_choice(mode, ("ideal", "stylegan2-ada")):
        raise ValueError(f'{op}: expected mode "ideal" or "stylegan2-ada", got {mode!r}')
    if not is_choice(padding_mode, PADDINGS):
        raise ValueError(
            f"{op}: expected a padding_mode of {', '.join(PADDINGS)}, got {padding_mode!r}"
        )
    if filter == "sym6" and padding_mode != "reflection":
        raise ValueError(
            f'{op}: expected padding_mode "reflection" with the filter "sym6", got '
            f'{padding_mode!r}; take filter="bilinear" or "nearest"'
        )
    if mode == "stylegan2-ada" and filter != "sym6":
        raise ValueError(f'{op}: expected the filter "sym6" with mode {mode!r}, got {filter!r}')
    if maps is None and op == "affine_augment":
        return
    if not isinstance(maps, Tensor):
        raise TypeError(f"{op}: expected inverse_maps to be a tensor, got {kind(maps)}")
    check_strided(op, "inverse_maps", maps)
    check_real(op, "inverse_maps", maps)
    if tuple(maps.shape) != (x.shape[0], 2, 3) or maps.device != x.device:
        raise ValueError(
            f"{op}: expected inverse_maps of shape {(x.shape[0], 2, 3)} on {x.device}, got "
            f"{describe(maps)}"
        )
    if maps.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: expected inverse_maps without a gradient, which this operator does not give; "
            "pass inverse_maps.detach()"
        )
    if margins is not None:
        _check_margins(op, x, mode, margins)


def _are_channels(channels: object) -> bool:
    if not isinstance(channels, Sequence):
        return False
    return all(isinstance(c, int) and not isinstance(c, bool) for c in channels)


def _check_margins(op, x, mode, margins) -> None:
    if mode != "stylegan2-ada":
        raise ValueError(
            f'{op}: expected margins with mode "stylegan2-ada" only, got mode {mode!r}'
        )
    if isinstance(margins, Tensor):
        check_strided(op, "margins", margins)
    good = isinstance(margins, Tensor) and margins.dtype == torch.int64
    if not good or tuple(margins.shape) != (4,) or margins.device != x.device:
        got = describe(margins) if isinstance(margins, Tensor) else kind(margins)
        raise ValueError(f"{op}: expected margins int64 of shape (4,) on {x.device}, got {got}")


def check_epilogue(op, x, color, color_channels, sigma, seed, box) -> list[int]:
    """Refuse wrong arguments of the epilogue; returns the channels that are color."""
    accumulation = accumulation_dtype(x.dtype)
    batch, count = x.shape[:2]
    channels: list[int] = []
    if color is not None:
        if color_channels is not None and not _are_channels(color_channels):
            raise TypeError(
                f"{op}: expected color_channels to be numbers of channels, as in (0, 1, 2), got "
                f"{color_channels!r}"
            )
        channels = list(range(count) if color_channels is None else color_channels)
        if len(channels) not in (1, 3):
            raise ValueError(
                f"{op}: expected 1 or 3 color channels, got {len(channels)} of an image of "
                f"{count}; name them by color_channels=(0, 1, 2)"
            )
        ascending = all(a < b for a, b in pairwise(channels))
        if not ascending or channels[0] < 0 or channels[-1] >= count:
            raise ValueError(
                f"{op}: expected ascending color_channels of 0 to {count - 1}, got {channels}"
            )
    elif color_channels is not None:
        raise ValueError(f"{op}: expected color matrices with color_channels, got None")
    n = len(channels)
    for name, value, shape, dtype in (
        ("color", color, (batch, n, n + 1), accumulation),
        ("sigma", sigma, (batch,), accumulation),
        ("seed", seed, (batch,), torch.int64),
        ("box", box, (batch, 3), torch.float64),
    ):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(value)}")
        check_strided(op, name, value)
        if tuple(value.shape) != shape or value.dtype != dtype or value.device != x.device:
            raise ValueError(
                f"{op}: expected {name} of {dtype} and shape {shape} on {x.device}, got "
                f"{describe(value)}"
            )
        if value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"{op}: expected {name} without a gradient, which this operator does not give; "
                f"pass {name}.detach()"
            )
    if (sigma is None) != (seed is None):
        raise ValueError(f"{op}: expected sigma and seed together, or neither")
    return channels
