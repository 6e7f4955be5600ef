"""fuse_weight_norm in two and four processes, against torch's in one with the joined batch."""

import copy
import itertools
import traceback
import warnings

import pytest
import torch
from distributed import ranks
from distributed.networks import Critic, D, shard, states
from distributed.test_fsdp import BATCH
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations

import gankernels as gk
from gankernels import losses
from gankernels.weight_norm import fuse

pytestmark = pytest.mark.slow

KINDS = {"hook": nn.utils.weight_norm, "parametrization": parametrizations.weight_norm}
CASES = [
    *itertools.product(KINDS, ("blocks", "root", "all"), ("before", "after"), (False,)),
    *itertools.product(KINDS, ("all",), ("after",), (True,)),
    *itertools.product(KINDS, ("ddp",), ("before",), (False, True)),
]


def build(kind, checkpointed=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's hook is deprecated
        return Critic(KINDS[kind], checkpointed)


def train(model, rank=0, world=1, steps=5):
    optimizer = torch.optim.Adam(model.parameters(), 0.02, betas=(0.0, 0.9), foreach=False)
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        joined = torch.randn(2, BATCH, 6, dtype=D, generator=generator)
        real, fake = (x.chunk(world)[rank] for x in joined)
        optimizer.zero_grad()
        losses.hinge.discriminator(*model(torch.cat([real, fake])).chunk(2)).backward()
        if not isinstance(model, DistributedDataParallel) and world > 1:
            for p in model.parameters():  # of no block
                if not isinstance(p, DTensor):
                    dist.all_reduce(p.grad)
                    p.grad /= world
        optimizer.step()
    return states(model.module if isinstance(model, DistributedDataParallel) else model)


def all_cases():
    """The states of every case on this rank, or why it failed."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    found = {}
    for kind, where, fused, checkpointed in CASES:
        model = build(kind, checkpointed)
        try:
            if fused == "before":
                gk.fuse_weight_norm(model)
            model = DistributedDataParallel(model) if where == "ddp" else shard(model, where, mesh)
            if fused == "after":
                gk.fuse_weight_norm(model)
            found[kind, where, fused, checkpointed] = train(model, rank, world)
        except Exception:
            found[kind, where, fused, checkpointed] = traceback.format_exc()
    return found, calls(mesh), mixed_precision(mesh, rank, world), tensor_parallel(mesh)


#: Of v; g lies likewise, but where it has nothing to split.
PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "whole": Replicate()}


def tensor_parallel(mesh):
    """Outputs and gradients of a layer whose weight stays in shards, beside a whole one's."""
    found = {}
    for name, placement in PLACEMENTS.items():
        torch.manual_seed(0)
        model = nn.Sequential(KINDS["parametrization"](nn.Linear(6, 7, bias=False, dtype=D)))
        gk.fuse_weight_norm(model)
        x = torch.randn(3, 6, dtype=D)
        chain = model[0].parametrizations.weight
        pairs = []
        for sharded in (False, True):
            if sharded:
                places = {"original0": placement, "original1": placement}
                if name == "columns":
                    places["original0"] = Replicate()
                for part, place in places.items():
                    whole = getattr(chain, part).detach()
                    setattr(chain, part, nn.Parameter(distribute_tensor(whole, mesh, [place])))
                x = distribute_tensor(x, mesh, [Replicate()])
            output = model(x)
            output.square().sum().backward()
            made = (output.detach(), chain.original0.grad, chain.original1.grad)
            pairs.append([t.full_tensor() if isinstance(t, DTensor) else t.clone() for t in made])
        found[name] = pairs
    return found


def calls(mesh):
    """How many weights each call of the operator has in a forward, replicated and sharded."""
    found, counted = {}, []
    weight_norm = fuse.weight_norm

    def count(v, g, **options):
        counted.append(1 if isinstance(v, torch.Tensor) else len(v))
        return weight_norm(v, g, **options)

    fuse.weight_norm = count
    try:
        for where in ("ddp", "all"):
            model = build("parametrization")
            gk.fuse_weight_norm(model)
            model = DistributedDataParallel(model) if where == "ddp" else shard(model, where, mesh)
            del counted[:]
            model(torch.randn(2, 6, dtype=D))
            found[where] = counted[:]
    finally:
        fuse.weight_norm = weight_norm
    return found


def mixed_precision(mesh, rank, world):
    """bfloat16 in the forward, with and without fusing."""
    found = []
    for fused in (False, True):
        model = copy.deepcopy(build("parametrization")).float()
        shard(model, "all", mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
        if fused:
            gk.fuse_weight_norm(model)
        x = torch.randn(BATCH, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
        found.append(model(x.chunk(world)[rank]).detach())
    return found


@pytest.fixture(scope="module", params=[2, 4])
def found(request, tmp_path_factory):
    return ranks.run(request.param, tmp_path_factory.mktemp("ranks"), all_cases)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training(found, case):
    ranks.assert_same([cases for cases, *_ in found], case, train(build(case[0])))


def test_one_call_where_weights_are_whole(found):
    """Below FSDP each layer computes its weight, from what is gathered when it is called."""
    for _, counted, *_ in found:
        assert counted == {"ddp": [5], "all": [1] * 6}


def test_mixed_precision(found):
    for _, _, (plain, fused), _ in found:
        torch.testing.assert_close(fused, plain, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_tensor_parallel(found, placement):
    for *_, parallel in found:
        for whole, sharded in zip(*parallel[placement], strict=True):
            torch.testing.assert_close(sharded, whole, rtol=1e-10, atol=1e-10)
