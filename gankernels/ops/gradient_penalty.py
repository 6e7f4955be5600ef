"""Penalties on the norms of gradients in one call: schema, fake, autograd, and the plain function.

Gulrajani et al. 2017 (arXiv 1704.00028), equation 3; Mescheder et al. 2018 (arXiv 1801.04406),
section 4.1. The kernels behind the schemas are bound in ``csrc/bindings/gradient_penalty.cpp``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from gankernels import reference
from gankernels._checks import (
    check_bool,
    is_choice,
    is_lazy_iterable,
    kind,
    third_order,
)
from gankernels._dtypes import accumulation_dtype
from gankernels._library import takes_reference
from gankernels._torch import below_autograd, in_jit_trace
from gankernels.ops import _operator
from gankernels.ops._checks.gradient_penalty import REDUCTIONS, check
from gankernels.ops._layout import is_dense
from gankernels.ops._operator import (
    EXAMPLES,
    Operator,
    call_below_autograd,
    declare,
    one_device,
    run,
)

Reduction = Literal["mean", "sum", "none"]


# --- what users call ---------------------------------------------------------------------------


@overload
def gradient_penalty(
    grads: Tensor | Sequence[Tensor],
    *,
    center: float = ...,
    one_sided: bool = ...,
    weight: float = ...,
    sample_weight: Tensor | None = ...,
    inv_scale: Tensor | None = ...,
    per_tensor: bool = ...,
    reduction: Reduction = ...,
    return_norms: Literal[False] = ...,
) -> Tensor: ...


@overload
def gradient_penalty(
    grads: Tensor | Sequence[Tensor],
    *,
    center: float = ...,
    one_sided: bool = ...,
    weight: float = ...,
    sample_weight: Tensor | None = ...,
    inv_scale: Tensor | None = ...,
    per_tensor: bool = ...,
    reduction: Reduction = ...,
    return_norms: Literal[True],
) -> tuple[Tensor, Tensor]: ...


def gradient_penalty(
    grads: Tensor | Sequence[Tensor],
    *,
    center: float = 0.0,
    one_sided: bool = False,
    weight: float = 1.0,
    sample_weight: Tensor | None = None,
    inv_scale: Tensor | None = None,
    per_tensor: bool = False,
    reduction: Reduction = "mean",
    return_norms: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Penalize the norm of every sample's gradient, ``weight * mean((n_i - center)^2)``.

    ``n_i`` is the 2-norm of ``grads[i]`` over everything but the batch, and over all tensors where
    a list is given. Gradients come from ``torch.autograd.grad(logits.sum(), x,
    create_graph=True)``; :mod:`gankernels.penalties` has whole penalties.

    Args:
        grads: a tensor (B, ...), or a list of them with one B (several scales or inputs), of one
            floating-point dtype and device. Contiguous and channels_last gradients, and every other
            layout in which samples are dense and follow each other, are read where they are.
        center: c >= 0, where the penalty is zero: 1 for WGAN-GP, 0 for R1.
        one_sided: penalize ``max(0, n_i - center)^2`` instead (WGAN-LP).
        weight: factor of the result, not negative.
        sample_weight: (B,), a factor for each sample; differentiable. A mean is over B, not over
            the sum of these.
        inv_scale: one element. Gradients that were scaled by S come with 1 / S here; the norms are
            those of the unscaled gradients. Held constant by the gradient.
        per_tensor: a norm and a penalty for every tensor of the list by itself.
        reduction: ``"mean"`` or ``"sum"`` over the batch, or ``"none"``.
        return_norms: also return the norms, detached; they cost no extra pass.

    Returns:
        The penalty: a scalar, or (B,) without a reduction; with ``per_tensor`` (L,) or (L, B). With
        ``return_norms`` a pair of it and the norms, (B,) or (L, B). float64 for float64 gradients,
        float32 for the rest, which is also what squares are summed in.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    Differentiable twice in ``grads`` and ``sample_weight``, to any order under
    ``gankernels.backend("reference")``. Where a norm is 0 and ``center`` above it, the subgradient
    0 is taken; results are finite wherever the squared norms neither overflow nor underflow.
    Deterministic, whatever the number of threads. The forward reads the gradients once, the
    backward reads them once and allocates what it returns.
    """
    if isinstance(grads, Tensor):
        listed: Sequence[Tensor] = (grads,)
    elif isinstance(grads, (list, tuple)) and grads and all(isinstance(g, Tensor) for g in grads):
        listed = grads
    else:
        got, cure = kind(grads), "; pass list(grads)" if is_lazy_iterable(grads) else ""
        if isinstance(grads, (list, tuple)):
            others = [kind(g) for g in grads if not isinstance(g, Tensor)]
            got, cure = f"{got} with {others[0]}" if others else "an empty list", ""
        raise TypeError(
            "gradient_penalty: expected grads to be a tensor or a list of tensors, with at least "
            f"one, got {got}{cure}"
        )
    if not isinstance(return_norms, bool):
        check_bool("gradient_penalty", "return_norms", return_norms)
    rest = (center, one_sided, weight, sample_weight, inv_scale, per_tensor, reduction)
    if takes_reference("gradient_penalty", listed):
        check(listed, *rest)
        values, norms = reference.gradient_penalty(
            listed,
            center=center,
            one_sided=one_sided,
            weight=weight,
            sample_weight=sample_weight,
            inv_scale=inv_scale,
            per_tensor=per_tensor,
            reduction=reduction,
            return_norms=True,
        )
        return (values, norms) if return_norms else values
    compiling = torch.compiler.is_compiling()
    if compiling or not _skips_checks(*rest):
        check(listed, *rest)
    try:
        number = REDUCTIONS.index(reduction)
        options = (float(center), one_sided, float(weight), per_tensor, number)
        listed = [_samples_first(g) for g in listed]
        if sample_weight is not None or inv_scale is not None:
            dtype = accumulation_dtype(listed[0].dtype)
            sample_weight = _as_acc(sample_weight, dtype)
            inv_scale = None if inv_scale is None else _as_acc(inv_scale.detach(), dtype)
        if compiling or in_jit_trace():  # which cannot save a Function
            # A weight is part of the graph as an argument of the operator, which would be compiled
            # anew whenever an annealed one changes; as a factor it is not.
            unweighted = (options[0], one_sided, 1.0, per_tensor, number)
            values, norms = run(
                _operator.kernels.gradient_penalty, listed, sample_weight, inv_scale, *unweighted
            )
            values, norms = weight * values, norms.detach()
        elif torch.is_grad_enabled() and _any_grad(listed, sample_weight):
            norms_out: list[Tensor] = []
            values = _GradientPenalty.apply(options, norms_out, sample_weight, inv_scale, *listed)
            norms = norms_out[0]
        else:
            with below_autograd():
                values, norms = run(
                    _operator.kernels.gradient_penalty, listed, sample_weight, inv_scale, *options
                )
    except (RuntimeError, TypeError, AttributeError, ValueError, IndexError):
        # The kernel or its fake refused; the check says which argument is wrong.
        check(listed, *rest)
        raise
    return (values, norms) if return_norms else values


def _skips_checks(
    center, one_sided, weight, sample_weight, inv_scale, per_tensor, reduction
) -> bool:
    # There is nothing in them that the kernels would take and should not.
    return (
        type(one_sided) is type(per_tensor) is bool
        and type(center) in (float, int)
        and type(weight) in (float, int)
        and 0 <= center <= sys.float_info.max
        and 0 <= weight <= sys.float_info.max
        and is_choice(reduction, REDUCTIONS)
        and sample_weight is None
        and inv_scale is None
    )


def _any_grad(grads: Sequence[Tensor], sample_weight: Tensor | None) -> bool:
    wanted = sample_weight is not None and sample_weight.requires_grad
    return wanted or any(g.requires_grad for g in grads)


def _samples_first(g: Tensor) -> Tensor:
    """``g`` where samples are dense and follow each other in memory, else a contiguous copy."""
    if g.is_contiguous():
        return g
    if torch.compiler.is_compiling():  # strides may be symbols, which cannot be sorted
        named = {4: torch.channels_last, 5: torch.channels_last_3d}.get(g.dim())
        dense = named is not None and g.is_contiguous(memory_format=named)
        return g if dense else g.contiguous()
    follow = g.shape[0] == 1 or g.stride(0) * g.shape[0] == g.numel()
    return g if follow and is_dense(g) else g.contiguous()


def _as_acc(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype).contiguous()


# --- fakes and autograd ------------------------------------------------------------------------


def _fake(grads, sample_weight, inv_scale, center, one_sided, weight, per_tensor, reduction):
    one_device(*grads, sample_weight, inv_scale)
    rows = [len(grads), grads[0].shape[0]] if per_tensor else [grads[0].shape[0]]
    dtype = accumulation_dtype(grads[0].dtype)
    values = rows if reduction == 0 else rows[:-1]
    return grads[0].new_empty(values, dtype=dtype), grads[0].new_empty(rows, dtype=dtype)


def _fake_backward(seed, grads, norms, sample_weight, *_):
    size = 0 if sample_weight is None else grads[0].shape[0]
    return [torch.empty_like(g) for g in grads], norms.new_empty([size])


def _fake_double_backward(h, e, seed, grads, norms, sample_weight, *_):
    out, d_weight = _fake_backward(seed, grads, norms, sample_weight)
    return out, torch.empty_like(seed, memory_format=torch.contiguous_format), d_weight


def _backward_op(seed, *args) -> tuple[list[Tensor], Tensor]:
    return call_below_autograd(
        _operator.kernels.gradient_penalty_backward, seed.contiguous(), *args
    )


class _GradientPenalty(torch.autograd.Function):
    """The autograd in eager mode; takes a third of the registered one's time.

    Compiled graphs take the registered one: there a double backward through a Function goes wrong.
    """

    @staticmethod
    def forward(ctx, options, norms_out, sample_weight, inv_scale, *grads):
        with below_autograd():
            values, norms = run(
                _operator.kernels.gradient_penalty, grads, sample_weight, inv_scale, *options
            )
        ctx.options = options
        ctx.save_for_backward(norms, sample_weight, inv_scale, *grads)
        norms_out.append(norms)  # as an output, without a gradient, it would cost more
        return values

    @staticmethod
    def backward(ctx, seed):
        norms, sample_weight, inv_scale, *grads = ctx.saved_tensors
        out, d_weight = _backward_op(seed, grads, norms, sample_weight, inv_scale, *ctx.options)
        return None, None, None if sample_weight is None else d_weight, None, *out


_NONE = (None,) * 5  # center to reduction


def _setup(ctx, inputs, output):
    grads, sample_weight, inv_scale, *options = inputs
    ctx.set_materialize_grads(False)
    ctx.options = options
    ctx.save_for_backward(output[1], sample_weight, inv_scale, *grads)


def _backward(ctx, seed, _norms):
    norms, sample_weight, inv_scale, *grads = ctx.saved_tensors
    if seed is None:
        return [None] * len(grads), None, None, *_NONE
    out, d_weight = _backward_op(seed, grads, norms, sample_weight, inv_scale, *ctx.options)
    return out, None if sample_weight is None else d_weight, None, *_NONE


def _setup_backward(ctx, inputs, output):
    seed, grads, norms, sample_weight, inv_scale, *options = inputs
    ctx.set_materialize_grads(False)
    ctx.options = options
    ctx.save_for_backward(seed, norms, sample_weight, inv_scale, *grads)


def _backward_backward(ctx, h, e):
    seed, norms, sample_weight, inv_scale, *grads = ctx.saved_tensors
    h = [None] * len(grads) if h is None else h
    h = [torch.zeros_like(g) if x is None else x for x, g in zip(h, grads, strict=True)]
    e = None if e is None or sample_weight is None else e.contiguous()
    out, d_seed, d_weight = run(
        _operator.kernels.gradient_penalty_double_backward,
        h,
        e,
        seed,
        grads,
        norms,
        sample_weight,
        inv_scale,
        *ctx.options,
    )
    return d_seed, out, None, None if sample_weight is None else d_weight, None, *_NONE


def _third_order(ctx, *grads):
    raise third_order("gradient_penalty")


_OPTIONS = (
    "Tensor? sample_weight, Tensor? inv_scale, float center, bool one_sided, float weight, "
    "bool per_tensor, int reduction"
)
OPERATORS = (
    Operator(
        f"gradient_penalty(Tensor[] grads, {_OPTIONS}) -> (Tensor, Tensor)",
        _fake,
        _backward,
        _setup,
    ),
    Operator(
        "gradient_penalty_backward(Tensor seed, Tensor[] grads, Tensor norms, "
        f"{_OPTIONS}) -> (Tensor[], Tensor)",
        _fake_backward,
        _backward_backward,
        _setup_backward,
    ),
    Operator(
        "gradient_penalty_double_backward(Tensor[] h, Tensor? e, Tensor seed, Tensor[] grads, "
        f"Tensor norms, {_OPTIONS}) -> (Tensor[], Tensor, Tensor)",
        _fake_double_backward,
        _third_order,
    ),
)

declare(*OPERATORS)


EXAMPLES["gradient_penalty"] = lambda draw: {
    "grads": [draw(4, 3, 8, 8).requires_grad_(), draw(4, 31).requires_grad_()],
    "center": 1.0,
    "return_norms": True,
}
