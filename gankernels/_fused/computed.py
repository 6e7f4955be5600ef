"""The weight that a hook computes, and stores as an attribute of its module."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Module

from gankernels._torch import disabled_torch_function, in_dispatch_mode, in_jit_trace


class ComputedWeight(Tensor):
    """The value that a hook stores as ``module.weight``: a tensor with a history, to be copied.

    Autograd refuses to copy a plain one, and with it the module. A copy or pickle has no history.
    """

    __torch_function__ = disabled_torch_function  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict) -> Tensor:
        return memo.setdefault(id(self), self.detach().as_subclass(Tensor).clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().as_subclass(Tensor).__reduce_ex__(protocol)


def copyable(weight: Tensor) -> Tensor:
    """A weight, to be stored in a module that is copied."""
    # Modes of dispatch refuse subclasses that they do not know; jit.trace would take one for a
    # constant, and a subclass of another kind must not lose what it is.
    if weight.grad_fn is None or type(weight) is not Tensor:
        return weight
    if not (in_dispatch_mode() or in_jit_trace()):
        weight.__class__ = ComputedWeight  # a view of it would be one more node of autograd
    return weight


def make_copyable(module: Module, name: str) -> None:
    """Let the weight that a hook, torch's own perhaps, has stored be copied with the module."""
    setattr(module, name, copyable(getattr(module, name)))
