"""Warnings at the line of the user's own code."""

from __future__ import annotations

import sys
import warnings
import weakref
from typing import Any

import torch

_warned: set[str] = set()
#: How often a call was looked at, by what is looked for and in whom.
_calls: dict[str, weakref.WeakKeyDictionary[Any, int]] = {}


def warn_once(key: str, message: str) -> None:
    if key in _warned or torch.compiler.is_compiling():
        return
    _warned.add(key)
    warn(message)


def warn(message: str) -> None:
    """Warn at the line of the caller, however many functions and modules are between."""
    level, frame = 1, sys._getframe()
    libraries = (__package__, "torch")
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] in libraries:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


def is_turn(what: str, whose: Any) -> bool:
    """Whether to look at this call: the first, the second, the fourth ... of a module, as looking
    takes time. Of what is no module, such as functions made anew, those of all.
    """
    counts = _calls.setdefault(what, weakref.WeakKeyDictionary())
    key = whose if isinstance(whose, torch.nn.Module) else torch.nn.Module
    n = counts[key] = counts.get(key, 0) + 1
    return n & (n - 1) == 0
