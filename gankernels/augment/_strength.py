"""The strength of an augmentation: p, a buffer that Python, operators and controllers write."""

from __future__ import annotations

import ctypes
import numbers
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from gankernels._checks import check_generator, check_number, check_strided, describe, drawn_by
from gankernels.ops.ada_parameters import GROUPS


def single(number: float) -> float:
    """Rounded to float32, as p is: 0.8 is more there, and bounds are compared with that."""
    return ctypes.c_float(number).value


def number_of(op: str, name: str, value: object, *, positive: bool = False) -> float:
    """A number of any type, NumPy's among them; refused as by :func:`check_number`."""
    if isinstance(value, numbers.Real) and not isinstance(value, int):
        value = float(value)
    check_number(op, name, value, positive=positive)
    return cast(float, value)


def source(op: str, generator: torch.Generator | None, device: torch.device) -> dict[str, Any]:
    """The keywords for :func:`torch.rand`.

    Raises:
        TypeError, ValueError: if ``generator`` is none, or on another device.
    """
    check_generator(op, generator, device)
    return {"device": device, **drawn_by(generator)}


if TYPE_CHECKING:

    class _P:
        """``p`` for type checkers: a tensor to read, which numbers are written to."""

        def __get__(self, owner: object, kind: type | None = None) -> Tensor: ...

        def __set__(self, owner: object, p: float | Mapping[str, float] | Tensor) -> None: ...


class Strength(nn.Module):
    """A module whose strength is the buffer ``p``, float32: a scalar, or (6,) for the groups.

    ``module.p = 0.3`` writes into the buffer.

    Args:
        p: in [0, p_max]: a number, a tensor of one, or a dict of numbers by groups.
        p_max: in (0, 1]. It is compared with p in float32.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.
    """

    if TYPE_CHECKING:
        p = _P()

    def __init__(self, p: float | Mapping[str, float] | Tensor, p_max: float) -> None:
        super().__init__()
        op = type(self).__name__
        self.p_max = number_of(op, "p_max", p_max, positive=True)
        if self.p_max > 1:
            raise ValueError(f"{op}: expected p_max to be at most 1, got {p_max}")
        shape = (len(GROUPS),) if isinstance(p, Mapping) else ()
        self.register_buffer("p", torch.zeros(shape, dtype=torch.float32))
        self.set_p(p)

    def set_p(self, p: float | Mapping[str, float] | Tensor) -> None:
        """Write into the buffer ``p``; what ``pipe.p = p`` does.

        Args:
            p: in [0, p_max]: a number, for all groups; a dict, for those that it names, where the
                pipe was made with one; or a tensor of the buffer's shape or a scalar. A tensor on
                another device than the CPU is copied unseen: the pipe clamps p where it uses it.

        Raises:
            TypeError, ValueError: if ``p`` is none of these. The buffer is as it was.
        """
        op = f"{type(self).__name__}.p"
        buffer = self.p
        if isinstance(p, Mapping):
            if buffer.dim() == 0:
                raise ValueError(
                    f"{op}: expected one number, got a dict of groups; make the pipe with such a "
                    "dict as p"
                )
            for group in p:
                if group not in GROUPS:
                    raise ValueError(f"{op}: expected groups of {', '.join(GROUPS)}, got {group!r}")
            checked = {k: self._checked_p(op, f"p of {k}", value) for k, value in p.items()}
            for group, number in checked.items():
                buffer[GROUPS.index(group)].fill_(number)
        elif isinstance(p, Tensor):
            check_strided(op, "p", p)
            if not _real(p) or p.shape not in (torch.Size(), buffer.shape):
                raise ValueError(
                    f"{op}: expected real numbers of shape {tuple(buffer.shape)}, got {describe(p)}"
                )
            if p.device.type == "cpu" and not _within(p, self.p_max):
                raise ValueError(f"{op}: expected p within [0, {self.p_max:g}], got {p.tolist()}")
            p = p.detach().expand_as(buffer)
            if buffer.is_meta:  # load_state_dict(..., assign=True)
                self._buffers["p"] = p.float().clone()
            elif p.device.type == "cpu":  # a copy would wait for the GPU
                for entry, value in zip(buffer.view(-1), p.reshape(-1), strict=True):
                    entry.fill_(value)
            else:
                buffer.copy_(p)
        else:
            buffer.fill_(self._checked_p(op, "p", p))

    def _checked_p(self, op: str, name: str, p: object) -> float:
        number = number_of(op, name, p)
        if single(number) > single(self.p_max):
            why = "" if self.p_max == 1 else ", its p_max"
            raise ValueError(f"{op}: expected {name} to be at most {self.p_max:g}{why}, got {p}")
        return number

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "p" and "p" in self.__dict__.get("_buffers", ()):
            self.set_p(value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Strength:
        p = self.p
        super()._apply(fn, recurse)
        if self.p.dtype != p.dtype:  # in half precision, a controller's steps would be lost
            self._buffers["p"] = p.to(self.p.device)
        return self

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, metadata: Any, strict: bool, *rest: Any
    ) -> None:
        errors = rest[-1]
        fault = _fault(state_dict.get(f"{prefix}p"))
        if fault is not None:
            errors.append(f"{prefix}p: {fault}")
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *rest)

    def _strength(self) -> Tensor:
        """p, at most p_max. It may yet be negative or NaN, where the device wrote that."""
        return self.p if self.p_max == 1 else self.p.clamp(max=self.p_max)


def loadable(p: object) -> bool:
    """Whether a state_dict's p can be loaded into a buffer of one number."""
    return isinstance(p, Tensor) and p.shape in ((), (1,)) and _fault(p) is None


def _fault(p: object) -> str | None:
    """The fault of a state_dict's p, other than that it is no tensor or of another shape."""
    if not isinstance(p, Tensor):
        return None
    if not _real(p):
        return f"expected real numbers, got {describe(p)}"
    # Loading is the only time that p is read back from a device.
    if not p.is_meta and not _within(p.cpu(), 1.0):
        return f"expected p within [0, 1], got {p.tolist()}"
    return None


def _real(p: Tensor) -> bool:
    return not p.is_complex() and p.dtype != torch.bool


def _within(p: Tensor, bound: float) -> bool:
    p = p.float()
    return bool(((p >= 0) & (p <= single(bound))).all())
