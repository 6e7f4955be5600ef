"""Spectral norm under FSDP2, in two and four processes, against one with the joined batch."""

import itertools
import traceback

import pytest
import torch
from distributed import ranks
from distributed.networks import Critic, D, shard, states
from support.networks import KINDS
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

import gankernels as gk
from gankernels import losses

pytestmark = pytest.mark.slow

BATCH = 8


def train(model, rank=0, world=1, steps=3, dtype=D):
    """Both batches before one backward pass; the penalty in a step of its own."""
    optimizer = torch.optim.Adam(model.parameters(), 0.02, betas=(0.0, 0.9), foreach=False)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        real, fake = (
            torch.randn(BATCH, 6, dtype=D, generator=generator).chunk(world)[rank].to(dtype)
            for _ in range(2)
        )
        real.requires_grad_()
        optimizer.zero_grad()
        losses.hinge.discriminator(model(real), model(fake)).backward()
        for p in model.parameters():
            if world > 1 and not isinstance(p, DTensor):
                dist.all_reduce(p.grad)
                p.grad /= world
        optimizer.step()
    return states(model)


OPTIONS = {
    "": {},
    "three iterations": {"n_power_iterations": 3},
    "guard": {"guard": True},
    "max_norm": {"max_norm": 1.5},
    "step_scoped": {"step_scoped": True},
}
FUSED = ("before", "after", None)  # fully_shard was called
CASES = [
    *itertools.product(KINDS, ("blocks", "root", "all"), FUSED, ("",), (False,)),
    *itertools.product(KINDS, ("all", "root"), ("after", None), list(OPTIONS)[1:], (False,)),
    *itertools.product(KINDS, ("blocks", "all"), ("after", None), ("",), (True,)),
]


def build(kind, option, checkpointed, **more):
    options = {**OPTIONS[option], **more}
    return Critic(KINDS[kind].ours, checkpointed, **options)


def expected(kind, option, fused=False):
    """In one process; layer by layer, but where fusing begins a step."""
    model = build(kind, option, False)
    if fused and option == "step_scoped":
        gk.fuse_spectral_norm(model)
    return train(model)


def all_cases():
    """The states of every case on this rank, or why it failed; and the collectives of a forward."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    found = {}
    for kind, where, fused, option, checkpointed in CASES:
        model = build(kind, option, checkpointed)
        try:
            if fused == "before":
                gk.fuse_spectral_norm(model)
            shard(model, where, mesh)
            if fused == "after":
                gk.fuse_spectral_norm(model)
            found[kind, where, fused, option, checkpointed] = train(model, rank, world)
        except Exception:
            found[kind, where, fused, option, checkpointed] = traceback.format_exc()
    if world == 4:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
        for kind in KINDS:
            model = shard(build(kind, "", False), "all", mesh)
            gk.fuse_spectral_norm(model)
            found[kind, "hybrid"] = train(model, rank, world)
    else:
        for kind in KINDS:
            found[kind, "collectives"] = collectives(kind, mesh)
            found[kind, "mixed"] = mixed_precision(kind, mesh, rank, world)
    return found


def collectives(kind, mesh):
    """The numbers in each all-reduce of a forward."""
    model = shard(build(kind, "", False), "all", mesh)
    gk.fuse_spectral_norm(model)
    sizes, summed = [], dist.all_reduce

    def counted(x, *args, **kwargs):
        sizes.append(x.numel())
        return summed(x, *args, **kwargs)

    dist.all_reduce = counted
    try:
        with torch.no_grad():
            model(torch.randn(2, 6, dtype=D))
    finally:
        dist.all_reduce = summed
    return sizes


def mixed_precision(kind, mesh, rank, world):
    """bfloat16 in the forward; u and v, and what they are found from, in float32."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    found = {}
    for fused in (False, True):
        model = Critic(KINDS[kind].ours, dtype=torch.float32)
        shard(model, "all", mesh, mp_policy=policy)
        if fused:
            gk.fuse_spectral_norm(model)
        found[fused] = train(model, rank, world, dtype=torch.float32)
    return found


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    return ranks.run(request.param, tmp_path_factory.mktemp("ranks"), all_cases)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sharded(found, case):
    kind, _, fused, option, _ = case
    wanted = expected(kind, option, fused)
    ranks.assert_same(found, case, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_hybrid(found, kind):
    if len(found) != 4:
        pytest.skip("replicas of shards take four processes")
    ranks.assert_same(found, (kind, "hybrid"), expected(kind, ""))


@pytest.mark.parametrize("kind", KINDS)
def test_collectives(found, kind):
    """One sum for the network, of rows + cols numbers a layer; another for the one vector that its
    shards do not have whole. The last layer is of the root, which is gathered by then, and the
    second call of a layer is its own."""
    if len(found) != 2:
        pytest.skip("the same in four processes")
    linear = (6 + 12) + (25 + 7) + (7 + 7)
    rows, cols = 5, 3 * 2
    if kind == "parametrization":  # u <- W v first, and the shards are of the columns
        wanted = [linear + rows, cols]
    else:
        wanted = []
    if kind == "hook":  # v <- W^T u first, and the shards are of the rows
        wanted = [6 + 25 + 7 + cols + rows, 12 + 7 + 7]
    assert all(rank[kind, "collectives"] == wanted for rank in found)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision(found, kind, fused):
    if len(found) != 2:
        pytest.skip("the same in four processes")
    wanted = train(Critic(KINDS[kind].ours, dtype=torch.float32), dtype=torch.float32)
    for rank in found:
        for name, x in rank[kind, "mixed"][fused].items():
            assert x.dtype == torch.float32
            torch.testing.assert_close(x, wanted[name], rtol=0.2, atol=0.2)
