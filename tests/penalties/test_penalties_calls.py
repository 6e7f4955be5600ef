"""How penalties call a critic: settings that are not for it, layers in place, passes that compare
one function, inference mode, and what is no critic at all."""

import functools
import re
import warnings

import numpy as np
import pytest
import torch
from support import penalties
from support.penalties import draw, seeded
from torch import nn

import gankernels as gk
from gankernels import _warnings, regularizers
from gankernels import nn as gnn
from gankernels.nn.utils import spectral_norm as our_hook
from gankernels.nn.utils.parametrizations import spectral_norm as our_parametrization

REAL, FAKE = draw(5, 6), draw(5, 6, seed=2)


def shift(x):
    return x + 0.1


#: Every function that calls a critic, on given samples.
CALLED = {
    **penalties.CALLED,
    "consistency_regularization": lambda D, x, y, *a, **k: regularizers.consistency_regularization(
        D, x, shift, *a, **k
    ),
    "balanced_consistency_regularization": lambda D, x, y, *a, **k: (
        regularizers.balanced_consistency_regularization(D, x, y, shift, *a, **k)
    ),
    "latent_consistency_discriminator": lambda D, x, y, *a, **k: (
        regularizers.latent_consistency_discriminator(
            D, lambda z, *a, **k: 2 * z, x, *a, generator=seeded(), **k
        )
    ),
    "latent_consistency_generator": lambda D, x, y, *a, **k: (
        regularizers.latent_consistency_generator(D, x, *a, generator=seeded(), **k)
    ),
}
TWICE = [name for name in CALLED if name.startswith(("approx", "cons", "bal", "lat"))]


# --- settings that would become arguments of the critic -----------------------------------------


class Anything(nn.Module):
    """Takes whatever comes, and says so."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 1).double()
        self.calls = []

    def forward(self, x, *args, **kwargs):
        self.calls.append((args, kwargs))
        return self.layer(x).sin()


#: Settings of other penalties, and what is meant.
MISNAMED = [
    ("wgan_gp_penalty", "gamma", "weight"),
    ("wgan_gp_penalty", "k", "center"),
    ("wgan_gp_penalty", "lambda_gp", "weight"),
    ("wgan_lp_penalty", "gamma", "weight"),
    ("zero_centered_penalty", "gamma", "weight"),
    ("zero_centered_penalty", "center", None),
    ("max_gradient_penalty", "gamma", "weight"),
    ("max_gradient_penalty", "sample_weight", "weight"),
    ("r1_r2_penalty", "weight", "gamma"),
    ("dragan_penalty", "gamma", "weight"),
    ("dragan_penalty", "center", "k"),
    ("dragan_penalty", "std", "noise"),
    ("approx_r1_penalty", "scale", "sigma"),
    ("approx_r1_penalty", "inv_scale", None),
    ("approx_r2_penalty", "std", "sigma"),
    ("check_independent_samples", "weight", None),
    ("consistency_regularization", "gamma", "weight"),
    ("balanced_consistency_regularization", "weight", "weight_real"),
    ("latent_consistency_discriminator", "sigma", "std"),
    ("latent_consistency_generator", "lambda_", "weight"),
    ("latent_consistency_generator", "scores", None),
    ("wgan_gp_penalty", "wieght", "weight"),
    ("wgan_gp_penalty", "Center", "center"),
    ("r1_r2_penalty", "gama", "gamma"),
    ("r1_r2_penalty", "gp_lambda", "gamma"),
    ("approx_r1_penalty", "sigm", "sigma"),
    ("check_independent_samples", "group", "groups"),
    ("balanced_consistency_regularization", "weights_real", "weight_real"),
]


@pytest.mark.parametrize("name, given, meant", MISNAMED)
def test_misnamed_settings_do_not_go_to_the_critic(name, given, meant):
    """wgan_gp_penalty(..., gamma=1.0) was ten times too large, without a word."""
    D = Anything()
    words = f"did you mean {meant}=" if meant else "its own are"
    with pytest.raises(TypeError, match=f"^{name}: .*{given}=.*{words}.*partial"):
        CALLED[name](D, REAL, FAKE, **{given: 1.0})
    assert not D.calls


def test_a_setting_goes_to_a_critic_that_names_it():
    class Scaled(Anything):
        def forward(self, x, *, gamma):
            return super().forward(x, gamma=gamma)

    D = Scaled()
    CALLED["wgan_gp_penalty"](D, REAL, FAKE, gamma=2.0)
    D = Anything()
    CALLED["wgan_gp_penalty"](functools.partial(D, gamma=2.0), REAL, FAKE)
    assert D.calls == [((), {"gamma": 2.0})]
    CALLED["wgan_gp_penalty"](D, REAL, FAKE, labels=REAL, step=3)
    assert D.calls[1][1]["labels"] is REAL
    assert D.calls[1][1]["step"] == 3


@pytest.mark.parametrize("name", CALLED)
def test_numbers_do_not_become_labels(name):
    D = Anything()
    for value in (10.0, 1, np.float32(10), np.int64(1)):
        shown = re.escape(repr(value))
        with pytest.raises(TypeError, match=f"^{name}: .*got {shown}; did you mean \\w+={shown}"):
            CALLED[name](D, REAL, FAKE, value)
    with pytest.raises(TypeError, match=f"^{name}: .*got a torch.Generator"):
        CALLED[name](D, REAL, FAKE, seeded())
    assert not D.calls
    CALLED[name](D, REAL, FAKE, REAL, "a prompt", None, True)
    assert len(D.calls[0][0]) == 4


def test_a_kind_of_noise_does_not_become_a_label():
    with pytest.raises(TypeError, match=r'^dragan_penalty: .*did you mean noise="gaussian"'):
        gk.dragan_penalty(Anything(), REAL, "gaussian")


@pytest.mark.parametrize("name", CALLED)
def test_what_a_critic_does_not_take_names_the_penalty(name):
    D = nn.Linear(6, 1).double()
    with pytest.raises(TypeError, match=f"^{name}: .*that [DG] takes.*got labels=.*forward"):
        CALLED[name](D, REAL, FAKE, labels=REAL)
    with pytest.raises(TypeError, match=f"^{name}: .*what [DG] takes.*got 1 more"):
        CALLED[name](D, REAL, FAKE, REAL)


def test_a_typo_is_recognized():
    with pytest.raises(TypeError, match=r"wieght=.*; did you mean weight="):
        gk.wgan_gp_penalty(nn.Linear(6, 1).double(), REAL, FAKE, wieght=1.0)


def test_a_module_has_its_own():
    x = REAL.clone().requires_grad_()
    with pytest.raises(TypeError, match=r"^R1Penalty: expected no gamma= in a call, got 3\.0"):
        gnn.R1Penalty()(x.sum(1), x, gamma=3.0)


# --- layers in place -----------------------------------------------------------------------------


def pair():
    """The same critic with a first layer of its own output, and one in place."""
    torch.manual_seed(0)
    rest = nn.Linear(6, 4).double(), nn.Softplus(), nn.Linear(4, 1).double()
    return nn.Sequential(nn.SiLU(), *rest), nn.Sequential(nn.SiLU(inplace=True), *rest)


@pytest.mark.parametrize("name", CALLED)
@pytest.mark.parametrize("listed", [False, True])
def test_a_first_layer_in_place(name, listed):
    """CR was 0.0347 for 0.0280, and WGAN-GP raised; the caller's batch was overwritten."""
    safe, D = pair()
    real, fake = REAL.clone(), FAKE.clone()
    if listed and name.startswith(("cons", "bal", "lat")):
        return
    x, y = ([real], [fake]) if listed else (real, fake)

    def critic(D):
        return (lambda xs, *a: D(xs[0])) if listed else D

    expected = CALLED[name](critic(safe), *(([REAL], [FAKE]) if listed else (REAL, FAKE)))
    found = CALLED[name](critic(D), x, y)
    assert torch.equal(real, REAL)
    assert torch.equal(fake, FAKE)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    if expected.requires_grad:
        for a, b in zip(
            *(torch.autograd.grad(v, [D[1].weight, D[3].weight]) for v in (found, expected)),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_an_augmentation_in_place():
    safe, D = pair()
    real = REAL.clone()
    cr = regularizers.consistency_regularization
    expected = cr(safe, REAL, shift)
    assert torch.allclose(cr(D, real, lambda t: t.add_(0.1)), expected)
    assert torch.equal(real, REAL)
    kept = REAL + 0.1
    cr(D, real, lambda t: kept)
    assert torch.equal(kept, REAL + 0.1)


def test_results_of_a_critic_in_place():
    """The cure in r1_penalty's text."""
    safe, D = pair()
    x = REAL.clone().requires_grad_()
    assert torch.allclose(gk.r1_penalty(D(x.clone()), x), gk.r1_penalty(safe(x), x))


# --- passes compare one function -----------------------------------------------------------------


class Own(nn.Module):
    """Spectral normalization as people write it themselves.

    u and v are buffers, or parameters without a gradient; they are written to, get other memory, or
    give way to other tensors.
    """

    def __init__(self, layer, parameters=False, how="written"):
        super().__init__()
        self.layer, self.how = layer, how
        for name, size in zip("uv", layer.weight.shape, strict=True):
            ones = torch.ones(size, dtype=torch.float64)
            if parameters:
                setattr(self, name, nn.Parameter(ones, requires_grad=False))
            else:
                self.register_buffer(name, ones)

    def write(self, name, value):
        if self.how == "replaced":
            parameter = isinstance(getattr(self, name), nn.Parameter)
            new = nn.Parameter(value, requires_grad=False) if parameter else value
            setattr(self, name, new)
        elif self.how == "data":
            getattr(self, name).data = value
        else:
            getattr(self, name).copy_(value)

    def forward(self, x):
        w, u, v = self.layer.weight, self.u, self.v
        if self.training:
            with torch.no_grad():
                v = nn.functional.normalize(w.T @ u, dim=0)
                u = nn.functional.normalize(w @ v, dim=0)
                self.write("v", v)
                self.write("u", u)
        return x @ (w / (u @ w @ v)).T + self.layer.bias


KINDS = {
    "hook": our_hook,
    "parametrization": our_parametrization,
    "torch's hook": nn.utils.spectral_norm,
    "torch's parametrization": nn.utils.parametrizations.spectral_norm,
    "own": Own,
    "own, data": functools.partial(Own, how="data"),
    "own, replaced": functools.partial(Own, how="replaced"),
    "own, parameters": functools.partial(Own, parameters=True),
    "own, data of parameters": functools.partial(Own, parameters=True, how="data"),
    "own, replaced parameters": functools.partial(Own, parameters=True, how="replaced"),
    "fused": our_hook,
    "fused, step_scoped": our_parametrization,
}


def normalized(kind):
    """Far from where u and v come to rest."""
    torch.manual_seed(0)
    put = KINDS[kind]
    D = nn.Sequential(put(nn.Linear(6, 16).double()), nn.Softplus(), put(nn.Linear(16, 6).double()))
    with torch.no_grad():
        for name, p in D.named_parameters():
            if p.dim() == 2:
                p.copy_(draw(*p.shape, seed=len(name)))
    if "fused" in kind:
        gk.fuse_spectral_norm(D, step_scoped="step" in kind)
    return D


def vectors(D):
    tensors = (*D.buffers(), *D.parameters())
    return [x.clone() for x in tensors if x.dim() == 1 and not x.requires_grad]


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_of_samples_puts_back(kind):
    D = normalized(kind)
    before = vectors(D)
    assert before
    assert gk.check_independent_samples(D, REAL)
    for a, b in zip(vectors(D), before, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("how", ["module", "lambda", "partial", "method"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_passes_see_one_weight(kind, how):
    """Approximate R1 in training mode was 115.7 for 1.17; u and v move as in one pass."""
    other = normalized(kind)
    before = vectors(other)
    other(REAL)
    assert any(not torch.equal(a, b) for a, b in zip(before, vectors(other), strict=True))
    other.eval()  # with the u and v after one pass
    for name in TWICE if how == "module" else ["approx_r1_penalty"]:
        D = normalized(kind)
        wrapped = {
            "module": D,
            "lambda": lambda x, D=D: D(x),
            "partial": functools.partial(lambda D, x: D(x), D),
            "method": D.__call__,
        }[how]
        found, expected = CALLED[name](wrapped, REAL, FAKE), CALLED[name](other, REAL, FAKE)
        assert found.item() == pytest.approx(expected.item(), rel=1e-9)
        for a, b in zip(vectors(D), vectors(other), strict=True):
            torch.testing.assert_close(a, b)
        for a, b in zip(
            *(
                torch.autograd.grad(value, [p for p in model.parameters() if p.dim() == 2])
                for value, model in ((found, D), (expected, other))
            ),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_the_check_of_samples_takes_a_lazy_critic():
    lazy = nn.Sequential(
        nn.LazyLinear(3, dtype=torch.float64), nn.LazyBatchNorm1d(affine=False, dtype=torch.float64)
    )
    with pytest.warns(UserWarning, match="depends on other samples"):
        assert not gk.check_independent_samples(lazy, REAL)


def test_a_trainer_is_looked_through():
    class Trainer:
        def __init__(self):
            self.nets = {"D": normalized("hook")}

        def loss(self):
            return gk.approx_r1_penalty(lambda x: self.nets["D"](x), REAL, generator=seeded())

    trainer, other = Trainer(), normalized("hook")
    other(REAL)
    expected = gk.approx_r1_penalty(other.eval(), REAL, generator=seeded())
    assert trainer.loss().item() == pytest.approx(expected.item(), rel=1e-9)


def test_running_statistics_and_counters_go_on():
    D = nn.Sequential(nn.BatchNorm1d(6).double(), nn.Linear(6, 1).double())
    value = gk.approx_r1_penalty(D, REAL, generator=seeded())
    assert D[0].num_batches_tracked == 2
    value.backward()


def test_an_interrupted_pass_leaves_the_vectors_of_the_first():
    D, other = normalized("hook"), normalized("hook")
    other(REAL)
    calls = []

    def interrupted(x):
        calls.append(1)
        y = D(x)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return y

    with pytest.raises(KeyboardInterrupt):
        gk.approx_r1_penalty(interrupted, REAL)
    for a, b in zip(vectors(D), vectors(other), strict=True):
        assert torch.equal(a, b)


def test_batch_normalization_gets_a_warning():
    D = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    with pytest.warns(UserWarning, match="wgan_gp_penalty: the critic has batch normalization"):
        gk.wgan_gp_penalty(D, REAL, FAKE)


# --- inference mode ------------------------------------------------------------------------------


def labeled():
    """A critic that saves its labels for the backward pass, with a parameter of them."""

    class Labeled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.gain = nn.Linear(6, 1).double(), nn.Linear(6, 1).double()

        def forward(self, x, y=None):
            h = self.layer(x).sin()
            return h if y is None else h * self.gain(y)

    return Labeled()


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", CALLED)
def test_inference_mode_has_the_number_of_no_grad(name, inside):
    """Lightning's validation loops; the batch may come from inside the mode or from outside."""
    D = labeled()
    with torch.no_grad():
        expected = CALLED[name](D, REAL, FAKE, REAL)
    with torch.inference_mode():
        x, y = (REAL.clone(), FAKE.clone()) if inside else (REAL, FAKE)
        found = CALLED[name](D, x, y, x)
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)
    assert not found.requires_grad
    CALLED[name](D, REAL, FAKE, REAL)  # and training goes on


def test_inference_mode_of_modules_and_lists():
    D = labeled()
    with torch.no_grad():
        expected = gnn.R1R2Penalty()(lambda xs: D(xs[0]), [REAL], [FAKE])
    with torch.inference_mode():
        found = gnn.R1R2Penalty()(lambda xs: D(xs[0]), [REAL], [FAKE])
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_inference_mode_in_words():
    D = labeled()
    with torch.inference_mode():
        x = REAL.clone()
        for call in (
            lambda: gk.r1_penalty(D(x), x),
            lambda: gk.r2_penalty(D(REAL), REAL),
            lambda: gk.roth_penalty(D(x), D(x), x, x),
            lambda: gnn.R1Penalty()(D(x), x),
            lambda: gk.consensus_penalty((D(x).sum(),), (D.parameters(),)),
        ):
            with pytest.raises(ValueError, match=r"torch\.inference_mode\(\)"):
                call()
        made_inside = labeled()
    with pytest.raises(RuntimeError, match=r"wgan_gp_penalty: .*torch\.inference_mode\(\), which"):
        gk.wgan_gp_penalty(made_inside, REAL, FAKE)


def test_a_graph_from_outside_is_differentiated_in_inference_mode():
    D, x = labeled(), REAL.clone().requires_grad_()
    logits = D(x)
    expected = gk.r1_penalty(D(x), x)
    with torch.inference_mode():
        assert gk.r1_penalty(logits, x).item() == pytest.approx(expected.item(), rel=1e-12)


# --- what is no critic, no list, no number -------------------------------------------------------

ODD = {
    "sparse": torch.eye(5).to_sparse(),
    "csr": torch.eye(5).to_sparse_csr(),
    "nested": torch.nested.nested_tensor([torch.ones(3), torch.ones(2)]),
    "jagged": torch.nested.nested_tensor([torch.ones(3), torch.ones(2)], layout=torch.jagged),
    "mkldnn": torch.ones(5, 6).to_mkldnn(),
    "float8": torch.ones(5, 6).to(torch.float8_e4m3fn),
    "integers": torch.ones(5, 6, dtype=torch.int64),
    "None": None,
    "text": "text",
    "dict": {"x": torch.ones(5, 6)},
}
X = REAL.clone().requires_grad_()
D = nn.Linear(6, 1).double()


def identity(x):
    return x


#: Calls with something else in the place of samples, scores or weights.
PLACES = {
    "wgan_gp_penalty": lambda b: gk.wgan_gp_penalty(D, b, REAL),
    "r1_r2_penalty": lambda b: gk.r1_r2_penalty(D, REAL, b),
    "dragan_penalty": lambda b: gk.dragan_penalty(D, b),
    "r1_penalty": lambda b: gk.r1_penalty(b, X),
    "r2_penalty": lambda b: gk.r2_penalty(D(X), b),
    "roth_penalty": lambda b: gk.roth_penalty(b, D(X), X, X),
    "approx_r1_penalty": lambda b: gk.approx_r1_penalty(lambda x: b, REAL),
    "approx_r2_penalty": lambda b: gk.approx_r2_penalty(D, b),
    "check_independent_samples": lambda b: gk.check_independent_samples(D, b),
    "spectral_norm_regularization": lambda b: gk.spectral_norm_regularization(
        [b], [torch.ones(5)], [torch.ones(6)]
    ),
    "spectral_norm_regularization: ": lambda b: gk.spectral_norm_regularization(
        [torch.ones(5, 6)], [b], [torch.ones(6)]
    ),
    "gradient_penalty": lambda b: gk.gradient_penalty(b),
    "consistency_regularization": lambda b: regularizers.consistency_regularization(D, b, shift),
    "balanced_consistency_regularization": lambda b: (
        regularizers.balanced_consistency_regularization(identity, REAL, REAL, lambda x: b)
    ),
    "latent_consistency_generator": lambda b: regularizers.latent_consistency_generator(D, b),
    "latent_consistency_discriminator": lambda b: regularizers.latent_consistency_discriminator(
        identity, lambda z: b, REAL
    ),
    "LeCam": lambda b: regularizers.LeCam()(b, REAL),
    "drift_penalty": lambda b: regularizers.drift_penalty(b),
    "hinge": lambda b: gk.losses.hinge.discriminator(b, REAL),
    "relativistic": lambda b: gk.losses.relativistic.generator(REAL, b),
    "clip_weights_": lambda b: gk.clip_weights_([b]),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", PLACES)
def test_tensors_of_every_kind_are_refused_by_name(place, odd):
    with pytest.raises((TypeError, ValueError), match=f"^{place.strip(': ')}: expected "):
        PLACES[place](ODD[odd])


@pytest.mark.parametrize(
    "place",
    [p for p in PLACES if not p.startswith(("spec", "clip", "roth", "latent_consistency_g"))],
)
def test_iterators_are_not_lists(place):
    with pytest.raises((TypeError, ValueError), match=f"^{place}: .*(list\\(|a list of it)"):
        PLACES[place](x for x in [REAL])


def refused(name, words, call, error=TypeError):
    return pytest.param(error, f"{name}: .*{words}", call, id=f"{name}, {words}")


SCORES = D(X)
WEIGHTS = [torch.ones(5, 6)], [torch.ones(5)], [torch.ones(6)]


@pytest.mark.parametrize(
    "error, message, call",
    [
        *(
            refused(name, "to be callable, got Tensor; pass [DG] itself, not what it returns",
                    lambda name=name: CALLED[name](SCORES, REAL, FAKE))
            for name in CALLED
        ),
        refused("latent_consistency_discriminator", "expected G to be callable, got Tensor",
                lambda: regularizers.latent_consistency_discriminator(D, REAL, REAL)),
        refused("consistency_regularization", "expected augment to be callable, got Tensor",
                lambda: regularizers.consistency_regularization(D, REAL, REAL)),
        refused("balanced_consistency_regularization", "expected augment to be callable, got None",
                lambda: regularizers.balanced_consistency_regularization(D, REAL, REAL, None)),
        refused("consensus_penalty", "lists of parameters, got generator",
                lambda: gk.consensus_penalty((x for x in [SCORES.sum()]), (D.parameters(),)),
                ValueError),
        refused("consensus_penalty", "one player's parameters, got Linear",
                lambda: gk.consensus_penalty((SCORES.sum(),), (D,))),
        refused("consensus_penalty", "one player's parameters, got one with int",
                lambda: gk.consensus_penalty((SCORES.sum(),), ([1],))),
        refused("consensus_penalty", "lists of them, one a player, got NoneType",
                lambda: gk.consensus_penalty((SCORES.sum(),), None)),
        refused("spectral_norm_regularization", "n_power_iterations to be an integer, got bool",
                lambda: gk.spectral_norm_regularization(*WEIGHTS, n_power_iterations=True)),
        refused("spectral_norm_regularization", "from 0 to 10000, got 2147483648",
                lambda: gk.spectral_norm_regularization(*WEIGHTS, n_power_iterations=2**31),
                ValueError),
        refused("spectral_norm_regularization", "from 0 to 10000, got -1",
                lambda: gk.spectral_norm_regularization(*WEIGHTS, n_power_iterations=-1),
                ValueError),
        refused("spectral_norm_regularization", "eps to be finite and not negative, got nan",
                lambda: gk.spectral_norm_regularization(*WEIGHTS, eps=float("nan")), ValueError),
        refused("spectral_norm_regularization", r"u\[0\] of shape \(5,\)",
                lambda: gk.spectral_norm_regularization(WEIGHTS[0], WEIGHTS[2], WEIGHTS[2]),
                ValueError),
        refused("spectral_norm_regularization", r"got generator; pass list\(weights\)",
                lambda: gk.spectral_norm_regularization(D.parameters(), *WEIGHTS[1:])),
        refused("gradient_penalty", "return_norms to be True or False, got str",
                lambda: gk.gradient_penalty(REAL, return_norms="no")),
        refused("gradient_penalty", "weight to be finite",
                lambda: gk.gradient_penalty(REAL, weight=10**400), ValueError),
        refused("r1_penalty", "gamma to be finite",
                lambda: gk.r1_penalty(SCORES, X, gamma=10**400), ValueError),
        refused("wgan_gp_penalty", "generator to be a torch.Generator or None, got int",
                lambda: gk.wgan_gp_penalty(D, REAL, FAKE, generator=0)),
        refused("approx_r1_penalty", "generator to be a torch.Generator or None, got Linear",
                lambda: gk.approx_r1_penalty(D, REAL, generator=D)),
        refused("latent_consistency_generator", "generator to be a torch.Generator .*, got str",
                lambda: regularizers.latent_consistency_generator(D, REAL, generator="0")),
        refused("r1_penalty", "real of one dtype and device, got float64 .* and float32",
                lambda: gk.r1_penalty(SCORES, [X, X.detach().float().requires_grad_()]),
                ValueError),
        refused("LazyRegularizer", "number of calls to be an integer, got str",
                lambda: gnn.LazyRegularizer(gnn.R1Penalty()).load_state_dict(
                    {"_extra_state": "3"})),
    ],
)  # fmt: skip
def test_refused_by_name(error, message, call):
    with pytest.raises(error, match=re.compile(message)):
        call()


def by_statistics():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()


@pytest.mark.parametrize(
    "penalty",
    [
        lambda D, x: gk.r1_penalty(lambda z: D(z), x),
        lambda D, x: gk.r1_penalty(functools.partial(D), x, method="difference"),
        lambda D, x: gk.r1_penalty(D(x), x),
        lambda D, x: gk.r1_penalty(D(x), x, D=D, method="difference"),
        lambda D, x: gk.wgan_gp_penalty(lambda z: D(z), x, FAKE),
    ],
)
def test_batch_normalization_is_found_behind_functions_and_in_graphs(penalty):
    x = REAL.clone().requires_grad_()
    with pytest.warns(UserWarning, match="batch normalization in training mode"):
        penalty(by_statistics(), x)
    _warnings._warned.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        penalty(by_statistics().eval(), x)


def test_words_of_mistakes():
    x = REAL.clone().requires_grad_()
    scores = x.sum(1)
    with pytest.raises(TypeError, match=r"got weight=; did you mean gamma=\?$"):
        gk.r1_penalty(scores, x, weight=5.0)
    with pytest.raises(TypeError, match=r"got ndarray; pass torch\.from_numpy\(real\)"):
        gk.r1_penalty(lambda z: z.sum(1), REAL.numpy())
    with pytest.raises(TypeError, match=r"did you mean gamma=\? To have it passed on to D"):
        gk.r1_penalty(lambda z: z.sum(1), REAL, gama=1.0)
