"""Spectral normalisation of many weights in one call: schemas, fakes, autograd, plain functions.

Miyato et al. 2018 (arXiv 1802.05957), algorithm 1. The kernels behind the schemas are bound in
``csrc/bindings/spectral_norm.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gankernels import reference
from gankernels._checks import check_bool, is_choice, third_order
from gankernels._dtypes import accumulation_dtype
from gankernels._layout import is_dense
from gankernels._library import LIBRARY, takes_reference
from gankernels._torch import below_autograd, in_functorch, in_jit_trace
from gankernels.ops._spectral_norm_checks import (
    MAX_STEPS,
    check_coefficient,
    check_iteration,
    check_normalize,
    check_packed,
    check_tensors,
)
from gankernels.reference.spectral_norm import PACK, move_

Order = Literal["u_first", "v_first"]

_SCHEMAS = (
    "power_iteration_(Tensor[] weights, Tensor(a!)[] u, Tensor(b!)[] v, int n, float eps, "
    "bool u_first, Tensor(c!)? skipped=None) -> Tensor",
    # Both at once, for eager mode only: torch cannot compile an op that mutates lists and returns
    # one.
    "spectral_norm_(Tensor[] weights, Tensor(a!)[] u, Tensor(b!)[] v, int n, float eps, "
    "bool u_first, Tensor(c!)? skipped, float? coefficient) -> (Tensor, Tensor, Tensor[])",
    "spectral_normalize(Tensor[] weights, Tensor[] u, Tensor[] v, Tensor? sigma, "
    "float? coefficient, bool retain, bool guard) -> (Tensor[], Tensor)",
    "spectral_normalize_backward(Tensor[] grads, Tensor[] weights, Tensor[] u, Tensor[] v, "
    "Tensor sigma, Tensor? grad_sigma, float? coefficient) -> Tensor[]",
    "spectral_normalize_double_backward(Tensor[] h, Tensor[] grads, Tensor[] weights, Tensor[] u, "
    "Tensor[] v, Tensor sigma, Tensor? grad_sigma, float? coefficient) "
    "-> (Tensor[], Tensor[], Tensor)",
)
#: Where the operators are called: the tests put the emulated CUDA kernels here.
_ops: Any = torch.ops.gankernels
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
) -> Tensor:
    """Run ``n`` steps of the power method on every weight, in place on ``u`` and ``v``.

    With ``x / max(||x||, eps)`` written n(x), one step is ``u <- n(W v); v <- n(W^H u)`` in the
    order ``"u_first"`` (that of :func:`torch.nn.utils.parametrizations.spectral_norm`) and
    ``v <- n(W^T u); u <- n(W v)`` in the order ``"v_first"``
    (:func:`torch.nn.utils.spectral_norm`).

    Args:
        weights: any number of tensors of one dtype and device, each read as a matrix of its first
            dimension times all others; a vector of n is the matrix (n, 1). Any strides; weights
            whose memory is dense (contiguous, channels_last, transposed) are read where they are.
        u, v: contiguous tensors of shapes (rows,) and (cols,), of the weights' dtype.
        n: how many steps, 1 to 1,000,000.
        eps: not negative.
        order: which of the two vectors moves first.
        skipped: int64, one element a weight, contiguous. Where given, a weight whose step ends in a
            sigma that is zero or not finite keeps its u and v, its sigma is reported as 1, and its
            element here is incremented; and a u or v that is zero or not finite to begin with, from
            which no step leads anywhere, is first replaced by a fixed unit vector. Decided on the
            device, without a synchronisation.

    Returns:
        One tensor with fresh copies of every sigma, u and v, for :func:`unpack`; float32 for
        bfloat16, float16 and float32 weights, else the weights' dtype. It needs no gradient. Of
        complex weights in the order ``"v_first"``, which conjugates nothing, it has the conjugate
        of u, so that sigma is ``u . (W v)`` as everywhere.

    Raises:
        TypeError, ValueError: if an argument is none of the above; u and v are then unchanged.

    Not differentiable. Deterministic, whatever the number of threads.
    """
    op = "power_iteration_"
    arguments: tuple = (weights, u, v, n, eps, order, skipped)
    if _needs_checks(op, weights):
        _checked_iteration(op, *arguments)
        return reference.power_iteration_(weights, u, v, n, eps, order, skipped=skipped)
    compiling = torch.compiler.is_compiling()
    if compiling or not _is_plain(u, v, n, eps, order):
        check_iteration(*arguments)
    try:
        packed = _ops.power_iteration_(_dense(weights), u, v, n, eps, order == "u_first", skipped)
    except (RuntimeError, TypeError, AttributeError):
        # The kernel refused before it touched anything; find the words for what it was given.
        check_iteration(*arguments)
        raise
    if not compiling:
        increment_version((*u, *v) if skipped is None else (*u, *v, skipped))
    return packed


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


def unpack(
    packed: Tensor, weights: Sequence[Tensor]
) -> tuple[Sequence[Tensor], Sequence[Tensor], Tensor]:
    """Split the result of :func:`power_iteration_` into views: every u, every v, and sigma (L,).

    Raises:
        TypeError, ValueError: if it is not the result for these ``weights``.
    """
    check_tensors("unpack", "weights", weights)
    sizes: list[int] = []
    wanted: list[int] = []
    for size in _part_sizes(weights):
        wanted.append(len(sizes))
        sizes.append(size)
        if padding := -size % PACK:
            sizes.append(padding)
    check_packed(packed, sum(sizes))
    views = packed.split_with_sizes(sizes)
    parts = [views[i] for i in wanted]
    return parts[1::2], parts[2::2], parts[0]


def spectral_normalize(
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    sigma: Tensor | None = None,
    *,
    coefficient: float | None = None,
    retain: bool = False,
    guard: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """Divide every weight by its spectral norm, ``W / sigma`` with ``sigma = u . (W v)``.

    Args:
        weights: as for :func:`power_iteration_`.
        u, v: tensors of shapes (rows,) and (cols,), held constant by the gradient. Pass copies
            (those of :func:`unpack`), not the buffers that the next iteration overwrites.
        sigma: (L,), what the iteration found. Without it ``u . (W v)`` is computed (evaluation).
        coefficient: where given, the output is ``W * min(1, coefficient / sigma)``.
        retain: let several backward passes run through the result without ``retain_graph``. What
            the gradient needs then lives as long as the result does.
        guard: take 1 for a computed sigma that is zero or not finite, decided on the device. A
            ``sigma`` that is given is taken as it is: ``skipped`` has guarded it.

    Returns:
        ``(outputs, sigma)``: a tensor for every weight, of its dtype and strides (memory that is
        not dense gives a contiguous one), and all sigmas as one tensor (L,), float64 for float64
        weights and float32 for the rest.

    Raises:
        TypeError, ValueError: if an argument is none of the above.

    Differentiable twice in the weights, through both outputs; under
    ``gankernels.backend("reference")`` to any order. A weight that needs no gradient costs no
    gradient. Numbers stay in the weights' dtype under autocast. Deterministic.
    """
    check_bool("spectral_normalize", "retain", retain)
    check_bool("spectral_normalize", "guard", guard)
    if _needs_checks("spectral_normalize", weights):
        if not in_jit_trace():
            check_normalize(weights, u, v, sigma, coefficient)
        if retain and torch.is_grad_enabled() and _takes_functions():
            sigma, *outputs = _RetainedReference.apply(u, v, sigma, coefficient, guard, *weights)
            return outputs, sigma
        return reference.spectral_normalize(
            weights, u, v, sigma, coefficient=coefficient, guard=guard
        )
    compiling = torch.compiler.is_compiling()
    if compiling or coefficient is not None:
        check_normalize(weights, u, v, sigma, coefficient)
    try:
        weights = _dense(weights)
        u, v = _accumulation(u, weights[0]), _accumulation(v, weights[0])
        if sigma is not None and not sigma.is_contiguous():
            sigma = sigma.contiguous()
        trainable = [w.requires_grad for w in weights] if torch.is_grad_enabled() else [False]
        if any(trainable) and not all(trainable):
            return _split_by_gradient(trainable, weights, u, v, sigma, coefficient, retain, guard)
        if compiling:
            with torch.set_grad_enabled(trainable[0]):
                return _ops.spectral_normalize(weights, u, v, sigma, coefficient, retain, guard)
        if trainable[0]:
            sigma, *outputs = _Normalize.apply(u, v, sigma, coefficient, retain, guard, *weights)
            return outputs, sigma
        with below_autograd():
            return _ops.spectral_normalize(weights, u, v, sigma, coefficient, False, guard)
    except (RuntimeError, TypeError, AttributeError):
        check_normalize(weights, u, v, sigma, coefficient)
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
    coefficient: float | None = None,
    retain: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """One forward pass of training: :func:`power_iteration_`, then :func:`spectral_normalize`.

    Arguments, results, errors and gradients are those of the two; it does without the views between
    them. All weights must agree in whether they require a gradient.
    """
    op = "spectral_norm"
    arguments: tuple = (weights, u, v, n, eps, order, skipped)
    check_bool(op, "retain", retain)
    if coefficient is not None:
        check_coefficient(op, coefficient)
    if _needs_checks(op, weights):
        _checked_iteration(op, *arguments)
        if not retain:
            return reference.spectral_norm(*arguments[:6], skipped=skipped, coefficient=coefficient)
        left, right, sigmas = move_(*arguments[:6], skipped=skipped)
        sigma = torch.stack(sigmas)
        return spectral_normalize(
            weights, left, right, sigma, coefficient=coefficient, retain=retain
        )
    if torch.compiler.is_compiling():
        check_iteration(*arguments, op=op)
        packed = power_iteration_(weights, u, v, n, eps, order, skipped=skipped)
        u, v, sigma = unpack(packed, weights)
        return spectral_normalize(weights, u, v, sigma, coefficient=coefficient, retain=retain)
    if not _is_plain(u, v, n, eps, order):
        check_iteration(*arguments, op=op)
    step = (u, v, n, eps, order == "u_first", skipped, coefficient)
    try:
        weights = _dense(weights)
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
            sigma, *outputs = _SpectralNorm.apply(step, retain, *weights)
        else:
            with below_autograd():
                _, sigma, outputs = _ops.spectral_norm_(weights, *step)
    except (RuntimeError, TypeError, AttributeError):
        check_iteration(*arguments, op=op)
        raise
    increment_version((*u, *v) if skipped is None else (*u, *v, skipped))
    return outputs, sigma


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


def _is_plain(u: object, v: object, n: int, eps: float, order: object) -> bool:
    # What may go to the kernel unseen: it would convert, or take for ever, and not refuse.
    lists = isinstance(u, (list, tuple)) and isinstance(v, (list, tuple))
    numbers = type(n) is int and n <= MAX_STEPS and type(eps) is float
    return lists and numbers and is_choice(order, ("u_first", "v_first"))


def _takes_functions() -> bool:
    # Whether an autograd.Function of ours does: compilers, transforms and tracers look through it.
    return not (torch.compiler.is_compiling() or in_functorch() or in_jit_trace())


def _split_by_gradient(
    trainable: list[bool],
    weights: Sequence[Tensor],
    u: Sequence[Tensor],
    v: Sequence[Tensor],
    sigma: Tensor | None,
    coefficient: float | None,
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
            w_part, u_part, v_part, part, coefficient=coefficient, retain=retain, guard=guard
        )
        for k, i in enumerate(index):
            outputs[i], sigmas[i] = out[k], s[k]
    return outputs, torch.stack(sigmas)


# --- fakes and autograd ------------------------------------------------------------------------


def _one_device(weights, *tensors) -> None:
    # The fakes answer for a call in which any tensor is a meta tensor.
    if any(x is not None and x.device != weights[0].device for x in tensors):
        raise RuntimeError("expected all tensors on one device")


def _fake_power_iteration(weights, u, v, n, eps, u_first, skipped=None):
    _one_device(weights, *weights, *u, *v, skipped)
    total = sum(size + -size % PACK for size in _part_sizes(weights))
    return weights[0].new_empty(total, dtype=accumulation_dtype(weights[0].dtype))


def _fake_spectral_norm(weights, u, v, n, eps, u_first, skipped, coefficient):
    packed = _fake_power_iteration(weights, u, v, n, eps, u_first, skipped)
    return packed, packed.new_empty(len(weights)), [torch.empty_like(w) for w in weights]


def _fake_normalize(weights, u, v, sigma, coefficient, retain, guard=False):
    _one_device(weights, *weights, *u, *v, sigma)
    dtype = accumulation_dtype(weights[0].dtype)
    return [torch.empty_like(w) for w in weights], weights[0].new_empty(len(weights), dtype=dtype)


def _fake_backward(grads, weights, u, v, sigma, grad_sigma, coefficient):
    return [torch.empty_like(w) for w in weights]


def _fake_double_backward(h, grads, weights, u, v, sigma, grad_sigma, coefficient):
    like = [torch.empty_like(w) for w in weights]
    return like, [torch.empty_like(w) for w in weights], torch.empty_like(sigma)


def _gradients(ctx, saved, grads, grad_sigma, needed) -> Sequence[Tensor | None]:
    weights, u, v, sigma = saved
    count = len(weights)
    if any(g is not None and g.layout is not torch.strided for g in grads):
        # Of nn.Embedding(sparse=True), for one: the gradient through sigma is dense all the same.
        grads = [g if g is None or g.layout is torch.strided else g.to_dense() for g in grads]
    if grad_sigma is not None:
        grad_sigma = grad_sigma.contiguous()
    result: list[Tensor | None] = [None] * count
    index = [i for i in range(count) if grads[i] is not None and needed[i]]
    if ctx.kept is not None and _builds_graph():
        # One graph a weight: parts of it may be gone through apart, and weights change in between.
        for i in index:
            lists = ([x[i]] for x in (grads, weights, u, v))
            part = [None if x is None else x[i : i + 1] for x in (sigma, grad_sigma)]
            (result[i],) = _backward_op(*lists, *part, ctx.coefficient)
    elif len(index) == count:
        return _backward_op(grads, weights, u, v, sigma, grad_sigma, ctx.coefficient)
    elif index:
        chosen = [[x[i] for i in index] for x in (grads, weights, u, v)]
        part = [
            None if x is None else torch.stack([x[i] for i in index]) for x in (sigma, grad_sigma)
        ]
        found = _backward_op(*chosen, *part, ctx.coefficient)
        for i, g in zip(index, found, strict=True):
            result[i] = g
    if grad_sigma is not None:
        for i in range(count):
            if grads[i] is None and needed[i]:  # sigma alone was used: d sigma / dW = u v^T
                outer = torch.outer(grad_sigma[i] * u[i], v[i])
                result[i] = outer.view(weights[i].shape).to(weights[i].dtype)
    return result


def _builds_graph() -> bool:
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _backward_op(*args) -> list[Tensor]:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return _ops.spectral_normalize_backward(*args)
    with below_autograd():
        return _ops.spectral_normalize_backward(*args)


class _Normalize(torch.autograd.Function):
    """The autograd of spectral_normalize in eager mode; takes a third of the registered one's time.

    Compiled graphs take the registered one: there a double backward through a Function goes wrong.
    """

    @staticmethod
    def forward(ctx, u, v, sigma, coefficient, retain, guard, *weights):
        ctx.set_materialize_grads(False)
        ctx.coefficient = coefficient
        with below_autograd():
            outputs, found = _ops.spectral_normalize(
                weights, u, v, sigma, coefficient, retain, guard
            )
        _keep(ctx, (*weights, *u, *v, found if sigma is None else sigma), retain)
        return found, *outputs

    @staticmethod
    def backward(ctx, grad_sigma, *grads):
        n = len(grads)
        saved = _kept(ctx, None if grad_sigma is not None else grads)
        parts = saved[:n], saved[n : 2 * n], saved[2 * n : 3 * n], saved[-1]
        result = _gradients(ctx, parts, grads, grad_sigma, ctx.needs_input_grad[6:])
        return None, None, None, None, None, None, *result


class _SpectralNorm(torch.autograd.Function):
    """The autograd of spectral_norm in eager mode. Saves the packed vectors, not a view of each."""

    @staticmethod
    def forward(ctx, step, retain, *weights):
        ctx.set_materialize_grads(False)
        ctx.coefficient = step[-1]
        packed, sigma, outputs = _ops.spectral_norm_(weights, *step)
        _keep(ctx, (*weights, packed), retain)
        return sigma, *outputs

    @staticmethod
    def backward(ctx, grad_sigma, *grads):
        *weights, packed = _kept(ctx, None if grad_sigma is not None else grads)
        parts = weights, *unpack(packed, weights)
        return None, None, *_gradients(ctx, parts, grads, grad_sigma, ctx.needs_input_grad[2:])


class _RetainedReference(torch.autograd.Function):
    """The reference for retain=True: every backward pass computes it anew."""

    @staticmethod
    def forward(ctx, u, v, sigma, coefficient, guard, *weights):
        ctx.set_materialize_grads(False)
        _keep(ctx, weights, retain=True)
        ctx.vectors, ctx.options = (u, v, sigma), {"coefficient": coefficient, "guard": guard}
        outputs, found = reference.spectral_normalize(weights, *ctx.vectors, **ctx.options)
        return found, *outputs

    @staticmethod
    def backward(ctx, *grads):
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            weights = [w.view_as(w) for w in _kept(ctx)]
            outputs, found = reference.spectral_normalize(weights, *ctx.vectors, **ctx.options)
            used = [(x, g) for x, g in zip((found, *outputs), grads, strict=True) if g is not None]
            needed = [i for i, n in enumerate(ctx.needs_input_grad[5:]) if n]
            found_grads = torch.autograd.grad(
                [x for x, _ in used],
                [weights[i] for i in needed],
                [g for _, g in used],
                create_graph=create_graph,
                allow_unused=True,
            )
        result: list[Tensor | None] = [None] * len(weights)
        for i, g in zip(needed, found_grads, strict=True):
            result[i] = g
        return None, None, None, None, None, *result


class _Held(NamedTuple):
    """A tensor that a node keeps. Of a view its base and where it lies in it: the view itself would
    be one more reference to a parameter, which ``torch.utils.swap_tensors`` does not allow."""

    tensor: Tensor
    version: int
    view: tuple | None  # size, strides, offset
    differentiable: bool

    @staticmethod
    def of(tensor: Tensor) -> _Held:
        base = tensor._base
        alone = tensor.requires_grad and _leaf_of(tensor) is not base
        if base is None or alone or _interpretation(tensor) != _interpretation(base):
            return _Held(tensor, tensor._version, None, tensor.requires_grad)
        view = tensor.shape, tensor.stride(), tensor.storage_offset()
        return _Held(base, tensor._version, view, tensor.requires_grad)

    def get(self) -> Tensor:
        if self.view is None:
            return self.tensor
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.differentiable):
            return self.tensor.as_strided(*self.view)


def _leaf_of(tensor: Tensor) -> Tensor | None:
    # The leaf that a chain of views leads to: a view may hang on another than its base.
    node: Any = tensor.grad_fn
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return getattr(node, "variable", None)


def _interpretation(tensor: Tensor) -> tuple:
    # What else a view may change: numbers read as others.
    return tensor.dtype, tensor.is_conj(), tensor.is_neg()


def _keep(ctx, tensors, retain: bool) -> None:
    # Saved tensors are freed by the first backward pass; with retain they go with the node. What
    # autograd checks for saved tensors, that nobody overwrote them, is then checked by _kept.
    ctx.kept = [_Held.of(t) for t in tensors] if retain else None
    if not retain:
        ctx.save_for_backward(*tensors)


def _kept(ctx, grads: Sequence[Tensor | None] | None = None) -> Sequence[Tensor]:
    # The first of what is kept are the weights: one without a gradient may have been changed since.
    if ctx.kept is None:
        return ctx.saved_tensors
    tensors = [held.get() for held in ctx.kept]
    unused = () if grads is None else [i for i, g in enumerate(grads) if g is None]
    for i, (tensor, held) in enumerate(zip(tensors, ctx.kept, strict=True)):
        if tensor._version != held.version and i not in unused:
            raise RuntimeError(
                "spectral_normalize: one of the variables needed for gradient computation has been "
                f"modified by an inplace operation: a tensor of shape {tuple(tensor.shape)} is at "
                f"version {tensor._version}; expected version {held.version}. Run the backward "
                "pass before the optimiser's step."
            )
    return tensors


def _setup_normalize(ctx, inputs, output):
    weights, u, v, sigma, ctx.coefficient, retain, _ = inputs
    ctx.set_materialize_grads(False)
    _keep(ctx, (*weights, *u, *v, output[1] if sigma is None else sigma), retain)
    ctx.count = len(weights)


def _backward_normalize(ctx, grads, grad_sigma):
    saved, count = _kept(ctx), ctx.count
    none = [None] * count
    parts = saved[:count], saved[count : 2 * count], saved[2 * count : 3 * count], saved[-1]
    result = _gradients(ctx, parts, grads or none, grad_sigma, ctx.needs_input_grad[0])
    return result, none, none, None, None, None, None


def _setup_backward(ctx, inputs, output):
    grads, weights, u, v, sigma, grad_sigma, coefficient = inputs
    ctx.count, ctx.coefficient, ctx.seeded = len(grads), coefficient, grad_sigma is not None
    ctx.save_for_backward(*grads, *weights, *u, *v, sigma, grad_sigma)


def _backward_backward(ctx, h):
    n, saved = ctx.count, ctx.saved_tensors
    grads, weights, u, v = (saved[k * n : (k + 1) * n] for k in range(4))
    sigma, grad_sigma = saved[-2:]
    d_grads, d_weights, d_seed = _ops.spectral_normalize_double_backward(
        h, grads, weights, u, v, sigma, grad_sigma, ctx.coefficient
    )
    none = [None] * n
    return d_grads, d_weights, none, none, None, d_seed if ctx.seeded else None, None


def _third_order(ctx, *grads):
    raise third_order("spectral_normalize")


# --- registration ------------------------------------------------------------------------------


def define(library: torch.library.Library) -> None:
    """Define the operators, their fakes and their autograd in the namespace of ``library``."""
    for schema in _SCHEMAS:
        library.define(schema)
    # It moves buffers and has no gradient: let autograd pass it by instead of warning.
    library.impl("power_iteration_", torch.library.fallthrough_kernel, "Autograd")
    for name, fake in (
        ("power_iteration_", _fake_power_iteration),
        ("spectral_norm_", _fake_spectral_norm),
        ("spectral_normalize", _fake_normalize),
        ("spectral_normalize_backward", _fake_backward),
        ("spectral_normalize_double_backward", _fake_double_backward),
    ):
        torch.library.register_fake(f"{library.ns}::{name}", fake, lib=library)
    for name, backward, setup in (
        ("spectral_normalize", _backward_normalize, _setup_normalize),
        ("spectral_normalize_backward", _backward_backward, _setup_backward),
        ("spectral_normalize_double_backward", _third_order, None),
    ):
        torch.library.register_autograd(
            f"{library.ns}::{name}", backward, setup_context=setup, lib=library
        )


define(LIBRARY)


# --- layouts ------------------------------------------------------------------------


def _part_sizes(weights: Sequence[Tensor]) -> list[int]:
    sizes = [len(weights)]
    for w in weights:
        rows = w.shape[0]
        sizes += [rows, w.numel() // rows]
    return sizes


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
