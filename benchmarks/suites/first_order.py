"""Small critics of the kinds that are trained today."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class AttentionCritic(nn.Module):
    """A transformer of patches with torch's fused attention: (B, 3, size, size) to (B, 1)."""

    def __init__(
        self, size: int = 32, width: int = 64, blocks: int = 2, patch: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.Sequential(*[_Block(width, heads) for _ in range(blocks)])
        self.score = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.score(self.blocks(x).mean(1))


def convolutional(activation: nn.Module, size: int = 32, width: int = 32) -> nn.Sequential:
    """Three convolutions and a linear layer: (B, 3, size, size) to (B, 1)."""
    return nn.Sequential(
        *(nn.Conv2d(3, width, 3, 2, 1), activation),
        *(nn.Conv2d(width, 2 * width, 3, 2, 1), activation),
        *(nn.Conv2d(2 * width, 2 * width, 3, 1, 1), activation),
        nn.Flatten(),
        nn.Linear(2 * width * (size // 4) ** 2, 1),
    )
