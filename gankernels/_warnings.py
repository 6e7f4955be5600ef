"""Warnings at the line of the user's own code."""

from __future__ import annotations

import sys
import warnings

import torch

_warned: set[str] = set()


def warn_once(key: str, message: str) -> None:
    if key in _warned or torch.compiler.is_compiling():
        return
    _warned.add(key)
    warn(message)


def warn(message: str) -> None:
    """Warn at the line of the caller, however many functions and modules are between."""
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].partition(".")[0] in ("gankernels", "torch"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)
