"""Checks of the arguments of power_iteration_ and spectral_normalize."""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gankernels._checks import check_number, check_strided, is_choice, is_tensors, kind
from gankernels._dtypes import NATIVE_DTYPES, accumulation_dtype
from gankernels._library import is_foreign
from gankernels._torch import in_functorch, is_fake

#: Steps of the power method in one call: it has come to rest by then, or never will.
MAX_STEPS = 1_000_000
#: What the reference can compute in besides.
_COMPLEX_DTYPES = frozenset({torch.complex64, torch.complex128})


def check_weight(op: str, name: str, w: Tensor, *, shards: bool = False) -> None:
    """Refuse tensors without strides, dtypes that nothing is computed in, and, unless ``shards``,
    split tensors."""
    if w.is_nested or w.layout is not torch.strided:
        layout = "a nested tensor" if w.is_nested else str(w.layout)
        cure = "make a call for each part" if w.is_nested else f"pass {name}.to_dense()"
        raise TypeError(f"{op}: expected {name} to be a dense tensor, got {layout}; {cure}")
    if w.dtype not in NATIVE_DTYPES and w.dtype not in _COMPLEX_DTYPES:
        raise TypeError(
            f"{op}: expected {name} of bfloat16, float16, float32, float64 or complex (64 or 128), "
            f"got {w.dtype}; convert it first"
        )
    placements = getattr(w, "placements", None)  # of a DTensor
    if placements is not None and not (shards or all(p.is_replicate() for p in placements)):
        raise TypeError(
            f"{op}: expected {name} to be whole on every rank, got a DTensor of placements "
            f"{tuple(placements)}; pass {name}.full_tensor(), or redistribute it to Replicate()"
        )


def check_steps(op: str, name: str, n: object, least: int = 1) -> None:
    """Refuse what is no number of steps of the power method."""
    if isinstance(n, bool) or not (isinstance(n, int) or is_integer(n)):
        raise TypeError(f"{op}: expected {name} to be an int, got {kind(n)}")
    if n < least:  # type: ignore[operator]
        raise ValueError(f"{op}: expected {name} to be at least {least}, got {n}")
    if n > MAX_STEPS:  # type: ignore[operator]
        raise ValueError(f"{op}: expected {name} to be at most {MAX_STEPS:,}, got {n}")


def is_integer(n: object) -> bool:
    """Whether a value is an integer, of numpy for one; classes and arrays have __index__ too."""
    try:
        operator.index(n)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def check_eps(op: str, eps: object) -> None:
    """Refuse what is not a finite number of at least 0."""
    check_number(op, "eps", eps)
    if eps > sys.float_info.max:  # type: ignore[operator]
        raise ValueError(f"{op}: expected eps to be finite, got an integer that no float can hold")


def _check_lists(op: str, weights: Sequence[Tensor], **lists: Sequence[Tensor]) -> None:
    check_tensors(op, "weights", weights)
    if not weights:
        raise ValueError(f"{op}: expected at least one weight, got an empty list")
    first = weights[0]
    for i, w in enumerate(weights):
        check_weight(op, f"weights[{i}]", w)
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
    for name, vectors in lists.items():
        check_tensors(op, name, vectors)
        if len(vectors) != len(weights):
            raise ValueError(
                f"{op}: expected {name} to have one vector a weight, {len(weights)}, "
                f"got {len(vectors)}"
            )
        for i, (w, x) in enumerate(zip(weights, vectors, strict=True)):
            size = w.shape[0] if name == "u" else w.numel() // w.shape[0]
            check_weight(op, f"{name}[{i}]", x)
            if tuple(x.shape) != (size,):
                raise ValueError(
                    f"{op}: expected {name}[{i}] of shape {(size,)} for a weight of shape "
                    f"{tuple(w.shape)}, got {tuple(x.shape)}"
                )
            if x.device != w.device:
                raise ValueError(f"{op}: expected {name}[{i}] on {w.device}, got it on {x.device}")


def check_tensors(op: str, name: str, values: object) -> None:
    """Refuse what is not a list or tuple of tensors; an iterator would be used up by checks."""
    if isinstance(values, (list, tuple)) and is_tensors(values):
        return
    cure = "" if isinstance(values, (Tensor, str)) else f"; pass list({name})"
    cure = cure if isinstance(values, Iterable) and not isinstance(values, (list, tuple)) else ""
    raise TypeError(f"{op}: expected {name} to be a list of tensors, got {kind(values)}{cure}")


def check_iteration(weights, u, v, n, eps, order, skipped, *, op="power_iteration_") -> None:
    """Refuse what the power iteration cannot take, in the name of ``op``."""
    _check_lists(op, weights, u=u, v=v)
    if not is_choice(order, ("u_first", "v_first")):
        raise ValueError(f'{op}: expected order "u_first" or "v_first", got {order!r}')
    check_steps(op, "n", n)
    check_eps(op, eps)
    dtype = weights[0].dtype
    wide = u[0].dtype == accumulation_dtype(dtype) != dtype
    wanted, whose = (u[0].dtype, "as u[0] is, ") if wide else (dtype, "the weights' ")
    for name, vectors in (("u", u), ("v", v)):
        for i, x in enumerate(vectors):
            if x.dtype != wanted:
                raise TypeError(f"{op}: expected {name}[{i}] of {whose}{wanted}, got {x.dtype}")
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
        check_strided(op, "skipped", skipped)
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
    if any(is_fake(x) or is_foreign(x) for x in vectors):
        return  # there is no memory that could be compared
    spans = sorted((x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()) for x in vectors)
    for (_, end), (start, _) in pairwise(spans):
        if start < end:
            raise ValueError(
                f"{op}: expected every u and v in memory of its own, got two that overlap; "
                "clone one, and name a weight that occurs twice only once"
            )


def check_normalize(weights, u, v, sigma, max_norm) -> None:
    op = "spectral_normalize"
    _check_lists(op, weights, u=u, v=v)
    accumulation = accumulation_dtype(weights[0].dtype)
    for name, vectors in (("u", u), ("v", v)):
        for i, x in enumerate(vectors):
            if x.dtype not in (accumulation, weights[0].dtype):
                raise TypeError(f"{op}: expected {name}[{i}] of {accumulation}, got {x.dtype}")
    if sigma is not None:
        if not isinstance(sigma, Tensor) or sigma.dtype != accumulation:
            got = sigma.dtype if isinstance(sigma, Tensor) else kind(sigma)
            raise TypeError(f"{op}: expected sigma to be a tensor of {accumulation}, got {got}")
        check_weight(op, "sigma", sigma)
        if tuple(sigma.shape) != (len(weights),) or sigma.device != weights[0].device:
            raise ValueError(
                f"{op}: expected sigma of shape {(len(weights),)} on {weights[0].device}, "
                f"got {tuple(sigma.shape)} on {sigma.device}"
            )
    check_max_norm(op, max_norm)


def check_max_norm(op: str, max_norm: float | None) -> None:
    if max_norm is None:
        return
    if isinstance(max_norm, bool) or not isinstance(max_norm, (int, float)):
        raise TypeError(f"{op}: expected max_norm to be a number, got {kind(max_norm)}")
    if not 0 < max_norm <= sys.float_info.max:  # an integer may be finite and yet no float
        raise ValueError(f"{op}: expected max_norm to be a positive, finite number, got {max_norm}")
