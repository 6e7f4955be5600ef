"""The mistakes that gradient penalties ship with, one test each.

The wrong form is shown to be wrong, and ours to be right.
"""

import pytest
import torch
from torch import nn

import gankernels
from gankernels.nn import LazyRegularizer, R1Penalty


def unit_critic(shape):
    """A critic whose gradient has norm 1 at every sample."""
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    return lambda x: (x * direction).flatten(1).sum(1)


def quadratic(x):
    """D(x) = |x|^2 / 2 has the gradient x."""
    return x.flatten(1).square().sum(1) / 2


def gradient(scores, x):
    return torch.autograd.grad(scores, x, create_graph=True)[0]


def draw(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def points(*shape, seed=1):
    return draw(*shape, seed=seed).requires_grad_()


def test_norm_over_channels_only():
    """Gives 0.97 where every sample has norm 1."""
    D, real, fake = unit_critic((3, 64, 64)), draw(8, 3, 64, 64), draw(8, 3, 64, 64, seed=2)
    x = points(8, 3, 64, 64)
    wrong = (gradient(D(x).sum(), x).norm(2, dim=1) - 1).square().mean()
    assert wrong.item() == pytest.approx(0.97, abs=0.01)
    assert gankernels.wgan_gp_penalty(D, real, fake, weight=1.0).item() < 1e-10


def test_norm_over_the_whole_batch():
    """Gives (8 - 1)^2 = 49 at 64 samples of norm 1."""
    D, real, fake = unit_critic((3, 8, 8)), draw(64, 3, 8, 8), draw(64, 3, 8, 8, seed=2)
    x = points(64, 3, 8, 8)
    wrong = (gradient(D(x).sum(), x).norm() - 1).square()
    assert wrong.item() == pytest.approx(49.0, abs=1e-3)
    assert gankernels.wgan_gp_penalty(D, real, fake, weight=1.0).item() < 1e-10


def test_scores_averaged_over_the_batch():
    """R1 divided by B^2; scores of one scalar for the batch get a warning."""
    batch = 8
    x = points(batch, 3, 4, 4)
    right = 5 * x.detach().square().flatten(1).sum(1).mean()
    wrong = 5 * gradient(quadratic(x).mean(), x).square().flatten(1).sum(1).mean()
    assert right.item() / wrong.item() == pytest.approx(batch**2)
    assert gankernels.r1_penalty(quadratic(x), x).item() == pytest.approx(right.item())
    with pytest.warns(UserWarning, match=f"one scalar for a batch of {batch}.*pass the scores"):
        gankernels.r1_penalty(quadratic(x).mean(), x)


def test_patch_scores_averaged_over_positions():
    """At 31 x 31 patches R1 comes out 961^2 = 9.2e5 times too small."""
    x = points(2, 1, 31, 31)
    patches = x * 2.0  # each position has a score, and the gradient 2 at its own
    right = 5 * 4 * 31 * 31
    wrong = 5 * gradient(patches.mean((1, 2, 3)).sum(), x).square().flatten(1).sum(1).mean()
    assert right / wrong.item() == pytest.approx(9.2e5, rel=0.01)
    assert gankernels.r1_penalty(patches, x).item() == pytest.approx(right)


def test_dropped_half():
    x = points(4, 3, 5, 5)
    squares = x.detach().square().flatten(1).sum(1).mean().item()
    for penalty in (gankernels.r1_penalty, gankernels.r2_penalty):
        assert penalty(quadratic(x), x, gamma=3.0).item() == pytest.approx(1.5 * squares)


def test_lazy_interval_applied_twice_or_never():
    """Sixteen steps cost what sixteen penalties do, and one of them is computed."""
    x = points(4, 3, 5, 5)
    every_step = 16 * gankernels.r1_penalty(quadratic(x), x).item()
    lazy = LazyRegularizer(R1Penalty(gamma=10.0), interval=16)
    found = [lazy(quadratic(x), x).item() for _ in range(16)]
    assert sum(found) == pytest.approx(every_step)
    assert sum(value != 0 for value in found) == 1
    with pytest.raises(TypeError, match="multiplied twice"):
        LazyRegularizer(lazy)


@pytest.mark.parametrize("center", [0.0, 1.0])
def test_square_root_at_zero(center):
    """A critic that is flat at a sample poisons its weights with NaN."""

    def step(penalty):
        D = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        with torch.no_grad():
            D[0].bias.fill_(-10.0)  # no unit is active
        penalty(D, torch.zeros(2, 3)).backward()
        return torch.cat([p.grad.flatten() for p in D.parameters() if p.grad is not None])

    def wrong(D, x):
        x.requires_grad_()
        g = gradient(D(x).sum(), x)
        return (g.square().sum(1).sqrt() - center).square().mean()

    assert step(wrong).isnan().any()
    ours = step(lambda D, x: gankernels.wgan_gp_penalty(D, x, x, center=center))
    assert ours.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums(dtype):
    """In float16 the squares of 196,608 ones add up to inf, and those of 1e-4 are 0."""
    for scale in (1.0, 1e-4):
        x = torch.full((2, 3, 256, 256), scale, dtype=dtype, requires_grad=True)
        scores = (x * x.detach()).float().flatten(1).sum(1)  # the gradient is x
        exact = 5 * 196_608 * x.detach().double()[0, 0, 0, 0] ** 2
        if dtype == torch.float16:
            wrong = x.detach().square().flatten(1).sum(1)
            assert wrong.isinf().all() or not wrong.any()
        assert gankernels.r1_penalty(scores, x).item() == pytest.approx(exact.item(), rel=1e-5)


def test_penalty_on_scaled_gradients():
    """GradScaler: the penalty of scaled gradients is the scale squared too large; inv_scale is one
    element of the device, and the penalty and its gradients are those without a scaler.
    """
    torch.manual_seed(0)
    D = nn.Sequential(nn.Flatten(), nn.Linear(27, 8), nn.Softplus(), nn.Linear(8, 1))
    x = points(4, 3, 3, 3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(1))  # it is lazy
    right = gankernels.r1_penalty(D(x), x)
    wrong = 5 * gradient(scaler.scale(D(x).sum()), x).square().flatten(1).sum(1).mean()
    assert wrong.item() / right.item() == pytest.approx(1024**2, rel=1e-4)
    inv_scale = 1 / scaler.scale(torch.ones(()))
    ours = gankernels.r1_penalty(D(x), x, inv_scale=inv_scale)
    assert ours.item() == pytest.approx(right.item(), rel=1e-5)
    for a, b in zip(*(torch.autograd.grad(p, D[1].weight) for p in (ours, right)), strict=True):
        torch.testing.assert_close(a, b)


def test_inv_scale_keeps_float16_gradients():
    """Gradients of 1e-8 are 0 in float16, unless they are scaled."""
    x = torch.full((2, 64), 1.0, dtype=torch.float16, requires_grad=True)

    def scores():
        return (x * 1.0).float().sum(1) * 1e-8

    lost = gankernels.r1_penalty(scores(), x)
    kept = gankernels.r1_penalty(scores(), x, inv_scale=torch.tensor(2.0**-16))
    assert lost.item() == 0
    assert kept.item() == pytest.approx(5 * 64 * 1e-16, rel=0.01)


def test_view_of_a_channels_last_gradient():
    """It raises; ours reads it where it is."""
    torch.manual_seed(0)
    D = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 3)).to(
        memory_format=torch.channels_last
    )
    x = draw(4, 3, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    g = gradient(D(x).sum(), x)
    assert not g.is_contiguous()
    with pytest.raises(RuntimeError, match="view"):
        g.view(4, -1)
    expected = 5 * g.flatten(1).square().sum(1).mean()
    assert gankernels.r1_penalty(D(x), x).item() == pytest.approx(expected.item(), rel=1e-5)


def test_batch_normalization_couples_samples():
    """The gradient of the sum is not the sample's own; the check finds it and says what to do."""
    torch.manual_seed(0)
    coupled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Flatten())
    coupled.append(nn.Linear(8 * 36, 1))
    x = points(8, 3, 8, 8)
    together = gradient(coupled(x).sum(), x)
    own = torch.stack([gradient(coupled(x)[i].sum(), x)[i] for i in range(8)])
    error = (together - own).norm() / own.norm()
    assert error > 0.02
    statistics = coupled[1].running_mean.clone()
    with pytest.warns(UserWarning, match="layer, instance or group normalization"):
        assert not gankernels.check_independent_samples(coupled, x)
    assert torch.equal(coupled[1].running_mean, statistics)
    coupled.eval()
    assert gankernels.check_independent_samples(coupled, x)
    coupled[1] = nn.GroupNorm(2, 8)
    assert gankernels.check_independent_samples(coupled.train(), x)
