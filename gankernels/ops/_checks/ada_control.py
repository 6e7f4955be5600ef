"""Checks of the arguments of ada_control_."""

from __future__ import annotations

import torch
from torch import Tensor

from gankernels._checks import (
    LARGEST,
    check_count,
    check_floats,
    check_number,
    check_strided,
    describe,
    is_choice,
    kind,
)
from gankernels.reference.ada_control import METRICS, STATE, SUMS


def check(
    op: str,
    state: object,
    p: object,
    scores: tuple[object, object, object],
    sums: object,
    images: object,
    metric: object,
    target: object,
    interval: object,
    kimg: object,
    p_max: object,
) -> None:
    """Refuse what the operator does not take."""
    device = _check_numbers(op, "state", state, (torch.float64,), (STATE,), None).device
    if p is not None:
        _check_numbers(op, "p", p, (torch.float32, torch.float64), (), device)
    if sums is not None:
        _check_numbers(op, "sums", sums, (torch.float64,), (SUMS,), device)
    for name, group in zip(("real", "fake", "validation"), scores, strict=True):
        if not isinstance(group, (list, tuple)):
            raise TypeError(f"{op}: expected {name} to be a list of tensors, got {kind(group)}")
        if group and sums is not None:
            raise ValueError(
                f"{op}: expected no {name} with sums, got {len(group)}; add them first"
            )
        for x in group:
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"{op}: expected {name} to be a list of tensors, got a list with {kind(x)}"
                )
            check_floats(op, name, x)
            if x.device != device:
                raise ValueError(
                    f"{op}: expected {name} on {device}, where state is, got {x.device}"
                )
    if not is_choice(metric, METRICS):
        raise ValueError(f"{op}: expected a metric of {', '.join(METRICS)}, got {metric!r}")
    if isinstance(images, bool) or not isinstance(images, (int, torch.SymInt)):
        raise TypeError(f"{op}: expected images to be an integer, got {kind(images)}")
    if not 0 <= images <= LARGEST:
        raise ValueError(f"{op}: expected images to be not negative, got {images}")
    check_number(op, "target", target)
    check_count(op, "interval", interval)
    check_number(op, "kimg", kimg, positive=True)
    check_number(op, "p_max", p_max)


def _check_numbers(
    op: str,
    name: str,
    x: object,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...],
    device: torch.device | None,
) -> Tensor:
    """Refuse what is not contiguous numbers of a dtype, shape and device."""
    wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: expected {name} to be a tensor of {wanted}, got {kind(x)}")
    check_strided(op, name, x)
    if x.dtype not in dtypes or tuple(x.shape) != shape or not x.is_contiguous():
        raise ValueError(
            f"{op}: expected {name} to be contiguous, {wanted}, of shape {shape}, got {describe(x)}"
        )
    if device is not None and x.device != device:
        raise ValueError(f"{op}: expected {name} on {device}, where state is, got {x.device}")
    return x
