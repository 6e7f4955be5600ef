"""Public trainers, their formulas restated, against one line of gankernels: equal in training."""

import copy

import pytest
import torch
from conformance import trainers
from torch import nn
from torch.nn import functional as F

import gankernels
from gankernels import losses, regularizers

STEPS = 5
BATCH = 8


def networks():
    torch.manual_seed(0)

    def critic():
        return nn.Sequential(
            nn.Conv2d(2, 6, 3, 2, 1), nn.Softplus(), nn.Flatten(), nn.Linear(24, 1)
        )

    G = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Unflatten(1, (2, 4, 4)))
    return nn.ModuleList([critic(), critic(), critic(), G]).double()


def names_of(nets, before):
    """What the code of a row sees, but for the samples."""
    D, second, third, G = nets
    critics = (D, second, third)

    def features(x):
        layers = [[c[0](x), c[1](c[0](x))] for c in critics]
        return D(x), layers

    names = {
        "D": D, "G": G, "features": features, "scales": lambda x: [c(x) for c in critics],
        "torch": torch, "F": F, "gk": gankernels, "losses": losses, "regularizers": regularizers,
    }  # fmt: skip
    names["z"] = torch.randn(BATCH, 5, dtype=torch.float64)
    exec(before, names)
    return names


def train(code, before, start):
    """The losses and parameters of every step."""
    nets = copy.deepcopy(start)
    torch.manual_seed(1)
    names = names_of(nets, before)
    wanted = names["z"].requires_grad
    optimizer = torch.optim.Adam(nets.parameters(), lr=1e-2)
    found = []
    for step in range(STEPS):
        torch.manual_seed(10 + step)
        names["step"] = step
        names["real"] = torch.randn(BATCH, 2, 4, 4, dtype=torch.float64)
        names["z"] = torch.randn(BATCH, 5, dtype=torch.float64).requires_grad_(wanted)
        names["fake"] = names["G"](names["z"])
        exec(code, names)
        optimizer.zero_grad()
        names["loss"].backward()
        optimizer.step()
        weights = torch.cat([p.detach().flatten() for p in nets.parameters()])
        found.append((names["loss"].detach(), weights))
    return found


@pytest.mark.parametrize("row", trainers.TRAINERS, ids=lambda row: row.who)
def test_trains_alike(row):
    start = networks()
    before = torch.cat([p.detach().flatten() for p in start.parameters()])
    theirs, ours = (train(code, row.before, start) for code in (row.theirs, row.ours))
    for (a, x), (b, y) in zip(theirs, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=row.rtol, atol=1e-12)
        torch.testing.assert_close(y, x, rtol=100 * row.rtol, atol=row.rtol)
    assert not torch.equal(theirs[-1][1], before)


def test_there_are_enough():
    assert len(trainers.TRAINERS) >= 25
    assert len({row.who for row in trainers.TRAINERS}) == len(trainers.TRAINERS)


def test_the_docs_show_them():
    """``python tests/conformance/trainers.py --write``."""
    assert trainers.DOCS.read_text().partition(trainers.BEGIN)[2] == "\n" + trainers.table()
