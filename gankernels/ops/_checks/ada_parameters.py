"""Checks of the arguments of ada_parameters."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from gankernels._checks import check_count, check_number, check_strided, describe, kind
from gankernels._dtypes import NATIVE_DTYPES
from gankernels.reference.ada_parameters import (
    DEFAULTS,
    GROUPS,
    NORMALS,
    UNIFORMS,
    VALUES,
    AdaConstants,
    AdaMultipliers,
)

#: Standard deviations of logarithms to base 2, of which 8 are 64: no factor overflows by them.
_EXPONENTS = ("scale_std", "aniso_std", "contrast_std", "saturation_std", "imgfilter_std")
_LARGEST_EXPONENT = 8.0
_LARGEST = 1e6  #: of the other constants


def check_multipliers(op: str, multipliers: object) -> None:
    if not isinstance(multipliers, AdaMultipliers):
        raise TypeError(
            f"{op}: expected multipliers to be AdaMultipliers, got {kind(multipliers)}; "
            "AdaMultipliers(xflip=1.0, ...) enables transforms by name"
        )
    bands = multipliers.imgfilter_bands
    if not isinstance(bands, (tuple, list)) or len(bands) != 4:
        got = f"{len(bands)}" if isinstance(bands, (tuple, list)) else kind(bands)
        raise ValueError(
            f"{op}: expected imgfilter_bands to be 4 numbers, from the lowest band to the highest, "
            f"got {got}"
        )
    for name, value in zip(multipliers._fields, multipliers, strict=True):
        if name != "imgfilter_bands":
            check_number(op, f"the multiplier of {name}", value)
    for band in bands:
        check_number(op, "every number of imgfilter_bands", band)


def check_constants(op: str, constants: object) -> None:
    if not isinstance(constants, AdaConstants):
        raise TypeError(f"{op}: expected constants to be AdaConstants, got {kind(constants)}")
    for name, value in zip(constants._fields, constants, strict=True):
        check_constant(op, name, value)


def is_strong(constants: AdaConstants) -> bool:
    """Whether some of the constants may be too large, or no numbers."""
    if constants is DEFAULTS:
        return False
    if not isinstance(constants, AdaConstants):
        return True
    try:
        return max(constants) > _LARGEST_EXPONENT
    except (TypeError, RuntimeError, ValueError):  # of tensors and arrays in it
        return True


def check_constant(op: str, name: str, value: object) -> None:
    """Refuse what is no strength of a transform, or would overflow: images would be NaN."""
    check_number(op, name, value)
    largest = _LARGEST_EXPONENT if name in _EXPONENTS else _LARGEST
    if cast(float, value) > largest:
        raise ValueError(
            f"{op}: expected {name} to be at most {largest:g}, got {value}; images would overflow"
        )


def check(
    p: object,
    multipliers: object,
    uniforms: object,
    normals: object,
    values: object,
    seed: object,
    height: int | None,
    width: int | None,
    color_channels: object,
    dtype: object,
    constants: object,
) -> None:
    op = "ada_parameters"
    check_multipliers(op, multipliers)
    check_constants(op, constants)
    if (values is None) == (uniforms is None and normals is None):
        got = "neither" if values is None else "both"
        raise ValueError(f"{op}: expected either uniforms and normals, or values, got {got}")
    wanted: tuple[tuple[str, object, int], ...] = (("values", values, len(VALUES)),)
    if values is None:
        wanted = (("uniforms", uniforms, UNIFORMS), ("normals", normals, NORMALS))
    first: Tensor | None = None
    for name, x, columns in wanted:
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: expected {name} to be a tensor, got {kind(x)}")
        check_strided(op, name, x)
        like = x if first is None else first
        shaped = x.dim() == 2 and x.shape[1] == columns and x.shape[0] == like.shape[0]
        if x.dtype != torch.float64 or not shaped or x.device != like.device:
            batch = "B" if first is None else first.shape[0]
            where = "" if first is None else f" on {first.device}"
            raise ValueError(
                f"{op}: expected {name} to be float64 of shape ({batch}, {columns}){where}, got "
                f"{describe(x)}"
            )
        first = like
    assert first is not None
    if values is None:
        _check_p(op, p, first)
        if seed is not None:
            raise ValueError(f"{op}: expected seed to come with values; draws make their own")
    elif seed is not None:
        if not isinstance(seed, Tensor):
            raise TypeError(f"{op}: expected seed to be a tensor, got {kind(seed)}")
        check_strided(op, "seed", seed)
        if (
            seed.dtype != torch.int64
            or seed.shape != first.shape[:1]
            or seed.device != first.device
        ):
            raise ValueError(
                f"{op}: expected seed to be int64 of shape ({first.shape[0]},) on {first.device}, "
                f"got {describe(seed)}"
            )
    if (height is None) != (width is None) or (values is not None and height is None):
        raise ValueError(
            f"{op}: expected height and width, got {height} and {width}; neither is needed to make "
            "values alone"
        )
    for name, size in (("height", height), ("width", width)):
        if size is not None:
            check_count(op, name, size)
    if not is_number_of(color_channels, (0, 1, 3)):
        raise ValueError(
            f"{op}: expected 0, 1 or 3 color_channels, got {color_channels!r}; of images with "
            "others, choose those that are color"
        )
    if not is_taken(dtype):
        raise ValueError(f"{op}: expected dtype float32, float64, bfloat16 or float16, got {dtype}")


def is_number_of(value: object, numbers: tuple[int, ...]) -> bool:
    good = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
    return good and value in numbers


def is_taken(dtype: object) -> bool:
    return isinstance(dtype, torch.dtype) and dtype in NATIVE_DTYPES


def _check_p(op: str, p: object, like: Tensor) -> None:
    if not isinstance(p, Tensor):
        raise TypeError(
            f"{op}: expected p to be a tensor, got {kind(p)}; keep it on the device, as in "
            f'torch.tensor(0.5, device="{like.device}")'
        )
    check_strided(op, "p", p)
    if p.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{op}: expected p of float32 or float64, got {p.dtype}; convert it first")
    if tuple(p.shape) not in ((), (len(GROUPS),)) or p.device != like.device:
        raise ValueError(
            f"{op}: expected p to be a scalar or of shape ({len(GROUPS)},), for the groups "
            f"{', '.join(GROUPS)}, on {like.device}, got {describe(p)}"
        )
