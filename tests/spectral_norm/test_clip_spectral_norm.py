"""clip_spectral_norm_ and SpectralNormClip against norms of float64 singular values."""

import copy
import itertools

import pytest
import torch
from distributed import ranks
from support.tensors import DTYPES, assert_near, drawer
from support.waits import standing_in
from support.weights import LAYOUTS
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import gankernels as gk
from gankernels.spectral_norm.models import clip

C = 0.8


def norm(weight):
    return torch.linalg.matrix_norm(weight.detach().double().flatten(1), 2)


def clipped(weight, c=C):
    return weight.detach().double() * (c / norm(weight)).clamp(max=1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(32, 16), nn.Linear(16, 1)
    )


MATRICES = {
    name: make
    for name, make in LAYOUTS.items()
    if not name.startswith(("vector", "expanded"))  # in place, and of two dimensions
}


@pytest.mark.parametrize("tol, near", [(1e-3, 0.005), (None, 0.1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout(dtype, tol, near, backend):
    draw = drawer(0, dtype, backend)
    weights = [make(draw) for make in MATRICES.values()]
    before = [w.clone() for w in weights]
    pointers = [w.data_ptr() for w in weights]
    sigma = gk.clip_spectral_norm_(weights, C, tol=tol, n_power_iterations=20).cpu().double()
    wanted = torch.stack([norm(w.cpu()) for w in before])
    torch.testing.assert_close(sigma, wanted, rtol=near, atol=0)
    for name, w, x, s, pointer in zip(MATRICES, weights, before, sigma, pointers, strict=True):
        assert_near(w.cpu(), x.cpu().double() * (C / s).clamp(max=1), dtype, what=name)
        assert w.data_ptr() == pointer
        assert norm(w.cpu()) <= C * (1 + near)


@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_the_tolerance(tol):
    """Of square normal matrices, whose singular values are near each other."""
    draw = drawer(1, torch.float64)
    weights = [draw(n, n) for n in (5, 20, 60, 150, 400)]
    wanted = torch.stack([norm(w) for w in weights])
    sigma = gk.clip_spectral_norm_(weights, C, tol=tol)
    assert (sigma <= wanted * (1 + 1e-12)).all()
    assert (sigma >= wanted * (1 - 1.5 * tol)).all()
    assert all(norm(w) <= C * (1 + 2 * tol) for w in weights)


def test_within_the_bound_nothing_changes():
    weights = [torch.eye(3), torch.full((2, 2), 1e-3), torch.zeros(3, 3), torch.ones(0, 3)]
    before = [w.clone() for w in weights]
    sigma = gk.clip_spectral_norm_(weights, 1.5)
    assert all(map(torch.equal, weights, before))
    torch.testing.assert_close(sigma, torch.tensor([1.0, 2e-3, 0.0, 0.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_wide_vectors(dtype):
    """A scale that was itself rounded to 8 bits would miss the bound by up to 0.4 %."""
    draw = drawer(0)
    weights = [draw(64, 64).to(dtype) for _ in range(20)]
    keeper = gk.SpectralNormClip(weights, C, tol=1e-5)
    keeper.step()
    assert all(v.dtype == torch.float32 for v in keeper.state_dict()["v"])
    assert all((norm(w) / C - 1).abs() < 1e-3 for w in weights)


@pytest.mark.parametrize("tol", [None, 1e-3])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_left(bad, tol):
    draw = drawer(0)
    weights = [draw(4, 5), draw(4, 5), torch.zeros(4, 5), draw(6, 5).bfloat16()]
    weights[1][2, 3] = bad
    before = [w.clone() for w in weights]
    keeper = gk.SpectralNormClip(weights, 0.1, tol=tol)
    sigma = keeper.step()
    assert torch.isfinite(sigma).tolist() == [True, False, True, True]
    assert sigma[2] == 0
    torch.testing.assert_close(weights[1], before[1], rtol=0, atol=0, equal_nan=True)
    assert norm(weights[0]) < 0.11
    weights[1].copy_(before[0])
    weights[2].copy_(before[0])
    for _ in range(50):  # u and v have not been poisoned
        keeper.step()
    assert all((norm(w) - 0.1).abs() < 1e-3 for w in weights)


@pytest.mark.parametrize("tol, near", [(None, 0.1), (1e-3, 0.005)])
def test_a_network_in_training(tol, near):
    """An iteration or two a step follow the weights; biases and norms are not touched."""
    model = network()
    keeper = gk.SpectralNormClip(model.parameters(), C, tol=tol)
    assert [w.dim() for w in keeper.matrices] == [4, 2, 2]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(8, 3, 4, 4)
    exceeded = 0
    for _ in range(40):
        optimizer.zero_grad()
        model(x).square().sub(3).square().mean().backward()
        optimizer.step()
        before = torch.stack([norm(w) for w in keeper.matrices])
        vectors = [p.clone() for p in model.parameters() if p.dim() == 1]
        sigma = keeper.step().double()
        exceeded += int((before > C).sum())
        torch.testing.assert_close(sigma, before, rtol=near, atol=0)
        assert all(norm(w) <= C * (1 + near) for w in keeper.matrices)
        now = [p for p in model.parameters() if p.dim() == 1]
        assert all(map(torch.equal, now, vectors))
    assert exceeded > 20


def test_the_first_step_is_near_already():
    model = network()
    gk.SpectralNormClip(model.parameters(), C).step()
    assert all(norm(p) <= C * 1.05 for p in model.parameters() if p.dim() > 1)


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
def test_a_graph_of_the_weights_before_is_refused(grad_mode):
    model = network()
    output = model(torch.randn(2, 3, 4, 4, requires_grad=True)).sum()
    versions = [p._version for p in model.parameters()]
    with grad_mode():
        sigma = gk.clip_spectral_norm_(model.parameters(), 0.1)
    assert not sigma.requires_grad
    moved = [p._version > n for p, n in zip(model.parameters(), versions, strict=True)]
    assert moved == [p.dim() > 1 for p in model.parameters()]
    assert all(p.is_leaf and p.requires_grad for p in model.parameters())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_views_and_repetitions():
    conv = nn.ConvTranspose2d(4, 6, 3)
    wanted = clipped(conv.weight.movedim(1, 0), 0.5).movedim(0, 1)
    sigma = gk.clip_spectral_norm_([conv.weight.movedim(1, 0)], 0.5, tol=1e-6)
    assert_near(conv.weight, wanted, factor=10)
    linear = nn.Linear(4, 3)
    sigma = gk.clip_spectral_norm_([linear.weight, linear.bias, linear.weight], 0.1)
    assert sigma.shape == (1,)


@pytest.mark.parametrize("container", [list, tuple, iter, set])
def test_iterables(container):
    weights = [torch.ones(2, 2), torch.ones(2, 2, dtype=torch.float64)]
    sigma = gk.clip_spectral_norm_(container(weights), 1.0)
    assert sigma.dtype == torch.float64
    for w in weights:
        torch.testing.assert_close(w, torch.full_like(w, 0.5))


def test_one_call_for_each_dtype(monkeypatch):
    calls = []
    original = clip.ops.power_iteration_

    def counting(weights, u, v, n, eps):
        calls.append((len(weights), n))
        return original(weights, u, v, n, eps)

    monkeypatch.setattr(clip.ops, "power_iteration_", counting)
    draw = drawer(0)
    weights = [draw(9, 7) for _ in range(5)] + [draw(9, 7).double() for _ in range(3)]
    keeper = gk.SpectralNormClip(weights, 1.0, n_power_iterations=2)
    keeper.step()
    keeper.step()
    assert calls == [(5, 15), (3, 15), (5, 2), (3, 2)]


def test_nothing_is_waited_for():
    with standing_in() as waits:
        weights = [torch.randn(9, 7, device="cuda"), torch.ones(0, 2, device="cuda")]
        keeper = gk.SpectralNormClip(weights, 1.0)
        keeper.step()
        with waits.looking():
            keeper.step()
        assert waits.found == []
        keeper.tol = 1e-3
        with waits.looking():
            keeper.step()
        assert "tolist" in waits.found


def test_the_tolerance_goes_on_where_it_must(monkeypatch):
    """A matrix whose sigma stands is not iterated on with those whose rises."""
    calls = []
    original = clip.ops.power_iteration_

    def counting(weights, u, v, n, eps):
        calls.append((len(weights), n))
        return original(weights, u, v, n, eps)

    monkeypatch.setattr(clip.ops, "power_iteration_", counting)
    slow = torch.diag(torch.linspace(0.9, 1, 200))
    keeper = gk.SpectralNormClip([torch.ones(4, 4), slow], 2.0, tol=1e-4)
    keeper.step()
    assert calls[:2] == [(2, 15), (2, 15)]
    assert calls[2] == (1, 30)
    assert all(a[1] * 2 == b[1] for a, b in itertools.pairwise(calls[2:]))
    calls.clear()
    keeper.step()
    assert calls[:2] == [(2, 1), (2, 1)]
    assert len(calls) <= 3


def test_a_tolerance_below_rounding_ends():
    weight = drawer(0)(30, 30)
    gk.clip_spectral_norm_(weight, C, tol=1e-30)
    assert norm(weight) <= C * (1 + 1e-5)


def test_the_same_everywhere():
    """Nothing is drawn from the generators of the user, who has other numbers on every rank."""
    weights = [drawer(0)(8, 9), drawer(0)(8, 9)]
    state = torch.get_rng_state()
    gk.clip_spectral_norm_(weights[0], C)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    gk.clip_spectral_norm_(weights[1], C)
    assert torch.equal(*weights)


def test_state_dict(tmp_path):
    model = network()
    keeper = gk.SpectralNormClip(model.parameters(), C)
    for _ in range(3):
        keeper.step()
    torch.save([model.state_dict(), keeper.state_dict()], tmp_path / "state")
    twin = network()
    other = gk.SpectralNormClip(twin.parameters(), C)
    states = torch.load(tmp_path / "state")
    twin.load_state_dict(states[0])
    other.load_state_dict(states[1])
    for each in (model, twin):
        each[3].weight.data.add_(0.1)
    assert torch.equal(keeper.step(), other.step())
    assert torch.equal(model[3].weight, twin[3].weight)


def test_moved_parameters():
    model = network()
    keeper = gk.SpectralNormClip(model.parameters(), C)
    keeper.step()
    model.double()
    sigma = keeper.step()
    assert sigma.dtype == torch.float64
    assert all(w.dtype == torch.float64 for w in keeper.matrices)


def test_copies():
    keeper = copy.deepcopy(gk.SpectralNormClip(network().parameters(), C))
    keeper.step()


def test_an_error_changes_nothing():
    x = torch.ones(3, 3)
    with pytest.raises(TypeError):
        gk.clip_spectral_norm_([x, torch.ones(2, 2).long()])
    assert x._version == 0


def normalized():
    return gk.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))


@pytest.mark.parametrize("op", ["clip_spectral_norm_", "SpectralNormClip"])
@pytest.mark.parametrize(
    "parameters, error, message",
    [
        (nn.Linear(1, 1), TypeError, r"got Linear; pass D.parameters\(\)"),
        (3, TypeError, "an iterable of tensors, got int"),
        ([torch.ones(2, 2), 2.0], TypeError, "got one of float"),
        ([torch.ones(2, 2).long()], TypeError, "of a floating-point dtype, got torch.int64"),
        ([torch.ones(2, 2).cfloat()], TypeError, "floating-point dtype, got torch.complex64"),
        ([torch.eye(2).to_sparse()], TypeError, "weights to be a dense tensor"),
        ([], ValueError, "of two dimensions or more, got none; an iterator"),
        ([torch.ones(3)], ValueError, "of two dimensions or more, got none"),
        ([nn.LazyLinear(2).weight], ValueError, "weights with values"),
        ([torch.ones(2, 2, device="meta")], ValueError, "weights with values"),
        ([normalized().weight], ValueError, r"got one of shape \(4, 3\) that is computed"),
    ],
)
def test_refuses_parameters(op, parameters, error, message):
    with pytest.raises(error, match=f"^{op}: expected .*{message}"):
        getattr(gk, op)(parameters)


@pytest.mark.parametrize("op", ["clip_spectral_norm_", "SpectralNormClip"])
@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"max_norm": 0}, ValueError, "max_norm to be finite and positive, got 0"),
        ({"max_norm": "1"}, TypeError, "max_norm to be a number, got str"),
        ({"n_power_iterations": 0}, ValueError, "n_power_iterations to be at least 1, got 0"),
        ({"n_power_iterations": 1.0}, TypeError, "n_power_iterations to be an int, got float"),
        ({"tol": 0.0}, ValueError, "tol to be finite and positive, got 0"),
        ({"tol": "x"}, TypeError, "tol to be a number, got str"),
        ({"eps": -1.0}, ValueError, "eps to be finite and not negative, got -1"),
    ],
)
def test_refuses_numbers(op, options, error, message):
    with pytest.raises(error, match=f"^{op}: expected {message}"):
        getattr(gk, op)([torch.ones(2, 2)], **options)


@pytest.mark.parametrize(
    "state, error, message",
    [
        (3, TypeError, "the state_dict of another SpectralNormClip, got int"),
        ({"v": []}, TypeError, r"another SpectralNormClip, got dict with \['v'\]"),
        ({"steps": -1, "v": []}, ValueError, "steps to be at least 0, got -1"),
        ({"steps": 1, "v": [3]}, TypeError, "v to be a list of tensors, got a list with int"),
        ({"steps": 1, "v": [torch.ones(3)]}, ValueError, r"shapes \[\(2,\)\], got \[\(3,\)\]"),
    ],
)
def test_refuses_states(state, error, message):
    keeper = gk.SpectralNormClip([torch.ones(2, 2)])
    before = keeper.state_dict()
    with pytest.raises(error, match=f"^SpectralNormClip: expected .*{message}"):
        keeper.load_state_dict(state)
    assert keeper.state_dict()["steps"] == before["steps"]
    assert torch.equal(keeper.state_dict()["v"][0], before["v"][0])


# --- shards ------------------------------------------------------------------------------------


def sharded():
    """What a rank finds: a network under FSDP2, and other placements."""
    world = dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    model = network().double()
    fully_shard(model, mesh=mesh)
    placements = Shard(0), Shard(1), Replicate()
    others = [
        distribute_tensor(drawer(i, torch.float64)(5, 7), mesh, [placement])
        for i, placement in enumerate(placements)
    ]
    found = {}
    for tol in (None, 1e-9):
        parameters = [*(p for p in model.parameters()), *others]
        keeper = gk.SpectralNormClip(parameters, C, n_power_iterations=300, tol=tol)
        versions = [p._version for p in keeper.matrices]
        sigma = keeper.step()
        full = [p.full_tensor().detach().clone() for p in keeper.matrices]
        assert all(isinstance(p, DTensor) for p in keeper.matrices)
        assert all(p._version > n for p, n in zip(keeper.matrices, versions, strict=True))
        found[tol] = [sigma, *full]
        with torch.no_grad():
            for p in keeper.matrices:
                p.mul_(3)
    partial = DTensor.from_local(torch.ones(2, 2), mesh, [torch.distributed.tensor.Partial()])
    with pytest.raises(TypeError, match=r"DTensors that are replicated.*redistribute it"):
        gk.SpectralNormClip([partial])
    return found


@pytest.mark.slow
def test_shards(tmp_path):
    found = ranks.run(2, tmp_path / "ranks", sharded)
    weights = [p.detach() for p in network().double().parameters() if p.dim() > 1]
    weights += [drawer(i, torch.float64)(5, 7) for i in range(3)]
    for tol in (None, 1e-9):
        for rank in found:
            sigma, *after = rank[tol]
            torch.testing.assert_close(
                sigma, torch.stack(list(map(norm, weights))), rtol=1e-8, atol=0
            )
            for got, w in zip(after, weights, strict=True):
                torch.testing.assert_close(got, clipped(w), rtol=1e-8, atol=1e-10)
            assert all(map(torch.equal, rank[tol], found[0][tol]))
        weights = [3 * clipped(w) for w in weights]
