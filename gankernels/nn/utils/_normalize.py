"""The one place where weights become normalised weights: a layer alone, or a whole network's."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gankernels import ops
from gankernels.ops.spectral_norm import Order


@dataclass(frozen=True)
class Settings:
    """What a spectral normalisation was asked to be."""

    n_power_iterations: int
    eps: float
    dim: int
    order: Order
    coefficient: float | None = None
    cache_eval: bool = False
    step_scoped: bool = False

    def __post_init__(self) -> None:
        c = self.coefficient
        if c is not None and not (isinstance(c, (int, float)) and 0 < c < float("inf")):
            raise ValueError(f"spectral_norm: expected a positive, finite coefficient, got {c!r}")


class Memory:
    """The weight that a layer computed last, and what it was computed from.

    Only for ``cache_eval`` and ``step_scoped``. Copies and pickles of a module start without it. The
    entry is replaced as a whole, and belongs to the very weight tensor it was computed from, so that
    the replicas of DataParallel, which share it, never take each other's.
    """

    def __init__(self) -> None:
        self.entry: tuple[Any, ...] | None = None

    def __deepcopy__(self, memo: dict) -> Memory:
        return Memory()

    def __reduce__(self) -> tuple:
        return Memory, ()

    def find(self, key: tuple) -> tuple[Any, ...] | None:
        entry = self.entry
        return entry if entry is not None and entry[0]() is key[0] and entry[1] == key[1:] else None

    def keep(self, key: tuple, *values: Any) -> None:
        self.entry = (weakref.ref(key[0]), key[1:], *values)

    def clear(self) -> None:
        self.entry = None


class Layer(NamedTuple):
    """A weight to normalise, now."""

    weight: Tensor
    u: Tensor
    v: Tensor
    settings: Settings
    training: bool
    memory: Memory
    skipped: Tensor | None  # int64 (1,): guarded, and how often the guard kept u and v


def normalize(layers: Sequence[Layer]) -> list[Tensor]:
    """W / sigma for every layer; u and v of the layers in training move first.

    One call of the operators for all layers that can share it.
    """
    outputs: list[Any] = [None] * len(layers)
    groups: dict[tuple, list[int]] = {}
    for i, layer in enumerate(layers):
        outputs[i] = _remembered(layer)
        if outputs[i] is None:
            groups.setdefault(_group(layer), []).append(i)
    for index in groups.values():
        members = [layers[i] for i in index]
        for i, output in zip(index, _normalize_group(members), strict=True):
            outputs[i] = output
    return outputs


def _needs_grad(layer: Layer) -> bool:
    return layer.weight.requires_grad and torch.is_grad_enabled()


def _group(layer: Layer) -> tuple:
    weight, s = layer.weight, layer.settings
    iterates = layer.training and not _moved(layer)
    same = (weight.dtype, weight.device, _needs_grad(layer), s.coefficient, _is_step_scoped(layer))
    return (*same, iterates, s.n_power_iterations, s.eps, s.order, layer.skipped is None)


def _normalize_group(layers: list[Layer]) -> list[Tensor]:
    s = layers[0].settings
    weights = [rows_first(layer.weight, layer.settings.dim) for layer in layers]
    u, v = [layer.u for layer in layers], [layer.v for layer in layers]
    grad, iterates = _needs_grad(layers[0]), layers[0].training and not _moved(layers[0])
    scoped = _is_step_scoped(layers[0])
    if iterates:
        skipped = _counters(layers)
        step = s.n_power_iterations, s.eps, s.order
        if not scoped:
            outputs, _ = ops.spectral_norm(
                weights, u, v, *step, skipped=skipped, coefficient=s.coefficient
            )
            _count(layers, skipped)
            return _finish(layers, outputs)
        vectors = ops.unpack(ops.power_iteration_(weights, u, v, *step, skipped=skipped), weights)
        _count(layers, skipped)
    elif layers[0].training:  # of a step whose iteration is done
        kept = [layer.memory.entry[2] for layer in layers]  # type: ignore[index]
        vectors = [k[0] for k in kept], [k[1] for k in kept], torch.stack([k[2] for k in kept])
    elif grad:  # the gradient must not see what later iterations make of the buffers
        vectors = [x.clone() for x in u], [x.clone() for x in v], None
    else:
        vectors = u, v, None
    outputs, _ = ops.spectral_normalize(
        weights, *vectors, coefficient=s.coefficient, retain=scoped and grad
    )
    outputs = _finish(layers, outputs)
    _remember(layers, vectors, outputs)
    return outputs


def rows_first(weight: Tensor, dim: int) -> Tensor:
    return weight if dim == 0 else weight.movedim(dim, 0)


def _finish(layers: list[Layer], outputs: Sequence[Tensor]) -> list[Tensor]:
    dims = [layer.settings.dim for layer in layers]
    return [w if d == 0 else w.movedim(0, d) for w, d in zip(outputs, dims, strict=True)]


# --- guard -------------------------------------------------------------------------------------


def _counters(layers: list[Layer]) -> Tensor | None:
    first = layers[0].skipped
    if first is None or len(layers) == 1:
        return first
    return first.new_zeros(len(layers))


def _count(layers: list[Layer], skipped: Tensor | None) -> None:
    if skipped is not None and len(layers) > 1:
        for layer, new in zip(layers, skipped.split(1), strict=True):
            assert layer.skipped is not None
            layer.skipped.add_(new)


# --- memory ------------------------------------------------------------------------------------


def _step_key(layer: Layer) -> tuple:
    return layer.weight, layer.weight._version, layer.weight.data_ptr()


def _eval_key(layer: Layer) -> tuple:
    vectors = [(x._version, x.data_ptr()) for x in (layer.u, layer.v)]
    return *_step_key(layer), *vectors, layer.weight.dtype


def _is_step_scoped(layer: Layer) -> bool:
    if not (layer.settings.step_scoped and layer.training) or torch.compiler.is_compiling():
        return False
    return not (layer.weight.is_inference() or torch.is_inference_mode_enabled())


def _moved(layer: Layer) -> bool:
    """Whether this step's iteration is done."""
    return _is_step_scoped(layer) and layer.memory.find(_step_key(layer)) is not None


def _caches_eval(layer: Layer) -> bool:
    if not layer.settings.cache_eval or layer.training or _needs_grad(layer):
        return False
    if torch.compiler.is_compiling():
        return False
    return not (layer.weight.is_inference() or layer.u.is_inference())


def _remembered(layer: Layer) -> Tensor | None:
    s = layer.settings
    if not (s.step_scoped or s.cache_eval):
        return None
    if _is_step_scoped(layer):
        entry = layer.memory.find(_step_key(layer))
        if entry is None:
            return None
        with_grad, without = entry[3:]
        if _needs_grad(layer):
            return with_grad
        return without if with_grad is None else with_grad.detach()
    if _caches_eval(layer):
        entry = layer.memory.find(_eval_key(layer))
        return None if entry is None else entry[2]
    return None


def _remember(layers: list[Layer], vectors: tuple, outputs: list[Tensor]) -> None:
    for i, (layer, output) in enumerate(zip(layers, outputs, strict=True)):
        if _is_step_scoped(layer):
            values = (output, None) if _needs_grad(layer) else (None, output)
            own = vectors[0][i], vectors[1][i], vectors[2][i]
            layer.memory.keep(_step_key(layer), own, *values)
        elif _caches_eval(layer) and not torch.is_inference_mode_enabled():
            layer.memory.keep(_eval_key(layer), output)


def warm_up(layer: Layer, n: int) -> None:
    """Move u and v by n iterations, whatever the mode."""
    s = layer.settings
    weight = rows_first(layer.weight.detach(), s.dim)
    ops.power_iteration_([weight], [layer.u], [layer.v], n, s.eps, s.order)


__all__ = ["Layer", "Memory", "Settings", "normalize", "rows_first", "warm_up"]
