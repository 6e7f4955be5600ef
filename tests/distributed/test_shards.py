"""Averages of shards, and weights that are clipped as shards, in two processes, of which one has no
rows of some weights, against one process that has the joined batch."""

import functools
import itertools
import traceback

import pytest
import torch
from distributed import ranks
from distributed.networks import Critic, D, shard, states
from support.networks import KINDS
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.optim.swa_utils import get_ema_multi_avg_fn

import gankernels as gk
from gankernels import losses
from gankernels.ema import AveragedModel

pytestmark = pytest.mark.slow

BATCH = 12
STEPS = 3


class Network(Critic):
    """With a layer that is not normalized, and a buffer."""

    def __init__(self, norm, **options):
        super().__init__(norm, **options)
        self.plain = nn.Linear(1, 3, dtype=D)
        self.register_buffer("calls", torch.zeros(2, dtype=D))

    def forward(self, x):
        self.calls += self.training
        return self.plain(super().forward(x))


WAYS = {
    "decay": {"decay": 0.7},
    "half_life": {"half_life": 20, "batch": 8, "rampup": 0.5, "start": 1},
    "all alike": {},
    "torch's": {"multi_avg_fn": get_ema_multi_avg_fn(0.7), "use_buffers": True},
    "one by one": {"avg_fn": lambda average, weight, _: 0.7 * average + 0.3 * weight},
}
OPTIONS = {"": {}, "guard": {"guard": True}, "max_norm": {"max_norm": 0.9}}
CASES = [  # kind, what is sharded, how the average lies, how it is taken, options
    *itertools.product(KINDS, ("blocks", "root", "all"), ("sharded",), ("decay",), ("",)),
    *itertools.product(KINDS, ("blocks",), ("whole",), ("decay",), ("",)),
    *itertools.product(KINDS, ("all",), ("sharded",), ("decay",), ("torch",)),
    *itertools.product(("hook",), ("blocks",), ("sharded",), list(WAYS)[1:], ("",)),
    *itertools.product(("parametrization",), ("all",), ("sharded",), ("decay",), list(OPTIONS)[1:]),
]
PARALLEL = list(itertools.product(KINDS, (False, True)))


def build(kind, option):
    norms = KINDS[kind]
    if option == "torch":
        return Network(norms.torch)
    return Network(norms.ours, **OPTIONS[option])


def train(model, average, rank=0, world=1):
    """The average's tensors and its outputs after every step. A forward without a backward leaves
    the root gathered, of both."""
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    outputs = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(step)
        batches = (torch.randn(BATCH, 6, dtype=D, generator=generator) for _ in range(2))
        real, fake = (x.chunk(world)[rank] for x in batches)
        optimizer.zero_grad()
        losses.hinge.discriminator(model(real), model(fake)).backward()
        for p in model.parameters():
            if world > 1 and not isinstance(p, DTensor):
                dist.all_reduce(p.grad)
                p.grad /= world
        optimizer.step()
        with torch.no_grad():
            model.eval()(real)
            model.train()
            average.update_parameters(model)
            outputs.append(average.module.eval()(torch.ones(2, 6, dtype=D)))
    return {**states(average.module), "outputs": torch.stack(outputs), "n": average.n_averaged}


def averaged(case, mesh, rank, world):
    kind, where, layout, way, option = case
    model = build(kind, option)
    average = AveragedModel(model, **WAYS[way])
    shard(model, where, mesh)
    if layout == "sharded":
        shard(average.module, where, mesh)
    if option != "torch":
        gk.fuse_spectral_norm(model)
    return train(model, average, rank, world)


@functools.cache
def expected(kind, way, option):
    model = build(kind, option)
    return train(model, AveragedModel(model, **WAYS[way]))


def parallel(kind, is_fused, mesh=None):
    """The average of a tensor-parallel network, whose weights stay in shards."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12, dtype=D), nn.Tanh(), nn.Linear(12, 7, dtype=D))
    if mesh is not None:
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for layer in (model[0], model[2]):
        KINDS[kind].ours(layer)
    with torch.no_grad():  # shards draw u and v of their own
        for x in model.buffers():
            x.copy_(torch.linspace(1, 2, len(x)) / torch.linspace(1, 2, len(x)).norm())
    if is_fused:
        gk.fuse_spectral_norm(model)
    average = AveragedModel(model, decay=0.7)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, foreach=False)
    for step in range(STEPS):
        x = torch.randn(5, 6, dtype=D, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        average.update_parameters(model)
    return states(average.module)


def refusal(mesh):
    model = shard(build("hook", ""), "blocks", mesh)
    with pytest.raises(ValueError) as caught:
        AveragedModel(model)
    return str(caught.value)


def collectives(mesh):
    """How many an average of shards takes."""
    model = build("parametrization", "")
    average = AveragedModel(model)
    for network in (model, average.module):
        shard(network, "all", mesh)
    with CommDebugMode() as counted:
        average.update_parameters(model)
    return counted.get_total_counts()


def weights():
    """Of every layout, dtype, and with the numbers that are hard to compare."""
    x = torch.linspace(-1, 1, 35).view(5, 7)
    x[1, 2], x[3, 4], x[4, 6] = float("nan"), float("inf"), float("-inf")
    return [x.to(dtype) for dtype in (torch.float32, D, torch.bfloat16) for _ in range(4)]


def clipped(mesh):
    found = []
    for x, layout in zip(weights(), itertools.cycle((Shard(0), Shard(1), Replicate(), None))):
        found.append(x if layout is None else distribute_tensor(x, mesh, [layout]))
    gk.clip_weights_(found, 0.3)
    return [x.full_tensor() if isinstance(x, DTensor) else x for x in found]


def wgan(mesh=None, rank=0, world=1):
    """Steps of a critic without normalization whose weights are clipped after each."""
    model = Network(lambda layer: layer)
    if mesh is not None:
        shard(model, "blocks", mesh)
    optimizer = torch.optim.RMSprop(model.parameters(), 0.01, foreach=False)
    for step in range(STEPS):
        x = torch.randn(BATCH, 6, dtype=D, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x.chunk(world)[rank]).mean().backward()
        for p in model.parameters():
            if world > 1 and not isinstance(p, DTensor):
                dist.all_reduce(p.grad)
                p.grad /= world
        optimizer.step()
        gk.clip_weights_(model.parameters(), 0.1)
    return states(model)


def all_cases():
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    found = {}
    for case in CASES:
        try:
            found[case] = averaged(case, mesh, rank, world)
        except Exception:
            found[case] = traceback.format_exc()
    for kind, is_fused in PARALLEL:
        found["parallel", kind, is_fused] = parallel(kind, is_fused, mesh)
    found["refusal"] = refusal(mesh)
    found["collectives"] = collectives(mesh)
    found["clipped"] = clipped(mesh), wgan(mesh, rank, world)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return ranks.run(2, tmp_path_factory.mktemp("ranks"), all_cases)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_averages(found, case):
    kind, _, _, way, option = case
    wanted = expected(kind, way, option)
    ranks.assert_same(found, case, wanted)


@pytest.mark.parametrize("kind, is_fused", PARALLEL)
def test_tensor_parallel_averages(found, kind, is_fused):
    wanted = parallel(kind, False)
    for rank in found:
        torch.testing.assert_close(rank["parallel", kind, is_fused], wanted, rtol=1e-10, atol=1e-10)


def test_a_sharded_model_is_refused_with_words(found):
    assert found[0]["refusal"] == (
        "AveragedModel: expected a model before fully_shard, got Network, which cannot be copied; "
        "make the average first, and shard its .module as the model"
    )


def test_one_sum_for_all_weights(found):
    assert all(rank["collectives"] == 1 for rank in found)


def test_clipped(found):
    plain = weights()
    gk.clip_weights_(plain, 0.3)
    wanted = wgan()
    for rank in found:
        for got, x in zip(rank["clipped"][0], plain, strict=True):
            assert torch.equal(got.nan_to_num(9), x.nan_to_num(9))
        for name, x in wanted.items():
            torch.testing.assert_close(rank["clipped"][1][name], x, rtol=1e-10, atol=1e-10)
    assert any((x.abs() == 0.1).any() for x in wanted.values())
