"""The identity that brings gradients to a size, against a loop over floats."""

import copy
import pickle

import pytest
import torch
from support.tensors import assert_near, drawer
from torch import nn

from gankernels.nn import GradientNormalizer


def gradient(module, g, inv_scale=None):
    """Of one backward pass in which this gradient comes."""
    x = torch.ones_like(g).requires_grad_()
    y = module(x, inv_scale)
    assert torch.equal(y, x)
    return torch.autograd.grad(y, x, g)[0]


def gradients(dtype=torch.float64, count=5):
    draw = drawer(0, dtype)
    return [(i + 1) * 1e-3 * draw(3, 4) for i in range(count)]


@pytest.mark.parametrize("decay, scale", [(0.99, 1.0), (0.5, 3.0), (0.0, 2.0)])
def test_the_running_root_mean_square(decay, scale):
    module = GradientNormalizer(decay, scale)
    square = 0.0
    for i, g in enumerate(gradients()):
        square = decay * square + (1 - decay) * float(g.norm()) ** 2
        mean = square / (1 - decay ** (i + 1))
        assert_near(gradient(module, g), scale * g / mean**0.5)
    if decay == 0:
        assert_near(gradient(module, g).norm(), torch.tensor(scale), torch.float32)


def test_the_first_gradient_has_the_norm_scale():
    for size in (1e-30, 1.0, 1e30):
        got = gradient(GradientNormalizer(scale=0.5), torch.full((400,), size))
        assert_near(got.double().norm(), torch.tensor(0.5), torch.float32)


def test_evaluation_leaves_the_average():
    module = GradientNormalizer(0.9)
    first, second, third = gradients(count=3)
    # Before the first pass a gradient has its own norm alone.
    assert_near(gradient(module.eval(), first), first / first.norm(), torch.float32)
    assert module.total == 0
    gradient(module.train(), second)
    before = copy.deepcopy(module.state_dict())
    assert_near(gradient(module.eval(), third), third / second.norm(), torch.float32)
    assert module.state_dict() == before


def test_state():
    module, other = GradientNormalizer(0.9), GradientNormalizer(0.9)
    for g in gradients(count=3):
        gradient(module, g)
    other.load_state_dict(module.state_dict())
    assert set(module.state_dict()) == {"square", "total"}
    others = [other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))]
    last = gradients()[-1]
    expected = gradient(module, last)
    for each in others:
        assert torch.equal(gradient(each, last), expected)
    square = module.square.clone()
    assert module.half().square.dtype == module.total.dtype == torch.float64
    assert torch.equal(module.square, square)
    assert repr(module) == "GradientNormalizer(decay=0.9, scale=1.0)"


@pytest.mark.parametrize("bad", [0.0, float("inf"), float("nan")])
def test_unusable_gradients_do_not_move_the_average(bad):
    module = GradientNormalizer(0.5)
    g = torch.full((4,), bad)
    first = gradient(module, g)
    assert (first == 0).all() if bad == 0 else not first.isfinite().any()
    assert module.total == 0
    gradient(module, torch.ones(4))
    before = module.square.clone()
    again = gradient(module, g)
    assert torch.equal(module.square, before)
    assert (again == 0).all() if bad == 0 else not again.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_are_of_float32(dtype):
    g = drawer(1, dtype)(300) * 1e-5  # whose squares are nothing in float16
    got = gradient(GradientNormalizer(), g)
    assert got.dtype == dtype
    assert_near(got, g.double() / g.double().norm(), dtype)
    large = torch.full((400,), 60000.0, dtype=dtype)
    assert_near(gradient(GradientNormalizer(), large), torch.full((400,), 0.05).double(), dtype)


def test_scaled_gradients_stay_scaled():
    module, plain = GradientNormalizer(0.5), GradientNormalizer(0.5)
    for g, scale in zip(gradients(torch.float32), (1024.0, 1024.0, 512.0, 4.0, 1.0), strict=True):
        got = gradient(module, g * scale, torch.tensor([1 / scale]))
        assert_near(got, gradient(plain, g).double() * scale)
    assert_near(module.square, plain.square.double())


def test_other_uses_of_the_samples_are_as_they_were():
    module = GradientNormalizer()
    x = torch.ones(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(5 * x[0] + 7 * module(x)[1], x)
    assert_near(gradient, torch.tensor([5.0, 1.0, 0.0]).double())
    first = nn.ReLU(inplace=True)(module(2 * x))
    (gradient,) = torch.autograd.grad(first.sum(), x)
    assert gradient.norm() > 0


def test_no_gradient_no_change():
    module = GradientNormalizer()
    x = torch.ones(3)
    assert module(x) is x
    with torch.no_grad():
        x.requires_grad_()
        assert module(x) is x


def test_second_derivatives_hold_the_divisor():
    module = GradientNormalizer(scale=2.0)
    gradient(module, torch.tensor([3.0, 4.0], dtype=torch.float64))
    module.eval()
    x = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad((module(x) ** 3).sum(), x, create_graph=True)
    assert_near(first, 3 * x**2 * 2 / 5, torch.float32)
    (second,) = torch.autograd.grad(first.sum(), x)
    # Once for the gradient of the loss, once for that of this gradient.
    assert_near(second, 6 * x * (2 / 5) ** 2, torch.float32)


def test_between_compiled_parts():
    module, plain = GradientNormalizer(0.5), GradientNormalizer(0.5)
    net = nn.Linear(3, 3)

    def step(module, x):
        return (module(net(x)) ** 2).sum()

    compiled = torch.compile(step, backend="eager")
    for seed in range(2):
        x = drawer(seed)(2, 3)
        got = torch.autograd.grad(compiled(module, x), net.weight)[0]
        assert_near(got, torch.autograd.grad(step(plain, x), net.weight)[0].double())
    assert_near(module.square, plain.square.double())


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"decay": 1.0}, ValueError, "decay below 1, got 1.0"),
        ({"decay": -0.1}, ValueError, "decay to be finite and not negative"),
        ({"scale": float("inf")}, ValueError, "scale to be finite"),
        ({"scale": None}, TypeError, "scale to be a number, got NoneType"),
    ],
)
def test_refuses_settings(arguments, error, message):
    with pytest.raises(error, match=f"^GradientNormalizer: expected {message}"):
        GradientNormalizer(**arguments)


def test_refuses_samples():
    module = GradientNormalizer()
    for bad, error, message in (
        (None, TypeError, "x to be a tensor, got NoneType"),
        (torch.ones(2, dtype=torch.int64), TypeError, "x of a floating-point dtype"),
        (torch.ones(2, device="meta"), ValueError, "x on cpu, where the average is, got meta"),
    ):
        with pytest.raises(error, match=f"^GradientNormalizer: expected {message}"):
            module(bad)
    with pytest.raises(ValueError, match=r"^GradientNormalizer: expected inv_scale to be a t"):
        module(torch.ones(2), 0.5)
