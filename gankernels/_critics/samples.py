"""Samples that a critic is given: one tensor, or a list of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gankernels._checks import (
    check_floats,
    check_generator,
    describe,
    drawn_by,
    instead_of,
    kind,
)

Samples = Tensor | Sequence[Tensor]


def listed(op: str, name: str, x: Samples) -> list[Tensor]:
    if not isinstance(x, Tensor) and not (isinstance(x, (list, tuple)) and x):
        cure = instead_of(x, name)
        raise TypeError(
            f"{op}: expected {name} to be a tensor or a list of tensors, got {kind(x)}"
            + (f"; {cure}" if cure else "")
        )
    samples = [x] if isinstance(x, Tensor) else list(x)
    for p in samples:
        if not isinstance(p, Tensor):
            raise TypeError(
                f"{op}: expected {name} to be a tensor or a list of tensors, got a list with "
                f"{kind(p)}"
            )
        check_floats(op, name, p)
        if p.dim() == 0 or p.numel() == 0:
            raise ValueError(
                f"{op}: expected {name} of shape (B, ...) with elements, got shape {tuple(p.shape)}"
            )
        if p.shape[0] != samples[0].shape[0]:
            sizes = [q.shape[0] if q.dim() else 0 for q in samples]
            raise ValueError(f"{op}: expected one batch size in {name}, got {sizes}")
    return samples


def inputs_of(op: str, name: str, x: Samples) -> list[Tensor]:
    """Samples to take gradients of."""
    samples = listed(op, name, x)
    if not all(p.requires_grad for p in samples):
        cure = f"call {name}.requires_grad_() before D({name})"
        if inference_mode() or any(is_inference(p) for p in samples):
            cure = (
                "torch.inference_mode() takes gradients away: call D and the penalty within "
                f"torch.inference_mode(False) and torch.enable_grad(), with {name}.clone()"
                ".requires_grad_()"
            )
        raise ValueError(
            f"{op}: expected {name} to require a gradient, got one that does not; {cure}"
        )
    check_one_kind(op, name, samples)
    return samples


def check_one_kind(op: str, name: str, samples: list[Tensor]) -> None:
    first = samples[0]
    for p in samples:
        if p.dtype != first.dtype or p.device != first.device:
            raise ValueError(
                f"{op}: expected {name} of one dtype and device, got {describe(first)} and "
                f"{describe(p)}; convert them"
            )


def paired(op: str, real: Samples, fake: Samples, same_batch: bool) -> list[tuple[Tensor, Tensor]]:
    reals, fakes = listed(op, "real", real), listed(op, "fake", fake)
    check_one_kind(op, "real", reals)
    start = 0 if same_batch else 1
    alike = isinstance(real, Tensor) == isinstance(fake, Tensor)
    if not alike or len(reals) != len(fakes):
        kinds = (
            "a tensor" if isinstance(x, Tensor) else f"a list of {len(x)}" for x in (real, fake)
        )
        raise ValueError(
            f"{op}: expected real and fake to be two tensors, or lists of as many, got "
            f"{' and '.join(kinds)}"
        )
    if any(
        a.shape[start:] != b.shape[start:] or a.device != b.device
        for a, b in zip(reals, fakes, strict=False)
    ):
        what = "one shape" if same_batch else "one shape but for the batch"
        raise ValueError(
            f"{op}: expected real and fake of {what}, on one device, got "
            f"{', '.join(map(describe, reals))} and {', '.join(map(describe, fakes))}"
        )
    return [(a.detach(), b.detach().to(a.dtype)) for a, b in zip(reals, fakes, strict=True)]


def draw_like(op: str, draw: Any, like: Tensor, shape: Sequence[int], generator: Any) -> Tensor:
    check_generator(op, generator, like.device)
    return draw(shape, device=like.device, dtype=like.dtype, **drawn_by(generator))


# --- inference mode ------------------------------------------------------------------------------


def inference_mode() -> bool:
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def is_inference(x: Tensor) -> bool:
    return not torch.compiler.is_compiling() and x.is_inference()


def outside_inference() -> Any:
    """A block in which autograd records what torch.enable_grad() lets it, in inference mode too."""
    return torch.inference_mode(False) if inference_mode() else contextlib.nullcontext()


def usable(value: Any) -> Any:
    """A value that autograd can save: tensors of inference mode copied, all else as it is."""
    if isinstance(value, Tensor):
        return value.clone() if is_inference(value) else value
    if type(value) in (list, tuple):
        return type(value)(usable(x) for x in value)
    if type(value) is dict:
        return {key: usable(x) for key, x in value.items()}
    return value
