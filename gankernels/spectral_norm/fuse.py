"""A network's spectral normalization in one call a forward."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.spectral_norm import SpectralNorm as TorchHook

from gankernels._checks import check_bool, check_module
from gankernels._fused.ancestors import Ancestors
from gankernels._fused.computed import make_copyable
from gankernels._fused.frames import can_deposit, with_token
from gankernels._torch import is_capturing
from gankernels.spectral_norm._fused.deposits import (
    deposit,
    is_deposited,
    is_open,
    open_frames,
)
from gankernels.spectral_norm._fused.plan import Plan, plan_of
from gankernels.spectral_norm._fused.reading import read_as_torch, read_deposits_first
from gankernels.spectral_norm.hook import SpectralNorm as Hook
from gankernels.spectral_norm.layer import CompiledDeposit
from gankernels.spectral_norm.normalizer import normalize
from gankernels.spectral_norm.parametrization import SpectralNorm as Parametrization
from gankernels.spectral_norm.sharded import is_sharded
from gankernels.spectral_norm.sites import Site, settings_of, sites


class FusedSpectralNorm:
    """The handle of :func:`fuse_spectral_norm`: takes the fusion back, and announces steps."""

    def __init__(self, model: Module, options: dict[str, Any]) -> None:
        self.model = model
        self.options = options
        self.sites: list[Site] = []
        self._plan: Plan | None = None
        self._swaps: list[tuple[Any, Any]] = []  # a site's norm as it was, and ours
        self._state_hooks: list[Any] = []  # handles, one a site
        self._optimizers: list[tuple[Any, Any]] = []  # with the handle of the hook
        self._ancestors: Ancestors | None = None
        # After the user's hooks, which may write weights; before the model's own normalization.
        own = any(isinstance(hook, TorchHook) for hook in model._forward_pre_hooks.values())
        self._handles = [
            model.register_forward_pre_hook(self._before, prepend=own),
            model.register_forward_hook(self._after, always_call=True),
            model.register_state_dict_pre_hook(self._before_state_dict),
        ]

    def __getstate__(self) -> dict[str, Any]:
        open_frames.close_all_of(
            self.model
        )  # a copy that is made within a forward has the u and v of today
        # A copy or pickle of the model does not take the optimizer, of other parameters, along.
        none: dict[str, Any] = {
            "_optimizers": [],
            "_ancestors": None,
            "_plan": None,
        }
        return {**vars(self), **none}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __repr__(self) -> str:
        return f"FusedSpectralNorm({len(self.sites)} weights)"

    @property
    def skipped(self) -> dict[str, Tensor]:
        """How often the guard kept u and v, by weight; empty without ``guard=True``."""
        counts = {}
        for site, norm in self._present():
            if norm.guard:
                holder, name = site.counter(norm)
                counts[site.label] = getattr(holder, name)
        return counts

    def step(self) -> None:
        """Announce an optimizer's step: the next forward moves u and v (``step_scoped=True``).

        With ``trust_versions=True`` also after a replay of a CUDA graph that moves weights, u or v,
        of which nothing else tells: until then W / sigma is computed at every forward.
        """
        for _original, ours in self._swaps:
            ours.memory.begin_step()

    def _stepped(self, *_: Any) -> None:
        """The hook of an optimizer's step, which replays of a captured one do not call."""
        captured = is_capturing()
        for _original, ours in self._swaps:
            if captured and ours.settings.trust_versions:
                ours.memory.turn_off()
            ours.memory.step = None

    def unfuse(self) -> Module:
        """Give the model back as it was, with the u and v of today; returns it."""
        self._restore()
        for handle in [*self._handles, *(handle for _, handle in self._optimizers)]:
            handle.remove()
        self._handles, self._optimizers = [], []
        vars(self.model).pop("_gankernels_deposits", None)
        return self.model

    def _watch(self, optimizer: torch.optim.Optimizer) -> None:
        if all(known is not optimizer for known, _ in self._optimizers):
            handle = optimizer.register_step_post_hook(self._stepped)
            self._optimizers.append((optimizer, handle))

    def _fuse(self) -> None:
        # Attributes that a first trace would make: the second call would find others, and compile
        # once more.
        self.model._gankernels_deposits = []  # type: ignore[assignment]
        fused = [ours for _, ours in self._swaps]
        for site in sites(self.model):
            original = site.norm
            if any(original is ours for ours in fused):
                continue
            ours = self._ours(site, original)
            site.replace(ours)
            site.deposit_compiled(ours, None)
            if site.chain is not None:
                read_deposits_first(site.module, site.name)
            self.sites.append(site)
            self._swaps.append((original, ours))
            hook = site.module.register_state_dict_pre_hook(ours.before_state_dict)
            self._state_hooks.append(hook)
        self._find_ancestors()

    def _find_ancestors(self) -> Ancestors:
        self._plan = None
        holders = [site.module for site in self.sites]
        self._ancestors = Ancestors(self.model, holders, self._handles[0].id, _is_known)
        return self._ancestors

    def _restore(self) -> None:
        for site, (original, ours) in zip(self.sites, self._swaps, strict=True):
            if (
                site.norm is not ours
            ):  # removed since, or fused once more by a model around this one
                vars(ours)["_retired"] = original
                continue
            while (earlier := vars(original).get("_retired")) is not None:
                original = earlier
            # They can be set at any time.
            original.n_power_iterations, original.eps = ours.n_power_iterations, ours.eps
            if site.chain is not None:
                original.training = ours.training
                read_as_torch(site.module, site.name)
            elif hasattr(site.module, ours.deposit):
                delattr(site.module, ours.deposit)
            if ours.guard and not getattr(original, "guard", False):
                holder, name = site.counter(ours)
                delattr(holder, name)
            site.replace(original)
        for hook in self._state_hooks:
            hook.remove()
        self.sites, self._swaps, self._state_hooks = [], [], []

    def _ours(self, site: Site, norm: Any) -> Any:
        wanted = {k: v for k, v in self.options.items() if k != "guard" and v}
        settings = dataclasses.replace(settings_of(norm), **wanted)
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

    def _before(self, model: Module, args: Any) -> Any:
        if torch.compiler.is_compiling():
            self._before_compiled(model)
            return None
        open_frames.close_interrupted()
        if not can_deposit():
            return None
        ancestors = self._ancestors or self._find_ancestors()  # of a copy
        free, gathered = ancestors.free()
        usual = model is self.model and len(free) == len(self.sites) and not gathered
        usual = usual and not is_open()
        plan = self._plan  # which another thread may replace
        if usual and plan is not None and plan.is_current():
            frame = open_frames.open(model, sys._getframe(1))
            if not plan.deposit(frame):
                deposit(frame, plan.norms, plan.layers)
            return with_token(model, args, frame)
        self._plan = None
        if model is self.model:
            present = [
                (site, site.norm)
                for i, site in enumerate(self.sites)
                if i in free and site.is_stored
            ]
        elif len(free) == len(self.sites):
            # A replica of DataParallel comes with this hook, and with modules of its own.
            present = [(site, site.norm) for site in sites(model) if site.is_stored]
        else:
            return None
        norms, layers = [], []
        nested = is_open()
        own = {id(self.sites[i].norm) for i in gathered}
        for site, norm in present:
            if isinstance(norm, (Hook, Parametrization)):
                layer = site.layer(norm)
                if id(norm) in own and not is_sharded(layer.weight):
                    continue  # gathered still: its gradient must be there before FSDP frees it
                # By a model around this one?
                if not nested or not is_deposited(norm, layer.weight):
                    norms.append(norm)
                    layers.append(layer)
        frame = open_frames.open(model, sys._getframe(1))
        deposit(frame, norms, layers)
        if usual:
            self._plan = plan_of(self.sites, norms, layers)
        return with_token(model, args, frame)

    def _after(self, model: Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            self._after_compiled(model)
        else:
            open_frames.close_innermost_of(model)

    def _before_state_dict(self, *_: Any) -> None:
        open_frames.close_interrupted()

    # Dynamo traces attributes of modules, and no frames of threads.

    def _before_compiled(self, model: Module) -> None:
        wanted, layers = [], []
        for site in self.sites:
            norm = site.norm
            if isinstance(norm, (Hook, Parametrization)) and site.is_stored:
                layer = site.layer(norm)
                if is_sharded(layer.weight):
                    continue  # FSDP gathers it for the layer's call
                if site.compiled_deposit(norm) is None:  # else a model around this has made one
                    wanted.append((site, norm))
                    layers.append(layer)
        before = [(layer.u.clone(), layer.v.clone()) for layer in layers]
        outputs = normalize(layers)
        for (site, norm), layer, output, (u, v) in zip(
            wanted, layers, outputs, before, strict=True
        ):
            site.deposit_compiled(norm, CompiledDeposit(layer.weight, output, u, v))
        model._gankernels_deposits = wanted  # type: ignore[assignment]

    def _after_compiled(self, model: Module) -> None:
        for site, norm in model._gankernels_deposits:  # type: ignore[union-attr, operator]
            deposit = site.compiled_deposit(norm)
            if deposit is not None:  # the layer was not called
                layer = site.layer(norm)
                layer.u.copy_(deposit.u)
                layer.v.copy_(deposit.v)
                site.deposit_compiled(norm, None)
        model._gankernels_deposits = []  # type: ignore[assignment]


def _is_known(hook: Any) -> bool:
    return isinstance(hook, TorchHook) or isinstance(
        getattr(hook, "__self__", None), FusedSpectralNorm
    )


def fuse_spectral_norm(
    model: Module,
    *,
    step_scoped: bool = False,
    optimizer: torch.optim.Optimizer | None = None,
    guard: bool = False,
    max_norm: float | None = None,
    cache_eval: bool = False,
    trust_versions: bool = False,
) -> FusedSpectralNorm:
    """Normalize all spectrally normalized weights of ``model`` by one call at each of its forwards.

    Finds every weight under torch's or our ``spectral_norm``, hook or parametrization, in all
    submodules. Parameters, buffers and state_dict keys stay what they are, each weight keeps its
    order of iteration and its ``train()`` or ``eval()``. A submodule that is called by itself,
    outside ``model``'s forward, normalizes itself.

    Outputs, gradients, u and v are those of layer by layer, in training and in ``eval()``. A layer
    that a forward calls twice is iterated twice, and one that it does not call is not. A forward
    that ``torch.utils.checkpoint`` computes again has the u and v of the first time. Where a
    layer cannot be normalized ahead it normalizes itself: the second call of a forward, within
    ``torch.utils.checkpoint`` or other hooks on saved tensors, within
    ``torch.compile`` of a part, below a forward pre-hook of the user's, a later link of a chain of
    parametrizations, complex and foreign tensors. One thing is not seen: a write through ``.data``
    between the start of the model's forward and the call of the layer, by that ``forward`` itself,
    by a part's forward hook, or by a hook on all modules. And a forward that reads u and v itself
    finds them moved from its beginning on.

    Under FSDP2 (``fully_shard``, called before or after) weights whose shards are not gathered yet
    when the model's forward begins are iterated on as they lie, by one all-reduce of u and v for
    all of them, or two; their layers divide by sigma when they are called. All ranks have the same
    u and v.

    Calling it again finds what was added since; where the options are others, they replace the old.

    Args:
        model: the module whose forward is a pass, for instance the discriminator.
        step_scoped: move u and v once a step of the optimizer, not once a forward. D(real),
            D(fake), penalties and accumulated batches then share one W / sigma and, within one
            ``backward()``, one pass through it; recomputing activations is exact, whoever does it.
            A step is whatever changes W, and what is announced by ``step()`` of the handle or by
            ``optimizer``. W, u and v are compared with copies of what W / sigma was computed from,
            at every forward, so that it is never used stale. That takes memory for a copy of W,
            about a third of the time of normalizing, and on a GPU one wait a forward; within the
            capture of a CUDA graph nothing is remembered.
        optimizer: announces its steps by itself; needs ``step_scoped=True``. Copies and pickles of
            the model are not announced to; fuse them again with an optimizer of theirs.
        guard: see :func:`gankernels.nn.utils.spectral_norm`; the handle's ``skipped`` counts.
        max_norm: likewise.
        cache_eval: likewise.
        trust_versions: compare no contents for ``step_scoped`` and ``cache_eval``, as weights, u
            and v are written only by steps of torch's optimizers, fused ones among them, and by
            writes that torch counts (``add_``, ``load_state_dict``), not through ``.data``. Takes
            no copies and waits for nothing. Where that is not so, W / sigma will be stale. Replays
            of a CUDA graph are not counted: once a call or a step was captured nothing is
            remembered, until ``step()`` of the handle says when.

    Returns:
        A handle with ``unfuse()``, ``step()`` and ``skipped``.

    Raises:
        TypeError: if ``model`` is not a module, ``optimizer`` not an optimizer, or an option not
            True or False.
        ValueError: if it has no spectrally normalized weight, for ``optimizer`` without
            ``step_scoped=True``, or a max_norm that is not positive and finite.

    Differentiable twice. Deterministic. To compile, fuse first; ``step_scoped`` and ``cache_eval``
    have no effect within ``torch.compile``.
    """
    options = {
        "step_scoped": step_scoped,
        "guard": guard,
        "max_norm": max_norm,
        "cache_eval": cache_eval,
        "trust_versions": trust_versions,
    }
    check_module("fuse_spectral_norm", model)
    for name, value in options.items():
        if name != "max_norm":
            check_bool("fuse_spectral_norm", name, value)
    _check_max_norm(max_norm)
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
            "fuse_spectral_norm: expected a model with spectrally normalized weights, got "
            f"{type(model).__name__} with none; apply gankernels.nn.utils.parametrizations."
            "spectral_norm to its layers first"
        )
    handle = handle_of(model)
    if handle is None:
        handle = FusedSpectralNorm(model, options)
    elif handle.options != options:
        handle._restore()
        handle.options = options
    handle._fuse()
    if optimizer is not None:
        handle._watch(optimizer)
    return handle


def _check_max_norm(c: float | None) -> None:
    if c is None:
        return
    number = isinstance(c, (int, float)) and not isinstance(c, bool)
    if not number or not 0 < c <= sys.float_info.max:
        raise ValueError(
            f"fuse_spectral_norm: expected max_norm to be a positive, finite number, got {c!r}"
        )


def handle_of(model: Module) -> FusedSpectralNorm | None:
    for hook in model._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, FusedSpectralNorm):
            return owner
    return None
