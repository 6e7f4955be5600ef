"""Moving averages over processes: those of one process with the joined batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support.tensors import assert_near, drawer

from gankernels.regularizers import LeCam, PathLength

pytestmark = pytest.mark.slow

WORLD = 2
STEPS = 3


def scores(rank):
    """A process's own: the second has more real scores than the first, and higher ones."""
    draw = drawer(rank)
    return [(draw(3 + 4 * rank) + rank, draw(5) - rank) for _ in range(STEPS)]


def path_lengths(rank, module):
    """The values, and the averages after each: the second process has more images."""
    found = []
    for step in range(STEPS):
        w = drawer(10 * rank + step)(3 + 4 * rank, 2).requires_grad_()
        images = (w.square().sum(1) + rank).view(-1, 1, 1).expand(-1, 1, 6)
        generator = torch.Generator().manual_seed(10 * rank + step)
        value = module(images, w, generator=generator)
        found.append(torch.stack((value.detach(), module.mean)))
    return torch.stack(found)


def train(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD
    )
    try:
        module, alone = LeCam(decay=0.5), LeCam(decay=0.5)
        # Every process has to take part in making every group.
        own = [dist.new_group([r]) for r in range(WORLD)][rank]
        alone.process_group = own
        values = [module(real, fake) for real, fake in scores(rank)]
        for real, fake in scores(rank):
            alone(real, fake)
        paths = path_lengths(rank, PathLength(decay=0.5))
        if rank == 0:  # in evaluation mode nobody waits for the other
            module.eval()(*scores(0)[0])
        torch.save(
            (module.state_dict(), torch.stack(values), alone.state_dict(), paths),
            f"{folder}/{rank}.pt",
        )
        dist.barrier()  # gloo aborts where one process is gone while the other still listens
    finally:
        dist.destroy_process_group()


def test_lecam_anchors_are_of_the_joined_batch(tmp_path):
    mp.spawn(train, (str(tmp_path),), nprocs=WORLD)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(WORLD)]

    joined = LeCam(decay=0.5)
    expected = [[] for _ in range(WORLD)]
    for of_ranks in zip(*map(scores, range(WORLD)), strict=True):
        joined(torch.cat([real for real, _ in of_ranks]), torch.cat([fake for _, fake in of_ranks]))
        joined.eval()
        for rank, (real, fake) in enumerate(of_ranks):
            expected[rank].append(joined(real, fake))
        joined.train()

    for rank, (state, values, alone, _) in enumerate(found):
        for name in ("ema_real", "ema_fake"):
            assert torch.equal(state[name], found[0][0][name])  # the same bits in all processes
            assert_near(state[name], joined.state_dict()[name].double())
        # Each regularizes its own scores, towards the common anchors.
        assert_near(values, torch.stack(expected[rank]).double())
        # A group of its own gives a process its own anchors, which are not these.
        single = LeCam(decay=0.5)
        for real, fake in scores(rank):
            single(real, fake)
        assert_near(alone["ema_real"], single.ema_real.double())
        assert not torch.isclose(alone["ema_real"], joined.ema_real, rtol=1e-2)

    # Of path lengths: the means of single processes, by how many images each has.
    means = torch.zeros(WORLD, STEPS, dtype=torch.float64)
    for rank in range(WORLD):
        at_once = PathLength(decay=1.0)  # the average is that of the batch
        means[rank] = path_lengths(rank, at_once)[:, 1]
    mean = 0.0
    for step, of_batch in enumerate((3 * means[0] + 7 * means[1]) / 10):
        mean = (mean + of_batch) / 2
        for rank in range(WORLD):
            assert_near(found[rank][3][step, 1], mean)
    assert not torch.equal(found[0][3][:, 0], found[1][3][:, 0])  # of its own images
