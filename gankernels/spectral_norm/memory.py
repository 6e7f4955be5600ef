"""The memory of layers between forwards: for ``step_scoped`` and ``cache_eval``.

Within the capture of a CUDA graph nothing is found and nothing kept: what was computed before would
be a constant of the graph, and a captured comparison decides nothing. Replays then write weights,
u and v, and count no version: a memory that trusts the counters stays off once a call of its layer,
or a step of its optimizer, was captured, until a step is announced again.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from gankernels._torch import (
    in_functorch,
    in_jit_trace,
    is_capturing,
    is_fake,
    shards_parameters,
)
from gankernels.spectral_norm.layer import Kept, Layer, Memory, needs_grad


def _can_remember(layer: Layer) -> bool:
    weight, trusted = layer.weight, layer.settings.trust_versions
    if torch.compiler.is_compiling() or in_functorch() or in_jit_trace():
        return False
    if is_fake(weight) or weight.is_inference() or layer.u.is_inference():
        return False
    if not trusted and not isinstance(weight, torch.nn.Parameter) and type(weight) is not Tensor:
        return False  # what equality of a foreign tensor means is not known
    return not (trusted and layer.memory.captured) and not is_capturing()


def is_step_scoped(layer: Layer) -> bool:
    if not (layer.settings.step_scoped and layer.training) or not _can_remember(layer):
        return False
    return not torch.is_inference_mode_enabled()


def _caches_eval(layer: Layer) -> bool:
    if not layer.settings.cache_eval or layer.training or needs_grad(layer):
        return False
    return _can_remember(layer)


def kept_of(layer: Layer) -> Kept | None:
    """The memory of a layer, if it is asked to remember in its present mode."""
    if is_step_scoped(layer):
        return layer.memory.step
    return layer.memory.evaluation if _caches_eval(layer) else None


def notice_capture(layers: Sequence[Layer]) -> None:
    """Turn off the memories that trust versions, where a call of their layers is captured."""
    trusting = [layer.memory for layer in layers if layer.settings.trust_versions]
    if trusting and is_capturing():
        for memory in trusting:
            memory.turn_off()


def recall(layers: Sequence[Layer]) -> list[Kept | None]:
    """The memory of each layer as far as it still holds; the rest is forgotten."""
    notice_capture(layers)
    memories: list[Kept | None] = [None] * len(layers)
    compared: list[int] = []
    for i, layer in enumerate(layers):
        s = layer.settings
        kept = kept_of(layer) if s.step_scoped or s.cache_eval else None
        if kept is None:
            continue
        if not kept.matches(layer):
            layer.memory.forget(kept)
            continue
        memories[i] = kept
        if kept.copies is not None:
            compared.append(i)
    if not compared:
        return memories
    pairs = [(memories[i].copies, layers[i]) for i in compared]  # type: ignore[union-attr]
    same = _all_equal([zip(c, (x.weight, x.u, x.v), strict=True) for c, x in pairs])  # type: ignore[arg-type]
    for i, equal in zip(compared, same, strict=True):
        kept = memories[i]
        if kept is not None and not equal:
            layers[i].memory.forget(kept)
            memories[i] = None
    return memories


@torch.no_grad()
def _all_equal(groups: Sequence[Iterable[tuple[Tensor, Tensor]]]) -> list[bool]:
    """Whether all pairs of each group are equal; waits for a GPU once, not for every tensor."""
    lists = [list(pairs) for pairs in groups]
    if not any(a.is_cuda for pairs in lists for a, _ in pairs):
        return [all(torch.equal(a, b) for a, b in pairs) for pairs in lists]
    flags = [torch.stack([(a == b).all() for a, b in pairs]).all().view(1) for pairs in lists]
    return torch.cat([flag.to(flags[0].device) for flag in flags]).tolist()


def remember(layers: Sequence[Layer], vectors: tuple, outputs: Sequence[Tensor]) -> None:
    for i, (layer, output) in enumerate(zip(layers, outputs, strict=True)):
        if is_step_scoped(layer):
            values: tuple = (output, None) if needs_grad(layer) else (None, output)
            if shards_parameters():
                # FSDP reduces a gradient when the pass through a forward is over; that of an output
                # which forwards share comes later.
                values = None, None
            own = vectors[0][i], vectors[1][i], vectors[2][i]
            layer.memory.step = Kept(layer, own, *values)
        elif _caches_eval(layer) and not torch.is_inference_mode_enabled():
            layer.memory.evaluation = Kept(layer, None, None, output)
        else:
            continue
        if layer.settings.trust_versions:
            _trust(layer.memory)


#: Memories under ``trust_versions=True``, which the steps of all optimizers are announced to.
_trusting: weakref.WeakSet[Memory] = weakref.WeakSet()
_announced: list[Any] = []  # the handle of the hook, once there is one


def _announce(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    written = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for memory in list(_trusting):
        for kept in (memory.step, memory.evaluation):
            if kept is not None and id(kept.weight) in written:
                memory.forget(kept)
                if is_capturing():  # the replays of the step will not be announced
                    memory.turn_off()


def _trust(memory: Memory) -> None:
    _trusting.add(memory)
    if not _announced:
        _announced.append(register_optimizer_step_post_hook(_announce))
