"""Derivatives of the operators of spectral normalization, of first and second order."""

import pytest
import torch
from support.backends import EMULATED, current_backend, instruction_sets, native_ops
from support.tensors import DTYPES, TOLERANCE, assert_near, drawer, dtype_name
from support.weights import LAYOUTS
from torch.autograd import gradcheck, gradgradcheck

import gankernels
from gankernels import ops, reference
from gankernels.ops import _spectral_norm_autograd

SOME = ("linear", "vector", "conv_channels_last", "conv_transpose", "slice_of_columns")


def leaves(names=SOME, dtype=torch.float64, device="cpu", seed=0):
    """Weights that require a gradient, in the layouts named."""
    found = [LAYOUTS[name](drawer(seed + i, dtype, device)) for i, name in enumerate(names)]
    return [w.detach().requires_grad_() for w in found]


def small(device="cpu", dtype=torch.float64):
    """A few weights that numerical derivatives are quick for."""
    draw = drawer(0, dtype, device)
    weights = [
        draw(3, 4),
        draw(5),
        draw(4, 2).t(),
        draw(2, 3, 2, 2).movedim(1, 0),
        draw(3, 6)[:, ::2],
    ]
    return [w.detach().requires_grad_() for w in weights]


def buffers(weights, seed=1, steps=3):
    """u and v as training has them."""
    draw = drawer(seed)
    u = [draw(w.shape[0]).to(w.device, w.dtype) for w in weights]
    v = [draw(w.numel() // w.shape[0]).to(w.device, w.dtype) for w in weights]
    ops.power_iteration_([w.detach() for w in weights], u, v, steps)
    return u, v


def snapshot(weights, n=1):
    """u, v and sigma for spectral_normalize."""
    u, v = buffers(weights)
    return ops.power_iteration_([w.detach() for w in weights], u, v, n)


def middle(values):
    """A max_norm that some of the sigmas are above and some below."""
    low, high = values.min().item(), values.max().item()
    return (low * high) ** 0.5


@pytest.fixture
def calls(monkeypatch):
    """How many weights each call of the backward kernel was given."""
    seen = []
    real = _spectral_norm_autograd._backward_op

    def spy(grads, weights, *rest):
        assert all(g is not None for g in grads)
        assert len(grads) == len(weights)
        seen.append(len(weights))
        return real(grads, weights, *rest)

    monkeypatch.setattr(_spectral_norm_autograd, "_backward_op", spy)
    return seen


# --- numerical derivatives -----------------------------------------------------------------------


@pytest.mark.parametrize("max_norm", [None, "some", 1e-3, 1e3])
def test_numerical_derivatives(backend, max_norm):
    weights = small(backend)
    u, v, sigma = snapshot(weights)
    if max_norm == "some":
        max_norm = middle(sigma)

    def function(*w):
        out, s = ops.spectral_normalize(w, u, v, max_norm=max_norm)
        return (*out, s)

    assert gradcheck(function, weights)
    assert gradgradcheck(function, weights)


def test_numerical_derivatives_with_sigma_given(backend):
    """A sigma that was handed over is that of u . (W v), so numerical derivatives see it move."""
    weights = small(backend)
    u, v, _ = snapshot(weights)

    def function(*w):
        with torch.no_grad():
            products = [a @ (x.reshape(len(a), -1) @ b) for x, a, b in zip(w, u, v, strict=True)]
        out, s = ops.spectral_normalize(w, u, v, torch.stack(products))
        return (*out, s)

    assert gradcheck(function, weights)
    assert gradgradcheck(function, weights)


@pytest.mark.parametrize("retain", [False, True])
def test_numerical_derivatives_of_the_whole_step(backend, retain):
    """Where u and v have converged they may be held constant, to first order."""
    weights = small(backend)
    u, v = buffers(weights, steps=500)

    def function(*w):
        out, s = ops.spectral_norm(w, list(u), list(v), 30, retain=retain)
        return (*out, s)

    fast = current_backend() in EMULATED
    assert gradcheck(function, weights, atol=1e-5, rtol=1e-3, fast_mode=fast)


# --- values, against the reference's autograd in float64 -----------------------------------------


def derivatives(weights, u, v, sigma, max_norm, seeds, normalize):
    """Outputs of the first and second order through both outputs, from cotangents."""
    grads, seed, h = seeds
    out, s = normalize(weights, u, v, sigma, max_norm=max_norm)
    first = torch.autograd.grad([*out, s], weights, [*grads, seed], create_graph=True)
    second = torch.autograd.grad(first, [*weights, *grads, seed], h)
    return first, second


@pytest.mark.parametrize("max_norm", [None, "some"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values(backend, isa, layout, dtype, max_norm):
    weights = leaves([layout, "linear"], dtype, backend)
    u, v, sigma = snapshot(weights)
    if max_norm == "some":
        max_norm = middle(sigma)
    draw = drawer(5, dtype, backend)
    grads = [draw(*w.shape).requires_grad_() for w in weights]
    seed = drawer(6, sigma.dtype, backend)(len(weights)).requires_grad_()
    h = [draw(*w.shape) for w in weights]

    def wide(tensors):
        return [x.detach().double().requires_grad_(x.requires_grad) for x in tensors]

    (seed64,) = wide([seed])
    sigma64 = sigma.double()
    expected = derivatives(
        wide(weights),
        *map(wide, (u, v)),
        sigma64,
        max_norm,
        (wide(grads), seed64, wide(h)),
        reference.spectral_normalize,
    )
    scales = sizes_of_terms(weights, grads, h, sigma, seed)
    sums = TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]
    for name in instruction_sets():
        isa(name)
        for normalize in (ops.spectral_normalize, through_the_dispatcher):
            found = derivatives(weights, u, v, sigma, max_norm, (grads, seed, h), normalize)
            for order in range(2):
                results = zip(found[order], expected[order], scales[order], strict=True)
                for got, want, scale in results:
                    bound = TOLERANCE[got.dtype] * want.abs().max().item() + sums * scale
                    difference = (got.double() - want).abs().max().item()
                    assert difference <= bound, f"{name} order {order + 1}"


def sizes_of_terms(weights, grads, h, sigma, seed):
    """What the sums of first and second order are made of, before terms cancel."""
    w, g, hh = ([x.detach().double().norm().item() for x in xs] for xs in (weights, grads, h))
    s = sigma.double().tolist()
    first, d_w, d_g = [], [], []
    for i in range(len(w)):
        largest_seed = seed.detach().abs().max().item()
        first.append(g[i] / s[i] * (1 + w[i] / s[i]) + largest_seed)
        d_g.append(hh[i] / s[i] * (1 + w[i] / s[i]))
        d_w.append(hh[i] * g[i] / s[i] ** 2 * (1 + w[i] / s[i]))
    return first, [*d_w, *d_g, sum(hh)]


def through_the_dispatcher(weights, u, v, sigma, *, max_norm):
    """The registered autograd, which compiled graphs take."""
    weights = [w if w.is_contiguous() or dense(w) else w.contiguous() for w in weights]
    vectors = list(u), list(v), sigma
    return native_ops().spectral_normalize(weights, *vectors, max_norm, False, False)


def dense(w):
    return ops.spectral_norm.__globals__["is_dense"](w)


@pytest.mark.parametrize("use", ["expand", "transpose", "slice", "sum"])
def test_upstream_gradients_of_any_layout(backend, use):
    """What comes down need not lie in memory as the weight does; sums give expanded gradients."""
    weights = leaves(["conv_transpose", "linear", "conv_channels_last"], torch.float64, backend)
    u, v, sigma = snapshot(weights)

    def gradients(normalize):
        out, s = normalize(weights, u, v, sigma)
        terms = {
            "expand": lambda o: (o * 2).sum(0).sum(),
            "transpose": lambda o: (o.transpose(0, 1) * o.new_ones(1)).cos().sum(),
            "slice": lambda o: o[1:, ::2].square().sum(),
            "sum": lambda o: o.sum(),
        }
        loss = sum(terms[use](o) for o in out) + s.expand(3, -1).sum()
        first = torch.autograd.grad(loss, weights, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), weights)
        return [*first, *second]

    expected = gradients(reference.spectral_normalize)
    for got, want in zip(gradients(ops.spectral_normalize), expected, strict=True):
        assert_near(got, want, factor=10)


def test_gradient_penalty(backend):
    """A WGAN-GP step through two normalized layers, as a user writes it."""
    draw = drawer(0, torch.float64, backend)
    weights = [draw(9, 6).requires_grad_(), draw(1, 9).requires_grad_()]
    u, v, sigma = snapshot(weights)
    x = draw(4, 6).requires_grad_()

    def penalty(normalize):
        (first, second), _ = normalize(weights, u, v, sigma)
        score = torch.tanh(x @ first.t()) @ second.t()
        (g,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        loss = score.mean() + ((g.norm(dim=1) - 1) ** 2).mean()
        return torch.autograd.grad(loss, weights)

    pairs = zip(penalty(ops.spectral_normalize), penalty(reference.spectral_normalize), strict=True)
    for got, want in pairs:
        assert_near(got, want, factor=10)


# --- what needs no gradient costs none -----------------------------------------------------------


def test_frozen_weights(backend, calls):
    weights = leaves(["linear", "conv", "vector", "linear_transposed"], device=backend)
    frozen = (1, 2)
    for i in frozen:
        weights[i].requires_grad_(False)
    u, v, sigma = snapshot(weights)
    for given in (sigma, None):
        calls.clear()
        out, s = ops.spectral_normalize(weights, u, v, given)
        assert [o.requires_grad for o in out] == [True, False, False, True]
        expected, _ = reference.spectral_normalize(weights, u, v, given)
        for o, e in zip(out, expected, strict=True):
            assert_near(o, e)
        assert_near(s, sigma.double())
        (sum(o.sum() for o in out) + s.sum()).backward()
        assert calls == [2]
        assert [w.grad is None for w in weights] == [False, True, True, False]
        for w in weights:
            w.grad = None


def test_no_gradient_at_all(backend):
    weights = leaves(device=backend)
    u, v, sigma = snapshot(weights)
    with torch.no_grad():
        out, s = ops.spectral_normalize(weights, u, v, sigma)
        both, _ = ops.spectral_norm(weights, list(u), list(v))
    frozen, _ = ops.spectral_normalize([w.detach() for w in weights], u, v, sigma)
    assert not any(x.requires_grad for x in (*out, s, *frozen, *both))


@pytest.mark.parametrize("function", ["spectral_normalize", "spectral_norm"])
def test_unused_outputs(backend, calls, function):
    weights = leaves(["linear", "conv", "conv_transpose", "vector"], device=backend)
    u, v, sigma = snapshot(weights)

    def forward():
        if function == "spectral_norm":
            return ops.spectral_norm(weights, [x.clone() for x in u], [x.clone() for x in v])
        return ops.spectral_normalize(weights, u, v, sigma)

    def used(out, s):
        return out[0].square().sum() + out[2].square().sum()

    found = torch.autograd.grad(used(*forward()), weights, allow_unused=True)
    assert calls == [2]
    assert [g is None for g in found] == [False, True, False, True]
    if function == "spectral_normalize":
        wanted = torch.autograd.grad(
            used(*reference.spectral_normalize(weights, u, v, sigma)), weights, allow_unused=True
        )
        for i in (0, 2):
            assert_near(found[i], wanted[i])


def test_no_zeros_of_a_weights_size(backend):
    """Unused outputs do not come down as zeros: by the operators that ran, with their shapes."""
    draw = drawer(0, torch.float32, backend)
    weights = [draw(64, 65).requires_grad_() for _ in range(8)]
    u, v, sigma = snapshot(weights)
    out, _ = ops.spectral_normalize(weights, u, v, sigma)
    loss = out[3].square().sum()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
    ) as profile:
        loss.backward()
    names = {event.name for event in profile.events()}
    assert f"{native_ops().name}::spectral_normalize_backward" in names
    assert not names & {"aten::zeros", "aten::zeros_like", "aten::new_zeros", "aten::zero_"}
    assert [w.grad is not None for w in weights] == [i == 3 for i in range(8)]


@pytest.mark.parametrize("function", ["spectral_normalize", "spectral_norm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_only_sigma(backend, calls, dtype, function):
    """d sigma / dW = u v^T, without a pass of the kernel."""
    weights = leaves(["linear", "conv_channels_last", "conv_transpose"], dtype, backend)
    u, v = buffers(weights)
    if function == "spectral_norm":
        _, sigma = ops.spectral_norm(weights, u, v)
    else:
        _, sigma = ops.spectral_normalize(weights, u, v)
    factors = torch.tensor([1.0, -2.0, 0.5], device=backend)
    grads = torch.autograd.grad((sigma * factors).sum(), weights)
    assert calls == []
    for g, w, a, b, f in zip(grads, weights, u, v, factors, strict=True):
        assert g.dtype == dtype
        outer = f.double() * torch.outer(a.double(), b.double())
        # The buffers of bfloat16 are rounded ones.
        assert_near(g, outer.view(w.shape), factor=3 if dtype == torch.bfloat16 else 1)


def test_sigma_and_some_outputs(backend):
    weights = leaves(["linear", "conv", "conv_transpose"], device=backend)
    u, v, sigma = snapshot(weights)

    def gradients(normalize):
        out, s = normalize(weights, u, v, sigma)
        loss = (out[1].square().sum() * s[2] + s[0].log()).exp()
        first = torch.autograd.grad(loss, weights, create_graph=True)
        total = sum(g.square().sum() for g in first)
        return [*first, *torch.autograd.grad(total, weights)]

    expected = gradients(reference.spectral_normalize)
    for got, want in zip(gradients(ops.spectral_normalize), expected, strict=True):
        assert_near(got, want, factor=10)


# --- several forwards, several backwards ---------------------------------------------------------


def two_forwards(spectral_norm, weights, x):
    """D(real) - D(fake): the buffers move between the forwards, then one backward for both."""
    u, v = buffers(weights, steps=1)
    losses = []
    for part in x:
        (first, second), _ = spectral_norm(weights, u, v)
        losses.append((torch.tanh(part @ first.t()) @ second.t()).mean())
    grads = torch.autograd.grad(losses[0] - losses[1], weights)
    return grads, u, v


def by_hand(weights, u, v):
    """torch's own steps, without gankernels."""
    out = []
    for w, a, b in zip(weights, u, v, strict=True):
        with torch.no_grad():
            a.copy_(torch.nn.functional.normalize(w @ b, dim=0, eps=1e-12))
            b.copy_(torch.nn.functional.normalize(w.t() @ a, dim=0, eps=1e-12))
            fixed_a, fixed_b = a.clone(), b.clone()
        out.append(w / fixed_a.dot(w @ fixed_b))
    return out, None


@pytest.mark.parametrize("retain", [False, True])
def test_two_forwards_before_a_backward(backend, retain):
    draw = drawer(0, torch.float64, backend)
    weights = [draw(9, 6).requires_grad_(), draw(1, 9).requires_grad_()]
    x = draw(4, 6), draw(4, 6)

    def in_one(*step):
        return ops.spectral_norm(*step, retain=retain)

    def in_two(w, u, v):
        return ops.spectral_normalize(w, *ops.power_iteration_(w, u, v), retain=retain)

    expected, *state = two_forwards(by_hand, weights, x)
    for function in (in_one, in_two):
        found, *moved = two_forwards(function, weights, x)
        for got, want in zip(found, expected, strict=True):
            assert_near(got, want, factor=10)
        for got, want in zip([*moved[0], *moved[1]], [*state[0], *state[1]], strict=True):
            assert_near(got, want)


@pytest.mark.parametrize("function", ["spectral_normalize", "spectral_norm"])
class TestRetain:
    def forward(self, function, weights, retain):
        u, v, sigma = snapshot(weights)
        if function == "spectral_norm":
            return ops.spectral_norm(weights, list(u), list(v), retain=retain)
        return ops.spectral_normalize(weights, u, v, sigma, retain=retain)

    def test_several_backwards(self, backend, function):
        weights = leaves(device=backend)
        out, _ = self.forward(function, weights, True)
        first = torch.autograd.grad(sum(o.square().sum() for o in out), weights)
        again = torch.autograd.grad(sum(o.square().sum() for o in out), weights)
        for a, b in zip(first, again, strict=True):
            assert torch.equal(a, b)
        out, _ = self.forward(function, weights, False)
        torch.autograd.grad(sum(o.sum() for o in out), weights)
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(sum(o.sum() for o in out), weights)

    @pytest.mark.parametrize("retain", [False, True])
    def test_a_changed_weight_is_noticed(self, backend, function, retain):
        weights = leaves(["linear", "conv"], device=backend)
        out, _ = self.forward(function, weights, retain)
        with torch.no_grad():
            weights[0].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out[0].sum().backward()

    def test_a_changed_weight_does_not_matter_to_the_others(self, backend, function):
        weights = leaves(["linear", "conv"], device=backend)
        out, _ = self.forward(function, weights, True)
        expected = torch.autograd.grad(out[0].sum(), weights[0])[0]
        with torch.no_grad():
            weights[1].add_(1)
        assert torch.equal(torch.autograd.grad(out[0].sum(), weights[0])[0], expected)

    def test_what_was_kept_is_freed(self, backend, function):
        import weakref

        weights = leaves(["linear", "conv"], device=backend)
        gone = weakref.ref(weights[0])
        out, sigma = self.forward(function, weights, True)
        sum(o.sum() for o in out).backward()
        del weights, out, sigma
        assert gone() is None, "expected no cycle of references to keep the weight alive"


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("function", ["power_iteration_", "spectral_norm"])
def test_version_counters(backend, function, guard):
    """Autograd must see that the buffers moved."""
    weights = leaves(["linear", "conv"], torch.float32, backend)
    u, v = buffers(weights)
    skipped = torch.zeros(2, dtype=torch.int64, device=backend) if guard else None
    before = [x._version for x in (*u, *v)]
    counted = skipped._version if guard else 0
    getattr(ops, function)(weights, u, v, skipped=skipped)
    assert all(x._version > b for x, b in zip([*u, *v], before, strict=True))
    assert not guard or skipped._version > counted

    # So a use of the buffer itself, before the step, is refused afterwards.
    x = torch.ones(u[0].shape, requires_grad=True, device=backend)
    loss = (x * u[0]).sum()
    getattr(ops, function)(weights, u, v)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- a third derivative ------------------------------------------------------------------------


def three_orders(weights, u, v, sigma, normalize):
    out, s = normalize(weights, u, v, sigma)
    loss = sum(o.pow(4).sum() for o in out) + s.pow(3).sum()
    orders = []
    for order in range(3):
        grads = torch.autograd.grad(loss, weights, create_graph=order < 2)
        orders.append(grads)
        loss = sum(g.square().sum() for g in grads)
    return orders


def test_third_order(backend):
    weights = leaves(["linear", "conv"], device=backend)
    u, v, sigma = snapshot(weights)
    with pytest.raises(NotImplementedError, match=r"spectral_normalize.*twice.*reference"):
        three_orders(weights, u, v, sigma, ops.spectral_normalize)
    with gankernels.backend("reference"):
        found = three_orders(weights, u, v, sigma, ops.spectral_normalize)

    def plain(weights, u, v, sigma):
        s = [a @ (w.reshape(len(a), -1) @ b) for w, a, b in zip(weights, u, v, strict=True)]
        return [w / x for w, x in zip(weights, s, strict=True)], torch.stack(s)

    expected = three_orders(weights, u, v, None, plain)
    for order in range(3):
        for got, want in zip(found[order], expected[order], strict=True):
            assert_near(got, want, factor=100)


def _viewed_without_gradient(base):
    with torch.no_grad():
        return base.view(5, 6)


#: A tensor that requires a gradient, and the weight that is a view of it.
VIEWS = {
    "movedim": (lambda x: x.view(5, 6), lambda w: w.movedim(1, 0)),
    "slice": (lambda x: x.view(5, 6), lambda w: w[1:, ::2]),
    "chunk_of_a_product": (lambda x: x.view(6, 5), lambda w: (w * 2).chunk(2)[1]),
    "transposed_leaf": (lambda x: x.view(6, 5).t(), lambda w: w.t()),
    "leaf_within_another": (
        lambda x: _viewed_without_gradient(x.requires_grad_()),
        lambda w: w.t(),
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_retained_views_have_the_derivatives_of_what_they_are_views_of(name, cpu_backend):
    make, view = VIEWS[name]
    leaf = make(drawer(3, torch.float64)(30)).requires_grad_()
    rows, cols = view(leaf).shape
    u, v = (drawer(k, torch.float64)(n) for k, n in ((4, rows), (5, cols)))
    found = []
    for retain in (False, True):
        (out,), sigma = ops.spectral_normalize([view(leaf)], [u], [v], retain=retain)
        loss = out.sin().sum() + sigma.sum()
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        found.append((grad, *torch.autograd.grad(grad.square().sum(), leaf)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
