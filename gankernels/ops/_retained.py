"""Tensors that a node of autograd keeps for more than one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Held(NamedTuple):
    """A tensor that a node keeps. Of a view its base and where it lies in it: the view itself would
    be one more reference to a parameter, which ``torch.utils.swap_tensors`` does not allow."""

    tensor: Tensor
    version: int
    view: tuple | None  # size, strides, offset
    differentiable: bool

    @staticmethod
    def of(tensor: Tensor) -> Held:
        base = tensor._base
        if base is None:
            return Held(tensor, tensor._version, None, tensor.requires_grad)
        alone = tensor.requires_grad and _leaf_of(tensor) is not base
        if alone or _interpretation(tensor) != _interpretation(base):
            return Held(tensor, tensor._version, None, tensor.requires_grad)
        view = tensor.shape, tensor.stride(), tensor.storage_offset()
        return Held(base, tensor._version, view, tensor.requires_grad)

    def get(self) -> Tensor:
        if self.view is None:
            return self.tensor
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            return self.tensor.as_strided(*self.view)


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
    ctx.kept = [Held.of(t) for t in tensors] if retain else None
    if not retain:
        ctx.save_for_backward(*tensors)


def kept(op: str, ctx: Any, grads: Sequence[Tensor | None] | None = None) -> Sequence[Tensor]:
    """What keep() has saved, in the name of ``op``.

    The first are the weights: one without a gradient in ``grads`` may have been changed since.
    """
    if ctx.kept is None:
        return ctx.saved_tensors
    tensors = [held.get() for held in ctx.kept]
    unused = () if grads is None else [i for i, g in enumerate(grads) if g is None]
    for i, (tensor, held) in enumerate(zip(tensors, ctx.kept, strict=True)):
        if tensor._version != held.version and i not in unused:
            raise RuntimeError(
                f"{op}: one of the variables needed for gradient computation has been "
                f"modified by an inplace operation: a tensor of shape {tuple(tensor.shape)} is at "
                f"version {tensor._version}; expected version {held.version}. Run the backward "
                "pass before the optimizer's step."
            )
    return tensors
