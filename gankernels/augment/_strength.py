"""How strong an augmentation is: p, a buffer that Python, operators and controllers write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gankernels._checks import check_number, describe
from gankernels.ops.ada_parameters import GROUPS


class Strength(nn.Module):
    """A module whose strength is the buffer ``p``, float32: a scalar, or (6,) for the groups.

    ``module.p = 0.3`` writes into the buffer.

    Args:
        p: in [0, p_max]: a number, or a dict of them by groups.
        p_max: in (0, 1].

    Raises:
        TypeError, ValueError: if an argument is none of the above.
    """

    p: Tensor

    def __init__(self, p: float | Mapping[str, float], p_max: float) -> None:
        super().__init__()
        op = type(self).__name__
        check_number(op, "p_max", p_max, positive=True)
        if p_max > 1:
            raise ValueError(f"{op}: expected p_max to be at most 1, got {p_max}")
        self.p_max = p_max
        self.register_buffer("p", torch.zeros(len(GROUPS) if isinstance(p, Mapping) else ()))
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
            for group, value in p.items():
                if group not in GROUPS:
                    raise ValueError(f"{op}: expected groups of {', '.join(GROUPS)}, got {group!r}")
                self._check_p(op, f"p of {group}", value)
            for group, value in p.items():
                buffer[GROUPS.index(group)].fill_(value)
        elif isinstance(p, Tensor):
            if (
                p.is_complex()
                or p.dtype == torch.bool
                or p.shape not in (torch.Size(), buffer.shape)
            ):
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
            self._check_p(op, "p", p)
            buffer.fill_(p)

    def _check_p(self, op: str, name: str, p: float) -> None:
        check_number(op, name, p)
        if p > self.p_max:
            why = "" if self.p_max == 1 else ", its p_max"
            raise ValueError(f"{op}: expected {name} to be at most {self.p_max:g}{why}, got {p}")

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
        p = state_dict.get(f"{prefix}p")
        # Loading is the only time that p is read back from a device.
        if isinstance(p, Tensor) and not p.is_meta and not _within(p.cpu(), 1.0):
            errors.append(f"{prefix}p: expected p within [0, 1], got {p.tolist()}")
            return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, *rest)

    def _strength(self) -> Tensor:
        """p, at most p_max. It may yet be negative or NaN, where the device wrote that."""
        return self.p if self.p_max == 1 else self.p.clamp(max=self.p_max)


def _within(p: Tensor, bound: float) -> bool:
    return bool(((p >= 0) & (p <= bound)).all())
