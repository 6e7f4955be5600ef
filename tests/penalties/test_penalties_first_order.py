"""Penalties without a second derivative: differences along the gradient, and under noise."""

import math
import warnings

import pytest
import torch
from support.penalties import draw, seeded, squares
from torch import nn
from torch.nn import functional as F

import gankernels as gk
from benchmarks.suites.first_order import AttentionCritic, convolutional
from gankernels import _warnings
from gankernels.nn.utils import spectral_norm as our_hook

pytestmark = pytest.mark.usefixtures("device")

FIRST_ORDER = ("difference", "noise")


REAL, FAKE = draw(6, 2, 4, 4), draw(6, 2, 4, 4, seed=2)


class Linear(nn.Module):
    """Linear in samples, and not in parameters: differences are exact, second derivatives are not
    zero.
    """

    def __init__(self, features=32, heads=1, seed=0):
        super().__init__()
        self.w = nn.Parameter(draw(features, heads, seed=seed))

    def forward(self, x):
        x = torch.cat([y.flatten(1) for y in x], 1) if isinstance(x, list) else x.flatten(1)
        return x @ (self.w + self.w.tanh())


class Quadratic(nn.Module):
    """With another gradient at each sample, of which central differences are exact."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(draw(32, 32, seed=3) / 5), nn.Parameter(draw(32, seed=4))

    def forward(self, x):
        x = x.flatten(1)
        return ((x @ self.a) * x).sum(1) + x @ self.b


def both(x, D):
    """The penalty and its gradients."""
    value = x() if callable(x) else x
    first = value[0] if isinstance(value, tuple) else value
    return value, torch.autograd.grad(first.sum(), list(D.parameters()))


def assert_same(D, got, expected, rel=1e-10):
    (a, da), (b, db) = both(got, D), both(expected, D)
    torch.testing.assert_close(a, b, rtol=rel, atol=1e-12)
    for x, y in zip(da, db, strict=True):
        torch.testing.assert_close(x, y, rtol=rel, atol=rel * float(y.abs().max()))


#: What a penalty may be asked for, and a call of it by a method.
OPTIONS = {
    "plain": {},
    "tensor": {"weight": torch.tensor([2.5], dtype=torch.float64)},
    "first": {"first": 4},
    "weights": {"sample_weight": draw(6, seed=5).abs()},
    "first, weights": {"first": 2, "sample_weight": draw(2, seed=5).abs()},
    "of each": {"reduction": "none"},
    "raw": {"return_raw": True},
    "raw of each": {"return_raw": True, "reduction": "none", "weight": 3.0},
    "groups": {"groups": 3},
    "groups, first": {"groups": 2, "first": 4},
    "scale": {"inv_scale": torch.tensor(0.125, dtype=torch.float64)},
    "sigma": {"sigma": 0.3},
}


def r1(D, method, weight=5.0, **kwargs):
    return gk.r1_penalty(D, REAL, gamma=2 * weight, method=method, **kwargs)


def r1_of_logits(D, method, weight=5.0, **kwargs):
    x = REAL.clone().requires_grad_()
    return gk.r1_penalty(D(x), x, D=D, gamma=2 * weight, method=method, **kwargs)


def r2_centered(D, method, weight=5.0, **kwargs):
    x = FAKE.clone().requires_grad_()
    return gk.r2_penalty(D(x), x, D=D, gamma=2 * weight, center=1.5, method=method, **kwargs)


def interpolated(penalty, **own):
    def call(D, method, **kwargs):
        return penalty(D, REAL, FAKE, method=method, generator=seeded(), **own, **kwargs)

    return call


#: What one number of the whole batch has not.
NOT_OF_MAX = {"heads", "sample_weight", "reduction"}
PENALTIES = {
    "r1": r1,
    "r1 of logits": r1_of_logits,
    "r2, centered": r2_centered,
    "wgan_gp": interpolated(gk.wgan_gp_penalty),
    "wgan_lp": interpolated(gk.wgan_lp_penalty, center=2.0),
    "zero_centered": interpolated(gk.zero_centered_penalty),
    "max_gradient": interpolated(gk.max_gradient_penalty),
    "dragan": lambda D, method, **kwargs: gk.dragan_penalty(
        D, REAL, method=method, generator=seeded(), **kwargs
    ),
}


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (n, o)
        for n in PENALTIES
        for o in OPTIONS
        if n != "max_gradient" or not NOT_OF_MAX & {*OPTIONS[o]}
    ],
)
def test_differences_are_exact_of_a_linear_critic(name, option):
    rows = REAL
    D = Linear()
    if "groups" in option:  # scores of groups of rows
        size = OPTIONS[option]["groups"]
        D.forward = lambda x: (x.flatten(1) @ D.w.tanh()).unflatten(0, (-1, size)).sum(1)
    call = PENALTIES[name]
    assert len(rows) == 6
    assert_same(
        D,
        lambda: call(D, "difference", **OPTIONS[option]),
        lambda: call(D, "double_backward", **OPTIONS[option]),
    )


@pytest.mark.parametrize("option", [x for x in OPTIONS if "weights" not in x])
def test_r1_r2(option):
    D = Linear()
    if "groups" in option:
        size = OPTIONS[option]["groups"]
        D.forward = lambda x: (x.flatten(1) @ D.w.tanh()).unflatten(0, (-1, size)).sum(1)
    settings = {("gamma" if k == "weight" else k): v for k, v in OPTIONS[option].items()}
    assert_same(
        D,
        lambda: gk.r1_r2_penalty(D, REAL, FAKE, method="difference", **settings),
        lambda: gk.r1_r2_penalty(D, REAL, FAKE, **settings),
    )


@pytest.mark.parametrize(
    "name", ["r1", "wgan_gp", "wgan_lp", "zero_centered", "max_gradient", "dragan"]
)
def test_central_differences_are_exact_of_a_quadratic_critic(name):
    D, call = Quadratic(), PENALTIES[name]
    assert_same(
        D,
        lambda: call(D, "difference", sigma=0.2),
        lambda: call(D, "double_backward"),
    )


def test_a_single_number_is_a_sample(recwarn):
    """It has no standard deviation to compare the step with."""
    D = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 1)).double()
    x = torch.full((1, 1), 0.3, dtype=torch.float64)
    found, exact = (gk.r1_penalty(D, x, method=m) for m in ("difference", "double_backward"))
    torch.testing.assert_close(found, exact)
    assert gk.dragan_penalty(D, x, noise="gaussian").isfinite()
    assert list(recwarn) == []


def test_differences_of_logits_have_one_side():
    """The gradient's error of the first order is that of the second derivative along it."""
    D = Quadratic()
    exact = gradient(D, r1(D, "double_backward"))
    errors = []
    for sigma in (1e-2, 1e-3):
        found = gradient(D, r1_of_logits(D, "difference", sigma=sigma))
        errors.append(float((found - exact).norm() / exact.norm()))
    assert 1e-4 < errors[1] < errors[0] / 9 < 1e-2


@pytest.mark.parametrize("name", ["r1", "r1 of logits", "wgan_gp", "wgan_lp", "dragan"])
def test_values_are_exact(name):
    """Of a critic with kinks, by a large step: norms are those of gradients."""
    torch.manual_seed(0)
    D = nn.Sequential(nn.Flatten(), nn.Linear(32, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)).double()
    call = PENALTIES[name]
    got = call(D, "difference", sigma=1.0)
    torch.testing.assert_close(got, call(D, "double_backward"))
    with torch.no_grad():
        sizes = []
        D.register_forward_hook(lambda m, args, y: sizes.append(len(args[0])))
        if name != "r1 of logits":
            torch.testing.assert_close(call(D, "difference", sigma=1.0), got.detach())
            assert len(sizes) == 1


def test_many_inputs_have_one_norm():
    D = Linear(features=64)
    for a, b in ((REAL, FAKE), (REAL.flatten(1)[:, :20], draw(6, 44, seed=8))):
        assert_same(
            D,
            lambda a=a, b=b: gk.r1_penalty(D, [a, b], method="difference"),
            lambda a=a, b=b: gk.r1_penalty(D, [a, b]),
        )


def test_groups_by_index():
    D = Linear()
    groups = torch.tensor([0, 2, 1, 1, 2, 2])
    D.forward = lambda x: torch.zeros(3, dtype=x.dtype).index_add(
        0, groups, (x.flatten(1) @ D.w.tanh())[:, 0]
    )
    assert_same(
        D,
        lambda: gk.r1_penalty(D, REAL, method="difference", groups=groups),
        lambda: gk.r1_penalty(D, REAL, groups=groups),
    )


@pytest.mark.parametrize("groups", [2, 3])
def test_rows_of_a_group_have_their_own_steps(groups):
    """Their gradients differ, in direction and in size."""
    D = Quadratic()

    def grouped(x):
        return D(x).unflatten(0, (-1, groups)).sum(1)

    assert_same(
        D,
        lambda: gk.r1_penalty(grouped, REAL, method="difference", groups=groups),
        lambda: gk.r1_penalty(grouped, REAL, groups=groups),
    )


def test_noise_is_drawn_anew_by_every_penalty():
    """Of torch's own generator, which passes in one state set back: past what was drawn between."""
    torch.manual_seed(0)
    first, second = (gk.r1_penalty(Linear(), REAL, method="noise").item() for _ in range(2))
    assert first != second


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_scales_are_added_up(method):
    D = Linear(heads=3)
    D.scores = lambda x: [D(x)[:, :1], D(x)[:, 1:]]
    calls = [gk.r1_penalty(f, REAL, method=method, generator=seeded()) for f in (D.scores, D)]
    torch.testing.assert_close(*calls)


@pytest.mark.parametrize("center, one_sided", [(0.0, False), (1.0, False), (4.0, False)], ids=str)
def test_noise_is_right_in_the_mean(center, one_sided):
    """Value and gradient, of a linear critic; a sample is one draw."""
    D = Linear(features=8)
    x = draw(1, 8).expand(40_000, 8)
    (a, (da,)), (b, (db,)) = (
        both(gk.r1_penalty(D, x, method=method, center=center, generator=seeded(), sigma=0.1), D)
        for method in ("noise", "double_backward")
    )
    assert a.item() == pytest.approx(b.item(), rel=0.05)
    assert float((da - db).norm() / db.norm()) < 0.05


def test_noise_of_heads():
    D = Linear(heads=3)
    noise = torch.randn(REAL.shape, generator=seeded(), dtype=REAL.dtype)
    differences = (D(REAL) - D(REAL + 0.1 * noise)) / 0.1
    for heads, expected in (
        ("sum", differences.sum(1).square().mean()),
        ("mean", differences.square().mean()),
    ):
        got = gk.r1_penalty(
            D, REAL, gamma=2, method="noise", sigma=0.1, heads=heads, generator=seeded()
        )
        torch.testing.assert_close(got, expected)


def test_approximate_penalties_are_noise():
    D = Linear()
    settings = {"sigma": 0.1, "generator": seeded()}
    got = gk.approx_r1_penalty(D, REAL, gamma=3.0, **settings)
    settings["generator"] = seeded()
    torch.testing.assert_close(got, gk.r1_penalty(D, REAL, gamma=3.0, method="noise", **settings))


def test_two_logits_that_are_there():
    D = Linear(heads=2)
    noise = torch.randn(REAL.shape, generator=seeded(), dtype=REAL.dtype)
    for options in ({}, {"heads": "mean"}, {"gamma": 2.0}, {"first": 3}, {"reduction": "none"}):
        got = gk.approx_r2_penalty(D(REAL), D(REAL + 0.1 * noise), sigma=0.1, **options)
        expected = gk.approx_r2_penalty(D, REAL, sigma=0.1, generator=seeded(), **options)
        if "first" in options:  # draws other noise
            expected = 100 * (D(REAL) - D(REAL + 0.1 * noise)).sum(1)[:3].square().mean()
        torch.testing.assert_close(got, expected)


# --- critics of today -----------------------------------------------------------------------------


def gradient(D, value):
    """In one vector; the last bias has none."""
    grads = torch.autograd.grad(value, list(D.parameters()), materialize_grads=True)
    return torch.cat([g.flatten().double() for g in grads])


def error_and_cosine(D, x, exact, **how):
    g = gradient(D, gk.r1_penalty(D, x, generator=seeded(), **how))
    return float((g - exact).norm() / exact.norm()), float(F.cosine_similarity(g, exact, 0))


def exact_gradient(D, x):
    D = D.double()
    found = gradient(D, gk.r1_penalty(D, x.double()))
    D.float()
    return found


@pytest.mark.parametrize("kind", ["attention", "gelu"])
def test_gradients_of_smooth_critics(kind):
    torch.manual_seed(0)
    D = AttentionCritic(size=8, width=32) if kind == "attention" else convolutional(nn.GELU(), 8)
    x = draw(8, 3, 8, 8, dtype=torch.float32)
    if kind == "attention":
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            exact = exact_gradient(D, x)
    else:
        exact = exact_gradient(D, x)
    noisy, _ = error_and_cosine(D, x, exact, method="noise", sigma=0.01)
    for sigma, bar in ((0.01, 2e-2), (0.002, 1e-3)):
        error, cosine = error_and_cosine(D, x, exact, method="difference", sigma=sigma)
        assert error < bar, sigma
        assert error < noisy / 30
        assert cosine > 0.999


def test_attention_is_refused_with_the_cure():
    D = AttentionCritic(size=8, width=32)
    x = draw(4, 3, 8, 8, dtype=torch.float32)
    message = r'ScaledDotProductFlashAttention.*method="difference".*MATH'
    with pytest.raises(RuntimeError, match=message):
        gk.r1_r2_penalty(D, x, x)
    leaf = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=message):
        gk.r1_penalty(D(leaf), leaf)
    with torch.no_grad():  # no second derivative is asked for
        assert gk.r1_r2_penalty(D, x, x) > 0
    gk.r1_r2_penalty(D, x, x, method="difference").backward()


def test_a_compiled_critic():
    D = Linear().float()
    compiled = torch.compile(D, backend="aot_eager")
    x = REAL.float()
    with pytest.raises(RuntimeError, match=r'compiled critic.*method="difference"'):
        gk.r1_penalty(compiled, x)
    assert_same(
        D,
        lambda: gk.r1_penalty(compiled, x, method="difference"),
        lambda: gk.r1_penalty(D, x),
        1e-3,
    )


# --- passes and their state -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, passes",
    [
        (lambda D: gk.r1_penalty(D, REAL, method="difference"), 3),
        (lambda D: gk.r1_penalty(D, REAL, method="noise"), 2),
        (lambda D: gk.r1_penalty(D, REAL), 1),
        (lambda D: r1_of_logits(D, "difference"), 2),
        (lambda D: r1_of_logits(D, "noise"), 2),
        (lambda D: gk.r1_r2_penalty(D, REAL, FAKE, method="difference"), 3),
    ],
)
def test_number_of_passes(call, passes):
    D, sizes = Linear(), []
    D.register_forward_hook(lambda m, args, y: sizes.append(len(args[0])))
    call(D)
    assert len(sizes) == passes


def test_labels_and_first_samples():
    """What goes to the critic beside samples is of the same ones."""
    labels = torch.arange(6)
    seen = []

    def critic(x, y, more, *, z):
        assert len(x) == len(y) == len(more["a"]) == len(z)
        seen.append((x, y, z))
        return x.flatten(1).sum(1) * 2

    more = {"a": labels, "b": 3}
    gk.r1_penalty(critic, REAL, labels, more, z=labels + 1, first=4, method="difference")
    gk.r1_r2_penalty(critic, REAL, FAKE, labels, more, z=labels + 1, first=2, method="noise")
    assert all(torch.equal(y, torch.arange(4)) for _, y, _ in seen[:3])
    assert all(torch.equal(z, torch.tensor([1, 2, 1, 2])) for _, _, z in seen[3:])
    assert torch.equal(seen[3][0], torch.cat((REAL[:2], FAKE[:2])))


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_passes_are_of_one_function(method):
    """u, v and dropout are the same in all, and move once."""

    def critic():
        torch.manual_seed(0)
        D = nn.Sequential(
            nn.Flatten(), our_hook(nn.Linear(32, 16)), nn.Dropout(0.5), our_hook(nn.Linear(16, 1))
        )
        return D.double()

    D, other = critic(), critic()
    torch.manual_seed(1)
    other(REAL)
    after = torch.rand(1)
    torch.manual_seed(1)
    # Of a linear function with one mask, the difference does not depend on the step.
    found = [
        gk.r1_penalty(D, REAL, method=method, sigma=sigma, generator=seeded())
        for D, sigma in ((critic(), 1e-3), (critic(), 1.0))
        if torch.manual_seed(1)
    ]
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)
    torch.manual_seed(1)
    gk.r1_penalty(D, REAL, method=method, generator=seeded())
    assert torch.equal(torch.rand(1), after)
    for a, b in zip(D.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


def test_logits_of_another_state_are_warned_of():
    torch.manual_seed(0)
    moving = nn.Sequential(nn.Flatten(), our_hook(nn.Linear(32, 1))).double()
    random = nn.Sequential(nn.Flatten(), nn.Linear(32, 1), nn.Dropout(0.5)).double()
    functional = Dropped().double()
    draws = "draws random numbers"
    for D, words in ((moving, "moves its buffers"), (random, draws), (functional, draws)):
        _warnings._warned.clear()
        x = REAL.clone().requires_grad_()
        logits = D(x)
        before = [b.clone() for b in D.buffers()]
        with pytest.warns(UserWarning, match=words):
            gk.r1_penalty(logits, x, D=D, method="difference")
        assert all(torch.equal(a, b) for a, b in zip(D.buffers(), before, strict=True))
    D = moving.eval()
    x = REAL.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gk.r1_penalty(D(x), x, D=D, method="difference")


class Dropped(nn.Sequential):
    """By a function, and by attention, which are no modules."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(32, 1))

    def forward(self, x):
        h = x.flatten(1)[:, None]
        h = F.scaled_dot_product_attention(h, h, h, dropout_p=0.3 if self.training else 0.0)
        return super().forward(F.dropout(h, 0.2, self.training))


def smooth():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.Softplus(), nn.Linear(16, 1)).double()


class OwnNumbers(nn.Module):
    """Draws from a generator of its own, which nobody can set back."""

    def __init__(self):
        super().__init__()
        self.inner, self.numbers = smooth(), seeded()

    def forward(self, x):
        return self.inner(x + torch.randn(x.shape, generator=self.numbers, dtype=x.dtype))


@pytest.mark.parametrize(
    "penalty",
    [
        lambda D, x: gk.r1_penalty(OwnNumbers(), x, method="difference"),
        lambda D, x: gk.r1_r2_penalty(OwnNumbers(), x, FAKE, method="difference"),
        lambda D, x: gk.critic_step(OwnNumbers(), x, FAKE, r1=1.0, method="difference"),
        lambda D, x: gk.r1_penalty(D(1.5 * x), x, D=D, method="difference"),
        lambda D, x: gk.r1_penalty(D(x) / 2, x, D=D, method="difference"),
    ],
)
def test_passes_of_different_functions_are_warned_of(penalty):
    with pytest.warns(UserWarning, match="off the gradient's norm by .*%; the gradient of the pen"):
        penalty(smooth(), REAL.clone().requires_grad_())


def test_steps_beyond_the_samples_are_warned_of():
    with pytest.warns(UserWarning, match=r"deviation is 0\.001.* hundredth of that, sigma=1e-05"):
        gk.r1_penalty(smooth(), 1e-3 * REAL, method="difference")
    _warnings._warned.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gk.r1_penalty(smooth(), 1e-3 * REAL, method="difference", sigma=1e-5)
        gk.r1_penalty(smooth(), REAL, method="difference")
        zero = nn.Linear(32, 1).double()
        nn.init.zeros_(zero.weight)
        gk.r1_penalty(lambda x: zero(x.flatten(1)), REAL, method="difference")


def test_counters_count_once():
    """An integer buffer that the critic reads."""

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = smooth()
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

        def forward(self, x):
            self.steps += 1
            return self.inner(x + 0.5 * self.steps)

    D = Counts()
    found = gk.r1_penalty(D, REAL, method="difference", sigma=1e-4)
    assert D.steps == 1
    D.steps.zero_()
    expected = gk.r1_penalty(D, REAL)
    parameters = list(D.inner.parameters())
    for a, b in zip(
        *(torch.autograd.grad(x, parameters, materialize_grads=True) for x in (found, expected)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", FIRST_ORDER)
def test_value_without_a_graph(method):
    D = Quadratic()
    expected = gk.r1_penalty(D, REAL, method=method, generator=seeded())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = gk.r1_penalty(D, REAL, method=method, generator=seeded())
        assert not got.requires_grad
        torch.testing.assert_close(got, expected.detach())


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1.0, 1e12, 1e18])
def test_sizes_of_gradients(size):
    w = nn.Parameter(torch.full((8, 1), size))
    got = gk.r1_penalty(lambda x: x @ w, torch.ones(3, 8), gamma=2, method="difference", sigma=0.3)
    got.backward()
    assert got.item() == pytest.approx(8 * size**2, rel=1e-4)
    assert w.grad.isfinite().all()
    assert float(w.grad.norm()) == pytest.approx(2 * math.sqrt(8) * size, rel=1e-4)


def test_a_center_at_zero_gradients():
    D = Linear().double()
    nn.init.zeros_(D.w)
    got, grads = both(gk.wgan_gp_penalty(D, REAL, FAKE, method="difference"), D)
    assert got.item() == 10
    assert torch.equal(grads[0], torch.zeros_like(D.w))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_odd_gradients_are_seen(bad):
    w = nn.Parameter(torch.tensor([[bad], [1.0]]))
    got = gk.r1_penalty(lambda x: x @ w, torch.ones(3, 2), method="difference")
    assert not got.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("method", FIRST_ORDER)
def test_dtypes(dtype, method):
    """Scores are subtracted, and norms taken, in float32."""
    D = Linear().to(dtype)
    got = gk.r1_penalty(D, REAL.to(dtype), method=method, sigma=0.5, generator=seeded())
    assert got.dtype == torch.float32
    got.backward()
    assert D.w.grad.dtype == dtype
    double = Linear().to(dtype).double()
    expected = gk.r1_penalty(
        double, REAL.to(dtype).double(), method=method, sigma=0.5, generator=seeded()
    )
    if method == "difference":
        assert got.item() == pytest.approx(expected.item(), rel=0.05)


def test_autocast():
    """Scores of bfloat16 are coarse: the step is larger than in float32."""
    torch.manual_seed(0)
    D, x = convolutional(nn.GELU()), draw(8, 3, 32, 32, dtype=torch.float32)
    exact = exact_gradient(D, x)
    with torch.autocast("cpu", torch.bfloat16):
        error, cosine = error_and_cosine(D, x, exact, method="difference", sigma=0.03)
    assert error < 4e-2
    assert cosine > 0.999


def test_unused_inputs():
    D = Linear()
    call = lambda **k: gk.r1_penalty(lambda x: D(x[0]), [REAL, FAKE], **k)  # noqa: E731
    for method in ("double_backward", "difference"):
        with pytest.raises(ValueError, match=r"depend on the samples\[1\]"):
            call(method=method)
    expected = gk.r1_penalty(D, REAL)
    for method in ("double_backward", "difference"):
        torch.testing.assert_close(call(method=method, allow_unused=True), expected)


def test_raw_values():
    D = Quadratic()
    penalty, raw = gk.r1_penalty(D, REAL, gamma=3.0, return_raw=True)
    assert not raw.requires_grad
    torch.testing.assert_close(raw, squares(D, REAL).mean())
    torch.testing.assert_close(penalty.detach(), 1.5 * raw)
    penalty, raw = gk.r1_r2_penalty(D, REAL, FAKE[:3], gamma=3.0, return_raw=True)
    torch.testing.assert_close(raw, squares(D, REAL).mean() + squares(D, FAKE[:3]).mean())
    torch.testing.assert_close(penalty.detach(), 1.5 * raw)
    each = gk.r1_r2_penalty(D, REAL, FAKE[:3], gamma=3.0, reduction="none")
    torch.testing.assert_close(
        each.detach(), 1.5 * torch.cat((squares(D, REAL), squares(D, FAKE[:3])))
    )


def test_weights_of_both_batches():
    D, w = Quadratic(), draw(9, seed=6).abs()
    got = gk.r1_r2_penalty(D, REAL, FAKE[:3], gamma=3.0, sample_weight=w)
    expected = (squares(D, REAL) * w[:6]).mean() + (squares(D, FAKE[:3]) * w[6:]).mean()
    torch.testing.assert_close(got.detach(), 1.5 * expected)


def test_a_tensor_as_weight_has_a_gradient():
    gamma = torch.tensor(3.0, requires_grad=True)
    gk.r1_penalty(Quadratic(), REAL, gamma=gamma, method="difference").backward()
    assert gamma.grad.item() == pytest.approx(squares(Quadratic(), REAL).mean().item() / 2)


# --- errors ---------------------------------------------------------------------------------------

X = REAL.clone().requires_grad_()


def never(*args, **kwargs):
    raise AssertionError("the critic was called")


@pytest.mark.parametrize(
    "error, message, call",
    [
        (ValueError, 'one of "double_backward", "difference", "noise", got \'exact\'',
         lambda: gk.r1_penalty(never, REAL, method="exact")),
        (ValueError, "sigma to be finite and positive, got 0",
         lambda: gk.wgan_gp_penalty(never, REAL, FAKE, method="noise", sigma=0)),
        (ValueError, 'heads "sum" or "mean", got 3',
         lambda: gk.r1_penalty(never, REAL, heads=3)),
        (ValueError, 'heads="sum" with method="difference", got "mean"',
         lambda: gk.r1_penalty(never, REAL, heads="mean", method="difference")),
        (ValueError, 'reduction "mean" or "none", got \'sum\'',
         lambda: gk.r1_penalty(never, REAL, reduction="sum")),
        (TypeError, "return_raw to be True or False, got int",
         lambda: gk.r1_penalty(never, REAL, return_raw=1)),
        (ValueError, "first to be 1 to 6, the rows of real, got 7",
         lambda: gk.r1_penalty(never, REAL, first=7)),
        (ValueError, "rows of fake, whole groups of 3, got 2",
         lambda: gk.r2_penalty(never, FAKE, first=2, groups=3)),
        (TypeError, "first to be an integer.*got float",
         lambda: gk.r1_penalty(never, REAL, first=2.0)),
        (ValueError, r"sample_weight of shape \(2,\), one for each score, got \(6,\)",
         lambda: gk.r1_penalty(never, REAL, first=2, sample_weight=torch.ones(6))),
        (ValueError, r"sample_weight of shape \(12,\)",
         lambda: gk.r1_r2_penalty(never, REAL, FAKE, sample_weight=torch.ones(6))),
        (TypeError, "sample_weight to be a tensor, got list",
         lambda: gk.r1_penalty(never, REAL, sample_weight=[1.0] * 6)),
        (ValueError, "gamma to be a number or a tensor of one element, got float32 of shape",
         lambda: gk.r1_penalty(never, REAL, gamma=torch.ones(6))),
        (TypeError, "expected D=, the critic, which method=\"difference\" calls once more",
         lambda: gk.r1_penalty(X.flatten(1).sum(1), X, method="difference")),
        (TypeError, "logits and real alone where no critic is called, got 1 more",
         lambda: gk.r1_penalty(X.flatten(1).sum(1), X, 3.0)),
        (TypeError, "logits and real alone where no critic is called, got weight=",
         lambda: gk.r1_penalty(X.flatten(1).sum(1), X, weight=3.0)),
        (TypeError, "D= beside logits only, got two critics",
         lambda: gk.r1_penalty(never, REAL, D=never)),
        (TypeError, "did you mean gamma=?", lambda: gk.r1_penalty(never, REAL, weight=1.0)),
        (TypeError, "generator to be a torch.Generator or None, got int",
         lambda: gk.r1_penalty(never, REAL, generator=3)),
        (ValueError, 'method "double_backward" or "difference", got "noise"',
         lambda: gk.wgan_lp_penalty(never, REAL, FAKE, method="noise")),
        (TypeError, "two results of the critic alone.*got logits and more",
         lambda: gk.approx_r1_penalty(torch.ones(6), torch.ones(6), 0.1)),
        (TypeError, r"or what it returns.*same shapes, not \(6, 1\) and \(6,\)",
         lambda: gk.approx_r1_penalty(torch.ones(6, 1), torch.ones(6))),
    ],
)  # fmt: skip
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()
