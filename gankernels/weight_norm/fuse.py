"""A network's weight normalization in one call a forward."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.spectral_norm import SpectralNorm as SpectralHook
from torch.nn.utils.weight_norm import WeightNorm as TorchHook

from gankernels._checks import check_module
from gankernels._fused.ancestors import Ancestors
from gankernels._fused.computed import copyable, make_copyable
from gankernels._fused.frames import Depth, Frame, OpenFrames, can_deposit, with_token
from gankernels._library import has_kernels
from gankernels._torch import TorchWeightNorm
from gankernels.ops.weight_norm import weight_norm
from gankernels.spectral_norm.fuse import FusedSpectralNorm
from gankernels.weight_norm.sites import Site, as_slices, dim_of, sites

#: Of this thread; empty outside of the forwards of fused models.
open_frames = OpenFrames()


class Hook(TorchHook):
    """torch's hook, which takes the weight that was computed ahead."""

    def __init__(self, name: str, dim: int) -> None:
        self.name, self.dim = name, dim
        self.depth = Depth()

    def compute_weight(self, module: Module) -> Any:
        return _weight(self, getattr(module, f"{self.name}_v"), getattr(module, f"{self.name}_g"))

    def __call__(self, module: Module, inputs: Any) -> None:
        if torch.compiler.is_compiling():
            setattr(module, self.name, self.compute_weight(module))
        else:  # the name is a plain attribute: there is nothing for __setattr__ to find out
            vars(module)[self.name] = copyable(self.compute_weight(module))


class Parametrization(TorchWeightNorm):
    """torch's parametrization, likewise."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.depth = Depth()

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        return _weight(self, weight_v, weight_g)


class _Deposit:
    """A weight, and what it was computed from."""

    def __init__(self, norm: Any, v: Tensor, g: Tensor, output: Tensor) -> None:
        self.norm, self.v, self.g, self.output = norm, v, g, output
        self.state = self._state()

    def _state(self) -> tuple:
        v, g = self.v, self.g
        inference = v.is_inference() or g.is_inference()  # which count no versions
        versions = () if inference else (v._version, g._version)
        return (*versions, v.data_ptr(), g.data_ptr(), v.requires_grad, g.requires_grad)

    def fits(self, v: Tensor, g: Tensor) -> bool:
        """Whether the layer would compute the same now."""
        if v is not self.v or g is not self.g or self._state() != self.state:
            return False
        needs_grad = torch.is_grad_enabled() and (v.requires_grad or g.requires_grad)
        return self.output.requires_grad or not needs_grad

    def take_back(self) -> None:
        """There is nothing to: nothing was moved for it."""


def _weight(norm: Any, v: Tensor, g: Tensor) -> Tensor:
    """The weight of a layer, now: what was computed ahead, or else its own."""
    if torch.compiler.is_compiling():
        return _in_plain_torch(v, g, norm.dim)
    deposit = _deposit_for(norm, v, g)
    if deposit is not None:
        output = deposit.output
        return output if torch.is_grad_enabled() or not output.requires_grad else output.detach()
    dim = dim_of(norm)
    if _is_plain(v, g, dim):
        return weight_norm(v, g, dim=dim)  # the same bits as of all layers together
    return _in_plain_torch(v, g, norm.dim)


def _in_plain_torch(v: Tensor, g: Tensor, dim: int) -> Tensor:
    # Not torch._weight_norm, whose second derivative in v takes the norm for a constant.
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _is_plain(v: Any, g: Any, dim: int | None) -> bool:
    return (
        v is not None
        and g is not None
        and has_kernels(v)
        and has_kernels(g)
        and (v.dtype, v.device) == (g.dtype, g.device)
        and v.layout is g.layout is torch.strided
        and v.numel() > 0
        and as_slices(v, g, dim)
    )


def _deposit_for(norm: Any, v: Tensor, g: Tensor) -> _Deposit | None:
    for frame in reversed(open_frames.frames[:]):
        deposit = frame.deposits.get(id(norm))
        if deposit is None:
            continue
        if not frame.runs(norm.depth):
            frame.close()
            continue
        usable = frame.inference is torch.is_inference_mode_enabled() and deposit.fits(v, g)
        return deposit if usable else None
    return None


class FusedWeightNorm:
    """The handle of :func:`fuse_weight_norm`: takes the fusion back."""

    def __init__(self, model: Module) -> None:
        self.model = model
        self.sites: list[Site] = []
        self._swaps: list[tuple[Any, Any]] = []  # a site's norm as it was, and ours
        self._loading: list[Any] = []  # handles of hooks, one a site
        self._ancestors: Ancestors | None = None
        self._handles = [
            model.register_forward_pre_hook(self._before),
            model.register_forward_hook(self._after, always_call=True),
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_ancestors": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def __repr__(self) -> str:
        return f"FusedWeightNorm({len(self.sites)} weights)"

    def unfuse(self) -> Module:
        """Give the model back as it was; returns it."""
        for site, (original, ours) in zip(self.sites, self._swaps, strict=True):
            if site.norm is ours:  # not removed since
                site.holder[site.key] = original
        for handle in (*self._handles, *self._loading):
            handle.remove()
        self.sites, self._swaps, self._handles, self._loading = [], [], [], []
        return self.model

    def _fuse(self) -> None:
        for site in sites(self.model):
            original = site.norm
            if isinstance(original, (Hook, Parametrization)):
                continue  # ours, or of a model within or around this one
            ours: Any
            if site.chain is None:
                ours = Hook(site.name, original.dim)
                make_copyable(site.module, site.name)
            else:
                ours = Parametrization(original.dim)
                ours.training = original.training
            site.holder[site.key] = ours
            self.sites.append(site)
            self._swaps.append((original, ours))
            translate = _Translate(site.name, original.dim, site.chain is None)
            self._loading.append(site.module.register_load_state_dict_pre_hook(translate))
        self._ancestors = None

    def _before(self, model: Module, args: Any) -> Any:
        if torch.compiler.is_compiling():
            return None  # the compiler sees all layers, and fuses what they do
        open_frames.close_interrupted()
        # A replica of DataParallel comes with this hook, and with parameters of its own.
        if model is not self.model or not can_deposit():
            return None
        if self._ancestors is None:
            holders = [site.module for site in self.sites]
            self._ancestors = Ancestors(model, holders, self._handles[0].id, _is_known)
        free, gathered = self._ancestors.free()
        chosen: dict[tuple, list[tuple[Any, Tensor, Tensor, int | None]]] = {}
        for i in sorted(free - gathered):
            site = self.sites[i]
            norm = site.norm
            if isinstance(norm, (Hook, Parametrization)):
                (v, g), dim = site.tensors(), dim_of(norm)
                if _is_plain(v, g, dim):
                    chosen.setdefault((v.dtype, v.device), []).append((norm, v, g, dim))
        frame = open_frames.open(model, sys._getframe(1))
        for layers in chosen.values():
            _deposit(frame, layers)
        return with_token(model, args, frame)

    def _after(self, model: Module, args: Any, output: Any) -> None:
        if not torch.compiler.is_compiling():
            open_frames.close_innermost_of(model)


def _deposit(frame: Frame, layers: list[tuple[Any, Tensor, Tensor, int | None]]) -> None:
    norms, v, g, dims = zip(*layers, strict=True)
    try:
        outputs = weight_norm(v, g, dim=dims)
    except (RuntimeError, TypeError, ValueError):
        return  # the layer that is at fault will say so when it is called
    for norm, a, b, output in zip(norms, v, g, outputs, strict=True):
        frame.deposits[id(norm)] = _Deposit(norm, a, b, output)


def _is_known(hook: Any) -> bool:
    owner = getattr(hook, "__self__", None)
    known = isinstance(hook, (TorchHook, SpectralHook))
    return known or isinstance(owner, (FusedWeightNorm, FusedSpectralNorm))


class _Translate:
    """Loads what the other kind of weight norm, or a folded model, has saved."""

    def __init__(self, name: str, dim: int, to_hook: bool) -> None:
        names = {
            True: (f"{name}_g", f"{name}_v"),
            False: (f"parametrizations.{name}.original0", f"parametrizations.{name}.original1"),
        }
        self.name, self.dim = name, dim
        self.ours, self.theirs = names[to_hook], names[not to_hook]

    def __call__(self, module: Module, state: dict, prefix: str, *_: Any) -> None:
        ours = [prefix + name for name in self.ours]
        theirs = [prefix + name for name in self.theirs]
        plain = prefix + self.name
        if any(name in state for name in ours):
            return
        if all(name in state for name in theirs):
            for new, old in zip(ours, theirs, strict=True):
                state[new] = state.pop(old)
        elif isinstance(state.get(plain), Tensor):
            weight = state.pop(plain)
            state[ours[0]] = torch.norm_except_dim(weight, 2, self.dim)
            state[ours[1]] = weight


def fuse_weight_norm(model: Module) -> FusedWeightNorm:
    """Compute all weight-normalized weights of ``model`` by one call at each of its forwards.

    Finds every weight under torch's ``weight_norm``, of ``torch.nn.utils`` (a hook) or of
    ``torch.nn.utils.parametrizations``, in all submodules: vocoders and codecs have it on every
    layer. Parameters and state_dict keys stay what they are; loading also takes the keys of the
    other kind, and those of a folded model (``weight`` alone). A submodule that is called by
    itself, outside ``model``'s forward, computes its own weight, by the same kernels. So does a
    layer that ``torch.utils.checkpoint`` computes again, below a forward pre-hook of the user's
    that may write weights, and below FSDP; what the kernels do not take
    (sharded weights, v and g of two dtypes) is computed in plain PyTorch. A weight that a forward
    uses twice is computed once. All weights are there at the same time for as long as the forward
    runs, without a gradient, too: ``fold_weight_norm`` is for inference. One thing is not seen: a
    write through ``.data`` between the start of the model's forward and the call of the layer, by
    that ``forward`` itself, by a part's forward hook, or by a hook on all modules.

    The numbers are those of :func:`gankernels.ops.weight_norm`: torch's up to rounding, but for
    second derivatives in v, where torch (2.13, 2.14) takes the norm of v for a constant.
    Other than with torch's hook, the model can be copied (``copy.deepcopy``) and pickled after a
    forward.

    Args:
        model: the module whose forward is a pass, for instance a vocoder's generator, or a
            discriminator. Calling it again finds what was added since.

    Returns:
        A handle with ``unfuse()``, which gives the model back as it was.

    Raises:
        TypeError: if ``model`` is not a module.
        ValueError: if it has no weight-normalized weight.

    Differentiable twice; to any order under ``gankernels.backend("reference")``. Deterministic.
    Within ``torch.compile`` of the whole model, fused or not, every layer computes its weight, and
    the compiler fuses it (Salimans & Kingma 2016, arXiv 1602.07868, equation 2).
    """
    check_module("fuse_weight_norm", model)
    handle = handle_of(model)
    if handle is None and next(sites(model), None) is None:
        raise ValueError(
            "fuse_weight_norm: expected a model with weight-normalized weights, got "
            f"{type(model).__name__} with none; apply torch.nn.utils.parametrizations.weight_norm "
            "to its layers first"
        )
    if handle is None:
        handle = FusedWeightNorm(model)
    handle._fuse()
    return handle


def handle_of(model: Module) -> FusedWeightNorm | None:
    for hook in model._forward_pre_hooks.values():
        owner = getattr(hook, "__self__", None)
        if isinstance(owner, FusedWeightNorm):
            return owner
    return None
