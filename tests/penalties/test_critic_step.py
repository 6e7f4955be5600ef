"""The critic's step in one call: its number is the sum of the separate calls."""

import pytest
import torch
from support.penalties import draw, seeded
from torch import nn

import gankernels as gk
from gankernels import losses
from gankernels.augment import ADAPipe
from gankernels.nn.utils import spectral_norm as our_hook
from gankernels.regularizers import MinibatchStdDev

pytestmark = pytest.mark.usefixtures("device")

METHODS = ("double_backward", "difference", "noise")
LOSSES = {
    "relativistic": losses.relativistic,
    "hinge": losses.hinge,
    "non_saturating": losses.non_saturating,
    "least_squares": losses.least_squares,
    "wasserstein": losses.wasserstein,
}


REAL, FAKE = draw(6, 2, 4, 4), draw(6, 2, 4, 4, seed=2)


class Critic(nn.Module):
    """Of images and labels, with a list of heads."""

    def __init__(self, heads=1):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.Softplus())
        self.label = nn.Embedding(3, 16)
        self.heads = nn.ModuleList([nn.Linear(16, 1 + i) for i in range(heads)])
        self.sizes = []
        self.double()

    def forward(self, x, y=None):
        self.sizes.append(len(x[0]) if isinstance(x, list) else len(x))
        x = sum(x) if isinstance(x, list) else x
        h = self.body(x)
        h = h if y is None else h * self.label(y)
        out = [head(h) for head in self.heads]
        return out[0] if len(out) == 1 else out


def separately(D, loss, r1, r2, method, *args, real=REAL, fake=FAKE, first=None, **kwargs):
    """As it is written by hand; noise is drawn of both batches at once, as the step does."""
    x, y = (p.clone().requires_grad_() for p in (real, fake))
    a, b = D(x, *args), D(y, *args)
    total = loss.discriminator(a, b)
    how = {"method": method, "first": first, **kwargs}
    if method == "double_backward":
        penalties = [
            gk.r1_penalty(a, x, gamma=r1, **how) if r1 else 0,
            gk.r2_penalty(b, y, gamma=r2, **how) if r2 else 0,
        ]
    else:
        generator = seeded() if method == "noise" else None
        how["generator"] = generator
        penalties = [
            gk.r1_penalty(a, x, *args, D=D, gamma=r1, **how) if r1 else 0,
            gk.r2_penalty(b, y, *args, D=D, gamma=r2, **how) if r2 else 0,
        ]
    return total + sum(penalties), penalties


def assert_same(D, step, expected, exact=True):
    total, penalties = expected
    torch.testing.assert_close(step.loss, total)
    for got, wanted in zip((step.r1, step.r2), penalties, strict=True):
        assert not got.requires_grad
        assert got.item() == pytest.approx(float(wanted))
    torch.testing.assert_close(step.loss, step.adversarial + step.r1 + step.r2)
    parameters = list(D.parameters())
    grads = [
        torch.autograd.grad(x, parameters, materialize_grads=True, allow_unused=True)
        for x in (step.loss, total)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", METHODS[:2])
def test_every_loss(loss, method):
    D = Critic()
    step = gk.critic_step(D, REAL, FAKE, loss=LOSSES[loss], r1=3.0, r2=2.0, method=method)
    assert_same(D, step, separately(D, LOSSES[loss], 3.0, 2.0, method))


@pytest.mark.parametrize("r1, r2", [(3.0, 0.0), (0.0, 2.0), (3.0, 2.0), (0.0, 0.0)])
@pytest.mark.parametrize("first", [None, 2])
@pytest.mark.parametrize("concatenate", [None, True, False])
@pytest.mark.parametrize("method", METHODS[:2])
def test_weights_and_fractions(r1, r2, first, concatenate, method):
    D, labels = Critic(heads=2), torch.arange(6) % 3
    step = gk.critic_step(
        D, REAL, FAKE, labels, r1=r1, r2=r2, method=method, concatenate=concatenate,
        fraction=1.0 if first is None else 0.45, sigma=0.02,
    )  # fmt: skip
    expected = separately(D, losses.relativistic, r1, r2, method, labels, first=first, sigma=0.02)
    assert_same(D, step, expected)
    assert [x.shape for x in step.real_logits] == [(6, 1), (6, 2)]
    with torch.no_grad():
        other = gk.critic_step(
            D, REAL, FAKE, labels, r1=r1, r2=r2, method=method, sigma=0.02,
            fraction=1.0 if first is None else 0.45,
        )  # fmt: skip
    assert not other.loss.requires_grad
    torch.testing.assert_close(other.loss, step.loss.detach())


@pytest.mark.parametrize("first", [None, 2])
def test_central_differences(first):
    """Those of the penalties that get the critic, whose samples it has not seen."""
    D, labels = Critic(heads=2), torch.arange(6) % 3
    how = {"method": "difference", "sigma": 0.05}
    step = gk.critic_step(
        D, REAL, FAKE, labels, r1=3.0, r2=2.0, central=True, **how,
        fraction=1.0 if first is None else 0.45,
    )  # fmt: skip
    assert D.sizes == ([12, 12, 12] if first is None else [12, 4, 4])
    loss = losses.relativistic.discriminator(D(REAL, labels), D(FAKE, labels))
    penalties = [
        gk.r1_penalty(D, REAL, labels, gamma=3.0, first=first, **how),
        gk.r2_penalty(D, FAKE, labels, gamma=2.0, first=first, **how),
    ]
    assert_same(D, step, (loss + sum(penalties), penalties))


def test_noise():
    """Drawn for what is one batch."""
    D = Critic()
    noise = torch.randn(12, 2, 4, 4, generator=seeded(), dtype=torch.float64)
    step = gk.critic_step(
        D, REAL, FAKE, r1=3.0, r2=2.0, method="noise", sigma=0.1, generator=seeded()
    )
    both = torch.cat((REAL, FAKE))
    squares = ((D(both + 0.1 * noise) - D(both)) / 0.1).square()
    assert step.r1.item() == pytest.approx(1.5 * squares[:6].mean().item())
    assert step.r2.item() == pytest.approx(squares[6:].mean().item())


@pytest.mark.parametrize(
    "settings, sizes",
    [
        ({}, [12]),
        ({"r1": 1.0, "r2": 1.0}, [12]),
        ({"r1": 1.0}, [6, 6]),
        ({"r1": 1.0, "concatenate": True}, [12]),
        ({"r1": 1.0, "r2": 1.0, "fraction": 0.5}, [12, 6]),
        ({"r1": 1.0, "r2": 1.0, "method": "difference"}, [12, 12]),
        ({"r1": 1.0, "method": "difference"}, [12, 6]),
        ({"r1": 1.0, "r2": 1.0, "method": "difference", "fraction": 0.2}, [12, 2]),
        ({"r1": 1.0, "r2": 1.0, "method": "noise", "concatenate": False}, [6, 6, 6, 6]),
    ],
)
def test_passes(settings, sizes):
    D = Critic()
    gk.critic_step(D, REAL, FAKE, **settings)
    assert D.sizes == sizes


def test_samples_that_are_coupled_go_apart():
    class Coupled(Critic):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return super().forward(self.layer(x)[:, :2])

    for layer, coupled in (
        (MinibatchStdDev(2), True),
        (nn.BatchNorm2d(2).double(), True),
        (nn.BatchNorm2d(2).double().eval(), False),
        (nn.GroupNorm(1, 2).double(), False),
    ):
        D = Coupled(layer)
        gk.critic_step(D, REAL, FAKE)
        assert D.sizes == ([6, 6] if coupled else [12])


def test_unequal_batches_and_labels():
    D = Critic()
    labels = torch.arange(9) % 3
    for concatenate in (True, False):
        step = gk.critic_step(
            D, REAL, FAKE[:3], labels, loss=losses.hinge, r1=1.0, r2=1.0, concatenate=concatenate
        )
        x, y = REAL.clone().requires_grad_(), FAKE[:3].clone().requires_grad_()
        a, b = D(x, labels[:6]), D(y, labels[6:])
        expected = losses.hinge.discriminator(a, b)
        expected = expected + gk.r1_penalty(a, x, gamma=1.0) + gk.r2_penalty(b, y, gamma=1.0)
        torch.testing.assert_close(step.loss, expected)


def test_lists_of_inputs_and_named_scores():
    D = Critic()
    real, fake = [REAL, REAL.flip(0)], [FAKE, FAKE.flip(0)]
    step = gk.critic_step(
        lambda x: {"logits": D(x), "features": x}, real, fake, r1=2.0, r2=2.0, scores="logits"
    )
    x, y = ([p.clone().requires_grad_() for p in z] for z in (real, fake))
    a, b = D(x), D(y)
    expected = losses.relativistic.discriminator(a, b)
    expected = expected + gk.r1_penalty(a, x, gamma=2.0) + gk.r2_penalty(b, y, gamma=2.0)
    torch.testing.assert_close(step.loss, expected)


def test_groups():
    def critic(x):
        return x.flatten(1).sin().sum(1).unflatten(0, (-1, 3)).sum(1)

    step = gk.critic_step(critic, REAL, FAKE, r1=2.0, r2=2.0, groups=3)
    x, y = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
    a, b = critic(x), critic(y)
    expected = losses.relativistic.discriminator(a, b)
    expected = expected + gk.r1_penalty(a, x, gamma=2.0, groups=3)
    expected = expected + gk.r2_penalty(b, y, gamma=2.0, groups=3)
    torch.testing.assert_close(step.loss, expected)
    assert step.real_logits.shape == (2,)


@pytest.mark.parametrize("method", METHODS)
def test_state_moves_once(method):
    def critic():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), our_hook(nn.Linear(32, 16)), nn.Softplus(), our_hook(nn.Linear(16, 1))
        ).double()

    D, once = critic(), critic()
    once(REAL)
    for concatenate in (True, False):
        D = critic()
        step = gk.critic_step(D, REAL, FAKE, r1=1.0, r2=1.0, method=method, concatenate=concatenate)
        for a, b in zip(D.buffers(), once.buffers(), strict=True):
            assert torch.equal(a, b)
        x, y = REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()
        a, b = once.eval()(x), once(y)
        if method != "noise":
            expected = gk.r1_penalty(a, x, D=once, gamma=1.0, method=method)
            assert step.r1.item() == pytest.approx(expected.item())


def test_augmented():
    """Gradients are taken at augmented samples."""
    D, pipe = Critic(), ADAPipe("bg", p=0.5).double()
    torch.manual_seed(3)
    step = gk.critic_step(D, REAL, FAKE, r1=2.0, r2=2.0, augment=pipe)
    torch.manual_seed(3)
    expected = separately(
        D, losses.relativistic, 2.0, 2.0, "double_backward", real=pipe(REAL), fake=pipe(FAKE)
    )
    assert_same(D, step, expected)


def test_scaled():
    """inv_scale of a GradScaler: the same number."""
    D = Critic()
    scale = torch.tensor(1 / 1024, dtype=torch.float64)
    a, b = (gk.critic_step(D, REAL, FAKE, r1=2.0, r2=2.0, inv_scale=x).loss for x in (None, scale))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("method", METHODS)
def test_statistics_of_both_batches_are_warned_of(method):
    """Of no module, so that nothing tells before the pass."""

    layer = nn.Linear(32, 4).double()

    def normalized(x):
        h = layer(x.flatten(1))
        return nn.functional.batch_norm(h, None, None, training=True).sin().sum(1)

    with pytest.warns(UserWarning, match="concatenate=False gives both a pass of their own"):
        gk.critic_step(normalized, REAL, FAKE, r1=1.0, r2=1.0, method=method)


def test_a_method_without_a_penalty_is_warned_of():
    with pytest.warns(UserWarning, match='method="difference" has nothing to find: r1 and r2'):
        gk.critic_step(Critic(), REAL, FAKE, method="difference")


@pytest.mark.parametrize("central", [False, True])
def test_compiled(central):
    """Whose graph frees what it has saved, and cannot be gone through twice."""
    D = Critic()
    D.body[2] = nn.ReLU()
    compiled = torch.compile(D, backend="aot_eager")
    how = {"r1": 3.0, "r2": 2.0, "method": "difference", "central": central}
    step, expected = (gk.critic_step(f, REAL, FAKE, **how) for f in (compiled, D))
    parameters = list(D.parameters())
    for a, b in zip(
        *(torch.autograd.grad(x.loss, parameters, allow_unused=True) for x in (step, expected)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    x = REAL.clone().requires_grad_()
    penalty = gk.r1_penalty(compiled(x), x, D=compiled, method="difference")
    torch.testing.assert_close(penalty, gk.r1_penalty(D, REAL, method="difference"))
    penalty.backward()


def test_generated_samples_get_no_gradient():
    fake = FAKE.clone().requires_grad_()
    gk.critic_step(Critic(), REAL, fake * 1, r1=1.0).loss.backward()
    assert fake.grad is None


def test_a_loss_of_ones_own():
    D = Critic()
    step = gk.critic_step(D, REAL, FAKE, loss=lambda a, b: (b - a).mean())
    torch.testing.assert_close(step.loss, (D(FAKE) - D(REAL)).mean())


def never(*args, **kwargs):
    raise AssertionError("the critic was called")


@pytest.mark.parametrize(
    "error, message, call",
    [
        (TypeError, "loss to be a pair of losses, or a function, got",
         lambda: gk.critic_step(never, REAL, FAKE, loss="hinge")),
        (ValueError, "r1 to be finite and not negative, got -1",
         lambda: gk.critic_step(never, REAL, FAKE, r1=-1)),
        (ValueError, "fraction to be at most 1, got 2",
         lambda: gk.critic_step(never, REAL, FAKE, fraction=2)),
        (ValueError, "fraction to be finite and positive, got 0",
         lambda: gk.critic_step(never, REAL, FAKE, fraction=0)),
        (TypeError, "central to be True or False",
         lambda: gk.critic_step(never, REAL, FAKE, method="difference", central=1)),
        (ValueError, 'method="difference" with central=True, got method="noise"',
         lambda: gk.critic_step(never, REAL, FAKE, method="noise", central=True)),
        (TypeError, "concatenate to be True or False",
         lambda: gk.critic_step(never, REAL, FAKE, concatenate=1)),
        (TypeError, "groups to be a number of consecutive rows, got a tensor",
         lambda: gk.critic_step(never, REAL, FAKE, groups=torch.arange(6))),
        (TypeError, r"did you mean r1=\?", lambda: gk.critic_step(never, REAL, FAKE, gamma=1.0)),
        (TypeError, "augment to be callable",
         lambda: gk.critic_step(never, REAL, FAKE, augment="bgc")),
        (ValueError, "one shape but for the batch",
         lambda: gk.critic_step(never, REAL, FAKE[..., :2])),
        (ValueError, "first dimension is the batch, 6, got a scalar",
         lambda: gk.critic_step(lambda x: x.sum(), REAL, FAKE, r1=1.0)),
        (TypeError, "the critic's scores to be a tensor or a list of them, got a tuple with list",
         lambda: gk.critic_step(lambda x: (x.flatten(1).sum(1), [x]), REAL, FAKE)),
    ],
)  # fmt: skip
def test_errors(error, message, call):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("side", ["generator", "real", "fake"])
def test_another_half_of_a_loss_is_refused(side):
    """It would train the critic to be wrong, or on one side."""
    D = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    x = torch.randn(4, 12)
    with pytest.raises(ValueError, match=rf"of the critic, got losses.hinge.{side}; pass losses.h"):
        gk.critic_step(D, x, x, loss=getattr(losses.hinge, side))
    step = gk.critic_step(D, x, x, loss=losses.hinge.discriminator)
    assert torch.equal(step.loss, gk.critic_step(D, x, x, loss=losses.hinge).loss)


def test_the_name_of_a_loss_is_none():
    with pytest.raises(TypeError, match=r"got 'hinge'; pass it as losses\.hinge"):
        gk.critic_step(nn.Linear(2, 1), torch.ones(2, 2), torch.ones(2, 2), loss="hinge")


def test_a_number_after_the_samples_is_taken_for_r1():
    x = torch.ones(2, 2)
    with pytest.raises(TypeError, match=r"did you mean r1=10\.0\?"):
        gk.critic_step(nn.Linear(2, 1), x, x, 10.0)
