"""The losses against their formulas, written out here in float64."""

import copy
import itertools
import math
import pickle

import pytest
import torch
from support.tensors import assert_near, drawer
from torch import Tensor, nn

import gankernels as gk
from gankernels import losses

LABELED = ("minimax", "non_saturating", "least_squares")
SIDED = (*LABELED, "hinge", "wasserstein")
COMPARING = ("relativistic", "relativistic_average")
ALL = (*SIDED, *COMPARING)


def log_sigmoid(x: Tensor) -> Tensor:
    return -torch.log1p(torch.exp(-x))


def cross_entropy(
    real: Tensor, fake: Tensor, label: float | Tensor = 1.0, fake_label: float | Tensor = 0.0
) -> Tensor:
    real_terms = label * log_sigmoid(real) + (1 - label) * log_sigmoid(-real)
    fake_terms = fake_label * log_sigmoid(fake) + (1 - fake_label) * log_sigmoid(-fake)
    return -real_terms.mean() - fake_terms.mean()


def squares(
    real: Tensor, fake: Tensor, label: float | Tensor = 1.0, fake_label: float | Tensor = 0.0
) -> Tensor:
    return ((real - label) ** 2).mean() + ((fake - fake_label) ** 2).mean()


def average(real: Tensor, fake: Tensor) -> Tensor:
    of_real = torch.sigmoid(real - fake.mean())
    of_fake = torch.sigmoid(fake - real.mean())
    return -torch.log(of_real).mean() - torch.log(1 - of_fake).mean()


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    return (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()


#: (discriminator, generator) by name, of float64 logits of moderate size.
FORMULAS = {
    "minimax": (cross_entropy, lambda fake, real: torch.log(1 - torch.sigmoid(fake)).mean()),
    "non_saturating": (cross_entropy, lambda fake, real: -torch.log(torch.sigmoid(fake)).mean()),
    "least_squares": (squares, lambda fake, real: ((fake - 1) ** 2).mean()),
    "hinge": (hinge, lambda fake, real: -fake.mean()),
    "wasserstein": (
        lambda real, fake: fake.mean() - real.mean(),
        lambda fake, real: -fake.mean(),
    ),
    "relativistic": (
        lambda real, fake: torch.log1p(torch.exp(fake - real)).mean(),
        lambda fake, real: torch.log1p(torch.exp(real - fake)).mean(),
    ),
    "relativistic_average": (average, lambda fake, real: average(fake, real)),
}


def logits(*shape: int, seed: int = 0, dtype=torch.float64) -> tuple[Tensor, Tensor]:
    draw = drawer(seed, dtype)
    return 2 * draw(1, *shape)[0], 2 * draw(1, *shape)[0]


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 1), (3, 1, 4, 6)])
@pytest.mark.parametrize("name", ALL)
def test_formula_and_gradient(name, shape):
    loss, (d_formula, g_formula) = getattr(losses, name), FORMULAS[name]
    real, fake = (x.requires_grad_() for x in logits(*shape))
    for got, expected in [
        (loss.discriminator(real, fake), d_formula(real, fake)),
        (loss.generator(fake, real), g_formula(fake, real)),
    ]:
        assert got.shape == ()
        assert got.dtype == torch.float64
        assert_near(got, expected)
        for a, b in zip(
            torch.autograd.grad(got, (real, fake), allow_unused=True),
            torch.autograd.grad(expected, (real, fake), allow_unused=True),
            strict=True,
        ):
            assert (a is None) == (b is None)
            if a is not None:
                assert_near(a, b)


def test_no_two_losses_are_the_same():
    real, fake = logits(9)
    pairs = [
        (loss.discriminator(real, fake).item(), loss.generator(fake, real).item())
        for loss in (getattr(losses, name) for name in ALL)
    ]
    for (i, a), (j, b) in itertools.combinations(enumerate(pairs), 2):
        if {ALL[i], ALL[j]} != {"minimax", "non_saturating"}:
            assert a[0] != b[0]
        if {ALL[i], ALL[j]} != {"hinge", "wasserstein"}:
            assert a[1] != b[1]


def test_losses_are_pairs():
    others = {"adaptive_weight", "feature_matching", "top_k"}
    assert set(losses.__all__) == {"Loss", *ALL, *others}
    for name in ALL:
        loss = getattr(losses, name)
        d_loss, g_loss = loss
        assert (d_loss, g_loss) == (loss.discriminator, loss.generator)
        assert loss.discriminator.__doc__
        assert loss.generator.__doc__
        assert type(loss).__doc__ != losses.Loss.__doc__
        assert isinstance(loss, losses.Loss)
        assert repr(loss) == f"losses.{name}"
        for other in (pickle.loads(pickle.dumps(loss)), copy.copy(loss), copy.deepcopy(loss)):
            assert other is loss
        assert pickle.loads(pickle.dumps(d_loss)) == d_loss


def test_a_loss_of_ones_own():
    class Own(losses.Loss):
        def discriminator(self, real_logits, fake_logits):
            return fake_logits.mean() - real_logits.mean()

        def generator(self, fake_logits, real_logits=None):
            return -fake_logits.mean()

    loss = Own()
    d_loss, g_loss = copy.deepcopy(loss)
    real, fake = logits(4)
    assert d_loss(real, fake) == losses.wasserstein.discriminator(real, fake)
    assert g_loss(fake) == losses.wasserstein.generator(fake)


@pytest.mark.parametrize("name", ALL)
def test_the_discriminator_wants_what_the_generator_does_not(name):
    loss = getattr(losses, name)
    real, fake = (x.requires_grad_() for x in logits(6))
    # Within the margins of the hinge and between the labels of least squares.
    real, fake = real.sigmoid(), fake.sigmoid()
    d_real, d_fake = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    (g_fake,) = torch.autograd.grad(loss.generator(fake, real), fake)
    assert (d_real < 0).all()
    assert (d_fake > 0).all()
    assert (g_fake < 0).all()


@pytest.mark.parametrize("name", SIDED)
def test_generators_ignore_real_logits_and_batches_may_differ(name):
    loss, (d_formula, _) = getattr(losses, name), FORMULAS[name]
    real, fake = logits(6)
    assert loss.generator(fake) == loss.generator(fake, real)
    assert_near(loss.discriminator(real[:4], fake), d_formula(real[:4], fake))


def test_only_differences_matter_to_relativistic():
    real, fake = logits(6)
    d_loss, g_loss = losses.relativistic
    assert_near(d_loss(real + 3, fake + 3), d_loss(real, fake))
    assert_near(g_loss(fake, real), d_loss(fake, real))
    # Sample by sample: not the loss of the averages, nor that of all pairs.
    assert abs(d_loss(real, fake) - d_loss(real, fake.flip(0))) > 1e-3


def test_relativistic_average_compares_with_means():
    real, fake = logits(6)
    d_loss, g_loss = losses.relativistic_average
    assert_near(d_loss(real + 3, fake + 3), d_loss(real, fake))
    assert_near(d_loss(real, fake.flip(0)), d_loss(real, fake))
    assert_near(g_loss(fake, real), d_loss(fake, real))
    assert_near(d_loss(real[:4], fake), average(real[:4], fake))
    # Of each critic its own means.
    pairs = [logits(3, seed=1), logits(2, 2, seed=2)]
    got = d_loss([p[0] for p in pairs], [p[1] for p in pairs])
    assert_near(got, average(*pairs[0]) + average(*pairs[1]))
    # Logits far apart: the loss of the wrong order, and nothing lost of the right one.
    far = torch.tensor([200.0], dtype=torch.float64)
    assert d_loss(-far, far) == 800
    assert 0 <= d_loss(far, -far) < 1e-100


# --- sides, scales, weights ----------------------------------------------------------------------

SETTINGS = {
    "plain": {},
    "mean": {"scales": "mean"},
    "half": {"weight": 0.5},
    "both": {"scales": "mean", "weight": torch.tensor([0.3])},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("name", SIDED)
def test_sides_add_up_to_the_discriminator(name, settings):
    loss, given = getattr(losses, name), SETTINGS[settings]
    one = logits(5)
    several = [[x[i] for x in (logits(3, 1, n, n, seed=n) for n in (6, 3))] for i in (0, 1)]
    for real, fake in (one, several):
        whole = loss.discriminator(real, fake, **given)
        assert torch.equal(loss.real(real, **given) + loss.fake(fake, **given), whole)
        assert loss.real(real, **given).shape == ()


@pytest.mark.parametrize("name", SIDED)
def test_each_side_is_its_own_term(name):
    loss, (formula, _) = getattr(losses, name), FORMULAS[name]
    real, fake = (x.requires_grad_() for x in logits(7))
    whole = torch.autograd.grad(formula(real, fake), (real, fake))
    assert_near(torch.autograd.grad(loss.real(real), real)[0], whole[0])
    assert_near(torch.autograd.grad(loss.fake(fake), fake)[0], whole[1])
    # Their constants, too: the real term does not know the fake ones.
    other = logits(3, seed=5)[1]
    assert_near(loss.real(real) + loss.fake(other), formula(real, other))
    assert loss.real(real.half()).dtype == loss.fake(fake.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("name", SIDED)
def test_sides_backward_apart_are_the_discriminator(name):
    torch.manual_seed(0)
    D = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    real, fake = torch.randn(2, 5, 3, dtype=torch.float64)
    loss = getattr(losses, name)
    loss.discriminator(D(real), D(fake)).backward()
    whole = [p.grad.clone() for p in D.parameters()]
    D.zero_grad()
    loss.real(D(real)).backward()
    loss.fake(D(fake)).backward()
    for p, expected in zip(D.parameters(), whole, strict=True):
        assert_near(p.grad, expected)


@pytest.mark.parametrize("name", COMPARING)
def test_comparing_losses_have_no_sides(name):
    loss = getattr(losses, name)
    for side in ("real", "fake"):
        with pytest.raises(AttributeError, match=f"^{name}: .*got .{side} of one that compares"):
            getattr(loss, side)
        assert not hasattr(loss, side)
    # The cure that it names.
    real, fake = (x.requires_grad_() for x in logits(5))
    whole = torch.autograd.grad(loss.discriminator(real, fake), (real, fake))
    of_real = torch.autograd.grad(loss.discriminator(real, fake.detach()), real)
    of_fake = torch.autograd.grad(loss.discriminator(real.detach(), fake), fake)
    assert_near(of_real[0], whole[0])
    assert_near(of_fake[0], whole[1])


@pytest.mark.parametrize("name", ALL)
def test_scales_and_weight(name):
    loss = getattr(losses, name)
    pairs = [logits(3, 1, n, n, seed=n) for n in (8, 4, 2)]
    reals, fakes = [p[0] for p in pairs], [p[1] for p in pairs]
    for function, args in ((loss.discriminator, (reals, fakes)), (loss.generator, (fakes, reals))):
        added = function(*args)
        assert_near(function(*args, scales="sum"), added)
        assert_near(function(*args, scales="mean"), added / 3)
        assert_near(function(*args, scales="mean", weight=0.5), added / 6)
        assert function(*args, weight=0) == 0
        # A tensor, of whatever dtype and shape, leaves dtype and shape of the loss.
        wide = torch.tensor([[0.25]], dtype=torch.float64)
        assert_near(function(*args, weight=wide), added / 4)
        short = [[x.float() for x in each] for each in args]
        assert function(*short, weight=wide).dtype == torch.float32
        assert function(*short, weight=wide).shape == ()
        one = [each[0] for each in args]
        assert function(*one, scales="mean") == function(*one)


def test_a_weight_that_learns():
    weight = torch.tensor(0.5, requires_grad=True)
    losses.hinge.generator(-torch.ones(3), weight=weight).backward()
    assert weight.grad == 1


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"scales": "max"}, ValueError, 'expected scales "sum" or "mean", got \'max\''),
        ({"scales": None}, ValueError, "expected scales"),
        ({"scales": torch.ones(3)}, ValueError, "expected scales"),
        ({"weight": -1.0}, ValueError, "expected weight to be finite and not negative, got -1.0"),
        ({"weight": float("nan")}, ValueError, "expected weight to be finite"),
        ({"weight": "2"}, TypeError, "expected weight to be a number, got str"),
        ({"weight": torch.ones(2)}, ValueError, "a number or a tensor of one element, got"),
        ({"weight": torch.ones((), dtype=torch.int64)}, TypeError, "weight of a floating-point"),
    ],
)
@pytest.mark.parametrize("name", ALL)
def test_refuses_scales_and_weights(name, settings, error, message):
    loss, x = getattr(losses, name), torch.zeros(4)
    calls = [lambda: loss.discriminator(x, x, **settings), lambda: loss.generator(x, x, **settings)]
    if name in SIDED:
        calls += [lambda: loss.real(x, **settings), lambda: loss.fake(x, **settings)]
    for call in calls:
        with pytest.raises(error, match=f"^{name}: .*{message}"):
            call()


@pytest.mark.parametrize("name", SIDED)
def test_sides_refuse_logits(name):
    loss = getattr(losses, name)
    for side in ("real", "fake"):
        for bad in (None, [], torch.ones(0), torch.ones(3, dtype=torch.int64), [[torch.ones(3)]]):
            with pytest.raises((TypeError, ValueError), match=f"^{name}: expected {side}_logits"):
                getattr(loss, side)(bad)


def test_compiles_as_a_whole():
    real, fake = (x.float() for x in logits(6))

    def step(real, fake):
        total = torch.zeros(())
        for name in ALL:
            d_loss, g_loss = getattr(losses, name)
            total = total + d_loss([real, real], [fake, fake], scales="mean", weight=0.5)
            total = total + g_loss(fake, real)
        for name in LABELED:
            loss = getattr(losses, name)
            total = total + loss.real(real, real_label=0.9) + loss.fake(fake, fake_label=0.1)
        return total + losses.hinge.real(real) + losses.least_squares.generator(fake, label=0.0)

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    assert torch.equal(compiled(real, fake), step(real, fake))
    d_loss, _ = losses.hinge
    alone = torch.compile(d_loss, backend="eager", fullgraph=True)
    assert torch.equal(alone(real, fake), d_loss(real, fake))


@pytest.mark.parametrize("name", ALL)
def test_lists_add_up_the_means(name):
    loss, (d_formula, g_formula) = getattr(losses, name), FORMULAS[name]
    scales = [logits(3, 1, n, n, seed=n) for n in (8, 4, 2)]
    reals, fakes = [s[0] for s in scales], [s[1] for s in scales]
    expected_d = sum(d_formula(real, fake) for real, fake in scales)
    expected_g = sum(g_formula(fake, real) for real, fake in scales)
    for kind in (list, tuple):
        assert_near(loss.discriminator(kind(reals), kind(fakes)), expected_d)
        assert_near(loss.generator(kind(fakes), kind(reals)), expected_g)
    # The mean over all logits at once, which lets the largest scale outvote the others, differs.
    together = d_formula(*(torch.cat([x.flatten() for x in xs]) for xs in (reals, fakes)))
    assert abs(together - expected_d / 3) > 1e-3
    assert loss.discriminator([reals[0]], [fakes[0]]) == loss.discriminator(reals[0], fakes[0])


# --- dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_computes_in_float32(name, dtype):
    loss, (d_formula, g_formula) = getattr(losses, name), FORMULAS[name]
    real, fake = logits(257, dtype=dtype)
    wide = real.double(), fake.double()
    real.requires_grad_()
    got = loss.discriminator(real, fake)
    assert got.dtype == torch.float32
    assert_near(got, d_formula(*wide), torch.float32)
    (gradient,) = torch.autograd.grad(got, real)
    got = loss.generator(fake, real.detach())
    assert got.dtype == torch.float32
    assert_near(got, g_formula(*reversed(wide)), torch.float32)
    assert gradient.dtype == dtype


def test_means_of_half_precision_neither_overflow_nor_round():
    real = torch.full((2048,), 60000.0, dtype=torch.float16)
    d_loss, g_loss = losses.least_squares
    expected = torch.tensor(59999.0**2 + 60000.0**2, dtype=torch.float64)
    assert_near(d_loss(real, -real), expected)
    assert not torch.isfinite(real.square().mean())  # as it would be in float16
    # -60000 and 60000 are further apart than float16 can say.
    assert losses.relativistic.discriminator(-real, real) == 120000
    assert g_loss(torch.full((), 1.0 + 2.0**-7, dtype=torch.bfloat16)) == 2.0**-14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ALL)
def test_autocast_changes_nothing(name, dtype):
    loss = getattr(losses, name)
    for input_dtype in (torch.float32, torch.float64, dtype):
        real, fake = logits(33, dtype=input_dtype)
        expected = loss.discriminator(real, fake), loss.generator(fake, real)
        with torch.autocast("cpu", dtype=dtype):
            got = loss.discriminator(real, fake), loss.generator(fake, real)
        for a, b in zip(got, expected, strict=True):
            assert a.dtype == b.dtype
            assert a == b


def test_of_two_dtypes_the_wider():
    real, fake = logits(8)
    got = losses.hinge.discriminator(real.bfloat16(), fake)
    assert got.dtype == torch.float64
    assert_near(got, hinge(real.bfloat16().double(), fake))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["minimax", "non_saturating", "relativistic"])
def test_large_logits(name, dtype):
    loss = getattr(losses, name)
    for size in (25.0, 200.0, 1e4):
        x = torch.tensor([size], dtype=dtype, requires_grad=True)
        zero = torch.zeros_like(x)
        right = loss.discriminator(x, -x if name != "relativistic" else zero)
        wrong = loss.discriminator(-x, x if name != "relativistic" else zero)
        # What is lost by log(sigmoid(x)): 0 or infinity, and no gradient.
        assert 0 <= right < 1e-9
        terms = 1 if name == "relativistic" else 2
        expected = terms * (size + math.log1p(math.exp(-size)))
        assert_near(wrong, torch.tensor(expected, dtype=torch.float64))
        (gradient,) = torch.autograd.grad(wrong, x)
        expected = terms / (1 + math.exp(-size))
        assert_near(gradient, torch.tensor([expected], dtype=torch.float64))
    assert torch.log(1 - torch.sigmoid(x)).isinf()


def test_saturation():
    fake = torch.tensor([-30.0], requires_grad=True)
    (saturated,) = torch.autograd.grad(losses.minimax.generator(fake), fake)
    (strong,) = torch.autograd.grad(losses.non_saturating.generator(fake), fake)
    assert saturated == pytest.approx(-math.exp(-30))
    assert strong == -1


def test_exact_beyond_the_threshold_of_softplus():
    fake = torch.tensor([21.0], dtype=torch.float64)
    exact = torch.tensor(math.log1p(math.exp(-21.0)), dtype=torch.float64)
    got = losses.non_saturating.generator(-fake) - 21
    assert_near(got, exact, torch.float32)  # to the rounding of 21
    assert torch.nn.functional.softplus(fake) == 21


# --- labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [0.9, 1, 0, 1.2])
@pytest.mark.parametrize("name", LABELED)
def test_label_smoothing_is_one_sided(name, label):
    real, fake = logits(11)
    formula = FORMULAS[name][0]
    got = getattr(losses, name).discriminator(real, fake, real_label=label)
    assert_near(got, formula(real, fake, label))
    if name != "least_squares" and label == 0.9:
        two_sided = cross_entropy(real, fake, 0.9) + 0.1 * -fake.mean()
        assert abs(got - two_sided) > 1e-3


@pytest.mark.parametrize("label", [0.1, 1, 0, 1.2])
@pytest.mark.parametrize("name", LABELED)
def test_fake_labels(name, label):
    loss, formula = getattr(losses, name), FORMULAS[name][0]
    real, fake = logits(11)
    got = loss.discriminator(real, fake, real_label=0.9, fake_label=label)
    assert_near(got, formula(real, fake, 0.9, label))
    assert torch.equal(got, loss.real(real, real_label=0.9) + loss.fake(fake, fake_label=label))
    gradient = torch.autograd.grad(loss.fake(fake.requires_grad_(), fake_label=label), fake)[0]
    assert_near(gradient, torch.autograd.grad(formula(real, fake, 1.0, label), fake)[0])


def test_targets_of_amp_and_of_pearson():
    real, fake = logits(9)
    d_loss, g_loss = losses.least_squares
    expected = ((real - 1) ** 2).mean() + ((fake + 1) ** 2).mean()
    assert_near(d_loss(real, fake, fake_label=-1), expected)
    assert_near(d_loss(-real, -fake, real_label=-1.0, fake_label=1.0), expected)
    assert_near(g_loss(fake, label=0), (fake**2).mean())
    assert_near(g_loss(fake, label=-2.5), ((fake + 2.5) ** 2).mean())
    seed = torch.Generator().manual_seed(2)
    got = losses.least_squares.fake(fake, fake_label=(-1.1, -0.9), generator=seed)
    drawn = torch.rand(9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert_near(got, ((fake - (-1.1 + 0.2 * drawn)) ** 2).mean())


@pytest.mark.parametrize("name", ["minimax", "non_saturating"])
def test_cross_entropies_of_large_logits_lose_nothing(name):
    loss = getattr(losses, name)
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([40.0], dtype=dtype)
        tiny = torch.tensor(math.exp(-40), dtype=torch.float64)
        # x - log s(x) would be 0 here.
        assert_near(loss.fake(-x), tiny, torch.float32)
        assert_near(loss.real(-x, real_label=0), tiny, torch.float32)
        assert_near(loss.fake(x, fake_label=1), tiny, torch.float32)
        assert loss.fake(x, fake_label=0.25) == 30
        assert loss.real(torch.full((1,), math.inf, dtype=dtype)) == 0
        assert loss.fake(torch.full((1,), -math.inf, dtype=dtype)) == 0


def test_random_labels_of_both_sides():
    real, fake = logits(6)
    loss, seeded = losses.non_saturating, torch.Generator().manual_seed(4)
    labels = {"real_label": (0.8, 1.0), "fake_label": (0.0, 0.2)}
    got = loss.discriminator(real, fake, **labels, generator=seeded)
    seeded.manual_seed(4)
    of_real = loss.real(real, real_label=(0.8, 1.0), generator=seeded)
    assert torch.equal(of_real + loss.fake(fake, fake_label=(0.0, 0.2), generator=seeded), got)
    draws = torch.rand(2, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert_near(got, cross_entropy(real, fake, 0.8 + 0.2 * draws[0], 0.2 * draws[1]))
    # A bad label of the fakes is refused before the labels of real ones are drawn.
    state = seeded.get_state()
    with pytest.raises(ValueError, match="fake_label"):
        loss.discriminator(real, fake, real_label=(0.8, 1.0), fake_label=-1, generator=seeded)
    assert torch.equal(seeded.get_state(), state)


def test_smoothing_moves_the_best_logit():
    """At D = log(0.9 / 0.1) the smoothed real term has its minimum."""
    best = torch.tensor([math.log(9)], dtype=torch.float64, requires_grad=True)
    fake = torch.zeros(1, dtype=torch.float64)
    smoothed = losses.non_saturating.discriminator(best, fake, real_label=0.9)
    assert torch.autograd.grad(smoothed, best)[0].abs() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LABELED)
def test_random_labels(name, dtype):
    real, fake = logits(5, 1, 3, 3, dtype=dtype)
    d_loss = getattr(losses, name).discriminator
    got = d_loss(real, fake, real_label=(0.9, 1.1), generator=torch.Generator().manual_seed(3))
    wide = torch.promote_types(dtype, torch.float32)
    drawn = torch.rand(real.shape, generator=torch.Generator().manual_seed(3), dtype=wide)
    labels = 0.9 + 0.2 * drawn.double()
    assert labels.min() < 0.95  # so that this is no constant
    assert labels.max() > 1.05
    assert_near(got, FORMULAS[name][0](real.double(), fake.double(), labels), wide)


@pytest.mark.parametrize("name", LABELED)
def test_random_labels_of_a_list_differ(name):
    real, fake = (x.expand(2, 4).unbind() for x in logits(4))
    d_loss = getattr(losses, name).discriminator
    generator = torch.Generator().manual_seed(0)
    got = d_loss(real, fake, real_label=(0.0, 2.0), generator=generator)
    generator.manual_seed(0)
    one = d_loss(real[0], fake[0], real_label=(0.0, 2.0), generator=generator)
    two = d_loss(real[1], fake[1], real_label=(0.0, 2.0), generator=generator)
    assert_near(got, one + two)
    assert one != two


def test_random_labels_come_from_the_generator():
    real, fake = logits(50)
    d_loss = losses.non_saturating.discriminator
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(1)
    first = d_loss(real, fake, real_label=(0.9, 1.1), generator=generator)
    assert first != d_loss(real, fake, real_label=(0.9, 1.1), generator=generator)
    d_loss(real, fake, real_label=0.9)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert d_loss(real, fake, real_label=(0.9, 1.1)) == first
    d_loss(real, fake, real_label=(0.9, 0.9), generator=generator)
    assert_near(d_loss(real, fake, real_label=(0.9, 0.9)), cross_entropy(real, fake, 0.9))


def test_labels_above_one_have_no_lower_bound():
    fake = torch.zeros(1, dtype=torch.float64)
    d_loss = losses.non_saturating.discriminator
    assert d_loss(torch.full((1,), 1e6, dtype=torch.float64), fake, real_label=1.1) < -9e4


# --- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_third_derivatives(name):
    loss, (d_formula, g_formula) = getattr(losses, name), FORMULAS[name]
    real, fake = logits(4, seed=2)

    def third(function):
        # Through a power of the logits, so that linear losses have a third derivative as well.
        def derivative(order):
            if order == 0:
                return lambda t: function((1 + t) ** 3 * real, (1 + t) ** 3 * fake)
            return lambda t: torch.autograd.grad(derivative(order - 1)(t), t, create_graph=True)[0]

        return derivative(3)(torch.tensor(0.1, dtype=torch.float64, requires_grad=True))

    assert_near(third(loss.discriminator), third(d_formula), factor=100)
    assert_near(
        third(lambda real, fake: loss.generator(fake, real)),
        third(lambda real, fake: g_formula(fake, real)),
        factor=100,
    )


@pytest.mark.parametrize("name", ALL)
def test_gradgradcheck(name):
    loss = getattr(losses, name)
    real, fake = (x.requires_grad_() for x in logits(5, seed=1))
    pairs = [(loss.discriminator, (real, fake)), (loss.generator, (fake, real))]
    for function, inputs in pairs:
        assert torch.autograd.gradcheck(function, inputs)
        # Outputs that do not depend on their inputs twice are what hinge and wasserstein are.
        if name in ("minimax", "non_saturating", *COMPARING):
            assert torch.autograd.gradgradcheck(function, inputs)


# --- errors --------------------------------------------------------------------------------------

X = torch.zeros(4)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "bad, error, message",
    [
        (torch.zeros(4, dtype=torch.int64), TypeError, "floating-point dtype, got torch.int64"),
        (torch.zeros(4, dtype=torch.bool), TypeError, "floating-point dtype, got torch.bool"),
        (torch.zeros(4, dtype=torch.complex64), TypeError, "floating-point .* torch.complex64"),
        (torch.zeros(0, 1), ValueError, r"elements to average, got the empty shape \(0, 1\)"),
        ([], ValueError, "at least one critic, got an empty list"),
        (0.5, TypeError, "a tensor or a list of tensors, got float"),
        (None, TypeError, "a tensor or a list of tensors, got NoneType"),
        ([[X], [X]], TypeError, "got a list with list; pass only the logits"),
        ([X, 1.0], TypeError, "got a list with float"),
        ([X, X[:0]], ValueError, "got the empty shape"),
        ((x for x in [X]), TypeError, "a tensor or a list of tensors, got generator"),
    ],
)
def test_refuses_logits(name, bad, error, message):
    loss = getattr(losses, name)
    with pytest.raises(error, match=f"^{name}: expected real_logits .*{message}"):
        loss.discriminator(bad, X)
    with pytest.raises(error, match=f"^{name}: expected fake_logits .*{message}"):
        loss.discriminator(X, bad)
    with pytest.raises(error, match=f"^{name}: expected fake_logits .*{message}"):
        loss.generator(bad, X)


@pytest.mark.parametrize("name", ALL)
def test_a_loss_says_which_two_it_is(name):
    with pytest.raises(TypeError, match=rf"^{name}: .*losses\.{name}\.discriminator\(real_logits"):
        getattr(losses, name)(*logits(6))


@pytest.mark.parametrize("name", ALL)
def test_generators_refuse_the_discriminators_order(name):
    """Where it would train nothing: only the real logits have a gradient."""
    loss = getattr(losses, name)
    real, fake = logits(6)
    trained = fake.clone().requires_grad_()
    with pytest.raises(ValueError, match=f"^{name}: expected fake_logits that require a gradient"):
        loss.generator(real, trained)
    with torch.no_grad():
        expected = loss.generator(real, trained)  # for a log
    assert expected == loss.generator(real, fake)
    both = loss.generator(trained, real.clone().requires_grad_())
    assert both.requires_grad
    assert loss.generator(trained, real) == both


@pytest.mark.parametrize("name", ALL)
def test_refuses_lists_of_different_lengths(name):
    message = f"^{name}: expected real_logits and fake_logits of as many critics, got 2 and 1; "
    with pytest.raises(ValueError, match=message):
        getattr(losses, name).discriminator([X, X], [X])
    with pytest.raises(ValueError, match=message):
        getattr(losses, name).discriminator([X, X], X)


@pytest.mark.parametrize("name", COMPARING)
def test_comparing_losses_need_one_device(name):
    for real, fake in ((X, X.to("meta")), ([X.to("meta")], [X])):
        with pytest.raises(ValueError, match=f"^{name}: .* on one device, to compare them, got"):
            getattr(losses, name).discriminator(real, fake)


def test_relativistic_average_needs_real_logits():
    with pytest.raises(ValueError, match=r"^relativistic_average: .* call generator\(fake_lo"):
        losses.relativistic_average.generator(X)


def test_relativistic_needs_pairs():
    d_loss, g_loss = losses.relativistic
    with pytest.raises(ValueError, match=r"^relativistic: .* call generator\(fake_logits, real_l"):
        g_loss(X)
    with pytest.raises(ValueError, match=r"same shape, to pair them, got \(4,\) and \(3,\); "):
        d_loss(X, X[:3])
    with pytest.raises(ValueError, match=r"^relativistic: .* got \(4, 1\) and \(4,\)"):
        g_loss(X, X[:, None])
    with pytest.raises(ValueError, match="as many critics, got 1 and 2"):
        g_loss([X, X], [X])
    with pytest.raises(ValueError, match=r"^relativistic: .* got \(4,\) and \(1,\)"):
        d_loss([X, X], [X, X[:1]])


@pytest.mark.parametrize("name", LABELED)
@pytest.mark.parametrize(
    "label, error, message",
    [
        ("1", TypeError, "expected real_label to be a number, got str"),
        (True, TypeError, "expected real_label to be a number, got bool"),
        ([0.9, 1.1], TypeError, "expected real_label to be a number, got list"),
        (float("nan"), ValueError, "expected real_label to be finite.*, got nan"),
        (float("-inf"), ValueError, "expected real_label to be finite.*, got -inf"),
        (-(2**70), ValueError, "expected real_label to be finite"),
        ((0.9,), ValueError, r"a number or \(low, high\), got \(0.9,\)"),
        ((1.1, 0.9), ValueError, r"\(low, high\), got \(1.1, 0.9\); swap the two"),
        ((0.9, float("inf")), ValueError, "both numbers of real_label to be finite.*, got inf"),
        ((0.9, None), TypeError, "both numbers of real_label to be a number, got NoneType"),
    ],
)
def test_refuses_labels(name, label, error, message):
    loss = getattr(losses, name)
    calls = {
        "real_label": [
            lambda: loss.discriminator(X, X, real_label=label),
            lambda: loss.real(X, real_label=label),
        ],
        "fake_label": [
            lambda: loss.discriminator(X, X, fake_label=label),
            lambda: loss.fake(X, fake_label=label),
        ],
    }
    for argument, each in calls.items():
        for call in each:
            with pytest.raises(
                error, match=f"^{name}: .*{message}".replace("real_l", argument[:6])
            ):
                call()


@pytest.mark.parametrize("name", ["minimax", "non_saturating"])
def test_cross_entropies_refuse_labels_below_zero(name):
    loss = getattr(losses, name)
    for bad in (-0.1, -1, (-1.0, 0.0)):
        with pytest.raises(ValueError, match=f"^{name}: .*real_label to be finite and not negat"):
            loss.discriminator(X, X, real_label=bad)
        with pytest.raises(ValueError, match=f"^{name}: .*fake_label to be finite and not negat"):
            loss.fake(X, fake_label=bad)


def test_refuses_labels_of_the_generator():
    g_loss = losses.least_squares.generator
    for bad, error in ((float("inf"), ValueError), ("1", TypeError), ((0.9, 1.1), TypeError)):
        with pytest.raises(error, match=r"^least_squares: expected label to be"):
            g_loss(X, label=bad)
    for name in ("minimax", "hinge"):
        with pytest.raises(TypeError, match="label"):
            getattr(losses, name).generator(X, label=0.0)


@pytest.mark.parametrize("name", LABELED)
def test_refuses_a_generator_that_is_a_network(name):
    with pytest.raises(
        TypeError, match=f"^{name}: expected generator to be a torch.Generator or None, got L"
    ):
        getattr(losses, name).discriminator(X, X, generator=torch.nn.Linear(1, 1))


@pytest.mark.parametrize("name", [n for n in ALL if n not in LABELED])
def test_no_labels_where_none_are_defined(name):
    with pytest.raises(TypeError, match="real_label"):
        getattr(losses, name).discriminator(X, X, real_label=0.9)
    with pytest.raises(TypeError, match="fake_label"):
        getattr(losses, name).discriminator(X, X, fake_label=0.1)


@pytest.mark.parametrize(
    "name, meant",
    [("wgan", "wasserstein"), ("LSGAN", "least_squares"), ("bce", "non_saturating"),
     ("ragan", "relativistic_average"), ("saturating", "minimax"), ("rpgan", "relativistic")],
)  # fmt: skip
def test_other_names_say_which_loss_is_meant(name, meant):
    with pytest.raises(AttributeError, match=rf"got '{name}'; losses.{meant} is meant"):
        getattr(losses, name)
    assert isinstance(getattr(losses, meant), losses.Loss)


def test_unknown_names_list_the_losses():
    with pytest.raises(AttributeError, match=r"there are Loss, .*hinge"):
        losses.energy  # noqa: B018
    assert not hasattr(losses, "torch")


class Array:
    """As NumPy's, which torch need not have been built with."""

    def __array__(self):
        raise AssertionError


INSTEAD = {
    "losses": lambda x: losses.hinge.generator(x),
    "r1": lambda x: gk.r1_penalty(nn.Linear(1, 1), x),
    "ADAPipe": lambda x: gk.augment.ADAPipe("bgc", p=0.5)(x),
    "DiffAugment": lambda x: gk.augment.DiffAugment()(x),
    "ADAController": lambda x: gk.augment.ADAController(gk.augment.ADAPipe("bgc", p=0.0)).update(x),
    "LeCam": lambda x: gk.regularizers.LeCam()(x, x),
}


@pytest.mark.parametrize("name", INSTEAD)
def test_what_is_no_tensor_is_told_what_to_pass(name):
    for x, cure in (
        (Array(), r"got Array; pass torch.from_numpy\("),
        (nn.Linear(1, 1), r"got Linear; call it.*, and pass what it returns"),
        ((x for x in [torch.ones(1)]), r"got generator; pass list\("),
    ):
        with pytest.raises(TypeError, match=cure):
            INSTEAD[name](x)
