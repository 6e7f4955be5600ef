"""The one place where weights become normalised weights: a layer alone, or a whole network's."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_vector

from gankernels import ops
from gankernels._torch import in_functorch
from gankernels.ops.spectral_norm import Order


@dataclass(frozen=True)
class Settings:
    """What a spectral normalisation was asked to be, besides n_power_iterations and eps, which
    torch keeps as attributes that can be set at any time."""

    dim: int
    order: Order
    coefficient: float | None = None
    cache_eval: bool = False
    step_scoped: bool = False

    def __post_init__(self) -> None:
        c = self.coefficient
        if c is not None and not (isinstance(c, (int, float)) and 0 < c < float("inf")):
            raise ValueError(f"spectral_norm: expected a positive, finite coefficient, got {c!r}")


class Slot:
    """What was computed last from a weight, for as long as it is valid.

    Replaced as a whole, and tied to the very tensor it was computed from, so that the replicas of
    DataParallel, which share it, never take each other's.
    """

    def __init__(self) -> None:
        self.entry: tuple[Any, ...] | None = None

    def find(self, key: tuple) -> tuple[Any, ...] | None:
        entry = self.entry
        if entry is None or entry[0]() is not key[0] or entry[1] != key[1:]:
            return None
        return entry[2:]

    def keep(self, key: tuple, *values: Any) -> None:
        self.entry = (weakref.ref(key[0]), key[1:], *values)


class Memory:
    """For ``step_scoped`` and ``cache_eval``. Copies and pickles of a module start without it."""

    def __init__(self) -> None:
        self.step = Slot()
        self.evaluation = Slot()

    def __deepcopy__(self, memo: dict) -> Memory:
        return Memory()

    def __reduce__(self) -> tuple:
        return Memory, ()


class Deposit(NamedTuple):
    """A weight that a fused model normalised for one of its modules, for the time of a forward.

    A copy or pickle of the module that is made in that time comes without.
    """

    weight: Tensor  # what it was computed from
    version: int
    output: Tensor

    def __deepcopy__(self, memo: dict) -> None:
        return None

    def __reduce__(self) -> tuple:
        return type(None), ()


def version_of(weight: Tensor) -> int:
    """What changes with every write; constant where torch does not count."""
    return 0 if torch.compiler.is_compiling() or weight.is_inference() else weight._version


def withdraw(deposit: Deposit | None, weight: Tensor) -> Tensor | None:
    """The deposit's output if it belongs to this weight as it is; a replica has one of its own."""
    if deposit is None or deposit.weight is not weight:
        return None
    if deposit.version != version_of(weight):
        return None
    if torch.is_grad_enabled() and weight.requires_grad and not deposit.output.requires_grad:
        return None  # made without a gradient, and now there is to be one
    return deposit.output


class Layer(NamedTuple):
    """A weight to normalise, now."""

    weight: Tensor
    u: Tensor
    v: Tensor
    n: int
    eps: float
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
        outputs[i] = _without_operators(layer)
        if outputs[i] is None:
            outputs[i] = _remembered(layer)
        if outputs[i] is None:
            groups.setdefault(_group(layer), []).append(i)
    for index in groups.values():
        members = [layers[i] for i in index]
        for i, output in zip(index, _normalize_group(members), strict=True):
            outputs[i] = output
    return outputs


def normalize_one(layer: Layer) -> Tensor:
    """The same for a layer alone; the common case without what only groups need."""
    s = layer.settings
    weight = layer.weight
    if not layer.training or s.step_scoped or weight.numel() == 0 or weight.is_complex():
        return normalize([layer])[0]
    outputs, _ = ops.spectral_norm(
        (rows_first(weight, s.dim),),
        (layer.u,),
        (layer.v,),
        layer.n,
        layer.eps,
        s.order,
        skipped=layer.skipped,
        coefficient=s.coefficient,
    )
    return outputs[0] if s.dim == 0 else outputs[0].movedim(0, s.dim)


def _without_operators(layer: Layer) -> Tensor | None:
    weight, s = layer.weight, layer.settings
    if weight.numel() == 0:
        return _empty(layer)
    options = s.step_scoped or s.coefficient is not None or layer.skipped is not None
    if weight.is_complex() and s.order == "v_first" and not options:
        return _bilinear(layer)
    return None


def _bilinear(layer: Layer) -> Tensor:
    # torch's hook conjugates nothing: its sigma of a complex weight is complex, and u, v are not
    # singular vectors. A drop-in gives what it gives.
    u, v = layer.u, layer.v
    weight = rows_first(layer.weight, layer.settings.dim).flatten(1)
    if layer.training:
        with torch.no_grad():
            for _ in range(layer.n):
                v.copy_(unit_vector(weight.mT @ u, dim=0, eps=layer.eps))
                u.copy_(unit_vector(weight @ v, dim=0, eps=layer.eps))
    return layer.weight / torch.dot(u.clone(), weight @ v.clone())


def _empty(layer: Layer) -> Tensor:
    # As torch has it: the products are zero, and so are the vectors that follow from them.
    if layer.training:
        layer.u.zero_()
        layer.v.zero_()
    return layer.weight.clone()


def _needs_grad(layer: Layer) -> bool:
    return layer.weight.requires_grad and torch.is_grad_enabled()


def _group(layer: Layer) -> tuple:
    weight, s = layer.weight, layer.settings
    iterates = layer.training and not _moved(layer)
    same = (weight.dtype, weight.device, _needs_grad(layer), s.coefficient, _is_step_scoped(layer))
    return (*same, iterates, layer.n, layer.eps, s.order, layer.skipped is None)


def _normalize_group(layers: list[Layer]) -> list[Tensor]:
    s = layers[0].settings
    weights = [rows_first(layer.weight, layer.settings.dim) for layer in layers]
    u, v = [layer.u for layer in layers], [layer.v for layer in layers]
    grad, iterates = _needs_grad(layers[0]), layers[0].training and not _moved(layers[0])
    scoped = _is_step_scoped(layers[0])
    vectors: tuple[Sequence[Tensor], Sequence[Tensor], Tensor | None]
    if iterates:
        skipped = _counters(layers)
        step = layers[0].n, layers[0].eps, s.order
        if not scoped:
            outputs, _ = ops.spectral_norm(
                weights, u, v, *step, skipped=skipped, coefficient=s.coefficient
            )
            _count(layers, skipped)
            return _finish(layers, outputs)
        vectors = ops.unpack(ops.power_iteration_(weights, u, v, *step, skipped=skipped), weights)
        _count(layers, skipped)
    elif layers[0].training:  # of a step whose iteration is done
        kept = [layer.memory.step.find(_step_key(layer))[0] for layer in layers]  # type: ignore[index]
        vectors = [k[0] for k in kept], [k[1] for k in kept], torch.stack([k[2] for k in kept])
    elif grad:  # the gradient must not see what later iterations make of the buffers
        vectors = [x.clone() for x in u], [x.clone() for x in v], None
    else:
        vectors = u, v, None
    outputs, _ = ops.spectral_normalize(
        weights,
        *vectors,
        coefficient=s.coefficient,
        retain=scoped and grad,
        guard=layers[0].skipped is not None,
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


def _can_remember(layer: Layer) -> bool:
    if torch.compiler.is_compiling() or in_functorch():
        return False
    return not (layer.weight.is_inference() or layer.u.is_inference())


def _is_step_scoped(layer: Layer) -> bool:
    if not (layer.settings.step_scoped and layer.training) or not _can_remember(layer):
        return False
    return not torch.is_inference_mode_enabled()


def _moved(layer: Layer) -> bool:
    """Whether this step's iteration is done."""
    return _is_step_scoped(layer) and layer.memory.step.find(_step_key(layer)) is not None


def _caches_eval(layer: Layer) -> bool:
    if not layer.settings.cache_eval or layer.training or _needs_grad(layer):
        return False
    return _can_remember(layer)


def _remembered(layer: Layer) -> Tensor | None:
    if _is_step_scoped(layer):
        entry = layer.memory.step.find(_step_key(layer))
        if entry is None:
            return None
        _, with_grad, without = entry
        if _needs_grad(layer):
            return with_grad
        return without if with_grad is None else with_grad.detach()
    if _caches_eval(layer):
        entry = layer.memory.evaluation.find(_eval_key(layer))
        return None if entry is None else entry[0]
    return None


def _remember(layers: list[Layer], vectors: tuple, outputs: list[Tensor]) -> None:
    for i, (layer, output) in enumerate(zip(layers, outputs, strict=True)):
        if _is_step_scoped(layer):
            values = (output, None) if _needs_grad(layer) else (None, output)
            own = vectors[0][i], vectors[1][i], vectors[2][i]
            layer.memory.step.keep(_step_key(layer), own, *values)
        elif _caches_eval(layer) and not torch.is_inference_mode_enabled():
            layer.memory.evaluation.keep(_eval_key(layer), output)


def checked_init_iterations(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"spectral_norm: expected init_iterations of 0 or more, got {n!r}")
    return n


def warm_up(layer: Layer, n: int) -> None:
    """Move u and v by n iterations, whatever the mode."""
    if layer.weight.numel() == 0:
        _empty(layer._replace(training=n > 0))
    elif n > 0:
        s = layer.settings
        weight = rows_first(layer.weight.detach(), s.dim)
        # A guarded layer keeps its u and v here too; what counts are its forwards.
        skipped = None if layer.skipped is None else torch.zeros_like(layer.skipped)
        ops.power_iteration_([weight], [layer.u], [layer.v], n, layer.eps, s.order, skipped=skipped)
