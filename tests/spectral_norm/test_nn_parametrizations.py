"""The parametrization against torch's, run for run: the rows of the specification that are its own.

What it shares with the hook is in test_nn_spectral_norm.py.
"""

import copy
import math

import pytest
import torch
from support import devices
from support.networks import (
    KINDS,
    LAYERS,
    Scale,
    assert_same,
    draw,
    loss,
    make,
    states,
    train,
    twins,
)
from torch import nn
from torch.nn.utils import parametrize

from gankernels.nn.utils.parametrizations import spectral_norm

pytestmark = pytest.mark.usefixtures("device")

KIND = KINDS["parametrization"]


def linear():
    return nn.Linear(7, 5)


def inputs(shape=(4, 7), dtype=torch.float32, n=3):
    return [draw(shape, seed, dtype) for seed in range(1, n + 1)]


def reads(module, n):
    """Values and the gradient of reading the weight n times."""
    weights = [module.weight for _ in range(n)]
    sum((w * draw(tuple(w.shape), k, w.dtype)).sum() for k, w in enumerate(weights)).backward()
    return weights


@devices.CPU_ONLY  # numbers that a GPU draws are others
@pytest.mark.parametrize("training, iterations", [(True, 16), (False, 15)])
def test_first_u_and_v(training, iterations):
    def prepare(module):
        module.train(training)

    theirs, ours = twins(KIND, linear, torch.float64, prepare)
    assert_same(states(ours), states(theirs))
    torch.manual_seed(0)
    weight = linear().double().weight
    u, v = (torch.randn(n, dtype=torch.float64) for n in (5, 7))
    for _ in range(iterations):
        u = nn.functional.normalize(weight @ v, dim=0)
        v = nn.functional.normalize(weight.T @ u, dim=0)
    assert_same(KIND.parts(ours), [weight, u, v])
    assert ours.parametrizations.weight[0].training is training


def test_init_iterations():
    def vectors(way, **options):
        module = make(way, linear, torch.float64, lambda m: m.eval(), **options)
        return KIND.parts(module)

    assert_same(vectors(spectral_norm, init_iterations=15), vectors(KIND.torch))
    for n in (1, 3):
        weight, u, v = vectors(spectral_norm, init_iterations=0)
        for _ in range(n):
            u = nn.functional.normalize(weight @ v, dim=0)
            v = nn.functional.normalize(weight.T @ u, dim=0)
        assert_same(vectors(spectral_norm, init_iterations=n), [weight, u, v])


@pytest.mark.parametrize("training", [True, False])
def test_every_access_moves_u_and_v(training):
    theirs, ours = twins(KIND, linear, torch.float64)
    theirs.train(training), ours.train(training)
    before = [x.clone() for x in KIND.parts(ours)[1:]]
    assert_same(reads(ours, 3), reads(theirs, 3))
    assert_same(ours, theirs)
    assert torch.equal(before[0], KIND.parts(ours)[1]) is not training


def test_cached_reads():
    theirs, ours = twins(KIND, linear, torch.float64)
    for module in (theirs, ours):
        with parametrize.cached():
            assert module.weight is module.weight
    assert_same(states(ours), states(theirs))


@pytest.mark.parametrize("dim", [-1, -2, -3, -4, 0, 1, 2, 3])
def test_any_dim(dim):
    factory, shape = LAYERS["conv2d"]
    theirs, ours = twins(KIND, factory, torch.float64, dim=dim)
    assert ours.parametrizations.weight[0].dim == theirs.parametrizations.weight[0].dim
    xs = inputs(shape, torch.float64)
    assert_same(train(ours, xs), train(theirs, xs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_a_vector_is_divided_by_its_norm(dtype):
    theirs, ours = twins(KIND, lambda: Scale(6), dtype)
    assert (
        list(ours.state_dict()) == list(theirs.state_dict()) == ["parametrizations.weight.original"]
    )
    xs = inputs((4, 6), dtype)
    assert_same(train(ours, xs), train(theirs, xs))
    assert float(ours.weight.detach().abs().square().sum()) == pytest.approx(1)


def test_repr():
    theirs, ours = twins(KIND, linear)
    assert repr(ours) == repr(theirs).replace("_SpectralNorm", "SpectralNorm")
    options = {"n_power_iterations": 2, "guard": True, "max_norm": 2.5, "step_scoped": True}
    text = repr(spectral_norm(linear(), cache_eval=True, **options))
    for key, value in {**options, "cache_eval": True}.items():
        assert f"{key}={value}" in text


def test_metadata_has_nothing_of_it():
    theirs, ours = twins(KIND, linear)
    assert ours.state_dict()._metadata == theirs.state_dict()._metadata


def test_attributes_can_be_set():
    modules = twins(KIND, linear, torch.float64)
    for module in modules:
        module.parametrizations.weight[0].n_power_iterations = 4
        module.parametrizations.weight[0].eps = 0.3
    assert_same(*(train(m, inputs(dtype=torch.float64)) for m in modules[::-1]))


@pytest.mark.parametrize("first", ["torch", "ours"])
@pytest.mark.parametrize("second", ["torch", "ours"])
def test_the_same_weight_twice(first, second):
    def build(*ways):
        module = make(ways[0], linear, torch.float64)
        return ways[1](module, n_power_iterations=2)

    theirs, ours = build(KIND.torch, KIND.torch), build(getattr(KIND, first), getattr(KIND, second))
    xs = inputs(dtype=torch.float64)
    assert_same(train(ours, xs), train(theirs, xs))


class Twice(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


@pytest.mark.parametrize("before", [True, False])
def test_among_other_parametrizations(before):
    def build(way):
        module = linear().double()
        torch.manual_seed(0)
        nn.init.normal_(module.weight)
        nn.init.zeros_(module.bias)
        steps = [
            lambda: parametrize.register_parametrization(module, "weight", Twice()),
            lambda: way(module),
        ]
        for step in steps if before else steps[::-1]:
            step()
        return module

    theirs, ours = build(KIND.torch), build(KIND.ours)
    assert_same(
        train(ours, inputs(dtype=torch.float64)), train(theirs, inputs(dtype=torch.float64))
    )


def test_a_buffer_can_be_normalized():
    def build(way):
        torch.manual_seed(0)
        module = nn.Module()
        module.register_buffer("weight", torch.randn(4, 6))
        return way(module)

    theirs, ours = build(KIND.torch), build(KIND.ours)
    assert_same([ours.weight, ours.weight], [theirs.weight, theirs.weight])
    assert_same(states(ours), states(theirs))


def test_assigning_and_initializing_the_weight():
    modules = twins(KIND, linear, torch.float64)
    value = draw((5, 7), 9, torch.float64)
    for module in modules:
        module.weight = value
        assert torch.equal(KIND.parts(module)[0], value)
    assert_same(states(modules[1]), states(modules[0]))
    weights = [module.weight for module in modules]
    assert_same(weights[1], weights[0])


@pytest.mark.parametrize("whose", ["torch", "ours"])
@pytest.mark.parametrize("leave", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_removal(whose, leave, training):
    expected = make(KIND.torch, linear, torch.float64)
    module = make(getattr(KIND, whose), linear, torch.float64)
    original = module.parametrizations.weight.original
    start = original.detach().clone()
    buffers = KIND.parts(module)[1:]
    found = []
    for m in (expected, module):
        m(draw((4, 7), 1, torch.float64))
        m.train(training)
        vectors = KIND.parts(m)[1:]
        parametrize.remove_parametrizations(m, "weight", leave_parametrized=leave)
        found.append((m.weight, vectors))
    assert_same(found[1], found[0])  # in training mode u and v have moved once more
    assert all(map(lambda a, b: a is b, buffers, found[1][1]))
    assert module.weight is original
    assert torch.equal(module.weight, start) is not leave
    assert type(module) is nn.Linear
    assert_same(
        train(module, inputs(dtype=torch.float64)), train(expected, inputs(dtype=torch.float64))
    )


def test_removal_takes_the_options_along():
    module = spectral_norm(linear(), guard=True, step_scoped=True, cache_eval=True)
    module(draw((4, 7)))
    parametrize.remove_parametrizations(module, "weight")
    assert list(dict(module.named_parameters())) == ["bias", "weight"]
    assert not list(module.buffers())
    spectral_norm(module)


def test_two_copies_of_a_parametrized_module():
    ours = make(KIND.ours, linear, torch.float64)
    first, second = copy.deepcopy(ours), copy.deepcopy(ours)
    a = train(first, inputs(dtype=torch.float64))
    assert_same(states(second), states(ours))
    assert_same(train(second, inputs(dtype=torch.float64)), a)


def test_shared_through_the_module():
    def build(way):
        layer = make(way, linear, torch.float64)
        return nn.ModuleDict({"a": layer, "b": layer})

    results = []
    for way in (KIND.torch, KIND.ours):
        net = build(way)
        x = draw((4, 7), 1, torch.float64)
        loss(net["a"](x) - net["b"](2 * x)).backward()
        results.append(net)
    assert_same(results[1], results[0])


def test_dim_out_of_range():
    for dim in (2, -3):
        with pytest.raises(IndexError, match=rf"range of \[-2, 1\] but got {dim}"):
            spectral_norm(linear(), dim=dim)


def test_sigma_is_the_spectral_norm_at_once():
    module = make(KIND.ours, lambda: nn.Linear(30, 20), torch.float64)
    largest = torch.linalg.matrix_norm(module.parametrizations.weight.original, 2)
    weight, u, v = KIND.parts(module)
    assert math.isclose((u @ weight @ v).item(), largest.item(), rel_tol=5e-2)
