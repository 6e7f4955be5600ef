"""Spectral norms of at most a bound, by a projection after the optimizer's step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Module
from torch.nn.parameter import is_lazy

from gankernels import ops
from gankernels._checks import check_count, check_floats, check_number, check_tensors, kind
from gankernels._dtypes import accumulation_dtype
from gankernels.ops._checks.spectral_norm import check_eps, check_steps
from gankernels.spectral_norm import sharded
from gankernels.spectral_norm.layer import Layer, Memory, Settings
from gankernels.spectral_norm.sharded import is_sharded

#: The least number of steps from a v that has seen no weight.
_FIRST_STEPS = 15
#: The steps after which a tolerance is given up: on average over starts, sigma of the least
#: favorable matrix with a million columns is found up to 0.1 % then (Kuczynski, Wozniakowski 1992).
_MOST_STEPS = 8192

_SETTINGS = Settings(0, "u_first")


class SpectralNormClip:
    """``W * min(1, max_norm / sigma)`` for all matrices among some parameters, step after step.

    ::

        clip = gankernels.SpectralNormClip(D.parameters(), max_norm=1.0)
        ...
        optimizer.step()
        clip.step()

    A parameter of two dimensions and more is a matrix of its first dimension times all others, as
    spectral normalization takes it; others, such as biases, are passed over. sigma is found by the
    power method, which goes on from where the step before has left it; the first takes at least 15
    iterations. One a step follows weights that move slowly. Where they do not, another singular
    value can overtake the one that is followed, and be some percent above the bound for some steps:
    ``tol=1e-3`` finds it, with two or three iterations a step on average.

    **After a step no sigma is above max_norm**, up to two errors: the power method never exceeds
    sigma and may fall short of it, by no more than about ``tol`` where that is given; and the
    weights are rounded to their dtype. A weight within the bound keeps its value.

    All tensors of one dtype and device share one call. Without ``tol`` nothing is waited for; with
    it the device is waited for once a check. Shards of FSDP2 (``DTensor``) stay where they are: an
    iteration is one or two all-reduces, and all ranks call ``step()``. Where ranks have whole
    weights, as under DDP, all compute the same, as nothing is random.

    The weights are written in place, and counted: as with every write in place, a graph that was
    made before needs to be made anew. Weights that are zero, or not finite, are left as they are,
    and so is what their iteration goes on from.

    Args:
        parameters: a tensor or an iterable of tensors, such as ``D.parameters()``: float32,
            float64, bfloat16 or float16, of any strides. Of a transposed convolution
            ``weight.movedim(1, 0)`` has the output channels first.
        max_norm: the bound.
        n_power_iterations: steps of the power method, 1 to 1,000,000.
        tol: where given, the steps are doubled until sigma rises by no more than this times
            itself, or 8,192 are taken.
        eps: the least norm that a vector is divided by; not negative.

    Raises:
        TypeError: if the parameters are not floating-point tensors, or an argument is of another
            type than these; for a module; for a DTensor that is laid out in another way than in
            shards along dimensions, or replicated.
        ValueError: if there is no matrix, if one is computed from others (``module.weight`` under
            spectral normalization, for one) or has no memory, or for a number out of its range.

    Not differentiated. Deterministic. Gouk et al. 2018 (arXiv 1804.04368), algorithm 1; Behrmann
    et al. 2019 (arXiv 1811.00995), section 2.1, for normalizing flows.
    """

    def __init__(
        self,
        parameters: Tensor | Iterable[Tensor],
        max_norm: float = 1.0,
        *,
        n_power_iterations: int = 1,
        tol: float | None = None,
        eps: float = 1e-12,
    ) -> None:
        op = type(self).__name__
        _check_numbers(op, max_norm, n_power_iterations, tol, eps)
        self.matrices = _matrices(op, parameters)
        self.max_norm = max_norm
        self.n_power_iterations = n_power_iterations
        self.tol = tol
        self.eps = eps
        self._steps = 0
        generator = torch.Generator().manual_seed(0)  # the same on all ranks
        self._v = [torch.randn(_sides(w)[1], generator=generator) for w in self.matrices]
        self._groups()  # refuses what no call takes

    @torch.no_grad()
    def step(self) -> Tensor:
        """Clip every matrix, in place.

        Returns:
            The sigma of every matrix as it was before, (L,), in the order of the parameters, on the
            device of the first: 0 of a matrix of zeros or without elements, not finite of one that
            is not. ``sigma.clamp(max=max_norm)`` are those after it.
        """
        n = self.n_power_iterations if self._steps else max(self.n_power_iterations, _FIRST_STEPS)
        groups = self._groups()
        norms = [self._norms(index, n) for index in groups]
        self._steps += 1
        sigma = [torch.zeros(1, device=w.device) for w in self.matrices]
        for index, found in zip(groups, norms, strict=True):
            above = torch.isfinite(found) & (found > self.max_norm)
            scales = torch.where(above, self.max_norm / found, 1).split(1)
            for i, norm, scale in zip(index, found.split(1), scales, strict=True):
                weight = self.matrices[i]
                # Not of no dimension: it would be rounded to bfloat16 before the product.
                _local(weight).mul_(scale)
                if _local(weight) is not weight:
                    increment_version(weight)
                sigma[i] = norm
        return torch.cat([s.to(sigma[0].device) for s in sigma])

    def state_dict(self) -> dict[str, Any]:
        """How many steps were taken, and the right vector of every matrix."""
        return {"steps": self._steps, "v": list(self._v)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another of the same parameters was.

        Raises:
            TypeError, ValueError: if it is no such state; nothing is loaded then.
        """
        op = type(self).__name__
        if not isinstance(state, Mapping) or set(state) != {"steps", "v"}:
            keys = f" with {sorted(map(str, state))}" if isinstance(state, Mapping) else ""
            raise TypeError(
                f"{op}: expected the state_dict of another {op}, got {kind(state)}{keys}"
            )
        check_count(op, "steps", state["steps"], least=0)
        check_tensors(op, "v", state["v"])
        wanted = [(_sides(w)[1],) for w in self.matrices]
        got = [tuple(v.shape) for v in state["v"]]
        if got != wanted:
            raise ValueError(
                f"{op}: expected the state of the same parameters, with v of shapes {wanted}, got "
                f"{got}"
            )
        self._steps, self._v = state["steps"], [v.clone() for v in state["v"]]

    def _groups(self) -> list[list[int]]:
        """The matrices that have elements, by what they must agree in to share a call."""
        groups: dict[tuple, list[int]] = {}
        for i, weight in enumerate(self.matrices):
            if weight.numel() > 0:
                key: tuple | None = weight.dtype, weight.device
                if is_sharded(weight):
                    key = sharded.group_of(self._layer(i, self._vector(i), self._vector(i), 1))
                if key is None:
                    placements: Any = weight.placements  # type: ignore[attr-defined]
                    raise TypeError(
                        f"{type(self).__name__}: expected DTensors that are replicated, or in "
                        f"shards along dimensions, got one of placements {tuple(placements)}; "
                        "redistribute it to Shard(0)"
                    )
                groups.setdefault(key, []).append(i)
        return list(groups.values())

    def _norms(self, index: Sequence[int], n: int) -> Tensor:
        """sigma of matrices that share a call."""
        sigma = self._iterate(index, n)
        if self.tol is None:
            return sigma
        tol = max(self.tol, 4 * torch.finfo(sigma.dtype).eps)
        rising = list(range(len(index)))
        while rising and n < _MOST_STEPS:
            # What n steps have not found yet is no more than what n others add.
            more = self._iterate([index[k] for k in rising], n)
            still = (more - sigma[rising] > tol * more).tolist()
            sigma[rising] = more
            rising = [k for k, rises in zip(rising, still, strict=True) if rises]
            n *= 2
        return sigma

    def _iterate(self, index: Sequence[int], n: int) -> Tensor:
        """sigma after n steps; moves v, but where sigma is then zero or not finite."""
        weights = [self.matrices[i] for i in index]
        rows, cols = zip(*map(_sides, weights), strict=True)
        before = torch.cat([self._vector(i) for i in index])
        after = before.clone()
        u, v = after.new_empty(sum(rows)).split(rows), after.split(cols)
        if is_sharded(weights[0]):
            layers = [self._layer(i, x, y, n) for i, x, y in zip(index, u, v, strict=True)]
            moved = sharded.power_iteration_(layers, None)
            sigma = torch.cat([found for _, _, found in moved if found is not None])
        else:
            whole = [_local(w) for w in weights]
            sigma = ops.power_iteration_(whole, u, v, n, self.eps).sigma
        good = (torch.isfinite(sigma) & (sigma > 0)).split(1)
        moves = torch.cat([x.expand(size) for x, size in zip(good, cols, strict=True)])
        kept = torch.where(moves, after, before).split(cols)
        for i, vector in zip(index, kept, strict=True):
            self._v[i] = vector
        return sigma

    def _vector(self, i: int) -> Tensor:
        weight = self.matrices[i]
        return self._v[i].to(weight.device, accumulation_dtype(weight.dtype))

    def _layer(self, i: int, u: Tensor, v: Tensor, n: int) -> Layer:
        return Layer(self.matrices[i], u, v, n, self.eps, _SETTINGS, True, Memory(), None)


def clip_spectral_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float = 1.0,
    *,
    n_power_iterations: int = 15,
    tol: float | None = 1e-3,
    eps: float = 1e-12,
) -> Tensor:
    """``W * min(1, max_norm / sigma)`` for all matrices among some parameters, in place, once.

    For training, where it happens after every step, :class:`SpectralNormClip` has what this has not
    to begin from: where the power method was the last time. This begins anew with every call, and
    takes 30 iterations or more to come within ``tol``; on a GPU it waits for each check.
    ``tol=None`` takes ``n_power_iterations`` and waits for nothing.

    Args:
        parameters: see :class:`SpectralNormClip`, as for what follows.
        max_norm: the bound.
        n_power_iterations: steps of the power method; 15 where fewer are given.
        tol: where given, the steps are doubled until sigma rises by no more than this times
            itself, or 8,192 are taken.
        eps: the least norm that a vector is divided by; not negative.

    Returns:
        The sigma of every matrix as it was before, (L,); see :meth:`SpectralNormClip.step`.

    Raises:
        TypeError, ValueError: as :class:`SpectralNormClip`; nothing is changed then.

    Not differentiated. Deterministic. Gouk et al. 2018 (arXiv 1804.04368), algorithm 1.
    """
    _check_numbers("clip_spectral_norm_", max_norm, n_power_iterations, tol, eps)
    matrices = _matrices("clip_spectral_norm_", parameters)
    clip = SpectralNormClip(
        matrices, max_norm, n_power_iterations=n_power_iterations, tol=tol, eps=eps
    )
    return clip.step()


def _local(weight: Any) -> Tensor:
    """What this rank has of a DTensor; other weights as they are."""
    return weight if getattr(weight, "placements", None) is None else weight.to_local()  # type: ignore[no-any-return]


def _sides(weight: Tensor) -> tuple[int, int]:
    """The rows and columns of a weight as a matrix."""
    return weight.shape[0], math.prod(weight.shape[1:])


def _check_numbers(op: str, max_norm: object, n: object, tol: object, eps: object) -> None:
    check_number(op, "max_norm", max_norm, positive=True)
    check_steps(op, "n_power_iterations", n)
    if tol is not None:
        check_number(op, "tol", tol, positive=True)
    check_eps(op, eps)


def _matrices(op: str, parameters: object) -> list[Tensor]:
    """The matrices among some parameters, each once."""
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    elif not isinstance(parameters, Iterable) or isinstance(parameters, Module):
        raise TypeError(
            f"{op}: expected a tensor or an iterable of tensors, got {kind(parameters)}; pass "
            "D.parameters()"
        )
    found: dict[Tensor, None] = {}
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            raise TypeError(
                f"{op}: expected a tensor or an iterable of tensors, got one of {kind(parameter)}; "
                "pass D.parameters()"
            )
        if is_lazy(parameter) or parameter.is_meta:
            raise ValueError(
                f"{op}: expected weights with values, got one of a lazy module or on the meta "
                "device; call the model once, or load its weights, before"
            )
        if parameter.dim() < 2:
            continue
        check_floats(op, "weights", parameter)
        base = parameter._base
        if not (parameter.is_leaf or (base is not None and base.is_leaf)):
            raise ValueError(
                f"{op}: expected weights that are stored, got one of shape "
                f"{tuple(parameter.shape)} that is computed from others, as under "
                "parametrizations: clipping it would be lost; pass D.parameters()"
            )
        found[parameter] = None
    if not found:
        raise ValueError(
            f"{op}: expected at least one weight of two dimensions or more, got none; an iterator "
            "such as D.parameters() can be gone through only once"
        )
    return list(found)


__all__ = ["SpectralNormClip", "clip_spectral_norm_"]
