"""Three discriminators in full, written from the papers, to see a whole training step.

Each is plain: spectral norm is put on by the caller, on `normalizable(model)`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Residual(nn.Module):
    """Residual block of the SNGAN discriminator: ReLU, conv, ReLU, conv, average pooling."""

    def __init__(self, channels_in: int, channels: int, down: bool, first: bool = False) -> None:
        super().__init__()
        self.down, self.first = down, first
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels, 1) if down else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x if self.first else F.relu(x))
        y = self.conv2(F.relu(y))
        if self.down:
            y = F.avg_pool2d(y, 2)
        if self.shortcut is not None:
            # The first block pools the image before its 1x1 convolution, the others after it.
            x = F.avg_pool2d(x, 2) if self.first else x
            x = self.shortcut(x)
            x = x if self.first else F.avg_pool2d(x, 2)
        return x + y


class SNGANResNet(nn.Module):
    """CIFAR-10 discriminator of Miyato et al. 2018 (arXiv 1802.05957), table 4."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            _Residual(3, channels, down=True, first=True),
            _Residual(channels, channels, down=True),
            _Residual(channels, channels, down=False),
            _Residual(channels, channels, down=False),
        )
        self.linear = nn.Linear(channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = F.relu(self.blocks(images)).sum((2, 3))
        return self.linear(features)


class DCGAN64(nn.Module):
    """64-pixel discriminator of Radford et al. 2016 (arXiv 1511.06434).

    Without its batch normalization, which spectral norm takes the place of.
    """

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        widths = [3, channels, 2 * channels, 4 * channels, 8 * channels]
        layers: list[nn.Module] = []
        for narrow, wide in itertools.pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 4, 2, 1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, 1, 0))

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layers(images)
        return scores


class HiFiGANScale(nn.Module):
    """One scale of HiFi-GAN's multi-scale discriminator, Kong et al. 2020 (arXiv 2010.05646).

    The first scale, on raw audio, is the one the authors normalize spectrally.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(1, 128, 15, 1, padding=7),
            nn.LeakyReLU(0.1),
            nn.Conv1d(128, 128, 41, 2, groups=4, padding=20),
            nn.LeakyReLU(0.1),
            nn.Conv1d(128, 256, 41, 2, groups=16, padding=20),
            nn.LeakyReLU(0.1),
            nn.Conv1d(256, 512, 41, 4, groups=16, padding=20),
            nn.LeakyReLU(0.1),
            nn.Conv1d(512, 1024, 41, 4, groups=16, padding=20),
            nn.LeakyReLU(0.1),
            nn.Conv1d(1024, 1024, 41, 1, groups=16, padding=20),
            nn.LeakyReLU(0.1),
            nn.Conv1d(1024, 1024, 5, 1, padding=2),
            nn.LeakyReLU(0.1),
            nn.Conv1d(1024, 1, 3, 1, padding=1),
        )

    def forward(self, audio: Tensor) -> Tensor:
        scores: Tensor = self.layers(audio)
        return scores


def synthetic_images(batch: int, pixels: int, generator: torch.Generator) -> Tensor:
    """Smooth random images in [-1, 1]."""
    coarse = torch.randn(batch, 3, pixels // 8, pixels // 8, generator=generator)
    return F.interpolate(coarse, scale_factor=8, mode="bilinear", align_corners=False).tanh()


def synthetic_audio(batch: int, length: int, generator: torch.Generator) -> Tensor:
    """A harmonic tone of random pitch with a little noise, at 22.05 kHz."""
    time = torch.arange(length) / 22_050
    pitch = 80 + 320 * torch.rand(batch, 1, generator=generator)
    tone = sum(torch.sin(2 * torch.pi * k * pitch * time) / k for k in range(1, 6))
    noise = 0.01 * torch.randn(batch, length, generator=generator)
    return (0.3 * tone + noise).unsqueeze(1)


@dataclass(frozen=True)
class FullNetwork:
    """A discriminator, the batch its authors trained with, and a source of input."""

    title: str
    build: Callable[[], nn.Module]
    batch: int
    quick_batch: int
    inputs: Callable[[int, torch.Generator], Tensor]


NETWORKS = {
    "sngan_resnet_cifar10": FullNetwork(
        "SNGAN ResNet, CIFAR-10", SNGANResNet, 64, 16, lambda n, g: synthetic_images(n, 32, g)
    ),
    "dcgan_64": FullNetwork(
        "DCGAN, 64 pixels", DCGAN64, 64, 64, lambda n, g: synthetic_images(n, 64, g)
    ),
    "hifigan_msd": FullNetwork(
        "HiFi-GAN MSD, first scale", HiFiGANScale, 16, 1, lambda n, g: synthetic_audio(n, 8192, g)
    ),
}


def normalizable(model: nn.Module) -> list[nn.Module]:
    """The layers that get spectral norm: every convolution and linear layer."""
    return [m for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Linear))]


def discriminator_step(
    call: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, real: Tensor, fake: Tensor
) -> float:
    """One whole step of the hinge loss: D(real), D(fake), backward, update."""
    optimizer.zero_grad(set_to_none=True)
    loss = F.relu(1 - call(real)).mean() + F.relu(1 + call(fake)).mean()
    loss.backward()
    optimizer.step()
    return loss.item()
