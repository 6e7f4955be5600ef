"""Penalties and critic_step of a critic under FSDP2, in two processes, against one with the joined
batch."""

import copy
import functools
import itertools
import traceback

import pytest
import torch
from distributed import ranks
from distributed.networks import Critic, D, shard, states
from support.networks import KINDS
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

import gankernels as gk
from gankernels import losses

pytestmark = pytest.mark.slow

WORLD = 2
BATCH = 12
STEPS = 2


def with_hinge(penalty):
    """The penalty, and the hinge loss of two passes more."""

    def loss(D, real, fake, **draws):
        return losses.hinge.discriminator(D(real), D(fake)) + penalty(D, real, fake, **draws)

    return loss


def of_logits(D, real, fake):
    logits = D(real.requires_grad_())
    return losses.hinge.discriminator(logits, D(fake)) + gk.r1_penalty(logits, real)


def step(**options):
    def loss(D, real, fake, **draws):
        return gk.critic_step(D, real, fake, **options, **draws).loss

    return loss


#: Without second derivatives, of weights that each part of a pass gathers and frees.
WITHOUT = {
    "r1": with_hinge(lambda D, x, _, **draws: gk.r1_penalty(D, x, method="difference", **draws)),
    "r2": with_hinge(lambda D, _, x, **draws: gk.r2_penalty(D, x, method="difference", **draws)),
    "step": step(),
    "step, two passes": step(concatenate=False),
    "step, difference": step(r1=1.0, r2=0.5, method="difference"),
    "step, central": step(r1=1.0, r2=0.5, method="difference", central=True),
    "step, difference, two passes": step(r1=1.0, method="difference", concatenate=False),
}
NOISE = {
    "r1, noise": with_hinge(lambda D, x, _, **draws: gk.r1_penalty(D, x, method="noise", **draws)),
    "step, noise": step(r1=1.0, r2=0.5, method="noise"),
}
#: With second derivatives, of weights that stay gathered.
EXACT = {
    "r1, exact": with_hinge(lambda D, x, _: gk.r1_penalty(D, x)),
    "r1 of logits": of_logits,
    "r1 and r2": with_hinge(gk.r1_r2_penalty),
    "step, exact": step(r1=1.0, r2=0.5),
    "step, exact, r1 alone": step(r1=1.0),
}
WAYS = {**WITHOUT, **NOISE, **EXACT}
CASES = [
    *itertools.product(("parametrization",), WAYS),
    *itertools.product(("hook",), ("step, difference", "step, noise", "step, exact")),
]


def batch(step, rank=0, world=1):
    generator = torch.Generator().manual_seed(step)
    both = (torch.randn(BATCH, 6, dtype=D, generator=generator) for _ in range(2))
    return [x.chunk(world)[rank] for x in both]


def draws(way, step, rank):
    """A process's own noise."""
    seed = 10 * step + rank
    return {"generator": torch.Generator().manual_seed(seed)} if way in NOISE else {}


def train(kind, way, mesh):
    rank, world = dist.get_rank(), dist.get_world_size()
    model = shard(Critic(KINDS[kind].ours), "all", mesh)
    gk.fuse_spectral_norm(model)
    if way in EXACT:
        model.set_reshard_after_backward(False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    values = []
    for i in range(STEPS):
        optimizer.zero_grad()
        loss = WAYS[way](model, *batch(i, rank, world), **draws(way, i, rank))
        loss.backward()
        optimizer.step()
        if way in EXACT:  # the gathered weights are those before the step
            for module in model.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        values.append(loss.detach())
    values = torch.stack(values)
    dist.all_reduce(values)
    return {**states(model), "losses": values / world}


@functools.cache
def expected(kind, way):
    """In one process, layer by layer; noise is that of the ranks, each for its part."""
    model = Critic(KINDS[kind].ours)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    values = []
    for i in range(STEPS):
        optimizer.zero_grad()
        if way in NOISE:
            twins = [copy.deepcopy(model) for _ in range(1, WORLD)]
            of_ranks = [
                WAYS[way](critic, *batch(i, rank, WORLD), **draws(way, i, rank)) / WORLD
                for rank, critic in enumerate((model, *twins))
            ]
            loss = sum(of_ranks)
            loss.backward()
            for twin in twins:
                for p, other in zip(model.parameters(), twin.parameters(), strict=True):
                    p.grad += other.grad
        else:
            loss = WAYS[way](model, *batch(i))
            loss.backward()
        optimizer.step()
        values.append(loss.detach())
    return {**states(model), "losses": torch.stack(values)}


def refused(way, mesh):
    """What is said where weights are freed that second derivatives would read."""
    model = shard(Critic(KINDS["hook"].ours), "all", mesh)
    try:
        WAYS[way](model, *batch(0, dist.get_rank(), dist.get_world_size()))
    except RuntimeError as error:
        return str(error)
    return "nothing"


def all_cases():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = {}
    for case in CASES:
        try:
            found[case] = train(*case, mesh)
        except Exception:
            found[case] = traceback.format_exc()
    found["words"] = {way: refused(way, mesh) for way in EXACT}
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return ranks.run(WORLD, tmp_path_factory.mktemp("ranks"), all_cases)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_penalties(found, case):
    wanted = expected(*case)
    ranks.assert_same(found, case, wanted)


@pytest.mark.parametrize("way", EXACT)
def test_freed_weights_are_refused(found, way):
    for rank in found:
        assert "call critic.set_reshard_after_backward(False) before" in rank["words"][way]
