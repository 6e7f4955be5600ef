"""The modules of a critic, and the state that they keep from call to call."""

from __future__ import annotations

import functools
import inspect
import types
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gankernels._critics.samples import is_inference
from gankernels._warnings import _warned, warn_once


def modules_of(D: Any) -> list[nn.Module]:
    """The modules that a callable is, or that it mentions: in a lambda, a partial, a method."""
    if isinstance(D, nn.Module):
        return list(D.modules())
    modules: dict[int, nn.Module] = {}
    if torch.compiler.is_compiling():
        return []
    seen: set[int] = set()
    mentioned = [D]
    for _ in range(4):  # a lambda, its cell, the trainer in it, the modules of that
        mentioned = [y for x in mentioned for y in _mentions(x, seen)]
        for x in mentioned:
            if isinstance(x, nn.Module):
                modules.update((id(m), m) for m in x.modules())
    return list(modules.values())


def _mentions(x: Any, seen: set[int]) -> Iterable[Any]:
    if id(x) in seen or isinstance(x, (nn.Module, Tensor, type, types.ModuleType)):
        return ()
    seen.add(id(x))
    if isinstance(x, functools.partial):
        return (x.func, *x.args, *x.keywords.values())
    if isinstance(x, types.MethodType):
        return (x.__self__, x.__func__)
    if isinstance(x, types.FunctionType):
        try:
            names = inspect.getclosurevars(x)
        except ValueError:  # a cell that is empty still
            return ()
        return (*names.nonlocals.values(), *names.globals.values(), *(x.__defaults__ or ()))
    if isinstance(x, dict):
        return tuple(x.values())
    if isinstance(x, (list, tuple)):
        return tuple(x)
    return tuple(getattr(x, "__dict__", {}).values())


_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
#: With statistics of what they have seen, which a pass in training mode does not use.
_RUNNING = (*_BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_checked: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def warn_of_coupled(op: str, D: Any) -> None:
    """Warn of batch normalization in training mode, once, looking at each critic once."""
    if torch.compiler.is_compiling() or "batch norm" in _warned:
        return
    if not isinstance(D, nn.Module) or D in _checked or not D.training:
        return
    _checked.add(D)
    if any(isinstance(m, _BATCH_NORMS) and m.training for m in D.modules()):
        warn_once(
            "batch norm",
            f"{op}: the critic has batch normalization in training mode, by which the score of a "
            "sample depends on other samples of the batch; penalties are then wrong. Put layer, "
            "instance or group normalization in its place, or use none.",
        )


class _State:
    """A tensor under a module's name for it, with its value, which can be restored."""

    def __init__(self, names: dict[str, Any], name: str) -> None:
        self.names, self.name = names, name
        self.tensor: Tensor = names[name]
        self.memory = self.tensor.data
        self.value = self.memory.clone()

    def restore(self) -> None:
        if torch.compiler.is_compiling():
            with torch.no_grad():
                self.tensor.copy_(self.value)
            return
        self.names[self.name] = self.tensor
        if _address(self.tensor) != _address(self.memory):
            # Its data was assigned to; a graph may have saved the tensor that was assigned.
            self.tensor.data = self.memory
        # Past the count of writes: a graph may have saved a buffer that never changes.
        self.tensor.data.copy_(self.value)


def _address(x: Tensor) -> int:
    try:
        return x.data_ptr()
    except RuntimeError:  # a sparse tensor, or one of torch.func
        return 0


def states_of(D: Any, moving: bool) -> list[_State]:
    """The state that a critic's passes write: its buffers, or only those that every pass moves.

    Those are neither counters, which are integers, nor the running statistics of normalization.
    Vectors that are parameters without a gradient belong to them: older spectral norms keep u and v
    so.
    """
    entries: dict[int, tuple[dict[str, Any], str]] = {}
    for m in modules_of(D):
        if moving and isinstance(m, _RUNNING):
            continue
        # Dynamo does not trace is_lazy.
        compiling = torch.compiler.is_compiling()
        for names in (m._buffers,) if compiling else (m._buffers, m._parameters):
            for name, x in names.items():
                if x is None or (not compiling and is_lazy(x)) or not _writable(x):
                    continue
                real = x.is_floating_point() or x.is_complex()
                if names is m._parameters:
                    vector = x.numel() == max(x.shape, default=1) and type(x) is nn.Parameter
                    wanted = vector and not x.requires_grad
                else:
                    wanted = real or not moving
                if wanted:
                    entries.setdefault(id(x), (names, name))
    return [_State(*entry) for entry in entries.values()]


class Held:
    """A block for each pass of a critic; all start from the buffers that the first started from.

    Afterwards the buffers are what the first pass left.
    """

    def __init__(self, D: Any) -> None:
        self.before = states_of(D, moving=True)
        self.after: list[_State] | None = None

    def __enter__(self) -> None:
        if self.after is not None:
            for state in self.before:
                state.restore()

    def __exit__(self, *_: Any) -> None:
        if self.after is None:
            self.after = [
                _State(state.names, state.name)
                for state in self.before
                if state.names.get(state.name) is not None
            ]
        else:
            for state in self.after:
                state.restore()


def _writable(buffer: Tensor) -> bool:
    return not is_inference(buffer) or torch.is_inference_mode_enabled()
