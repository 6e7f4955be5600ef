"""The weight of the adversarial loss that VQGAN finds by gradients of its last layer."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.tensors import assert_near, drawer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gankernels import losses

adaptive_weight = losses.adaptive_weight


def networks(dtype=torch.float64):
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).to(dtype)
    critic = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)
    return decoder, critic


def both_losses(decoder, critic, seed=0, size=3, dtype=torch.float64):
    draw = drawer(seed, dtype)
    z, x = draw(size, 4), draw(size, 5)
    y = decoder(z)
    return (x - y).abs().mean(), losses.hinge.generator(critic(y))


def plain(nll, g_loss, layer, weight=0.8, maximum=1e4, eps=1e-4):
    """Equation 7."""
    of_nll, of_g = (
        torch.autograd.grad(x, layer, retain_graph=True)[0].norm() for x in (nll, g_loss)
    )
    return weight * min(max(of_nll / (of_g + eps), 0.0), maximum)


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"weight": 0.5}, {"weight": 0}, {"maximum": 0.1}, {"eps": 3.0}, {"weight": 2, "eps": 0.1}],
)
def test_value(settings):
    decoder, critic = networks()
    nll, g_loss = both_losses(decoder, critic)
    layer = decoder[-1].weight
    got = adaptive_weight(nll, g_loss, layer, **settings)
    assert got.shape == ()
    assert got.dtype == torch.float64
    assert not got.requires_grad
    assert_near(got, torch.as_tensor(plain(nll, g_loss, layer, **settings), dtype=torch.float64))
    tensor = torch.tensor([float(settings.get("weight", 0.8))])
    again = adaptive_weight(nll, g_loss, layer, **{**settings, "weight": tensor})
    assert_near(again, got, torch.float32)
    assert again.shape == ()
    assert not again.requires_grad


def test_the_clamp_and_the_floor():
    layer = torch.ones(3, dtype=torch.float64, requires_grad=True)
    # A gradient of zeros: 1 / eps = 10^4 reaches the maximum.
    assert adaptive_weight(layer[0], 0 * layer[1], layer) == 8000
    assert adaptive_weight(layer[0], 0 * layer[1], layer, maximum=5.0) == 4
    assert adaptive_weight(0 * layer[0], layer[1], layer) == 0
    assert_near(adaptive_weight(3 * layer[0], 2 * layer[1], layer),
                torch.tensor(0.8 * 3 / 2.0001, dtype=torch.float64))  # fmt: skip


def test_both_losses_pull_alike():
    decoder, critic = networks()
    nll, g_loss = both_losses(decoder, critic)
    layer = decoder[-1].weight
    factor = adaptive_weight(nll, g_loss, layer, weight=1.0, eps=1e-12)
    of_nll, of_g = (
        torch.autograd.grad(x, layer, retain_graph=True)[0] for x in (nll, factor * g_loss)
    )
    assert_near(of_g.norm(), of_nll.norm(), factor=10)


def test_the_graphs_stay_and_nothing_else_changes():
    decoder, critic = networks()
    nll, g_loss = both_losses(decoder, critic)
    factor = adaptive_weight(nll, g_loss, decoder[-1].weight)
    assert all(p.grad is None for p in (*decoder.parameters(), *critic.parameters()))
    (nll + factor * g_loss).backward()
    got = [p.grad.clone() for p in decoder.parameters()]
    decoder.zero_grad()
    nll, g_loss = both_losses(decoder, critic)
    (nll + float(factor) * g_loss).backward()
    for a, p in zip(got, decoder.parameters(), strict=True):
        assert_near(a, p.grad)
    # As a weight of the loss itself, in whose dtype it is taken.
    _, g_loss = both_losses(decoder, critic)
    y = torch.ones(3, requires_grad=True)
    assert losses.hinge.generator(y, weight=factor).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_computes_in_float32(dtype):
    layer = (drawer(0, dtype)(40, 30) * 0.1).requires_grad_()
    nll = (layer * drawer(1, dtype)(40, 30) * 1e-4).sum()
    g_loss = (layer * drawer(2, dtype)(40, 30) * 1e-3).sum()
    grads = [torch.autograd.grad(x, layer, retain_graph=True)[0].double() for x in (nll, g_loss)]
    expected = 0.8 * grads[0].norm() / (grads[1].norm() + 1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = adaptive_weight(nll, g_loss, layer)
    got = adaptive_weight(nll, g_loss, layer)
    assert got.dtype == again.dtype == torch.float32
    assert torch.equal(got, again)
    # The squares of 1e-4 are nothing in float16.
    assert_near(got, expected, torch.float32)


def test_within_blocks_without_gradients():
    decoder, critic = networks()
    nll, g_loss = both_losses(decoder, critic)
    layer = decoder[-1].weight
    expected = adaptive_weight(nll, g_loss, layer)
    for block in (torch.no_grad(), torch.inference_mode()):
        with block:
            assert_near(adaptive_weight(nll, g_loss, layer), expected)


def test_between_compiled_parts():
    decoder, critic = networks(torch.float32)
    nll, g_loss = both_losses(decoder, critic, dtype=torch.float32)
    expected = adaptive_weight(nll, g_loss, decoder[-1].weight)

    def step(decoder, critic):
        nll, g_loss = both_losses(decoder, critic, dtype=torch.float32)
        return adaptive_weight(nll, g_loss, decoder[-1].weight)

    compiled = torch.compile(step, backend="eager")
    assert_near(compiled(decoder, critic), expected.double())


# --- mixed precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scaled_gradients_are_unscaled(dtype):
    decoder, critic = networks()
    expected = adaptive_weight(*both_losses(decoder, critic), decoder[-1].weight)
    decoder, critic = decoder.float(), critic.float()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    inv_scale = 1 / scaler.scale(torch.ones(()))
    with torch.autocast("cpu", dtype=dtype):
        nll, g_loss = both_losses(decoder, critic, dtype=torch.float32)
        got = adaptive_weight(nll, g_loss, decoder[-1].weight, inv_scale=inv_scale)
    assert got.dtype == torch.float32
    assert_near(got, expected, factor=1e12 * 0.03)


def test_scaling_saves_gradients_from_underflow():
    layer = torch.ones(4, requires_grad=True)
    half = layer.half()  # as autocast makes of it: gradients go back in float16
    x = torch.full((4,), 2.0**-14, dtype=torch.float16)
    nll, g_loss = (2.0**-14 * (half * x).sum().float() for _ in range(2))
    nll = 3 * nll
    inv_scale = torch.tensor(2.0**-16)
    # 2^-28 and 3 * 2^-28 are nothing in float16.
    size = 2.0**-28 * 2
    expected = torch.tensor(0.8 * 3 * size / (size + 1e-8), dtype=torch.float64)
    got = adaptive_weight(nll, g_loss, layer, eps=1e-8, inv_scale=inv_scale)
    assert_near(got, expected, torch.float32)
    assert adaptive_weight(nll, g_loss, layer, eps=1e-8) == 0


def test_gradients_that_are_not_finite():
    layer = torch.ones(3, requires_grad=True)
    for bad in (float("inf"), float("nan")):
        for nll, g_loss in ((bad * layer[0], layer[1]), (layer[0], bad * layer[1])):
            assert adaptive_weight(nll, g_loss, layer) == 0
            got = adaptive_weight(nll, g_loss, layer, inv_scale=torch.tensor(0.5))
            assert got.isnan()  # the scaler skips the step
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    half = parameter.half()
    nll, g_loss = parameter.sum(), 4.0 * half.sum()  # times 2^16 beyond float16
    inv_scale = 1 / scaler.scale(torch.ones(()))
    factor = adaptive_weight(nll, g_loss, parameter, inv_scale=inv_scale)
    scaler.scale(nll + factor * g_loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(parameter, torch.ones(3))
    assert scaler.get_scale() == 2.0**15


# --- errors --------------------------------------------------------------------------------------

LAYER = torch.ones(3, requires_grad=True)
LOSS = LAYER.sum()


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"nll": 1.0}, TypeError, "nll to be a scalar tensor, got float"),
        ({"g_loss": None}, TypeError, "g_loss to be a scalar tensor, got NoneType"),
        ({"nll": 2 * LAYER}, ValueError, "nll to be a scalar on cpu, .* got float32 of shape"),
        ({"nll": LOSS.detach()}, ValueError, "nll with a graph, got a detached one; .* evaluation"),
        ({"g_loss": LOSS.detach()}, ValueError, "g_loss with a graph, got a detached one"),
        ({"g_loss": torch.ones((), requires_grad=True) * 2}, ValueError,
         "g_loss to depend on last_layer, got one that does not; do not detach the generated"),
        ({"nll": torch.ones((), requires_grad=True) * 2}, ValueError, "nll to depend on last_la"),
        ({"last_layer": nn.Linear(2, 2)}, TypeError, "a tensor, got Linear; pass its .weight"),
        ({"last_layer": LAYER.detach()}, ValueError, "last_layer to require a gradient, got"),
        ({"last_layer": torch.ones(0, requires_grad=True)}, ValueError, "last_layer to require"),
        ({"weight": -1}, ValueError, "weight to be finite and not negative, got -1"),
        ({"weight": torch.ones(2)}, ValueError, "weight to be a number or a tensor of one element"),
        ({"maximum": 0}, ValueError, "maximum to be finite and positive, got 0"),
        ({"maximum": float("inf")}, ValueError, "maximum to be finite and positive, got inf"),
        ({"eps": 0.0}, ValueError, "eps to be finite and positive, got 0.0"),
        ({"eps": torch.ones(())}, TypeError, "eps to be a number, got Tensor"),
        ({"inv_scale": 0.5}, ValueError, "inv_scale to be a tensor of one element, got float"),
        ({"inv_scale": torch.ones(2)}, ValueError, "inv_scale to be a tensor of one element"),
        ({"process_group": 0}, TypeError, "process_group to be a torch.distributed.ProcessGroup"),
    ],
)  # fmt: skip
def test_refuses(arguments, error, message):
    given = {"nll": LOSS, "g_loss": LOSS, "last_layer": LAYER, **arguments}
    with pytest.raises(error, match=f"^adaptive_weight: expected .*{message}"):
        adaptive_weight(**given)


def test_evaluation_is_refused_with_words():
    decoder, critic = networks()
    with torch.no_grad():
        nll, g_loss = both_losses(decoder, critic)
        with pytest.raises(ValueError, match=r"outside torch.no_grad\(\), and in evaluation"):
            adaptive_weight(nll, g_loss, decoder[-1].weight)
    with torch.inference_mode():
        nll, g_loss = both_losses(decoder, critic)
        with pytest.raises(ValueError, match=r"outside torch.inference_mode\(\), and in evalu"):
            adaptive_weight(nll, g_loss, decoder[-1].weight)


def test_samples_that_are_detached_are_refused():
    decoder, critic = networks()
    nll, _ = both_losses(decoder, critic)
    g_loss = losses.hinge.generator(critic(decoder(torch.ones(2, 4).double()).detach()))
    with pytest.raises(ValueError, match="g_loss to depend on last_layer"):
        adaptive_weight(nll, g_loss, decoder[-1].weight)


# --- processes -----------------------------------------------------------------------------------

WORLD = 2


def train(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    try:
        own = [dist.new_group([r]) for r in range(WORLD)][rank]
        decoder, critic = networks()
        layer = decoder[-1].weight
        wrapped = DistributedDataParallel(decoder)
        nll, g_loss = both_losses(wrapped, critic, seed=rank)
        factor = adaptive_weight(nll, g_loss, layer)
        (nll + factor * g_loss).backward()
        grads = [p.grad for p in decoder.parameters()]
        alone = adaptive_weight(*both_losses(decoder, critic, seed=rank), layer, process_group=own)
        # Infinite in one process, and 0 in both.
        nll, g_loss = both_losses(decoder, critic, seed=rank)
        infinite = adaptive_weight(nll * (float("inf") if rank else 1.0), g_loss, layer)
        static = DistributedDataParallel(copy.deepcopy(decoder), static_graph=True)
        with pytest.raises(
            RuntimeError, match=r"^adaptive_weight: .* decoder without static_graph"
        ):
            adaptive_weight(*both_losses(static, critic), static.module[-1].weight)
        torch.save((factor, grads, alone, infinite), f"{folder}/{rank}.pt")
        dist.barrier()  # gloo aborts where one process is gone while the other still listens
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_processes_average_their_gradients(tmp_path):
    mp.spawn(train, (str(tmp_path),), nprocs=WORLD)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]
    decoder, critic = networks()
    layer = decoder[-1].weight
    each = [both_losses(decoder, critic, seed=rank) for rank in range(WORLD)]
    nll, g_loss = (sum(pair) / WORLD for pair in zip(*each, strict=True))
    expected = plain(nll, g_loss, layer)
    (nll + expected * g_loss).backward()
    for rank, (factor, grads, alone, infinite) in enumerate(found):
        assert torch.equal(factor, found[0][0])  # the same bits in all processes
        assert_near(factor, expected)
        # DistributedDataParallel reduces what follows as it would without.
        for a, p in zip(grads, decoder.parameters(), strict=True):
            assert_near(a, p.grad)
        local, own_critic = copy.deepcopy(decoder), copy.deepcopy(critic)
        pair = both_losses(local, own_critic, seed=rank)
        assert_near(alone, plain(*pair, local[-1].weight))
        assert abs(alone - factor) > 1e-2
        assert infinite == 0
