"""How many kernels a call launches on a GPU, counted without one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gankernels.ops import _operator
from support.backends import emulator

#: Operators of torch that launch nothing, beside views.
_NOTHING = ("empty", "empty_like", "empty_strided", "new_empty", "lift_fresh", "_unsafe_view")


class Launches(TorchDispatchMode):
    """Operators of torch by name, each of which is a launch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, _, name = func._schema.name.partition("::")
        views = [r.alias_info for r in func._schema.returns]
        is_view = bool(views) and all(a is not None and not a.is_write for a in views)
        if namespace == "aten" and not is_view and name not in _NOTHING:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def launches() -> Iterator[list[str]]:
    """The launches of a block, known when it has ended; our operators run on the emulator."""
    panel = emulator()
    found: list[str] = []
    with (
        mock.patch.object(_operator, "kernels", torch.ops.gankernels_emu),
        mock.patch.object(_operator, "in_dispatch_mode", return_value=False),
        Launches() as mode,
    ):
        panel.reset_counters()
        yield found
    for name, count in panel.counters()["launches"].items():
        found += [name] * count
    found += mode.names
