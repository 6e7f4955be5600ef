"""Reading a parametrized weight of a fused model, without torch's way through two modules.

torch makes a class for each parametrized module, with a property for each of its weights that calls
the chain of parametrizations. A fused model puts one in its place that looks for a deposit first.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.compiler import is_compiling
from torch.nn import Module

from gankernels._torch import caches_parametrizations, has_global_hooks
from gankernels.spectral_norm._fused.deposits import open_frames, take
from gankernels.spectral_norm.parametrization import SpectralNorm


class _Property(property):
    """Of a class that torch made; ``torchs`` is its own."""

    torchs: property


def read_deposits_first(module: Module, name: str) -> None:
    """Put the property in the class of a parametrized module, which copies of it share."""
    torchs = vars(type(module)).get(name)
    if type(torchs) is not property or torchs.fget is None:
        return
    slow = torchs.fget

    def read(module: Module) -> Tensor:
        if is_compiling() or not open_frames.frames:
            return slow(module)  # type: ignore[no-any-return]
        chain: Any = module._modules["parametrizations"]._modules[name]  # type: ignore[union-attr]
        links, parameters = chain._modules, chain._parameters
        norm = links["0"]
        # One link, which nobody sees called, nor changes what it is called with.
        if (
            type(norm) is SpectralNorm
            and norm._first_reads is None
            and len(links) == 1
            and "original" in parameters
            and not (chain._forward_pre_hooks or chain._forward_hooks)
            and not (norm._forward_pre_hooks or norm._forward_hooks)
            and not (chain._backward_pre_hooks or chain._backward_hooks)
            and not (norm._backward_pre_hooks or norm._backward_hooks)
            and not has_global_hooks()
            and not caches_parametrizations()
        ):
            buffers: Any = norm._buffers
            u: Any = buffers.get("_u")  # none of a vector
            if u is not None:
                found = take(norm, parameters["original"], u, buffers["_v"], norm.training)
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
