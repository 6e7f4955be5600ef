"""Two processes, by accelerate
============================

A GAN on real digits in two processes, by Hugging Face accelerate: DistributedDataParallel.

The images are scikit-learn's 1,797 handwritten digits of 8x8 pixels. Each process has every other
batch of them. The discriminator is spectrally normalized, all layers in one call, and its loss and
R1 are of one pass; what is kept is a moving average of the generator. Run it with::

    pip install ".[distributed]"
    torchrun --standalone --nproc_per_node 2 examples/distributed_accelerate.py --cpu [--epochs 5]

or on two GPUs, which is what accelerate's own command starts several processes for, with::

    accelerate launch --num_processes 2 examples/distributed_accelerate.py

On two cores it takes some ten seconds. It prints the losses, means over the processes, and by how
much weights, u and v differ between them: not at all.
"""
# sphinx_gallery_thumbnail_path = "images/sngan_digits.webp"

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gankernels
from gankernels import losses
from gankernels.nn.utils.parametrizations import spectral_norm

NOISE = 32
BATCH = 32  # of each process
R1 = 0.1
LEARNING_RATE = 1e-3


def digits() -> Tensor:
    """All images, as a tensor (1797, 1, 8, 8) in [-1, 1]."""
    return (torch.from_numpy(load_digits().images).float() / 8 - 1).unsqueeze(1)


def generator() -> nn.Module:
    """Noise (B, 32) to images (B, 1, 8, 8)."""
    return nn.Sequential(
        nn.Linear(NOISE, 64 * 2 * 2),
        nn.Unflatten(1, (64, 2, 2)),
        nn.SiLU(),
        nn.ConvTranspose2d(64, 32, 4, 2, 1),
        nn.SiLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.SiLU(),
        nn.Conv2d(16, 1, 3, 1, 1),
        nn.Tanh(),
    )


def discriminator() -> nn.Module:
    """Images (B, 1, 8, 8) to scores (B, 1)."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(1, 32, 3, 1, 1)),
        nn.SiLU(),
        spectral_norm(nn.Conv2d(32, 64, 4, 2, 1)),
        nn.SiLU(),
        nn.Flatten(),
        spectral_norm(nn.Linear(64 * 4 * 4, 1)),
    )


def train(epochs: int, cpu: bool) -> None:
    accelerator = Accelerator(cpu=cpu)
    set_seed(0)
    G, D = generator().to(accelerator.device), discriminator().to(accelerator.device)
    average = gankernels.ema.AveragedModel(G, decay=0.99)
    gankernels.fuse_spectral_norm(D)  # before it is wrapped
    set_seed(0, device_specific=True)  # of noise, each process has its own

    loader = DataLoader(TensorDataset(digits()), BATCH, shuffle=True, drop_last=True)
    betas = (0.0, 0.99)
    optimizer_g = torch.optim.Adam(G.parameters(), LEARNING_RATE, betas)
    optimizer_d = torch.optim.Adam(D.parameters(), LEARNING_RATE, betas)
    wrapped_g, wrapped_d, optimizer_g, optimizer_d, loader = accelerator.prepare(
        G, D, optimizer_g, optimizer_d, loader
    )

    for epoch in range(epochs):
        for (real,) in loader:
            noise = torch.randn(len(real), NOISE, device=real.device)
            fake = wrapped_g(noise)

            # One backward pass for one wrapped critic: the loss and the penalty together.
            step = gankernels.critic_step(wrapped_d, real, fake, loss=losses.hinge, r1=R1)
            optimizer_d.zero_grad()
            accelerator.backward(step.loss)
            optimizer_d.step()

            # The critic by itself: its gradients are for nobody to average.
            D.requires_grad_(False)
            loss_g = losses.hinge.generator(D(fake))
            optimizer_g.zero_grad()
            accelerator.backward(loss_g)
            optimizer_g.step()
            D.requires_grad_(True)
            average.update_parameters(G)
        numbers = accelerator.reduce(
            torch.stack([step.adversarial, loss_g.detach(), step.r1]), "mean"
        )
        critic, other, penalty = numbers.tolist()
        accelerator.print(
            f"epoch {epoch + 1}: critic {critic:.4f}, generator {other:.4f}, R1 {penalty:.4f}"
        )

    states = [*average.module.parameters(), *D.parameters(), *D.buffers()]
    mine = torch.cat([x.detach().flatten() for x in states])
    of_all = accelerator.gather(mine[None])
    difference = float((of_all - of_all[0]).abs().max())
    accelerator.print(f"{len(of_all)} processes, largest difference between them {difference:.1e}")
    accelerator.end_training()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5, help="of training (default: %(default)s)")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    chosen = parser.parse_args(arguments)
    if chosen.epochs < 1:
        parser.error(f"expected --epochs of at least 1, got {chosen.epochs}")
    train(chosen.epochs, chosen.cpu)


if __name__ == "__main__":
    main()
