"""Fused, wrapped, then compiled: two processes against eager mode, one, the joined batch."""

import itertools
import traceback

import pytest
import torch
from distributed import ranks
from distributed.networks import Critic, D, shard, states
from support.networks import KINDS
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

import gankernels as gk
from gankernels import losses

pytestmark = pytest.mark.slow

WORLD = 2
BATCH = 8
STEPS = 3


def hinge(model, real, fake):
    return losses.hinge.discriminator(model(real), model(fake))


def exact(model, real, fake):
    return gk.critic_step(model, real, fake, r1=1.0, r2=0.5).loss


def difference(model, real, fake):
    return gk.critic_step(model, real, fake, r1=1.0, r2=0.5, method="difference").loss


def of_logits(model, real, fake):
    real = real.detach().requires_grad_()
    logits = model(real)
    return losses.hinge.discriminator(logits, model(fake)) + gk.r1_penalty(logits, real)


def decides(model, real, fake):
    """What no graph can hold: eager mode, whose gradients are reduced all the same."""
    loss = exact(model, real, fake)
    if loss > 0:
        loss = loss * 2
    return loss


#: The step as a whole, under DistributedDataParallel: kind, whether fused, loss, arguments of DDP.
WHOLE = [
    ("hook", True, exact, ""),
    ("parametrization", False, exact, ""),
    ("parametrization", True, exact, "find_unused_parameters"),
    ("parametrization", True, difference, "gradient_as_bucket_view"),
    ("parametrization", True, of_logits, ""),
    ("parametrization", True, decides, ""),
]
#: The network by itself: kind, whether fused, how it is wrapped, what is compiled, loss.
NETWORKS = [
    ("parametrization", True, "DDP", "blocks", difference),
    ("parametrization", True, "DDP", "all", difference),
    ("hook", True, "DDP", "all", hinge),
    *itertools.product(KINDS, (True,), ("FSDP2",), ("blocks",), (hinge, difference)),
    *itertools.product(("parametrization",), (False, True), ("FSDP2",), ("all",), (difference,)),
]


def name(case):
    return "-".join(str(getattr(part, "__name__", part)) for part in case)


def batch(step, rank=0, world=1):
    generator = torch.Generator().manual_seed(step)
    both = (torch.randn(BATCH, 6, dtype=D, generator=generator) for _ in range(2))
    return [x.chunk(world)[rank] for x in both]


def build(kind, fused):
    model = Critic(KINDS[kind].ours)
    if fused:
        gk.fuse_spectral_norm(model)
    return model


def train(model, step, rank=0, world=1):
    """Steps that add to ``.grad``, by a function of samples."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    values = []
    for i in range(STEPS):
        optimizer.zero_grad()
        values.append(step(*batch(i, rank, world)).detach())
        optimizer.step()
    values = torch.stack(values)
    if world > 1:
        dist.all_reduce(values)
    return {**states(model), "losses": values / world}


def backward_of(model, loss):
    def step(real, fake):
        value = loss(model, real, fake)
        value.backward()
        return value

    return step


def whole(kind, fused, loss, option):
    model = build(kind, fused)
    options = {option: True} if option else {}
    wrapped = DistributedDataParallel(model, **options)

    def of(real, fake):
        return loss(wrapped, real, fake)

    strict = loss is not decides
    step = gk.compile_step(of, wrapped, backend="aot_eager", strict=strict)
    found = train(model, step, dist.get_rank(), WORLD)
    assert (step.graphs == 1) == strict, step.reasons
    assert type(wrapped.module) is Critic
    assert "forward" not in vars(wrapped)
    return found


def network(kind, fused, way, part, loss):
    model = build(kind, fused)
    blocks = (model.first, model.up, model.part, model.last)
    for block in blocks if part == "blocks" else ():
        block.compile(backend="aot_eager")
    if way == "FSDP2":
        wrapped = shard(model, "all", init_device_mesh("cpu", (WORLD,)))
    else:
        wrapped = DistributedDataParallel(model)
    if part == "all":
        wrapped.compile(backend="aot_eager")
    return train(model, backward_of(wrapped, loss), dist.get_rank(), WORLD)


def accumulated():
    """Two batches, of which the second reduces both."""
    model = build("parametrization", True)
    wrapped = DistributedDataParallel(model)
    step = gk.compile_step(
        lambda *samples: exact(wrapped, *samples), wrapped, backend="aot_eager", strict=True
    )
    with wrapped.no_sync():
        step(*batch(0, dist.get_rank(), WORLD))
    local = model.first.bias.grad.clone()
    step(*batch(1, dist.get_rank(), WORLD))
    return local, [p.grad for p in model.parameters()]


def refused():
    """What is said of shards, and of a replica that torch would leave unreduced."""
    found = {}
    mesh = init_device_mesh("cpu", (WORLD,))
    for way, wrap in {
        "FSDP2": lambda model: shard(model, "all", mesh),
        "static_graph": lambda model: DistributedDataParallel(model, static_graph=True),
    }.items():
        wrapped = wrap(build("parametrization", True))
        step = gk.compile_step(
            lambda *samples, wrapped=wrapped: exact(wrapped, *samples),
            list(wrapped.parameters()),
            backend="aot_eager",
        )
        try:
            step(*batch(0))
        except RuntimeError as error:
            found[way] = str(error)
    return found


def all_cases():
    found = {}
    for function, cases in ((whole, WHOLE), (network, NETWORKS)):
        for case in cases:
            torch.compiler.reset()
            try:
                found[name(case)] = function(*case)
            except Exception:
                found[name(case)] = traceback.format_exc()
    for function in (accumulated, refused):
        found[function.__name__] = function()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return ranks.run(WORLD, tmp_path_factory.mktemp("ranks"), all_cases)


def expected(kind, loss):
    model = build(kind, False)
    return train(model, backward_of(model, loss))


@pytest.mark.parametrize("case", WHOLE, ids=name)
def test_whole_steps(found, case):
    kind, _, loss, _ = case
    ranks.assert_same(found, name(case), expected(kind, loss))


@pytest.mark.parametrize("case", NETWORKS, ids=name)
def test_networks(found, case):
    kind, _, _, _, loss = case
    ranks.assert_same(found, name(case), expected(kind, loss))


def test_accumulated(found):
    model = build("parametrization", False)
    for i in range(2):
        backward_of(model, exact)(*batch(i))
    (one, grads), (other, _) = (rank["accumulated"] for rank in found)
    assert not torch.equal(one, other)  # of each rank its own, not reduced
    for p, got in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(got, p.grad, rtol=1e-10, atol=1e-10)


def test_refused(found):
    for rank in found:
        words = rank["refused"]
        assert "compile_step: expected parameters that are whole on each rank" in words["FSDP2"]
        assert 'give penalties method="difference"' in words["FSDP2"]
        assert "without static_graph=True" in words["static_graph"]
