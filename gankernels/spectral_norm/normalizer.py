"""The one place where weights become normalized weights: a layer alone, or a whole network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gankernels import ops
from gankernels._torch import in_jit_trace, shards_parameters
from gankernels.ops._checks.spectral_norm import check_steps, check_weight
from gankernels.ops.spectral_norm import warm_up as take_steps
from gankernels.spectral_norm import sharded
from gankernels.spectral_norm.layer import (
    Kept,
    Layer,
    Settings,
    is_empty,
    needs_grad,
    rows_first,
    zeroed,
)
from gankernels.spectral_norm.memory import is_step_scoped, notice_capture, recall, remember
from gankernels.spectral_norm.recompute import Regions, Vectors, regions_of
from gankernels.spectral_norm.sharded import can_iterate, is_sharded


def normalize(layers: Sequence[Layer]) -> list[Tensor]:
    """W / sigma for every layer; u and v of the layers in training move first.

    One call of the operators for all layers that can share it.
    """
    outputs: list[Any] = [None] * len(layers)
    groups: dict[tuple, list[int]] = {}
    remembered = recall(layers)
    for i, (layer, kept) in enumerate(zip(layers, remembered, strict=True)):
        outputs[i] = zeroed(layer) if is_empty(layer.weight) else None
        if outputs[i] is None and kept is not None:
            outputs[i] = kept.output(layer)
        if outputs[i] is None and not is_step_scoped(layer) and (regions := regions_of(layer)):
            outputs[i] = _normalize_within(regions, layer)
        if outputs[i] is None:
            groups.setdefault(group_of(layer, kept), []).append(i)
    for index in groups.values():
        group_outputs, _ = normalize_group(
            [layers[i] for i in index], [remembered[i] for i in index]
        )
        for i, output in zip(index, group_outputs, strict=True):
            outputs[i] = output
    return outputs


def normalize_one(layer: Layer) -> Tensor:
    """The same for a layer alone; the common case without what only groups need."""
    s = layer.settings
    weight = layer.weight
    if is_sharded(weight):
        return _normalize_shards(layer)
    if not layer.training or s.step_scoped or is_empty(weight) or regions_of(layer) is not None:
        return normalize([layer])[0]
    if s.trust_versions:  # for a later evaluation
        notice_capture([layer])
    outputs, _ = ops.spectral_norm(
        (rows_first(weight, s.dim),),
        (layer.u,),
        (layer.v,),
        layer.n,
        layer.eps,
        s.order,
        skipped=layer.skipped,
        max_norm=s.max_norm,
    )
    return outputs[0] if s.dim == 0 else outputs[0].movedim(0, s.dim)


def _normalize_within(regions: Regions, layer: Layer) -> Tensor:
    """W / sigma in checkpointed regions: what autograd saves is the same in a forward as when that
    is computed again.
    """
    s = layer.settings
    vectors = regions.recall(layer)
    if vectors is None and layer.training:
        skipped = counters([layer])
        step = layer.n, layer.eps, s.order
        weights = [rows_first(layer.weight, s.dim)]
        vectors = ops.power_iteration_(weights, [layer.u], [layer.v], *step, skipped=skipped)
        count([layer], skipped)
    elif vectors is None:
        vectors = [x.clone() for x in _left([layer.u], s)], [layer.v.clone()], None
    return normalize_by(vectors, layer, regions)


def _normalize_shards(layer: Layer) -> Tensor:
    """W / sigma of a weight that stays in shards."""
    if not can_iterate(layer):
        check_weight("spectral_norm", "the weight", layer.weight)  # says what to do
    regions = regions_of(layer)
    vectors = None if regions is None else regions.recall(layer)
    if vectors is None and layer.training:
        skipped = counters([layer])
        (vectors,) = sharded.power_iteration_([layer], skipped)
        count([layer], skipped)
    elif vectors is None:
        u, v = sharded.vectors_of(layer)
        vectors = [u.clone()], [v.clone()], None
    return normalize_by(vectors, layer, regions)


def normalize_by(vectors: Vectors, layer: Layer, regions: Regions | None) -> Tensor:
    """W / sigma of a layer whose u, v and sigma are known."""
    if regions is not None:
        regions.note(layer, vectors)
    if is_sharded(layer.weight):
        return sharded.normalize(layer, vectors)
    s = layer.settings
    outputs, _ = ops.spectral_normalize(
        [rows_first(layer.weight, s.dim)],
        *vectors,
        max_norm=s.max_norm,
        guard=layer.skipped is not None,
    )
    return _finish([layer], outputs)[0]


def group_of(layer: Layer, kept: Kept | None) -> tuple:
    """The properties in which layers must agree to share a call."""
    weight, s = layer.weight, layer.settings
    iterates = layer.training and kept is None
    dtypes = weight.dtype, layer.u.dtype
    same = (*dtypes, weight.device, needs_grad(layer), s.max_norm, is_step_scoped(layer))
    return (*same, iterates, layer.n, layer.eps, s.order, layer.skipped is None)


def normalize_group(
    layers: Sequence[Layer], remembered: Sequence[Kept | None], *, retain: bool = False
) -> tuple[list[Tensor], Tensor | None]:
    """W / sigma of layers of a group, and how often the guard kept u and v of each.

    With ``retain`` several backward passes may go through the results, as they may through those of
    layers that were normalized one by one.
    """
    s = layers[0].settings
    weights = [rows_first(layer.weight, layer.settings.dim) for layer in layers]
    u, v = [layer.u for layer in layers], [layer.v for layer in layers]
    grad, scoped = needs_grad(layers[0]), is_step_scoped(layers[0])
    retain = grad and (retain or (scoped and not shards_parameters()))
    vectors: tuple[Sequence[Tensor], Sequence[Tensor], Tensor | None]
    skipped = None
    if layers[0].training and remembered[0] is None:
        skipped = counters(layers)
        step = layers[0].n, layers[0].eps, s.order
        if not scoped:
            outputs, _ = ops.spectral_norm(
                weights, u, v, *step, skipped=skipped, max_norm=s.max_norm, retain=retain
            )
            count(layers, skipped)
            return _finish(layers, outputs), skipped
        vectors = ops.power_iteration_(weights, u, v, *step, skipped=skipped)
        count(layers, skipped)
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
        max_norm=s.max_norm,
        retain=retain,
        guard=layers[0].skipped is not None,
    )
    outputs = _finish(layers, outputs)
    remember(layers, vectors, outputs)
    return outputs, skipped


def _left(u: list[Tensor], s: Settings) -> list[Tensor]:
    # torch's hook conjugates nothing, and the sigma of the operators conjugates u.
    if s.order == "v_first" and u[0].is_complex():
        return [x.conj().resolve_conj() for x in u]
    return u


def _finish(layers: Sequence[Layer], outputs: Sequence[Tensor]) -> list[Tensor]:
    dims = [layer.settings.dim for layer in layers]
    return [w if d == 0 else w.movedim(0, d) for w, d in zip(outputs, dims, strict=True)]


# --- guard -------------------------------------------------------------------------------------


def counters(layers: Sequence[Layer]) -> Tensor | None:
    """Zeros to count in, where the layers are guarded."""
    first = layers[0].skipped
    return None if first is None else first.new_zeros(len(layers))


def count(layers: Sequence[Layer], skipped: Tensor | None) -> None:
    """Add what a call has counted to the layers' own counters."""
    if skipped is not None:
        for layer, new in zip(layers, skipped.split(1), strict=True):
            assert layer.skipped is not None
            layer.skipped.add_(new)


# --- first iterations --------------------------------------------------------------------------


def checked_init_iterations(n: int) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 0:
        raise ValueError(f"spectral_norm: expected init_iterations of 0 or more, got {n!r}")
    check_steps("spectral_norm", "init_iterations", n, least=0)
    return n


def warm_up(layer: Layer, n: int) -> None:
    """Move u and v by n iterations, whatever the mode."""
    if is_sharded(layer.weight):
        if n > 0:
            sharded.power_iteration_([layer._replace(n=n)], counters([layer]))
    elif is_empty(layer.weight):
        zeroed(layer._replace(training=n > 0))
    elif n > 0:
        s = layer.settings
        weight = rows_first(layer.weight.detach(), s.dim)
        # A guarded layer keeps its u and v here too; what counts are its forwards.
        skipped = None if layer.skipped is None else torch.zeros_like(layer.skipped)
        step = n, layer.eps, s.order
        take_steps("spectral_norm", [weight], [layer.u], [layer.v], *step, skipped=skipped)
