"""The regularizers beside the gradient penalties, against float64 written out here."""

import copy
import io
import math
import pickle

import pytest
import torch
from support.tensors import DTYPES, assert_near, drawer
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from gankernels import regularizers
from gankernels.regularizers import (
    FadingBlur,
    InstanceNoise,
    LeCam,
    MinibatchDiscrimination,
    MinibatchStdDev,
    balanced_consistency_regularization,
    consistency_regularization,
    drift_penalty,
    latent_consistency_discriminator,
    latent_consistency_generator,
    minibatch_stddev,
    rotate_batch,
    rotation_loss,
)

HALF = (torch.bfloat16, torch.float16)


def wide(dtype):
    """What losses come in."""
    return torch.float32 if dtype in HALF else dtype


def reloaded(module, fresh):
    """``fresh`` with the state of ``module``, through a file."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file))
    return fresh


def refuses(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- LeCam, drift --------------------------------------------------------------------------------


def lecam(reals, fakes, weight=0.3, decay=0.99):
    """The losses and the last anchors of a run, in Python's floats."""
    ema_real = ema_fake = None
    losses = []
    for real, fake in zip(reals, fakes, strict=True):
        real, fake = real.double().flatten().tolist(), fake.double().flatten().tolist()
        mean_real, mean_fake = sum(real) / len(real), sum(fake) / len(fake)
        ema_real = mean_real if ema_real is None else decay * ema_real + (1 - decay) * mean_real
        ema_fake = mean_fake if ema_fake is None else decay * ema_fake + (1 - decay) * mean_fake
        of_real = sum(max(0, s - ema_fake) ** 2 for s in real) / len(real)
        of_fake = sum(max(0, ema_real - s) ** 2 for s in fake) / len(fake)
        losses.append(weight * (of_real + of_fake))
    return torch.tensor(losses, dtype=torch.float64), ema_real, ema_fake


def scores(dtype=torch.float32, steps=5):
    draw = drawer(0, dtype)
    return [draw(6, 1) + 0.5 for _ in range(steps)], [draw(4, 1, 2, 2) for _ in range(steps)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_lecam(dtype):
    reals, fakes = scores(dtype)
    module = LeCam(0.7, 0.8)
    got = torch.stack([module(real, fake) for real, fake in zip(reals, fakes, strict=True)])
    expected, ema_real, ema_fake = lecam(reals, fakes, 0.7, 0.8)
    assert got.dtype == wide(dtype)
    assert_near(got, expected, torch.float32)
    assert module.ema_real.item() == pytest.approx(ema_real, rel=1e-5)
    assert module.ema_fake.item() == pytest.approx(ema_fake, rel=1e-5)


def test_lecam_defaults_are_the_papers():
    reals, fakes = scores()
    module = LeCam()
    got = torch.stack([module(real, fake) for real, fake in zip(reals, fakes, strict=True)])
    assert_near(got, lecam(reals, fakes, 0.3, 0.99)[0])


def test_lecam_takes_the_other_sides_anchor():
    # With the anchors exchanged, a known mistake, both terms of these scores would be 0.
    module = LeCam(1.0)
    assert module(torch.tensor([3.0]), torch.tensor([-1.0])).item() == 2 * 4.0**2
    assert module.eval()(torch.tensor([-2.0]), torch.tensor([4.0])).item() == 0


def test_lecam_lists_are_one_vector():
    reals, fakes = scores(steps=2)
    joined, listed = LeCam(), LeCam()
    real = torch.cat([reals[0].flatten(), fakes[1].flatten()])
    want = joined(real, fakes[0])
    assert torch.equal(listed([reals[0], fakes[1]], (fakes[0],)), want)
    assert torch.equal(listed.ema_real, joined.ema_real)


def test_lecam_gradients():
    module = LeCam(decay=0.5)
    reals, fakes = scores(torch.float64, 3)
    module(reals[0], fakes[0])
    module.eval()
    inputs = (reals[1].requires_grad_(), fakes[1].requires_grad_())
    assert gradcheck(module, inputs)
    assert gradgradcheck(module, inputs)


def test_lecam_anchors_carry_no_gradient():
    real = torch.tensor([1.0, 5.0], requires_grad=True)
    fake = torch.tensor([0.0, -2.0], requires_grad=True)
    LeCam(1.0)(real, fake).backward()
    # The first batch sets the anchors to 3 and -1; they are constants here.
    assert real.grad.tolist() == [2.0, 6.0]
    assert fake.grad.tolist() == [-3.0, -5.0]


def test_lecam_in_evaluation_mode():
    reals, fakes = scores()
    module = LeCam().eval()
    before_training = module(reals[0], fakes[0])
    assert not module.initialized
    assert torch.equal(before_training, LeCam()(reals[0], fakes[0]))

    module.train()(reals[0], fakes[0])
    state = copy.deepcopy(module.state_dict())
    value = module.eval()(reals[1], fakes[1])
    assert all(torch.equal(module.state_dict()[name], x) for name, x in state.items())
    real, fake = reals[1].double(), fakes[1].double()
    expected = (real - fakes[0].double().mean()).relu().square().mean()
    expected = expected + (reals[0].double().mean() - fake).relu().square().mean()
    assert_near(value, 0.3 * expected)


def test_lecam_several_forwards_before_a_backward():
    reals, fakes = scores()
    reals = [real.requires_grad_() for real in reals]
    module = LeCam()
    sum(module(real, fake) for real, fake in zip(reals, fakes, strict=True)).backward()
    assert all(real.grad.any() for real in reals)


def test_lecam_state():
    reals, fakes = scores()
    module = LeCam()
    for real, fake in zip(reals[:3], fakes[:3], strict=True):
        module(real, fake)
    assert set(module.state_dict()) == {"ema_real", "ema_fake", "initialized"}
    other = reloaded(module, LeCam())
    assert torch.equal(other(reals[3], fakes[3]), module(reals[3], fakes[3]))
    assert not torch.equal(LeCam()(reals[3], fakes[3]), other(reals[3], fakes[3]))
    assert repr(module) == "LeCam(weight=0.3, decay=0.99)"


def test_lecam_anchor_at_zero_counts_as_set():
    module = LeCam(1.0, 0.5)
    module(torch.zeros(2), torch.zeros(2))
    module(torch.ones(2), torch.ones(2))
    assert module.ema_real.item() == 0.5


@pytest.mark.parametrize("dtype", HALF)
def test_lecam_averages_stay_float32(dtype):
    module = LeCam().to(dtype)
    module(torch.zeros(1), torch.zeros(1))
    for _ in range(1000):
        module(torch.ones(1, dtype=dtype), torch.ones(1, dtype=dtype))
    assert module.ema_real.dtype == module.ema_fake.dtype == torch.float32
    assert module.ema_real.item() > 0.999  # bfloat16 stands still at 0.8
    stuck = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(1000):
        stuck.lerp_(torch.ones_like(stuck), 0.01)
    assert stuck.item() < 0.9


def test_lecam_averages_survive_conversions():
    """Through float16 and back they were inf and -1.234375."""
    module = LeCam()
    module(torch.full((2,), 70000.125), torch.full((2,), -1.2345678))
    before = module.state_dict()
    for dtype in (*HALF, torch.float64, torch.float32):
        after = nn.Sequential(module).to(dtype)[0].state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert module.to("meta").ema_real.is_meta


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_lecam_bad_scores_do_not_reach_the_anchors(bad, side):
    reals, fakes = scores()
    broken = [reals[1].clone(), fakes[1].clone()]
    broken[side].view(-1)[0] = bad
    module, sound = LeCam(), LeCam()
    module(*broken)
    assert not module.initialized
    for m in (module, sound):
        m(reals[0], fakes[0])
    module(*broken)
    assert module.initialized
    assert torch.equal(module.ema_real, sound.ema_real)
    assert torch.equal(module.ema_fake, sound.ema_fake)


def test_lecam_of_means_from_zero_after_a_start():
    """All three, in Python's floats."""
    draw = drawer(0)
    reals, fakes = ([draw(6, 1) + 0.5 for _ in range(6)], [draw(4) - 0.5 for _ in range(6)])
    module = LeCam(0.7, 0.8, of="means", from_zero=True, start=2)
    ema_real = ema_fake = 0.0
    for step, (real, fake) in enumerate(zip(reals, fakes, strict=True)):
        mean_real, mean_fake = real.double().mean().item(), fake.double().mean().item()
        ema_real = 0.8 * ema_real + 0.2 * mean_real
        ema_fake = 0.8 * ema_fake + 0.2 * mean_fake
        expected = 0.7 * (max(0, mean_real - ema_fake) ** 2 + max(0, ema_real - mean_fake) ** 2)
        got = module(real.requires_grad_(), fake)
        got.backward()
        assert got.item() == pytest.approx(expected if step >= 2 else 0, rel=1e-5)
        assert bool(real.grad.any()) == (step >= 2)
        assert module.ema_real.item() == pytest.approx(ema_real, rel=1e-5)
        assert module.ema_fake.item() == pytest.approx(ema_fake, rel=1e-5)


def test_lecam_of_means_is_not_of_scores():
    scores = torch.tensor([-1.0, 1.0])
    module = LeCam(1.0, from_zero=True).eval()
    assert module(scores, scores).item() == 1.0  # half of 1 on either side
    module.of = "means"
    assert module(scores, scores).item() == 0


def test_lecam_from_zero_takes_no_mean_for_an_anchor():
    module = LeCam(1.0, 0.5, from_zero=True)
    assert module.eval()(torch.tensor([3.0]), torch.tensor([-2.0])).item() == 9 + 4
    module.train()(torch.tensor([4.0]), torch.tensor([-2.0]))
    assert (module.ema_real.item(), module.ema_fake.item()) == (2.0, -1.0)


def test_lecam_start_is_of_the_state():
    reals, fakes = scores()
    module = LeCam(start=3)
    assert set(module.state_dict()) == {"ema_real", "ema_fake", "initialized", "calls"}
    module(reals[0], fakes[0])
    assert module.eval()(reals[1], fakes[1]).item() == 0  # which does not count
    module.train()(reals[1], fakes[1])
    other = reloaded(module, LeCam(start=3))
    plain = LeCam()
    for real, fake in zip(reals[:3], fakes[:3], strict=True):
        plain(real, fake)
    assert other(reals[2], fakes[2]).item() == 0
    got = other(reals[3], fakes[3])
    assert got.item() > 0
    assert torch.equal(got, plain(reals[3], fakes[3]))
    assert repr(other) == "LeCam(weight=0.3, decay=0.99, start=3)"
    assert repr(LeCam(of="means", from_zero=True)) == "LeCam(weight=0.3, decay=0.99, of='means')"


def test_lecam_compiles():
    reals, fakes = scores()
    module, plain = LeCam(), LeCam()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    for real, fake in zip(reals, fakes, strict=True):
        assert torch.equal(compiled(real, fake), plain(real, fake))


@pytest.mark.parametrize("dtype", DTYPES)
def test_drift_penalty(dtype):
    x = drawer(1, dtype)(5, 3) * 30
    got = drift_penalty(x)
    assert got.dtype == wide(dtype)
    assert_near(got, 0.001 * x.double().square().mean(), got.dtype)
    assert_near(drift_penalty([x[:1], x[1:]], weight=2.0), 2 * x.double().square().mean())


def test_drift_penalty_does_not_overflow():
    assert drift_penalty(torch.full((3,), 6e4, dtype=torch.float16)).item() == pytest.approx(
        3.6e6, rel=1e-3
    )


def test_drift_penalty_gradients():
    x = drawer(2, torch.float64)(4, 1).requires_grad_()
    assert gradgradcheck(drift_penalty, (x,))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: LeCam(-1.0), ValueError, "LeCam: expected weight to be finite and not negative"),
        (lambda: LeCam("1"), TypeError, "LeCam: expected weight to be a number, got str"),
        (lambda: LeCam(decay=1.0), ValueError, "LeCam: expected decay below 1, got 1.0"),
        (lambda: LeCam(decay=-0.1), ValueError, "LeCam: expected decay to be finite"),
        (lambda: LeCam(of="mean"), ValueError, 'LeCam: expected of to be "scores" or "means", got'),
        (lambda: LeCam(from_zero=1), TypeError, "LeCam: expected from_zero to be True or False"),
        (lambda: LeCam(start=-1), ValueError, "LeCam: expected start to be at least 0, got -1"),
        (lambda: LeCam(start=True), TypeError, "LeCam: expected start to be an integer, got bool"),
        (
            lambda: LeCam()(None, torch.ones(1)),
            TypeError,
            "LeCam: expected real_logits to be a tensor or a list of tensors, got NoneType",
        ),
        (lambda: LeCam()(torch.ones(1), []), TypeError, "LeCam: expected fake_logits to be"),
        (
            lambda: LeCam()(torch.ones(1), torch.ones(2, dtype=torch.int64)),
            TypeError,
            "LeCam: expected fake_logits of a floating-point dtype, got torch.int64",
        ),
        (
            lambda: LeCam()(torch.ones(0, 3), torch.ones(1)),
            ValueError,
            r"LeCam: expected real_logits with elements, got shape \(0, 3\)",
        ),
        (
            lambda: LeCam()(torch.ones(1), torch.ones(1, device="meta")),
            ValueError,
            r'expected fake_logits on cpu, where the anchors are, got meta; .*\.to\("meta"\)',
        ),
        (
            lambda: drift_penalty(3.0),
            TypeError,
            "drift_penalty: expected real_logits to be a tensor or a list of tensors, got float",
        ),
        (
            lambda: drift_penalty(torch.ones(1), weight=math.nan),
            ValueError,
            "drift_penalty: expected weight to be finite and not negative, got nan",
        ),
    ],
)
def test_scores_refused(call, error, message):
    refuses(call, error, message)


def test_lecam_refuses_before_it_moves():
    module = LeCam()
    refuses(lambda: module(torch.ones(2), torch.ones(0)), ValueError, "fake_logits with elements")
    assert not module.initialized
    assert module.ema_real.item() == 0


# --- minibatch standard deviation ----------------------------------------------------------------


def stddev_reference(x, group_size, num_channels, eps=1e-8):
    """Group by group, part by part, as the text says: sample i is in group i mod n."""
    x = x.double()
    groups = len(x) // min(group_size or len(x), len(x))
    size = x.shape[1] // num_channels
    new = torch.empty(len(x), num_channels, *x.shape[2:], dtype=torch.float64)
    for first in range(groups):
        samples = x[first::groups]
        std = ((samples - samples.mean(0)).square().mean(0) + eps).sqrt()
        for part in range(num_channels):
            new[first::groups, part] = std[part * size : (part + 1) * size].mean()
    return torch.cat((x, new), 1)


STDDEV_CASES = [
    ((8, 4, 3, 5), 4, 1),
    ((8, 4, 3, 5), 4, 2),
    ((6, 3, 4), 2, 3),
    ((3, 4, 2, 2), 4, 1),  # a batch below a group
    ((4, 6), 2, 2),
    ((4, 2, 2, 3, 2), 4, 2),
    ((2, 2, 2, 2), 1, 1),  # groups of one
    ((1, 2, 3), 4, 1),
    ((12, 2, 3), 4, 1),
    ((6, 4, 3), None, 2),  # the whole batch
]


def published_stddev(x, group_size, num_channels):
    """The formula of StyleGAN2-ADA's layer, (B, C, H, W), reshape by reshape."""
    n, c, h, w = x.shape
    group = n if group_size is None else min(group_size, n)
    y = x.reshape(group, -1, num_channels, c // num_channels, h, w)
    y = y - y.mean(0)
    y = (y.square().mean(0) + 1e-8).sqrt().mean((2, 3, 4))
    return torch.cat((x, y.reshape(-1, num_channels, 1, 1).repeat(group, 1, h, w)), 1)


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("group_size", [1, 2, 3, 4, 6, 12, 16, None])
def test_minibatch_stddev_is_the_published_layer(group_size, num_channels):
    x = drawer(2, torch.float64)(12, 4, 3, 2)
    expected = published_stddev(x, group_size, num_channels)
    assert_near(MinibatchStdDev(group_size, num_channels)(x), expected)


def test_minibatch_stddev_goes_through_the_batch():
    """Worked out by hand: groups (0, 2, 4, 6) and (1, 3, 5, 7) of eight samples."""
    x = torch.tensor([0.0, 10, 2, 10, 4, 10, 6, 10], dtype=torch.float64)[:, None]
    new = minibatch_stddev(x, 4, eps=1e-30)[:, 1]
    assert_near(new, torch.tensor([5**0.5, 0] * 4, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape, group_size, num_channels", STDDEV_CASES)
def test_minibatch_stddev(shape, group_size, num_channels, dtype):
    x = drawer(3, dtype)(*shape)
    got = minibatch_stddev(x, group_size, num_channels)
    assert got.dtype == dtype
    assert torch.equal(got[:, : shape[1]], x)
    assert_near(got, stddev_reference(x, group_size, num_channels))
    assert torch.equal(MinibatchStdDev(group_size, num_channels)(x), got)


def test_minibatch_stddev_is_biased_and_for_each_pixel():
    x = drawer(4)(8, 3, 4, 4)
    new = minibatch_stddev(x)[0, 3, 0, 0]
    group = x[::2]
    assert_near(new, (group.var(0, correction=0) + 1e-8).sqrt().mean().double())
    assert not torch.isclose(new, (group.var(0, correction=1) + 1e-8).sqrt().mean(), rtol=1e-2)
    assert not torch.isclose(new, group.std(correction=0), rtol=1e-3)


def test_minibatch_stddev_groups_in_half_precision_do_not_overflow():
    x = torch.tensor([[-6e4], [6e4]], dtype=torch.float16)
    assert minibatch_stddev(x)[:, 1].tolist() == [x[1, 0]] * 2


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize(
    "shape, layout",
    [((4, 2, 3, 3), torch.channels_last), ((4, 2, 3, 3, 2), torch.channels_last_3d)],
)
def test_minibatch_stddev_keeps_channels_last(shape, layout, num_channels):
    x = drawer(6)(*shape)
    got = minibatch_stddev(x.contiguous(memory_format=layout), 4, num_channels)
    assert got.is_contiguous(memory_format=layout)
    assert minibatch_stddev(x, 4, num_channels).is_contiguous()
    assert_near(got, minibatch_stddev(x, 4, num_channels).double())


def test_minibatch_stddev_gradients():
    x = drawer(7, torch.float64)(4, 2, 2).requires_grad_()
    assert gradcheck(lambda x: minibatch_stddev(x, 2, 2), (x,))
    assert gradgradcheck(lambda x: minibatch_stddev(x, 2, 2), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_minibatch_stddev_gradients_at_no_variance(dtype):
    x = torch.ones(4, 2, 3, dtype=dtype, requires_grad=True)
    (first,) = torch.autograd.grad(minibatch_stddev(x)[:, 2:].sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first + x).square().sum(), x)
    assert torch.equal(first, torch.zeros_like(x))
    assert second.isfinite().all()
    # Without eps under the root there is no gradient here.
    (naive,) = torch.autograd.grad(x.float().var(0, correction=0).sqrt().sum(), x)
    assert not naive.isfinite().all()


def test_minibatch_stddev_gradgrad_near_no_variance():
    x = torch.ones(4, 1, 2, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda x: minibatch_stddev(x, eps=1e-2), (x,))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: minibatch_stddev(torch.ones(6, 2)),
            ValueError,
            "minibatch_stddev: expected a batch of a multiple of group_size=4, got 6; drop",
        ),
        (
            lambda: minibatch_stddev(torch.ones(4, 3, 2), num_channels=2),
            ValueError,
            "expected num_channels to divide the channels of x, 3, got 2",
        ),
        (lambda: minibatch_stddev(torch.ones(4)), ValueError, r"\(B, C, \.\.\.\).* got shape \(4,"),
        (lambda: minibatch_stddev(torch.ones(0, 2)), ValueError, "with elements"),
        (lambda: minibatch_stddev([1]), TypeError, "expected x to be a tensor .* got list"),
        (
            lambda: minibatch_stddev(torch.ones(4, 2, dtype=torch.uint8)),
            TypeError,
            "floating-point dtype, got torch.uint8",
        ),
        (
            lambda: minibatch_stddev(torch.ones(4, 2), 0),
            ValueError,
            "group_size to be at least 1, got 0",
        ),
        (
            lambda: minibatch_stddev(torch.ones(4, 2), 2.0),
            TypeError,
            "expected group_size to be an integer, got float",
        ),
        (
            lambda: MinibatchStdDev(num_channels=True),
            TypeError,
            "MinibatchStdDev: expected num_channels to be an integer, got bool",
        ),
        (lambda: MinibatchStdDev(eps=0.0), ValueError, "expected eps to be finite and positive"),
    ],
)
def test_minibatch_stddev_refused(call, error, message):
    refuses(call, error, message)


def test_minibatch_stddev_module():
    module = MinibatchStdDev(2, 3)
    assert repr(module) == "MinibatchStdDev(group_size=2, num_channels=3, eps=1e-08)"
    assert not module.state_dict()


# --- minibatch discrimination --------------------------------------------------------------------


def discrimination_reference(x, T):
    x, T = x.double(), T.double()
    M = torch.einsum("na,abc->nbc", x, T)
    o = torch.zeros(len(x), T.shape[1], dtype=torch.float64)
    for i in range(len(x)):
        for j in range(len(x)):  # i too: the paper's sum
            o[i] += torch.exp(-(M[i] - M[j]).abs().sum(1))
    return torch.cat((x, o), 1)


def seeded(module, seed=0):
    """The module with parameters that do not depend on the global generator."""
    draw = drawer(seed, torch.float64)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.3 * draw(*p.shape))
    return module


@pytest.mark.parametrize("dtype", DTYPES)
def test_minibatch_discrimination(dtype):
    module = seeded(MinibatchDiscrimination(6, 7, 3)).to(dtype)
    x = drawer(8, dtype)(5, 6)
    got = module(x)
    assert got.dtype == dtype
    assert torch.equal(got[:, :6], x)
    assert_near(got, discrimination_reference(x, module.T), factor=4)


def test_minibatch_discrimination_counts_itself():
    module = MinibatchDiscrimination(3, 2, 2)
    assert module(torch.ones(1, 3))[0, 3:].tolist() == [1.0, 1.0]
    assert module(torch.ones(4, 3))[:, 3:].tolist() == [[4.0, 4.0]] * 4


def test_minibatch_discrimination_takes_distances_in_float32():
    module = MinibatchDiscrimination(1, 1, 5, dtype=torch.bfloat16)
    with torch.no_grad():
        module.T.copy_(torch.tensor([1, 1, 1, 1, 0.015]))
    x = torch.ones(201, 1, dtype=torch.bfloat16)
    x[0] = 0
    # bfloat16 has no distance between 4 and 4.03, and would be wrong by a percent.
    assert module(x)[0, 1].item() == pytest.approx(1 + 200 * math.exp(-4.015), rel=5e-3)


def test_minibatch_discrimination_gradients():
    module = seeded(MinibatchDiscrimination(3, 2, 2)).double()

    def apply(x, T):
        return torch.func.functional_call(module, {"T": T}, (x,))

    inputs = (
        drawer(9, torch.float64)(4, 3).requires_grad_(),
        module.T.detach().clone().requires_grad_(),
    )
    assert gradcheck(apply, inputs)
    assert gradgradcheck(apply, inputs)


def test_minibatch_discrimination_under_autocast():
    module = seeded(MinibatchDiscrimination(16, 4, 3))
    x = drawer(10)(5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module(x)
    assert got.dtype == torch.float32
    assert_near(got, discrimination_reference(x, module.T), torch.bfloat16, factor=4)


def test_minibatch_discrimination_module():
    torch.manual_seed(0)
    module = MinibatchDiscrimination(4)
    assert module.T.shape == (4, 100, 5)
    assert 0.45 < module.T.abs().max() <= 0.5
    assert repr(module) == (
        "MinibatchDiscrimination(in_features=4, out_features=100, kernel_dims=5)"
    )
    assert set(module.state_dict()) == {"T"}
    x = torch.rand(3, 4)
    assert torch.equal(reloaded(module, MinibatchDiscrimination(4))(x), module(x))
    half = MinibatchDiscrimination(4, device="meta", dtype=torch.bfloat16)
    assert half.T.dtype == torch.bfloat16
    assert half.T.is_meta


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: MinibatchDiscrimination(0), ValueError, "in_features to be at least 1, got 0"),
        (lambda: MinibatchDiscrimination(3, 1.5), TypeError, "out_features to be an integer"),
        (lambda: MinibatchDiscrimination(3, 1, -1), ValueError, "kernel_dims to be at least 1"),
        (
            lambda: MinibatchDiscrimination(3)(torch.ones(2, 4)),
            ValueError,
            r"MinibatchDiscrimination: expected x of shape \(n, 3\), got \(2, 4\); flatten",
        ),
        (
            lambda: MinibatchDiscrimination(3)(torch.ones(2, 3, 1)),
            ValueError,
            r"got \(2, 3, 1\); flatten the features with x.flatten\(1\)",
        ),
        (lambda: MinibatchDiscrimination(3)(None), TypeError, r"shape \(n, 3\), got NoneType"),
        (
            lambda: MinibatchDiscrimination(3)(torch.ones(2, 3, dtype=torch.long)),
            TypeError,
            "floating-point dtype, got torch.int64",
        ),
        (
            lambda: MinibatchDiscrimination(3)(torch.ones(2, 3, dtype=torch.float64)),
            TypeError,
            r"MinibatchDiscrimination: expected x of torch.float32, as T is, got torch.float64",
        ),
    ],
)
def test_minibatch_discrimination_refused(call, error, message):
    refuses(call, error, message)


# --- consistency ---------------------------------------------------------------------------------


class Recorder(nn.Module):
    """A small critic or generator that keeps what it was called with."""

    def __init__(self, features=6, out=3, dtype=torch.float64):
        super().__init__()
        draw = drawer(11, dtype)
        self.w = nn.Parameter(0.5 * draw(features, out))
        self.calls = []

    def forward(self, x, label=None, *, scale=1.0):
        self.calls.append((x, label, scale))
        y = (x.flatten(1) @ self.w).tanh() * scale
        return y if label is None else y + label[:, None] * y.square()


def flip(x):
    return x.flip(2)


def squared(a, b):
    """The mean over the batch of ||a - b||^2."""
    return sum((p.double() - q.double()).square().sum() for p, q in zip(a, b, strict=True)) / len(a)


@pytest.mark.parametrize("dtype", DTYPES)
def test_consistency(dtype):
    D = Recorder(dtype=dtype)
    x = drawer(12, dtype)(4, 2, 3)
    got = consistency_regularization(D, x, flip)
    assert got.dtype == wide(dtype)
    assert got.dim() == 0
    assert_near(got, 10 * squared(D(x), D(flip(x))))
    assert_near(consistency_regularization(D, x, flip, weight=0.5), 0.5 * squared(D(x), D(flip(x))))


def test_consistency_passes_labels_on():
    D = Recorder()
    draw = drawer(13, torch.float64)
    x, label = draw(4, 2, 3), draw(4)
    got = consistency_regularization(D, x, flip, label, scale=2.0)
    assert len(D.calls) == 2
    assert all(call[1] is label and call[2] == 2.0 for call in D.calls)
    assert torch.equal(D.calls[1][0], flip(x))
    assert_near(got, 10 * squared(D(x, label, scale=2.0), D(flip(x), label, scale=2.0)))


def test_consistency_of_patches_and_scales():
    """The square is summed over patches and scales, and averaged over the batch alone."""
    x = drawer(14)(4, 2, 3)

    def scales(x):
        return [x * 2, x[:, 0, :1]]

    got = consistency_regularization(scales, x, flip, weight=1.0)
    first, last = x[:, 0, :1], x[:, 0, 2:]
    assert_near(got, squared(2 * x, 2 * flip(x)) + squared(first, last))
    assert_near(
        consistency_regularization(lambda x: x[:, 0, 0], x, flip, weight=1.0),
        squared(first, last),
    )


def test_consistency_of_lists_of_samples():
    draw = drawer(15)
    xs = [draw(4, 2, 3), draw(4, 1, 5)]
    got = consistency_regularization(
        lambda xs: xs[0].sum((1, 2)) * xs[1][:, 0, 0], xs, lambda xs: [flip(x) for x in xs]
    )
    total = xs[0].sum((1, 2))
    assert_near(got, 10 * squared(total * xs[1][:, 0, 0], total * xs[1][:, 0, 4]), factor=4)


def test_consistency_subtracts_in_float32():
    # float16 has the difference of the squares of these as infinity.
    x = torch.tensor([[[300.0, 0.0, -300.0]]], dtype=torch.float16)
    got = consistency_regularization(lambda x: x, x, flip, weight=1.0)
    assert got.item() == 2 * 600.0**2


def test_consistency_gradients():
    D = Recorder(out=2)
    x = drawer(16, torch.float64)(3, 2, 3).requires_grad_()

    def loss(w):
        return consistency_regularization(
            lambda x: torch.func.functional_call(D, {"w": w}, (x,)), x, flip
        )

    w = D.w.detach().clone().requires_grad_()
    assert gradcheck(loss, (w,))
    assert gradgradcheck(loss, (w,))
    # Both terms carry gradient: with one of them held, this would be half as large.
    (both,) = torch.autograd.grad(loss(w), w)
    a, b = ((p.flatten(1) @ w).tanh() for p in (x, flip(x)))
    (held,) = torch.autograd.grad(10 * squared(a.detach(), b), w, retain_graph=True)
    (other,) = torch.autograd.grad(10 * squared(a, b.detach()), w)
    assert_near(both, held + other)
    assert not torch.allclose(both, held)


def test_consistency_reaches_no_samples():
    x = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    fake = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    D = Recorder()
    balanced_consistency_regularization(D, x, fake, flip).backward()
    assert x.grad is None
    assert fake.grad is None
    assert D.w.grad.any()


def test_balanced_consistency():
    D = Recorder()
    draw = drawer(17, torch.float64)
    real, fake, label = draw(4, 2, 3), draw(2, 2, 3), torch.ones(1, dtype=torch.float64)
    at_real, at_fake = squared(D(real), D(flip(real))), squared(D(fake), D(flip(fake)))
    assert_near(balanced_consistency_regularization(D, real, fake, flip), 10 * (at_real + at_fake))
    got = balanced_consistency_regularization(D, real, fake, flip, weight_real=3.0, weight_fake=0.5)
    assert_near(got, 3 * at_real + 0.5 * at_fake)
    D.calls.clear()
    balanced_consistency_regularization(D, real, fake, flip, label, scale=3.0)
    assert len(D.calls) == 4
    assert all(call[1] is label and call[2] == 3.0 for call in D.calls)


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_latent_consistency_discriminator(dtype):
    G, D = Recorder(5, 6, dtype), Recorder(6, 3, dtype)
    z = drawer(18, dtype)(4, 5)
    got = latent_consistency_discriminator(D, G, z, generator=generator_of(3))
    assert got.dtype == wide(dtype)
    near = z + 0.05 * torch.randn(4, 5, generator=generator_of(3), dtype=dtype)
    assert torch.equal(G.calls[0][0], z)
    assert torch.equal(G.calls[1][0], near)
    assert_near(got, 20 * squared(D(G(z)), D(G(near))))
    got.backward()
    assert D.w.grad.any()
    assert G.w.grad is None


@pytest.mark.parametrize("dtype", DTYPES)
def test_latent_consistency_generator(dtype):
    G = Recorder(5, 6, dtype)
    z = drawer(19, dtype)(4, 5)
    got = latent_consistency_generator(G, z, generator=generator_of(4))
    near = z + 0.05 * torch.randn(4, 5, generator=generator_of(4), dtype=dtype)
    assert got.item() < 0
    assert_near(got, -0.5 * squared(G(z), G(near)))
    got.backward()
    assert G.w.grad.any()


def test_latent_consistency_options():
    G, D = Recorder(5, 6), Recorder(6, 3)
    draw = drawer(20, torch.float64)
    z, label = draw(4, 5), draw(4)
    for std in (0.0, 0.5):
        near = z + std * torch.randn(4, 5, generator=generator_of(5), dtype=torch.float64)
        fakes = [G(p, label, scale=2.0) for p in (z, near)]
        got = latent_consistency_generator(
            G, z, label, weight=3.0, std=std, generator=generator_of(5), scale=2.0
        )
        assert_near(got, -3 * squared(*fakes))
        got = latent_consistency_discriminator(
            D, G, z, label, weight=3.0, std=std, generator=generator_of(5), scale=2.0
        )
        assert_near(got, 3 * squared(*(D(fake, label, scale=2.0) for fake in fakes)))


def test_latent_consistency_gradients():
    G, D = Recorder(3, 6), Recorder(6, 2)
    z = drawer(21, torch.float64)(3, 3)

    def of_critic(w):
        return latent_consistency_discriminator(
            lambda x: torch.func.functional_call(D, {"w": w}, (x,)),
            G,
            z,
            std=0.5,
            generator=generator_of(6),
        )

    def of_generator(w):
        return latent_consistency_generator(
            lambda z: torch.func.functional_call(G, {"w": w}, (z,)),
            z,
            std=0.5,
            generator=generator_of(6),
        )

    for loss, network in ((of_critic, D), (of_generator, G)):
        w = network.w.detach().clone().requires_grad_()
        assert gradcheck(loss, (w,))
        assert gradgradcheck(loss, (w,))


X = torch.ones(2, 2, 3)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: consistency_regularization(flip, [], flip),
            TypeError,
            "consistency_regularization: expected real to be a tensor or a list of tensors, got",
        ),
        (
            lambda: consistency_regularization(flip, X.int(), flip),
            TypeError,
            "expected real of a floating-point dtype, got torch.int32",
        ),
        (
            lambda: consistency_regularization(flip, torch.ones(()), flip),
            ValueError,
            r"expected real of shape \(B, \.\.\.\) with elements, got shape \(\)",
        ),
        (
            lambda: consistency_regularization(flip, X, flip, weight=-2.0),
            ValueError,
            "expected weight to be finite and not negative, got -2.0",
        ),
        (
            lambda: consistency_regularization(torch.mean, X, flip),
            ValueError,
            r"expected D to return tensors whose first dimension is the batch, 2, got shape \(\)",
        ),
        (
            lambda: consistency_regularization(lambda x: x, X, lambda x: x[:1]),
            ValueError,
            r"first dimension is the batch, 2, got shape \(1, 2, 3\)",
        ),
        (
            lambda: consistency_regularization(lambda x: x, X, lambda x: x[:, :1]),
            ValueError,
            r"equal shapes for both versions of the samples, got \[\(2, 2, 3\)\] and \[\(2, 1, 3\)",
        ),
        (
            lambda: consistency_regularization(lambda x: "score", X, flip),
            TypeError,
            "expected D to return a tensor or a list of tensors, got str",
        ),
        (
            lambda: consistency_regularization(lambda x: x.int(), X, flip),
            TypeError,
            "expected the output of D of a floating-point dtype, got torch.int32",
        ),
        (
            lambda: balanced_consistency_regularization(flip, X, None, flip),
            TypeError,
            "balanced_consistency_regularization: expected fake to be a tensor .* got NoneType",
        ),
        (
            lambda: balanced_consistency_regularization(flip, X, X, flip, weight_fake=math.inf),
            ValueError,
            "expected weight_fake to be finite",
        ),
        (
            lambda: balanced_consistency_regularization(flip, X, X, flip, weight_real=None),
            TypeError,
            "expected weight_real to be a number, got NoneType",
        ),
        (
            lambda: latent_consistency_discriminator(flip, flip, [X]),
            TypeError,
            "latent_consistency_discriminator: expected z to be a tensor of shape .* got list",
        ),
        (
            lambda: latent_consistency_discriminator(flip, flip, X, std=-1.0),
            ValueError,
            "expected std to be finite and not negative, got -1.0",
        ),
        (
            lambda: latent_consistency_generator(lambda z: None, X),
            TypeError,
            "latent_consistency_generator: expected G to return a tensor or a list .* NoneType",
        ),
        (
            lambda: latent_consistency_generator(flip, X, weight="a"),
            TypeError,
            "expected weight to be a number, got str",
        ),
    ],
)
def test_consistency_refused(call, error, message):
    refuses(call, error, message)


def test_latent_consistency_refuses_before_it_draws():
    generator = generator_of(7)
    before = generator.get_state()
    with pytest.raises(ValueError, match="std"):
        latent_consistency_generator(flip, X, std=math.nan, generator=generator)
    assert torch.equal(generator.get_state(), before)


# --- instance noise ------------------------------------------------------------------------------


def sigma_of(module):
    """The standard deviation of what is added to zeros."""
    x = torch.zeros(1000, dtype=torch.float64)
    noise = torch.randn(1000, generator=generator_of(8), dtype=torch.float64)
    added = module(x, generator=generator_of(8))
    ratio = (added * noise).sum() / noise.square().sum()
    assert_near(added, ratio * noise, torch.float32)
    return ratio.item()


@pytest.mark.parametrize(
    "schedule, steps, factors",
    [
        ("constant", None, [1, 1, 1, 1, 1, 1]),
        ("linear", 4, [1, 0.75, 0.5, 0.25, 0, 0]),
        ("cosine", 4, [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)] + [0]),
        (lambda count: 0.5**count, None, [0.5**i for i in range(6)]),
        (lambda count: 3.0, None, [3.0] * 6),
    ],
)
def test_instance_noise(schedule, steps, factors):
    module = InstanceNoise(0.2, schedule, steps)
    for factor in factors:
        assert sigma_of(module) == pytest.approx(0.2 * factor, rel=1e-6, abs=1e-8)
        module.step()


@pytest.mark.parametrize("dtype", DTYPES)
def test_instance_noise_dtypes(dtype):
    x = drawer(22, dtype)(3, 4)
    got = InstanceNoise(steps=10)(x, generator=generator_of(9))
    noise = torch.randn(3, 4, generator=generator_of(9), dtype=wide(dtype))
    assert torch.equal(got, (x.to(noise.dtype) + 0.1 * noise).to(dtype))  # rounded once


def test_instance_noise_in_evaluation_mode():
    x = torch.rand(3)
    assert InstanceNoise(schedule="constant").eval()(x) is x


def test_instance_noise_passes_gradients():
    x = torch.rand(3, dtype=torch.float64, requires_grad=True)
    InstanceNoise(schedule="constant")(x).square().sum().backward()
    module = InstanceNoise(schedule="constant")
    assert gradcheck(lambda x: module(x, generator=generator_of(10)), (x,))
    assert gradgradcheck(lambda x: module(x, generator=generator_of(10)).square(), (x,))


def test_instance_noise_draws_anew():
    module = InstanceNoise(schedule="constant")
    x = torch.zeros(5)
    torch.manual_seed(0)
    first, second = module(x), module(x)
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    assert torch.equal(module(x), first)


def test_instance_noise_state():
    module = InstanceNoise(steps=10)
    for _ in range(4):
        module.step()
    other = reloaded(module, InstanceNoise(steps=10))
    assert other.count.item() == 4
    assert sigma_of(other) == pytest.approx(0.06)
    assert module.half().count.dtype == torch.int64
    assert repr(module) == "InstanceNoise(sigma=0.1, schedule='linear', steps=10)"
    assert repr(InstanceNoise(0.3, "constant")) == "InstanceNoise(sigma=0.3, schedule='constant')"


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: InstanceNoise(-0.1), ValueError, "InstanceNoise: expected sigma to be finite"),
        (
            lambda: InstanceNoise(schedule="step", steps=3),
            ValueError,
            'expected schedule to be "constant", "linear", "cosine" or a callable, got \'step\'',
        ),
        (
            lambda: InstanceNoise(),
            ValueError,
            'expected steps with schedule="linear", got None; pass after how many',
        ),
        (lambda: InstanceNoise(steps=0), ValueError, "expected steps to be at least 1, got 0"),
        (
            lambda: InstanceNoise(schedule="cosine", steps=1.5),
            TypeError,
            "expected steps to be an integer, got float",
        ),
        (
            lambda: InstanceNoise(schedule="constant", steps=5),
            ValueError,
            "expected no steps but with a linear or cosine schedule, got 5",
        ),
        (
            lambda: InstanceNoise(steps=1)([1.0]),
            TypeError,
            "expected x to be a tensor or a list of",
        ),
        (
            lambda: InstanceNoise(steps=1)(torch.ones(2, dtype=torch.uint8)),
            TypeError,
            "expected x of a floating-point dtype, got torch.uint8",
        ),
    ],
)
def test_instance_noise_refused(call, error, message):
    refuses(call, error, message)


# --- fading blur ---------------------------------------------------------------------------------


def blurred(x, sigma):
    """Pixel by pixel and tap by tap, with zeros outside."""
    radius = math.floor(3 * sigma)
    taps = [2 ** -((i / sigma) ** 2) for i in range(-radius, radius + 1)]
    taps = [tap / sum(taps) for tap in taps]
    for dim in (-2, -1):
        out = torch.zeros_like(x)
        for i in range(x.shape[dim]):
            for k, tap in enumerate(taps):
                if 0 <= i + k - radius < x.shape[dim]:
                    out.select(dim, i).add_(tap * x.select(dim, i + k - radius))
        x = out
    return x


def test_fading_blur_fades():
    x = drawer(30, torch.float64)(2, 3, 7, 5)
    module = FadingBlur(2.0, 100)
    for sigma in (2.0, 1.6, 1.2, 0.8, 0.4):
        assert module.sigma_now == pytest.approx(sigma)
        assert_near(module(x), blurred(x, sigma))
        module.step(20)
    assert module.sigma_now == 0
    assert module(x) is x
    module.step(20)
    assert module(x) is x


def test_fading_blur_below_a_pixel_is_the_identity():
    x = torch.ones(1, 1, 3, 3)
    assert FadingBlur(0.33)(x) is x
    assert FadingBlur(0.34)(x) is not x
    assert FadingBlur(0.0)(x) is x
    assert FadingBlur().eval()(x) is x


def test_fading_blur_defaults_are_the_published():
    x = torch.zeros(1, 1, 1, 101, dtype=torch.float64)
    x[..., 50] = 1
    row = FadingBlur()(x)[0, 0, 0]
    taps = 2 ** -((torch.arange(-30, 31, dtype=torch.float64) / 10) ** 2)
    taps = taps / taps.sum()
    assert_near(row[20:81], taps * taps[30])  # the other axis has one pixel
    assert not row[:20].any()
    assert not row[81:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_fading_blur_dtypes(dtype, device):
    x = drawer(31, dtype)(2, 3, 6, 8)
    got = FadingBlur(1.5)(x)
    assert got.dtype == dtype
    assert_near(got, blurred(x.double(), 1.5))
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(FadingBlur(1.5)(x), got)


def test_fading_blur_lists_and_clips():
    draw = drawer(32)
    small, clip = draw(2, 3, 4, 5), draw(2, 3, 6, 4, 5)
    module = FadingBlur(1.0)
    first, second = module([small, clip])
    assert torch.equal(first, module(small))
    assert_near(second[:, :, 2], module(clip[:, :, 2]).double())


def test_fading_blur_gradients():
    x = drawer(33, torch.float64)(1, 2, 4, 3).requires_grad_()
    module = FadingBlur(1.0)
    assert gradcheck(module, (x,))
    assert gradgradcheck(lambda x: module(x).square(), (x,))


def test_fading_blur_state():
    module = FadingBlur(4.0, 100)
    module.step(75)
    other = reloaded(module, FadingBlur(4.0, 100))
    assert other.seen == 75
    assert other.sigma_now == 1.0
    assert copy.deepcopy(module).seen == pickle.loads(pickle.dumps(module)).seen == 75
    assert repr(module) == "FadingBlur(sigma=4.0, images=100)"


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: FadingBlur(-1.0), ValueError, "sigma to be finite and not negative, got -1.0"),
        (lambda: FadingBlur(images=0), ValueError, "images to be at least 1, got 0"),
        (lambda: FadingBlur().step(0), ValueError, "images to be at least 1, got 0"),
        (lambda: FadingBlur().step(2.0), TypeError, "images to be an integer, got float"),
        (lambda: FadingBlur()([]), TypeError, "x to be a tensor or a list of them, got list"),
        (lambda: FadingBlur()(torch.ones(3, 4, 4)), ValueError, r"x of shape \(B, C, H, W\)"),
        (
            lambda: FadingBlur()(torch.ones(1, 3, 4, 4, dtype=torch.uint8)),
            TypeError,
            "x of a floating-point dtype, got torch.uint8",
        ),
        (
            lambda: FadingBlur().set_extra_state(-1),
            ValueError,
            "the images seen to be at least 0, got -1",
        ),
    ],
)
def test_fading_blur_refused(call, error, message):
    refuses(call, error, f"^FadingBlur: expected {message}")


# --- rotation ------------------------------------------------------------------------------------


def test_rotate_batch():
    x = torch.arange(8.0).view(2, 1, 2, 2)
    turned, labels = rotate_batch(x)
    assert turned[:, 0].tolist() == [
        [[0, 1], [2, 3]],
        [[4, 5], [6, 7]],
        [[1, 3], [0, 2]],
        [[5, 7], [4, 6]],
        [[3, 2], [1, 0]],
        [[7, 6], [5, 4]],
        [[2, 0], [3, 1]],
        [[6, 4], [7, 5]],
    ]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert labels.dtype == torch.int64


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotate_batch_dtypes_and_gradients(dtype):
    x = drawer(23, dtype)(3, 2, 5, 5).requires_grad_()
    turned, labels = rotate_batch(x)
    assert turned.dtype == dtype
    for image, label, source in zip(turned, labels, x.repeat(4, 1, 1, 1), strict=True):
        back = image
        for _ in range(int(label)):
            back = back.flip(1).transpose(1, 2)  # clockwise
        assert torch.equal(back, source)
    turned.sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 4))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_loss(dtype):
    logits = 5 * drawer(24, dtype)(8, 4)
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    wide_logits = logits.double()
    of_label = wide_logits.exp().gather(1, labels[:, None])[:, 0] / wide_logits.exp().sum(1)
    expected = -of_label.log().mean()
    got = rotation_loss(logits, labels)
    assert got.dtype == wide(dtype)
    assert_near(got, expected)
    assert_near(rotation_loss(logits, labels, weight=0.2), 0.2 * expected)


def test_rotation_loss_gradients():
    x = drawer(25, torch.float64)(2, 1, 2, 2).requires_grad_()
    w = drawer(26, torch.float64)(4, 4)

    def loss(x):
        turned, labels = rotate_batch(x)
        return rotation_loss((turned.flatten(1) @ w).tanh(), labels)

    assert gradcheck(loss, (x,))
    assert gradgradcheck(loss, (x,))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda: rotate_batch(torch.ones(2, 3, 4, 5)),
            ValueError,
            r"rotate_batch: expected square images, .* got shape \(2, 3, 4, 5\); crop or pad",
        ),
        (lambda: rotate_batch(torch.ones(3, 4, 4)), ValueError, r"\(B, C, H, H\) with elements"),
        (lambda: rotate_batch(torch.ones(1, 1, 1, 4, 4)), ValueError, "expected square images"),
        (lambda: rotate_batch(None), TypeError, "expected x to be a tensor .* got NoneType"),
        (
            lambda: rotate_batch(torch.ones(1, 1, 2, 2, dtype=torch.uint8)),
            TypeError,
            "floating-point dtype, got torch.uint8; convert it first",
        ),
        (
            lambda: rotation_loss(torch.ones(2, 3), torch.zeros(2, dtype=torch.long)),
            ValueError,
            r"rotation_loss: expected rotation_logits of shape \(N, 4\), .* got \(2, 3\)",
        ),
        (
            lambda: rotation_loss(torch.ones(2, 4), torch.zeros(2)),
            TypeError,
            "expected labels to be a tensor of torch.int64, got torch.float32",
        ),
        (
            lambda: rotation_loss(torch.ones(2, 4), [0, 1]),
            TypeError,
            "expected labels to be a tensor of torch.int64, got list",
        ),
        (
            lambda: rotation_loss(torch.ones(2, 4), torch.zeros(3, dtype=torch.long)),
            ValueError,
            r"expected a label for each of the 2 logits, got shape \(3,\)",
        ),
        (
            lambda: rotation_loss([1.0], torch.zeros(1, dtype=torch.long)),
            TypeError,
            r"expected rotation_logits to be a tensor of shape \(N, 4\), got list",
        ),
        (
            lambda: rotation_loss(torch.ones(1, 4), torch.zeros(1, dtype=torch.long), weight=-1.0),
            ValueError,
            "expected weight to be finite and not negative, got -1.0",
        ),
    ],
)
def test_rotation_refused(call, error, message):
    refuses(call, error, message)


# --- all -----------------------------------------------------------------------------------------


def test_everything_public_is_documented():
    for name in regularizers.__all__:
        assert getattr(regularizers, name).__doc__, name
