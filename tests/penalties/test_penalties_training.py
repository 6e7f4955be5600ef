"""Penalties in training: mixed precision, two processes, compiled steps."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import gankernels as gk
from gankernels import losses


def critic():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(128, 16),
        nn.LeakyReLU(0.2), nn.Linear(16, 1),
    )  # fmt: skip


def generator():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 64), nn.Unflatten(1, (1, 8, 8)))


def batches(count, size=16):
    draw = torch.Generator().manual_seed(2)
    for _ in range(count):
        yield (
            torch.randn(size, 1, 8, 8, generator=draw) * 0.5 + 1,
            torch.randn(size, 4, generator=draw),
        )


# --- mixed precision ------------------------------------------------------------------------------


def train(dtype, steps=50, method="double_backward"):
    """Of a GAN with R1, in autocast and with a GradScaler: its penalties, the critic's weights."""
    torch.manual_seed(0)
    # Without convolutions, whose second derivatives take the CPU long in float16.
    D = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 1))
    G = generator()
    d_step = torch.optim.SGD(D.parameters(), lr=0.05)
    g_step = torch.optim.SGD(G.parameters(), lr=0.05)
    # float16 scores hold no more than 65,504: that is what the seeds of their gradients come up to.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=dtype is not None)
    history = []
    for real, z in batches(steps):
        real.requires_grad_()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            fake = G(z)
            real_logits = D(real)
            loss = losses.non_saturating.discriminator(real_logits, D(fake.detach()))
        inv_scale = 1 / scaler.scale(torch.ones(())) if dtype is not None else None
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            penalty = gk.r1_penalty(
                real_logits, real, D=D, gamma=1.0, inv_scale=inv_scale, method=method, sigma=0.05
            )
        assert penalty.dtype == torch.float32
        d_step.zero_grad()
        scaler.scale(loss + penalty).backward()
        scaler.step(d_step)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = losses.non_saturating.generator(D(fake))
        g_step.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(g_step)
        scaler.update()
        history.append(penalty.item())
    assert not scaler.is_enabled() or scaler.get_scale() == 2.0**12  # nothing has overflowed
    return torch.tensor(history), torch.cat([p.detach().flatten() for p in D.parameters()])


@pytest.mark.parametrize("method", ["double_backward", "difference"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_mixed_precision_equals_float32(dtype, tolerance, method):
    """Of either method, against the second derivatives of float32."""
    history, weights = train(dtype, method=method)
    tolerance *= 3 if method == "difference" else 1
    exact_history, exact_weights = train(None)
    assert (history - exact_history).norm() <= tolerance * exact_history.norm()
    assert (weights - exact_weights).norm() <= tolerance * exact_weights.norm()
    moved = (exact_weights - train(None, 1)[1]).norm()
    assert (weights - exact_weights).norm() <= 0.3 * moved  # and the training did something


# --- two processes --------------------------------------------------------------------------------


def penalties_of(D, real, fake):
    """The discriminator's loss with R1, with R1 + R2, and in one call."""
    real.requires_grad_()
    logits = D(real)
    yield losses.hinge.discriminator(logits, D(fake)) + gk.r1_penalty(logits, real)
    yield losses.hinge.discriminator(D(real), D(fake)) + gk.r1_r2_penalty(D, real, fake)
    for method in ("double_backward", "difference"):
        step = gk.critic_step(D, real, fake, loss=losses.hinge, r1=3.0, r2=2.0, method=method)
        yield step.loss


def gradients(D, real, fake):
    found = []
    for loss in penalties_of(D, real, fake):
        D.zero_grad()
        loss.backward()
        found.append([p.grad.clone() for p in D.parameters()])
    return found


def in_process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    real, fake = torch.load(f"{folder}/batch.pt")
    part = slice(8 * rank, 8 * rank + 8)
    found = gradients(DistributedDataParallel(critic()), real[part], fake[part])
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.barrier()  # gloo aborts where one process is gone while the other still listens
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """DistributedDataParallel averages the gradients of two halves into those of a batch."""
    real, _ = next(batches(1))
    fake = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    torch.save((real, fake), tmp_path / "batch.pt")
    mp.spawn(in_process, (str(tmp_path),), nprocs=2)
    for found, expected in zip(
        torch.load(tmp_path / "found.pt"), gradients(critic(), real, fake), strict=True
    ):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_static_graph_is_refused(tmp_path):
    """DistributedDataParallel would take the gradients of the samples for the backward pass."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    try:
        D = DistributedDataParallel(critic(), static_graph=True)
        real = torch.randn(2, 1, 8, 8, requires_grad=True)
        with pytest.raises(RuntimeError, match=r"r1_penalty: .*without static_graph=True"):
            gk.r1_penalty(D(real), real)
    finally:
        dist.destroy_process_group()


# --- compiled -------------------------------------------------------------------------------------

WHOLE = {
    "r1": lambda D, real, fake: gk.r1_penalty(D(real), real),
    "r2": lambda D, real, fake: gk.r2_penalty(D(fake), fake),
    "r1_r2": lambda D, real, fake: gk.r1_r2_penalty(D, real, fake),
    "wgan_gp": lambda D, real, fake: gk.wgan_gp_penalty(D, real, fake),
    "wgan_lp": lambda D, real, fake: gk.wgan_lp_penalty(D, real, fake, center=0.1),
    "zero_centered": lambda D, real, fake: gk.zero_centered_penalty(D, real, fake),
    "dragan": lambda D, real, fake: gk.dragan_penalty(D, real),
    "roth": lambda D, real, fake: gk.roth_penalty(D(real), D(fake), real, fake),
    "approx_r1": lambda D, real, fake: gk.approx_r1_penalty(D, real),
    "r1, difference": lambda D, real, fake: gk.r1_penalty(D, real, method="difference"),
    "wgan_gp, noise": lambda D, real, fake: gk.wgan_gp_penalty(D, real, fake, method="noise"),
    "critic_step": lambda D, real, fake: gk.critic_step(D, real, fake, r1=1.0, r2=1.0).loss,
    "critic_step, difference": lambda D, real, fake: (
        gk.critic_step(D, real, fake, r1=1.0, method="difference", fraction=0.5).loss
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
@torch._dynamo.config.patch(trace_autograd_ops=True)
def test_a_compiled_step_equals_eager(name):
    """In one graph, random numbers included, where the gradients are taken within it."""
    torch._dynamo.reset()
    D = critic()
    draw = torch.Generator().manual_seed(3)
    real, fake = (torch.randn(4, 1, 8, 8, generator=draw).requires_grad_() for _ in range(2))

    def step(real, fake):
        loss = WHOLE[name](D, real, fake) + D(real).mean()
        return loss.detach(), torch.autograd.grad(loss, list(D.parameters()))

    torch.manual_seed(4)
    expected = step(real, fake)
    torch.manual_seed(4)
    # Inductor has random numbers of its own; one test of it, of what draws none, is enough.
    backend = "inductor" if name == "r1_r2" else "aot_eager"
    found = torch.compile(step, fullgraph=True, backend=backend)(real, fake)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("penalty", ["r1_penalty", "wgan_gp_penalty"])
def test_a_compiled_critic_is_refused_with_the_cure(penalty):
    """torch would say so in the backward pass, and not what to do."""
    torch._dynamo.reset()
    D = torch.compile(critic(), backend="aot_eager")
    real, fake = torch.randn(2, 1, 8, 8, requires_grad=True), torch.randn(2, 1, 8, 8)
    args = (D(real), real) if penalty == "r1_penalty" else (D, real, fake)
    with pytest.raises(RuntimeError, match=f"{penalty}: .*trace_autograd_ops = True"):
        getattr(gk, penalty)(*args)
    with torch.no_grad():
        assert getattr(gk, penalty)(*args).isfinite()


def test_compiled_without_tracing_autograd():
    """In one graph it is refused; else torch runs it eagerly, and the number is right."""
    torch._dynamo.reset()
    D = critic()
    real = torch.randn(2, 1, 8, 8, requires_grad=True)

    def penalty(x):
        return gk.r1_penalty(D(x), x)

    expected = penalty(real)
    found = torch.compile(penalty, backend="aot_eager")(real)
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(x, D[0].weight) for x in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.TorchDynamoException, match="trace_autograd_ops = True"):
        torch.compile(penalty, backend="aot_eager", fullgraph=True)(real)


def test_copies_train_alike():
    """A deep copy of a critic with a penalty in its loss goes the same way."""
    D = critic()
    other = copy.deepcopy(D)
    real, _ = next(batches(1))
    for model in (D, other):
        x = real.clone().requires_grad_()
        gk.r1_penalty(model(x), x).backward()
    for a, b in zip(D.parameters(), other.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)
