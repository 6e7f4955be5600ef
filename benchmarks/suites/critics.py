"""Whole critic steps with each of the common gradient penalties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn, optim

import gankernels
from benchmarks.core.contest import PLAIN
from benchmarks.suites.networks import NETWORKS, FullNetwork, synthetic_images

Critic = Callable[[Tensor], Tensor]
R1, R1_R2, WGAN_GP, APPROXIMATE_R1 = "R1", "R1 + R2", "WGAN-GP", "approximate R1"
STEPS = (PLAIN, R1, R1_R2, WGAN_GP, APPROXIMATE_R1)


class _Bottleneck(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolution, the middle one on twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.mix = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=channels // 8)
        self.narrow = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.widen(x), 0.2)
        y = self.narrow(F.leaky_relu(self.mix(y), 0.2))
        return x + y


class ResidualCritic(nn.Module):
    """A narrow critic in the manner of R3GAN's, Huang et al. 2024 (arXiv 2501.05441), section 3.

    Residual bottlenecks with grouped convolutions and no normalization, bilinear downsampling, and
    a depthwise 4x4 convolution at the end. The authors' has 768 channels and 512 images a batch.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1)
        self.stages = nn.ModuleList(
            nn.Sequential(_Bottleneck(channels), _Bottleneck(channels)) for _ in range(4)
        )
        self.pool = nn.Conv2d(channels, channels, 4, groups=channels, bias=False)
        self.linear = nn.Linear(channels, 1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for i, stage in enumerate(self.stages):
            if i > 0:
                x = F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False)
            x = stage(x)
        scores: Tensor = self.linear(self.pool(x).flatten(1))
        return scores


CRITICS = {
    "dcgan_64": replace(NETWORKS["dcgan_64"], quick_batch=8),
    "r3gan_like": FullNetwork(
        "R3GAN-like, 64 channels, CIFAR-10",
        ResidualCritic,
        64,
        8,
        lambda n, g: synthetic_images(n, 32, g),
    ),
}


def critic_step(
    critic: Critic, optimizer: optim.Optimizer, real: Tensor, fake: Tensor, kind: str
) -> Tensor:
    """One whole step of the logistic loss, with the penalty of `kind`; the loss, detached."""
    optimizer.zero_grad(set_to_none=True)
    if kind == R1:
        real = real.detach().requires_grad_()
    scores = critic(real)
    loss = F.softplus(-scores).mean() + F.softplus(critic(fake)).mean()
    if kind == R1:
        loss = loss + gankernels.r1_penalty(scores, real)
    elif kind == R1_R2:
        loss = loss + gankernels.r1_r2_penalty(critic, real, fake)
    elif kind == WGAN_GP:
        loss = loss + gankernels.wgan_gp_penalty(critic, real, fake)
    elif kind == APPROXIMATE_R1:
        loss = loss + gankernels.approx_r1_penalty(critic, real)
    loss.backward()
    optimizer.step()
    return loss.detach()
