"""A network's spectral normalisation in one call a forward, and what is read off a network."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm as TorchHook

from gankernels._torch import TorchParametrization
from gankernels.nn.utils._normalize import (
    Deposit,
    Layer,
    Settings,
    Slot,
    normalize,
    rows_first,
    version_of,
    withdraw,
)
from gankernels.nn.utils.parametrizations import SpectralNorm as Parametrization
from gankernels.nn.utils.spectral_norm import SpectralNorm as Hook
from gankernels.nn.utils.spectral_norm import make_copyable, remove_spectral_norm

M = TypeVar("M", bound=Module)


class Site(NamedTuple):
    """A spectrally normalised weight in a model, of either kind, torch's or ours."""

    path: str  # of the module, "" for the model itself
    name: str  # of the parameter
    module: Module
    chain: Any  # the ParametrizationList; None for a hook
    holder: dict  # the dict that has the hook or parametrization
    key: Any  # under this key

    @property
    def label(self) -> str:
        return f"{self.path}.{self.name}" if self.path else self.name

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

    def layer(self, norm: Any = None) -> Layer:
        """What there is to normalise now; the site's norm is one of ours."""
        norm = self.norm if norm is None else norm
        if self.chain is None:
            return norm.layer(self.module, self.module.training)
        return norm.layer(self.chain.original)

    def counter(self, norm: Any) -> tuple[Module, str]:
        """Where the guard's counter is: the module, and the name of the buffer."""
        return (self.module, f"{self.name}_skipped") if self.chain is None else (norm, "_skipped")

    # The module's weight for the time of a forward; written past Module.__setattr__, which is slow.

    def deposit(self, norm: Any, deposit: Deposit | None) -> None:
        holder, name = (self.module, norm.deposit) if self.chain is None else (norm, "_fused")
        if torch.compiler.is_compiling():
            setattr(holder, name, deposit)
        else:
            vars(holder)[name] = deposit

    def deposited(self, norm: Any) -> Deposit | None:
        if self.chain is None:
            return vars(self.module).get(norm.deposit)
        return norm._fused


def sites(model: Module) -> Iterator[Site]:
    """Every spectrally normalised weight of a model, torch's or ours, by its first name in it.

    Of several parametrizations of a weight, spectral normalisation counts where it is the first;
    vectors, which are simply divided by their norm, do not.
    """
    for path, module in model.named_modules():
        for key, hook in module._forward_pre_hooks.items():
            if isinstance(hook, TorchHook):
                yield Site(path, hook.name, module, None, module._forward_pre_hooks, key)
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
                first = chain[0]
                ours = isinstance(first, (TorchParametrization, Parametrization))
                if ours and chain.is_tensor and hasattr(first, "_u"):
                    yield Site(path, name, module, chain, chain._modules, "0")


def _settings(norm: Any) -> Settings:
    if isinstance(norm, (Hook, Parametrization)):
        return norm.settings
    return Settings(norm.dim, "v_first" if isinstance(norm, TorchHook) else "u_first")


class FusedSpectralNorm:
    """What :func:`fuse_spectral_norm` returns: takes the fusion back, and announces steps."""

    def __init__(self, model: Module, options: dict[str, Any]) -> None:
        self.model = model
        self.options = options
        self.sites: list[Site] = []
        self._swaps: list[tuple[Any, Any]] = []  # a site's norm as it was, and ours
        self._optimizers: list[tuple[Any, Any]] = []  # with the handle of the hook
        self._handles = [
            model.register_forward_pre_hook(self._before, prepend=True),
            model.register_forward_hook(self._after, always_call=True),
        ]

    def __getstate__(self) -> dict[str, Any]:
        # A copy or pickle of the model does not take the optimiser, of other parameters, along.
        return {**vars(self), "_optimizers": []}

    def __repr__(self) -> str:
        return f"FusedSpectralNorm({len(self.sites)} weights)"

    @property
    def skipped(self) -> dict[str, Tensor]:
        """How often the guard kept u and v, by weight; empty without ``guard=True``."""
        layers = {site.label: site.layer(norm).skipped for site, norm in self._present()}
        return {label: n for label, n in layers.items() if n is not None}

    def step(self, *_: Any) -> None:
        """Announce an optimiser's step: the next forward moves u and v (``step_scoped=True``)."""
        for _original, ours in self._swaps:
            ours.memory.step = Slot()

    def unfuse(self) -> Module:
        """Give the model back as it was, with the u and v of today; returns it."""
        self._restore()
        for handle in [*self._handles, *(handle for _, handle in self._optimizers)]:
            handle.remove()
        self._handles, self._optimizers = [], []
        return self.model

    def _watch(self, optimizer: torch.optim.Optimizer) -> None:
        if all(known is not optimizer for known, _ in self._optimizers):
            handle = optimizer.register_step_post_hook(self.step)
            self._optimizers.append((optimizer, handle))

    def _fuse(self) -> None:
        fused = [ours for _, ours in self._swaps]
        for site in sites(self.model):
            original = site.norm
            if any(original is ours for ours in fused):
                continue
            ours = self._ours(site, original)
            site.replace(ours)
            self.sites.append(site)
            self._swaps.append((original, ours))

    def _restore(self) -> None:
        for site, (original, ours) in zip(self.sites, self._swaps, strict=True):
            if (
                site.norm is not ours
            ):  # removed since, or fused once more by a model around this one
                vars(ours)["_retired"] = original
                continue
            while (earlier := vars(original).get("_retired")) is not None:
                original = earlier
            if site.chain is not None:
                original.training = ours.training
            elif hasattr(site.module, ours.deposit):
                delattr(site.module, ours.deposit)
            if ours.guard and not getattr(original, "guard", False):
                holder, name = site.counter(ours)
                delattr(holder, name)
            site.replace(original)
        self.sites, self._swaps = [], []

    def _ours(self, site: Site, norm: Any) -> Any:
        wanted = {k: v for k, v in self.options.items() if k != "guard" and v}
        settings = dataclasses.replace(_settings(norm), **wanted)
        guard = self.options["guard"] or getattr(norm, "guard", False)
        ours: Any
        if site.chain is None:
            ours = Hook(
                site.name,
                norm.n_power_iterations,
                norm.dim,
                norm.eps,
                settings=settings,
                guard=guard,
            )
            make_copyable(site.module, site.name)
            u = getattr(site.module, f"{site.name}_u")
        else:
            ours = Parametrization(norm.n_power_iterations, norm.eps, settings, guard=guard)
            ours.training = norm.training
            ours._buffers = norm._buffers  # the same objects: what moves one moves the other
            ours._non_persistent_buffers_set = norm._non_persistent_buffers_set
            u = norm._u
        holder, name = site.counter(ours)
        if guard and not hasattr(holder, name):
            counter = u.new_zeros(1, dtype=torch.int64)
            holder.register_buffer(name, counter, persistent=False)
        return ours

    def _present(self) -> list[tuple[Site, Any]]:
        """The sites that are still there, with their hook or parametrization where it is ours."""
        pairs = [(site, site.norm) for site in self.sites]
        return [pair for pair in pairs if isinstance(pair[1], (Hook, Parametrization))]

    def _before(self, model: Module, args: Any) -> None:
        self._take_back(model)  # what an interrupted forward has left
        if model is self.model:
            present = self._present()
        else:  # a replica of DataParallel comes with this hook, and with modules of its own
            present = [(site, site.norm) for site in sites(model)]
        wanted, layers = [], []
        for site, norm in present:
            layer = site.layer(norm)
            if withdraw(site.deposited(norm), layer.weight) is None:  # else a model around this did
                wanted.append((site, norm))
                layers.append(layer)
        for (site, norm), layer, output in zip(wanted, layers, normalize(layers), strict=True):
            site.deposit(norm, Deposit(layer.weight, version_of(layer.weight), output))
        model._gankernels_deposits = id(model), wanted  # type: ignore[assignment]

    def _after(self, model: Module, args: Any, output: Any) -> None:
        self._take_back(model)

    def _take_back(self, model: Module) -> None:
        # A replica has a copy of the attribute, with the sites of the model it was made from.
        owner, deposited = getattr(model, "_gankernels_deposits", (None, []))
        if owner == id(model):
            for site, norm in deposited:
                site.deposit(norm, None)
            model._gankernels_deposits = None, []  # type: ignore[assignment]


def fuse_spectral_norm(
    model: Module,
    *,
    step_scoped: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    guard: bool = False,
    coefficient: float | None = None,
    cache_eval: bool = False,
) -> FusedSpectralNorm:
    """Normalise all spectrally normalised weights of ``model`` by one call at each of its forwards.

    Finds every weight under torch's or our ``spectral_norm``, hook or parametrization, in all
    submodules. Parameters, buffers and state_dict keys stay what they are, each weight keeps its
    order of iteration and its ``train()`` or ``eval()``. A submodule that is called by itself,
    outside ``model``'s forward, normalises itself.

    It differs from layer by layer where a weight is used more than once in a forward: a layer that
    is called twice, or a parametrised weight that is read twice, is iterated once.

    Calling it again finds what was added since; where the options are others, they replace the old.

    Args:
        model: the module whose forward is a pass, for instance the discriminator.
        step_scoped: move u and v once a step of the optimiser, not once a forward. D(real),
            D(fake), penalties and accumulated batches then share one W / sigma and, within one
            ``backward()``, one pass through it; recomputing activations (checkpointing) is exact.
            The step is announced by ``step()`` of the handle or by ``optimizer``; a weight that
            changed without an announcement is iterated as well, and never used stale.
        optimizer: announces its steps by itself; needs ``step_scoped=True``. Copies and pickles of
            the model are not announced to; fuse them again with an optimiser of theirs.
        guard: see :func:`gankernels.nn.utils.spectral_norm`; the handle's ``skipped`` counts.
        coefficient: likewise.
        cache_eval: likewise.

    Returns:
        A handle with ``unfuse()``, ``step()`` and ``skipped``.

    Raises:
        TypeError: if ``model`` is not a module, or ``optimizer`` not an optimiser.
        ValueError: if it has no spectrally normalised weight, for ``optimizer`` without
            ``step_scoped=True``, or a coefficient that is not positive and finite.

    Differentiable twice. Deterministic. To compile, fuse first; ``step_scoped`` and ``cache_eval``
    have no effect within ``torch.compile``.
    """
    if not isinstance(model, Module):
        raise TypeError(
            f"fuse_spectral_norm: expected a torch.nn.Module, got {type(model).__name__}"
        )
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            "fuse_spectral_norm: expected optimizer to be a torch.optim.Optimizer, "
            f"got {type(optimizer).__name__}"
        )
    if optimizer is not None and not step_scoped:
        raise ValueError(
            "fuse_spectral_norm: optimizer announces steps, which only step_scoped=True waits for; "
            "pass both or neither"
        )
    if next(sites(model), None) is None:
        raise ValueError(
            "fuse_spectral_norm: expected a model with spectrally normalised weights, got "
            f"{type(model).__name__} with none; apply gankernels.nn.utils.parametrizations."
            "spectral_norm to its layers first"
        )
    options = {
        "step_scoped": step_scoped,
        "guard": guard,
        "coefficient": coefficient,
        "cache_eval": cache_eval,
    }
    probe = next(sites(model)).norm
    dataclasses.replace(
        _settings(probe), coefficient=coefficient
    )  # refuses before anything changes
    handle = _handle_of(model)
    if handle is None:
        handle = FusedSpectralNorm(model, options)
    elif handle.options != options:
        handle._restore()
        handle.options = options
    handle._fuse()
    if optimizer is not None:
        handle._watch(optimizer)
    return handle


def _handle_of(model: Module) -> FusedSpectralNorm | None:
    for hook in model._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, FusedSpectralNorm):
            return owner
    return None


@dataclasses.dataclass(frozen=True)
class Sigmas:
    """The spectral norms of a model's weights, as their u and v see them."""

    layers: dict[str, Tensor]
    product: Tensor  # a bound of the Lipschitz constant of the linear layers, before normalisation


@torch.no_grad()
def sigma(model: Module) -> Sigmas:
    """``u . (W v)`` of every spectrally normalised weight of ``model``, and their product.

    For logging: nothing moves, no gradient, no synchronisation. The weights are those before the
    normalisation; torch's and our ``spectral_norm`` count, fused or not. Scalars of the weights'
    dtype, in a dict by name (``"conv1.weight"``).

    Raises:
        ValueError: if there is none.
    """
    found = {}
    for site in sites(model):
        if site.chain is None:
            parts = tuple(getattr(site.module, site.name + s) for s in ("_orig", "_u", "_v"))
        else:
            parts = (site.chain.original, site.norm._u, site.norm._v)
        weight, u, v = parts
        matrix = rows_first(weight, _settings(site.norm).dim)
        with torch.autocast(u.device.type, enabled=False):
            found[site.label] = torch.vdot(u, matrix.reshape(matrix.shape[0], -1) @ v)
    if not found:
        raise ValueError("sigma: expected a model with spectrally normalised weights, got none")
    return Sigmas(found, torch.stack(list(found.values())).prod())


def fold(model: M, *, inplace: bool = False) -> M:
    """``model`` with plain weights W / sigma, for export or for averaging weights.

    u and v do not move, and the weights are those of ``eval()``. The state_dict has plain keys.
    Other parametrizations of a spectrally normalised weight are folded with it.

    Args:
        model: with torch's or our ``spectral_norm``, fused or not.
        inplace: change ``model`` itself instead of a copy.
    """
    if not inplace:
        for site in sites(model):
            if site.chain is None:
                make_copyable(site.module, site.name)
        model = copy.deepcopy(model)
    for module in model.modules():
        handle = _handle_of(module)
        if handle is not None:
            handle.unfuse()
    for module in list(model.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, TorchHook):
                wanted = getattr(module, f"{hook.name}_orig").requires_grad
                remove_spectral_norm(module, hook.name)
                getattr(module, hook.name).requires_grad_(wanted)
        if parametrize.is_parametrized(module):
            _fold_parametrizations(module)
    return model


def _fold_parametrizations(module: Module) -> None:
    chains: Any = module.parametrizations
    for name in list(chains):
        norms = [p for p in chains[name] if isinstance(p, (TorchParametrization, Parametrization))]
        if norms:
            for norm in norms:
                norm.eval()  # removing in training mode would iterate once more
            _own_class(module)
            parametrize.remove_parametrizations(module, name)


def _own_class(module: Module) -> None:
    # Copies of a parametrised module share its class, and removing takes the property off the
    # class.
    shared = type(module)
    namespace = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, namespace)
