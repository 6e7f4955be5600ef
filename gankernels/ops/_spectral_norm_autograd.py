"""Fakes and autograd of the operators of spectral normalization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gankernels import reference
from gankernels._checks import third_order
from gankernels._dtypes import accumulation_dtype
from gankernels._torch import below_autograd
from gankernels.ops import _operator
from gankernels.ops._operator import Operator, call_below_autograd, declare, one_device, run
from gankernels.ops._retained import keep, kept
from gankernels.reference.spectral_norm import PowerIteration

#: Every part of a packed result starts at a multiple of this many elements.
PACK = 16
_OP = "spectral_normalize"


def unpack(packed: Tensor, weights: Sequence[Tensor]) -> PowerIteration:
    """The parts of what the kernels return in one tensor: sigma, then u and v of every weight, each
    begun at a multiple of ``PACK`` elements."""
    sizes: list[int] = []
    wanted: list[int] = []
    for size in _part_sizes(weights):
        wanted.append(len(sizes))
        sizes.append(size)
        if padding := -size % PACK:
            sizes.append(padding)
    views = packed.split_with_sizes(sizes)
    parts = [views[i] for i in wanted]
    return PowerIteration(parts[1::2], parts[2::2], parts[0])


def _part_sizes(weights: Sequence[Tensor]) -> list[int]:
    sizes = [len(weights)]
    for w in weights:
        rows = w.shape[0]
        sizes += [rows, w.numel() // rows]
    return sizes


def _fake_power_iteration(weights, u, v, n, eps, u_first, skipped=None):
    one_device(*weights, *u, *v, skipped)
    total = sum(size + -size % PACK for size in _part_sizes(weights))
    return weights[0].new_empty(total, dtype=accumulation_dtype(weights[0].dtype))


def _fake_spectral_norm(weights, u, v, n, eps, u_first, skipped, max_norm):
    packed = _fake_power_iteration(weights, u, v, n, eps, u_first, skipped)
    return packed, packed.new_empty(len(weights)), [torch.empty_like(w) for w in weights]


def _fake_normalize(weights, u, v, sigma, max_norm, retain, guard=False):
    one_device(*weights, *u, *v, sigma)
    dtype = accumulation_dtype(weights[0].dtype)
    return [torch.empty_like(w) for w in weights], weights[0].new_empty(len(weights), dtype=dtype)


def _fake_backward(grads, weights, u, v, sigma, grad_sigma, max_norm):
    return [torch.empty_like(w) for w in weights]


def _fake_packed_backward(grads, weights, packed, grad_sigma, max_norm):
    return [torch.empty_like(w) for w in weights]


def _fake_double_backward(h, grads, weights, u, v, sigma, grad_sigma, max_norm):
    like = [torch.empty_like(w) for w in weights]
    return like, [torch.empty_like(w) for w in weights], torch.empty_like(sigma)


def _gradients(ctx, saved, grads, grad_sigma, needed) -> Sequence[Tensor | None]:
    weights, u, v, sigma = saved
    count = len(weights)
    if any(g is not None and g.layout is not torch.strided for g in grads):
        # nn.Embedding(sparse=True) has sparse gradients, but that through sigma is dense.
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
            (result[i],) = _backward_op(*lists, *part, ctx.max_norm)
    elif len(index) == count:
        return _backward_op(grads, weights, u, v, sigma, grad_sigma, ctx.max_norm)
    elif index:
        chosen = [[x[i] for i in index] for x in (grads, weights, u, v)]
        part = [
            None if x is None else torch.stack([x[i] for i in index]) for x in (sigma, grad_sigma)
        ]
        chosen_grads = _backward_op(*chosen, *part, ctx.max_norm)
        for i, g in zip(index, chosen_grads, strict=True):
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
    return call_below_autograd(_operator.kernels.spectral_normalize_backward, *args)


class Normalize(torch.autograd.Function):
    """The autograd of spectral_normalize in eager mode; takes a third of the registered one's time.

    Compiled graphs take the registered one: there a double backward through a Function goes wrong.
    """

    @staticmethod
    def forward(ctx, u, v, sigma, max_norm, retain, guard, *weights):
        ctx.set_materialize_grads(False)
        ctx.max_norm = max_norm
        with below_autograd():
            outputs, sigmas = run(
                _operator.kernels.spectral_normalize, weights, u, v, sigma, max_norm, retain, guard
            )
        keep(ctx, (*weights, *u, *v, sigmas if sigma is None else sigma), retain)
        return sigmas, *outputs

    @staticmethod
    def backward(ctx, grad_sigma, *grads):
        n = len(grads)
        saved = kept(_OP, ctx, None if grad_sigma is not None else grads)
        parts = saved[:n], saved[n : 2 * n], saved[2 * n : 3 * n], saved[-1]
        result = _gradients(ctx, parts, grads, grad_sigma, ctx.needs_input_grad[6:])
        return None, None, None, None, None, None, *result


class SpectralNorm(torch.autograd.Function):
    """The autograd of spectral_norm in eager mode. Saves the packed vectors, not a view of each."""

    @staticmethod
    def forward(ctx, step, retain, *weights):
        ctx.set_materialize_grads(False)
        ctx.max_norm = step[-1]
        packed, sigma, outputs = run(_operator.kernels.spectral_norm_, weights, *step)
        keep(ctx, (*weights, packed), retain)
        return sigma, *outputs

    @staticmethod
    def backward(ctx, grad_sigma, *grads):
        *weights, packed = kept(_OP, ctx, None if grad_sigma is not None else grads)
        usual = all(g is not None and g.layout is torch.strided for g in grads)
        if usual and all(ctx.needs_input_grad[2:]) and not torch.is_grad_enabled():
            seed = None if grad_sigma is None else grad_sigma.contiguous()
            op = _operator.kernels.spectral_norm_backward
            with below_autograd():
                found = run(op, grads, weights, packed, seed, ctx.max_norm)
            return None, None, *found
        parts = weights, *unpack(packed, weights)
        return None, None, *_gradients(ctx, parts, grads, grad_sigma, ctx.needs_input_grad[2:])


class RetainedReference(torch.autograd.Function):
    """The reference for retain=True: every backward pass computes it anew."""

    @staticmethod
    def forward(ctx, u, v, sigma, max_norm, guard, *weights):
        ctx.set_materialize_grads(False)
        keep(ctx, weights, retain=True)
        ctx.vectors, ctx.options = (u, v, sigma), {"max_norm": max_norm, "guard": guard}
        outputs, sigmas = reference.spectral_normalize(weights, *ctx.vectors, **ctx.options)
        return sigmas, *outputs

    @staticmethod
    def backward(ctx, *grads):
        create_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            weights = [w.view_as(w) for w in kept(_OP, ctx)]
            outputs, sigmas = reference.spectral_normalize(weights, *ctx.vectors, **ctx.options)
            used = [(x, g) for x, g in zip((sigmas, *outputs), grads, strict=True) if g is not None]
            needed = [i for i, n in enumerate(ctx.needs_input_grad[5:]) if n]
            weight_grads = torch.autograd.grad(
                [x for x, _ in used],
                [weights[i] for i in needed],
                [g for _, g in used],
                create_graph=create_graph,
                allow_unused=True,
            )
        result: list[Tensor | None] = [None] * len(weights)
        for i, g in zip(needed, weight_grads, strict=True):
            result[i] = g
        return None, None, None, None, None, *result


def _setup_normalize(ctx, inputs, output):
    weights, u, v, sigma, ctx.max_norm, retain, _ = inputs
    ctx.set_materialize_grads(False)
    keep(ctx, (*weights, *u, *v, output[1] if sigma is None else sigma), retain)
    ctx.count = len(weights)


def _backward_normalize(ctx, grads, grad_sigma):
    saved, count = kept(_OP, ctx), ctx.count
    none = [None] * count
    parts = saved[:count], saved[count : 2 * count], saved[2 * count : 3 * count], saved[-1]
    result = _gradients(ctx, parts, grads or none, grad_sigma, ctx.needs_input_grad[0])
    return result, none, none, None, None, None, None


def _setup_backward(ctx, inputs, output):
    grads, weights, u, v, sigma, grad_sigma, max_norm = inputs
    ctx.count, ctx.max_norm, ctx.seeded = len(grads), max_norm, grad_sigma is not None
    ctx.save_for_backward(*grads, *weights, *u, *v, sigma, grad_sigma)


def _backward_backward(ctx, h):
    n, saved = ctx.count, ctx.saved_tensors
    grads, weights, u, v = (saved[k * n : (k + 1) * n] for k in range(4))
    sigma, grad_sigma = saved[-2:]
    d_grads, d_weights, d_seed = run(
        _operator.kernels.spectral_normalize_double_backward,
        h,
        grads,
        weights,
        u,
        v,
        sigma,
        grad_sigma,
        ctx.max_norm,
    )
    none = [None] * n
    return d_grads, d_weights, none, none, None, d_seed if ctx.seeded else None, None


def _third_order(ctx, *grads):
    raise third_order("spectral_normalize")


OPERATORS = (
    Operator(
        "power_iteration_(Tensor[] weights, Tensor(a!)[] u, Tensor(b!)[] v, int n, float eps, "
        "bool u_first, Tensor(c!)? skipped=None) -> Tensor",
        _fake_power_iteration,
        mutates=True,
    ),
    # Both at once, for eager mode only: torch cannot compile an op that mutates lists and returns
    # one.
    Operator(
        "spectral_norm_(Tensor[] weights, Tensor(a!)[] u, Tensor(b!)[] v, int n, float eps, "
        "bool u_first, Tensor(c!)? skipped, float? max_norm) -> (Tensor, Tensor, Tensor[])",
        _fake_spectral_norm,
    ),
    # Its gradient, from the packed vectors, where there is no graph to build.
    Operator(
        "spectral_norm_backward(Tensor[] grads, Tensor[] weights, Tensor packed, "
        "Tensor? grad_sigma, float? max_norm) -> Tensor[]",
        _fake_packed_backward,
    ),
    Operator(
        "spectral_normalize(Tensor[] weights, Tensor[] u, Tensor[] v, Tensor? sigma, "
        "float? max_norm, bool retain, bool guard) -> (Tensor[], Tensor)",
        _fake_normalize,
        _backward_normalize,
        _setup_normalize,
    ),
    Operator(
        "spectral_normalize_backward(Tensor[] grads, Tensor[] weights, Tensor[] u, Tensor[] v, "
        "Tensor sigma, Tensor? grad_sigma, float? max_norm) -> Tensor[]",
        _fake_backward,
        _backward_backward,
        _setup_backward,
    ),
    Operator(
        "spectral_normalize_double_backward(Tensor[] h, Tensor[] grads, Tensor[] weights, "
        "Tensor[] u, Tensor[] v, Tensor sigma, Tensor? grad_sigma, float? max_norm) "
        "-> (Tensor[], Tensor[], Tensor)",
        _fake_double_backward,
        _third_order,
    ),
)

declare(*OPERATORS)
