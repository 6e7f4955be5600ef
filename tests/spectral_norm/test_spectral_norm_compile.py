"""The operators of spectral normalization as citizens of torch: opcheck, compile, export, autocast,
functional transforms, fake tensors."""

import copy
import warnings

import pytest
import torch
from support.tensors import DTYPES, assert_near, drawer, dtype_name
from support.transforms import Transforms
from support.weights import LAYOUTS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from gankernels import _library, ops, reference
from gankernels._dtypes import accumulation_dtype

OPS = torch.ops.gankernels
SOME = ("linear", "one_row", "vector", "conv_channels_last", "conv_transpose")


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def layers(dtype=torch.float32, trainable=True, names=SOME):
    """Weights, u, v, and what an iteration found."""
    weights = [LAYOUTS[name](drawer(i, dtype)) for i, name in enumerate(names)]
    draw = drawer(9, dtype)
    u = [draw(w.shape[0]) for w in weights]
    v = [draw(w.numel() // w.shape[0]) for w in weights]
    found = ops.power_iteration_(weights, u, v, 3)
    return [w.requires_grad_(trainable) for w in weights], u, v, found


# --- opcheck -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
class TestOpcheck:
    @pytest.mark.parametrize("guard", [False, True])
    def test_power_iteration(self, dtype, guard):
        weights, u, v, _ = layers(dtype)
        skipped = torch.zeros(len(weights), dtype=torch.int64) if guard else None
        opcheck(OPS.power_iteration_, (weights, u, v, 2, 1e-12, True, skipped), test_utils=TESTS)

    @pytest.mark.parametrize("given", [False, True])
    @pytest.mark.parametrize("max_norm", [None, 5.0])
    @pytest.mark.parametrize("retain", [False, True])
    def test_spectral_normalize(self, dtype, max_norm, given, retain):
        weights, _, _, (u, v, sigma) = layers(dtype)
        sigma = sigma if given else None
        opcheck(OPS.spectral_normalize, (weights, u, v, sigma, max_norm, retain, False))

    @pytest.mark.parametrize("seeded", [False, True])
    def test_backward(self, dtype, seeded):
        weights, _, _, (u, v, sigma) = layers(dtype)
        grads = [torch.ones_like(w).requires_grad_() for w in weights]
        seed = torch.ones_like(sigma).requires_grad_() if seeded else None
        opcheck(OPS.spectral_normalize_backward, (grads, weights, u, v, sigma, seed, None))

    def test_double_backward(self, dtype):
        """Its derivative, the third, is refused on purpose: nothing here requires a gradient."""
        weights, _, _, (u, v, sigma) = layers(dtype, trainable=False)
        grads, h = ([torch.ones_like(w) for w in weights] for _ in range(2))
        arguments = (h, grads, weights, u, v, sigma, torch.ones_like(sigma), 3.0)
        opcheck(OPS.spectral_normalize_double_backward, arguments)

    def test_spectral_norm(self, dtype):
        """Of eager mode alone, without a fake: the schema is what applies."""
        weights, u, v, _ = layers(dtype, trainable=False)
        arguments = (weights, u, v, 1, 1e-12, True, None, None)
        opcheck(OPS.spectral_norm_, arguments, test_utils="test_schema")

    def test_packed_backward(self, dtype):
        """For where no graph is built: without a derivative of its own."""
        weights, u, v, _ = layers(dtype, trainable=False)
        packed = OPS.spectral_norm_(weights, u, v, 1, 1e-12, True, None, None)[0]
        grads = [torch.ones_like(w) for w in weights]
        seed = torch.ones(len(weights), dtype=packed.dtype)
        opcheck(OPS.spectral_norm_backward, (grads, weights, packed, seed, None))


#: Of the power iteration, which has no gradient to register.
TESTS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def test_every_op_is_checked():
    names = {
        name.removeprefix("gankernels::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith(("gankernels::spectral", "gankernels::power_iteration"))
    }
    assert names == {
        "power_iteration_",
        "spectral_norm_",
        "spectral_norm_backward",
        "spectral_normalize",
        "spectral_normalize_backward",
        "spectral_normalize_double_backward",
    }


# --- compile -----------------------------------------------------------------------------------


class Network(nn.Module):
    """Two convolutions and a linear layer of one row, normalized in one call a forward."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.options = options
        self.first = nn.Conv2d(2, 6, 3, bias=False)
        self.up = nn.ConvTranspose2d(6, 4, 2, bias=False)
        self.last = nn.Linear(4, 1, bias=False)
        for i, w in enumerate(self.weights()):
            self.register_buffer(f"u{i}", torch.randn(w.shape[0]))
            self.register_buffer(f"v{i}", torch.randn(w.numel() // w.shape[0]))

    def weights(self):
        return [self.first.weight, self.up.weight.movedim(1, 0), self.last.weight]

    def forward(self, x):
        u = [getattr(self, f"u{i}") for i in range(3)]
        v = [getattr(self, f"v{i}") for i in range(3)]
        if self.training:
            (a, b, c), _ = ops.spectral_norm(self.weights(), u, v, **self.options)
        else:
            (a, b, c), _ = ops.spectral_normalize(self.weights(), u, v)
        x = torch.tanh(nn.functional.conv2d(x, a))
        x = torch.tanh(nn.functional.conv_transpose2d(x, b.movedim(0, 1)))
        return nn.functional.linear(x.mean((2, 3)), c)


def train(model, network, x, forwards):
    """Gradients of D(real) - D(fake), and of R1 where it can be, with the state they leave."""
    losses = [model(part).square().mean() for part in x[:forwards]]
    sum(losses).backward()
    grads = [p.grad.clone() for p in network.parameters()]
    return [*losses, *grads, *network.buffers()]


OPTIONS = {"max_norm": 0.3, "n": 2, "order": "v_first"}


@pytest.mark.parametrize(
    ("compiler", "forwards", "options"),
    [
        ("aot_eager", 1, {}),
        ("aot_eager", 2, {}),
        ("aot_eager", 1, OPTIONS),
        ("aot_eager", 2, OPTIONS),
        pytest.param("inductor", 2, {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_compiled_training(compiler, forwards, options):
    x = torch.randn(2, 3, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    eager = Network(**options)
    compiled = copy.deepcopy(eager)
    expected = train(eager, eager, x, forwards)
    model = torch.compile(compiled, fullgraph=True, backend=compiler)
    found = train(model, compiled, x, forwards)
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    moved = zip(eager.buffers(), Network().buffers(), strict=True)
    assert not any(torch.equal(a, b) for a, b in moved)

    # And evaluation, compiled.
    eager.eval(), compiled.eval()
    torch.testing.assert_close(model(x[0]), eager(x[0]), rtol=1e-5, atol=1e-6)


def test_one_row_called_twice_before_the_backward():
    """torch's own parametrization goes wrong here when it is compiled."""
    x = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(1))

    def function(w, u, v):
        total = torch.zeros(())
        for part in x:
            (n,), sigma = ops.spectral_norm([w], [u], [v])
            total = total + (part @ n.t()).square().sum() + sigma.sum()
        return total

    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        draw = drawer(0)
        w, u, v = draw(1, 7).requires_grad_(), draw(1), draw(7)
        loss = run(w, u, v)
        loss.backward()
        results.append([loss, w.grad, u, v])
    for got, want in zip(*reversed(results), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def penalty(weights, u, v, sigma, x, function):
    (first, second), _ = function(weights, u, v, sigma)
    score = torch.tanh(x @ first.t()) @ second.t()
    (g,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return score.mean() + g.square().sum(1).mean()


def test_double_backward_through_a_compiled_function():
    """What torch.compile cannot do in one graph, it must refuse, not get wrong."""
    draw = drawer(0, torch.float64)
    weights = [draw(9, 6).requires_grad_(), draw(1, 9).requires_grad_()]
    u, v = [draw(9), draw(1)], [draw(6), draw(9)]
    u, v, sigma = ops.power_iteration_(weights, u, v)
    x = draw(4, 6).requires_grad_()

    def twice(function):
        """A loss of the gradient of the weights: both derivatives go through the operator."""
        out, s = function(weights, u, v, sigma)
        loss = sum(o.pow(3).sum() for o in out) + s.square().sum()
        grads = torch.autograd.grad(loss, weights, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), weights)

    compiled = torch.compile(ops.spectral_normalize, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="double backward"):
        twice(compiled)
    # Where AOTAutograd is not in between, the operator's own double backward is there.
    traced = torch.compile(ops.spectral_normalize, fullgraph=True, backend="eager")
    expected = twice(reference.spectral_normalize)
    for got, want in zip(twice(traced), expected, strict=True):
        assert_near(got, want, factor=10)

    # A penalty on the gradient of the input goes through the operator only once.
    loss = penalty(weights, u, v, sigma, x, reference.spectral_normalize)
    expected = torch.autograd.grad(loss, weights)
    for function in (compiled, traced):
        found = torch.autograd.grad(penalty(weights, u, v, sigma, x, function), weights)
        for got, want in zip(found, expected, strict=True):
            assert_near(got, want, factor=10)


def test_frozen_and_unused_compiled():
    draw = drawer(0)
    weights = [draw(4, 3).requires_grad_(), draw(5, 2), draw(3, 3).requires_grad_()]
    u, v = [draw(4), draw(5), draw(3)], [draw(3), draw(2), draw(3)]

    def function(*weights):
        out, sigma = ops.spectral_normalize(weights, u, v)
        return out[0].square().sum() + out[1].sum() + sigma[0]

    results = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        found = torch.autograd.grad(run(*weights), weights[::2], allow_unused=True)
        results.append(found)
    torch.testing.assert_close(results[0][0], results[1][0])
    for _, unused in results:  # compiled, an unused weight may get zeros
        assert unused is None or not unused.any()


def test_compiled_errors():
    """Bad input is refused while tracing, in the same words."""
    draw = drawer(0)
    compiled = torch.compile(ops.power_iteration_, backend="aot_eager")
    with pytest.raises(Exception, match=r"u\[0\] of shape \(4,\)"):
        compiled([draw(4, 3)], [draw(5)], [draw(3)])


@pytest.mark.parametrize("training", [True, False])
def test_export(training):
    x = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    model = Network().train(training)
    exported = torch.export.export(copy.deepcopy(model), (x,), strict=False)
    names = {str(node.target) for node in exported.graph.nodes}
    assert any("gankernels.spectral_normalize" in name for name in names)
    assert any("gankernels.power_iteration_" in name for name in names) is training
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), model(x))


# --- autocast, functional transforms, fakes ----------------------------------------------------


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("route", ["kernels", "compiled", "reference"])
def test_autocast_leaves_the_numbers(cast, route):
    weights, u, v, _ = layers(names=("linear", "conv_channels_last", "conv_transpose"))
    functions = {
        "kernels": ops.spectral_norm,
        "compiled": torch.compile(ops.spectral_norm, fullgraph=True, backend="aot_eager"),
        "reference": lambda w, u, v: reference.spectral_normalize(
            w, *reference.power_iteration_(w, u, v)
        ),
    }
    expected, sigma = ops.spectral_norm(weights, [x.clone() for x in u], [x.clone() for x in v])
    grads = torch.autograd.grad(sum(o.pow(3).sum() for o in expected), weights)
    with torch.autocast("cpu", dtype=cast):
        out, s = functions[route](weights, [x.clone() for x in u], [x.clone() for x in v])
    found = torch.autograd.grad(sum(o.pow(3).sum() for o in out), weights)
    for got, want in zip([*out, s, *found], [*expected, sigma, *grads], strict=True):
        assert got.dtype == torch.float32
        assert_near(got, want.double(), factor=3)


class TestTransforms(Transforms):
    """torch.func and forward mode go to the reference, and are right."""

    op = "spectral_normalize"

    def setup_method(self):
        _library._fallbacks.clear()
        draw = drawer(0, torch.float64)
        self.at = draw(4, 3)
        self.direction = draw(4, 3)
        u, v = [draw(4)], [draw(3)]
        (self.u,), (self.v,), _ = ops.power_iteration_([self.at], u, v)

    def plain(self, w):
        return (w / (self.u @ w @ self.v)).pow(3).sum()

    def ours(self, w):
        (out,), _ = ops.spectral_normalize([w], [self.u], [self.v])
        return out.pow(3).sum()

    def test_functional_call(self):
        model = Network().eval()
        x = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(1))
        parameters = dict(model.named_parameters())

        def loss(parameters):
            return torch.func.functional_call(model, parameters, (x,)).square().sum()

        found = torch.func.grad(loss)(parameters)
        loss(parameters).backward()
        for name, parameter in parameters.items():
            torch.testing.assert_close(found[name], parameter.grad)

    def test_the_power_iteration_within_a_transform(self):
        u, v = torch.ones(4, dtype=torch.float64), torch.ones(3, dtype=torch.float64)

        def function(w):
            (out,), _ = ops.spectral_norm([w], [u.clone()], [v.clone()])
            return out.pow(3).sum()

        found = torch.func.grad(function)(self.at)
        leaf = self.at.clone().requires_grad_()
        function(leaf).backward()
        torch.testing.assert_close(found, leaf.grad)


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_fakes_look_like_the_results(dtype, kind):
    names = [name for name in LAYOUTS if name not in ("slice_of_channels",)]
    weights, u, v, _ = layers(dtype, names=names)
    skipped = torch.zeros(len(weights), dtype=torch.int64)
    found = ops.power_iteration_(weights, u, v, skipped=skipped)
    outputs = flat(ops.spectral_normalize(weights, *found))
    results = [*found.u, *found.v, found.sigma, *outputs]
    results += torch.autograd.grad(sum(o.sum() for o in outputs[:-1]), weights)

    mode = FakeTensorMode()
    if kind == "fake":
        convert = mode.from_tensor
    else:

        def convert(x):
            like = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
            return like.requires_grad_(x.requires_grad)

    weights, u, v = ([convert(x) for x in group] for group in (weights, u, v))
    fake = ops.power_iteration_(weights, u, v, skipped=convert(skipped))
    outputs = flat(ops.spectral_normalize(weights, *fake))
    fakes = [*fake.u, *fake.v, fake.sigma, *outputs]
    fakes += torch.autograd.grad(sum(o.sum() for o in outputs[:-1]), weights)
    assert fake.sigma.dtype == accumulation_dtype(dtype)
    for got, want in zip(fakes, results, strict=True):
        assert (got.shape, got.dtype, steps(got)) == (want.shape, want.dtype, steps(want))
        assert got.requires_grad == want.requires_grad
        assert got.device.type == ("meta" if kind == "meta" else "cpu")


def steps(x):
    """The strides of dimensions of more than one element: those of others mean nothing."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def flat(pair):
    outputs, sigma = pair
    return [*outputs, sigma]


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights, u, v, _ = layers()
        out, sigma = ops.spectral_norm(weights, u, v)
        (sum(o.sum() for o in out) + sigma.sum()).backward()
