"""What the README shows can be run: every line of its table, and the example of a step."""

import re

import pytest
import torch
from support import ROOT
from torch import nn
from torch.optim import Adam

import gankernels
from gankernels import losses, regularizers

README = (ROOT / "README.md").read_text()
TABLE = README.partition("## A paper, a line")[2].partition("\n\nThings that go wrong")[0]
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ") and line.count("|") == 3]
#: What is code to run, not a fragment of it.
CODE = re.compile(r"`((?:gk|losses|regularizers|turned|Adam|latent)\b[^`]*)`")
SHOWN = [code for row in ROWS for code in CODE.findall(row.split("|")[2])]


class Critic(nn.Module):
    """A score of every sample."""

    def __init__(self, scores: int = 1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, scores)
        )

    def forward(self, x):
        return self.layers(x)


@pytest.fixture
def names():
    torch.manual_seed(0)
    D = Critic()
    G = nn.Sequential(nn.Linear(5, 3 * 8 * 8), nn.Unflatten(1, (3, 8, 8)))
    z = torch.randn(4, 5)
    w = torch.randn(4, 5, requires_grad=True)
    real = torch.randn(4, 3, 8, 8).requires_grad_()
    fake = G(z).detach().requires_grad_()
    turned, labels = regularizers.rotate_batch(real)
    return {
        "turned": turned,
        "labels": labels,
        "gk": gankernels,
        "losses": losses,
        "regularizers": regularizers,
        "latent_consistency_generator": regularizers.latent_consistency_generator,
        "Adam": Adam,
        "torch": torch,
        "V": nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 4))),
        "v": torch.randn(4, 5),
        "g": torch.ones(4),
        "D": D,
        "D_rot": Critic(4),
        "G": G,
        "z": z,
        "w": w,
        "x": real.detach(),
        "real": real,
        "fake": fake,
        "r": D(real),
        "f": D(fake),
        "nll": (G(z) - real.detach()).abs().mean(),
        "real_features": [[D.layers[0](real)], [D.layers[0](real[:, :, :4])]],
        "fake_features": [[D.layers[0](fake)], [D.layers[0](fake[:, :, :4])]],
        "d_loss": losses.hinge.discriminator(D(real), D(fake)),
        "g_loss": losses.hinge.generator(D(G(z))),
        "grads": torch.randn(4, 3, 8, 8),
        "layer": nn.Linear(3, 4),
        "augment": lambda x: x.flip(-1),
        "pipe": gankernels.augment.ADAPipe("bgc", p=0.2),
        "theta": torch.eye(2, 3).expand(4, 2, 3),
    }


def test_the_table_was_found():
    assert len(ROWS) >= 35
    assert len(SHOWN) >= 35


@pytest.mark.parametrize("code", SHOWN)
def test_line(names, code):
    if "gk.fuse_spectral_norm" in code or "gk.spectral_norms(D)" in code:
        gankernels.nn.utils.parametrizations.spectral_norm(names["D"].layers[0])
    exec(f"found = {code}", names)
    if isinstance(names["found"], torch.Tensor):
        assert names["found"].isfinite().all()


@pytest.mark.parametrize("name", ["minimax", "hinge", "relativistic"])
def test_penalize(names, name):
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "r1_penalty" in b]
    loss = getattr(losses, name)
    names |= {
        "discriminator": names["D"],
        "d_loss": loss.discriminator,
        "gankernels": gankernels,
        "real": names["real"].detach(),
    }
    exec(block, names)
    names["loss"].backward()
    assert all(p.grad.isfinite().all() for p in names["D"].parameters())


def test_augment(names):
    blocks = [b for b in re.findall(r"```python\n(.*?)```", README, re.S) if "ADAPipe" in b]
    assert len(blocks) == 2
    names |= {"discriminator": names["D"], "masks": torch.ones(4, 1, 8, 8)}
    for block in blocks:
        exec(block, names)
    assert names["controller"].p is not names["pipe"].p
    assert names["augmented"].shape == names["views"].shape == names["real"].shape
    assert names["masks"].unique().tolist() == [1]
    assert names["pipe"].p == torch.tensor(0.3)
