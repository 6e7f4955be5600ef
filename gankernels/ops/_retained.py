"""Tensors that a node of autograd keeps for more than one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Held(NamedTuple):
    """A view that a node keeps, as its base and where it lies in it: the view itself would be one
    more reference to a parameter, which ``torch.utils.swap_tensors`` does not allow."""

    base: Tensor
    view: tuple  # size, strides, offset
    differentiable: bool

    def get(self) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            return self.base.as_strided(*self.view)


def _held(tensor: Tensor) -> Tensor | Held:
    base = tensor._base
    if base is None or (tensor.requires_grad and _leaf_of(tensor) is not base):
        return tensor
    if _interpretation(tensor) != _interpretation(base):
        return tensor
    view = tensor.shape, tensor.stride(), tensor.storage_offset()
    return Held(base, view, tensor.requires_grad)


def _leaf_of(tensor: Tensor) -> Tensor | None:
    # The leaf that a chain of views leads to: a view may hang on another than its base.
    node: Any = tensor.grad_fn
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return getattr(node, "variable", None)


def _interpretation(tensor: Tensor) -> tuple:
    # A view may also read the memory otherwise: as another dtype, conjugated, negated.
    return tensor.dtype, tensor.is_conj(), tensor.is_neg()


def keep(ctx: Any, tensors: Sequence[Tensor], retain: bool) -> None:
    """Save tensors for the backward pass: the first one frees them, or they go with the node.

    What autograd checks for saved tensors, that nobody overwrote them, is then checked by kept().
    """
    ctx.kept = None
    if retain:
        ctx.kept = [_held(t) for t in tensors]
        ctx.versions = [t._version for t in tensors]
    else:
        ctx.save_for_backward(*tensors)


def kept(op: str, ctx: Any, grads: Sequence[Tensor | None] | None = None) -> Sequence[Tensor]:
    """What keep() has saved, in the name of ``op``.

    The first are the weights: one without a gradient in ``grads`` may have been changed since.
    """
    if ctx.kept is None:
        return ctx.saved_tensors
    tensors = [x.get() if isinstance(x, Held) else x for x in ctx.kept]
    unused = () if grads is None else [i for i, g in enumerate(grads) if g is None]
    for i, (tensor, version) in enumerate(zip(tensors, ctx.versions, strict=True)):
        if tensor._version != version and i not in unused:
            raise RuntimeError(
                f"{op}: one of the variables needed for gradient computation has been "
                f"modified by an inplace operation: a tensor of shape {tuple(tensor.shape)} is at "
                f"version {tensor._version}; expected version {version}. Run the backward "
                "pass before the optimizer's step."
            )
    return tensors
