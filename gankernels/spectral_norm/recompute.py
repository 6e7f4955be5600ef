"""Forwards that torch.utils.checkpoint computes again within the backward pass.

A forward within a checkpointed region notes the u, v and sigma of every layer that it normalizes.
Computed again, the region finds them in the order of its calls, and moves no u and v: its numbers
are those of its forward, whatever has been computed in between. The notes go with the region.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gankernels._torch import checkpoints, in_backward, saves_through_hooks
from gankernels._warnings import warn_once
from gankernels.spectral_norm.layer import Layer, Memory, needs_grad

Vectors = tuple[Sequence[Tensor], Sequence[Tensor], Tensor | None]  # of one layer


class _Notes:
    """What the forward of a region has found, by layer, and how much of it each turn has taken."""

    def __init__(self) -> None:
        self.found: dict[Memory, list[Vectors]] = {}
        self.taken: dict[tuple[Any, Memory], int] = {}

    def take(self, turn: Any, memory: Memory) -> Vectors | None:
        n = self.taken.get((turn, memory), 0)
        self.taken[turn, memory] = n + 1
        found = self.found.get(memory, ())
        return found[n] if n < len(found) else None


_notes: weakref.WeakKeyDictionary[Any, _Notes] = weakref.WeakKeyDictionary()


class Regions:
    """The checkpointed regions that a layer is called in."""

    def __init__(self, entered: list[Any], recomputed: Any, turn: Any) -> None:
        self.entered, self.recomputed, self.turn = entered, recomputed, turn

    def recall(self, layer: Layer) -> Vectors | None:
        """What this call of the layer found in the forward that is computed again; None where this
        is a forward.
        """
        if self.recomputed is None:
            return None
        notes = _notes.get(self.recomputed)
        vectors = None if notes is None else notes.take(self.turn, layer.memory)
        if vectors is None and layer.training:
            raise RuntimeError(
                "spectral_norm: expected the forward that is recomputed to have called this layer "
                f"(of shape {tuple(layer.weight.shape)}) as often as the recomputation does, under "
                "the same train() or eval(); change modes after the backward pass, or normalize "
                "with step_scoped=True, which keeps W / sigma for the whole step"
            )
        return vectors

    def note(self, layer: Layer, vectors: Vectors) -> None:
        for region in self.entered:
            notes = _notes.setdefault(region, _Notes())
            notes.found.setdefault(layer.memory, []).append(vectors)


def regions_of(layer: Layer) -> Regions | None:
    """The regions that this call of a layer is in, if any; next to free outside of them."""
    if torch.compiler.is_compiling():
        return None
    backward = in_backward()
    # A reentrant region computes its forward without a gradient.
    may_enter = saves_through_hooks() or (layer.training and not torch.is_grad_enabled())
    if not (backward or may_enter):
        return None
    found = checkpoints()
    if found.entered or found.recomputed is not None:
        return Regions(*found)
    if backward and layer.training and needs_grad(layer):
        warn_once(
            "recomputed",
            "spectral_norm: a layer in training mode is called within a backward pass, and not by "
            "torch.utils.checkpoint: u and v move once more. Where this recomputes a forward, its "
            "gradient is of another W / sigma; step_scoped=True keeps one for the whole step.",
        )
    return None


def in_region(layer: Layer) -> bool:
    """Whether a layer has to see to its u and v itself, lest a recomputation finds others."""
    return regions_of(layer) is not None
