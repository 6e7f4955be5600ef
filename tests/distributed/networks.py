"""The network of the tests of FSDP2, how it is sharded, and what it is compared by."""

import functools

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

D = torch.float64


class Critic(nn.Module):
    """Rows that no number of ranks divides, a layer of one row, a transposed convolution, a layer
    that is called twice, and a part that can be checkpointed."""

    def __init__(self, norm, checkpointed=False, dtype=D, **options):
        super().__init__()
        torch.manual_seed(0)
        norm = functools.partial(norm, **options)
        self.first = norm(nn.Linear(6, 12, dtype=dtype))
        self.up = norm(nn.ConvTranspose1d(3, 5, 2, dtype=dtype))
        self.part = nn.Sequential(
            norm(nn.Linear(25, 7, dtype=dtype)),
            nn.Tanh(),
            norm(nn.Linear(7, 7, dtype=dtype)),
            nn.Tanh(),
        )
        self.last = norm(nn.Linear(7, 1, dtype=dtype))
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.up(self.first(x).tanh().view(-1, 3, 4)).flatten(1).tanh()
        x = checkpoint(self.part, x, use_reentrant=False) if self.checkpointed else self.part(x)
        return self.last(self.part[2](x).tanh())


def shard(model, where, mesh, **policy):
    """By blocks, of which one is within another, or as a whole."""
    if where != "root":
        fully_shard(model.part[2], mesh=mesh, **policy)
        fully_shard(model.part, mesh=mesh, **policy)
        fully_shard(model.first, mesh=mesh, **policy)
        fully_shard(model.up, mesh=mesh, **policy)
    if where != "blocks":
        fully_shard(model, mesh=mesh, **policy)
    return model


def states(model):
    found = {**model.state_dict(), **dict(model.named_buffers())}
    return {k: x.full_tensor() if isinstance(x, DTensor) else x.clone() for k, x in found.items()}
