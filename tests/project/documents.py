"""What pages show is run: their blocks of Python, and the names that these find ready.

A block sees what a trainer has, below, and nothing of the blocks before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam

import gankernels
from gankernels import losses, regularizers
from gankernels.nn.utils import parametrizations


def blocks(text: str) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(code: str, names: dict[str, Any], where: Path | str) -> None:
    """Run a block; a traceback says of which page it is."""
    exec(compile(code, str(where), "exec"), names)


class Critic(nn.Module):
    """A score of every sample."""

    def __init__(self, scores: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, scores)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Blocks(nn.Module):
    """A critic with a spectral norm, of blocks that can be wrapped one by one."""

    def __init__(self) -> None:
        super().__init__()
        critic = Critic().layers
        for layer in (critic[0], critic[3]):
            parametrizations.spectral_norm(layer)
        self.blocks = nn.ModuleList([critic[:3], critic[3:]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Scale(nn.Module):
    """A sub-discriminator of a vocoder: a score of every piece, and what its layers give."""

    def __init__(self, norm: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [norm(nn.Conv1d(1, 8, 5, 2, 2)), norm(nn.Conv1d(8, 8, 5, 2, 2))]
        )
        self.last = norm(nn.Conv1d(8, 1, 3, 1, 1))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        features = []
        for layer in self.layers:
            x = nn.functional.leaky_relu(layer(x), 0.1)
            features.append(x)
        return self.last(x), features


def names() -> dict[str, Any]:
    """What a trainer has: networks, samples, scores, losses, an optimizer."""
    torch.manual_seed(0)
    D = Critic()
    G = nn.Sequential(nn.Linear(5, 3 * 8 * 8), nn.Unflatten(1, (3, 8, 8)))
    z = torch.randn(4, 5)
    w = torch.randn(4, 5, requires_grad=True)
    real = torch.randn(4, 3, 8, 8).requires_grad_()
    fake = G(z).detach().requires_grad_()
    turned, labels = regularizers.rotate_batch(real)
    critic = Blocks()
    return {
        "turned": turned,
        "labels": labels,
        "gk": gankernels,
        "gankernels": gankernels,
        "losses": losses,
        "regularizers": regularizers,
        "Scale": Scale,
        "latent_consistency_generator": regularizers.latent_consistency_generator,
        "Adam": Adam,
        "torch": torch,
        "nn": nn,
        "DistributedDataParallel": DistributedDataParallel,
        "fully_shard": fully_shard,
        "V": nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))),
        "v": torch.randn(4, 5),
        "g": torch.ones(4),
        "D": D,
        "D_rot": Critic(4),
        "G": G,
        "discriminator": Blocks(),
        "generator": G,
        "critic": critic,
        "optimizer": Adam(critic.parameters(), 1e-3),
        "batches": [(torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)) for _ in range(2)],
        "z": z,
        "w": w,
        "x": real.detach(),
        "real": real,
        "fake": fake,
        "masks": torch.ones(4, 1, 8, 8),
        "r": D(real),
        "f": D(fake),
        "nll": (G(z) - real.detach()).abs().mean(),
        "real_features": [[D.layers[0](real)], [D.layers[0](real[:, :, :4])]],
        "fake_features": [[D.layers[0](fake)], [D.layers[0](fake[:, :, :4])]],
        "d_loss": losses.hinge.discriminator(D(real), D(fake)),
        "g_loss": losses.hinge.generator(D(G(z))),
        "grads": torch.randn(4, 3, 8, 8),
        "layer": nn.Linear(3, 4),
        "augment": lambda x: x.flip(-1),
        "pipe": gankernels.augment.ADAPipe("bgc", p=0.2),
        "theta": torch.eye(2, 3).expand(4, 2, 3),
    }
