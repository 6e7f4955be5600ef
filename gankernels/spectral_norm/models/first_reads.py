"""Writes into W / sigma, which is computed anew whenever it is read, before a model is used."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from gankernels._torch import in_dispatch_mode, in_functorch, in_jit_trace, is_capturing, is_fake
from gankernels._warnings import warn_once


class FirstReads:
    """What was read last of a weight, until a module reads it in its call.

    Initialization comes before, and what it writes is seen in what it has read, however it writes.
    Afterwards there is nothing to pay. Copies and pickles of a module start without it.
    """

    def __init__(self) -> None:
        self.read: Tensor | None = None
        self.row: Tensor | None = None

    def notice(self, weight: Tensor) -> bool:
        """Whether the weight is read outside of a module's call, so that the next read matters."""
        if type(weight) is not Tensor or is_fake(weight) or is_capturing():
            return False
        if in_jit_trace() or in_functorch() or in_dispatch_mode() or weight.numel() == 0:
            return False
        if self.read is not None and not _equal(self.read[0], self.row):
            warn_once(
                "lost write",
                f"spectral_norm: a normalized weight of shape {tuple(weight.shape)} was written "
                "into (by nn.init, or through .data) where W / sigma was read, which is computed "
                "anew each time: the write is lost. Initialize within gankernels."
                "original_weights(model), or before normalizing.",
            )
        self.read = self.row = None
        reader = _reader()
        if reader == "property":
            self.read = weight.detach()
            self.row = self.read[0].clone()
        return reader != "call"

    def __deepcopy__(self, memo: dict) -> FirstReads:
        return FirstReads()

    def __reduce__(self) -> tuple:
        return FirstReads, ()


def _equal(x: Tensor, y: Any) -> bool:
    return torch.allclose(x, y, rtol=0, atol=0, equal_nan=True)


def _reader() -> str:
    """Who reads: code outside of all modules, through the "property"; a module in its "call"; or
    "none", as while the parametrization is registered."""
    at: Any = sys._getframe(1)
    while at is not None and at.f_code.co_name not in (
        "get_parametrized",
        "get_cached_parametrization",
    ):
        at = at.f_back
    if at is None:
        return "none"
    while at is not None:
        if (
            at.f_code.co_name == "_call_impl"
            and at.f_globals["__name__"] == "torch.nn.modules.module"
        ):
            return "call"
        at = at.f_back
    return "property"
