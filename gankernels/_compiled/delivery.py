"""Gradients that are known already, handed to the parameters as a backward pass hands them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

Grads = Sequence[Tensor | None]


class _Known(torch.autograd.Function):
    """A zero whose gradients are those that it was given. ``holder`` gives them away, so that the
    parameters take the very tensors."""

    @staticmethod
    def forward(ctx: Any, holder: list[Grads], *parameters: Tensor) -> Tensor:
        ctx.holder = holder
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        return (None, *ctx.holder.pop())


class _Backward(nn.Module):
    """In the place of a network of DistributedDataParallel: its buffers, and that zero."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.named_buffers = network.named_buffers  # type: ignore[method-assign]

    def forward(self, holder: list[Grads], parameters: Sequence[Tensor]) -> Tensor:
        return _Known.apply(holder, *parameters)  # type: ignore[no-any-return]


class Replicas:
    """Networks in DistributedDataParallel, whose gradients it reduces in the backward pass only,
    and never those of torch.autograd.grad.
    """

    def __init__(self, wrapped: Sequence[DistributedDataParallel]) -> None:
        self.wrapped = list(wrapped)
        # Kept, as compiled code is for the very functions.
        self.forwards = [_inner(ddp) for ddp in wrapped]

    @contextlib.contextmanager
    def unwrapped(self) -> Iterator[None]:
        """A block in which calling them calls the networks, and reduces nothing."""
        for ddp, forward in zip(self.wrapped, self.forwards, strict=True):
            vars(ddp)["forward"] = forward
        try:
            yield
        finally:
            for ddp in self.wrapped:
                vars(ddp).pop("forward", None)

    def deliver(self, parameters: Sequence[Tensor], grads: Grads) -> None:
        """Accumulate gradients, call hooks, and reduce what a replica has."""
        left = dict(zip(map(id, parameters), zip(parameters, grads, strict=True), strict=True))
        for ddp in self.wrapped:
            own = [left.pop(id(p)) for p in ddp.parameters() if id(p) in left]
            if own:
                with self._instead(ddp):
                    ddp(*_split(own)).backward()
        rest = [pair for pair in left.values() if pair[1] is not None]
        del grads
        if rest:
            left.clear()
            holder, taken = _split(rest)
            rest.clear()
            _Known.apply(holder, *taken).backward()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def _instead(self, ddp: DistributedDataParallel) -> Iterator[None]:
        network = ddp.module
        ddp.module = _Backward(network)
        try:
            yield
        finally:
            ddp.module = network


def _inner(ddp: DistributedDataParallel) -> Any:
    network = ddp.module

    def forward(*args: Any, **kwargs: Any) -> Any:
        return network(*args, **kwargs)

    return forward


def _split(pairs: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[list[Grads], list[Tensor]]:
    return [[g for _, g in pairs]], [p for p, _ in pairs]
