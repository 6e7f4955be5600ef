"""The words for what power_iteration_ and spectral_normalize were given and cannot take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gankernels._checks import is_tensors, kind
from gankernels._library import NATIVE_DTYPES
from gankernels._torch import in_functorch, is_fake
from gankernels.reference.spectral_norm import accumulation_dtype


def _check_lists(op: str, weights: Sequence[Tensor], **lists: Sequence[Tensor]) -> None:
    if not is_tensors(weights):
        raise TypeError(f"{op}: expected weights to be a list of tensors, got {kind(weights)}")
    if not weights:
        raise ValueError(f"{op}: expected at least one weight, got an empty list")
    first = weights[0]
    for i, w in enumerate(weights):
        if w.dim() == 0 or w.numel() == 0:
            raise ValueError(
                f"{op}: expected weights[{i}] to have a dimension and elements, "
                f"got shape {tuple(w.shape)}"
            )
        if w.dtype != first.dtype or w.device != first.device:
            raise ValueError(
                f"{op}: expected all weights of one dtype and device, got {first.dtype} on "
                f"{first.device} and weights[{i}] of {w.dtype} on {w.device}; make a call for each"
            )
    if not (first.is_floating_point() or first.is_complex()):
        names = ", ".join(sorted(str(d) for d in NATIVE_DTYPES))
        raise TypeError(f"{op}: expected weights of {names} or complex, got {first.dtype}")
    for name, vectors in lists.items():
        if not is_tensors(vectors):
            raise TypeError(f"{op}: expected {name} to be a list of tensors, got {kind(vectors)}")
        if len(vectors) != len(weights):
            raise ValueError(
                f"{op}: expected {name} to have one vector a weight, {len(weights)}, "
                f"got {len(vectors)}"
            )
        for i, (w, x) in enumerate(zip(weights, vectors, strict=True)):
            size = w.shape[0] if name == "u" else w.numel() // w.shape[0]
            if tuple(x.shape) != (size,):
                raise ValueError(
                    f"{op}: expected {name}[{i}] of shape {(size,)} for a weight of shape "
                    f"{tuple(w.shape)}, got {tuple(x.shape)}"
                )
            if x.device != w.device:
                raise ValueError(f"{op}: expected {name}[{i}] on {w.device}, got it on {x.device}")


def check_iteration(weights, u, v, n, eps, order, skipped) -> None:
    op = "power_iteration_"
    _check_lists(op, weights, u=u, v=v)
    if order not in ("u_first", "v_first"):
        raise ValueError(f'{op}: expected order "u_first" or "v_first", got {order!r}')
    if not isinstance(n, int) or isinstance(n, bool):
        raise TypeError(f"{op}: expected n to be an int, got {kind(n)}")
    if n < 1:
        raise ValueError(f"{op}: expected n to be at least 1, got {n}")
    if not isinstance(eps, (int, float)):
        raise TypeError(f"{op}: expected eps to be a number, got {kind(eps)}")
    if not eps >= 0 or math.isinf(eps):
        raise ValueError(f"{op}: expected eps to be finite and not negative, got {eps}")
    for name, vectors in (("u", u), ("v", v)):
        for i, x in enumerate(vectors):
            if x.dtype != weights[0].dtype:
                raise TypeError(
                    f"{op}: expected {name}[{i}] of the weights' {weights[0].dtype}, got {x.dtype}"
                )
            if not x.is_contiguous():
                raise ValueError(f"{op}: expected {name}[{i}] contiguous, got stride {x.stride()}")
            if x.requires_grad and x.is_leaf and torch.is_grad_enabled():
                raise ValueError(
                    f"{op}: expected {name}[{i}] to be a buffer that needs no gradient, "
                    "got one that requires grad; pass it detached"
                )
    if skipped is not None:
        if not isinstance(skipped, Tensor):
            raise TypeError(f"{op}: expected skipped to be a tensor, got {kind(skipped)}")
        good = skipped.dtype == torch.int64 and tuple(skipped.shape) == (len(weights),)
        if not good or skipped.device != weights[0].device or not skipped.is_contiguous():
            raise ValueError(
                f"{op}: expected skipped to be contiguous int64 of shape {(len(weights),)} on "
                f"{weights[0].device}, got {skipped.dtype} of shape {tuple(skipped.shape)} on "
                f"{skipped.device}"
            )
    # Traced and transformed tensors have no memory to compare.
    if not torch.compiler.is_compiling() and not in_functorch():
        _check_overlap(op, [*u, *v])


def _check_overlap(op: str, vectors: Sequence[Tensor]) -> None:
    if is_fake(vectors[0]):
        return
    spans = sorted((x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()) for x in vectors)
    for (_, end), (start, _) in pairwise(spans):
        if start < end:
            raise ValueError(
                f"{op}: expected every u and v in memory of its own, got two that overlap; "
                "clone one, and name a weight that occurs twice only once"
            )


def check_normalize(weights, u, v, sigma, coefficient) -> None:
    op = "spectral_normalize"
    _check_lists(op, weights, u=u, v=v)
    wide = accumulation_dtype(weights[0].dtype)
    for name, vectors in (("u", u), ("v", v)):
        for i, x in enumerate(vectors):
            if x.dtype not in (wide, weights[0].dtype):
                raise TypeError(f"{op}: expected {name}[{i}] of {wide}, got {x.dtype}")
    if sigma is not None:
        if not isinstance(sigma, Tensor) or sigma.dtype != wide:
            got = sigma.dtype if isinstance(sigma, Tensor) else kind(sigma)
            raise TypeError(f"{op}: expected sigma to be a tensor of {wide}, got {got}")
        if tuple(sigma.shape) != (len(weights),) or sigma.device != weights[0].device:
            raise ValueError(
                f"{op}: expected sigma of shape {(len(weights),)} on {weights[0].device}, "
                f"got {tuple(sigma.shape)} on {sigma.device}"
            )
    check_coefficient(op, coefficient)


def check_coefficient(op: str, coefficient: float | None) -> None:
    if coefficient is None:
        return
    if not isinstance(coefficient, (int, float)):
        raise TypeError(f"{op}: expected coefficient to be a number, got {kind(coefficient)}")
    if not (coefficient > 0 and math.isfinite(coefficient)):
        raise ValueError(f"{op}: expected a positive, finite coefficient, got {coefficient}")
