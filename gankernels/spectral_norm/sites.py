"""The sites of the spectrally normalized weights in a model, torch's and ours."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm as TorchHook

from gankernels._torch import TorchParametrization
from gankernels.spectral_norm._fused.deposits import open_frames
from gankernels.spectral_norm.hook import SpectralNorm as Hook
from gankernels.spectral_norm.layer import CompiledDeposit, Layer, Settings, rows_first
from gankernels.spectral_norm.parametrization import SpectralNorm as Parametrization


class Site(NamedTuple):
    """A spectrally normalized weight in a model, of either kind, torch's or ours."""

    path: str  # of the module, "" for the model itself
    name: str  # of the parameter
    module: Module
    chain: Any  # the ParametrizationList; None for a hook
    holder: dict  # the dict that has the hook or parametrization
    key: Any  # under this key
    again: bool  # not the first spectral normalization of its chain

    @property
    def label(self) -> str:
        label = f"{self.path}.{self.name}" if self.path else self.name
        return f"{label}.{self.key}" if self.again else label

    @property
    def norm(self) -> Any:
        """The hook or parametrization; None where it has been removed."""
        if self.chain is not None:
            chains: Any = self.module._modules.get("parametrizations")
            if chains is None or chains._modules.get(self.name) is not self.chain:
                return None
        return self.holder.get(self.key)

    def replace(self, value: Any) -> None:
        self.holder[self.key] = value

    @property
    def is_stored(self) -> bool:
        """Whether the tensor to normalize is stored, and not computed when it is read.

        A later link of a chain, or a hook's weight that is parametrized, normalizes itself.
        """
        if self.chain is not None:
            return bool(self.key == "0" and self.chain.is_tensor)
        original = f"{self.name}_orig"
        return original in self.module._parameters or original in vars(self.module)

    def layer(self, norm: Any) -> Layer:
        """The layer to normalize now, of a site that is stored; its norm is one of ours."""
        if self.chain is None:
            return norm.layer(self.module, self.module.training)
        return norm.layer(self.chain.original)

    def input(self) -> Tensor:
        """The weight before this normalization, with the others of its chain in ``eval()``."""
        if self.chain is not None:
            return evaluated(self.chain, int(self.key))
        original = f"{self.name}_orig"
        if parametrize.is_parametrized(self.module, original):
            return evaluated(self.module.parametrizations[original])  # type: ignore[union-attr, index]
        return getattr(self.module, original)

    def vectors(self) -> tuple[Tensor, Tensor]:
        if self.chain is not None:
            return self.norm._u, self.norm._v
        return getattr(self.module, f"{self.name}_u"), getattr(self.module, f"{self.name}_v")

    def counter(self, norm: Any) -> tuple[Module, str]:
        """The place of the guard's counter: the module, and the name of the buffer."""
        return (self.module, f"{self.name}_skipped") if self.chain is None else (norm, "_skipped")

    def deposit_compiled(self, norm: Any, deposit: CompiledDeposit | None) -> None:
        holder, name = (self.module, norm.deposit) if self.chain is None else (norm, "_fused")
        setattr(holder, name, deposit)

    def compiled_deposit(self, norm: Any) -> CompiledDeposit | None:
        if self.chain is None:
            return getattr(self.module, norm.deposit, None)
        return norm._fused


def sites(model: Module) -> Iterator[Site]:
    """Every spectrally normalized weight of a model, torch's or ours, by its first name in it.

    Vectors under a parametrization, which are simply divided by their norm, do not count.
    """
    for path, module in model.named_modules():
        for key, hook in module._forward_pre_hooks.items():
            if isinstance(hook, TorchHook):
                yield Site(path, hook.name, module, None, module._forward_pre_hooks, key, False)
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
                again = False
                for key, norm in chain._modules.items():
                    if isinstance(norm, NORMS) and hasattr(norm, "_u"):
                        yield Site(path, name, module, chain, chain._modules, key, again)
                        again = True


NORMS = (TorchParametrization, Parametrization)


@torch.no_grad()
def evaluated(chain: Any, links: int | None = None) -> Tensor:
    """The value of a parametrized weight, or of its first links, with its spectral
    normalizations in ``eval()``; they are left as they are."""
    norms = [link for link in chain if isinstance(link, NORMS)]
    modes = [norm.training for norm in norms]
    if chain.is_tensor:
        originals = [chain.original]
    else:
        originals = [getattr(chain, f"original{i}") for i in range(chain.ntensors)]
    if links == 0:
        return originals[0]
    try:
        for norm in norms:
            norm.training = False
        with torch.autocast(originals[0].device.type, enabled=False):
            result = chain[0](*originals)
            for link in list(chain)[1:links]:
                result = link(result)
            return result
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.training = mode


def settings_of(norm: Any) -> Settings:
    if isinstance(norm, (Hook, Parametrization)):
        return norm.settings
    return Settings(norm.dim, "v_first" if isinstance(norm, TorchHook) else "u_first")


def normalized_by(hook: TorchHook, module: Module) -> Tensor:
    original = f"{hook.name}_orig"
    device = getattr(module, f"{hook.name}_u").device.type
    with torch.autocast(device, enabled=False):
        if not parametrize.is_parametrized(module, original):
            return hook.compute_weight(module, False)
        # Reading the parametrized weight in training mode would iterate.
        value = evaluated(module.parametrizations[original])  # type: ignore[index]
        state: dict[str, Any] = {**module._buffers, original: value}
        there = SimpleNamespace(**state, _parameters={original: value}, _buffers=module._buffers)
        return hook.compute_weight(there, False)  # type: ignore[arg-type]


@torch.no_grad()
def weight_norms(model: Module) -> dict[str, Tensor]:
    """``u . (W v)`` of every spectrally normalized weight of ``model``, by name.

    Weights in shards are gathered, so that all ranks have to call this. In a chain of
    parametrizations each spectral norm counts, with what the links before it make of
    the weight; a second one of a chain has its place for a suffix (``"conv1.weight.1"``).
    """
    open_frames.close_interrupted()
    norms = {}
    for site in sites(model):
        weight, u, v = (_whole(x) for x in (site.input(), *site.vectors()))
        s = settings_of(site.norm)
        matrix = rows_first(weight, s.dim)
        # The divisor of W: torch's hook conjugates nothing, its parametrization does.
        product = torch.dot if s.order == "v_first" else torch.vdot
        with torch.autocast(u.device.type, enabled=False):
            dtype = torch.promote_types(u.dtype, matrix.dtype)
            u, v, matrix = u.to(dtype), v.to(dtype), matrix.to(dtype)
            norms[site.label] = product(u, matrix.reshape(matrix.shape[0], -1) @ v)
    return norms


def _whole(x: Any) -> Tensor:
    return x if getattr(x, "placements", None) is None else x.full_tensor()  # type: ignore[no-any-return]
