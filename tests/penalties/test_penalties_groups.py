"""Scores of groups of rows, and the reciprocal of a gradient scaler's scale, in every penalty."""

import inspect

import pytest
import torch
from support.penalties import PENALTIES, draw
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import gankernels as gk
from gankernels import nn as gnn


def seeded():
    return torch.Generator().manual_seed(7)


PACK = 4
REAL, FAKE = draw(12, 3), draw(12, 3, seed=2)
#: Rows in no order, groups of 5, 3 and 4.
INDEX = torch.tensor([2, 0, 1, 0, 2, 0, 1, 2, 0, 2, 0, 1])
PACKS = torch.arange(12) // PACK


class Sets(nn.Module):
    """A score for each set of rows, by what it is told or in packs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 5).double()
        self.head = nn.Linear(5, 1).double()

    def forward(self, x, index=None):
        if index is None:
            index = torch.arange(len(x)) // PACK
        h = self.layer(x).tanh()
        pooled = h.new_zeros(int(index.max()) + 1, 5).index_add(0, index, h)
        return self.head(pooled.sin())


D = Sets()


def norms(x, index):
    """Of the gradients of each group, alone."""
    x = x.detach().clone().requires_grad_()
    found = []
    for i in range(int(index.max()) + 1):
        (g,) = torch.autograd.grad(D(x, index)[i].sum(), x, create_graph=True)
        found.append(g.square().sum().sqrt())
    return torch.stack(found)


def interpolates(index, groups):
    eps = torch.rand(3 if groups is not None else 12, generator=seeded(), dtype=torch.float64)
    return torch.lerp(FAKE, REAL, eps[index][:, None])


def grown(x):
    return x.clone().requires_grad_()


#: Penalties of groups and their numbers from the norms of single ones; the index of each row.
GROUPED = {
    "r1": (
        lambda D, index, groups, x=REAL: (
            lambda y: gk.r1_penalty(D(y, index), y, gamma=3.0, groups=groups)
        )(grown(x)),
        lambda index: 1.5 * norms(REAL, index).square().mean(),
    ),
    "r2": (
        lambda D, index, groups: (lambda y: gk.r2_penalty(D(y, index), y, groups=groups))(
            grown(FAKE)
        ),
        lambda index: 5 * norms(FAKE, index).square().mean(),
    ),
    "roth": (
        lambda D, index, groups: (
            lambda x, y: gk.roth_penalty(D(x, index), D(y, index), x, y, groups=groups)
        )(grown(REAL), grown(FAKE)),
        lambda index: (
            (torch.sigmoid(-D(REAL, index))[:, 0] * norms(REAL, index)).square().mean()
            + (torch.sigmoid(D(FAKE, index))[:, 0] * norms(FAKE, index)).square().mean()
        ),
    ),
    "dragan": (
        lambda D, index, groups: gk.dragan_penalty(
            D, REAL, index, k=0.5, generator=seeded(), groups=groups
        ),
        lambda index: (
            10
            * (
                norms(
                    REAL
                    + 0.5 * REAL.std() * torch.rand(12, 3, generator=seeded(), dtype=REAL.dtype),
                    index,
                )
                - 0.5
            )
            .square()
            .mean()
        ),
    ),
    "approx_r1": (
        lambda D, index, groups: gk.approx_r1_penalty(
            D, REAL, index, sigma=0.1, generator=seeded(), groups=groups
        ),
        lambda index: (
            100 * (D(REAL, index) - D(REAL + 0.1 * draw(12, 3, seed=7), index)).square().mean()
        ),
    ),
}


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("how", ["packs", "index of packs", "index", "int32"])
def test_norms_are_of_groups(name, how):
    index = PACKS if "packs" in how else INDEX
    groups = PACK if how == "packs" else index.int() if how == "int32" else index
    penalty, expected = GROUPED[name]
    assert penalty(D, index, groups).item() == pytest.approx(expected(index).item(), rel=1e-10)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, penalty in PENALTIES.items()
        if penalty.takes_critic
        and penalty.expected is not None
        and name != "r1_r2_penalty"
        and "groups" in inspect.signature(getattr(gk, name)).parameters
    ],
)
def test_packs_are_an_index(name):
    """Interpolates draw by row for an index: real is fake. R1 + R2 has packs only."""
    call = PENALTIES[name].call
    packs = call(D, REAL, REAL, groups=PACK).item()
    assert packs > 0
    assert call(D, REAL, REAL, groups=PACKS).item() == pytest.approx(packs, rel=1e-10)


@pytest.mark.parametrize("groups", [PACK, PACKS], ids=["packs", "index"])
@pytest.mark.parametrize(
    "name, value",
    [
        ("wgan_gp_penalty", lambda n: 10 * (n - 1).square().mean()),
        ("wgan_lp_penalty", lambda n: 10 * (n - 1).relu().square().mean()),
        ("zero_centered_penalty", lambda n: 10 * n.square().mean()),
        ("max_gradient_penalty", lambda n: 10 * n.max().square()),
    ],
)
def test_one_coefficient_a_group(name, value, groups):
    """As CTGAN has it. Of an index, the first of as many draws as there are rows."""
    found = getattr(gk, name)(D, REAL, FAKE, groups=groups, generator=seeded())
    x = interpolates(PACKS, PACK if groups is PACK else None)
    assert found.item() == pytest.approx(value(norms(x, PACKS)).item(), rel=1e-10)


def test_r1_r2_of_packs():
    labels = torch.arange(3.0, dtype=torch.float64)[:, None]

    def conditional(x, y):
        return D(x) * y

    found = gk.r1_r2_penalty(conditional, REAL, FAKE, labels, groups=PACK)
    x, y = grown(REAL), grown(FAKE)
    expected = gk.r1_penalty(D(x) * labels, x, groups=PACK) + gk.r2_penalty(
        D(y) * labels, y, groups=PACK
    )
    assert found.item() == pytest.approx(expected.item())
    for y in ([labels], (labels,), {"y": labels}):

        def nested(x, y):
            return conditional(x, y["y"] if isinstance(y, dict) else y[0])

        assert gk.r1_r2_penalty(nested, REAL, FAKE, y, groups=PACK).item() == found.item()
        assert gk.r1_r2_penalty(nested, REAL, FAKE, y=y, groups=PACK).item() == found.item()
    unequal = gk.r1_r2_penalty(D, REAL, FAKE[:4], groups=PACK)
    expected = 5 * (norms(REAL, PACKS).square().mean() + norms(FAKE[:4], PACKS[:4]).square().mean())
    assert unequal.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("groups", [PACK, INDEX], ids=["packs", "index"])
@pytest.mark.parametrize("name", ["r1", "roth", "dragan"])
def test_derivatives_of_grouped_penalties(name, groups):
    index = PACKS if groups is PACK else INDEX
    penalty, _ = GROUPED[name]
    weight = D.layer.weight.detach().clone().requires_grad_()

    def f(w):
        return penalty(lambda *args: functional_call(D, {"layer.weight": w}, args), index, groups)

    assert gradcheck(f, (weight,), fast_mode=True)
    with gk.backend("reference"):
        assert gradgradcheck(f, (weight,), fast_mode=True)


def test_a_group_without_a_gradient():
    """The norm is 0 there, and its derivative finite."""
    value = gk.wgan_gp_penalty(
        lambda y: torch.zeros(3, dtype=y.dtype).index_add(0, INDEX, D.layer(y).tanh().sum(1))
        * torch.tensor([1.0, 0.0, 1.0], dtype=y.dtype),
        REAL, FAKE, groups=INDEX,
    )  # fmt: skip
    (found,) = torch.autograd.grad(value, D.layer.weight)
    assert found.isfinite().all()
    assert value > 10 / 3 * 0.99


def test_groups_of_channels_last_images():
    x = draw(6, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    found = gk.r1_penalty(x.square().sum((1, 2, 3)).view(3, 2).sum(1), x, groups=2)
    assert found.item() == pytest.approx(5 * 4 * x.detach().square().sum().item() / 3)


def test_independent_groups():
    assert gk.check_independent_samples(D, REAL, groups=PACK)
    assert gk.check_independent_samples(D, REAL, INDEX, groups=INDEX)
    with pytest.warns(UserWarning, match="depends on other samples"):
        assert not gk.check_independent_samples(lambda x: D(x) * x.sum(), REAL, groups=PACK)
    with pytest.raises(ValueError, match="at least 2 groups, got 1"):
        gk.check_independent_samples(D, REAL[:4], groups=PACK)


X = grown(REAL)
REFUSED = [
    (ValueError, "is the batch, 12, got shape .3, 1.; where rows share a score, pass groups=",
     lambda: gk.r1_penalty(D(X), X)),
    (ValueError, "is the batch, 12, got shape .3, 1.; where rows share a score, pass groups=",
     lambda: gk.wgan_gp_penalty(D, REAL, FAKE)),
    (ValueError, "groups to be a number of rows that 12 can be divided by, got 5",
     lambda: gk.wgan_gp_penalty(D, REAL, FAKE, groups=5)),
    (ValueError, "that 12 can be divided by, got 0", lambda: gk.dragan_penalty(D, REAL, groups=0)),
    (ValueError, "expected 6 scores, one for each group of rows, got shape .3, 1.",
     lambda: gk.approx_r1_penalty(D, REAL, groups=2)),
    (TypeError, "groups to be an integer, .* got bool",
     lambda: gk.r1_penalty(D(X), X, groups=True)),
    (TypeError, "groups to be an integer, .* got float",
     lambda: gk.r1_penalty(D(X), X, groups=4.0)),
    (TypeError, "groups to be a tensor of integers, got torch.float64",
     lambda: gk.r1_penalty(D(X), X, groups=INDEX.double())),
    (TypeError, "groups to be a tensor of integers, got torch.bool",
     lambda: gk.r1_penalty(D(X), X, groups=INDEX.bool())),
    (ValueError, "score for each of the 12 rows on cpu, got shape .5,.",
     lambda: gk.r1_penalty(D(X), X, groups=INDEX[:5])),
    (ValueError, "groups from 0 on, got -1", lambda: gk.r1_penalty(D(X), X, groups=INDEX - 1)),
    (ValueError, "groups below the number of scores, 3, got 3",
     lambda: gk.r1_penalty(D(X), X, groups=INDEX + 1)),
    (TypeError, "a number of consecutive rows, got a tensor; call r1_penalty and r2_penalty",
     lambda: gk.r1_r2_penalty(D, REAL, FAKE, groups=INDEX)),
]  # fmt: skip


@pytest.mark.parametrize("error, message, call", REFUSED, ids=[case[1] for case in REFUSED])
def test_groups_refused(error, message, call):
    with pytest.raises(error, match=f"^[a-z_0-9]+_penalty: .*{message}"):
        call()


# --- inv_scale -----------------------------------------------------------------------------------


class Small(nn.Module):
    """Whose gradients, 2e-8 each, are below float16's smallest number."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.full((4096,), 2e-8))

    def forward(self, x):
        return (x.float() * self.w).sum(1)


def half(seed):
    return draw(4, 4096, seed=seed, dtype=torch.float32).half()


SQUARE = 4096 * 2e-8**2  # of the norm

#: Penalties of gradients of that norm, and their values.
SCALED = {
    "r1": (lambda D, x, **k: gk.r1_penalty(D(x), x, gamma=2.0, **k), SQUARE),
    "r2": (lambda D, x, **k: gk.r2_penalty(D(x), x, gamma=2.0, **k), SQUARE),
    "roth": (lambda D, x, **k: gk.roth_penalty(D(x), D(x), x, x, gamma=2.0, **k), SQUARE / 2),
    "r1_r2": (lambda D, x, **k: gk.r1_r2_penalty(D, x, x, gamma=2.0, **k), 2 * SQUARE),
    "wgan_gp": (lambda D, x, **k: gk.wgan_gp_penalty(D, x, x, weight=1.0, center=0.0, **k), SQUARE),
    "wgan_lp": (lambda D, x, **k: gk.wgan_lp_penalty(D, x, x, weight=1.0, center=0.0, **k), SQUARE),
    "zero_centered": (lambda D, x, **k: gk.zero_centered_penalty(D, x, x, weight=1.0, **k), SQUARE),
    "dragan": (lambda D, x, **k: gk.dragan_penalty(
        D, x, weight=1.0, k=0.0, generator=seeded(), **k), SQUARE),
    "R1Penalty": (lambda D, x, **k: gnn.R1Penalty(2.0)(D(x), x, **k), SQUARE),
    "RothPenalty": (lambda D, x, **k: gnn.RothPenalty(2.0)(D(x), D(x), x, x, **k), SQUARE / 2),
    "R1R2Penalty": (lambda D, x, **k: gnn.R1R2Penalty(2.0)(D, x, x, **k), 2 * SQUARE),
    "ZeroCenteredPenalty": (lambda D, x, **k: gnn.ZeroCenteredPenalty(1.0)(D, x, x, **k), SQUARE),
    "groups": (lambda D, x, **k: gk.r1_penalty(D(x).view(2, 2).sum(1), x, gamma=2.0,
                                               groups=torch.tensor([0, 0, 1, 1]), **k), 2 * SQUARE),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALED)
def test_inv_scale_keeps_small_gradients(name):
    penalty, expected = SCALED[name]
    x = half(1).requires_grad_()
    scale = torch.tensor(2.0**16)
    D = Small()
    assert penalty(D, x).item() == 0
    value = penalty(D, x, inv_scale=1 / scale)
    assert value.item() == pytest.approx(expected, rel=0.01)

    x = half(1).float().requires_grad_()  # where nothing is lost, it changes nothing
    D = nn.Sequential(nn.Linear(4096, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0))
    for a, b in zip(
        *(
            torch.autograd.grad(penalty(D, x, inv_scale=s), [D[0].weight, D[2].weight])
            for s in (None, 1 / scale)
        ),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-9)


def test_inv_scale_of_consensus():
    """Through a network in float16, whose gradients are lost without a scale."""
    w = torch.full((8,), 1.0, requires_grad=True)

    def value(**k):
        loss = (w.half().float() * 1e-9).half().float().sum() * 0 + (w.half() * 1e-4).float().sum()
        return gk.consensus_penalty((loss * 1e-5,), ([w],), gamma=2.0, **k).item()

    assert value(inv_scale=torch.tensor(2.0**-12)) == pytest.approx(8 * 1e-18, rel=0.05)


@pytest.mark.parametrize(
    "inv_scale, error, message",
    [
        (0.5, ValueError, "inv_scale to be a tensor of one element, got float"),
        (torch.ones(2), ValueError, "inv_scale to be a tensor of one element, got float32 of sha"),
        (torch.ones(1).long(), TypeError, "inv_scale of a floating-point dtype, got torch.int64"),
        (torch.ones(1, device="meta"), ValueError, "inv_scale on cpu, where the samples are, got"),
    ],
)
def test_inv_scale_refused(inv_scale, error, message):
    x = grown(REAL)
    for call in (
        lambda: gk.r1_penalty(x.sum(1), x, inv_scale=inv_scale),
        lambda: gk.wgan_gp_penalty(lambda x: x.sum(1), REAL, FAKE, inv_scale=inv_scale),
    ):
        with pytest.raises(error, match=message):
            call()
