"""Two processes, by Lightning
===========================

A GAN on real digits in two processes, by Lightning: manual optimization, DDP.

The images are scikit-learn's 1,797 handwritten digits of 8x8 pixels, of which each process has half
in an epoch. The discriminator is spectrally normalized, all layers in one call, and its loss and R1
are of one pass; what is kept is a moving average of the generator, in the checkpoint with the rest.
Run it with::

    pip install ".[distributed]"
    python examples/distributed_lightning.py [--epochs 5] [--processes 2]

which starts the other processes by itself. On two cores it takes some ten seconds. It prints the
losses, means over the processes, and by how much weights, u and v differ between them: not at all.
"""
# sphinx_gallery_thumbnail_path = "images/sngan_digits.webp"

from __future__ import annotations

import argparse
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only
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


class GAN(LightningModule):
    """Two optimizers in one step; Lightning wraps the whole module, so that within the step the
    networks are called as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = generator(), discriminator()
        self.average = gankernels.ema.AveragedModel(self.generator, decay=0.99)
        self.average.requires_grad_(False)
        gankernels.fuse_spectral_norm(self.discriminator)

    def configure_optimizers(self) -> Any:
        betas = (0.0, 0.99)
        return [
            torch.optim.Adam(network.parameters(), LEARNING_RATE, betas)
            for network in (self.generator, self.discriminator)
        ]

    def on_train_start(self) -> None:
        torch.manual_seed(self.global_rank)  # of noise, each process has its own

    def training_step(self, batch: list[Tensor]) -> None:
        (real,) = batch
        optimizer_g, optimizer_d = self.optimizers()
        fake = self.generator(torch.randn(len(real), NOISE, device=self.device))

        self.toggle_optimizer(optimizer_d)
        step = gankernels.critic_step(self.discriminator, real, fake, loss=losses.hinge, r1=R1)
        optimizer_d.zero_grad()
        self.manual_backward(step.loss)
        optimizer_d.step()
        self.untoggle_optimizer(optimizer_d)

        self.toggle_optimizer(optimizer_g)  # in which the critic needs no gradient
        loss_g = losses.hinge.generator(self.discriminator(fake))
        optimizer_g.zero_grad()
        self.manual_backward(loss_g)
        optimizer_g.step()
        self.untoggle_optimizer(optimizer_g)
        self.average.update_parameters(self.generator)
        self.last = torch.stack([step.adversarial, loss_g.detach(), step.r1])

    def on_train_epoch_end(self) -> None:
        critic, other, penalty = self.all_gather(self.last).view(-1, 3).mean(0).tolist()
        self.say(
            f"epoch {self.current_epoch + 1}: critic {critic:.4f}, generator {other:.4f}, "
            f"R1 {penalty:.4f}"
        )

    def on_train_end(self) -> None:
        states = [*self.parameters(), *self.buffers()]
        mine = torch.cat([x.detach().double().flatten() for x in states])
        of_all = self.all_gather(mine).view(-1, len(mine))
        difference = float((of_all - of_all[0]).abs().max())
        self.say(f"{len(of_all)} processes, largest difference between them {difference:.1e}")

    @rank_zero_only
    def say(self, line: str) -> None:
        print(line, flush=True)


def train(epochs: int, processes: int) -> None:
    seed_everything(0, workers=True)
    gan = GAN()
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        # In each of the two backward passes the other network has no part.
        strategy="ddp_find_unused_parameters_true",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    loader = DataLoader(TensorDataset(digits()), BATCH, shuffle=True, drop_last=True)
    trainer.fit(gan, loader)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5, help="of training (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="how many (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    for name, value in vars(chosen).items():
        if value < 1:
            parser.error(f"expected --{name} of at least 1, got {value}")
    train(chosen.epochs, chosen.processes)


if __name__ == "__main__":
    main()
