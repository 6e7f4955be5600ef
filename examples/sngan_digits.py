"""Spectral normalization, torch's and this one
============================================

A small spectrally normalized GAN on real images, three times over.

The images are scikit-learn's 1,797 handwritten digits of 8x8 pixels. The same GAN is trained from
the same seed

  1. with torch's own spectral norm,
  2. with only the import line changed to gankernels,
  3. with one call more, ``fuse_spectral_norm``, which normalizes all layers of the model at once,

and the three must give the same losses. Run it with::

    python examples/sngan_digits.py [--steps 200] [--out sngan_digits.png]

It takes less than half a minute on two cores. It prints the time per step and the largest
difference of the losses, saves their curves, and fails if the losses differ by more than 1e-4.
Digits are not shown: plain SGD, which keeps three trainings comparable, draws poor ones.

.. image:: /images/sngan_digits.webp
   :alt: The losses of three trainings, which lie on top of each other, and their
       differences, below 1e-4
"""
# sphinx_gallery_thumbnail_path = "images/sngan_digits.webp"

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

# Step 1 of moving to gankernels is to write the second of these lines in place of the first.
# (A program of your own has one of the two; this one compares them.)
from torch.nn.utils.parametrizations import spectral_norm as torch_spectral_norm  # isort: skip
from gankernels.nn.utils.parametrizations import spectral_norm as our_spectral_norm  # isort: skip

# Step 2 is to call this once on the finished model.
from gankernels import fuse_spectral_norm

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tqdm import tqdm

SpectralNorm = Callable[[nn.Module], nn.Module]

NOISE = 32
BATCH = 64
LEARNING_RATE_D, LEARNING_RATE_G = 0.05, 0.02
TOLERANCE = 1e-4


def digits() -> Tensor:
    """All images, as a tensor (1797, 1, 8, 8) in [-1, 1]."""
    images = torch.from_numpy(load_digits().images).float()
    return (images / 8 - 1).unsqueeze(1)


class Generator(nn.Sequential):
    """Noise (B, 32) to images (B, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(NOISE, 128 * 2 * 2),
            nn.Unflatten(1, (128, 2, 2)),
            nn.BatchNorm2d(128),
            nn.SiLU(),
            nn.ConvTranspose2d(128, 64, 4, 2, 1),
            nn.BatchNorm2d(64),
            nn.SiLU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1),
            nn.BatchNorm2d(32),
            nn.SiLU(),
            nn.Conv2d(32, 1, 3, 1, 1),
            nn.Tanh(),
        )


class Discriminator(nn.Sequential):
    """Images (B, 1, 8, 8) to scores (B, 1), every layer spectrally normalized."""

    def __init__(self, spectral_norm: SpectralNorm) -> None:
        super().__init__(
            spectral_norm(nn.Conv2d(1, 64, 3, 1, 1)),
            nn.SiLU(),
            spectral_norm(nn.Conv2d(64, 128, 4, 2, 1)),
            nn.SiLU(),
            spectral_norm(nn.Conv2d(128, 128, 4, 2, 1)),
            nn.SiLU(),
            nn.Flatten(),
            spectral_norm(nn.Linear(128 * 2 * 2, 1)),
        )


@dataclass
class Run:
    """What one training gives."""

    name: str
    losses: list[tuple[float, float]]  # (discriminator, generator) of every step
    seconds_per_step: float


def train(name: str, spectral_norm: SpectralNorm, fuse: bool) -> Iterator[Run]:
    """Trains one GAN from the same seed as all the others; yields the run after every step."""
    torch.manual_seed(0)
    images = digits()
    generator = Generator()
    discriminator = Discriminator(spectral_norm)
    if fuse:
        fuse_spectral_norm(discriminator)

    # Smooth activations and plain SGD keep the training well conditioned: with ReLU and Adam, two
    # runs that differ in the last bit of one number are two different trainings 100 steps later.
    optimizer_d = torch.optim.SGD(discriminator.parameters(), lr=LEARNING_RATE_D, momentum=0.5)
    optimizer_g = torch.optim.SGD(generator.parameters(), lr=LEARNING_RATE_G, momentum=0.5)

    losses: list[tuple[float, float]] = []
    times: list[float] = []
    while True:
        start = time.perf_counter()
        real = images[torch.randint(len(images), (BATCH,))]

        # Discriminator: tell real from fake. Two forwards before one backward.
        fake = generator(torch.randn(BATCH, NOISE)).detach()
        loss_d = F.softplus(-discriminator(real)).mean() + F.softplus(discriminator(fake)).mean()
        optimizer_d.zero_grad()
        loss_d.backward()
        optimizer_d.step()

        # Generator: be taken for real.
        loss_g = F.softplus(-discriminator(generator(torch.randn(BATCH, NOISE)))).mean()
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()

        losses.append((loss_d.item(), loss_g.item()))
        times.append(time.perf_counter() - start)
        yield Run(name, losses, sorted(times)[len(times) // 2])


def side_by_side(trainings: list[Iterator[Run]], steps: int) -> list[Run]:
    """A step of each in turn, so that a machine whose speed drifts is the same to all of them."""
    random_states: list[Tensor | None] = [None] * len(trainings)
    runs: list[Run] = []
    for _ in tqdm(range(steps), desc="three trainings", unit="step"):
        runs = []
        for i, training in enumerate(trainings):
            state = random_states[i]
            if state is not None:
                torch.set_rng_state(state)
            runs.append(next(training))
            random_states[i] = torch.get_rng_state()
    return runs


def largest_difference(one: Run, other: Run) -> float:
    """Over both losses of every step."""
    return float((torch.tensor(one.losses) - torch.tensor(other.losses)).abs().max())


def save_curves(runs: list[Run], path: Path) -> None:
    """The losses of all on top of each other, and by how much they are apart."""
    figure, (curves, differences) = plt.subplots(1, 2, figsize=(10, 4))
    theirs = torch.tensor(runs[0].losses)
    for i, who in enumerate(("discriminator", "generator")):
        curves.plot(theirs[:, i], lw=4, alpha=0.4, color=f"C{i}", label=f"{who}, {runs[0].name}")
        ours = torch.tensor(runs[-1].losses)[:, i]
        curves.plot(ours, "--", color=f"C{i}", label=f"{who}, {runs[-1].name}")
    curves.set(xlabel="step", title="losses")
    curves.margins(y=0.3)
    curves.legend(fontsize="small", ncols=2, loc="upper center")
    for i, run in enumerate(runs[1:]):
        apart = (torch.tensor(run.losses) - theirs).abs().amax(1)
        width = 4 - 2.5 * i  # these two may be one curve
        differences.semilogy(apart.clamp(min=1e-9), color=f"C{2 + i}", lw=width, label=run.name)
    differences.axhline(TOLERANCE, color="gray", lw=1, label="tolerance")
    differences.set(xlabel="step", title=f"difference from {runs[0].name}")
    differences.legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="of training (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("sngan_digits.png"),
        help="the picture (default: %(default)s)",
    )
    chosen = parser.parse_args(arguments)

    if chosen.steps < 1:
        parser.error(f"expected --steps of at least 1, got {chosen.steps}")
    out = chosen.out if chosen.out.suffix else chosen.out.with_suffix(".png")

    trainings = [
        train("torch", torch_spectral_norm, fuse=False),
        train("gankernels", our_spectral_norm, fuse=False),
        train("gankernels, fused", our_spectral_norm, fuse=True),
    ]
    runs = side_by_side(trainings, chosen.steps)
    worst = max(largest_difference(runs[0], run) for run in runs[1:])

    print()
    for run in runs:
        difference = largest_difference(runs[0], run)
        loss_d, loss_g = run.losses[-1]
        print(
            f"{run.name:<19} {1e3 * run.seconds_per_step:7.2f} ms a step, last losses "
            f"{loss_d:.4f} {loss_g:.4f}, largest difference from torch {difference:.1e}"
        )
    save_curves(runs, out)
    print(f"curves: {out}")
    if not worst <= TOLERANCE:
        print(f"FAILED: losses differ by {worst:.1e}, more than {TOLERANCE:.0e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
