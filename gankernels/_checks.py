"""The words of errors about arguments: what was expected, and what came."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def kind(value: object) -> str:
    """The name of a value's type."""
    return type(value).__name__


def is_tensors(values: object) -> bool:
    """Whether it is a list, or anything else to go through, of tensors."""
    if isinstance(values, Tensor) or not isinstance(values, Iterable):
        return False
    return all(isinstance(x, Tensor) for x in values)


def check_number(op: str, name: str, value: object, *, positive: bool = False) -> None:
    """Refuse what is not a finite number of at least 0, or above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: expected {name} to be a number, got {kind(value)}")
    if not 0 <= value < math.inf or (positive and value == 0):  # Dynamo traces no isfinite
        wanted = "positive" if positive else "not negative"
        raise ValueError(f"{op}: expected {name} to be finite and {wanted}, got {value}")


def check_count(op: str, name: str, value: object) -> None:
    """Refuse what is not an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: expected {name} to be an integer, got {kind(value)}")
    if value < 1:
        raise ValueError(f"{op}: expected {name} to be at least 1, got {value}")


def check_bool(op: str, name: str, value: object) -> None:
    """Refuse what is neither True nor False: "no" would be true."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: expected {name} to be True or False, got {value!r}")


def check_real(op: str, name: str, x: Tensor) -> None:
    """Refuse tensors of integers and of complex numbers."""
    if not x.is_floating_point():
        raise TypeError(
            f"{op}: expected {name} of a floating-point dtype, got {x.dtype}; convert it first"
        )


def third_order(op: str) -> NotImplementedError:
    """The error where a compiled operator is differentiated once too often."""
    return NotImplementedError(
        f"{op}: the compiled kernels are differentiable twice, and a third derivative was asked "
        'for. Build the graph within gankernels.backend("reference").'
    )


def describe(x: Tensor) -> str:
    """What an error says of a tensor."""
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}".removeprefix("torch.")
