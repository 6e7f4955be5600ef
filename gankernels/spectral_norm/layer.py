"""A weight to normalize, now, and its memory from one forward to the next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gankernels._torch import in_jit_trace, shards_parameters
from gankernels.ops.spectral_norm import Order


@dataclass(frozen=True)
class Settings:
    """The options of a spectral normalization, besides n_power_iterations and eps, which
    torch keeps as attributes that can be set at any time."""

    dim: int
    order: Order
    max_norm: float | None = None
    cache_eval: bool = False
    step_scoped: bool = False
    trust_versions: bool = False

    def __post_init__(self) -> None:
        c = self.max_norm
        number = isinstance(c, (int, float)) and not isinstance(c, bool)
        if c is not None and not (number and 0 < c <= sys.float_info.max):
            raise ValueError(
                f"spectral_norm: expected max_norm to be a positive, finite number, got {c!r}"
            )


class Layer(NamedTuple):
    """A weight to normalize, now."""

    weight: Tensor
    u: Tensor
    v: Tensor
    n: int
    eps: float
    settings: Settings
    training: bool
    memory: Memory
    skipped: Tensor | None  # int64 (1,): guarded, and how often the guard kept u and v


class CompiledDeposit(NamedTuple):
    """A weight that a compiled fused model normalized for one of its modules, in its trace."""

    weight: Tensor  # what it was computed from
    output: Tensor
    u: Tensor  # as they were, for a layer that is not called
    v: Tensor


def rows_first(weight: Tensor, dim: int) -> Tensor:
    return weight if dim == 0 else weight.movedim(dim, 0)


def needs_grad(layer: Layer) -> bool:
    return layer.weight.requires_grad and torch.is_grad_enabled()


def is_empty(weight: Tensor) -> bool:
    # To ask a traced tensor makes the tracer warn; the reference takes an empty one as well.
    return not in_jit_trace() and weight.numel() == 0


def zeroed(layer: Layer) -> Tensor:
    # As torch has it: the products are zero, and so are the vectors that follow from them.
    if layer.training:
        layer.u.zero_()
        layer.v.zero_()
    return layer.weight.clone()


def counter_of(module: torch.nn.Module, name: str, weight: Tensor) -> Tensor:
    """The guard's counter, where the weight is: ``load_state_dict(assign=True)``, of what was made
    on the meta device for instance, puts the weight elsewhere, and a state has no counters."""
    counter: Any = module._buffers[name]
    if counter.device != weight.device:
        counter = torch.zeros_like(counter, device=weight.device)
        module._buffers[name] = counter
    return counter  # type: ignore[no-any-return]


class Memory:
    """For ``step_scoped`` and ``cache_eval``, and what a fused model knows of a layer. Copies and
    pickles of a module start without it."""

    def __init__(self) -> None:
        self.step: Kept | None = None
        self.evaluation: Kept | None = None
        self.captured = False  # replays of a CUDA graph move what versions do not tell of
        self.declined = False  # the last deposit was not used: do not make one in vain again
        self.depth = 0  # how far up the stack the fused model's call was, the last time

    def turn_off(self) -> None:
        """Forget, and remember nothing until a step is announced."""
        self.step = self.evaluation = None
        self.captured = True

    def begin_step(self) -> None:
        """A step of the optimizer was announced: what was computed before it is past."""
        self.step = self.evaluation = None
        self.captured = False

    def forget(self, kept: Kept) -> None:
        if self.step is kept:
            self.step = None
        if self.evaluation is kept:
            self.evaluation = None

    def __deepcopy__(self, memo: dict) -> Memory:
        return Memory()

    def __reduce__(self) -> tuple:
        return Memory, ()


class Kept:
    """The last result from a weight, u and v, for as long as they are what they were.

    They are so where torch's counters and addresses say it, and, as both miss writes through
    ``.data`` and those of fused optimizers, where their contents equal copies. Replaced as a whole,
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
        """Whether torch has counted no write since, to the computed result included."""
        if self.copies is not None and shards_parameters():
            # A weight that FSDP has gathered once more is in other memory: its contents will tell.
            if self.copies[0].shape != layer.weight.shape or self.key[3:] != _key(layer)[3:]:
                return False
        elif self.weight is not layer.weight or self.key != _key(layer):
            return False
        outputs = self.with_grad, self.without
        return all(
            x is None or version_of(x) == n for x, n in zip(outputs, self.versions, strict=True)
        )

    def output(self, layer: Layer) -> Tensor | None:
        if needs_grad(layer):
            return self.with_grad
        return self.without if self.with_grad is None else self.with_grad.detach()


def _key(layer: Layer) -> tuple:
    weight = layer.weight
    parts = [(version_of(x), x.data_ptr()) for x in (weight, layer.u, layer.v)]
    return *parts, weight.dtype, weight.device


def version_of(tensor: Tensor) -> int:
    """A number that changes with every write; constant where torch does not count."""
    return 0 if tensor.is_inference() else tensor._version


def versions_of(tensors: Sequence[Tensor]) -> list[int]:
    try:
        return [x._version for x in tensors]
    except RuntimeError:  # of inference mode
        return [version_of(x) for x in tensors]
