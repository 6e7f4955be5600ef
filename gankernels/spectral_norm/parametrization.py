"""Drop-in for ``torch.nn.utils.parametrizations.spectral_norm``."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from gankernels.reference.spectral_norm import unit_vector
from gankernels.spectral_norm._fused.deposits import give_back, take
from gankernels.spectral_norm.hook import check_arguments, check_shards, default_dim
from gankernels.spectral_norm.layer import CompiledDeposit, Layer, Memory, Settings, counter_of
from gankernels.spectral_norm.models.first_reads import FirstReads
from gankernels.spectral_norm.normalizer import checked_init_iterations, normalize_one, warm_up
from gankernels.spectral_norm.sharded import share_, vector_of

M = TypeVar("M", bound=Module)


class SpectralNorm(Module):
    """The parametrization: W to W / sigma. Its buffers ``_u``, ``_v`` are those of torch's."""

    _u: Tensor
    _v: Tensor
    _skipped: Tensor
    _fused: CompiledDeposit | None = None  # the weight in the trace of a compiled fused model

    def __init__(self, n: int, eps: float, settings: Settings, *, guard: bool = False) -> None:
        super().__init__()
        self.n_power_iterations = n
        self.eps = eps
        self.dim = settings.dim
        self.settings = settings
        self.guard = guard
        self.memory = Memory()
        self._first_reads: FirstReads | None = FirstReads()  # until the module is called

    @classmethod
    def of(
        cls,
        weight: Tensor,
        n: int,
        eps: float,
        settings: Settings,
        *,
        guard: bool = False,
        init_iterations: int = 15,
    ) -> SpectralNorm:
        """For this weight: draws u and v, and takes the first steps."""
        self = cls(n, eps, settings, guard=guard)
        if weight.ndim < 2:  # a vector's norm is exact and needs no u, v
            return self
        weight = weight.detach()
        shape = list(weight.shape)
        u = share_(weight, vector_of(weight, shape.pop(settings.dim)).normal_(0, 1))
        v = share_(weight, vector_of(weight, math.prod(shape)).normal_(0, 1))
        self.register_buffer("_u", unit_vector(u, eps))
        self.register_buffer("_v", unit_vector(v, eps))
        if guard:
            skipped = weight.new_zeros(1, dtype=torch.int64)  # of a subclass, if the weight is
            self.register_buffer("_skipped", skipped, persistent=False)
        warm_up(self.layer(weight), init_iterations)
        return self

    def layer(self, weight: Tensor) -> Layer:
        buffers: Any = self._buffers  # reading them from the module takes twice as long
        skipped = counter_of(self, "_skipped", weight) if self.guard else None
        return Layer(
            weight,
            buffers["_u"],
            buffers["_v"],
            self.n_power_iterations,
            self.eps,
            self.settings,
            self.training,
            self.memory,
            skipped,
        )

    def forward(self, weight: Tensor) -> Tensor:
        if weight.ndim == 1:
            return unit_vector(weight, self.eps)
        if torch.compiler.is_compiling():
            deposit = self._fused
            if deposit is not None and deposit.weight is weight:
                self._fused = None
                return deposit.output
            return normalize_one(self.layer(weight))
        buffers: Any = self._buffers
        output = take(self, weight, buffers["_u"], buffers["_v"], self.training)
        if output is None:
            output = normalize_one(self.layer(weight))
        if self._first_reads is not None and not self._first_reads.notice(output):
            self._first_reads = None
        return output

    def __getstate__(self) -> dict[str, Any]:
        give_back(self)  # a copy that is made within a forward has the u and v of today
        return super().__getstate__()  # type: ignore[no-any-return]

    def before_state_dict(self, *_: Any) -> None:
        """Undo unused moves of u and v, for a state_dict that is taken within a forward."""
        give_back(self)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value

    def extra_repr(self) -> str:
        s = self.settings
        arguments = {
            "n_power_iterations": self.n_power_iterations if self.n_power_iterations != 1 else None,
            "max_norm": s.max_norm,
            "guard": self.guard,
            "cache_eval": s.cache_eval,
            "step_scoped": s.step_scoped,
            "trust_versions": s.trust_versions,
        }
        return ", ".join(f"{key}={value}" for key, value in arguments.items() if value)


def spectral_norm(
    module: M,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
    *,
    max_norm: float | None = None,
    guard: bool = False,
    init_iterations: int = 15,
    cache_eval: bool = False,
    step_scoped: bool = False,
    trust_versions: bool = False,
) -> M:
    """Normalize ``module.weight`` by its spectral norm whenever it is accessed.

    A drop-in for :func:`torch.nn.utils.parametrizations.spectral_norm`: the same numbers, random
    draws, state_dict (``parametrizations.weight.original``, ``parametrizations.weight.0._u``,
    ``parametrizations.weight.0._v``) and errors. ``torch.nn.utils.parametrize`` removes it.

    Args:
        module: a module with a parameter or buffer ``name``; float32, float64, bfloat16, float16,
            and, slower, complex. One-dimensional weights are divided by their norm.
        name: the parameter's name.
        n_power_iterations: steps of the power method at every access in training mode, 1 to
            1,000,000.
        eps: added to no norm, but their least value in a division; not negative.
        dim: the dimension of the output channels; 1 for transposed convolutions, else 0.
        max_norm: where given, the weight is ``W * min(1, max_norm / sigma)`` instead; for
            weights of two dimensions and more.
        guard: keep u and v where an iteration would make them zero or not finite (a zero weight, an
            overflow), and divide by 1 that time. Decided on the device; the parametrization's
            ``_skipped``, a buffer that is not in the state_dict, counts.
        init_iterations: steps to take at once.
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
        ValueError: if there is no such parameter or buffer; if ``n_power_iterations`` is not
            positive or above 1,000,000, or max_norm not positive and finite.
        TypeError: if an argument is of another type than these; for a weight that is sparse,
            nested, quantized or split over ranks.
        IndexError: if ``dim`` is out of range.
        RuntimeError: for a lazy module.

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
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    ndim = weight.ndim
    if not -ndim <= dim < ndim:
        raise IndexError(
            "Dimension out of range (expected to be in range of "
            f"[-{ndim}, {ndim - 1}] but got {dim})"
        )
    if n_power_iterations <= 0:
        raise ValueError(
            "Expected n_power_iterations to be positive, but "
            f"got n_power_iterations={n_power_iterations}"
        )
    if not isinstance(weight, UninitializedParameter):
        check_shards(name, weight, step_scoped=step_scoped, cache_eval=cache_eval)
    settings = Settings(dim % ndim, "u_first", max_norm, cache_eval, step_scoped, trust_versions)
    first = checked_init_iterations(init_iterations)
    spectral = SpectralNorm.of(
        weight, n_power_iterations, eps, settings, guard=guard, init_iterations=first
    )
    parametrize.register_parametrization(module, name, spectral)
    return module


__all__ = ["SpectralNorm", "spectral_norm"]
