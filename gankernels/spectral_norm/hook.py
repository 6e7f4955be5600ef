"""Drop-in for ``torch.nn.utils.spectral_norm``: the version that works by a forward pre-hook."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.utils.spectral_norm import SpectralNorm as TorchSpectralNorm
from torch.nn.utils.spectral_norm import (
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.spectral_norm import remove_spectral_norm as torch_remove_spectral_norm

from gankernels._checks import check_bool, kind
from gankernels._fused.computed import copyable
from gankernels.ops._checks.spectral_norm import check_eps, check_steps, check_weight, is_integer
from gankernels.reference.spectral_norm import unit_vector
from gankernels.spectral_norm._fused.deposits import give_back, take
from gankernels.spectral_norm.layer import CompiledDeposit, Layer, Memory, Settings, counter_of
from gankernels.spectral_norm.normalizer import checked_init_iterations, normalize_one, warm_up
from gankernels.spectral_norm.sharded import is_sharded, share_, vector_of

M = TypeVar("M", bound=Module)


class SpectralNorm(TorchSpectralNorm):
    """The hook. A subclass of torch's, so that torch's own functions know it for what it is:
    ``torch.nn.utils.remove_spectral_norm`` removes it, and a second one is refused.
    """

    def __init__(
        self,
        name: str = "weight",
        n_power_iterations: int = 1,
        dim: int = 0,
        eps: float = 1e-12,
        *,
        settings: Settings | None = None,
        guard: bool = False,
    ) -> None:
        super().__init__(name, n_power_iterations, dim, eps)
        self.settings = Settings(dim, "v_first") if settings is None else settings
        self.guard = guard
        self.memory = Memory()
        # The module's attribute that holds the weight in the trace of a compiled fused model.
        self.deposit = f"_{name}_fused"
        self._names = f"{name}_orig", f"{name}_u", f"{name}_v"

    def layer(self, module: Module, training: bool) -> Layer:
        parameters, buffers = module._parameters, module._buffers
        original, first, second = self._names
        # Looking there takes a third of the time; a replica's, or a parametrized one, is elsewhere.
        weight = parameters.get(original)
        weight = getattr(module, original) if weight is None else weight
        u, v = buffers.get(first), buffers.get(second)
        u = getattr(module, first) if u is None else u
        v = getattr(module, second) if v is None else v
        skipped = counter_of(module, self.name + "_skipped", weight) if self.guard else None
        n, eps = self.n_power_iterations, self.eps
        return Layer(weight, u, v, n, eps, self.settings, training, self.memory, skipped)

    def compute_weight(self, module: Module, do_power_iteration: bool) -> Tensor:
        return normalize_one(self.layer(module, do_power_iteration))

    @staticmethod
    def apply(
        module: Module, name: str, n_power_iterations: int, dim: int, eps: float
    ) -> SpectralNorm:
        """Put the hook on a module, as torch's method of this name does; returns the hook."""
        return _install(module, name, n_power_iterations, dim, eps)

    def remove(self, module: Module) -> None:
        super().remove(module)
        for name in (f"{self.name}_skipped", self.deposit):
            if hasattr(module, name):
                delattr(module, name)

    def __call__(self, module: Module, inputs: Any) -> None:
        if torch.compiler.is_compiling():
            deposit: CompiledDeposit | None = getattr(module, self.deposit, None)
            if deposit is not None and deposit.weight is getattr(module, self.name + "_orig"):
                setattr(module, self.deposit, None)
                setattr(module, self.name, deposit.output)
            else:
                setattr(module, self.name, self.compute_weight(module, module.training))
            return
        layer = self.layer(module, module.training)
        weight = take(self, *layer[:3], layer.training)
        if weight is None:
            weight = normalize_one(layer)
        # The name is a plain attribute: there is nothing for Module.__setattr__ to find out.
        vars(module)[self.name] = copyable(weight)

    def __deepcopy__(self, memo: dict) -> SpectralNorm:
        # A module that is copied within a forward has its u and v copied before its hook.
        for layer in give_back(self):
            for x in (layer.u, layer.v, layer.skipped):
                twin = memo.get(id(x))
                if x is not None and twin is not None:
                    twin.copy_(x)
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def before_state_dict(self, *_: Any) -> None:
        """Undo unused moves of u and v, for a state_dict that is taken within a forward."""
        give_back(self)


def default_dim(module: Module) -> int:
    transposed = torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d
    return 1 if isinstance(module, transposed) else 0


def check_arguments(
    module: Module, name: str, n_power_iterations: int, eps: float, dim: int, **flags: bool
) -> None:
    """Refuse, in words, what torch's functions would go on with or trip over."""
    op = "spectral_norm"
    if not isinstance(module, Module):
        raise TypeError(f"{op}: expected module to be a torch.nn.Module, got {kind(module)}")
    if not isinstance(name, str):
        raise TypeError(f"{op}: expected name to be a str, got {kind(name)}")
    if isinstance(dim, bool) or not (isinstance(dim, int) or is_integer(dim)):
        raise TypeError(f"{op}: expected dim to be an int or None, got {kind(dim)}")
    if not -(2**63) <= dim < 2**63:
        raise IndexError(f"{op}: expected dim to be a dimension of the weight, got {dim}")
    if isinstance(n_power_iterations, int) and n_power_iterations <= 0:
        raise ValueError(  # torch's words
            "Expected n_power_iterations to be positive, but "
            f"got n_power_iterations={n_power_iterations}"
        )
    check_steps(op, "n_power_iterations", n_power_iterations)
    check_eps(op, eps)
    for flag, value in flags.items():
        check_bool(op, flag, value)


def check_shards(name: str, weight: Tensor, **memories: bool) -> None:
    """Refuse a weight that nothing is computed of; split over ranks, what compares its contents."""
    check_weight("spectral_norm", name, weight, shards=True)
    wanted = [option for option, value in memories.items() if value]
    if is_sharded(weight) and wanted:
        raise TypeError(
            f"spectral_norm: expected {name} to be whole on every rank with {wanted[0]}=True, got "
            f"a DTensor of placements {tuple(weight.placements)}; leave that option out"  # type: ignore[attr-defined]
        )


def spectral_norm(
    module: M,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    max_norm: float | None = None,
    guard: bool = False,
    init_iterations: int = 0,
    cache_eval: bool = False,
    step_scoped: bool = False,
    trust_versions: bool = False,
) -> M:
    """Normalize ``module.weight`` by its spectral norm in a hook before every forward.

    A drop-in for :func:`torch.nn.utils.spectral_norm`: the same numbers, random draws, state_dict
    (``weight_orig``, ``weight_u``, ``weight_v``, with its versions) and errors. Besides, a module
    can be deep-copied after a forward.

    Args:
        module: a module with a parameter ``name`` of any shape; float32, float64, bfloat16,
            float16, and, slower, complex.
        name: the parameter's name.
        n_power_iterations: steps of the power method in every forward in training mode, 1 to
            1,000,000.
        eps: added to no norm, but their least value in a division; not negative.
        dim: the dimension of the output channels; 1 for transposed convolutions, else 0.
        max_norm: where given, the weight is ``W * min(1, max_norm / sigma)`` instead.
        guard: keep u and v where an iteration would make them zero or not finite (a zero weight, an
            overflow), and divide by 1 that time. Decided on the device; ``module.weight_skipped``,
            a buffer that is not in the state_dict, counts.
        init_iterations: steps to take at once, for a useful sigma before the first training step.
        cache_eval: keep W / sigma between evaluations where no gradient is needed, for as long as
            W, u and v stay what they are: their contents are compared with copies, which takes a
            third of the time of normalizing, and once waits for a GPU. Not for tensors of inference
            mode, nor within the capture of a CUDA graph.
        step_scoped: move u and v, and compute W / sigma, only once after every change of W, which
            is once a step of the optimizer; see :func:`gankernels.fuse_spectral_norm`. W, u and v
            are compared as for ``cache_eval``.
        trust_versions: compare no contents for ``cache_eval`` and ``step_scoped``. W, u and v must
            then be written only by steps of torch's optimizers, and by writes that torch counts:
            not through ``.data``. Replays of a CUDA graph are not counted either: once a call was
            captured nothing is remembered; see :meth:`gankernels.FusedSpectralNorm.step`.

    Returns:
        ``module``.

    Raises:
        RuntimeError: if the parameter has one already; for a negative ``dim``.
        ValueError: if ``n_power_iterations`` is not positive or above 1,000,000, the parameter is
            None or of a lazy module, or max_norm is not positive and finite.
        KeyError: if there is no such parameter.
        TypeError: if an argument is of another type than these; for a weight that is sparse,
            nested, quantized or split over ranks.

    Differentiable twice. Deterministic. Miyato et al. 2018 (arXiv 1802.05957), algorithm 1.
    """
    dim = default_dim(module) if dim is None else dim
    options = {
        "guard": guard,
        "cache_eval": cache_eval,
        "step_scoped": step_scoped,
        "trust_versions": trust_versions,
    }
    check_arguments(module, name, n_power_iterations, eps, dim, **options)
    settings = Settings(dim, "v_first", max_norm, cache_eval, step_scoped, trust_versions)
    first = checked_init_iterations(init_iterations)
    fn = _install(module, name, n_power_iterations, dim, eps, settings=settings, guard=guard)
    if first > 0:
        warm_up(fn.layer(module, True), first)
    return module


def _install(
    module: Module, name: str, n_power_iterations: int, dim: int, eps: float, **options: Any
) -> SpectralNorm:
    check_arguments(module, name, n_power_iterations, eps, dim)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, TorchSpectralNorm) and hook.name == name:
            raise RuntimeError(
                f"Cannot register two spectral_norm hooks on the same parameter {name}"
            )
    fn = SpectralNorm(name, n_power_iterations, dim, eps, **options)
    weight = module._parameters[name]
    if weight is None:
        raise ValueError(f"`SpectralNorm` cannot be applied as parameter `{name}` is None")
    if isinstance(weight, torch.nn.parameter.UninitializedParameter):
        raise ValueError(
            "The module passed to `SpectralNorm` can't have uninitialized parameters. "
            "Make sure to run the dummy forward before applying spectral normalization"
        )
    s = fn.settings
    check_shards(name, weight, step_scoped=s.step_scoped, cache_eval=s.cache_eval)
    with torch.no_grad():
        rows, cols = fn.reshape_weight_to_matrix(weight).size()
        u, v = (share_(weight, vector_of(weight, n).normal_(0, 1)) for n in (rows, cols))
        u, v = unit_vector(u, eps), unit_vector(v, eps)
    delattr(module, name)
    module.register_parameter(name + "_orig", weight)
    # The name must go on to exist, and as a plain tensor: as a parameter it would be one more.
    setattr(module, name, weight.data)
    module.register_buffer(name + "_u", u)
    module.register_buffer(name + "_v", v)
    if fn.guard:
        skipped = weight.new_zeros(1, dtype=torch.int64)  # of a subclass, if the weight is
        module.register_buffer(name + "_skipped", skipped, persistent=False)
    module.register_forward_pre_hook(fn)
    module._register_state_dict_hook(SpectralNormStateDictHook(fn))
    module._register_load_state_dict_pre_hook(SpectralNormLoadStateDictPreHook(fn))
    return fn


def remove_spectral_norm(module: M, name: str = "weight") -> M:
    """Make ``module.weight`` a plain parameter again, of today's W / sigma; moves no u, v.

    A drop-in for :func:`torch.nn.utils.remove_spectral_norm`; takes away its hook as well as ours.

    Raises:
        ValueError: if the parameter has none.
    """
    module = torch_remove_spectral_norm(module, name)
    # torch leaves its load_state_dict hook, which goes on to expect u and v: it looks for the hook
    # and not for the wrapper that modules keep hooks in.
    for key, wrapper in list(module._load_state_dict_pre_hooks.items()):
        hook = getattr(wrapper, "hook", wrapper)
        if isinstance(hook, SpectralNormLoadStateDictPreHook) and hook.fn.name == name:
            del module._load_state_dict_pre_hooks[key]
    return module


__all__ = [
    "SpectralNorm",
    "SpectralNormLoadStateDictPreHook",
    "SpectralNormStateDictHook",
    "check_arguments",
    "default_dim",
    "remove_spectral_norm",
    "spectral_norm",
]
