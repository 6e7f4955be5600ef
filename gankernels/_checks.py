"""The words of errors about arguments: what was expected, and what came."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Module

#: The largest int64.
LARGEST = 2**63 - 1


def kind(value: object) -> str:
    """The name of a value's type."""
    return type(value).__name__


def instead_of(value: object, name: str) -> str | None:
    """What to pass where a tensor is expected and this came, if it is known."""
    if hasattr(value, "__array__"):
        return f"pass torch.from_numpy({name})"
    if isinstance(value, torch.nn.Module):
        return "call it, and pass what it returns"
    if is_lazy_iterable(value) and not isinstance(value, (list, tuple)):
        return f"pass list({name})"
    return None


def is_tensors(values: object) -> bool:
    """Whether a value is a list, or another iterable, of tensors."""
    if isinstance(values, Tensor) or not isinstance(values, Iterable):
        return False
    return all(isinstance(x, Tensor) for x in values)


def check_number(
    op: str, name: str, value: object, *, positive: bool = False, signed: bool = False
) -> None:
    """Refuse what is not a finite number of at least 0, or above 0, or, signed, of any sign."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{op}: expected {name} to be a number, got {kind(value)}")
    magnitude = abs(value) if signed else value
    if not 0 <= magnitude < math.inf or (positive and value == 0):  # Dynamo traces no isfinite
        wanted = "" if signed else " and positive" if positive else " and not negative"
        raise ValueError(f"{op}: expected {name} to be finite{wanted}, got {value}")
    if isinstance(value, int) and magnitude > LARGEST:
        raise ValueError(
            f"{op}: expected {name} to be finite, and at most 2^63 - 1 as an integer; give a float"
        )


def check_count(op: str, name: str, value: object, least: int = 1) -> None:
    """Refuse what is not an integer of at least 1, or 0."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: expected {name} to be an integer, got {kind(value)}")
    if value < least:
        raise ValueError(f"{op}: expected {name} to be at least {least}, got {value}")
    if value > LARGEST:
        raise ValueError(f"{op}: expected {name} to be at most 2^63 - 1, got more")


def check_bool(op: str, name: str, value: object) -> None:
    """Refuse what is neither True nor False: "no" would be true."""
    if not isinstance(value, bool):
        raise TypeError(f"{op}: expected {name} to be True or False, got {kind(value)}")


def check_strided(op: str, name: str, x: Tensor) -> None:
    """Refuse tensors without strides: sparse, nested and mkldnn ones."""
    layout = "a nested tensor" if x.is_nested else str(x.layout)
    if x.is_nested or x.layout != torch.strided:
        cure = "give its tensors one by one" if x.is_nested else f"pass {name}.to_dense()"
        raise TypeError(f"{op}: expected {name} to be a dense tensor, got {layout}; {cure}")


def check_module(op: str, value: object) -> None:
    """Refuse what is not a network."""
    if not isinstance(value, Module):
        raise TypeError(f"{op}: expected a torch.nn.Module, got {kind(value)}")


def check_real(op: str, name: str, x: Tensor) -> None:
    """Refuse tensors of integers, of complex numbers, and of 8 bits, which torch only stores."""
    if not x.is_floating_point() or x.dtype.itemsize == 1:
        raise TypeError(
            f"{op}: expected {name} of a floating-point dtype, got {x.dtype}; convert it first"
        )


_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def check_floats(op: str, name: str, x: Tensor) -> None:
    """Refuse what is not a strided tensor of a dtype that sums of squares can be computed of."""
    check_real(op, name, x)
    check_strided(op, name, x)
    if x.dtype not in _FLOATS:
        raise TypeError(
            f"{op}: expected {name} of float32, float64, bfloat16 or float16, got {x.dtype}; "
            "convert it first"
        )


def check_tensors(op: str, name: str, values: object) -> None:
    """Refuse what is not a list or tuple of tensors, with at least one."""
    if not isinstance(values, (list, tuple)):
        cure = "" if not is_lazy_iterable(values) else f"; pass list({name})"
        raise TypeError(f"{op}: expected {name} to be a list of tensors, got {kind(values)}{cure}")
    for x in values:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{op}: expected {name} to be a list of tensors, got a list with {kind(x)}"
            )
    if not values:
        raise ValueError(f"{op}: expected {name} with at least one tensor, got an empty list")


def is_lazy_iterable(values: object) -> bool:
    """Whether list() makes a list of a value: a generator, a set, the values of a dict."""
    return isinstance(values, Iterable) and not isinstance(values, (Tensor, str, bytes, dict))


def check_callable(op: str, name: str, value: object) -> None:
    """Refuse what cannot be called: most often what it has returned."""
    if not callable(value):
        cure = f"pass {name} itself, not what it returns"
        raise TypeError(f"{op}: expected {name} to be callable, got {kind(value)}; {cure}")


def check_generator(op: str, generator: object, device: torch.device) -> None:
    """Refuse what torch cannot draw with on a device; None will do."""
    if generator is None:
        return
    cure = f'make it by torch.Generator("{device}").manual_seed(0)'
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            f"{op}: expected generator to be a torch.Generator or None, got {kind(generator)}; "
            f"{cure}"
        )
    theirs = generator.device
    indices = {theirs.index, device.index} - {None}  # None is the current device
    if device.type != "meta" and (theirs.type != device.type or len(indices) > 1):
        raise ValueError(
            f"{op}: expected a generator on {device}, where the tensors are, got one on {theirs}; "
            f"{cure}"
        )


def drawn_by(generator: torch.Generator | None) -> dict[str, Any]:
    """The keyword of torch.rand and the like for a generator; without one there must be none, as
    Dynamo takes no ``generator=None`` where sizes vary.
    """
    return {} if generator is None else {"generator": generator}


def check_process_group(op: str, group: object) -> None:
    """Refuse what is no group of processes; None is all of them."""
    if group is None or (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        return
    raise TypeError(
        f"{op}: expected process_group to be a torch.distributed.ProcessGroup or None, got "
        f"{kind(group)}; make one by torch.distributed.new_group()"
    )


def device_of(op: str, device: object) -> torch.device:
    """A device of whatever torch makes one of: a string, an index."""
    if isinstance(device, bool) or not isinstance(device, (torch.device, str, int)):
        raise TypeError(
            f"{op}: expected device to be a torch.device, a string or an index, got {kind(device)}"
        )
    try:
        return torch.device(device)
    except (RuntimeError, ValueError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ValueError(f"{op}: expected device to name one, got {device!r} ({first})") from None


class _Raised:
    """A block that calls what the user gave; its errors pass, with a note of where that was."""

    def __init__(self, op: str, name: str) -> None:
        self.op, self.name = op, name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            # Python 3.10 has no add_note(), which does this.
            notes = [
                *getattr(error, "__notes__", ()),
                f"{self.op}: raised in its call of {self.name}",
            ]
            error.__notes__ = notes  # type: ignore[attr-defined]


def raised_in(op: str, name: str) -> AbstractContextManager[None]:
    """That block; none where it is compiled, as Dynamo traces no notes."""
    return nullcontext() if torch.compiler.is_compiling() else _Raised(op, name)


def third_order(op: str) -> NotImplementedError:
    """The error where a compiled operator is differentiated once too often."""
    return NotImplementedError(
        f"{op}: the compiled kernels are differentiable twice, and a third derivative was asked "
        'for. Build the graph within gankernels.backend("reference").'
    )


def is_choice(value: object, choices: Container[str]) -> bool:
    """Whether a value is one of these names; comparing an array with a name would raise."""
    return isinstance(value, str) and value in choices


def describe(x: Tensor) -> str:
    """A tensor in the words of an error."""
    if x.is_nested:  # it has no sizes
        return f"a nested tensor of {x.dtype} on {x.device}"
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}".removeprefix("torch.")
