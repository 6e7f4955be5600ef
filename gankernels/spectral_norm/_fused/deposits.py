"""Weights that a fused model normalizes for its modules, for the time of a forward.

A fused model's pre-hook opens a frame, normalizes all layers in one call, and deposits a weight for
each. A layer takes what is deposited for it once, if all is as it was then; else it normalizes
itself, from the u and v that it would have had: what was deposited and not used is taken back.
Outputs, gradients, u and v thus are those of layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gankernels._fused.frames import Frame, OpenFrames
from gankernels._library import has_kernels
from gankernels._torch import saves_through_hooks
from gankernels.spectral_norm import sharded
from gankernels.spectral_norm.layer import Kept, Layer, Memory, needs_grad, version_of, versions_of
from gankernels.spectral_norm.memory import kept_of, recall
from gankernels.spectral_norm.normalizer import (
    count,
    counters,
    group_of,
    normalize_by,
    normalize_group,
)
from gankernels.spectral_norm.recompute import Vectors, in_region, regions_of

#: Of this thread; empty outside of the forwards of fused models.
open_frames = OpenFrames()


class Group:
    """The vectors that one call has moved, u and v as they were, in case they are wanted back."""

    def __init__(self, vectors: list[Tensor]) -> None:
        self.vectors = vectors  # u and v of every layer
        self.before = torch.cat(vectors)
        self.skipped: Tensor | None = None  # what the guard counted in this call
        self.versions: list[int] = []

    def moved(self, skipped: Tensor | None) -> None:
        self.skipped = skipped
        self.versions = versions_of(self.vectors)

    def is_moved(self, i: int) -> bool:
        """Whether u and v are as this call left them."""
        u, v = self.vectors[2 * i], self.vectors[2 * i + 1]
        known = self.versions
        return version_of(u) == known[2 * i] and version_of(v) == known[2 * i + 1]

    def restore(self, i: int, layer: Layer) -> None:
        """Put u and v of a layer back, each unless somebody has written it since."""
        parts = self.before.split([x.numel() for x in self.vectors])
        with torch.no_grad():
            for k, x in ((2 * i, layer.u), (2 * i + 1, layer.v)):
                if version_of(x) == self.versions[k]:
                    x.copy_(parts[k])
            if self.skipped is not None and layer.skipped is not None:
                layer.skipped.sub_(self.skipped[i])


class Deposit:
    """A layer's normalized weight, or the u, v and sigma of one that lies in shards; without either
    where the layer is only watched."""

    __slots__ = (
        *("group", "index", "kept", "layer", "norm", "output", "pointer", "used", "vectors"),
        *("version", "weight"),
    )

    def __init__(self, norm: Any, layer: Layer) -> None:
        weight = layer.weight
        self.norm, self.layer, self.weight = norm, layer, weight
        self.version, self.pointer = version_of(weight), weight.data_ptr()
        self.output: Tensor | None = None
        self.vectors: Vectors | None = None
        self.kept: Kept | None = None  # where it is also remembered, and may be used again
        self.group: Group | None = None  # where u and v were moved for it
        self.index = 0
        self.used = False

    def fill(self, output: Tensor, group: Group | None, index: int) -> None:
        """With W / sigma, the ``index``-th of a group."""
        self.output, self.group, self.index = output, group, index

    @property
    def is_unused(self) -> bool:
        return (self.output is not None or self.vectors is not None) and not self.used

    def is_of(self, weight: Tensor) -> bool:
        """Whether this is a deposit for a weight, or for the shards that it was gathered from."""
        mine = self.weight
        return weight is mine or (self.vectors is not None and weight.shape == mine.shape)

    def fits(self, u: Tensor, v: Tensor, training: bool, frame: Frame) -> bool:
        """Whether the layer would compute the same result now."""
        mine, weight, group = self.layer, self.weight, self.group
        if (
            u is not mine.u
            or v is not mine.v
            or training is not mine.training
            or version_of(weight) != self.version
            or weight.data_ptr() != self.pointer
            or torch.is_inference_mode_enabled() is not frame.inference
            or (group is not None and not group.is_moved(self.index))
        ):
            return False
        if self.vectors is not None or self.kept is not None:
            return True
        # A checkpointed region has to see the layer's own tensors, and the same ones when it
        # computes it again; so have other hooks. A remembered result saves nothing.
        return not (saves_through_hooks() or in_region(mine))

    def take_back(self) -> None:
        """Take the result back, as if it had never been computed."""
        if not self.is_unused:
            return
        self.output = self.vectors = None
        self.norm.memory.declined = True
        if self.group is not None:
            self.group.restore(self.index, self.layer)
            if self.kept is not None:
                self.norm.memory.forget(self.kept)


def give_back(norm: Any) -> list[Layer]:
    """Undo the unused deposits for a norm, for a reader of u and v within a forward."""
    layers = []
    for frame in open_frames.frames:
        deposit = frame.deposits.get(id(norm))
        if deposit is not None and deposit.is_unused:
            deposit.take_back()
            layers.append(deposit.layer)
    return layers


def take(norm: Any, weight: Tensor, u: Tensor, v: Tensor, training: bool) -> Tensor | None:
    """The deposit of a running forward for a layer as it is now, or None."""
    frames = open_frames.frames
    if len(frames) == 1:
        frame = frames[0]
        if frame.planned is not None:
            found: Tensor | None = frame.planned.take(frame, norm, weight, u, v, training)
            if found is not None:
                return found
    for frame in reversed(frames) if len(frames) > 1 else frames[:]:
        deposit = frame.deposits.get(id(norm))
        if deposit is None:
            continue
        memory: Memory = norm.memory
        if not frame.runs(memory):
            frame.close()
            continue
        if not deposit.is_of(weight):  # another parameter has taken the place of that one
            deposit.take_back()
            del frame.deposits[id(norm)]
            continue
        if deposit.fits(u, v, training, frame):
            if deposit.vectors is not None:
                deposit.used = True
                del frame.deposits[id(norm)]
                layer = deposit.layer._replace(weight=weight)
                return normalize_by(deposit.vectors, layer, regions_of(layer))
            if deposit.output is None:
                memory.declined = False  # it would have been used: worth computing the next time
            else:
                output = deposit.output
                if output.requires_grad:
                    usable = True
                    if not torch.is_grad_enabled():
                        output = output.detach()
                else:
                    usable = not needs_grad(deposit.layer)
                if usable:
                    deposit.used = True
                    if deposit.kept is None:
                        del frame.deposits[id(norm)]
                    return output
                if deposit.kept is not None:  # its u and v serve for the gradient as well
                    deposit.used = True
        deposit.take_back()
        del frame.deposits[id(norm)]
        return None
    return None


def is_deposited(norm: Any, weight: Tensor) -> bool:
    """Whether a model around this one has already a deposit for a layer."""
    for frame in open_frames.frames:
        deposit = frame.deposits.get(id(norm))
        if deposit is not None and deposit.is_of(weight):
            return True
    return False


def is_open() -> bool:
    """Whether the forward of a fused model runs in this thread."""
    return bool(open_frames.frames)


def deposit(frame: Frame, norms: Sequence[Any], layers: Sequence[Layer]) -> None:
    """Normalize the layers, in as few calls as can be, and deposit what comes out."""
    wanted: list[Deposit] = []
    shards: dict[tuple, list[Deposit]] = {}
    for norm, layer in zip(norms, layers, strict=True):
        shared = sharded.group_of(layer)
        if shared is None and (not has_kernels(layer.weight) or layer.weight.numel() == 0):
            continue
        one = Deposit(norm, layer)
        frame.deposits[id(norm)] = one
        if norm.memory.declined:
            continue
        if shared is None:
            wanted.append(one)
        else:
            shards.setdefault(shared, []).append(one)
    for members in shards.values():
        _deposit_shards(members)
    if not wanted:
        return
    remembered = recall([one.layer for one in wanted])
    groups: dict[tuple, list[int]] = {}
    for i, (one, kept) in enumerate(zip(wanted, remembered, strict=True)):
        output = None if kept is None else kept.output(one.layer)
        if output is None:
            groups.setdefault(group_of(one.layer, kept), []).append(i)
        else:
            one.output, one.kept = output, kept
    for index in groups.values():
        _deposit_group([wanted[i] for i in index], [remembered[i] for i in index])


def _vectors(layers: list[Layer]) -> list[Tensor]:
    return [x for layer in layers for x in (layer.u, layer.v)]


def _deposit_group(members: list[Deposit], remembered: list[Kept | None]) -> None:
    layers = [one.layer for one in members]
    moves = layers[0].training and remembered[0] is None
    try:
        group = Group(_vectors(layers)) if moves else None
        outputs, skipped = normalize_group(layers, remembered, retain=True)
    except (RuntimeError, TypeError, ValueError):
        return  # nothing has moved, and the layer that is at fault will say so when it is called
    if group is not None:
        group.moved(skipped)
    for i, (one, output) in enumerate(zip(members, outputs, strict=True)):
        one.kept = kept_of(one.layer)
        one.fill(output, group, i)


def _deposit_shards(members: list[Deposit]) -> None:
    """Iterate on shards; W / sigma is for the layer's call, which has the weight gathered."""
    layers = [one.layer for one in members]
    group, skipped = Group(_vectors(layers)), counters(layers)
    found = sharded.power_iteration_(layers, skipped)
    count(layers, skipped)
    group.moved(skipped)
    for i, (one, vectors) in enumerate(zip(members, found, strict=True)):
        one.vectors, one.group, one.index = vectors, group, i
