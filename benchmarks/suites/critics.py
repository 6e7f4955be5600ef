"""Whole critic steps with each of the common gradient penalties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

import gankernels
from benchmarks.core.contest import COMPILED, PLAIN
from benchmarks.suites.networks import NETWORKS, FullNetwork, normalizable, synthetic_images
from gankernels.nn.utils.parametrizations import spectral_norm

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


EAGER_STEP = "eager"


def penalized_steps(network: FullNetwork, batch: int) -> dict[str, Callable[[], Tensor]]:
    """A whole step of a spectrally normalized critic with R1, in eager mode and compiled.

    One call normalizes all weights of it; the first call of the compiled one compiles.
    """
    generator = torch.Generator().manual_seed(0)
    real, fake = (network.inputs(batch, generator) for _ in range(2))
    steps: dict[str, Callable[[], Tensor]] = {}
    for kind in (EAGER_STEP, COMPILED):
        torch.manual_seed(0)
        critic = network.build()
        for layer in normalizable(critic):
            spectral_norm(layer)
        gankernels.fuse_spectral_norm(critic)
        steps[kind] = _penalized(critic, real, fake, compiled=kind == COMPILED)
    return steps


def _penalized(
    critic: nn.Module, real: Tensor, fake: Tensor, *, compiled: bool
) -> Callable[[], Tensor]:
    optimizer = optim.SGD(critic.parameters(), lr=1e-4)

    def loss() -> gankernels.CriticStep:
        return gankernels.critic_step(critic, real, fake, r1=1.0)

    whole = gankernels.compile_step(loss, critic, strict=True) if compiled else None

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        if whole is None:
            found = loss()
            found.loss.backward()
        else:
            found = whole()
        optimizer.step()
        return found.loss.detach()

    return step


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
