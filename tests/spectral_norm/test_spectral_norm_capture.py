"""CUDA graphs: nothing that is remembered enters a graph, nor outlives what its replays write."""

import pytest
import torch
from support.capture import capturing, replay_writes
from torch import nn

from gankernels import ema, fuse_spectral_norm
from gankernels.nn.utils import parametrizations
from gankernels.nn.utils import spectral_norm as hook

WAYS = {"hook": hook, "parametrization": parametrizations.spectral_norm}
X = torch.linspace(-1, 1, 12).view(2, 6)


def network(way, **options):
    return nn.Sequential(
        WAYS[way](nn.Linear(6, 5), **options), nn.Tanh(), WAYS[way](nn.Linear(5, 4), **options)
    )


def parameters(model):
    return [p for p in model.parameters() if p.dim() > 1]


def vectors(model):
    return [b.clone() for b in model.buffers() if b.dim() == 1]


def moved(before, model):
    return not any(torch.equal(a, b) for a, b in zip(before, vectors(model), strict=True))


@torch.no_grad()
def evaluate(model):
    out = model.eval()(X)
    model.train()
    return out


def fresh(model, way):
    """What a model without a memory makes of the weights, u and v of today."""
    twin = network(way)
    twin.load_state_dict(model.state_dict())
    return evaluate(twin)


class Counted:
    """How many weights are normalized within a block."""

    def __init__(self, monkeypatch):
        from gankernels import ops

        self.count = 0
        for name in ("spectral_norm", "spectral_normalize"):
            monkeypatch.setattr(ops, name, self._counting(getattr(ops, name)))

    def _counting(self, op):
        def call(weights, *args, **options):
            self.count += len(weights)
            return op(weights, *args, **options)

        return call


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


@pytest.fixture(params=["alone", "fused"])
def make(request, way):
    """Makes a network with options: layers by themselves, or fused; and its handle, or None."""

    def make(**options):
        if request.param == "alone":
            return network(way, **options), None
        model = network(way)
        return model, fuse_spectral_norm(model, **options)

    return make


@pytest.mark.parametrize("trust", [True, False], ids=["trusted", "compared"])
def test_a_capture_finds_nothing_of_the_warm_up(make, trust, monkeypatch):
    model, _ = make(step_scoped=True, trust_versions=trust)
    model(X)
    counted = Counted(monkeypatch)
    before = vectors(model)
    model(X)
    assert counted.count == 0
    assert not moved(before, model)  # of one step
    with capturing():
        model(X)
        assert counted.count == 2
        assert moved(before, model)  # the graph has an iteration of its own
        before = vectors(model)
        model(X)
        assert counted.count == 4
        assert moved(before, model)


@pytest.mark.parametrize("trust", [True, False], ids=["trusted", "compared"])
def test_a_capture_leaves_nothing(make, way, trust):
    model, _ = make(step_scoped=True, cache_eval=True, trust_versions=trust)
    with capturing():
        model(X)
        evaluate(model)
    replay_writes(*parameters(model))
    assert torch.equal(evaluate(model), fresh(model, way))


@pytest.mark.parametrize("first", ["train", "eval"])
@pytest.mark.parametrize("trust", [True, False], ids=["trusted", "compared"])
def test_evaluations_between_replays(make, way, trust, first):
    """A captured step of training; evaluations, each after replays of it."""
    model, _ = make(cache_eval=True, trust_versions=trust)
    if first == "eval":
        evaluate(model)  # kept before the capture
    with capturing():
        model(X).sum().backward()
    for _ in range(3):
        replay_writes(*parameters(model), *(b for b in model.buffers() if b.dim() == 1))
        assert torch.equal(evaluate(model), fresh(model, way))


def test_training_between_replays(make, way):
    """As of make_graphed_callables: forwards that are not replays compute W / sigma anew."""
    model, _ = make(step_scoped=True, trust_versions=True)
    with capturing():
        model(X)
    model(X)
    replay_writes(*parameters(model))
    twin = network(way)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(model(X), twin(X))


def test_an_announced_step_turns_the_memory_on(way, monkeypatch):
    model = network(way)
    handle = fuse_spectral_norm(model, step_scoped=True, cache_eval=True, trust_versions=True)
    with capturing():
        model(X)
    counted = Counted(monkeypatch)
    for _ in range(2):
        replay_writes(*parameters(model))
        handle.step()
        expected = fresh(model, way)
        before = counted.count
        assert torch.equal(evaluate(model), expected)
        assert torch.equal(evaluate(model), expected)
        assert counted.count == before + 2
        model(X)
        model(X)
        assert counted.count == before + 4


def test_a_captured_step_of_an_optimizer(way):
    """Its hooks run once, at the capture, and never at a replay."""
    model = network(way)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"step_scoped": True, "cache_eval": True, "trust_versions": True}
    fuse_spectral_norm(model, optimizer=optimizer, **options)
    model(X).sum().backward()
    with capturing():
        optimizer.step()
    evaluate(model)
    replay_writes(*parameters(model))
    assert torch.equal(evaluate(model), fresh(model, way))


def test_a_captured_step_of_an_optimizer_that_nobody_watches(way):
    model = network(way, cache_eval=True, trust_versions=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).sum().backward()
    evaluate(model)
    with capturing():
        optimizer.step()
    evaluate(model)
    replay_writes(*parameters(model))
    assert torch.equal(evaluate(model), fresh(model, way))


def test_averages_between_replays(make, way):
    model, _ = make(cache_eval=True, trust_versions=True)
    average = ema.AveragedModel(model, decay=0.0)
    with capturing():
        model(X)
    for _ in range(2):
        average.update_parameters(model)
        replay_writes(*parameters(model))
    average.update_parameters(model)
    with torch.no_grad():
        assert torch.allclose(average.module.eval()(X), fresh(model, way))
