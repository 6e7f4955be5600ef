"""Reading a parametrized weight of a fused model, without torch's way through two modules.

torch makes a class for each parametrized module, with a property for each of its weights that calls
the chain of parametrizations. A fused model puts one in its place that looks for a deposit first.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from gankernels._torch import caches_parametrizations, has_global_hooks
from gankernels.spectral_norm._fused.deposits import open_frames, take
from gankernels.spectral_norm.parametrization import SpectralNorm


class _Property(property):
    """Of a class that torch made; ``torchs`` is its own."""

    torchs: property


def is_seen(chain: Any, norm: Any) -> bool:
    """Whether somebody would miss the call of a parametrization, or change its arguments."""
    hooks = (
        *(chain._forward_pre_hooks, chain._forward_hooks),
        *(norm._forward_pre_hooks, norm._forward_hooks),
        *(chain._backward_pre_hooks, chain._backward_hooks),
        *(norm._backward_pre_hooks, norm._backward_hooks),
    )
    ours = type(norm) is SpectralNorm and norm._first_reads is None
    return not ours or any(hooks) or has_global_hooks()


def read_deposits_first(module: Module, name: str) -> None:
    """Put the property in the class of a parametrized module, which copies of it share."""
    torchs = vars(type(module)).get(name)
    if type(torchs) is not property or torchs.fget is None:
        return
    slow = torchs.fget

    def read(module: Module) -> Tensor:
        if is_compiling():
            return slow(module)  # type: ignore[no-any-return]
        frames = open_frames.frames
        if not frames:
            return slow(module)  # type: ignore[no-any-return]
        chain: Any = module._modules["parametrizations"]._modules[name]  # type: ignore[union-attr]
        links, planned = chain._modules, frames[0].planned
        if len(links) == 1 and not caches_parametrizations():
            norm = links["0"]
            buffers = norm._buffers
            weight, u, v = chain._parameters.get("original"), buffers.get("_u"), buffers.get("_v")
            found = None
            if (
                planned is not None
                and planned.registered == RemovableHandle.next_id
                and len(frames) == 1
            ):
                found = planned.take(frames[0], norm, weight, u, v, norm.training)
            elif weight is not None and u is not None and not is_seen(chain, norm):
                found = take(norm, weight, u, v, norm.training)
            if found is not None:
                return found
        return slow(module)  # type: ignore[no-any-return]

    ours = _Property(read, torchs.fset, torchs.fdel, torchs.__doc__)
    ours.torchs = torchs
    setattr(type(module), name, ours)


def read_as_torch(module: Module, name: str) -> None:
    """Take the property out again."""
    ours = vars(type(module)).get(name)
    if isinstance(ours, _Property):
        setattr(type(module), name, ours.torchs)
