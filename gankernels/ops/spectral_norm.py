"""Spectral normalization of many weights in one call: schemas, fakes, autograd, plain functions.

Miyato et al. 2018 (arXiv 1802.05957), algorithm 1. The kernels behind the schemas are bound in
``csrc/bindings/spectral_norm.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gankernels import reference
from gankernels._checks import check_bool, is_choice
from gankernels._dtypes import accumulation_dtype
from gankernels._library import takes_reference
from gankernels._torch import below_autograd, in_functorch, in_jit_trace
from gankernels.ops import _operator
from gankernels.ops._checks.spectral_norm import (
    MAX_STEPS,
    check_iteration,
    check_max_norm,
    check_normalize,
)
from gankernels.ops._layout import is_dense
from gankernels.ops._operator import EXAMPLES, Draw, run
from gankernels.ops._spectral_norm_autograd import (
    Normalize,
    RetainedReference,
    SpectralNorm,
    unpack,
)
from gankernels.reference.spectral_norm import PowerIteration, move_
from gankernels.reference.spectral_norm import spectral_norm as reference_spectral_norm

Order = Literal["u_first", "v_first"]

_MAX_DIMS = 8  # kMaxColumnDims + 1 of csrc/common/matrix.h


# --- what users call ---------------------------------------------------------------------------


def power_iteration_(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    n: int = 1,
    eps: float = 1e-12,
    order: Order = "u_first",
    *,
    skipped: Tensor | None = None,
) -> PowerIteration:
    """Run ``n`` steps of the power method on every weight, in place on ``u`` and ``v``.

    With ``x / max(||x||, eps)`` written n(x), one step is ``u <- n(W v); v <- n(W^H u)`` in the
    order ``"u_first"`` (that of :func:`torch.nn.utils.parametrizations.spectral_norm`) and
    ``v <- n(W^T u); u <- n(W v)`` in the order ``"v_first"``
    (:func:`torch.nn.utils.spectral_norm`).

    Args:
        weights: any number of tensors of one dtype and device, each read as a matrix of its first
            dimension times all others; a vector of n is the matrix (n, 1). Any strides; weights
            whose memory is dense (contiguous, channels_last, transposed) are read where they are.
        u, v: contiguous tensors of shapes (rows,) and (cols,), of the weights' dtype, or all of
            float32 beside bfloat16 and float16 weights.
        n: how many steps, 1 to 1,000,000.
        eps: not negative.
        order: which of the two vectors moves first.
        skipped: int64, one element a weight, contiguous. Where given, a weight whose step ends in a
            sigma that is zero or not finite keeps its u and v, its sigma is reported as 1, and its
            element here is incremented; and a u or v that is zero or not finite to begin with, from
            which no step leads anywhere, is first replaced by a fixed unit vector. Decided on the
            device, without a synchronization.

    Returns:
        A NamedTuple ``(u, v, sigma)``, as :func:`spectral_normalize` takes them: lists of fresh
        copies of every u and v, and sigma (L,); float32 for bfloat16, float16 and float32 weights,
        else the weights' dtype. Without a gradient. Of complex weights in the order ``"v_first"``,
        which conjugates nothing, u is conjugated, so that sigma is ``u . (W v)`` as everywhere.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value; u and v are then
            unchanged.

    Not differentiable. Deterministic, whatever the number of threads.
    """
    op = "power_iteration_"
    arguments: tuple = (weights, u, v, n, eps, order, skipped)
    if _needs_checks(op, weights):
        _checked_iteration(op, *arguments)
        return reference.power_iteration_(weights, u, v, n, eps, order, skipped=skipped)
    compiling = torch.compiler.is_compiling()
    if compiling or not _skips_checks(u, v, n, eps, order):
        check_iteration(*arguments)
    try:
        packed = run(
            _operator.kernels.power_iteration_,
            _dense(weights),
            u,
            v,
            n,
            eps,
            order == "u_first",
            skipped,
        )
    except (RuntimeError, TypeError, AttributeError, IndexError):
        # The kernel refused before it touched anything; the check says which argument is wrong.
        check_iteration(*arguments)
        raise
    if not compiling:
        increment_version((*u, *v) if skipped is None else (*u, *v, skipped))
    return unpack(packed, weights)


def warm_up(
    op: str,
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    n: int,
    eps: float,
    order: Order,
    *,
    skipped: Tensor | None = None,
) -> None:
    """:func:`power_iteration_` without its result, and with the name ``op`` in errors."""
    check_iteration(weights, u, v, n, eps, order, skipped, op=op)
    if _needs_checks(op, weights):
        move_(weights, u, v, n, eps, order, skipped=skipped)
    else:
        power_iteration_(weights, u, v, n, eps, order, skipped=skipped)


def spectral_normalize(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    sigma: Tensor | None = None,
    *,
    max_norm: float | None = None,
    retain: bool = False,
    guard: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """Divide every weight by its spectral norm, ``W / sigma`` with ``sigma = u . (W v)``.

    Args:
        weights: as for :func:`power_iteration_`.
        u, v: tensors of shapes (rows,) and (cols,), held constant by the gradient. Pass copies
            (those that :func:`power_iteration_` returns), not the buffers that the next iteration
            overwrites.
        sigma: (L,), what the iteration found. Without it ``u . (W v)`` is computed (evaluation).
        max_norm: where given, the output is ``W * min(1, max_norm / sigma)``.
        retain: let several backward passes run through the result without ``retain_graph``. What
            the gradient needs then lives as long as the result does.
        guard: take 1 for a computed sigma that is zero or not finite, decided on the device. A
            ``sigma`` that is given is taken as it is: ``skipped`` has guarded it.

    Returns:
        ``(outputs, sigma)``: a tensor for every weight, of its dtype and strides (memory that is
        not dense gives a contiguous one), and all sigmas as one tensor (L,), float64 for float64
        weights and float32 for the rest.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type or value.

    Differentiable twice in the weights, through both outputs; under
    ``gankernels.backend("reference")`` to any order. A weight that needs no gradient costs no
    gradient. Numbers stay in the weights' dtype under autocast. Deterministic.
    """
    check_bool("spectral_normalize", "retain", retain)
    check_bool("spectral_normalize", "guard", guard)
    if _needs_checks("spectral_normalize", weights):
        if not in_jit_trace():
            check_normalize(weights, u, v, sigma, max_norm)
        if retain and torch.is_grad_enabled() and _takes_functions():
            sigma, *outputs = RetainedReference.apply(u, v, sigma, max_norm, guard, *weights)
            return outputs, sigma
        return reference.spectral_normalize(weights, u, v, sigma, max_norm=max_norm, guard=guard)
    compiling = torch.compiler.is_compiling()
    if compiling or max_norm is not None:
        check_normalize(weights, u, v, sigma, max_norm)
    try:
        weights = _dense(weights)
        u, v = _accumulation(u, weights[0]), _accumulation(v, weights[0])
        if sigma is not None and not sigma.is_contiguous():
            sigma = sigma.contiguous()
        trainable = [w.requires_grad for w in weights] if torch.is_grad_enabled() else [False]
        if any(trainable) and not all(trainable):
            return _split_by_gradient(trainable, weights, u, v, sigma, max_norm, retain, guard)
        if compiling:
            with torch.set_grad_enabled(trainable[0]):
                return run(
                    _operator.kernels.spectral_normalize,
                    weights,
                    u,
                    v,
                    sigma,
                    max_norm,
                    retain,
                    guard,
                )
        if trainable[0]:
            sigma, *outputs = Normalize.apply(u, v, sigma, max_norm, retain, guard, *weights)
            return outputs, sigma
        with below_autograd():
            return run(
                _operator.kernels.spectral_normalize, weights, u, v, sigma, max_norm, False, guard
            )
    except (RuntimeError, TypeError, AttributeError, IndexError):
        check_normalize(weights, u, v, sigma, max_norm)
        raise


def spectral_norm(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    n: int = 1,
    eps: float = 1e-12,
    order: Order = "u_first",
    *,
    skipped: Tensor | None = None,
    max_norm: float | None = None,
    retain: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """One forward pass of training: :func:`power_iteration_`, then :func:`spectral_normalize`.

    Arguments, results, errors and gradients are those of the two; it does without the views between
    them. All weights must agree in whether they require a gradient.
    """
    op = "spectral_norm"
    arguments: tuple = (weights, u, v, n, eps, order, skipped)
    check_bool(op, "retain", retain)
    if max_norm is not None:
        check_max_norm(op, max_norm)
    if _needs_checks(op, weights):
        _checked_iteration(op, *arguments)
        if not retain:
            return reference_spectral_norm(*arguments[:6], skipped=skipped, max_norm=max_norm)
        left, right, sigmas = move_(*arguments[:6], skipped=skipped)
        sigma = torch.stack(sigmas)
        return spectral_normalize(weights, left, right, sigma, max_norm=max_norm, retain=retain)
    if torch.compiler.is_compiling():
        check_iteration(*arguments, op=op)
        u, v, sigma = power_iteration_(weights, u, v, n, eps, order, skipped=skipped)
        return spectral_normalize(weights, u, v, sigma, max_norm=max_norm, retain=retain)
    if not _skips_checks(u, v, n, eps, order):
        check_iteration(*arguments, op=op)
    step = (u, v, n, eps, order == "u_first", skipped, max_norm)
    try:
        weights = _dense(weights)
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
            sigma, *outputs = SpectralNorm.apply(step, retain, *weights)
        else:
            with below_autograd():
                _, sigma, outputs = run(_operator.kernels.spectral_norm_, weights, *step)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        check_iteration(*arguments, op=op)
        raise
    increment_version((*u, *v) if skipped is None else (*u, *v, skipped))
    return outputs, sigma


def spectral_norm_again(weights: Sequence[Tensor], step: tuple) -> Sequence[Tensor]:
    """The outputs of :func:`spectral_norm` with ``retain=True``, of plain weights that all require
    gradients, where it has served the same call before; ``step`` is what follows the weights in
    the schema of ``spectral_norm_``. Nothing is checked but by the kernel.
    """
    _, *outputs = SpectralNorm.apply(step, True, *weights)
    increment_version((*step[0], *step[1]))
    return outputs


def _needs_checks(op: str, weights: Sequence[Tensor]) -> bool:
    # The call goes to the reference, or is refused: the kernel would not find the words.
    if not isinstance(weights, (list, tuple)) or not weights or not isinstance(weights[0], Tensor):
        return True
    # A trace must hold for other inputs, wherever it is loaded: it gets torch's own operators.
    return in_jit_trace() or takes_reference(op, weights)


def _checked_iteration(op: str, *arguments: Any) -> None:
    # To look at shapes would make the tracer warn; what is wrong, torch refuses.
    if not in_jit_trace():
        check_iteration(*arguments, op=op)


def _skips_checks(u: object, v: object, n: int, eps: float, order: object) -> bool:
    # The kernel would convert all else, or take for ever, and not refuse.
    lists = isinstance(u, (list, tuple)) and isinstance(v, (list, tuple))
    numbers = type(n) is int and n <= MAX_STEPS and type(eps) is float
    return lists and numbers and is_choice(order, ("u_first", "v_first"))


def _takes_functions() -> bool:
    # Compilers, transforms and tracers look through an autograd.Function of ours.
    return not (torch.compiler.is_compiling() or in_functorch() or in_jit_trace())


def _split_by_gradient(
    trainable: list[bool],
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    sigma: Tensor | None,
    max_norm: float | None,
    retain: bool,
    guard: bool,
) -> tuple[list[Tensor], Tensor]:
    # One trainable element would make every output of the call require a gradient.
    outputs: list[Any] = [None] * len(weights)
    sigmas: list[Any] = [None] * len(weights)
    for wanted in (True, False):
        index = [i for i, t in enumerate(trainable) if t is wanted]
        part = None if sigma is None else torch.stack([sigma[i] for i in index])
        w_part, u_part, v_part = ([x[i] for i in index] for x in (weights, u, v))
        out, s = spectral_normalize(
            w_part, u_part, v_part, part, max_norm=max_norm, retain=retain, guard=guard
        )
        for k, i in enumerate(index):
            outputs[i], sigmas[i] = out[k], s[k]
    return outputs, torch.stack(sigmas)


# --- layouts ------------------------------------------------------------------------


def _dense(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    if all(w.is_contiguous() or _is_read_in_place(w) for w in weights):
        return weights
    return [w if w.is_contiguous() or _is_read_in_place(w) else w.contiguous() for w in weights]


def _is_read_in_place(weight: Tensor) -> bool:
    return is_dense(weight) and (weight.dim() <= _MAX_DIMS or _column_dims(weight) < _MAX_DIMS)


def _column_dims(weight: Tensor) -> int:
    # Columns that lie in memory as one dimension would count once.
    count, before = 0, None
    for size, stride in zip(weight.shape[1:], weight.stride()[1:], strict=True):
        if size != 1:
            count += before != size * stride
            before = stride
    return count


def _accumulation(vectors: Sequence[Tensor], weight: Tensor) -> Sequence[Tensor]:
    dtype = accumulation_dtype(weight.dtype)
    if all(x.dtype == dtype and x.is_contiguous() for x in vectors):
        return vectors
    return [x.to(dtype).contiguous() if x.dtype == weight.dtype else x for x in vectors]


def _example(draw: Draw) -> dict[str, Any]:
    weights = [
        draw(*shape).requires_grad_() for shape in ((64, 32, 3, 3), (10, 7), (1, 5), (33, 31))
    ]
    return {
        "weights": weights,
        "u": [draw(w.shape[0]) for w in weights],
        "v": [draw(w.numel() // w.shape[0]) for w in weights],
    }


EXAMPLES["power_iteration_"] = lambda draw: {**_example(draw), "n": 2}
EXAMPLES["spectral_normalize"] = _example
EXAMPLES["spectral_norm"] = _example
