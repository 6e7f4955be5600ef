"""Plain weights W / sigma, for export and for averages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm as TorchHook

from gankernels._checks import check_bool, check_module
from gankernels.spectral_norm._fused.deposits import open_frames
from gankernels.spectral_norm.fuse import handle_of
from gankernels.spectral_norm.hook import remove_spectral_norm
from gankernels.spectral_norm.sharded import fsdp_modules
from gankernels.spectral_norm.sites import NORMS, evaluated, normalized_by

M = TypeVar("M", bound=Module)


def fold_spectral_norm(model: M, *, inplace: bool = False) -> M:
    """``model`` with plain weights W / sigma, for export or for averaging weights.

    u and v do not move, and the weights are those of ``eval()``. The state_dict has plain keys.
    Other parametrizations of a spectrally normalized weight are folded with it. A folded weight is
    a new parameter: whoever shares the old one, with or without a normalization, keeps it as it is.

    Args:
        model: with torch's or our ``spectral_norm``, fused or not.
        inplace: change ``model`` itself instead of a copy. An optimizer goes on to have the old
            parameters.

    Raises:
        TypeError: if ``model`` is not a module, or ``inplace`` not True or False.
        ValueError: for a model that FSDP2 has sharded.
    """
    model = unfused("fold_spectral_norm", model, inplace, handle_of)
    for module in list(model.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, TorchHook):
                _fold_hook(module, hook)
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                chain = module.parametrizations[name]  # type: ignore[index]
                if any(isinstance(link, NORMS) for link in chain):
                    bake(module, name)
    return model


def unfused(op: str, model: M, inplace: bool, handle_of: Callable[[Module], Any]) -> M:
    """The model to fold, or a copy, in the name of ``op``; without what ``handle_of`` finds."""
    check_module(op, model)
    check_bool(op, "inplace", inplace)
    if fsdp_modules(model):
        raise ValueError(
            f"{op}: expected a model without fully_shard, which torch does not copy; "
            "load its whole state_dict (torch.distributed.checkpoint.state_dict, "
            "full_state_dict=True) into a model that is not sharded, and fold that"
        )
    if not inplace:
        model = copy.deepcopy(model, _copies_of_computed(model))
    for module in model.modules():
        handle = handle_of(module)
        if handle is not None:
            handle.unfuse()
    return model


def _copies_of_computed(model: Module) -> dict[int, Any]:
    """For deepcopy: what hooks have stored, of weight_norm for instance, as plain tensors, also in
    the lists of recurrent layers. Autograd refuses to copy tensors with a history."""
    values: list[Any] = []
    for module in model.modules():
        for value in [*vars(module).values(), *module._buffers.values()]:
            values += value if isinstance(value, (list, tuple)) else [value]
    computed = [x for x in values if isinstance(x, Tensor) and not x.is_leaf]
    return {id(x): x.detach().clone() for x in computed}


def _fold_hook(module: Module, hook: TorchHook) -> None:
    original = f"{hook.name}_orig"
    if parametrize.is_parametrized(module, original):
        bake(module, original)
    wanted = getattr(module, original).requires_grad
    remove_spectral_norm(module, hook.name)
    getattr(module, hook.name).requires_grad_(wanted)


def bake(module: Module, name: str) -> None:
    """Make a parametrized tensor a plain one of its own, with its value of ``eval()``."""
    chain: Any = module.parametrizations[name]  # type: ignore[index]
    value = evaluated(chain).detach().clone()
    tensors = [p for p in chain._parameters.values() if p is not None]
    wanted = any(p.requires_grad for p in tensors)
    is_parameter = bool(tensors)
    for link in chain:
        if isinstance(link, NORMS):
            link.eval()  # removing reads the weight
    _own_class(module)
    if not chain.is_tensor:
        parametrize.remove_parametrizations(module, name)
    else:
        parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    if is_parameter:
        setattr(module, name, torch.nn.Parameter(value, wanted))
    else:
        setattr(module, name, value)


def _own_class(module: Module) -> None:
    # Copies of a parametrized module share its class, and removing takes the property off the
    # class.
    shared = type(module)
    namespace = {k: v for k, v in vars(shared).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(shared.__name__, shared.__bases__, namespace)


@torch.no_grad()
def folded_tensors(model: Module) -> dict[str, Tensor]:
    """The parameters and buffers of the folded model by name, and those that folding takes away."""
    open_frames.close_interrupted()
    tensors: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
                if any(isinstance(link, NORMS) for link in chain):
                    tensors[prefix + name] = evaluated(chain)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, TorchHook):
                tensors[prefix + hook.name] = normalized_by(hook, module)
    return tensors
