"""The penalties as modules: their arguments, their state, and lazy regularization."""

import copy
import inspect
import io
import pickle

import pytest
import torch
from support.tensors import assert_near, drawer
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from gankernels import nn as gnn
from gankernels import penalties
from gankernels.nn import (
    LazyRegularizer,
    OrthogonalRegularization,
    R1Penalty,
    SpectralNormRegularization,
)

#: How norms are found.
BY_NOISE = {"method": "noise", "sigma": 0.1, "heads": "mean", "allow_unused": True}
BY_DIFFERENCE = {"method": "difference", "sigma": 0.1, "allow_unused": True}

#: Every module around a function, with hyper-parameters other than the defaults.
MODULES = {
    "R1Penalty": ("r1_penalty", {"gamma": 3.0, "center": 0.3, **BY_NOISE}),
    "R2Penalty": ("r2_penalty", {"gamma": 3.0, "center": 0.3, **BY_DIFFERENCE}),
    "R1R2Penalty": ("r1_r2_penalty", {"gamma": 3.0, **BY_NOISE}),
    "RothPenalty": ("roth_penalty", {"gamma": 0.5}),
    "WGANGPPenalty": ("wgan_gp_penalty", {"weight": 2.0, "center": 0.3, **BY_NOISE}),
    "WGANLPPenalty": ("wgan_lp_penalty", {"weight": 2.0, "center": 0.3, **BY_DIFFERENCE}),
    "ZeroCenteredPenalty": ("zero_centered_penalty", {"weight": 2.0, **BY_NOISE}),
    "MaxGradientPenalty": ("max_gradient_penalty", {"weight": 2.0, **BY_DIFFERENCE}),
    "DRAGANPenalty": (
        "dragan_penalty",
        {"weight": 2.0, "k": 0.3, "noise": "gaussian", "scale": 0.2, **BY_DIFFERENCE},
    ),
    "ApproxR1Penalty": (
        "approx_r1_penalty",
        {"sigma": 0.1, "weight": 7.0, "gamma": None, "heads": "mean"},
    ),
    "ApproxR2Penalty": (
        "approx_r2_penalty",
        {"sigma": 0.1, "weight": 7.0, "gamma": 0.2, "heads": "mean"},
    ),
    "ConsensusPenalty": ("consensus_penalty", {"gamma": 3.0}),
}

#: Keywords that go with a call.
OF_CALLS = {
    *("D", "first", "sample_weight", "reduction", "return_raw"),
    *("generator", "inv_scale", "groups"),
}


def critic(seed=0):
    """With gradients above 1, so that the one-sided penalty has something to say."""
    torch.manual_seed(seed)
    D = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    with torch.no_grad():
        D[2].weight.mul_(6)
    return D


def call(penalty, name, D, **kwargs):
    """The penalty, by a function or a module alike, on the arguments that it takes."""
    draw = drawer(1)
    real, fake = draw(6, 5).requires_grad_(), draw(6, 5).requires_grad_()
    generator = {"generator": torch.Generator().manual_seed(2)}
    if name in ("R1Penalty", "R2Penalty"):
        return penalty(D(real), real, D=D, **generator, **kwargs)
    if name == "RothPenalty":
        return penalty(D(real), D(fake), real, fake, **kwargs)
    if name == "ConsensusPenalty":
        G = nn.Linear(5, 5)
        with torch.no_grad():
            G.weight.copy_(drawer(3)(5, 5))
            G.bias.zero_()
        losses = D(G(real.detach())).mean() - D(fake).mean(), -D(G(real.detach())).mean()
        return penalty(losses, (D.parameters(), G.parameters()), **kwargs)
    if name in ("DRAGANPenalty", "ApproxR1Penalty", "ApproxR2Penalty"):
        return penalty(D, real, **generator, **kwargs)
    return penalty(D, real, fake, **generator, **kwargs)


def function_of(name):
    return getattr(penalties, MODULES[name][0])


def gradients(value, D):
    return torch.autograd.grad(value, list(D.parameters()), allow_unused=True)


# --- around a function ---------------------------------------------------------------------------


def test_every_module_is_in_the_table():
    assert set(gnn.__all__) == {
        "GradientNormalizer",
        "LazyRegularizer",
        "OrthogonalRegularization",
        "SpectralNormRegularization",
        "utils",
        *MODULES,
    }
    assert {function for function, _ in MODULES.values()} <= set(penalties.__all__)


@pytest.mark.parametrize("name", MODULES)
def test_defaults_are_the_functions(name):
    own = inspect.signature(getattr(gnn, name)).parameters
    theirs = inspect.signature(function_of(name)).parameters
    expected = {
        p.name: p.default
        for p in theirs.values()
        if p.kind is p.KEYWORD_ONLY and p.name not in OF_CALLS
    }
    assert {p.name: p.default for p in own.values()} == expected
    assert set(expected) - set(MODULES[name][1]) <= {"scores", "heads"}
    assert set(MODULES[name][1]) <= set(expected)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("given", [True, False])
def test_equals_the_function(name, given):
    hyper = MODULES[name][1] if given else {}
    D = critic()
    got = call(getattr(gnn, name)(**hyper), name, D)
    expected = call(function_of(name), name, D, **hyper)
    assert torch.equal(got, expected)
    assert got > 0
    if given:
        assert not torch.equal(got, call(function_of(name), name, D))
    for a, b in zip(gradients(got, D), gradients(expected, D), strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_r1_against_float64():
    draw = drawer(4, torch.float64)
    x, w = draw(6, 5).requires_grad_(), draw(5).requires_grad_()
    got = R1Penalty(3.0)(torch.sin(x @ w), x)
    slope = torch.cos(x @ w)[:, None] * w
    assert_near(got, 1.5 * slope.square().sum(1).mean())


@pytest.mark.parametrize("name", MODULES)
def test_hyperparameters_may_be_reassigned(name):
    changed = MODULES[name][1]
    module = getattr(gnn, name)()
    for key, value in changed.items():
        setattr(module, key, value)
    D = critic()
    assert torch.equal(call(module, name, D), call(function_of(name), name, D, **changed))


def test_a_bad_reassigned_value_is_refused_by_the_function():
    module = R1Penalty()
    module.gamma = -1.0
    with pytest.raises(ValueError, match="r1_penalty: expected gamma to be finite and not neg"):
        call(module, "R1Penalty", critic())


@pytest.mark.parametrize("name", MODULES)
def test_repr(name):
    hyper = MODULES[name][1]
    shown = ", ".join(f"{key}={value!r}" for key, value in hyper.items())
    assert repr(getattr(gnn, name)(**hyper)) == f"{name}({shown})"


@pytest.mark.parametrize("name", MODULES)
def test_copies_and_pickles(name):
    module = getattr(gnn, name)(**MODULES[name][1])
    D = critic()
    expected = call(module, name, D)
    for other in (copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module))):
        assert repr(other) == repr(module)
        assert torch.equal(call(other, name, D), expected)
    assert not module.state_dict()
    module.load_state_dict({})


def test_all_arguments_go_to_the_critic():
    class Conditional(nn.Module):
        def forward(self, x, labels, *, scale):
            return (x.square().sum(1) * labels * scale)[:, None]

    draw = drawer(5)
    real, fake, labels = draw(4, 3), draw(4, 3), draw(4)
    generator = torch.Generator().manual_seed(6)
    got = gnn.WGANGPPenalty(2.0)(Conditional(), real, fake, labels, scale=0.7, generator=generator)
    eps = torch.rand(4, generator=generator.manual_seed(6))[:, None]
    grad = 2 * (eps * real + (1 - eps) * fake) * (labels * 0.7)[:, None]
    assert_near(got, 2 * (grad.double().norm(dim=1) - 1).square().mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_lists(dtype):
    draw = drawer(7, dtype)
    x = [draw(4, 3).requires_grad_(), draw(4, 2).requires_grad_()]
    weights = draw(3).requires_grad_(), draw(2).requires_grad_()
    logits = [x[0] @ weights[0], x[1] @ weights[1]]
    got = R1Penalty(3.0)(logits, x)
    assert got.dtype == torch.float32
    assert_near(got, 1.5 * sum(w.detach().double().square().sum() for w in weights))


def test_scaled_losses():
    x, w = drawer(8)(4, 3).requires_grad_(), drawer(9)(3).requires_grad_()
    got = R1Penalty(3.0)(x @ w, x, inv_scale=torch.tensor(1 / 1024))
    assert_near(got, 1.5 * w.double().square().sum())


@pytest.mark.parametrize(
    "name, hyper, error, message",
    [
        ("R1Penalty", {"gamma": -1.0}, ValueError, "r1_penalty: expected gamma to be finite and"),
        ("R1Penalty", {"gamma": None}, TypeError, "r1_penalty: expected gamma to be a number, got"),
        ("R2Penalty", {"gamma": "10"}, TypeError, "r2_penalty: expected gamma to be a number"),
        ("R1R2Penalty", {"gamma": float("nan")}, ValueError, "r1_r2_penalty: expected gamma"),
        ("RothPenalty", {"gamma": True}, TypeError, "roth_penalty: expected gamma to be a number"),
        ("WGANGPPenalty", {"weight": -1.0}, ValueError, "wgan_gp_penalty: expected weight"),
        ("WGANGPPenalty", {"center": -1.0}, ValueError, "wgan_gp_penalty: expected center"),
        ("WGANLPPenalty", {"center": -1.0}, ValueError, "wgan_lp_penalty: expected center"),
        ("ZeroCenteredPenalty", {"weight": -1}, ValueError, "zero_centered_penalty: expected wei"),
        ("DRAGANPenalty", {"k": -1.0}, ValueError, "dragan_penalty: expected k to be finite"),
        ("DRAGANPenalty", {"scale": -1.0}, ValueError, "dragan_penalty: expected scale"),
        ("DRAGANPenalty", {"weight": None}, TypeError, "dragan_penalty: expected weight"),
        ("DRAGANPenalty", {"noise": "pink"}, ValueError, 'expected noise "uniform" or "gaussian"'),
        ("ApproxR1Penalty", {"sigma": 0.0}, ValueError, "approx_r1_penalty: expected sigma to be"),
        ("ApproxR1Penalty", {"weight": None}, TypeError, "approx_r1_penalty: expected weight"),
        ("ApproxR2Penalty", {"gamma": -1.0}, ValueError, "approx_r2_penalty: expected gamma"),
        ("ConsensusPenalty", {"gamma": -1.0}, ValueError, "consensus_penalty: expected gamma"),
    ],
)
def test_bad_hyperparameters(name, hyper, error, message):
    with pytest.raises(error, match=message):
        getattr(gnn, name)(**hyper)


# --- spectral norms ------------------------------------------------------------------------------


class Network(nn.Module):
    """A layer of every kind that counts, one that does not, and shared weights."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 6)
        self.linear = nn.Linear(6, 9, bias=False)
        self.convs = nn.ModuleList(
            [nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv3d(2, 3, 2)]
        )
        self.transposed = nn.ModuleList(
            [nn.ConvTranspose1d(5, 3, 4), nn.ConvTranspose2d(6, 4, 3), nn.ConvTranspose3d(2, 3, 2)]
        )
        self.norm = nn.BatchNorm1d(6)
        self.shared = nn.Linear(6, 9, bias=False)
        self.shared.weight = self.embedding.weight
        self.again = self.linear
        self.to(dtype)

    def matrices(self):
        """Output channels as rows."""
        plain = [self.embedding, self.linear, *self.convs]
        return [layer.weight.flatten(1) for layer in plain] + [
            layer.weight.transpose(0, 1).flatten(1) for layer in self.transposed
        ]


def settled(model, **kwargs):
    """One whose u and v are the singular vectors."""
    module = SpectralNormRegularization(model, **kwargs)
    with torch.no_grad():
        for _ in range(300):
            module()
    return module


def test_value_and_gradient_against_svd():
    model = Network()
    got = settled(model, weight=0.3)()
    expected = 0.15 * sum(torch.linalg.matrix_norm(m, 2) ** 2 for m in model.matrices())
    assert got.dtype == torch.float64
    assert got.shape == ()
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)
    of = [p for name, p in model.named_parameters() if name.endswith("weight") and p.dim() > 1]
    assert len(of) == len(model.matrices())
    for a, b in zip(torch.autograd.grad(got, of), torch.autograd.grad(expected, of), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_transposed_convolutions_have_output_channels_as_rows():
    model = nn.ConvTranspose2d(6, 2, 3).double()
    got = settled(model, weight=2.0)()
    rows_in = torch.linalg.matrix_norm(model.weight.flatten(1), 2) ** 2
    rows_out = torch.linalg.matrix_norm(model.weight.transpose(0, 1).flatten(1), 2) ** 2
    torch.testing.assert_close(got, rows_out, rtol=1e-9, atol=0)
    assert (rows_in - rows_out).abs() > 1e-3  # the other reading is another number
    module = SpectralNormRegularization(model)
    assert module.u_0.shape == (2,)
    assert module.v_0.shape == (54,)


def test_first_value_is_useful():
    """u and v are warmed up: the first value is near, in evaluation mode too."""
    model = Network()
    expected = 0.5 * sum(torch.linalg.matrix_norm(m, 2) ** 2 for m in model.matrices())
    module = SpectralNormRegularization(model, weight=1.0).eval()
    torch.testing.assert_close(module(), expected, rtol=0.05, atol=0)


def test_state_is_its_own():
    model = Network()
    module = SpectralNormRegularization(model)
    assert not list(module.parameters())
    assert list(module.modules()) == [module]
    assert len(model.state_dict()) == len(Network().state_dict())
    assert list(module.state_dict()) == [f"{x}_{i}" for i in range(8) for x in "uv"]
    for i, m in enumerate(model.matrices()):
        for name, size in (("u", m.shape[0]), ("v", m.shape[1])):
            vector = module.get_buffer(f"{name}_{i}")
            assert vector.shape == (size,)
            assert vector.dtype == torch.float64
            assert vector.norm().item() == pytest.approx(1)


def vectors(module):
    return [x.clone() for x in module.state_dict().values()]


def moved(module, before):
    return [
        not torch.equal(a, b) for a, b in zip(before, module.state_dict().values(), strict=True)
    ]


def test_vectors_move_in_training_mode_only():
    model = nn.Sequential(nn.Linear(30, 20), nn.Conv2d(8, 9, 3))
    module = SpectralNormRegularization(model)
    before = vectors(module)
    module.eval()
    assert torch.equal(module(), module())
    model.train()
    module()
    assert not any(moved(module, before))
    module.train()
    model.eval()
    module()
    assert all(moved(module, before))
    before = vectors(module)
    with torch.no_grad():
        module()
    assert all(moved(module, before))


def test_iterations():
    model = nn.Linear(30, 20).double()
    once, thrice = SpectralNormRegularization(model), SpectralNormRegularization(model, 0.01, 3)
    thrice.load_state_dict(once.state_dict())
    for _ in range(3):
        once()
    thrice()
    for a, b in zip(vectors(once), vectors(thrice), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    once.n_power_iterations = 3
    assert_near(once(), thrice().detach())


@pytest.mark.parametrize("training", [True, False])
def test_gradient_is_that_of_the_call(training):
    """Though later calls move u and v before the backward pass."""
    model = nn.Linear(30, 20).double()
    module = SpectralNormRegularization(model, weight=0.7).train(training)
    value = module()
    u, v = module.u_0.clone(), module.v_0.clone()
    module.train()
    for _ in range(3):
        module()
    value.backward()
    sigma = u @ model.weight.detach() @ v
    assert_near(model.weight.grad, 0.7 * sigma * torch.outer(u, v))


def test_weight_is_reassigned():
    module = SpectralNormRegularization(nn.Linear(4, 3)).eval()
    value = module()
    module.weight = 0.05
    torch.testing.assert_close(module(), 5 * value)
    assert repr(module) == (
        "SpectralNormRegularization(weights=1, weight=0.05, n_power_iterations=1)"
    )


def test_weights_are_read_anew_in_every_call():
    model = nn.Linear(4, 3)
    module = SpectralNormRegularization(model, weight=1.0)
    module()
    model.weight = nn.Parameter(3 * torch.eye(3, 4))
    for _ in range(50):
        value = module()
    assert value.item() == pytest.approx(4.5, rel=1e-4)
    value.backward()
    assert model.weight.grad.any()


def test_parametrized_weights_count_as_computed():
    model = weight_norm(nn.Linear(6, 5).double())
    got = settled(model, weight=1.0)()
    expected = 0.5 * torch.linalg.matrix_norm(model.weight, 2) ** 2
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)
    got.backward()
    assert all(p.grad is not None for p in model.parametrizations.weight.parameters())
    parametrize.remove_parametrizations(model, "weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    model = Network(dtype)
    got = settled(model, weight=0.3)()
    expected = 0.15 * sum(torch.linalg.matrix_norm(m.double(), 2) ** 2 for m in model.matrices())
    assert got.dtype == torch.float32
    assert_near(got, expected.detach(), dtype, factor=4)
    got.backward()
    assert model.linear.weight.grad.dtype == dtype


def test_mixed_dtypes():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4).double(), nn.Linear(4, 3))
    got = settled(model, weight=1.0)()
    expected = 0.5 * sum(torch.linalg.matrix_norm(m.weight.double(), 2) ** 2 for m in model)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


def test_vectors_come_from_the_generator():
    model = nn.Linear(30, 20)
    before = torch.get_rng_state()
    a, b, c = (
        SpectralNormRegularization(model, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(a.v_0, b.v_0)
    assert not torch.equal(a.v_0, c.v_0)


def test_state_dict_continues():
    model = nn.Sequential(nn.Linear(30, 20), nn.ConvTranspose2d(8, 9, 3))
    module = SpectralNormRegularization(model)
    module()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = SpectralNormRegularization(model)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(), module())


def test_copied_together_with_the_model():
    model = nn.Linear(30, 20)
    module = SpectralNormRegularization(model)
    for copier in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        other_model, other = copier((model, module))
        other().backward()
        assert other_model.weight.grad.any()
        assert model.weight.grad is None


def test_training_shrinks_the_spectral_norm():
    model = nn.Linear(30, 20)
    module = SpectralNormRegularization(model, weight=0.5)
    before = torch.linalg.matrix_norm(model.weight, 2).item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        module().backward()
        optimizer.step()
    assert torch.linalg.matrix_norm(model.weight, 2).item() < 0.7 * before


def test_a_module_left_behind_is_refused():
    model = nn.Linear(4, 3)
    module = SpectralNormRegularization(model)
    before = vectors(module)
    model.double()
    with pytest.raises(ValueError, match=r"expected u_0 of torch.float64 .* by its to\(\)"):
        module()
    assert not any(moved(module, before))
    module.double()
    assert module().dtype == torch.float64


def hooked():
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 3)))


@pytest.mark.parametrize(
    "model, arguments, error, message",
    [
        (lambda: [nn.Linear(3, 3)], {}, TypeError, "expected model to be a torch.nn.Module, got l"),
        (nn.Tanh, {}, ValueError, "expected a model with linear, .* layers, got Tanh without"),
        (lambda: nn.Linear(0, 3), {}, ValueError, "expected a model with linear, convolution or"),
        (lambda: nn.LazyLinear(3), {}, ValueError, "initialized weights, got the lazy model.wei"),
        (hooked, {}, ValueError, "expected 0.weight to be a parameter or parametrized, got one"),
        (
            lambda: nn.Linear(3, 3).to(torch.complex64),
            {},
            TypeError,
            "expected model.weight of a floating-point dtype, got torch.complex64",
        ),
        (lambda: nn.Linear(3, 3), {"weight": -1.0}, ValueError, "expected weight to be finite and"),
        (lambda: nn.Linear(3, 3), {"weight": None}, TypeError, "expected weight to be a number"),
        (
            lambda: nn.Linear(3, 3),
            {"n_power_iterations": 0},
            ValueError,
            "expected n_power_iterations to be at least 1, got 0",
        ),
        (
            lambda: nn.Linear(3, 3),
            {"n_power_iterations": 1.0},
            TypeError,
            "expected n_power_iterations to be an integer, got float",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element", "ignore:Complex modules")
def test_spectral_errors(model, arguments, error, message):
    with pytest.raises(error, match=f"^SpectralNormRegularization: .*{message}"):
        SpectralNormRegularization(model(), **arguments)


# --- orthogonal weights --------------------------------------------------------------------------


def orthogonal(matrices, diagonal=False):
    """Pair by pair of rows."""
    total = 0.0
    for m in matrices:
        for i, row in enumerate(m):
            for j, other in enumerate(m):
                if i != j or diagonal:
                    total = total + (row @ other - float(i == j)) ** 2
    return total


@pytest.mark.parametrize("diagonal", [False, True])
def test_orthogonal_value_and_gradient(diagonal):
    model = Network()
    module = OrthogonalRegularization(model, 0.3, diagonal)
    got, expected = module(), 0.3 * orthogonal(model.matrices(), diagonal)
    assert got.dtype == torch.float64
    assert got.shape == ()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    assert torch.equal(
        got,
        penalties.orthogonal_regularization(model.matrices(), weight=0.3, diagonal=diagonal),
    )
    of = [p for name, p in model.named_parameters() if name.endswith("weight") and p.dim() > 1]
    assert len(of) == len(model.matrices())
    for a, b in zip(torch.autograd.grad(got, of), torch.autograd.grad(expected, of), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_orthogonal_of_orthogonal_rows():
    w = 3 * torch.linalg.qr(drawer(4)(6, 4).double()).Q.T
    assert penalties.orthogonal_regularization([w], weight=1.0) < 1e-24
    with_lengths = penalties.orthogonal_regularization([w], weight=1.0, diagonal=True)
    assert with_lengths.item() == pytest.approx(4 * (9 - 1) ** 2)


def test_orthogonal_numerical_derivatives():
    weights = [drawer(i)(3, 2, 2).double().requires_grad_() for i in range(2)]
    for diagonal in (False, True):

        def value(*w, diagonal=diagonal):
            return penalties.orthogonal_regularization(w, weight=0.5, diagonal=diagonal)

        assert torch.autograd.gradcheck(value, weights)
        assert torch.autograd.gradgradcheck(value, weights)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_orthogonal_dtypes(dtype):
    w = (300 * drawer(5)(3, 4)).to(dtype)  # whose products overflow float16
    got = penalties.orthogonal_regularization([w])
    assert got.dtype == torch.float32
    expected = 1e-4 * orthogonal([w.double()])
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    with torch.autocast(w.device.type, torch.bfloat16):
        assert torch.equal(penalties.orthogonal_regularization([w]), got)


def test_orthogonal_of_several_dtypes_and_as_computed():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3).double())
    nn.utils.parametrizations.spectral_norm(model[0])
    with torch.no_grad():
        value = OrthogonalRegularization(model.eval(), weight=1.0)()
        matrices = [layer.weight.double() for layer in model]
    assert value.item() == pytest.approx(orthogonal(matrices).item(), rel=1e-5)


def test_orthogonal_module():
    model = Network()
    module = OrthogonalRegularization(model, skip=[model.linear, model.transposed[0]])
    kept = [m for i, m in enumerate(model.matrices()) if i not in (1, 5)]
    torch.testing.assert_close(module(), 1e-4 * orthogonal(kept), rtol=1e-12, atol=0)
    assert not list(module.parameters())
    assert not module.state_dict()
    assert repr(module) == "OrthogonalRegularization(weights=6, weight=0.0001)"
    copied, other = copy.deepcopy((model, module))
    with torch.no_grad():
        copied.convs[0].weight.mul_(2)
    assert other() > module()


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda m: OrthogonalRegularization([m]),
            TypeError,
            "model to be a torch.nn.Module, got l",
        ),
        (lambda m: OrthogonalRegularization(nn.Tanh()), ValueError, "a model with linear"),
        (lambda m: OrthogonalRegularization(m, -1.0), ValueError, "weight to be finite and not"),
        (lambda m: OrthogonalRegularization(m, 1.0, 1), TypeError, "diagonal to be True or False"),
        (lambda m: OrthogonalRegularization(m, skip=m), TypeError, "skip to be a list of layers"),
        (lambda m: OrthogonalRegularization(m, skip=["0"]), TypeError, "skip to be .* with str"),
        (
            lambda m: OrthogonalRegularization(m, skip=[nn.Linear(3, 3)]),
            ValueError,
            "skip to be linear, .* of the model, got Linear that is none",
        ),
        (
            lambda m: penalties.orthogonal_regularization(m.weight),
            TypeError,
            "weights to be a list of tensors, got Parameter",
        ),
        (
            lambda m: penalties.orthogonal_regularization(list(m.parameters())),
            ValueError,
            r"weights\[1\] of at least two dimensions, with elements, got shape \(3,\); leave",
        ),
        (
            lambda m: penalties.orthogonal_regularization([m.weight.int()]),
            TypeError,
            r"weights\[0\] of a floating-point dtype",
        ),
    ],
    ids=range(10),
)
def test_orthogonal_errors(call, error, message):
    op = "(OrthogonalRegularization|orthogonal_regularization)"
    with pytest.raises(error, match=f"^{op}: expected {message}"):
        call(nn.Linear(3, 3))


# --- lazy regularization -------------------------------------------------------------------------


class Counted(nn.Module):
    """A penalty that counts its calls."""

    def __init__(self, value=0.25, dtype=torch.float32):
        super().__init__()
        self.value = torch.tensor(value, dtype=dtype, requires_grad=True)
        self.calls = 0

    def forward(self, factor=1.0):
        self.calls += 1
        return self.value * factor


@pytest.mark.parametrize("interval", [1, 4, 16])
def test_the_sum_over_the_steps_is_that_of_every_step(interval):
    penalty = Counted()
    lazy = LazyRegularizer(penalty, interval)
    values = [lazy() for _ in range(48)]
    assert penalty.calls == 48 // interval
    assert sum(values).item() == 48 * 0.25
    due = [i for i, value in enumerate(values) if value != 0]
    assert due == list(range(0, 48, interval))


def test_sixteen_steps_of_r1():
    D, x = critic(), drawer(10)(6, 5)
    r1, lazy = R1Penalty(3.0), LazyRegularizer(R1Penalty(3.0))

    def sixteen(penalty):
        D.zero_grad()
        for _ in range(16):
            points = x.clone().requires_grad_()
            logits = D(points)
            (logits.sum() + penalty(logits, points)).backward()
        return [p.grad.clone() for p in D.parameters()]

    for a, b in zip(sixteen(lazy), sixteen(r1), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    plain = sixteen(lambda logits, points: torch.zeros(()))
    assert (plain[0] - sixteen(r1)[0]).abs().max() > 1e-2  # the penalty is seen


def test_due_says_what_the_next_call_does():
    penalty = Counted()
    lazy = LazyRegularizer(penalty, 3)
    for i in range(10):
        calls = penalty.calls
        assert lazy.due is (i % 3 == 0)
        assert lazy.due is (i % 3 == 0)  # asking changes nothing
        lazy()
        assert penalty.calls - calls == (i % 3 == 0)


def test_without_due_the_arguments_are_not_looked_at():
    D, x = critic(), drawer(11)(6, 5)
    lazy = LazyRegularizer(R1Penalty(), 2)
    for i in range(4):
        points = x.clone().requires_grad_(lazy.due)
        value = lazy(D(points), points) if lazy.due else lazy()
        assert value.requires_grad is (i % 2 == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_are_like_the_penalty(dtype):
    lazy = LazyRegularizer(Counted(dtype=dtype), 4)
    first, second = lazy(), lazy()
    assert (second.dtype, second.device, second.shape) == (first.dtype, first.device, first.shape)
    second += 1  # each one its own
    assert lazy() == 0


def test_arguments_are_passed_on():
    lazy = LazyRegularizer(Counted(), 4)
    assert lazy(factor=3.0).item() == 4 * 0.25 * 3
    lazy = LazyRegularizer(Counted(), 4)
    assert lazy(2.0).item() == 4 * 0.25 * 2


def test_functions_are_penalties_too():
    x, w = drawer(12)(6, 5).requires_grad_(), drawer(13)(5).requires_grad_()
    lazy = LazyRegularizer(penalties.r1_penalty, 4)
    assert_near(lazy(x @ w, x, gamma=3.0), 4 * 1.5 * w.double().square().sum())


def test_a_call_that_raises_does_not_count():
    lazy = LazyRegularizer(R1Penalty(), 4)
    x = drawer(14)(6, 5)
    for _ in range(2):
        with pytest.raises(ValueError, match="r1_penalty: expected real to require a gradient"):
            lazy(critic()(x), x)
        assert lazy.due


def test_the_counter_is_in_the_state_dict():
    lazy = LazyRegularizer(SpectralNormRegularization(nn.Linear(4, 3)), 4)
    for _ in range(6):
        lazy()
    file = io.BytesIO()
    torch.save(lazy.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["_extra_state"] == 6
    assert type(state["_extra_state"]) is int
    assert "penalty.u_0" in state
    other = LazyRegularizer(SpectralNormRegularization(nn.Linear(4, 3)), 4)
    other.load_state_dict(state)
    assert [other().item() != 0 for _ in range(6)] == [False, False, True, False, False, False]
    for twin in (copy.deepcopy(lazy), pickle.loads(pickle.dumps(lazy))):
        assert [twin().item() != 0 for _ in range(3)] == [False, False, True]
    assert [lazy().item() != 0 for _ in range(3)] == [False, False, True]


def test_nested_in_a_model_the_counter_is_kept():
    model = nn.ModuleDict({"r1": LazyRegularizer(Counted(), 4)})
    model["r1"]()
    assert model.state_dict()["r1._extra_state"] == 1


def test_mode_reaches_the_penalty():
    lazy = LazyRegularizer(SpectralNormRegularization(nn.Linear(30, 20)), 1).eval()
    before = vectors(lazy.penalty)
    lazy()
    assert not any(moved(lazy.penalty, before))


def test_interval_may_be_reassigned():
    penalty = Counted()
    lazy = LazyRegularizer(penalty, 16)
    lazy()
    lazy.interval = 1
    assert lazy().item() == 0.25
    assert repr(LazyRegularizer(R1Penalty(), 8)) == (
        "LazyRegularizer(\n  interval=8\n  (penalty): R1Penalty(gamma=10.0, center=0.0)\n)"
    )


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: LazyRegularizer(LazyRegularizer(R1Penalty())),
            TypeError,
            "expected a penalty that is computed in every call, got one with a LazyRegularizer",
        ),
        (
            lambda: LazyRegularizer(nn.Sequential(LazyRegularizer(R1Penalty()))),
            TypeError,
            "got one with a LazyRegularizer, whose interval would be multiplied twice",
        ),
        (lambda: LazyRegularizer(10.0), TypeError, "expected penalty to be callable, got float"),
        (lambda: LazyRegularizer(R1Penalty(), 0), ValueError, "interval to be at least 1, got 0"),
        (
            lambda: LazyRegularizer(R1Penalty(), 16.0),
            TypeError,
            "interval to be an integer, got float",
        ),
        (
            lambda: LazyRegularizer(R1Penalty(), True),
            TypeError,
            "interval to be an integer, got bool",
        ),
    ],
)
def test_lazy_errors(make, error, message):
    with pytest.raises(error, match=f"^LazyRegularizer: .*{message}"):
        make()


def test_a_lazy_penalty_gives_a_tensor():
    lazy = gnn.LazyRegularizer(lambda: 3.0)
    with pytest.raises(TypeError, match=r"^LazyRegularizer: expected penalty .*tensor, got float"):
        lazy()
    assert lazy.due  # the call that raised does not count
