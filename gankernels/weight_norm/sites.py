"""The weights of a model that torch's ``weight_norm`` normalizes, by either of its kinds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import Module
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm as TorchHook

from gankernels._torch import TorchWeightNorm


class Site(NamedTuple):
    """A weight-normalized weight in a model."""

    name: str  # of the parameter
    module: Module
    chain: Any  # the ParametrizationList; None for a hook
    holder: dict  # the dict that has the hook or parametrization
    key: Any  # under this key

    @property
    def norm(self) -> Any:
        """The hook or parametrization; None where it has been removed."""
        if self.chain is not None:
            chains: Any = self.module._modules.get("parametrizations")
            if chains is None or chains._modules.get(self.name) is not self.chain:
                return None
        return self.holder.get(self.key)

    def tensors(self) -> tuple[Any, Any]:
        """v and g, where they are parameters; else None."""
        if self.chain is not None:
            found = self.chain._parameters
            return found.get("original1"), found.get("original0")
        found = self.module._parameters
        return found.get(f"{self.name}_v"), found.get(f"{self.name}_g")


def sites(model: Module) -> Iterator[Site]:
    """Every weight-normalized weight of a model, each module once."""
    for module in model.modules():
        for key, hook in module._forward_pre_hooks.items():
            if isinstance(hook, TorchHook):
                yield Site(hook.name, module, None, module._forward_pre_hooks, key)
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
                if isinstance(chain._modules.get("0"), TorchWeightNorm):
                    yield Site(name, module, chain, chain._modules, "0")


def dim_of(norm: Any) -> int | None:
    """The dimension that has norms of its own; torch says -1 for None."""
    return None if norm.dim == -1 else int(norm.dim)


def as_slices(v: Tensor, g: Tensor, dim: int | None) -> bool:
    """Whether g has a number for every slice of v along ``dim``."""
    if dim is None:
        return g.numel() == 1
    return 0 <= dim < v.dim() and g.numel() == v.shape[dim]
