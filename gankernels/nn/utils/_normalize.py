"""The one place where weights become normalised weights: a layer alone, or a whole network's."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from gankernels import ops
from gankernels._torch import in_functorch, in_jit_trace, is_fake
from gankernels.ops._spectral_norm_checks import check_steps
from gankernels.ops.spectral_norm import Order
from gankernels.ops.spectral_norm import warm_up as take_steps


@dataclass(frozen=True)
class Settings:
    """What a spectral normalisation was asked to be, besides n_power_iterations and eps, which
    torch keeps as attributes that can be set at any time."""

    dim: int
    order: Order
    coefficient: float | None = None
    cache_eval: bool = False
    step_scoped: bool = False
    trust_versions: bool = False

    def __post_init__(self) -> None:
        c = self.coefficient
        number = isinstance(c, (int, float)) and not isinstance(c, bool)
        if c is not None and not (number and 0 < c <= sys.float_info.max):
            raise ValueError(f"spectral_norm: expected a positive, finite coefficient, got {c!r}")


class Kept:
    """What was computed last from a weight, u and v, for as long as they are what they were.

    They are so where torch's counters and addresses say it, and, as both miss writes through
    ``.data`` and those of fused optimisers, where their contents equal copies. Replaced as a whole,
    never changed, and tied to the very tensors, so that the replicas of DataParallel, which share
    it, never take each other's.
    """

    def __init__(
        self, layer: Layer, vectors: Any, with_grad: Tensor | None, without: Tensor | None
    ) -> None:
        self.weight = layer.weight
        self.key = _key(layer)
        self.copies: list[Tensor] | None = None
        if not layer.settings.trust_versions:
            self.copies = [x.detach().clone() for x in (layer.weight, layer.u, layer.v)]
        self.vectors = vectors  # u, v and sigma that the step found; None in evaluation
        self.with_grad = with_grad
        self.without = without
        self.versions = [None if x is None else version_of(x) for x in (with_grad, without)]

    def matches(self, layer: Layer) -> bool:
        """Whether nothing was written that torch counts; what was computed included."""
        if self.weight is not layer.weight or self.key != _key(layer):
            return False
        outputs = self.with_grad, self.without
        return all(
            x is None or version_of(x) == n for x, n in zip(outputs, self.versions, strict=True)
        )

    def output(self, layer: Layer) -> Tensor | None:
        if needs_grad(layer):
            return self.with_grad
        return self.without if self.with_grad is None else self.with_grad.detach()


class Memory:
    """For ``step_scoped`` and ``cache_eval``, and what a fused model knows of a layer. Copies and
    pickles of a module start without it."""

    def __init__(self) -> None:
        self.step: Kept | None = None
        self.evaluation: Kept | None = None
        self.declined = False  # the last deposit was not used: do not make one in vain again
        self.depth = 0  # how far up the stack the fused model's call was, the last time

    def forget(self, kept: Kept) -> None:
        if self.step is kept:
            self.step = None
        if self.evaluation is kept:
            self.evaluation = None

    def __deepcopy__(self, memo: dict) -> Memory:
        return Memory()

    def __reduce__(self) -> tuple:
        return Memory, ()


#: Memories under ``trust_versions=True``, which the steps of all optimisers are announced to.
_trusting: weakref.WeakSet[Memory] = weakref.WeakSet()
_announced: list[Any] = []  # the handle of the hook, once there is one


def _announce(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    written = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for memory in list(_trusting):
        for kept in (memory.step, memory.evaluation):
            if kept is not None and id(kept.weight) in written:
                memory.forget(kept)


def _trust(memory: Memory) -> None:
    _trusting.add(memory)
    if not _announced:
        _announced.append(register_optimizer_step_post_hook(_announce))


def version_of(tensor: Tensor) -> int:
    """What changes with every write; constant where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def versions_of(tensors: Sequence[Tensor]) -> list[int]:
    try:
        return [x._version for x in tensors]
    except RuntimeError:  # of inference mode
        return [version_of(x) for x in tensors]


class CompiledDeposit(NamedTuple):
    """A weight that a compiled fused model normalised for one of its modules, in its trace."""

    weight: Tensor  # what it was computed from
    output: Tensor
    u: Tensor  # as they were, for a layer that is not called
    v: Tensor


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
    remembered = recall(layers)
    for i, (layer, kept) in enumerate(zip(layers, remembered, strict=True)):
        outputs[i] = _empty(layer) if _is_empty(layer.weight) else None
        if outputs[i] is None and kept is not None:
            outputs[i] = kept.output(layer)
        if outputs[i] is None:
            groups.setdefault(group_of(layer, kept), []).append(i)
    for index in groups.values():
        found, _ = normalize_group([layers[i] for i in index], [remembered[i] for i in index])
        for i, output in zip(index, found, strict=True):
            outputs[i] = output
    return outputs


def normalize_one(layer: Layer) -> Tensor:
    """The same for a layer alone; the common case without what only groups need."""
    s = layer.settings
    weight = layer.weight
    if not layer.training or s.step_scoped or _is_empty(weight):
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


def _is_empty(weight: Tensor) -> bool:
    # To ask a traced tensor makes the tracer warn; the reference takes an empty one as well.
    return not in_jit_trace() and weight.numel() == 0


def _empty(layer: Layer) -> Tensor:
    # As torch has it: the products are zero, and so are the vectors that follow from them.
    if layer.training:
        layer.u.zero_()
        layer.v.zero_()
    return layer.weight.clone()


def needs_grad(layer: Layer) -> bool:
    return layer.weight.requires_grad and torch.is_grad_enabled()


def group_of(layer: Layer, kept: Kept | None) -> tuple:
    """What layers have to agree in to share a call."""
    weight, s = layer.weight, layer.settings
    iterates = layer.training and kept is None
    same = (weight.dtype, weight.device, needs_grad(layer), s.coefficient, _is_step_scoped(layer))
    return (*same, iterates, layer.n, layer.eps, s.order, layer.skipped is None)


def normalize_group(
    layers: Sequence[Layer], remembered: Sequence[Kept | None], *, retain: bool = False
) -> tuple[list[Tensor], Tensor | None]:
    """W / sigma of layers of a group, and how often the guard kept u and v of each.

    With ``retain`` several backward passes may go through the results, as they may through those of
    layers that were normalised one by one.
    """
    s = layers[0].settings
    weights = [rows_first(layer.weight, layer.settings.dim) for layer in layers]
    u, v = [layer.u for layer in layers], [layer.v for layer in layers]
    grad, scoped = needs_grad(layers[0]), _is_step_scoped(layers[0])
    retain = grad and (retain or scoped)
    vectors: tuple[Sequence[Tensor], Sequence[Tensor], Tensor | None]
    skipped = None
    if layers[0].training and remembered[0] is None:
        skipped = _counters(layers)
        step = layers[0].n, layers[0].eps, s.order
        if not scoped:
            outputs, _ = ops.spectral_norm(
                weights, u, v, *step, skipped=skipped, coefficient=s.coefficient, retain=retain
            )
            _count(layers, skipped)
            return _finish(layers, outputs), skipped
        vectors = ops.unpack(ops.power_iteration_(weights, u, v, *step, skipped=skipped), weights)
        _count(layers, skipped)
    elif layers[0].training:  # of a step whose iteration is done
        known: list[Any] = [kept.vectors for kept in remembered if kept is not None]
        vectors = [k[0] for k in known], [k[1] for k in known], torch.stack([k[2] for k in known])
    elif grad or in_jit_trace():
        # The gradient must not see what later iterations make of the buffers; and a trace is
        # checked without a gradient, against one that was made with it.
        vectors = [x.clone() for x in _left(u, s)], [x.clone() for x in v], None
    else:
        vectors = _left(u, s), v, None
    outputs, _ = ops.spectral_normalize(
        weights,
        *vectors,
        coefficient=s.coefficient,
        retain=retain,
        guard=layers[0].skipped is not None,
    )
    outputs = _finish(layers, outputs)
    _remember(layers, vectors, outputs)
    return outputs, skipped


def _left(u: list[Tensor], s: Settings) -> list[Tensor]:
    # torch's hook conjugates nothing, and the sigma of the operators conjugates u.
    if s.order == "v_first" and u[0].is_complex():
        return [x.conj().resolve_conj() for x in u]
    return u


def rows_first(weight: Tensor, dim: int) -> Tensor:
    return weight if dim == 0 else weight.movedim(dim, 0)


def _finish(layers: Sequence[Layer], outputs: Sequence[Tensor]) -> list[Tensor]:
    dims = [layer.settings.dim for layer in layers]
    return [w if d == 0 else w.movedim(0, d) for w, d in zip(outputs, dims, strict=True)]


# --- guard -------------------------------------------------------------------------------------


def counter_of(module: torch.nn.Module, name: str, weight: Tensor) -> Tensor:
    """The guard's counter, where the weight is: ``load_state_dict(assign=True)``, of what was made
    on the meta device for instance, puts the weight elsewhere, and a state has no counters."""
    counter: Any = module._buffers[name]
    if counter.device != weight.device:
        counter = torch.zeros_like(counter, device=weight.device)
        module._buffers[name] = counter
    return counter  # type: ignore[no-any-return]


def _counters(layers: Sequence[Layer]) -> Tensor | None:
    first = layers[0].skipped
    return None if first is None else first.new_zeros(len(layers))


def _count(layers: Sequence[Layer], skipped: Tensor | None) -> None:
    if skipped is not None:
        for layer, new in zip(layers, skipped.split(1), strict=True):
            assert layer.skipped is not None
            layer.skipped.add_(new)


# --- memory ------------------------------------------------------------------------------------


def _key(layer: Layer) -> tuple:
    weight = layer.weight
    parts = [(version_of(x), x.data_ptr()) for x in (weight, layer.u, layer.v)]
    return *parts, weight.dtype, weight.device


def _can_remember(layer: Layer) -> bool:
    weight, trusted = layer.weight, layer.settings.trust_versions
    if torch.compiler.is_compiling() or in_functorch() or in_jit_trace():
        return False
    if is_fake(weight) or weight.is_inference() or layer.u.is_inference():
        return False
    if not trusted and not isinstance(weight, torch.nn.Parameter) and type(weight) is not Tensor:
        return False  # what equality of a foreign tensor means is not known
    # A captured comparison cannot decide anything.
    return trusted or not (weight.is_cuda and torch.cuda.is_current_stream_capturing())


def _is_step_scoped(layer: Layer) -> bool:
    if not (layer.settings.step_scoped and layer.training) or not _can_remember(layer):
        return False
    return not torch.is_inference_mode_enabled()


def _caches_eval(layer: Layer) -> bool:
    if not layer.settings.cache_eval or layer.training or needs_grad(layer):
        return False
    return _can_remember(layer)


def kept_of(layer: Layer) -> Kept | None:
    """What is remembered of a layer, if it is asked to remember in its present mode."""
    if _is_step_scoped(layer):
        return layer.memory.step
    return layer.memory.evaluation if _caches_eval(layer) else None


def recall(layers: Sequence[Layer]) -> list[Kept | None]:
    """What is remembered of each layer, and still holds; what does not is forgotten."""
    found: list[Kept | None] = [None] * len(layers)
    compared: list[int] = []
    for i, layer in enumerate(layers):
        s = layer.settings
        kept = kept_of(layer) if s.step_scoped or s.cache_eval else None
        if kept is None:
            continue
        if not kept.matches(layer):
            layer.memory.forget(kept)
            continue
        found[i] = kept
        if kept.copies is not None:
            compared.append(i)
    if not compared:
        return found
    pairs = [(found[i].copies, layers[i]) for i in compared]  # type: ignore[union-attr]
    same = _all_equal([zip(c, (x.weight, x.u, x.v), strict=True) for c, x in pairs])  # type: ignore[arg-type]
    for i, equal in zip(compared, same, strict=True):
        kept = found[i]
        if kept is not None and not equal:
            layers[i].memory.forget(kept)
            found[i] = None
    return found


@torch.no_grad()
def _all_equal(groups: Sequence[Iterable[tuple[Tensor, Tensor]]]) -> list[bool]:
    """Whether all pairs of each group are equal; waits for a GPU once, not for every tensor."""
    lists = [list(pairs) for pairs in groups]
    if not any(a.is_cuda for pairs in lists for a, _ in pairs):
        return [all(torch.equal(a, b) for a, b in pairs) for pairs in lists]
    flags = [torch.stack([(a == b).all() for a, b in pairs]).all().view(1) for pairs in lists]
    return torch.cat([flag.to(flags[0].device) for flag in flags]).tolist()


def _remember(layers: Sequence[Layer], vectors: tuple, outputs: Sequence[Tensor]) -> None:
    for i, (layer, output) in enumerate(zip(layers, outputs, strict=True)):
        if _is_step_scoped(layer):
            values = (output, None) if needs_grad(layer) else (None, output)
            own = vectors[0][i], vectors[1][i], vectors[2][i]
            layer.memory.step = Kept(layer, own, *values)
        elif _caches_eval(layer) and not torch.is_inference_mode_enabled():
            layer.memory.evaluation = Kept(layer, None, None, output)
        else:
            continue
        if layer.settings.trust_versions:
            _trust(layer.memory)


def checked_init_iterations(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"spectral_norm: expected init_iterations of 0 or more, got {n!r}")
    check_steps("spectral_norm", "init_iterations", n, least=0)
    return n


def warm_up(layer: Layer, n: int) -> None:
    """Move u and v by n iterations, whatever the mode."""
    if _is_empty(layer.weight):
        _empty(layer._replace(training=n > 0))
    elif n > 0:
        s = layer.settings
        weight = rows_first(layer.weight.detach(), s.dim)
        # A guarded layer keeps its u and v here too; what counts are its forwards.
        skipped = None if layer.skipped is None else torch.zeros_like(layer.skipped)
        step = n, layer.eps, s.order
        take_steps("spectral_norm", [weight], [layer.u], [layer.v], *step, skipped=skipped)
