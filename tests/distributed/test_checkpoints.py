"""torch.distributed.checkpoint of a fused critic, and of what has a state beside it: saved in parts
by two processes, and loaded by one, whole, and by three."""

import functools

import pytest
import torch
import torch.distributed.checkpoint as dcp
from distributed import ranks
from distributed.networks import Critic, D, shard, states
from support.networks import KINDS
from torch import distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import gankernels as gk
from gankernels import losses
from gankernels.augment import ADAController, ADAPipe
from gankernels.ema import AveragedModel
from gankernels.regularizers import LeCam

pytestmark = pytest.mark.slow

BATCH = 12  # of which two and three processes have equal parts
RESHARDED = [("hook", "root"), ("parametrization", "all")]
STEPS = 2  # before the checkpoint, and after it
WHOLE = StateDictOptions(full_state_dict=True)
GIVEN = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def adam(model):
    return torch.optim.Adam(model.parameters(), 0.02, betas=(0.5, 0.9), foreach=False)


def train(model, optimizer, first, rank=0, world=1):
    for step in range(first, first + STEPS):
        generator = torch.Generator().manual_seed(step)
        batches = (torch.randn(BATCH, 6, dtype=D, generator=generator) for _ in range(2))
        real, fake = (x.chunk(world)[rank] for x in batches)
        optimizer.zero_grad()
        losses.hinge.discriminator(model(real), model(fake)).backward()
        optimizer.step()


def moments(optimizer):
    """Of every parameter: exp_avg and exp_avg_sq, whole."""
    found = [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]
    return [
        {k: x.full_tensor() if isinstance(x, DTensor) else x.clone() for k, x in of_one.items()}
        for of_one in found
    ]


def built(kind, mesh=None, where="all", fused=True, torchs=False):
    model = Critic(KINDS[kind].torch if torchs else KINDS[kind].ours)
    if mesh is not None:
        shard(model, where, mesh)
    if fused:
        gk.fuse_spectral_norm(model)
    return model, adam(model)


def load(folder, model, optimizer):
    of_model, of_optimizer = get_state_dict(model, optimizer)
    state = {"model": of_model, "optimizer": of_optimizer}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )


def resumed(folder, model, optimizer, *where):
    """What was loaded, and what training has made of it."""
    with torch.no_grad():  # whatever is there before
        for x in [*model.parameters(), *model.buffers()]:
            x.mul_(0.5)
    load(folder, model, optimizer)
    loaded = states(model), moments(optimizer)
    train(model, optimizer, STEPS, *where)
    return loaded, (states(model), moments(optimizer))


def companions(mesh=None):
    """What else a trainer saves."""
    torch.manual_seed(dist.get_rank() if mesh is not None else 0)  # to be loaded over
    pipe = ADAPipe("bgc", p=0.0)
    average = AveragedModel(nn.Linear(3, 5, dtype=D), decay=0.7)
    if mesh is not None:
        fully_shard(average.module, mesh=mesh)
    controller = ADAController(pipe, interval=3, kimg=0.1)
    return nn.ModuleDict(
        {"pipe": pipe, "controller": controller, "lecam": LeCam(), "average": average}
    )


def update(found, mesh):
    torch.manual_seed(0)
    source = nn.Linear(3, 5, dtype=D)
    fully_shard(source, mesh=mesh)
    for scores in torch.arange(1.0, 9.0).view(4, 2):
        found["controller"].update(scores)
        found["lecam"](scores, -scores)
        found["average"].update_parameters(source)


def contents(found):
    extra = found["controller"].get_extra_state()
    return {**states(nn.ModuleList([found["lecam"], found["average"], found["pipe"]])), **extra}


def load_companions(folder, mesh=None):
    found = companions(mesh)
    state = get_model_state_dict(found)
    dcp.load(state, checkpoint_id=folder / "companions")
    set_model_state_dict(found, state)
    return contents(found)


def save(folder):
    """In two processes: train, save, and train on."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    found = {}
    for kind in KINDS:
        model, optimizer = built(kind, mesh)
        train(model, optimizer, 0, rank, world)
        whole = get_model_state_dict(model, options=WHOLE)
        whole = {name: x.clone() for name, x in whole.items()}  # u and v are the model's
        of_model, of_optimizer = get_state_dict(model, optimizer)
        dcp.save({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=folder / kind)
        saved = states(model), moments(optimizer)
        train(model, optimizer, STEPS, rank, world)
        after = states(model), moments(optimizer)
        # What one process has whole, given to all; torch puts the shards into the dict.
        set_model_state_dict(model, dict(whole) if rank == 0 else {}, options=GIVEN)
        found[kind] = {"whole": whole, "saved": saved, "after": after, "given": states(model)}
    others = companions(mesh)
    update(others, mesh)
    dcp.save(get_model_state_dict(others), checkpoint_id=folder / "companions")
    return {**found, "companions": contents(others)}


def resume(folder):
    """In three processes, sharded otherwise than what was saved."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    found = {
        (kind, where): resumed(folder / kind, *built(kind, mesh, where), rank, world)
        for kind, where in RESHARDED
    }
    return {**found, "companions": load_companions(folder, mesh)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def saved(folder):
    return ranks.run(2, folder / "two", functools.partial(save, folder))


@pytest.fixture(scope="module")
def three(saved, folder):
    return ranks.run(3, folder / "three", functools.partial(resume, folder))


def assert_same(got, wanted, exact=False):
    """A model's tensors, and its optimizer's."""
    tolerance = 0 if exact else 1e-10
    assert got[0].keys() == wanted[0].keys()
    pairs = [(got[0], wanted[0]), *zip(got[1], wanted[1], strict=True)]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_keys_are_torchs(saved, kind):
    """torch's own spectral norm loads what FSDP gathers."""
    model, _ = built(kind, fused=False, torchs=True)
    wanted = saved[0][kind]["saved"][0]
    for rank in saved:
        assert list(rank[kind]["whole"]) == list(model.state_dict())
        model.load_state_dict(rank[kind]["whole"])
        for found in (model.state_dict(), rank[kind]["given"]):
            assert found.keys() == wanted.keys()
            assert all(torch.equal(x, wanted[name]) for name, x in found.items())


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("torchs", [False, True], ids=["ours", "torchs"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_process_goes_on(saved, folder, kind, torchs):
    model, optimizer = built(kind, fused=not torchs, torchs=torchs)
    loaded, after = resumed(folder / kind, model, optimizer)
    for rank in saved:
        assert_same(loaded, rank[kind]["saved"], exact=True)
        assert_same(after, rank[kind]["after"])


@pytest.mark.parametrize("kind, where", RESHARDED)
def test_three_processes_go_on(saved, three, kind, where):
    for rank in three:
        loaded, after = rank[kind, where]
        assert_same(loaded, saved[0][kind]["saved"], exact=True)
        assert_same(after, saved[0][kind]["after"])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_companions(saved, three, folder):
    wanted = saved[0]["companions"]
    assert wanted["calls"] == 4
    for got in (load_companions(folder), *(rank["companions"] for rank in (*saved, *three))):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
