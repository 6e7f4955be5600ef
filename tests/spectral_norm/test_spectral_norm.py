"""Values of the operators of spectral normalization, against the reference in float64."""

import pytest
import torch
from support.backends import current_backend, instruction_sets, native_ops
from support.tensors import DTYPES, TOLERANCE, assert_near, drawer, dtype_name
from support.weights import LARGE_LAYOUTS, LAYOUTS

import gankernels
from gankernels import _library, ops, reference
from gankernels._dtypes import accumulation_dtype

ORDERS = ("u_first", "v_first")


def clones(tensors):
    return [x.clone() for x in tensors]


def doubles(tensors):
    return [x.detach().to(torch.float64, copy=True) for x in tensors]


def vectors(weights, seed=1):
    """Unit vectors u and v for every weight, of its dtype."""
    draw = drawer(seed)
    u, v = [], []
    for w in weights:
        for found, size in ((u, w.shape[0]), (v, w.numel() // w.shape[0])):
            x = draw(size)
            found.append((x / x.norm()).to(w.device, w.dtype))
    return u, v


def exact(weights, u, v, n=1, eps=1e-12, order="u_first", max_norm=None, guard=False):
    """u, v, sigma, outputs and the guard's counters, by the reference in float64."""
    weights, u, v = doubles(weights), doubles(u), doubles(v)
    skipped = weights[0].new_zeros(len(weights), dtype=torch.int64) if guard else None
    new_u, new_v, sigma = reference.power_iteration_(weights, u, v, n, eps, order, skipped=skipped)
    out, sigma = reference.spectral_normalize(weights, new_u, new_v, sigma, max_norm=max_norm)
    return new_u, new_v, sigma, out, skipped


def expected_strides(w):
    """Those of ``w``, or of a contiguous tensor where the memory of ``w`` has gaps or overlaps."""
    steps = sorted(
        (stride, size) for stride, size in zip(w.stride(), w.shape, strict=True) if size > 1
    )
    expected = 1
    for stride, size in steps:
        if stride != expected:
            return torch.empty(w.shape).stride()
        expected *= size
    return w.stride()


def check_outputs(weights, out, expected, what=""):
    for i, (w, o, e) in enumerate(zip(weights, out, expected, strict=True)):
        assert_near(o, e, what=f"{what} output {i} {tuple(w.shape)}")
        assert o.dtype == w.dtype
        assert o.stride() == expected_strides(w), f"{what} output {i}"


def check_iteration(weights, u, v, found, expected, what=""):
    new_u, new_v, sigma = found
    wide = accumulation_dtype(weights[0].dtype)
    for x in (*new_u, *new_v, sigma):
        assert x.dtype == wide
        assert not x.requires_grad
    assert_near(sigma, expected[2], what=f"{what} sigma")
    for i, (x, y) in enumerate(zip([*u, *v], [*new_u, *new_v], strict=True)):
        assert_near(y, [*expected[0], *expected[1]][i], what=f"{what} vector {i}")
        torch.testing.assert_close(x, y.to(x.dtype), rtol=0, atol=0, equal_nan=True)
        assert x.untyped_storage().data_ptr() != y.untyped_storage().data_ptr()


def test_the_cpu_kernels_are_there():
    assert _library.EXTENSIONS["_C"].loaded, _library.EXTENSIONS["_C"]


# --- layouts, dtypes, orders, instruction sets --------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_iteration_and_output(backend, isa, layout, dtype):
    weights = [LAYOUTS[layout](drawer(0, dtype, backend))]
    u0, v0 = vectors(weights)
    for order in ORDERS:
        for n in (1, 3):
            expected = exact(weights, u0, v0, n, order=order)
            for name in instruction_sets():
                what = f"{name} {order} n={n}"
                isa(name)
                u, v = clones(u0), clones(v0)
                parts = ops.power_iteration_(weights, u, v, n, order=order)
                check_iteration(weights, u, v, parts, expected, what)

                out, sigma = ops.spectral_normalize(weights, *parts)
                assert torch.equal(sigma, parts[2])
                check_outputs(weights, out, expected[3], what)

                u2, v2 = clones(u0), clones(v0)
                both, both_sigma = ops.spectral_norm(weights, u2, v2, n, order=order)
                results = [*u2, *v2, *both, both_sigma], [*u, *v, *out, sigma]
                for got, same in zip(*results, strict=True):
                    assert torch.equal(got, same), what


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_evaluation(backend, isa, layout, dtype):
    """Without sigma, it is u . (W v), of u and v as they are."""
    weights = [LAYOUTS[layout](drawer(0, dtype, backend))]
    u, v = vectors(weights, seed=2)
    before = clones([*u, *v])
    for max_norm in (None, 0.05, 1e4):
        expected, sigma64 = reference.spectral_normalize(
            doubles(weights), doubles(u), doubles(v), max_norm=max_norm
        )
        # u . (W v) of vectors that do not fit W cancels: relative to the sum without signs.
        scale = (u[0].abs().double() @ weights[0].abs().double().reshape(len(u[0]), -1)).dot(
            v[0].abs().double()
        )
        for name in instruction_sets():
            isa(name)
            out, sigma = ops.spectral_normalize(weights, u, v, max_norm=max_norm)
            assert sigma.dtype == accumulation_dtype(dtype)
            error = (sigma[0].double() - sigma64[0]).abs() / scale
            assert error < (1e-14 if dtype == torch.float64 else 2e-6)
            loss = max(1.0, (scale / sigma64[0].abs()).item())
            for o, e, w in zip(out, expected, weights, strict=True):
                assert_near(o, e, factor=loss, what=f"{name} {max_norm}")
                assert o.stride() == expected_strides(w)
    for x, old in zip([*u, *v], before, strict=True):
        assert torch.equal(x, old)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_many_weights_in_one_call(backend, dtype):
    weights = [make(drawer(i, dtype, backend)) for i, make in enumerate(LAYOUTS.values())]
    u0, v0 = vectors(weights)
    for order in ORDERS:
        u, v = clones(u0), clones(v0)
        out, sigma = ops.spectral_norm(weights, u, v, 2, order=order)
        expected = exact(weights, u0, v0, 2, order=order)
        check_outputs(weights, out, expected[3])
        for i, s in enumerate(sigma):  # each by its own size
            assert_near(s, expected[2][i])
        # Each is what it is alone.
        for i, w in enumerate(weights):
            alone_u, alone_v = u0[i].clone(), v0[i].clone()
            (alone,), s = ops.spectral_norm([w], [alone_u], [alone_v], 2, order=order)
            assert_near(alone, expected[3][i])
            assert_near(s[0], expected[2][i])


@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e6])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_coefficient(backend, dtype, max_norm):
    weights = [LAYOUTS[name](drawer(4, dtype, backend)) for name in ("linear", "vector", "conv")]
    u, v = vectors(weights)
    expected = exact(weights, u, v, max_norm=max_norm)
    out, _ = ops.spectral_norm(weights, clones(u), clones(v), max_norm=max_norm)
    check_outputs(weights, out, expected[3])
    found = ops.power_iteration_(weights, u, v)
    again, _ = ops.spectral_normalize(weights, *found, max_norm=max_norm)
    check_outputs(weights, again, expected[3])
    if max_norm == 1e6:
        for w, o in zip(weights, out, strict=True):
            assert torch.equal(w, o)


def test_vectors_of_the_weights_dtype_are_taken(backend):
    """The buffers of a bfloat16 model, as they are, in evaluation."""
    weights = [drawer(0, torch.bfloat16, backend)(16, 24)]
    u, v = vectors(weights)
    ops.power_iteration_(weights, u, v, 5)
    out, sigma = ops.spectral_normalize(weights, u, v)
    expected, sigma64 = reference.spectral_normalize(doubles(weights), doubles(u), doubles(v))
    assert_near(out[0], expected[0])
    assert_near(sigma, sigma64)


@pytest.mark.parametrize("order", ["u_first", "v_first"])
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wider_vectors(backend, dtype, order, guarded):
    """float32 beside half weights: what half weights that were widened give, and their dtype."""
    weights = [drawer(0, dtype, backend)(*shape) for shape in ((16, 24), (5, 3, 2), (7,))]
    wide = [w.float() for w in weights]
    u, v = vectors(wide)
    others = [x.clone() for x in u], [x.clone() for x in v]
    how = {"skipped": torch.zeros(3, dtype=torch.int64, device=backend)} if guarded else {}
    for w in weights:
        w.requires_grad_()
    out, sigma = ops.spectral_norm(weights, u, v, 2, 1e-12, order, **how)
    expected, expected_sigma = ops.spectral_norm(wide, *others, 2, 1e-12, order, **how)
    for mine, other in zip((*u, *v, sigma), (*others[0], *others[1], expected_sigma), strict=True):
        assert mine.dtype == torch.float32
        assert_near(mine, other.double())
    for mine, other in zip(out, expected, strict=True):
        assert mine.dtype == dtype
        assert_near(mine.detach(), other.double())
    sum(x.float().sin().sum() for x in out).backward()
    assert all(w.grad.dtype == dtype for w in weights)
    found = ops.power_iteration_(weights, *others, 2, 1e-12, order, **how)
    assert found.sigma.dtype == torch.float32


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_wider_vectors_that_are_guarded(backend, dtype, order):
    """A weight of zeros keeps u and v; a vector of zeros, or NaN, begins again."""
    weights = [drawer(0, dtype, backend)(*shape) for shape in ((16, 24), (5, 70), (7, 3))]
    weights[0].zero_()
    wide = [w.float() for w in weights]
    u, v = vectors(wide)
    u[1].zero_()
    v[1].fill_(float("nan"))
    kept = u[0].clone(), v[0].clone()
    others = [x.clone() for x in u], [x.clone() for x in v]
    skipped, expected_skipped = (torch.zeros(3, dtype=torch.int64, device=backend) for _ in "12")
    found = ops.power_iteration_(weights, u, v, 1, order=order, skipped=skipped)
    expected = ops.power_iteration_(wide, *others, 1, order=order, skipped=expected_skipped)
    assert skipped.tolist() == expected_skipped.tolist() == [1, 0, 0]
    assert torch.equal(u[0], kept[0])
    assert torch.equal(v[0], kept[1])
    mine, right = ([*x.u, *x.v, x.sigma] for x in (found, expected))
    for x, y in zip([*mine, *u, *v], [*right, *others[0], *others[1]], strict=True):
        assert_near(x, y.double())


# --- large weights: threads, streaming ----------------------------------------------------------


def check_gradients(found, grads, weights, expected):
    """dL/dW = (G - <G, W / sigma> u v^T) / sigma + s u v^T, in float64; s is sigma here."""
    for i, (g, w) in enumerate(zip(doubles(grads), doubles(weights), strict=True)):
        u, v, s = (part[i] for part in expected[:3])
        outer = torch.outer(u, v).view(w.shape)
        gradient = (g - (g * w).sum() / s * outer) / s + s * outer
        assert_near(found[i], gradient, factor=4, what=f"gradient {i}")


@pytest.mark.parametrize("layout", LARGE_LAYOUTS)
def test_large_weights_do_not_depend_on_threads(backend, isa, threads, layout):
    weights = [
        LARGE_LAYOUTS[layout](drawer(0, torch.float32, backend)),
        drawer(1, torch.float32, backend)(31, 33),
    ]
    u0, v0 = vectors(weights)
    draw = drawer(3, torch.float32, backend)
    grads, h = ([draw(*w.shape) for w in weights] for _ in range(2))
    grads = [g + w for g, w in zip(grads, weights, strict=True)]  # <G, W> is not small
    backward, double = (
        getattr(native_ops(), f"spectral_normalize_{name}")
        for name in ("backward", "double_backward")
    )
    for order in ORDERS:
        expected = exact(weights, u0, v0, 2, order=order)
        runs = []
        for name in instruction_sets():
            isa(name)
            if current_backend() == "cpu":  # others give the same bits in any order of the threads
                runs = []
            for count in (1, 2, 5) if current_backend() == "cpu" else (1,):
                threads(count)
                u, v = clones(u0), clones(v0)
                parts = ops.power_iteration_(weights, u, v, 2, order=order)
                out, sigma = ops.spectral_norm(weights, clones(u0), clones(v0), 2, order=order)
                _, read = ops.spectral_normalize(weights, parts[0], parts[1])
                rest = []
                if order == "u_first":
                    rest = backward(grads, weights, *parts, sigma, None)
                    check_gradients(rest, grads, weights, expected)
                    g, w, s = double(h, grads, weights, *parts, sigma, None)
                    rest = [*rest, *g, *w, s]
                runs.append([*u, *v, sigma, *out, *rest, read])
                assert_near(read, expected[2])
            check_outputs(weights, runs[0][5:7], expected[3], f"{name} {order}")
            check_iteration(weights, u, v, parts, expected, f"{name} {order}")
            for other in runs[1:]:
                for a, b in zip(runs[0], other, strict=True):
                    assert torch.equal(a, b), f"{name} {order}: not the same on more threads"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
def test_outputs_beyond_the_caches(cpu_backend, isa, threads, dtype):
    """Over 32 MiB of weights, outputs are written past the caches."""
    draw = drawer(0, dtype)
    size = 1450 if dtype == torch.float64 else 2051
    weights = [draw(size, size), draw(3, 5), draw(size, size).t(), draw(257, size, 2).movedim(1, 0)]
    assert sum(w.numel() * w.element_size() for w in weights) > 32 << 20
    u0, v0 = vectors(weights)
    expected = exact(weights, u0, v0)
    threads(2)
    for name in instruction_sets():
        isa(name)
        leaves = [w.detach().requires_grad_() for w in weights]
        out, _ = ops.spectral_norm(leaves, clones(u0), clones(v0))
        check_outputs(weights, out, expected[3], name)
        # With the cotangent W, dL/dW = (W - <W, W / sigma> u v^T) / sigma.
        grads = torch.autograd.grad(out, leaves, weights)
        for w, g, u, v, s in zip(doubles(weights), grads, *expected[:3], strict=True):
            outer = torch.outer(u, v).view(w.shape)
            assert_near(g, (w - w.square().sum() / s * outer) / s, what=name)


# --- values at the edge -------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-15, 1e-8, 1e8, 1e15])
@pytest.mark.parametrize("eps", [1e-12, 0.0])
@pytest.mark.parametrize("order", ORDERS)
def test_magnitudes(backend, isa, order, eps, scale):
    names = ("linear", "linear_transposed", "conv_transpose")
    weights = [LAYOUTS[name](drawer(6, torch.float32, backend)) * scale for name in names]
    u0, v0 = vectors(weights)
    expected = exact(weights, u0, v0, eps=eps, order=order)
    for name in instruction_sets():
        isa(name)
        u, v = clones(u0), clones(v0)
        found = ops.power_iteration_(weights, u, v, eps=eps, order=order)
        check_iteration(weights, u, v, found, expected, name)
        out, _ = ops.spectral_norm(weights, clones(u0), clones(v0), eps=eps, order=order)
        check_outputs(weights, out, expected[3], name)


def bad_weights(draw):
    one_nan, one_inf = draw(5, 7), draw(5, 7)
    one_nan[2, 3] = torch.nan
    one_inf[4, 0] = -torch.inf
    return {"zero": draw(5, 7) * 0, "nan": one_nan, "inf": one_inf}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("eps", [1e-12, 0.0])
@pytest.mark.parametrize("kind", ["zero", "nan", "inf"])
def test_bad_numbers_do_as_torch_does(backend, isa, kind, eps, order):
    w = bad_weights(drawer(0, torch.float32, backend))[kind]
    u0, v0 = vectors([w])
    expected = exact([w], u0, v0, eps=eps, order=order)
    for name in instruction_sets():
        isa(name)
        u, v = clones(u0), clones(v0)
        found = ops.power_iteration_([w], u, v, eps=eps, order=order)
        check_iteration([w], u, v, found, expected, name)
        out, _ = ops.spectral_norm([w], clones(u0), clones(v0), eps=eps, order=order)
        assert_near(out[0], expected[3][0], what=name)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("n", [1, 3])
def test_guard(backend, dtype, order, n):
    draw = drawer(0, dtype, backend)
    bad = list(bad_weights(draw).values())
    weights = [draw(8, 3), bad[0], draw(4, 9).t(), bad[1], bad[2], bad[0].t(), draw(3, 4, 2)]
    u0, v0 = vectors(weights)
    u, v = clones(u0), clones(v0)
    skipped = torch.full((len(weights),), 10, dtype=torch.int64, device=backend)
    found = ops.power_iteration_(weights, u, v, n, order=order, skipped=skipped)
    assert skipped.tolist() == [10, 11, 10, 11, 11, 11, 10]
    expected = exact(weights, u0, v0, n, order=order, guard=True)
    assert expected[4].tolist() == [0, 1, 0, 1, 1, 1, 0]
    check_iteration(weights, u, v, found, expected)
    for i, count in enumerate(expected[4].tolist()):
        if count:
            assert torch.equal(u[i], u0[i])
            assert torch.equal(v[i], v0[i])
            assert found.sigma[i] == 1

    out, sigma = ops.spectral_norm(weights, u0, v0, n, order=order, skipped=skipped)
    assert skipped.tolist() == [10, 12, 10, 12, 12, 12, 10]
    for i, o in enumerate(out):
        if expected[4][i]:
            torch.testing.assert_close(o, weights[i], rtol=0, atol=0, equal_nan=True)
        else:
            assert_near(o, expected[3][i])
    assert_near(sigma, expected[2])


def test_nothing_is_counted_without_need(backend):
    w = drawer(0, torch.float32, backend)(4, 5)
    skipped = torch.zeros(1, dtype=torch.int64, device=backend)
    plain_u, plain_v = vectors([w])
    u, v = clones(plain_u), clones(plain_v)
    a = ops.power_iteration_([w], u, v, skipped=skipped)
    b = ops.power_iteration_([w], plain_u, plain_v)
    assert skipped.item() == 0
    for s, t in zip((*a.u, *a.v, a.sigma), (*b.u, *b.v, b.sigma), strict=True):
        assert torch.equal(s, t)


def test_float16_edges(backend, isa):
    """Every float16 and bfloat16 number goes through the conversions unchanged."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32, device=backend)
    bits = bits.to(torch.int16).view(256, 256)
    for dtype in (torch.float16, torch.bfloat16):
        w = bits.view(dtype).clone()
        w[~torch.isfinite(w)] = 1
        u, v = vectors([w])
        one = torch.ones(1, device=backend)
        for name in instruction_sets():
            isa(name)
            (out,), _ = ops.spectral_normalize([w], u, v, one)
            assert torch.equal(out, w), name
            (out,), _ = ops.spectral_normalize([w], u, v, one * 3)
            expected = (w.float() * (one / 3)).to(dtype)  # the sign of zero apart
            assert torch.equal(out, expected), name


def test_rounding_of_float16(backend, isa):
    """The roundings of outputs are torch's, ties, subnormal numbers and overflow included."""
    w = torch.tensor([[1.0, 1.5, 2.0, 65504.0, 6e-8, 1e-5, 1.25, 3.0]], device=backend)
    u, v = torch.ones(1, device=backend), torch.ones(8, device=backend)
    for dtype in (torch.float16, torch.bfloat16):
        stored = w.to(dtype)
        for scale in (3.0, 1.0009765625, 0.5, 2.0, 1000.0, 0.9999):
            sigma = torch.tensor([1 / scale], device=backend)
            for name in instruction_sets():
                isa(name)
                (out,), _ = ops.spectral_normalize([stored], [u], [v], sigma)
                expected = (stored.float() * (1 / sigma.double()).float()).to(dtype)
                assert torch.equal(out, expected), (name, scale)


# --- outputs are recycled, inputs are not --------------------------------------------------------


def test_outputs_own_their_memory(backend):
    """Buffers come from a pool; two results that are alive never share one."""
    draw = drawer(0, torch.float32, backend)
    w = draw(200, 300)
    u, v = vectors([w])
    first, _ = ops.spectral_normalize([w], u, v)
    kept = first[0].clone()
    for _ in range(3):
        other, _ = ops.spectral_normalize([w * 2], u, v)
        assert other[0].data_ptr() != first[0].data_ptr()
        del other
    assert torch.equal(first[0], kept)
    address = first[0].data_ptr()
    del first
    again, _ = ops.spectral_normalize([w], u, v)
    if current_backend() == "cpu":  # others leave it to their allocator
        assert again[0].data_ptr() == address
    again[0].mul_(2)
    assert not torch.equal(again[0], kept)
    view = again[0][:2]
    del again
    assert ops.spectral_normalize([w], u, v)[0][0].data_ptr() != view.data_ptr()
    del view
    if current_backend() == "cpu":
        assert gankernels.empty_cache() > 0
        assert gankernels.empty_cache() == 0


# --- hypothesis ----------------------------------------------------------------------------------


def test_any_weights():
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies

    @st.composite
    def lists_of_weights(draw):
        """Seeds and recipes for weights of 1 to 5 dimensions in any order, some not dense."""
        count = draw(st.integers(1, 6))
        recipes = []
        for _ in range(count):
            shape = draw(
                st.lists(st.integers(1, 9), min_size=1, max_size=5)
                | st.tuples(st.integers(1, 70), st.integers(1, 300)).map(list)
            )
            order = draw(st.permutations(range(len(shape))))
            step = draw(st.sampled_from([1, 1, 1, 2]))
            recipes.append((shape, order, step))
        return recipes

    drawn = hypothesis.given(
        recipes=lists_of_weights(),
        dtype=st.sampled_from(DTYPES),
        n=st.integers(1, 3),
        order=st.sampled_from(ORDERS),
        max_norm=st.none() | st.floats(0.01, 10),
        seed=st.integers(0, 1000),
    )
    often = hypothesis.settings(max_examples=50, deadline=None, derandomize=True, database=None)
    often(drawn(check_weights))()


def check_weights(recipes, dtype, n, order, max_norm, seed):
    draw = drawer(seed, dtype)
    weights = []
    for shape, permutation, step in recipes:
        sizes = [shape[d] for d in permutation]
        sizes[-1] *= step
        inverse = [permutation.index(d) for d in range(len(shape))]
        weights.append(draw(*sizes)[..., ::step].permute(inverse))
        assert list(weights[-1].shape) == shape
    leaves = [w.detach().requires_grad_() for w in weights]
    u, v = vectors(weights, seed)
    expected = exact(weights, u, v, n, order=order, max_norm=max_norm)
    out, sigma = ops.spectral_norm(leaves, u, v, n, order=order, max_norm=max_norm)
    check_outputs(weights, out, expected[3])
    for i, s in enumerate(sigma):
        assert_near(s, expected[2][i])
        assert_near(u[i], expected[0][i])
        assert_near(v[i], expected[1][i])

    g = [draw(*w.shape) for w in weights]
    grads = torch.autograd.grad(out, leaves, g)
    wide = [w.requires_grad_() for w in doubles(weights)]
    out64, _ = reference.spectral_normalize(wide, *expected[:2], max_norm=max_norm)
    for got, want in zip(grads, torch.autograd.grad(out64, wide, doubles(g)), strict=True):
        # The two terms of the gradient cancel where W is of rank one.
        scale = torch.stack([x.abs().max() for x in doubles(g)]).max() / sigma.min()
        difference = (got.double() - want).abs().max()
        assert difference <= 20 * TOLERANCE[dtype] * max(want.abs().max(), scale)
