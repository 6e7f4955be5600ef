"""weight_norm under autograd: what is frozen, unused, changed, gone through again or differentiated
once more; and what its operators are registered with.
"""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from support.backends import native_ops
from support.tensors import DTYPES, assert_near, drawer, dtype_name
from torch import Tensor

import gankernels
from gankernels import ops, reference

SHAPES = ((5, 3, 4), (4, 7), (3, 130))


def leaves(
    device: torch.device, dtype: torch.dtype = torch.float64, shapes=SHAPES
) -> tuple[list[Tensor], list[Tensor]]:
    draw = drawer(5, dtype, device)
    v = [draw(*shape).requires_grad_() for shape in shapes]
    return v, [draw(shape[0], 1).requires_grad_() for shape in shapes]


def plain(v: list[Tensor], g: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The same leaves for the reference, and its outputs."""
    v, g = ([x.detach().cpu().double().clone().requires_grad_() for x in each] for each in (v, g))
    return v, g, reference.weight_norm(v, g)  # type: ignore[return-value]


def loss_of(w: Tensor) -> Tensor:
    """One whose gradient is no multiple of anything."""
    i = torch.arange(w.numel(), dtype=w.dtype, device=w.device).reshape(w.shape)
    return (w * (i * 0.7).cos()).sum() + (w * w * (i * 0.3).sin()).sum()


def assert_gradients(found, expected) -> None:
    for got, right in zip(found, expected, strict=True):
        if right is None:
            assert got is None
        else:
            assert_near(got.cpu(), right, factor=8)


# --- frozen parts ---------------------------------------------------------------------------------


def test_frozen_weights_have_outputs_without_a_gradient(backend):
    v, g = leaves(backend)
    for x in (v[1], g[1], v[2]):
        x.requires_grad_(False)
    w = ops.weight_norm(v, g)
    assert [x.requires_grad for x in w] == [True, False, True]
    assert w[1].grad_fn is None
    exact_v, exact_g, exact = plain(v, g)
    for got, right in zip(w, exact, strict=True):
        assert_near(got.detach().cpu(), right.detach())
    found = torch.autograd.grad(loss_of(w[0]) + loss_of(w[2]), [v[0], g[0], g[2]])
    expected = torch.autograd.grad(
        loss_of(exact[0]) + loss_of(exact[2]), [exact_v[0], exact_g[0], exact_g[2]]
    )
    assert_gradients(found, expected)


@pytest.mark.parametrize("frozen", ["v", "g"])
def test_one_of_the_two_is_frozen(backend, frozen):
    """Both orders in the other."""
    v, g = leaves(backend)
    exact_v, exact_g, exact = plain(v, g)
    for x in v if frozen == "v" else g:
        x.requires_grad_(False)
    w = ops.weight_norm(v, g)
    assert all(x.requires_grad for x in w)
    results = []
    for outputs, leaf in (
        (w, g if frozen == "v" else v),
        (exact, exact_g if frozen == "v" else exact_v),
    ):
        first = torch.autograd.grad(sum(map(loss_of, outputs)), leaf, create_graph=True)
        second = torch.autograd.grad(sum(map(loss_of, first)), leaf)
        results.append([*first, *second])
    assert_gradients([x.detach() for x in results[0]], [x.detach() for x in results[1]])


def test_nothing_needs_a_gradient(backend):
    v, g = leaves(backend)
    with torch.no_grad():
        assert not any(w.requires_grad for w in ops.weight_norm(v, g))
    w = ops.weight_norm([x.detach() for x in v], [x.detach() for x in g])
    assert not any(x.requires_grad for x in w)
    with torch.inference_mode():
        inferred = ops.weight_norm(v, g)
    assert all(torch.equal(a, b) for a, b in zip(w, inferred, strict=True))


# --- outputs that are not used --------------------------------------------------------------------


@pytest.mark.parametrize("used", [(0,), (2,), (0, 2), (1, 2)], ids=str)
def test_unused_outputs(backend, used):
    """Their weights have no gradient, rather than zeros."""
    v, g = leaves(backend)
    w = ops.weight_norm(v, g)
    found = torch.autograd.grad(sum(loss_of(w[i]) for i in used), [*v, *g], allow_unused=True)
    exact_v, exact_g, exact = plain(v, g)
    expected = torch.autograd.grad(
        sum(loss_of(exact[i]) for i in used), [*exact_v, *exact_g], allow_unused=True
    )
    assert [x is None for x in found[:3]] == [i not in used for i in range(3)]
    assert_gradients(found, expected)


def test_nothing_of_an_unused_output_is_computed(cpu_backend):
    """Nor allocated: no zeros of a weight's size."""
    draw = drawer(0)
    large, small = draw(512, 512).requires_grad_(), draw(4, 4).requires_grad_()
    g = [draw(512).requires_grad_(), draw(4).requires_grad_()]
    w = ops.weight_norm([large, small], g)
    gankernels.empty_cache()
    with torch.profiler.profile(profile_memory=True) as run:
        torch.autograd.grad(w[1].sum(), [small, g[1]])
    assert sum(max(0, e.self_cpu_memory_usage) for e in run.key_averages()) < 4096
    assert gankernels.empty_cache() < 64 << 10


# --- more than one backward pass ------------------------------------------------------------------


def test_a_backward_pass_for_each_weight(backend):
    """A call normalizes a network; losses of its parts need not know of each other."""
    v, g = leaves(backend)
    w = ops.weight_norm(v, g)
    exact_v, exact_g, exact = plain(v, g)
    for outputs, retain in ((w, False), (exact, True)):
        loss_of(outputs[0]).backward(retain_graph=retain)
        loss_of(outputs[1]).backward()
        (loss_of(outputs[2]) + loss_of(outputs[0])).backward()
    assert_gradients([x.grad for x in (*v, *g)], [x.grad for x in (*exact_v, *exact_g)])


def test_two_forwards_before_a_backward(backend):
    v, g = leaves(backend)
    first = ops.weight_norm(v, g)
    second = ops.weight_norm([2 * x for x in v], [3 * x for x in g])
    a = torch.autograd.grad(sum(map(loss_of, first)), g)
    b = torch.autograd.grad(sum(map(loss_of, second)), g)
    exact_v, exact_g, exact = plain(v, g)
    assert_gradients(a, torch.autograd.grad(sum(map(loss_of, exact)), exact_g))
    exact = reference.weight_norm([2 * x for x in exact_v], [3 * x for x in exact_g])
    assert_gradients(b, torch.autograd.grad(sum(map(loss_of, exact)), exact_g))


@pytest.mark.parametrize("which", ["v", "g"])
def test_a_change_in_between_is_noticed(backend, which):
    """Also of the graph of a first derivative."""
    for create_graph in (False, True):
        v, g = leaves(backend)
        w = ops.weight_norm(v, g)
        result: Tensor = loss_of(w[1])
        if create_graph:
            result = loss_of(torch.autograd.grad(result, v[1], create_graph=True)[0])
        with torch.no_grad():
            (v if which == "v" else g)[1].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


def test_the_words_for_a_change(backend):
    v, g = leaves(backend)
    w = ops.weight_norm(v, g)
    with torch.no_grad():
        v[0].add_(1)
    with pytest.raises(
        RuntimeError,
        match=r"weight_norm: .*a tensor of shape \(5, 3, 4\) is at version 1; expected version 0. "
        "Run the backward pass before the optimizer's step",
    ):
        w[0].sum().backward()


def test_a_change_does_not_matter_to_the_others(backend):
    """An optimizer's step of one network between the passes of two."""
    v, g = leaves(backend)
    exact_v, exact_g, exact = plain(v, g)
    w = ops.weight_norm(v, g)
    loss_of(w[0]).backward()
    with torch.no_grad():
        v[0].add_(1), g[0].add_(1)
    loss_of(w[1]).backward()
    loss_of(exact[1]).backward()
    assert_gradients([v[1].grad, g[1].grad], [exact_v[1].grad, exact_g[1].grad])


def test_copies_may_change(backend):
    """Where a weight was copied, rows first, the copy is what the backward pass takes."""
    draw = drawer(0, torch.float64, backend)
    v, g = draw(4, 5, 3).requires_grad_(), draw(5).requires_grad_()
    right = torch.autograd.grad(loss_of(ops.weight_norm(v, g, dim=1)), (v, g))
    w = ops.weight_norm(v, g, dim=1)
    with torch.no_grad():
        v.add_(1)
    found = torch.autograd.grad(loss_of(w), (v, g))
    assert all(torch.equal(a, b) for a, b in zip(found, right, strict=True))


def test_what_was_kept_is_freed(backend):
    v, g = leaves(backend)
    w = ops.weight_norm([2 * x for x in v], g)
    kept = weakref.ref(w[0].grad_fn)
    sum(map(loss_of, w)).backward()
    del w
    gc.collect()
    assert kept() is None


def test_parameters_can_be_swapped(backend):
    """A node holds no more references to a parameter than torch's own do."""
    layer = torch.nn.Linear(4, 3).to(backend)
    g = torch.ones(3, device=backend)
    for dim in (0, None):
        w = ops.weight_norm(layer.weight, g[:1] if dim is None else g, dim=dim)
        w.sum().backward()
        del w
        other = torch.nn.Parameter(torch.ones(3, 4, device=backend))
        torch.utils.swap_tensors(layer.weight, other)


# --- the second order -----------------------------------------------------------------------------


@pytest.mark.parametrize("part", [(0,), (1, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("of", ["v", "g", "both"])
def test_create_graph_over_parts(backend, of, part):
    """First derivatives by some of the leaves, and a function of them and the weights."""

    def both(v, g, w):
        inputs = [x for i in part for x in ({"v": (v[i],), "g": (g[i],)}.get(of, (v[i], g[i])))]
        first = torch.autograd.grad(sum(loss_of(w[i]) for i in part), inputs, create_graph=True)
        total = sum(map(loss_of, first)) + loss_of(w[part[0]])
        return torch.autograd.grad(total, [*v, *g], allow_unused=True)

    v, g = leaves(backend)
    found = both(v, g, ops.weight_norm(v, g))
    assert_gradients(found, both(*plain(v, g)))


def test_second_derivatives_of_weights_apart(backend):
    """One graph a weight: a pass through one does not free, or run, that of another."""
    v, g = leaves(backend)
    w = ops.weight_norm(v, g)
    first = torch.autograd.grad(sum(map(loss_of, w)), v, create_graph=True)
    exact_v, exact_g, exact = plain(v, g)
    right = torch.autograd.grad(sum(map(loss_of, exact)), exact_v, create_graph=True)
    loss_of(first[0]).backward()
    with torch.no_grad():
        v[0].add_(1)
    loss_of(first[2]).backward()
    loss_of(right[0]).backward()
    loss_of(right[2]).backward()
    assert_gradients([v[2].grad, g[2].grad], [exact_v[2].grad, exact_g[2].grad])
    assert_gradients([v[0].grad, g[0].grad], [exact_v[0].grad, exact_g[0].grad])


@pytest.mark.parametrize("used", ["h", "e"])
def test_only_one_of_the_cotangents(backend, used):
    """The other is None, and stands for 0."""

    def both(v, g, w):
        first = torch.autograd.grad(sum(map(loss_of, w)), [*v, *g], create_graph=True)
        parts = first[:3] if used == "h" else first[3:]
        return torch.autograd.grad(sum(map(loss_of, parts)), [*v, *g], allow_unused=True)

    v, g = leaves(backend)
    found = both(v, g, ops.weight_norm(v, g))
    assert_gradients(found, both(*plain(v, g)))


def test_third_order(backend):
    v, g = leaves(backend, shapes=((2, 3),))

    def third():
        (x,) = ops.weight_norm(v, g)
        x = x.square().mul(x).sum()
        for _ in range(2):
            x = torch.autograd.grad(x, v[0], create_graph=True)[0].square().sum()
        return torch.autograd.grad(x, v[0])[0]

    with pytest.raises(NotImplementedError, match=r"weight_norm: .*third derivative.*reference"):
        third()
    with gankernels.backend("reference"):
        assert third().isfinite().all()


# --- gradients of other kinds ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_sparse_gradient(backend, dtype):
    """That of nn.functional.embedding(sparse=True)."""
    draw = drawer(0, dtype, backend)
    v, g = draw(10, 5).requires_grad_(), draw(10, 1).requires_grad_()
    others = draw(3, 4).requires_grad_(), draw(3, 1).requires_grad_()
    index = torch.tensor([1, 7, 7, 0], device=backend)

    def lost(weights, sparse):
        rows = torch.nn.functional.embedding(index, weights[0], sparse=sparse)
        return loss_of(rows.double()) + loss_of(weights[1].double())

    found = torch.autograd.grad(
        lost(ops.weight_norm([v, others[0]], [g, others[1]]), True), (v, g, *others)
    )
    assert all(x.layout == torch.strided for x in found)
    exact = [x.detach().double().cpu().requires_grad_() for x in (v, g, *others)]
    index = index.cpu()
    weights = reference.weight_norm([exact[0], exact[2]], [exact[1], exact[3]])
    expected = torch.autograd.grad(lost(weights, False), exact)
    for got, right in zip(found, expected, strict=True):
        assert_near(got.cpu(), right, factor=4)


def test_accumulation_into_grad(backend):
    v, g = leaves(backend)
    for _ in range(2):
        sum(map(loss_of, ops.weight_norm(v, g))).backward()
    exact_v, exact_g, exact = plain(v, g)
    (2 * sum(map(loss_of, exact))).backward()
    assert_gradients([x.grad for x in (*v, *g)], [x.grad for x in (*exact_v, *exact_g)])


def test_of_tensors_that_are_no_leaves(backend):
    """Views of one another, too: v and g of one flat parameter."""
    flat = drawer(0, torch.float64, backend)(24).requires_grad_()
    exact = flat.detach().cpu().requires_grad_()

    def weight(op, flat):
        v, g = flat[:20].view(4, 5), flat[20:]
        return op(v.tanh(), 2 * g), op(v, g)

    found = torch.autograd.grad(sum(map(loss_of, weight(ops.weight_norm, flat))), flat)
    expected = torch.autograd.grad(sum(map(loss_of, weight(reference.weight_norm, exact))), exact)
    assert_gradients(found, expected)


def test_autocast_leaves_the_numbers_alone(backend):
    v, g = leaves(backend, torch.float32)
    expected = ops.weight_norm(v, g)
    with torch.autocast(backend.type, dtype=torch.bfloat16):
        found = ops.weight_norm(v, g)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_is_allocated(cpu_backend):
    """The weight forward, and backward the gradient: from the pool, which torch does not see."""
    v = torch.randn(256, 3000, requires_grad=True)
    g = torch.randn(256, requires_grad=True)
    size = v.numel() * 4
    gankernels.empty_cache()
    with torch.profiler.profile(profile_memory=True) as run:
        w = ops.weight_norm(v, g)
    assert sum(max(0, e.self_cpu_memory_usage) for e in run.key_averages()) < size / 100
    seed = torch.randn(256, 3000)
    with torch.profiler.profile(profile_memory=True) as run:
        found = torch.autograd.grad(w, (v, g), seed)
    assert sum(max(0, e.self_cpu_memory_usage) for e in run.key_averages()) < size / 100
    del w, found
    assert 2 * size <= gankernels.empty_cache() < 2.2 * size


# --- registration ---------------------------------------------------------------------------------


def test_opcheck(backend):
    v, g = leaves(backend, torch.float32)
    g = [x.detach().flatten().requires_grad_() for x in g]
    op = native_ops()
    torch.library.opcheck(op.weight_norm.default, (v, g))
    _, norms = op.weight_norm(v, g)
    x = [torch.randn_like(t).requires_grad_() for t in v]
    torch.library.opcheck(op.weight_norm_backward.default, (x, v, g, norms.detach()))
    v, g, x = ([t.detach() for t in each] for each in (v, g, x))
    h, e = [torch.randn_like(t) for t in v], [torch.randn_like(t) for t in g]
    torch.library.opcheck(op.weight_norm_double_backward.default, (h, e, x, v, g, norms.detach()))


def test_the_operators_norms_have_no_gradient(backend):
    """They serve the backward pass; the registered autograd takes weights alone."""
    v, g = leaves(backend)
    g = [x.detach().flatten().requires_grad_() for x in g]
    w, _ = native_ops().weight_norm(v, g)
    exact_v, exact_g, exact = plain(v, g)
    found = torch.autograd.grad(loss_of(w[0]) + loss_of(w[2]), [*v, *g], allow_unused=True)
    expected = torch.autograd.grad(
        loss_of(exact[0]) + loss_of(exact[2]), [*exact_v, *exact_g], allow_unused=True
    )
    assert_gradients(found, expected)
