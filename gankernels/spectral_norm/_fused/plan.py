"""The usual forward of a fused model: what is the same as in the one before, told by identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gankernels._fused.frames import Frame
from gankernels._library import has_kernels
from gankernels._torch import is_watched
from gankernels.ops.spectral_norm import spectral_norm_again
from gankernels.spectral_norm._fused.deposits import Deposit, Group
from gankernels.spectral_norm._fused.reading import is_seen
from gankernels.spectral_norm.layer import Layer
from gankernels.spectral_norm.normalizer import group_of
from gankernels.spectral_norm.sites import Site


class Plan:
    """The one call that normalizes all weights of a model in a training step; for as long as the
    model has the same modules, parameters and buffers, with the same settings."""

    def __init__(self, sites: Sequence[Site], norms: Sequence[Any], layers: list[Layer]) -> None:
        self.sites, self.norms, self.layers = sites, list(norms), layers
        self.index = {id(norm): i for i, norm in enumerate(norms)}
        self.weights = [layer.weight for layer in layers]
        self.u, self.v = [layer.u for layer in layers], [layer.v for layer in layers]
        self.vectors = [x for layer in layers for x in (layer.u, layer.v)]
        first = layers[0]
        s = first.settings
        self.step = self.u, self.v, first.n, first.eps, s.order == "u_first", None, s.max_norm
        self.same = [
            entry
            for site, norm, layer in zip(sites, norms, layers, strict=True)
            for entry in _entries(site, norm, layer)
        ]
        #: How many hooks torch had registered when there were none on the parametrizations, nor on
        #: all modules: while it is as many, nobody sees them called.
        self.registered = -1

    def is_current(self) -> bool:
        if self.registered != RemovableHandle.next_id:
            chains = [site.chain for site in self.sites]
            seen = any(
                c is not None and is_seen(c, n) for c, n in zip(chains, self.norms, strict=True)
            )
            self.registered = -1 if seen else RemovableHandle.next_id
        for names, name, value in self.same:
            if names.get(name) is not value:
                return False
        for weight in self.weights:
            if not weight.requires_grad:
                return False
        return torch.is_grad_enabled() and has_kernels(self.weights[0])

    def deposit(self, frame: Frame) -> bool:
        """Normalize, and deposit; False if the call was refused, and nothing has moved."""
        group = Group(self.vectors)
        try:
            outputs = spectral_norm_again(self.weights, self.step)
        except (RuntimeError, TypeError, ValueError):
            return False
        group.moved(None)
        frame.planned = Planned(self, outputs, group)
        return True


class Planned:
    """What a plan's call has computed for a forward: deposits that are made one by one only where
    somebody asks more than whether all is as it was."""

    __slots__ = "group", "left", "outputs", "plan", "pointers", "registered", "versions"

    def __init__(self, plan: Plan, outputs: Sequence[Tensor], group: Group) -> None:
        self.plan, self.outputs, self.group = plan, outputs, group
        self.left = plan.index.copy()  # those that are not used yet
        self.versions = [weight._version for weight in plan.weights]
        self.pointers = [weight.data_ptr() for weight in plan.weights]
        self.registered = plan.registered

    def take(
        self, frame: Frame, norm: Any, weight: Any, u: Any, v: Any, training: bool
    ) -> Tensor | None:
        """The weight for a layer that is as it was then; asks what ``Deposit.fits`` does."""
        i = self.left.get(id(norm))
        if i is None:
            return None
        plan, moved = self.plan, self.group.versions
        if (
            weight is plan.weights[i]
            and u is plan.u[i]
            and v is plan.v[i]
            and training
            and weight._version == self.versions[i]
            and u._version == moved[2 * i]
            and v._version == moved[2 * i + 1]
            and weight.data_ptr() == self.pointers[i]
            and torch.is_grad_enabled()
            and frame.runs(norm.memory)
            and not is_watched()
        ):
            del self.left[id(norm)]
            return self.outputs[i]
        return None

    def spread(self, deposits: dict[int, Any]) -> None:
        """Make the deposits that are left."""
        for key, i in self.left.items():
            one = deposits[key] = Deposit(self.plan.norms[i], self.plan.layers[i])
            one.version, one.pointer = self.versions[i], self.pointers[i]
            one.fill(self.outputs[i], self.group, i)


def plan_of(sites: Sequence[Site], norms: Sequence[Any], layers: list[Layer]) -> Plan | None:
    """A plan, where one call is all that such a forward takes."""
    if not layers or len(sites) != len(layers):
        return None
    for norm, layer in zip(norms, layers, strict=True):
        s = layer.settings
        remembers = s.step_scoped or s.trust_versions or layer.skipped is not None
        if remembers or not layer.training or s.dim != 0 or norm.memory.declined:
            return None
        weight = layer.weight
        if not (has_kernels(weight) and weight.is_contiguous()) or weight.numel() == 0:
            return None
    if len({group_of(layer, None) for layer in layers}) > 1:
        return None
    return Plan(sites, norms, layers)


def _entries(site: Site, norm: Any, layer: Layer) -> list[tuple[dict, Any, Any]]:
    """Where a name has to mean the same."""
    found: list[tuple[dict, Any, Any]] = [
        (site.holder, site.key, norm),
        (vars(norm), "n_power_iterations", norm.n_power_iterations),
        (vars(norm), "eps", norm.eps),
        (vars(norm.memory), "declined", False),
    ]
    module: Any = site.module
    if site.chain is None:
        names = f"{site.name}_orig", f"{site.name}_u", f"{site.name}_v"
        parameters, buffers, mode = module._parameters, module._buffers, module
    else:
        names = "original", "_u", "_v"
        parameters, buffers, mode = site.chain._parameters, norm._buffers, norm
        found.append((module._modules["parametrizations"]._modules, site.name, site.chain))
        found.append((module._modules, "parametrizations", module._modules["parametrizations"]))
    return [
        *found,
        (parameters, names[0], layer.weight),
        (buffers, names[1], layer.u),
        (buffers, names[2], layer.v),
        (vars(mode), "training", True),
    ]
