"""gradient_penalty under autograd: both orders, zeros, NaN, state, torch.compile, transforms."""

import pytest
import torch
from support.backends import EMULATED, current_backend, instruction_sets, native_ops
from support.tensors import DTYPES, assert_near, drawer, dtype_name
from torch.autograd import gradcheck, gradgradcheck

import gankernels
from gankernels import ops, reference

OPTIONS = [
    {},
    {"center": 1.0},
    {"center": 0.5, "one_sided": True, "reduction": "sum"},
    {"center": 1.0, "reduction": "none"},
    {"center": 0.3, "per_tensor": True},
    {"per_tensor": True, "reduction": "none", "weight": 2.5},
]


def leaves(backend, dtype=torch.float64, shapes=((3, 2, 4), (3, 5))):
    draw = drawer(5, dtype, backend)
    return [draw(*shape).mul_(0.6).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(backend, options, weighted):
    grads = leaves(backend)
    sample_weight = drawer(6, torch.float64, backend)(3).abs().requires_grad_()
    scale = torch.tensor(0.8, dtype=torch.float64, device=backend)

    def f(*grads):
        *grads, w = grads if weighted else (*grads, None)
        return ops.gradient_penalty(grads, sample_weight=w, inv_scale=scale, **options)

    inputs = [*grads, sample_weight] if weighted else grads
    # The emulated threads of numerical differences take their time.
    fast = current_backend() in EMULATED
    assert gradcheck(f, inputs, fast_mode=fast)
    assert gradgradcheck(f, inputs, fast_mode=fast)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_second_order(backend, options, dtype):
    """In every dtype, against the reference in float64."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    grads = leaves(backend, dtype, ((4, 3, 5, 5), (4, 131)))
    weight = drawer(6, wide, backend)(4).abs().requires_grad_()
    h = [drawer(7, dtype, backend)(*g.shape) for g in grads]
    e = drawer(8, wide, backend)(4)

    def both(op, grads, weight, h, e):
        values = op(grads, sample_weight=weight, **options)
        seed = drawer(9, torch.float64)(*values.shape, 1).squeeze(-1).to(values).requires_grad_()
        first = torch.autograd.grad((values * seed).sum(), [*grads, weight], create_graph=True)
        total = sum(
            (x.to(e.dtype) * y.to(e.dtype)).sum() for x, y in zip(first, [*h, e], strict=True)
        )
        return torch.autograd.grad(total, [*grads, weight, seed])

    def exact(x):
        return x.detach().double().cpu().requires_grad_(x.requires_grad)

    found = both(ops.gradient_penalty, grads, weight, h, e)
    expected = both(
        reference.gradient_penalty,
        [exact(g) for g in grads],
        exact(weight),
        map(exact, h),
        exact(e),
    )
    for x, y in zip(found, expected, strict=True):
        assert_near(x.cpu(), y, dtype, factor=4)


def test_third_order(backend):
    (g,) = leaves(backend, shapes=((2, 3),))

    def third():
        x = ops.gradient_penalty(g, center=1.0)
        for _ in range(2):
            x = torch.autograd.grad(x, g, create_graph=True)[0].square().sum()
        return torch.autograd.grad(x, g)[0]

    with pytest.raises(NotImplementedError, match=r"third derivative.*reference"):
        third()
    with gankernels.backend("reference"):
        assert third().isfinite().all()


# --- zeros, infinities, NaN ---------------------------------------------------------------------


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("center", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_zero_gradient(backend, dtype, center, one_sided):
    """The square root has no derivative there, and the obvious form gives NaN."""
    g = torch.zeros(3, 4, dtype=dtype, device=backend)
    g[1] = 0.2
    g.requires_grad_()
    wrong = (g.float().square().sum(1).sqrt() - center).square().mean()
    assert torch.autograd.grad(wrong, g)[0].isnan().any()

    value = ops.gradient_penalty(g, center=center, one_sided=one_sided)
    (first,) = torch.autograd.grad(value, g, create_graph=True)
    assert not first[0].any()
    assert first[1].all() or (one_sided and center >= 0.5)
    (second,) = torch.autograd.grad(first.sum(), g)
    assert first.isfinite().all()
    assert second.isfinite().all()
    # n^2 has the second derivative 2; of the others the subgradient 0 is constant.
    assert_near(
        second[0].cpu(), torch.full((4,), 2 / 3 if center == 0 else 0.0, dtype=torch.float64)
    )


def test_nan_and_infinity_are_seen(backend):
    g = torch.ones(4, 3, device=backend)
    g[1, 2], g[2, 0] = float("nan"), float("inf")
    for options in ({}, {"center": 1.0}, {"center": 5.0, "one_sided": True}):
        g.requires_grad_()
        values, norms = ops.gradient_penalty(g, reduction="none", return_norms=True, **options)
        assert values.isnan().tolist() == norms.isnan().tolist() == [False, True, False, False]
        assert values.isinf().tolist() == norms.isinf().tolist() == [False, False, True, False]
        (found,) = torch.autograd.grad(values.sum(), g)
        assert not found[1].isfinite().all()
        assert found[0].isfinite().all()


def test_half_sums_do_not_overflow(backend):
    """Of 196,608 ones the sum is inf in float16, and squares of 1e-4 are 0."""
    for value in (1.0, 1e-4):
        g = torch.full((1, 3, 256, 256), value, dtype=torch.float16, device=backend)
        wrong = g.square().sum()
        assert wrong.isinf() or wrong == 0
        found = ops.gradient_penalty(g)
        exact = g.double().square().sum()
        assert abs(found.item() - exact.item()) <= 1e-5 * exact.item()


def test_tiny_and_huge_norms(backend):
    g = torch.tensor([[1e-18, 0.0], [1e18, 1.0]], device=backend, requires_grad=True)
    values, norms = ops.gradient_penalty(g, center=1.0, reduction="none", return_norms=True)
    (first,) = torch.autograd.grad(values.sum(), g, create_graph=True)
    (second,) = torch.autograd.grad(first[1].sum(), g)
    for x in (values, norms, first, second):
        assert x.isfinite().all()


# --- what autograd sees -------------------------------------------------------------------------


def test_norms_carry_no_gradient(backend):
    (g,) = leaves(backend, shapes=((3, 4),))
    value, norms = ops.gradient_penalty(g, return_norms=True)
    assert value.requires_grad
    assert not norms.requires_grad
    with torch.no_grad():
        assert not ops.gradient_penalty(g).requires_grad
    assert not ops.gradient_penalty(g.detach()).requires_grad


def test_only_the_sample_weight_needs_a_gradient(backend):
    (g,) = leaves(backend, shapes=((3, 4),))
    g = g.detach()
    weight = torch.ones(3, dtype=g.dtype, device=backend, requires_grad=True)
    ops.gradient_penalty(g, sample_weight=weight, reduction="sum").backward()
    assert_near(weight.grad.cpu(), g.square().sum(1).cpu())


def test_one_of_a_list_needs_a_gradient(backend):
    a, b = leaves(backend)
    value = ops.gradient_penalty([a.detach(), b], center=1.0)
    (found,) = torch.autograd.grad(value, b)
    expected = torch.autograd.grad(reference.gradient_penalty([a.detach(), b], center=1.0), b)
    assert_near(found.cpu(), expected[0].cpu())


def test_several_passes(backend):
    (g,) = leaves(backend, shapes=((3, 4),))
    first = ops.gradient_penalty(g, center=1.0)
    ops.gradient_penalty(2 * g)  # another forward in between changes nothing
    (a,) = torch.autograd.grad(first, g, retain_graph=True)
    (b,) = torch.autograd.grad(first, g)
    assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(first, g)


def test_a_gradient_changed_in_place_is_refused(backend):
    (leaf,) = leaves(backend, shapes=((3, 4),))
    g = leaf * 1
    value = ops.gradient_penalty(g, center=1.0)
    with torch.no_grad():
        g.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_autocast_leaves_the_numbers_alone(backend):
    (g,) = leaves(backend, torch.float32, ((3, 400),))
    expected = ops.gradient_penalty(g, center=1.0)
    with torch.autocast(backend.type, dtype=torch.bfloat16):
        found = ops.gradient_penalty(g, center=1.0)
    assert torch.equal(found, expected)


def test_what_is_allocated(cpu_backend):
    """Nothing of the gradients' size forward, and backward the gradient that is returned."""
    g = torch.randn(4, 3, 128, 128, requires_grad=True)
    size = g.numel() * 4
    gankernels.empty_cache()
    with torch.profiler.profile(profile_memory=True) as run:
        value = ops.gradient_penalty(g, center=1.0)
    assert sum(max(0, e.self_cpu_memory_usage) for e in run.key_averages()) < size / 100
    assert gankernels.empty_cache() < size  # nor is any in the pool
    with torch.profiler.profile(profile_memory=True) as run:
        value.backward()
    assert sum(max(0, e.self_cpu_memory_usage) for e in run.key_averages()) < size / 100
    g.grad = None
    assert size <= gankernels.empty_cache() < 1.2 * size


# --- registration ---------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"weighted": True}])
def test_opcheck(backend, options):
    a, b = leaves(backend, torch.float32)
    weight = torch.rand(3, device=backend).requires_grad_() if options else None
    rest = (weight, torch.ones(1, device=backend), 1.0, False, 2.0, True, 1)
    op = native_ops()
    torch.library.opcheck(op.gradient_penalty.default, ([a, b], *rest))
    _, norms = op.gradient_penalty([a.detach(), b.detach()], *rest)
    seed = torch.rand(2, device=backend).requires_grad_()
    torch.library.opcheck(
        op.gradient_penalty_backward.default, (seed, [a, b], norms.detach(), *rest)
    )
    h = [torch.rand_like(a.detach()), torch.rand_like(b.detach())]
    e = torch.rand(3, device=backend) if options else None
    grads = [a.detach(), b.detach()]
    rest = (None if weight is None else weight.detach(), *rest[1:])
    torch.library.opcheck(
        op.gradient_penalty_double_backward.default,
        (h, e, seed.detach(), grads, norms.detach(), *rest),
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_compiled(backend, layout):
    def f(g, weight):
        return ops.gradient_penalty(
            [g, g.mean(1)], center=1.0, sample_weight=weight, return_norms=True
        )

    g = drawer(1, device=backend)(4, 3, 6, 5).to(memory_format=layout).requires_grad_()
    weight = torch.rand(4, device=backend).requires_grad_()
    found = torch.compile(f, fullgraph=True)(g, weight)
    expected = f(g, weight)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)
    for x, y in zip(
        torch.autograd.grad(found[0], (g, weight)),
        torch.autograd.grad(expected[0], (g, weight)),
        strict=True,
    ):
        torch.testing.assert_close(x, y)


def test_transforms_take_the_reference(cpu_backend, caplog):
    (g,) = leaves("cpu", shapes=((3, 4),))
    gankernels._library._fallbacks.clear()
    found = torch.func.grad(lambda g: ops.gradient_penalty(g, center=1.0))(g.detach())
    expected = torch.autograd.grad(ops.gradient_penalty(g, center=1.0), g)
    assert_near(found, expected[0])
    assert "gradient_penalty takes the slower PyTorch reference" in caplog.text
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(g.detach(), torch.ones_like(g))
        out = ops.gradient_penalty(dual, center=1.0)
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    assert_near(tangent, expected[0].sum())


# --- the second order: layouts, parts, what is not used ------------------------------------------


def second_order(op, grads, weight, h, e, **options):
    """The gradients of ``<h, dL/dgrads> + <e, dL/dweight>``, where None stands for 0."""
    values = op(grads, sample_weight=weight, **options)
    first = torch.autograd.grad(values.square().sum(), [*grads, weight], create_graph=True)
    used = [k for k, x in enumerate([*h, e]) if x is not None]
    given = [[*h, e][k] for k in used]
    return torch.autograd.grad([first[k] for k in used], [*grads, weight], given)


def exactly(x):
    """In float64, contiguous, on the CPU."""
    return None if x is None else x.detach().double().cpu().clone().requires_grad_()


def check_second_order(grads, weight, h, e, **options):
    found = second_order(ops.gradient_penalty, grads, weight, h, e, **options)
    wide = [exactly(g) for g in grads], exactly(weight), [exactly(x) for x in h], exactly(e)
    expected = second_order(reference.gradient_penalty, *wide, **options)
    for got, want in zip(found, expected, strict=True):
        assert_near(got.cpu(), want, factor=10)
    return found


LAYOUTS = {
    "channels_last": lambda draw: draw(4, 3, 5, 7).contiguous(memory_format=torch.channels_last),
    "permuted": lambda draw: draw(4, 5, 6, 7).permute(0, 3, 1, 2),
    "transposed": lambda draw: draw(33, 4).t(),
    "every_second_sample": lambda draw: draw(8, 40)[::2],
    "odd_start": lambda draw: draw(4 * 64 + 1)[1:].view(4, 64),
    "scalars": lambda draw: draw(4),
    "parts": lambda draw: draw(4, 32771),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("cotangent", ["contiguous", "alike", "expanded"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_order_of_any_layout(backend, layout, cotangent, dtype):
    """What comes down need not lie in memory as the gradient does; sums give expanded ones."""
    g = LAYOUTS[layout](drawer(1, dtype, backend)).detach().requires_grad_()
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0], device=backend).to(torch.float32)
    weight = (weight.double() if dtype == torch.float64 else weight).requires_grad_()
    draw = drawer(2, dtype, backend)
    h = {
        "contiguous": lambda: draw(*g.shape),
        "alike": lambda: torch.empty_like(g).copy_(draw(*g.shape)).detach(),
        "expanded": lambda: draw(1).reshape((1,) * g.dim()).expand(g.shape),
    }[cotangent]()
    found = check_second_order([g], weight, [h], None, center=1.0)
    if layout in ("channels_last", "permuted", "odd_start"):
        assert found[0].stride() == g.stride()


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("used", ["first", "last", "weight", "last and weight"])
def test_partially_used_first_order(backend, used, per_tensor):
    grads = leaves(backend)
    weight = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64, device=backend).requires_grad_()
    draw = drawer(2, torch.float64, backend)
    h = [
        draw(*g.shape) if name in used else None
        for g, name in zip(grads, ("first", "last"), strict=True)
    ]
    e = draw(3) if "weight" in used else None
    for center in (0.0, 1.0):
        check_second_order(grads, weight, h, e, center=center, per_tensor=per_tensor)


def test_cotangents_of_any_layout(backend):
    """Of values that are not reduced: (L, B), transposed or expanded."""
    grads = leaves(backend)
    draw = drawer(3, torch.float64, backend)
    for seed in (draw(3, 2).t(), draw(1, 3).expand(2, 3), draw(2, 1).expand(2, 3)):
        found, expected = (
            torch.autograd.grad(op(grads, per_tensor=True, reduction="none"), grads, seed)
            for op in (ops.gradient_penalty, reference.gradient_penalty)
        )
        for got, want in zip(found, expected, strict=True):
            assert_near(got.cpu(), want.cpu())


@pytest.mark.parametrize("one_sided", [False, True])
def test_a_norm_that_is_the_center(backend, one_sided):
    """The penalty and its slope are 0; two-sided, it curves by 2 along the gradient."""
    g = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64, device=backend, requires_grad=True)
    value = ops.gradient_penalty(g, center=1.0, one_sided=one_sided)
    (first,) = torch.autograd.grad(value, g, create_graph=True)
    (second,) = torch.autograd.grad(first, g, torch.ones_like(g))
    assert value == 0
    assert not first.any()
    assert second.tolist() == [[0.0, 0.0 if one_sided else 2.0, 0.0]]


def test_the_second_order_does_not_depend_on_threads(backend, threads, isa):
    """Of a large gradient and a small one, and not on the run."""
    draw = drawer(4, device=backend)
    grads = [draw(4, 3, 128, 131).requires_grad_(), draw(4, 100).requires_grad_()]
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0], device=backend).requires_grad_()
    h, e = [draw(*g.shape) for g in grads], draw(4)
    for name in instruction_sets():
        isa(name)
        runs = []
        for count in (1, 2, 1):
            threads(count)
            runs.append(second_order(ops.gradient_penalty, grads, weight, h, e, center=1.0))
        for other in runs[1:]:
            assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True)), name
    check_second_order(grads, weight, h, e, center=1.0)
