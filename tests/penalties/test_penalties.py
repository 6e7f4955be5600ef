"""The penalties: their numbers, what critics may be, their second order, and what they refuse."""

import inspect
import re

import pytest
import torch
from support import penalties
from support.penalties import CALLED, draw, grown, interpolates, noise, seeded, squares
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import gankernels as gk
from gankernels import _warnings
from gankernels.nn.utils import spectral_norm as our_hook
from gankernels.nn.utils.parametrizations import spectral_norm as our_parametrization

pytestmark = pytest.mark.usefixtures("device")


def critic(scores=1):
    """A small real one, smooth, so that numerical differences mean something."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.Softplus(), nn.Conv2d(4, 3, 2), nn.SiLU(), nn.Flatten(),
        nn.Linear(12, scores),
    ).double()  # fmt: skip


REAL, FAKE = draw(4, 2, 6, 6), draw(4, 2, 6, 6, seed=2)


def of_row(penalty):
    return lambda D: penalty.call(D, REAL, FAKE), lambda D: penalty.expected(D, REAL, FAKE)


#: Each penalty, and its number from the gradients of single samples.
PENALTIES = {
    **{
        name.removesuffix("_penalty"): of_row(penalty)
        for name, penalty in penalties.PENALTIES.items()
        if penalty.expected is not None
    },
    "r1_r2, gamma": (
        lambda D: gk.r1_r2_penalty(D, REAL, FAKE, gamma=4.0),
        lambda D: 2 * (squares(D, REAL).mean() + squares(D, FAKE).mean()),
    ),
    "r1_r2, unequal batches": (
        lambda D: gk.r1_r2_penalty(D, REAL, FAKE[:1]),
        lambda D: 5 * (squares(D, REAL).mean() + squares(D, FAKE[:1]).mean()),
    ),
    "wgan_gp, center": (
        lambda D: gk.wgan_gp_penalty(D, REAL, FAKE, weight=2, center=0.1, generator=seeded()),
        lambda D: 2 * (squares(D, interpolates(REAL, FAKE)).sqrt() - 0.1).square().mean(),
    ),
    "dragan, gaussian": (
        lambda D: gk.dragan_penalty(D, REAL, noise="gaussian", k=0.5, generator=seeded()),
        lambda D: 10 * (squares(D, REAL + 10**0.5 * noise(REAL)).sqrt() - 0.5).square().mean(),
    ),
    "approx_r2, gamma": (
        lambda D: gk.approx_r2_penalty(D, FAKE, sigma=0.1, gamma=3.0, generator=seeded()),
        lambda D: 150 * (D(FAKE) - D(FAKE + 0.1 * noise(FAKE))).square().mean(),
    ),
}


def takers(*settings):
    """The penalties of the table that take one of these settings, with the first that they take."""
    rows = []
    for name, penalty in penalties.PENALTIES.items():
        if penalty.expected is not None:
            taken = inspect.signature(getattr(gk, name)).parameters
            rows += [(name, setting) for setting in settings if setting in taken][:1]
    return rows


@pytest.mark.parametrize(("name", "setting"), takers("weight", "gamma"))
def test_twice_the_weight_is_twice_the_number(name, setting):
    D, call = critic(), penalties.PENALTIES[name].call
    once, twice = (call(D, REAL, FAKE, **{setting: value}).item() for value in (0.7, 1.4))
    assert once > 0
    assert twice == pytest.approx(2 * once, rel=1e-10)


@pytest.mark.parametrize("name", [name for name, _ in takers("inv_scale") if name in CALLED])
def test_a_loss_scale_leaves_the_number(name):
    D, scale = critic(), torch.tensor(0.25, dtype=torch.float64)
    expected = CALLED[name](D, REAL, FAKE).item()
    found = CALLED[name](D, REAL, FAKE, inv_scale=scale).item()
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("method", ["double_backward", "difference"])
def test_the_largest_gradient_is_of_one_sample(method):
    D = critic()
    steepest = int(squares(D, FAKE).argmax())
    penalty, raw = gk.max_gradient_penalty(
        D, FAKE, FAKE, weight=3.0, method=method, sigma=1e-4, return_raw=True
    )
    expected = squares(D, FAKE[steepest : steepest + 1])[0]
    assert raw.item() == pytest.approx(expected.item(), rel=1e-6)
    assert penalty.item() == pytest.approx(3 * raw.item(), rel=1e-12)
    assert not raw.requires_grad
    alone = gk.zero_centered_penalty(
        D, *2 * [FAKE[steepest : steepest + 1]], weight=3.0, method=method, sigma=1e-4
    )
    parameters = [p for p in D.parameters() if p.dim() > 1]
    found, wanted = (torch.autograd.grad(x, parameters) for x in (penalty, alone))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_largest_gradient_is_not_known_by_noise():
    with pytest.raises(ValueError, match=r'^max_gradient_penalty: expected method .* got "noise"'):
        gk.max_gradient_penalty(critic(), REAL, FAKE, method="noise")


@pytest.mark.parametrize("name", PENALTIES)
def test_number(name):
    penalty, expected = PENALTIES[name]
    D = critic()
    wanted = expected(D)
    assert wanted > 0
    found = penalty(D)
    assert found.dim() == 0
    assert found.item() == pytest.approx(wanted.item(), rel=1e-10)
    # And its gradient in the critic's parameters is that of a difference of numbers.
    weight = D[0].weight
    (slope,) = torch.autograd.grad(found, weight)
    step = 1e-5
    with torch.no_grad():
        weight[0, 0, 1, 1] += step
    up = penalty(D).item()
    with torch.no_grad():
        weight[0, 0, 1, 1] -= 2 * step
    down = penalty(D).item()
    assert (up - down) / (2 * step) == pytest.approx(slope[0, 0, 1, 1].item(), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("name", PENALTIES)
def test_without_a_graph(name):
    """Under no_grad the number is the same; R1 and its kin need the graph that was made before."""
    penalty, _ = PENALTIES[name]
    D = critic()
    expected = penalty(D)
    if name in ("r1", "r2", "roth"):
        x = grown(REAL)
        logits = D(x)
        with torch.no_grad():
            found = gk.r1_penalty(logits, x)
        assert found.item() == pytest.approx(gk.r1_penalty(D(x), x).item(), rel=1e-12)
    else:
        with torch.no_grad():
            found = penalty(D)
        assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert not found.requires_grad


def normalized(how):
    D = critic()
    if how == "torch, then fused":
        for layer in (D[0], D[2], D[5]):
            torch.nn.utils.parametrizations.spectral_norm(layer)
    elif how != "plain":
        put = our_hook if how == "hook" else our_parametrization
        for layer in (D[0], D[2], D[5]):
            put(layer)
    D(REAL)
    if "fused" in how:
        gk.fuse_spectral_norm(D)
    return D.eval()  # u and v stand still


@pytest.mark.parametrize("how", ["plain", "hook", "parametrization", "fused", "torch, then fused"])
@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_of_the_critic(name, how):
    """First and second derivatives in the parameters, through the critic and its normalization."""
    penalty, _ = PENALTIES[name]
    D = normalized(how)
    names = [n for n, p in D.named_parameters() if p.dim() > 1][:2]
    values = [D.get_parameter(n).detach().clone().requires_grad_() for n in names]

    def f(*weights):
        given = dict(zip(names, weights, strict=True))
        return penalty(lambda *args: functional_call(D, given, args))

    assert gradcheck(f, values, fast_mode=True)
    # The kernels go to the second order, and a penalty's own gradient takes one of the critic's.
    if how == "plain" and name != "roth":
        assert gradgradcheck(f, values, fast_mode=True)
    with gk.backend("reference"):
        assert gradgradcheck(f, values, fast_mode=True)


# --- critics of every kind ------------------------------------------------------------------------


class Conditional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = critic(3)

    def forward(self, x, y, gain=1.0):
        return gain * self.body(x).gather(1, y.view(-1, 1))


LABELS = torch.tensor([0, 2, 1, 1])


def everything(D, *args, **kwargs):
    """All penalties that call the critic themselves."""
    calls = [call for name, call in CALLED.items() if name != "check_independent_samples"]
    return [call(D, REAL, FAKE, *args, **kwargs) for call in calls]


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.item() == pytest.approx(b.item(), rel=1e-10)


def test_conditional_critics():
    D = Conditional()
    batches = torch.cat((LABELS, LABELS))

    def fixed(x):
        return D(x, LABELS if len(x) == 4 else batches, gain=2.0)

    same(everything(D, LABELS, gain=2.0), everything(fixed))
    same(everything(D, y=LABELS, gain=2.0), everything(fixed))
    both = gk.r1_r2_penalty(D, REAL, FAKE, torch.cat((LABELS, LABELS.flip(0))))
    x, y = grown(REAL), grown(FAKE)
    same([both], [gk.r1_penalty(D(x, LABELS), x) + gk.r2_penalty(D(y, LABELS.flip(0)), y)])


@pytest.mark.parametrize("name", ["patches", "tuple", "list"])
def test_scores_of_any_shape_are_added_up(name):
    patches = critic()[:3]
    kinds = {
        "patches": patches,
        "tuple": lambda x: tuple(patches(x).unbind(1)),
        "list": lambda x: [patches(x)[:, :1], patches(x)[:, 1:]],
    }
    same(everything(kinds[name]), everything(lambda x: patches(x).flatten(1).sum(1)))
    x = grown(REAL)
    same([gk.r1_penalty(kinds[name](x), x)], [gk.r1_penalty(patches(x).flatten(1).sum(1), x)])


def test_several_inputs():
    """A list of inputs has one norm over all: that of the inputs side by side."""
    a, b = REAL[:, :1], REAL[:, 1:, :, :3]
    c, d = FAKE[:, :1], FAKE[:, 1:, :, :3]
    layer = nn.Linear(54, 1).double()

    def side_by_side(x):
        return layer(torch.tanh(torch.cat([p.flatten(1) for p in x], 1)))

    def joined(x):
        return layer(torch.tanh(x))

    def flat(x):
        return torch.cat([p.flatten(1) for p in x], 1)

    same(
        [
            gk.wgan_gp_penalty(side_by_side, [a, b], [c, d], generator=seeded()),
            gk.r1_r2_penalty(side_by_side, (a, b), (c, d)),
        ],
        [
            gk.wgan_gp_penalty(joined, flat((a, b)), flat((c, d)), generator=seeded()),
            gk.r1_r2_penalty(joined, flat((a, b)), flat((c, d))),
        ],
    )
    x = [grown(a), grown(b)]
    y = grown(flat((a, b)))
    same([gk.r1_penalty(side_by_side(x), x)], [gk.r1_penalty(joined(y), y)])


def test_one_critic_pass():
    calls = []
    D = critic()

    def counted(x):
        calls.append(len(x))
        return D(x)

    gk.r1_r2_penalty(counted, REAL, FAKE)
    assert calls == [8]


def test_one_coefficient_a_sample():
    seen = []
    gk.wgan_gp_penalty(lambda x: seen.append(x) or x.flatten(1).sum(1), REAL, FAKE)
    eps = (seen[0] - FAKE) / (REAL - FAKE)
    assert torch.allclose(eps, eps[:, :1, :1, :1].expand_as(eps))
    assert ((eps >= 0) & (eps < 1)).all()
    assert eps[:, 0, 0, 0].unique().numel() == 4


def test_no_gradient_reaches_the_generator():
    fake = grown(FAKE) * 1
    for penalty in everything(critic()):
        penalty.backward()
    assert gk.wgan_gp_penalty(critic(), REAL, fake).requires_grad
    (found,) = torch.autograd.grad(
        gk.wgan_gp_penalty(critic(), REAL, fake), fake, allow_unused=True
    )
    assert found is None


def test_approximation_converges_to_r1():
    """In the mean over the noise, with `gamma`, for a small sigma."""
    D = critic()
    x = grown(REAL)
    exact = gk.r1_penalty(D(x), x).item()
    found = [
        gk.approx_r1_penalty(D, REAL, sigma=1e-4, gamma=10.0, generator=g).item()
        for g in [seeded()]
        for _ in range(400)
    ]
    assert sum(found) / len(found) == pytest.approx(exact, rel=0.15)


def test_scores_are_subtracted_in_float32():
    """In bfloat16 the scores 256 and 257 are the same."""

    def scores(x):
        return (256 + x.float().flatten(1).mean(1)).to(torch.bfloat16)

    x = torch.full((2, 1, 4, 4), 2.0)
    assert gk.approx_r1_penalty(scores, x, sigma=8.0, generator=seeded()).dtype == torch.float32


# --- parameters -----------------------------------------------------------------------------------


def test_consensus():
    torch.manual_seed(0)
    D, G = nn.Linear(3, 1).double(), nn.Linear(2, 3).double()
    z, x = draw(5, 2), draw(5, 3)
    d_loss = nn.functional.softplus(D(G(z))).mean() - D(x).mean()
    g_loss = -(D(G(z)).mean() ** 3)
    found = gk.consensus_penalty((d_loss, g_loss), (D.parameters(), G.parameters()), gamma=4.0)
    v = [
        *torch.autograd.grad(d_loss, list(D.parameters()), create_graph=True),
        *torch.autograd.grad(g_loss, list(G.parameters()), create_graph=True),
    ]
    expected = 2 * sum(g.square().sum() for g in v)
    assert found.item() == pytest.approx(expected.item())
    for p in (D.weight, G.weight):
        for a, b in zip(
            torch.autograd.grad(found, p, retain_graph=True),
            torch.autograd.grad(expected, p, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_consensus_of_several_dtypes_and_empty_parameters():
    D, G, empty = nn.Linear(3, 1).double(), nn.Linear(2, 3), nn.Parameter(torch.zeros(0))
    logits = D(G(draw(5, 2).float()).double()).mean() + empty.sum()
    players = [empty, *D.parameters()], G.parameters()
    found = gk.consensus_penalty((logits, -(logits**3)), players, gamma=4.0)
    assert found.dtype == torch.float64
    v = [
        *torch.autograd.grad(logits, list(D.parameters()), create_graph=True),
        *torch.autograd.grad(-(logits**3), list(G.parameters()), create_graph=True),
    ]
    expected = 2 * sum(g.double().square().sum() for g in v)
    assert found.item() == pytest.approx(expected.item())
    for p in (D.weight, G.weight):
        torch.testing.assert_close(
            torch.autograd.grad(found, p, retain_graph=True),
            torch.autograd.grad(expected, p, retain_graph=True),
        )


def test_spectral_norm_regularization():
    weights = [draw(5, 7).requires_grad_(), draw(4, 3, 3, 3, seed=2).requires_grad_()]
    u = [draw(w.shape[0]) for w in weights]
    v = [draw(w.numel() // w.shape[0]) for w in weights]
    u[0], u[1] = (x / x.norm() for x in u)
    v[0], v[1] = (x / x.norm() for x in v)
    found = gk.spectral_norm_regularization(weights, u, v, weight=0.2, n_power_iterations=300)
    norms = [torch.linalg.matrix_norm(w.flatten(1), 2) for w in weights]
    expected = 0.1 * sum(n.square() for n in norms)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for a, b in zip(
        torch.autograd.grad(found, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    again = gk.spectral_norm_regularization(weights, u, v, weight=0.2, n_power_iterations=0)
    assert again.item() == pytest.approx(found.item())


# --- guardrails and refusals ----------------------------------------------------------------------


def test_a_warning_is_given_once(recwarn):
    for _ in range(3):
        x = grown(REAL)
        gk.r1_penalty(critic()(x).mean(), x)
    (given,) = [w for w in recwarn if "one scalar" in str(w.message)]
    assert given.filename == __file__  # where the mistake is


def test_a_penalty_that_trains_nothing():
    D = critic().requires_grad_(False)
    x = grown(REAL)
    linear = x.flatten(1) @ draw(72)
    with pytest.warns(UserWarning, match="trains nothing"):
        gk.r1_penalty(linear, x)
    _warnings._warned.clear()
    assert gk.r1_penalty(D(x), x).requires_grad  # through x


FROZEN = {
    "r1 of logits": lambda D, x: gk.r1_penalty(D(x), x),
    "r1": lambda D, x: gk.r1_penalty(D, x.detach()),
    "wgan_gp": lambda D, x: gk.wgan_gp_penalty(D, x.detach(), FAKE),
    "critic_step": lambda D, x: gk.critic_step(D, x.detach(), FAKE, r1=1.0),
}


@pytest.mark.parametrize("activation", [nn.SiLU, nn.ReLU])
@pytest.mark.parametrize("name", FROZEN)
def test_a_frozen_critic_is_told_of(name, activation, recwarn):
    """Its gradients have a graph, which leads to the samples alone."""
    D = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), activation(), nn.Linear(4, 1)).double()
    FROZEN[name](D, grown(REAL))
    assert list(recwarn) == []
    _warnings._calls.clear()
    with pytest.warns(UserWarning, match="trains nothing"):
        FROZEN[name](D.requires_grad_(False), grown(REAL))


def test_samples_of_a_generator_are_trained(recwarn):
    """By a critic that is frozen meanwhile."""
    D = nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.SiLU(), nn.Linear(4, 1)).double()
    G = nn.Linear(5, 72, dtype=torch.float64)
    fake = G(draw(4, 5)).view(4, 2, 6, 6)
    gk.r2_penalty(D.requires_grad_(False)(fake), fake).backward()
    assert G.weight.grad is not None
    assert list(recwarn) == []


def plain(x):
    return x.flatten(1).sum(1)


X = grown(REAL)
REFUSED = [
    (ValueError, "real to require a gradient, got one that does not; call real.requires_grad_()",
     lambda: gk.r1_penalty(plain(REAL), REAL)),
    (ValueError, "fake to require a gradient", lambda: gk.r2_penalty(plain(REAL), REAL)),
    (ValueError, "scores with a graph, got detached ones",
     lambda: gk.r1_penalty(plain(X).detach(), X)),
    (ValueError, "scores that depend on real, got ones that do not",
     lambda: gk.r1_penalty(plain(grown(REAL)), X)),
    (ValueError, "first dimension is the batch, 4, got shape (5,)",
     lambda: gk.r1_penalty(torch.ones(5), X)),
    (TypeError, "scores to be a tensor or a list of them, got dict",
     lambda: gk.wgan_gp_penalty(lambda x: {"logits": plain(x)}, REAL, FAKE)),
    (ValueError, "the critic to return scores, got an empty list",
     lambda: gk.wgan_gp_penalty(lambda x: [], REAL, FAKE)),
    (TypeError, "real of a floating-point dtype, got torch.int64",
     lambda: gk.wgan_gp_penalty(plain, REAL.long(), FAKE)),
    (ValueError, "real of shape (B, ...) with elements, got shape ()",
     lambda: gk.dragan_penalty(plain, torch.ones(()))),
    (ValueError, "real of shape (B, ...) with elements, got shape (0, 3)",
     lambda: gk.dragan_penalty(plain, torch.ones(0, 3))),
    (TypeError, "real to be a tensor or a list of tensors, got NoneType",
     lambda: gk.wgan_gp_penalty(plain, None, FAKE)),
    (ValueError, "real and fake of one shape, on one device",
     lambda: gk.wgan_gp_penalty(plain, REAL, FAKE[:2])),
    (ValueError, "real and fake of one shape but for the batch",
     lambda: gk.r1_r2_penalty(plain, REAL, FAKE[:, :1])),
    (ValueError, "one batch size in real, got [4, 3]",
     lambda: gk.wgan_gp_penalty(plain, [REAL, REAL[:3]], [FAKE, FAKE[:3]])),
    (ValueError, "gamma to be finite and not negative, got -1",
     lambda: gk.r1_penalty(plain(X), X, gamma=-1)),
    (ValueError, "weight to be finite and not negative",
     lambda: gk.wgan_gp_penalty(plain, REAL, FAKE, weight=-1.0)),
    (ValueError, "sigma to be finite and positive, got 0",
     lambda: gk.approx_r1_penalty(plain, REAL, sigma=0)),
    (ValueError, 'noise "uniform" or "gaussian", got \'normal\'',
     lambda: gk.dragan_penalty(plain, REAL, noise="normal")),
    (ValueError, "real of more than one number, whose standard deviation",
     lambda: gk.dragan_penalty(plain, torch.ones(1, 1))),
    (ValueError, "real of more than one number, whose standard deviation",
     lambda: gk.dragan_penalty(plain, [REAL[:1], REAL[:1, :1, 0, 0]])),
    (ValueError, "one score a sample, 4, got real_logits of shape (4, 2)",
     lambda: gk.roth_penalty(torch.ones(4, 2), plain(X), X, X)),
    (ValueError, "got a scalar; let the critic return a score for each sample",
     lambda: gk.approx_r1_penalty(lambda x: x.sum(), REAL)),
    (ValueError, "inv_scale to be a tensor of one element, got float",
     lambda: gk.r1_penalty(plain(X), X, inv_scale=0.5)),
    (ValueError, "a loss for each of the 2 lists of parameters, got 1",
     lambda: gk.consensus_penalty((plain(X).sum(),), ([X], [X]))),
    (ValueError, "losses[0] to be a scalar, got shape (4,)",
     lambda: gk.consensus_penalty((plain(X),), ([X],))),
    (ValueError, "losses[0] to depend on parameters that require a gradient",
     lambda: gk.consensus_penalty((plain(X).sum(),), ([REAL],))),
    (TypeError, "parameters[0] to be a list of one player's parameters, got a tensor",
     lambda: gk.consensus_penalty((plain(X).sum(),), (X,))),
    (ValueError, "u to have one vector a weight, 1, got 0",
     lambda: gk.spectral_norm_regularization([X], [], [], n_power_iterations=0)),
    (ValueError, "at least 2 samples, got 1",
     lambda: gk.check_independent_samples(plain, REAL[:1])),
]  # fmt: skip


@pytest.mark.parametrize("error, message, call", REFUSED, ids=[case[1] for case in REFUSED])
def test_refused(error, message, call):
    with pytest.raises(error, match=re.escape(message)):
        call()
