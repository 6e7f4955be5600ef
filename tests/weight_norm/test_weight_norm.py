"""weight_norm: values and derivatives of both orders against the reference, on every backend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support.backends import EMULATED, current_backend, instruction_sets
from support.tensors import DTYPES, assert_near, drawer, dtype_name
from support.weights import LARGE_LAYOUTS, LAYOUTS
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gankernels import ops, reference

Dims = Sequence[int | None]
Passes = dict[str, list[Tensor]]


def rows_of(v: Tensor, dim: int | None) -> int:
    return 1 if dim is None else v.shape[dim]


def dims_of(v: Tensor) -> Dims:
    """0, the last, one between, and all of it."""
    return tuple(dict.fromkeys((0, v.dim() - 1, v.dim() // 2, None)))


def passes(
    op: Callable[..., Any],
    v: Sequence[Tensor],
    g: Sequence[Tensor],
    dims: Dims,
    cotangents: Sequence[Sequence[Tensor]],
) -> Passes:
    """Weights, the gradients of v and g, and those of a product with them, x included."""
    n = len(v)
    v, g, x = ([t.detach().requires_grad_() for t in each] for each in (v, g, cotangents[0]))
    h, e = cotangents[1:]
    w = op(v, g, dim=list(dims))
    first = torch.autograd.grad(w, [*v, *g], x, create_graph=True)
    second = torch.autograd.grad(first, [*x, *v, *g], [*h, *e])
    return {
        "w": [t.detach() for t in w],
        "d_v": [t.detach() for t in first[:n]],
        "d_g": [t.detach() for t in first[n:]],
        "d_x": list(second[:n]),
        "d_v again": list(second[n : 2 * n]),
        "d_g again": list(second[2 * n :]),
    }


def exactly(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().double().cpu() for t in tensors]


def drawn(
    layouts: Sequence[Callable[..., Tensor]],
    dims: Dims,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
    """v, g of several shapes, and cotangents."""
    draw = drawer(1, dtype, device)
    v = [layout(draw) for layout in layouts]
    shapes = [
        (rows_of(x, d), *(1,) * (k % 3)) for k, (x, d) in enumerate(zip(v, dims, strict=True))
    ]
    g = [draw(*shape) for shape in shapes]
    # Those of real layers are not 0, and a direction has some length.
    g = [x + x.sign() for x in g]
    v = [x if x.numel() > rows_of(x, d) else x + x.sign() for x, d in zip(v, dims, strict=True)]
    return v, g, [[draw(*t.shape) for t in each] for each in (v, v, g)]


def compare(found: Passes, expected: Passes, v: Sequence[Tensor], dims: Dims, dtype: Any) -> None:
    factors = {"w": 2, "d_v": 2, "d_g": 2, "d_x": 4, "d_v again": 8, "d_g again": 8}
    for name, factor in factors.items():
        for k, (got, right) in enumerate(zip(found[name], expected[name], strict=True)):
            got = got.cpu()
            if v[k].numel() == rows_of(v[k], dims[k]) and name != "w":
                # A row of one element has a direction that does not change: terms that cancel.
                got, right = (torch.cat([t.flatten(), t.new_full((1,), 4)]) for t in (got, right))
            assert_near(
                got, right, dtype, factor=factor, what=f"{name} of weight {k}, dim {dims[k]}"
            )


def check(
    layouts: Sequence[Callable[..., Tensor]], dims: Dims, dtype: torch.dtype, device: torch.device
) -> Passes:
    v, g, cotangents = drawn(layouts, dims, dtype, device)
    found = passes(ops.weight_norm, v, g, dims, cotangents)
    assert all(t.dtype == dtype for each in found.values() for t in each)
    wide = [exactly(each) for each in cotangents]
    expected = passes(reference.weight_norm, exactly(v), exactly(g), dims, wide)
    compare(found, expected, v, dims, dtype)
    return found


# --- against the reference ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(backend, layout, dtype):
    """Both orders, for the slices of every dimension that people use."""
    for dim in dims_of(LAYOUTS[layout](drawer(1))):
        check([LAYOUTS[layout]], [dim], dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LARGE_LAYOUTS)
def test_large_layouts(backend, layout, dtype):
    """Several pieces and threads; rows that a block of the CUDA kernels does not take whole."""
    v = LARGE_LAYOUTS[layout](drawer(1))
    if current_backend() in EMULATED:
        if dtype not in (torch.float32, torch.bfloat16):
            pytest.skip("takes the emulator long")
        dims: Dims = [0] if v.shape[0] < 4000 else [None]
    else:
        dims = dims_of(v)
    for dim in dims:
        check([LARGE_LAYOUTS[layout]], [dim], dtype, backend)


@pytest.mark.parametrize(
    "layout", ["linear", "conv_channels_last", "linear_wide", "conv_transpose"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_instruction_sets(backend, isa, layout, dtype):
    for name in instruction_sets():
        isa(name)
        for dim in (0, 1, None):
            check([LAYOUTS[layout]], [dim], dtype, backend)


#: Lists that take one table of the CUDA kernels, of 1, 8 or 64 weights, or several.
COUNTS = (2, 8, 9, 64, 65)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("count", COUNTS)
def test_lists_of_mixed_shapes(backend, count, dtype):
    makers = list(itertools.islice(itertools.cycle(LAYOUTS.values()), count))
    # Two whose rows are in chunks, and lie apart in the table.
    makers[0] = makers[-1] = lambda draw: draw(2, 40_003)
    shapes = [make(drawer(1)) for make in makers]
    dims = [dims_of(x)[k % len(dims_of(x))] for k, x in enumerate(shapes)]
    dims[0] = dims[-1] = 0
    check(makers, dims, dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_rows_around_the_constants(backend, dtype):
    """A piece of 2,048 and of 32,768 elements, 64 KiB, and their ends."""
    chunk = (64 << 10) // dtype.itemsize
    sizes = {2047, 2048, 2049, 32767, 32768, 32769, chunk - 1, chunk, chunk + 1, chunk + 8}
    sizes |= {2 * chunk, 2 * chunk + 8}
    for size in sorted(sizes):
        check([lambda draw, n=size: draw(2, n)], [0], dtype, backend)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_name)
def test_more_chunks_than_a_block_has_threads(backend, dtype):
    """They are added up in several turns."""
    check([lambda draw: draw(2, (260 * (64 << 10)) // dtype.itemsize + 4)], [0], dtype, backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_memory_that_begins_anywhere(backend, dtype):
    """Vectors of 16 bytes need all tensors aligned; each in turn is not."""
    draw = drawer(0, dtype, backend)

    def shifted(*shape: int) -> Tensor:
        return draw(math.prod(shape) + 1)[1:].view(shape)

    for odd in range(5):
        v, x, h = (shifted(5, 64) if odd == k else draw(5, 64) for k in range(3))
        g, e = (shifted(5, 1) if odd == k else draw(5, 1) for k in (3, 4))
        found = passes(ops.weight_norm, [v], [g], [0], [[x], [h], [e]])
        wide = [exactly(each) for each in ([x], [h], [e])]
        expected = passes(reference.weight_norm, exactly([v]), exactly([g]), [0], wide)
        compare(found, expected, [v], [0], dtype)


@pytest.mark.parametrize("use", ["channels_last", "transposed", "strided", "expanded"])
@pytest.mark.parametrize("layout", ["conv", "conv_channels_last", "conv_transpose"])
def test_cotangents_of_any_layout(backend, layout, use):
    """What comes down need not lie in memory as the weight does; sums give expanded ones."""
    v, g, (x, h, e) = drawn([LAYOUTS[layout]], [0], torch.float64, backend)
    draw = drawer(7, torch.float64, backend)

    def laid_out(t: Tensor) -> Tensor:
        if use == "channels_last":
            return t.contiguous(memory_format=torch.channels_last)
        if use == "transposed":
            return t.transpose(1, 2).contiguous().transpose(1, 2)
        if use == "strided":
            return torch.stack([t, t], -1)[..., 0]
        return draw(1, 1, *t.shape[2:]).expand(t.shape)

    seeds = [[laid_out(x[0])], [laid_out(h[0])], e]
    found = passes(ops.weight_norm, v, g, [0], seeds)
    wide = [exactly(each) for each in seeds]
    expected = passes(reference.weight_norm, exactly(v), exactly(g), [0], wide)
    compare(found, expected, v, [0], torch.float64)


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "conv" in name])
def test_the_weight_lies_in_memory_as_v_does(backend, layout, dim):
    draw = drawer(1, device=backend)
    v = LAYOUTS[layout](draw)
    if v.numel() != v[0].numel() * len(v) or not _is_dense(v):
        pytest.skip("has gaps")
    w = ops.weight_norm(v, draw(rows_of(v, dim)), dim=dim)
    assert steps(w) == steps(v)


def _is_dense(x: Tensor) -> bool:
    return torch.empty_like(x).stride() == x.stride()


def steps(x: Tensor) -> list[int]:
    """The strides of dimensions of more than one element: those of others mean nothing."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def test_dense_weights_are_read_where_they_are(backend):
    from gankernels.ops import weight_norm as function

    rows_first = function.__globals__["rows_first"]
    draw = drawer(1, device=backend)
    for layout in ("linear", "conv", "conv_channels_last", "vector", "slice_with_offset"):
        v = LAYOUTS[layout](draw)
        assert rows_first(v, 0) is v, layout
        assert rows_first(v, None).data_ptr() == v.data_ptr(), layout
    turned = draw(5, 7).t()  # its dimension 1 is the outermost in memory
    assert rows_first(turned, 1).data_ptr() == turned.data_ptr()


# --- numerical derivatives ------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [0, 1, None])
def test_numerical_derivatives(backend, dim):
    draw = drawer(3, torch.float64, backend)
    v = [draw(3, 4).requires_grad_(), draw(2, 3, 2).requires_grad_()]
    g = [draw(rows_of(x, dim)).requires_grad_() for x in v]

    def f(*tensors):
        return tuple(ops.weight_norm(tensors[:2], tensors[2:], dim=dim))

    fast = current_backend() in EMULATED
    assert gradcheck(f, (*v, *g), fast_mode=fast)
    assert gradgradcheck(f, (*v, *g), fast_mode=fast)


# --- what results do not depend on ----------------------------------------------------------------


def same(a: Passes, b: Passes) -> bool:
    return all(torch.equal(x, y) for name in a for x, y in zip(a[name], b[name], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_name)
def test_threads_and_runs_give_the_same_bits(backend, threads, isa, dtype):
    layouts = [LAYOUTS["conv"], lambda draw: draw(3, 70_001), lambda draw: draw(301, 257)]
    dims = [0, 0, 0]
    if backend.type == "cpu" and current_backend() == "cpu":
        layouts.append(LARGE_LAYOUTS["linear_many_rows"])
        dims.append(0)
    v, g, cotangents = drawn(layouts, dims, dtype, backend)
    results = {}
    for name, count in itertools.product(instruction_sets(), (1, 2, 3)):
        isa(name)
        threads(count)
        found = passes(ops.weight_norm, v, g, dims, cotangents)
        assert same(results.setdefault(name, found), found), (name, count)
    if current_backend() != "cpu":  # orders of the threads of a GPU, and runs
        first, *others = results.values()
        assert all(same(first, other) for other in others)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_alone_as_in_a_list(backend, dtype):
    """The same bits: fusing a network changes nothing."""
    names = ["conv", "linear_wide", "conv_channels_last", "conv_transpose", "linear_tall", "vector"]
    layouts = [*(LAYOUTS[name] for name in names), lambda draw: draw(2, 40_003)]
    dims = [0, 0, 1, 1, None, 0, 0]
    v, g, cotangents = drawn(layouts, dims, dtype, backend)
    together = passes(ops.weight_norm, v, g, dims, cotangents)
    for k in range(len(v)):
        seeds = [[each[k]] for each in cotangents]
        alone = passes(ops.weight_norm, [v[k]], [g[k]], [dims[k]], seeds)
        assert same(alone, {name: [each[k]] for name, each in together.items()}), k
        one = ops.weight_norm(v[k], g[k], dim=dims[k])
        assert torch.equal(one, together["w"][k])


# --- numbers far from 1 ---------------------------------------------------------------------------


@pytest.mark.parametrize("of_g", ["1", "alike"])
@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        *((torch.float32, s) for s in (1e-30, 1e-18, 1e18, 1e30)),
        *((torch.float64, s) for s in (1e-300, 1e-200, 1e-120, 1e120, 1e200, 1e300)),
        *((torch.bfloat16, s) for s in (1e-30, 1e30)),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [5, 64, 40_003])
def test_far_from_one(backend, size, dtype, scale, of_g):
    """Squares of the entries leave the range of their type, and a / n that of the largest.

    The second order is where it is itself within range: that of v has the size of g / n^2.
    """
    draw = drawer(5, torch.float64)
    v, x, h = (draw(3, size).to(dtype).double() for _ in range(3))
    g, e = ((draw(3, 1).abs() + 0.5).to(dtype).double() for _ in range(2))
    near_one = passes(reference.weight_norm, [v], [g], [0], [[x], [h], [e]])
    s = 2.0 ** round(math.log2(scale))  # leaves the digits alone
    of_w = s if of_g == "alike" else 1.0
    powers = {"w": of_w, "d_v": of_w / s, "d_g": 1.0}
    if of_g == "alike":
        powers |= {"d_x": 1.0, "d_v again": 1 / s, "d_g again": 1 / s}
    v, g = v * s, g * of_w
    inputs = [[t.to(backend, dtype)] for t in (v, g, x, h, e)]
    found = passes(ops.weight_norm, *inputs[:2], [0], inputs[2:])
    expected = {name: near_one[name][0] * power for name, power in powers.items()}
    for name, right in expected.items():
        assert right.isfinite().all()
        (got,) = found[name]
        assert_near(got.cpu(), right, dtype, factor=8, what=name)


def test_a_row_of_zeros_is_nan_as_in_torch(backend):
    """g v / ||v|| has no value there. The other rows have theirs."""
    for dtype in DTYPES:
        v = drawer(0, dtype, backend)(4, 6)
        v[1] = 0
        g = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=dtype, device=backend)
        v.requires_grad_(), g.requires_grad_()
        w = ops.weight_norm(v, g)
        theirs = torch._weight_norm(v.detach().float(), g.detach().float().view(-1, 1), 0)
        assert torch.equal(w.isnan(), theirs.isnan())
        assert w.isnan().any(1).tolist() == [False, True, False, False]
        assert not w[3].any()
        d_v, d_g = torch.autograd.grad(w.nan_to_num().sum(), (v, g))
        for x in (d_v, d_g):
            assert x.isfinite()[[0, 2, 3]].all()


@pytest.mark.parametrize("size", [6, 64, 40_003])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_nan_and_infinity_are_seen(backend, dtype, size):
    draw = drawer(0, dtype, backend)
    v, g = draw(5, size), draw(5)
    v[0, 2], v[1, size - 1], v[2, 0] = float("nan"), float("inf"), -float("inf")
    g[3] = float("nan")
    v.requires_grad_(), g.requires_grad_()
    w = ops.weight_norm(v, g)
    expected = reference.weight_norm(v.detach().double().cpu(), g.detach().double().cpu())
    assert torch.equal(w.isnan().cpu(), expected.isnan())
    assert w[0].isnan().all()
    assert w[3].isnan().all()
    assert w[1, -1].isnan()
    assert not w[1, 0].any()
    assert w[4].isfinite().all()
    d_v, d_g = torch.autograd.grad(w[4].sum() + w[0].sum(), (v, g))
    assert d_v[4].isfinite().all()
    assert d_v[0].isnan().all()
    assert d_g[0].isnan()


def test_sums_of_half_precision_do_not_overflow(backend):
    """40,003 squares of 10 are 4 million, and squares of 1e-4 are 0, in float16."""
    for value in (10.0, 1e-4):
        v = torch.full((2, 40_003), value, dtype=torch.float16, device=backend)
        w = ops.weight_norm(v, torch.ones(2, dtype=torch.float16, device=backend))
        assert_near(w.cpu(), torch.full(v.shape, 40_003**-0.5, dtype=torch.float64))


# --- as torch does it -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_torch_agrees(backend, dim, dtype):
    """torch._weight_norm, whose dim of -1 is None here.

    For the first and the last dimension torch has a kernel, whose second derivative in v takes the
    norm for a constant: gradgradcheck refuses it.
    """
    draw = drawer(0, dtype, backend)
    v = draw(6, 5, 3)
    shape = [n if d == dim else 1 for d, n in enumerate(v.shape)]
    g, x, h, e = draw(*shape), draw(6, 5, 3), draw(6, 5, 3), draw(*shape)

    def theirs(v, g, dim):
        return [torch._weight_norm(v[0], g[0], -1 if dim[0] is None else dim[0])]

    found = passes(ops.weight_norm, [v], [g], [dim], [[x], [h], [e]])
    expected = passes(theirs, [v], [g], [dim], [[x], [h], [e]])
    names = [name for name in found if dim in (1, None) or name != "d_v again"]
    for name in names:
        assert_near(
            found[name][0].cpu(), expected[name][0].double().cpu(), dtype, factor=8, what=name
        )


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1), (1, 6, 1), (6,), (6, 1), (3, 2), (2, 3, 1)])
def test_g_of_any_shape(backend, shape):
    draw = drawer(0, device=backend)
    v, g = draw(6, 5), draw(*shape)
    dim = 0 if g.numel() == 6 else None
    w = ops.weight_norm(v, g.requires_grad_(), dim=dim)
    expected = reference.weight_norm(v.double(), g.detach().double().reshape(-1), dim=dim)
    assert_near(w.cpu(), expected.cpu())
    (grad,) = torch.autograd.grad(w.sum(), g)
    assert grad.shape == g.shape


def test_g_that_is_strided(backend):
    draw = drawer(0, device=backend)
    v, g = draw(6, 5), draw(12)[::2].requires_grad_()
    w = ops.weight_norm(v, g)
    assert torch.equal(w, ops.weight_norm(v, g.detach().clone()))
    (grad,) = torch.autograd.grad(w.sum(), g)
    assert_near(grad.cpu(), (v / v.norm(dim=1, keepdim=True)).sum(1).double().cpu())
