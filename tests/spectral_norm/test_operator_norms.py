"""spectral_norms against the dense matrices of layers, and the bound of a network."""

import itertools
import math

import pytest
import torch
from support.networks import WAYS
from torch import nn

import gankernels
from gankernels import spectral_norms


@pytest.fixture(autouse=True)
def one_thread():
    """The matrices are small, and two threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dense(layer, shape):
    """The matrix of a layer without its bias, column by column."""
    n = math.prod(shape)
    pixels = torch.eye(n, dtype=torch.float64).view(n, *shape)
    with torch.no_grad():
        return (layer(pixels) - layer(torch.zeros_like(pixels))).flatten(1).T


def norm(layer, shape):
    return float(torch.linalg.matrix_norm(dense(layer, shape), 2))


def bounds(layer, shape):
    """For images of every size, and for these."""
    free, sized = (spectral_norms(layer, "operator", input_size=s) for s in (None, shape))
    assert list(free.layers) == ["weight"]
    assert float(free.product) == float(free.lipschitz) == float(free.layers["weight"])
    return float(free.product), float(sized.product)


ROUNDING = 1e-12

CONV1D = [
    (k, s, p, d, g, n, mode)
    for k, s, p, d, g, n, mode in itertools.product(
        (1, 3, 4),
        (1, 2, 3),
        (0, 1, 4),
        (1, 2),
        (1, 2),
        (1, 5, 6),
        ("zeros", "circular", "reflect", "replicate"),
    )
    if n + 2 * p > d * (k - 1)
    and (p <= n or mode != "circular")
    and (p < n or mode != "reflect")
    and (g == 1 or (d == 1 and k != 4))
]


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_bound_of_convolutions(mode):
    cases = [case[:-1] for case in CONV1D if case[-1] == mode]
    assert len(cases) > 50
    for k, s, p, d, g, n in cases:
        layer = nn.Conv1d(2, 4, k, s, p, d, g, padding_mode=mode).double()
        true = norm(layer, (2, n))
        for bound in bounds(layer, (2, n)):
            assert bound >= true * (1 - ROUNDING), (k, s, p, d, g, n)


@pytest.mark.parametrize("groups", [1, 2])
def test_bound_of_transposed_convolutions(groups):
    for k, s, p, d, n in itertools.product((2, 3), (1, 2, 3), (0, 1), (1, 2), (1, 5)):
        for extra in range(max(s, d)):
            if s * (n - 1) + 1 + d * (k - 1) + extra <= 2 * p:
                continue
            layer = nn.ConvTranspose1d(4, 2, k, s, p, extra, groups, dilation=d).double()
            true = norm(layer, (4, n))
            for bound in bounds(layer, (4, n)):
                assert bound >= true * (1 - ROUNDING), (k, s, p, d, extra, n)


SHAPED = {
    "2d": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 6, 7)),
    "2d_mixed": (lambda: nn.Conv2d(4, 2, (3, 2), (2, 1), (1, 0), (1, 2), 2), (4, 6, 7)),
    "2d_patches": (lambda: nn.Conv2d(2, 3, 4, 4), (2, 8, 8)),
    "2d_same": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same"), (2, 5, 6)),
    "2d_valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (2, 5, 6)),
    "2d_reflect": (lambda: nn.Conv2d(2, 2, 3, padding=(1, 2), padding_mode="reflect"), (2, 6, 5)),
    "2d_replicate": (lambda: nn.Conv2d(2, 2, 3, 2, 1, padding_mode="replicate"), (2, 6, 5)),
    "2d_circular": (lambda: nn.Conv2d(2, 2, 3, 2, 1, padding_mode="circular"), (2, 5, 6)),
    "2d_transposed": (lambda: nn.ConvTranspose2d(3, 2, (4, 3), 2, 1, (0, 1)), (3, 4, 3)),
    "3d": (lambda: nn.Conv3d(2, 2, (2, 3, 1), (1, 2, 1), (0, 1, 1)), (2, 3, 4, 3)),
    "3d_transposed": (lambda: nn.ConvTranspose3d(2, 2, 2, (1, 2, 1)), (2, 2, 3, 2)),
}


@pytest.mark.parametrize("name", list(SHAPED))
def test_bound_in_more_dimensions(name):
    factory, shape = SHAPED[name]
    layer = factory().double()
    true = norm(layer, shape)
    assert min(bounds(layer, shape)) >= true * (1 - ROUNDING)


TIGHT = [(3, 1, 1, 1), (4, 2, 1, 1), (3, 2, 1, 2), (5, 3, 2, 2), (3, 2, 4, 4), (2, 3, 0, 1)]


@pytest.mark.parametrize("settings", TIGHT, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_close_for_large_images(settings, transposed):
    """Within 2.5 % a dimension without the size, 1 % with it; strides included."""
    k, s, p, d = settings
    if transposed:
        layer = nn.ConvTranspose1d(2, 4, k, s, p, dilation=d).double()
    else:
        layer = nn.Conv1d(2, 4, k, s, p, d).double()
    true = norm(layer, (2, 72))
    free, sized = bounds(layer, (2, 72))
    assert true * (1 - ROUNDING) <= free < true * 1.025
    assert true * (1 - ROUNDING) <= sized < true * 1.01


CIRCULAR = {
    "1d": (lambda k: nn.Conv1d(3, 2, 5, padding=2, **k), (3, 9)),
    "1d_even": (lambda k: nn.Conv1d(3, 2, 4, padding="same", **k), (3, 9)),
    "1d_strides": (lambda k: nn.Conv1d(3, 2, 5, 2, 2, **k), (3, 8)),
    "1d_wide": (lambda k: nn.Conv1d(2, 2, 5, padding=2, **k), (2, 3)),
    "2d": (lambda k: nn.Conv2d(2, 3, 3, padding=1, **k), (2, 5, 6)),
    "2d_dilation": (lambda k: nn.Conv2d(2, 3, 3, padding=2, dilation=2, **k), (2, 5, 6)),
    "2d_strides": (lambda k: nn.Conv2d(2, 3, 3, (3, 2), 1, **k), (2, 6, 4)),
    "2d_groups": (lambda k: nn.Conv2d(4, 6, 3, padding=1, groups=2, **k), (4, 5, 4)),
    "3d": (lambda k: nn.Conv3d(2, 1, 3, padding=1, **k), (2, 3, 4, 3)),
}


@pytest.mark.parametrize("name", list(CIRCULAR))
def test_exact_for_circular_convolutions(name):
    factory, shape = CIRCULAR[name]
    layer = factory({"padding_mode": "circular"}).double()
    free, sized = bounds(layer, shape)
    assert sized == pytest.approx(norm(layer, shape), rel=ROUNDING)
    assert free >= sized * (1 - ROUNDING)


def test_exact_for_linear_layers_and_pointwise_convolutions():
    for layer, shape in [(nn.Linear(7, 5), (7,)), (nn.Conv2d(3, 4, 1), (3, 2, 2))]:
        layer = layer.double()
        for bound in bounds(layer, shape):
            assert bound == pytest.approx(norm(layer, shape), rel=ROUNDING)


def test_complex_weights():
    layer = nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular", dtype=torch.complex128)
    _, sized = bounds(layer, (2, 7))
    pixels = torch.eye(14, dtype=torch.complex128).view(14, 2, 7)
    matrix = (layer(pixels) - layer(0 * pixels)).flatten(1)
    assert sized == pytest.approx(float(torch.linalg.matrix_norm(matrix.detach(), 2)), rel=1e-10)


@pytest.mark.parametrize("taps", [2, 3, 4, 7])
def test_the_supremum_from_a_grid(taps):
    """sup <= max over N frequencies / cos(pi (taps - 1) / (2 N)), and not less in general."""
    fine = torch.arange(4_000, dtype=torch.float64) * (2 * math.pi / 4_000)
    for n in range(taps, 5 * taps):
        factor = 1 / math.cos(math.pi * (taps - 1) / (2 * n))
        shift = math.pi / n  # the largest value in the middle between two frequencies
        j = torch.arange(taps, dtype=torch.float64)
        coefficients = torch.randn(50, taps, dtype=torch.complex128)
        # cos((taps - 1) / 2 * (omega - shift)), as one of them
        coefficients[0] = 0
        coefficients[0, 0], coefficients[0, -1] = 1.0, torch.exp(1j * j[-1] * shift)
        grid = torch.arange(n, dtype=torch.float64) * (2 * math.pi / n)
        sup, largest = (
            (coefficients @ torch.exp(-1j * j[:, None] * w)).abs().amax(1) for w in (fine, grid)
        )
        assert bool((sup <= largest * factor * (1 + ROUNDING)).all())
        if n % (taps - 1) == 0:  # else one of its other maxima is nearer to a frequency
            assert float(sup[0]) == pytest.approx(float(largest[0]) * factor, rel=1e-3)


def test_extreme_and_broken_weights():
    layer = nn.Conv2d(2, 3, 3, padding=1).double()
    want = float(spectral_norms(layer, "operator").product)
    for scale in (1e-200, 1e200):
        with torch.no_grad():
            layer.weight.mul_(scale)
        found = float(spectral_norms(layer, "operator").product)
        assert found == pytest.approx(want * scale, rel=1e-10)
        with torch.no_grad():
            layer.weight.div_(scale)
    for value, right in [(0.0, 0.0), (math.nan, math.nan), (math.inf, math.inf)]:
        nn.init.constant_(layer.weight, value)
        found = float(spectral_norms(layer, "operator").product)
        assert found == pytest.approx(right, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_are_measured_in_double(dtype):
    layer = nn.Conv2d(2, 3, 3, padding=1).to(dtype)
    found = spectral_norms(layer, "operator").product
    assert found.dtype == torch.float64
    assert torch.equal(found, spectral_norms(layer.double(), "operator").product)


# --- networks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("fused", [False, True])
def test_the_kernel_of_ones(way, fused):
    """The reshaped weight has norm 3, the map of large images nearly 9."""
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
    nn.init.ones_(conv.weight)
    model = nn.Sequential(WAYS[way](conv))
    if fused:
        gankernels.fuse_spectral_norm(model)
    for _ in range(3):
        model(torch.ones(1, 1, 8, 8).double())
    found = spectral_norms(model, of="operator")
    image = torch.ones(1, 1, 64, 64).double()
    plain = nn.functional.conv2d(image, torch.ones(1, 1, 3, 3).double(), padding=1)
    gain = float(plain.norm() / image.norm())
    assert gain > 8.8
    assert gain < 9 <= float(found.product) < 9.4
    assert 3 <= float(found.applied["0.weight"]) == float(found.lipschitz) < 9.4 / 3
    assert float(found.layers["0.weight"]) == float(found.product)
    sized = spectral_norms(model, of="operator", input_size=(1, 64, 64))
    assert gain < float(sized.product) <= 9 + 1e-9
    assert float(gankernels.spectral_norms(model).product) == pytest.approx(3)


@pytest.mark.parametrize("way", list(WAYS))
def test_of_weight(way):
    model = nn.Sequential(
        WAYS[way](nn.Conv2d(2, 3, 3)), WAYS[way](nn.Linear(3, 2)), nn.Linear(2, 2)
    )
    found = spectral_norms(model)
    assert list(found.layers) == ["0.weight", "1.weight"]
    assert torch.equal(found.product, found.layers["0.weight"] * found.layers["1.weight"])
    assert found.lipschitz is None


def chain(norm):
    return nn.Sequential(
        norm(nn.Conv2d(2, 4, 3, padding=1)),
        nn.LeakyReLU(0.2),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 4, 4, 2, 1),  # not normalized, and counts
        nn.BatchNorm2d(4),
        nn.SiLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Sequential(nn.Flatten(), norm(nn.Linear(4, 3))),
        nn.PReLU(),
        nn.Linear(3, 2),
    ).double()


@pytest.mark.parametrize("way", ["torch_hook", "ours_parametrization"])
def test_bound_of_a_network(way):
    model = chain(WAYS[way])
    for _ in range(3):
        model(torch.randn(4, 2, 8, 8).double())
    with torch.no_grad():
        model[8].weight.fill_(-3.0)
        model[4].weight.copy_(torch.tensor([1.0, -5.0, 2.0, 0.5]))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = spectral_norms(model, "operator", input_size=(2, 8, 8))
    assert list(found.layers) == ["0.weight", "3.weight", "7.1.weight", "9.weight"]
    assert list(found.factors) == ["2", "4", "5", "6", "8"]
    assert found.factors["8"] == 3
    assert found.unbounded == {}
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
    x = 3 * torch.randn(2, 8, 8).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], x).flatten(1)
    assert 0 < float(torch.linalg.matrix_norm(jacobian, 2)) <= float(found.lipschitz)
    # By the parts: every factor against its own layer.
    assert float(found.lipschitz) == pytest.approx(
        math.prod([*map(float, found.applied.values()), *found.factors.values()])
    )
    assert float(spectral_norms(model, "operator").lipschitz) >= float(found.lipschitz)


CONSTANTS = {
    "leaky": nn.LeakyReLU(-1.5),
    "elu": nn.ELU(2.0),
    "sigmoid": nn.Sigmoid(),
    "selu": nn.SELU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "mish": nn.Mish(),
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "tanh": nn.Tanh(),
    "hardtanh": nn.Hardtanh(),
    "softplus": nn.Softplus(2.0),
    "softsign": nn.Softsign(),
    "softshrink": nn.Softshrink(),
    "tanhshrink": nn.Tanhshrink(),
    "logsigmoid": nn.LogSigmoid(),
    "celu": nn.CELU(0.3),
}


@pytest.mark.parametrize("name", list(CONSTANTS))
def test_constants_of_activations(name):
    x = torch.linspace(-20, 20, 200_001, dtype=torch.float64).requires_grad_()
    slope = float(torch.autograd.grad(CONSTANTS[name](x).sum(), x)[0].abs().max())
    model = nn.Sequential(nn.Identity(), CONSTANTS[name], nn.Linear(1, 1))
    constant = spectral_norms(model, "operator").factors.get("1", 1.0)
    assert slope * (1 - 1e-9) <= constant <= slope * 1.01


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool1d(3, 1, 1),
        nn.AvgPool1d(4, 2),
        nn.AvgPool1d(2),
        nn.AvgPool1d(2, 3),
        nn.MaxPool1d(2),
        nn.MaxPool1d(3, 2, 1),
        nn.MaxPool1d(3, 1, 1),
        nn.MaxPool1d(3, 2, 1, dilation=2),
    ],
    ids=str,
)
def test_constants_of_pooling(pool):
    model = nn.Sequential(pool, nn.Conv1d(1, 1, 1))
    constant = spectral_norms(model, "operator").factors.get("0", 1.0)
    assert float(spectral_norms(model, "operator").lipschitz) < math.inf
    worst = 0.0
    for _ in range(50):
        x = torch.randn(1, 1, 24, dtype=torch.float64)
        x = 0 * x if "Max" not in str(pool) else x
        spike = x.clone()
        spike[..., 12] = 9
        worst = max(worst, float((pool(spike) - pool(x)).norm() / (spike - x).norm()))
        matrix = torch.autograd.functional.jacobian(pool, x).reshape(-1, 24)
        worst = max(worst, float(torch.linalg.matrix_norm(matrix, 2)))
    assert worst <= constant * (1 + ROUNDING)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.linear = nn.Linear(3, 3)

    def forward(self, x):
        return x + self.gain * self.linear(x)


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Swish(nn.Module):
    def forward(self, x):
        return x * x.sigmoid()


class Gain(nn.Conv1d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 5 * weight, bias)


def patched():
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: 7 * x
    return layer


def hooked(register):
    layer = nn.Sequential(nn.Linear(3, 3))
    getattr(layer, register)(lambda _, x, *y: 9 * y[0] if y else (9 * x[0],))
    return layer


UNKNOWN = {
    "own_convolution": lambda: Gain(3, 3, 1),
    "patched": patched,
    "hook": lambda: hooked("register_forward_hook"),
    "pre_hook": lambda: hooked("register_forward_pre_hook"),
    "celu": lambda: nn.CELU(-1.0),
    "softplus": lambda: nn.Softplus(threshold=0),
    "attention": lambda: nn.MultiheadAttention(3, 1),
    "transformer": lambda: nn.TransformerEncoderLayer(3, 1, 4),
    "layer_norm": lambda: nn.LayerNorm(3),
    "instance_norm": lambda: nn.InstanceNorm1d(3),
    "batch_statistics": lambda: nn.BatchNorm1d(3, track_running_stats=False),
    "embedding": lambda: nn.Embedding(4, 3),
    "bilinear": lambda: nn.Bilinear(3, 3, 3),
    "recurrent": lambda: nn.GRU(3, 3),
    "own_parameter": Residual,
    "own_linear": lambda: Doubling(3, 3),
    "own_activation": Swish,
    "average_of_what_is_there": lambda: nn.AvgPool1d(3, 1, 1, count_include_pad=False),
    "lazy": lambda: nn.LazyLinear(3),
}


@pytest.mark.parametrize("name", list(UNKNOWN))
def test_what_is_not_known_never_counts_as_one(name):
    found = spectral_norms(nn.Sequential(nn.Linear(3, 3), UNKNOWN[name]()), "operator")
    assert float(found.lipschitz) == math.inf
    assert any(path.startswith("1") for path in found.unbounded)
    assert float(found.product) < math.inf


@pytest.mark.parametrize("way", ["weight_norm", "prune"])
def test_weights_that_older_hooks_compute(way):
    """Those of today, and not of the last forward."""
    layer = nn.Linear(5, 4, bias=False).double()
    if way == "prune":
        nn.utils.prune.l1_unstructured(layer, "weight", 3)
    else:
        nn.utils.weight_norm(layer)
    with torch.no_grad():
        next(iter(layer.parameters())).mul_(10)
    stored = layer.weight.detach().clone()
    found = spectral_norms(nn.Sequential(layer), "operator")
    assert torch.equal(layer.weight, stored)
    layer(torch.zeros(1, 5).double())
    true = float(torch.linalg.matrix_norm(layer.weight.detach(), 2))
    assert float(found.lipschitz) == pytest.approx(true)
    assert found.unbounded == {}


def test_constants_that_are_not_finite():
    prelu = nn.PReLU(2)
    nn.init.constant_(prelu.weight, math.nan)
    found = spectral_norms(nn.Sequential(nn.Linear(2, 2), prelu), "operator")
    assert math.isnan(float(found.lipschitz))


def test_a_lazy_layer_has_its_weight_from_the_size():
    found = spectral_norms(nn.LazyConv2d(4, 3), "operator", input_size=(2, 5, 5))
    assert 0 < float(found.lipschitz) < math.inf


def test_a_module_in_two_places_counts_twice():
    layer = nn.Linear(3, 3).double()
    once, twice = (spectral_norms(nn.Sequential(*[layer] * n), "operator") for n in (1, 2))
    assert float(twice.lipschitz) == pytest.approx(float(once.lipschitz) ** 2)


def test_a_chain_of_parametrizations():
    """The weight before the spectral normalization is what weight normalization made."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4, bias=False).double())
    with torch.no_grad():
        layer.parametrizations.weight.original0.mul_(10)
        before = float(torch.linalg.matrix_norm(layer.weight, 2))
    WAYS["ours_parametrization"](layer)
    found = spectral_norms(nn.Sequential(layer), "operator")
    assert list(found.layers) == ["0.weight"]
    assert float(found.product) == pytest.approx(before)
    assert float(found.lipschitz) == pytest.approx(1, rel=0.1)


def test_mistakes():
    linear, normalized = nn.Linear(2, 2), WAYS["torch_hook"](nn.Linear(2, 2))
    empty = nn.Sequential()
    for call, error, words in [
        (lambda: spectral_norms(None, "operator"), TypeError, "expected a torch.nn.Module"),
        (lambda: spectral_norms(linear, "norm"), ValueError, '"weight" or "operator"'),
        (lambda: spectral_norms(linear), ValueError, 'of="operator" takes plain ones'),
        (lambda: spectral_norms(nn.ReLU(), "operator"), ValueError, "linear or convolutional"),
        (lambda: spectral_norms(normalized, input_size=(2,)), ValueError, "input_size is for"),
        (lambda: spectral_norms(linear, "operator", input_size=(2.0,)), TypeError, "input_size"),
        (lambda: spectral_norms(linear, "operator", input_size=2), TypeError, "input_size"),
        (lambda: spectral_norms(linear, "operator", input_size=(3,)), ValueError, "got .3,., of"),
        (lambda: spectral_norms(empty, "operator", input_size=(3,)), ValueError, "with none"),
        (lambda: spectral_norms(linear.to("meta"), "operator"), ValueError, "meta device; load"),
        (lambda: spectral_norms(nn.LazyLinear(2), "operator"), ValueError, "call the model once"),
    ]:
        with pytest.raises(error, match=f"^spectral_norms: .*{words}"):
            call()
