"""What regularizers and controllers keep over processes, in training: two, against one process with
the joined batch. Their means by themselves: tests/training, tests/augment."""

import itertools

import pytest
import torch
from distributed import ranks
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from gankernels import losses
from gankernels.augment import ADAController
from gankernels.nn import GradientNormalizer
from gankernels.regularizers import LeCam, PathLength

pytestmark = pytest.mark.slow

D = torch.float64
WORLD = 2
BATCH = 12
STEPS = 4
#: The averages are float32.
SINGLE = {"rtol": 1e-6, "atol": 1e-7}
DOUBLE = {"rtol": 1e-10, "atol": 1e-10}


class Network(nn.Module):
    """A generator of (B, 5), or a critic of two scales."""

    def __init__(self, scales=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 8, dtype=D), nn.Linear(8, 8, dtype=D)
        self.last = nn.Linear(8, scales or 5, dtype=D)
        self.scales = scales

    def forward(self, x):
        x = self.last(self.second(self.first(x).tanh()).tanh())
        return x if self.scales is None else [x[:, :1], x[:, 1:]]


def wrapped(network, how, mesh):
    if how == "DDP":
        return DistributedDataParallel(network)
    if how == "FSDP":
        for part in (network.first, network.second):
            fully_shard(part, mesh=mesh)
        fully_shard(network, mesh=mesh)
    return network


def batches(step, rank=0, world=1):
    generator = torch.Generator().manual_seed(step)
    both = (torch.randn(BATCH, 5, dtype=D, generator=generator) for _ in range(2))
    return [x.chunk(world)[rank] for x in both]


def whole(network, **more):
    network = getattr(network, "module", network)
    states = network.state_dict()
    return {k: x.full_tensor() if isinstance(x, DTensor) else x for k, x in states.items()} | more


def train(network, loss, *where):
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(step, *batches(step, *where)).backward()
        optimizer.step()
        for module in network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # of those that stay gathered for second derivatives


# --- what is trained: each of these in one process, under DDP, and under FSDP2 --------------------

LECAM = {
    "scores": {"decay": 0.5},
    "later": {"decay": 0.9, "from_zero": True, "start": 2},
}


def lecam(how=None, mesh=None, rank=0, world=1, options="scores"):
    critic = wrapped(Network(3), how, mesh)
    regularizer = LeCam(3.0, **LECAM[options])

    def loss(step, real, fake):
        logits = critic(real), critic(fake)
        return losses.hinge.discriminator(*logits) + regularizer(*logits)

    train(critic, loss, rank, world)
    return whole(critic, **regularizer.state_dict())


def path_length(how=None, mesh=None, rank=0, world=1):
    generator = wrapped(Network(), how, mesh)
    if how == "FSDP":
        generator.set_reshard_after_backward(False)
    regularizer = PathLength(decay=0.5)
    noise = [torch.Generator().manual_seed(r) for r in (range(WORLD) if world == 1 else [rank])]
    randn = torch.randn

    def of_ranks(shape, *, generator=None, **options):
        part = (shape[0] // len(noise), *shape[1:])
        return torch.cat([randn(part, generator=one, **options) for one in noise])

    def loss(step, latents, _):
        latents.requires_grad_()
        images = generator(latents)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randn", of_ranks)
            return images.square().mean() + regularizer(images.view(-1, 1, 5), latents)

    train(generator, loss, rank, world)
    return whole(generator, **regularizer.state_dict())


def balanced(how=None, mesh=None, rank=0, world=1):
    """adaptive_weight, of a layer that FSDP's root gathers."""
    decoder, critic = wrapped(Network(), how, mesh), Network(1).requires_grad_(False)
    factors = []

    def loss(step, x, wanted):
        made = decoder(x)
        nll, g_loss = (made - wanted).square().mean(), losses.hinge.generator(critic(made)[0])
        last = getattr(decoder, "module", decoder).last.weight
        factors.append(losses.adaptive_weight(nll, g_loss, last))
        return nll + factors[-1] * g_loss

    train(decoder, loss, rank, world)
    return whole(decoder, factors=torch.stack(factors))


TRAINED = {
    **{f"LeCam, {name}": (lecam, {"options": name}, SINGLE) for name in LECAM},
    "PathLength": (path_length, {}, SINGLE),
    "adaptive_weight": (balanced, {}, DOUBLE),
}
WRAPPERS = ("DDP", "FSDP")


# --- states alone --------------------------------------------------------------------------------


def infinite(rank):
    """Scores of one process that are not finite move nobody's averages."""
    lecam, path_length = LeCam(), PathLength()
    real, fake = batches(0, rank, WORLD)
    lecam(real, fake)
    lecam(real * float("inf") if rank else real, fake)
    w = real.clone().requires_grad_()
    images = (w * (float("nan") if rank else 1.0)).view(-1, 1, 5)
    path_length(images, w)
    return {**lecam.state_dict(), **path_length.state_dict()}


def scores(step, *where):
    """Of two scales."""
    return [x[:, :n] + 0.4 for x, n in zip(batches(step, *where), (1, 3), strict=True)]


def controlled(loaded, *where):
    """p and r after every update, of which each third moves p. After ``loaded`` of them all go on
    from the first process's state."""
    controller = ADAController(target=0.3, interval=3, kimg=0.1)
    found = []
    for step in range(9):
        if step == loaded:
            again = [controller.state_dict()]
            if where:
                dist.broadcast_object_list(again)
            controller = ADAController(target=0.3, interval=3, kimg=0.1)
            controller.load_state_dict(again[0])
        controller.update(scores(step, *where))
        found.append(torch.stack([controller.p.to(D), controller.r]))
    return torch.stack(found).nan_to_num(-1)


def normalized(rank, world, how=None):
    """GradientNormalizer has the gradients of the process."""
    generator, critic = Network(), Network(1).requires_grad_(False)
    generator = wrapped(generator, how, None)
    normalize = GradientNormalizer(decay=0.5)
    losses.hinge.generator(critic(normalize(generator(batches(0, rank, world)[0])))[0]).backward()
    return dict(normalize.state_dict())


def all_cases():
    rank, world = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world,))
    found = {}
    for name, how in itertools.product(TRAINED, WRAPPERS):
        function, options, _ = TRAINED[name]
        found[name, how] = function(how, mesh, rank, world, **options)
    found["infinite"] = infinite(rank)
    found["controlled"] = [controlled(loaded, rank, world) for loaded in (6, 7)]
    found["normalized"] = normalized(rank, world, "DDP")
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return ranks.run(WORLD, tmp_path_factory.mktemp("ranks"), all_cases)


@pytest.mark.parametrize("how", WRAPPERS)
@pytest.mark.parametrize("name", TRAINED)
def test_training(found, name, how):
    function, options, tolerance = TRAINED[name]
    wanted = function(**options)
    for rank in found:
        for key, x in wanted.items():
            torch.testing.assert_close(rank[name, how][key], x, **tolerance)
            assert torch.equal(rank[name, how][key], found[0][name, how][key])


def test_what_is_not_finite_moves_nobody(found):
    lecam = LeCam()
    lecam(*batches(0))
    wanted = {**lecam.state_dict(), "mean": torch.zeros(())}
    for rank in found:
        torch.testing.assert_close(rank["infinite"], wanted, **SINGLE)


def test_controller(found):
    wanted = controlled(6)
    assert len(wanted[:, 0].unique()) == 3
    for rank in found:
        torch.testing.assert_close(rank["controlled"][0], wanted, **SINGLE)
        # Between two steps of p the sums are the process's own: p is then the same in all, still.
        for got, first in zip(rank["controlled"], found[0]["controlled"], strict=True):
            assert torch.equal(got, first)


def test_gradient_normalizer(found):
    for i, rank in enumerate(found):
        torch.testing.assert_close(rank["normalized"], normalized(i, WORLD), **DOUBLE)
