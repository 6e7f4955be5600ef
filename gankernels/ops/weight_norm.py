"""Weight normalization of any number of weights in one call: schema, fake, autograd, function.

Salimans & Kingma 2016 (arXiv 1602.07868), equation 2. The kernels behind the schemas are bound in
``csrc/bindings/weight_norm.cpp``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from gankernels import reference
from gankernels._checks import check_tensors, kind, third_order
from gankernels._dtypes import accumulation_dtype
from gankernels._library import takes_reference
from gankernels._torch import below_autograd
from gankernels.ops import _operator
from gankernels.ops._checks.weight_norm import check
from gankernels.ops._layout import is_dense
from gankernels.ops._operator import (
    EXAMPLES,
    Operator,
    call_below_autograd,
    declare,
    one_device,
    run,
    runs_eagerly,
)
from gankernels.ops._retained import keep, kept

# --- what users call ---------------------------------------------------------------------------


@overload
def weight_norm(v: Tensor, g: Tensor, *, dim: int | None = ...) -> Tensor: ...


@overload
def weight_norm(
    v: Sequence[Tensor], g: Sequence[Tensor], *, dim: int | Sequence[int | None] | None = ...
) -> list[Tensor]: ...


def weight_norm(
    v: Tensor | Sequence[Tensor],
    g: Tensor | Sequence[Tensor],
    *,
    dim: int | Sequence[int | None] | None = 0,
) -> Tensor | list[Tensor]:
    """Give every slice of a weight a norm of its own, ``w = g * v / ||v||``.

    The norm is the 2-norm over all dimensions but ``dim``, as in ``torch.nn.utils.weight_norm``.
    :func:`gankernels.fuse_weight_norm` calls this for all layers of a network at once.

    Args:
        v: the direction, of any shape with at least one dimension, or a list of them, of one
            floating-point dtype and device.
        g: the norms, ``v.shape[dim]`` elements in any shape (one for ``dim=None``), of the dtype of
            ``v``; a list where ``v`` is one.
        dim: the dimension whose slices have norms of their own, for instance 0 for the output
            channels of a convolution; None for one norm of the whole weight. For lists also a list,
            one a weight.

    Returns:
        The weight, of the shape, dtype and memory layout of ``v``; a list where ``v`` is one. A
        slice of zeros becomes NaN, as in torch.

    Raises:
        TypeError, ValueError: if an argument has an unsupported type, shape or value.

    Differentiable twice in ``v`` and ``g``, to any order under
    ``gankernels.backend("reference")``. Sums are of float32, of float64 for float64 weights.
    Deterministic, whatever the number of threads. Where ``dim`` is the outermost in memory, as 0
    is, the forward reads ``v`` once and writes the weight; else it copies, too. A gradient can be
    taken through the weights of a list one by one, and more than once.
    """
    if isinstance(v, Tensor):
        if not isinstance(g, Tensor):
            raise TypeError(f"weight_norm: expected g to be a tensor, as v is, got {kind(g)}")
        if isinstance(dim, (list, tuple)):
            raise TypeError(f"weight_norm: expected dim to be an int or None, got {kind(dim)}")
        return weight_norm([v], [g], dim=[dim])[0]  # type: ignore[list-item]
    check_tensors("weight_norm", "v", v)
    check_tensors("weight_norm", "g", g)
    dims = dim if isinstance(dim, (list, tuple)) else [dim] * len(v)
    check(v, g, dims)  # type: ignore[arg-type]
    if takes_reference("weight_norm", [*v, *g]):
        return reference.weight_norm(v, g, dim=dims)  # type: ignore[arg-type, return-value]
    return normalize(v, g, dims)  # type: ignore[arg-type]


def normalize(v: Sequence[Tensor], g: Sequence[Tensor], dims: Sequence[int | None]) -> list[Tensor]:
    """weight_norm of lists that the kernels take."""
    rows = [rows_first(x, d) for x, d in zip(v, dims, strict=True)]
    sizes = [x if x.dim() == 1 and x.is_contiguous() else x.reshape(-1).contiguous() for x in g]
    # Those that need no gradient have outputs that need none.
    wanted = [a.requires_grad or b.requires_grad for a, b in zip(v, g, strict=True)]
    builds = torch.is_grad_enabled() and any(wanted)
    if not builds or all(wanted):
        found = _call(rows, sizes, builds)
    else:
        found = [v[0]] * len(v)
        for state in (True, False):
            index = [i for i, x in enumerate(wanted) if x is state]
            parts = _call([rows[i] for i in index], [sizes[i] for i in index], state)
            for i, part in zip(index, parts, strict=True):
                found[i] = part
    return [
        w if r is x else _as_it_was(w, x, d)
        for w, r, x, d in zip(found, rows, v, dims, strict=True)
    ]


def rows_first(v: Tensor, dim: int | None) -> Tensor:
    """``v`` with ``dim`` as the first dimension and the outermost of dense memory: a view where
    there is one, else a copy."""
    rows = v.unsqueeze(0) if dim is None else v if dim == 0 else v.movedim(dim, 0)
    if rows.is_contiguous():
        return rows
    if torch.compiler.is_compiling():  # strides may be symbols, which cannot be sorted
        return rows.contiguous() if _channels_last(rows) is None else rows
    follow = rows.shape[0] == 1 or rows.stride(0) * rows.shape[0] == rows.numel()
    return rows if follow and is_dense(rows) else rows.contiguous()


def _as_it_was(w: Tensor, v: Tensor, dim: int | None) -> Tensor:
    """``w``, rows first, in the shape of ``v`` and, where that is dense, in its memory layout."""
    moved = w.squeeze(0) if dim is None else w.movedim(0, dim)
    if torch.compiler.is_compiling():
        if v.is_contiguous():
            return moved.contiguous()
        named = _channels_last(v)
        return moved if named is None else moved.contiguous(memory_format=named)
    if not is_dense(v):
        return moved
    order = sorted(range(v.dim()), key=v.stride, reverse=True)
    inverse = [order.index(d) for d in range(v.dim())]
    return moved.permute(order).contiguous().permute(inverse)


def _channels_last(x: Tensor) -> torch.memory_format | None:
    named = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    return named if named is not None and x.is_contiguous(memory_format=named) else None


def _call(v: list[Tensor], g: list[Tensor], builds: bool) -> list[Tensor]:
    if not runs_eagerly():
        return run(_operator.kernels.weight_norm, v, g)[0]  # type: ignore[no-any-return]
    if builds:
        return list(_WeightNorm.apply(len(v), *v, *g))
    with below_autograd():
        return run(_operator.kernels.weight_norm, v, g)[0]  # type: ignore[no-any-return]


# --- fakes and autograd ------------------------------------------------------------------------


def _fake(v, g):
    one_device(*v, *g)
    rows = sum(x.shape[0] for x in v)
    norms = v[0].new_empty([rows], dtype=accumulation_dtype(v[0].dtype))
    return [torch.empty_like(x) for x in v], norms


def _fake_backward(x, v, g, norms):
    return [torch.empty_like(a) for a in v], [torch.empty_like(b) for b in g]


def _fake_double_backward(h, e, x, v, g, norms):
    d_v, d_g = _fake_backward(x, v, g, norms)
    return [torch.empty_like(a) for a in v], d_v, d_g


def _gradients(grads, v, g, norms, needed):
    """The gradients of every v, and of every g; None where there is none."""
    count = len(v)
    d_v: list[Tensor | None] = [None] * count
    d_g: list[Tensor | None] = [None] * count
    index = [i for i in range(count) if grads[i] is not None and (needed[i] or needed[count + i])]
    # nn.Embedding(sparse=True) has sparse gradients.
    grads = [x if x is None or x.layout is torch.strided else x.to_dense() for x in grads]
    parts = norms.split([x.shape[0] for x in v]) if len(index) < count or _builds_graph() else ()
    if _builds_graph():
        # One graph a weight: parts of it may be gone through apart, and weights change in between.
        for i in index:
            (d_v[i],), (d_g[i],) = _backward_op([grads[i]], [v[i]], [g[i]], parts[i].contiguous())
    elif len(index) == count:
        return _backward_op(grads, v, g, norms)
    elif index:
        chosen = ([x[i] for i in index] for x in (grads, v, g))
        for i, a, b in zip(
            index, *_backward_op(*chosen, torch.cat([parts[i] for i in index])), strict=True
        ):
            d_v[i], d_g[i] = a, b
    return d_v, d_g


def _builds_graph() -> bool:
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _backward_op(*args) -> tuple[list[Tensor], list[Tensor]]:
    return call_below_autograd(_operator.kernels.weight_norm_backward, *args)  # type: ignore[no-any-return]


class _WeightNorm(torch.autograd.Function):
    """The autograd in eager mode; takes a third of the registered one's time.

    Compiled graphs take the registered one: there a double backward through a Function goes wrong.
    What it saves are parameters, so that keeping it for further backward passes costs nothing.
    """

    @staticmethod
    def forward(ctx, count, *tensors):
        ctx.set_materialize_grads(False)
        ctx.count = count
        with below_autograd():
            outputs, norms = run(_operator.kernels.weight_norm, tensors[:count], tensors[count:])
        ctx.norms = norms
        keep(ctx, tensors, retain=True)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads):
        n = ctx.count
        tensors = kept("weight_norm", ctx, (*grads, *grads))
        d_v, d_g = _gradients(grads, tensors[:n], tensors[n:], ctx.norms, ctx.needs_input_grad[1:])
        return None, *d_v, *d_g


def _setup(ctx, inputs, output):
    v, g = inputs
    ctx.set_materialize_grads(False)
    ctx.count = len(v)
    ctx.save_for_backward(*v, *g, output[1])


def _backward(ctx, grads, _norms):
    n, (*tensors, norms) = ctx.count, ctx.saved_tensors
    if not grads:
        return [None] * n, [None] * n
    d_v, d_g = _gradients(grads, tensors[:n], tensors[n:], norms, [True] * (2 * n))
    return list(d_v), list(d_g)


def _setup_backward(ctx, inputs, output):
    x, v, g, norms = inputs
    ctx.set_materialize_grads(False)
    ctx.count = len(v)
    ctx.save_for_backward(*x, *v, *g, norms)


def _backward_backward(ctx, h, e):
    n, (*tensors, norms) = ctx.count, ctx.saved_tensors
    x, v, g = (tensors[k * n : (k + 1) * n] for k in range(3))
    if not h and not e:
        return [None] * n, [None] * n, [None] * n, None
    h = _with_zeros(h, v)
    e = _with_zeros(e, g)
    d_x, d_v, d_g = run(_operator.kernels.weight_norm_double_backward, h, e, x, v, g, norms)
    return d_x, d_v, d_g, None


def _with_zeros(grads, like):
    grads = grads or [None] * len(like)
    return [torch.zeros_like(a) if x is None else x for x, a in zip(grads, like, strict=True)]


def _third_order(ctx, *grads):
    raise third_order("weight_norm")


declare(
    Operator("weight_norm(Tensor[] v, Tensor[] g) -> (Tensor[], Tensor)", _fake, _backward, _setup),
    Operator(
        "weight_norm_backward(Tensor[] x, Tensor[] v, Tensor[] g, Tensor norms) "
        "-> (Tensor[], Tensor[])",
        _fake_backward,
        _backward_backward,
        _setup_backward,
    ),
    Operator(
        "weight_norm_double_backward(Tensor[] h, Tensor[] e, Tensor[] x, Tensor[] v, Tensor[] g, "
        "Tensor norms) -> (Tensor[], Tensor[], Tensor[])",
        _fake_double_backward,
        _third_order,
    ),
)


EXAMPLES["weight_norm"] = lambda draw: {
    "v": [draw(8, 3, 5).requires_grad_(), draw(6, 31).requires_grad_()],
    "g": [draw(8, 1, 1).requires_grad_(), draw(6, 1).requires_grad_()],
}
