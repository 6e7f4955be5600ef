"""Feature matching and top-k training, against their formulas."""

import pytest
import torch
from support.tensors import assert_near, drawer
from torch import Tensor

from gankernels import losses

feature_matching, top_k = losses.feature_matching, losses.top_k

#: Of two discriminators, with three and two layers.
SHAPES = [[(2, 4, 9), (2, 8, 5), (2, 1, 3)], [(2, 4, 3, 3), (2, 8, 2, 2)]]


def features(seed: int, dtype=torch.float64) -> list[list[Tensor]]:
    draw = drawer(seed, dtype)
    return [[draw(*shape) for shape in layers] for layers in SHAPES]


def flat(lists: list[list[Tensor]]) -> list[Tensor]:
    return [x for layers in lists for x in layers]


# --- feature matching ----------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("layers", ["sum", "mean"])
def test_value_and_gradient(layers, norm):
    real, fake = features(0), features(1)
    for x in flat(real) + flat(fake):
        x.requires_grad_()
    power = 1 if norm == "l1" else 2
    terms = [((a - b).abs() ** power).mean() for a, b in zip(flat(real), flat(fake), strict=True)]
    expected = 10 * sum(terms) / (5 if layers == "mean" else 1)
    got = feature_matching(real, fake, weight=10.0, layers=layers, norm=norm)
    assert got.shape == ()
    assert got.dtype == torch.float64
    assert_near(got, expected)
    found = torch.autograd.grad(got, flat(fake), retain_graph=True)
    for a, b in zip(found, torch.autograd.grad(expected, flat(fake)), strict=True):
        assert_near(a, b)
    nothing = torch.autograd.grad(got, flat(real), allow_unused=True)
    assert all(g is None for g in nothing)


def test_the_default_is_that_of_hifi_gan():
    real, fake = features(0), features(1)
    expected = 2 * sum((a - b).abs().mean() for a, b in zip(flat(real), flat(fake), strict=True))
    assert_near(feature_matching(real, fake), expected)


def test_lists_of_every_depth():
    real, fake = features(0), features(1)
    got = feature_matching(real, fake)
    assert feature_matching(tuple(map(tuple, real)), fake) == got
    assert_near(sum(feature_matching(a, b) for a, b in zip(real, fake, strict=True)), got)
    assert_near(feature_matching(flat(real), flat(fake)), got)
    each = [feature_matching(a, b) for a, b in zip(flat(real), flat(fake), strict=True)]
    assert_near(sum(each), got)
    # The mean is over all layers, not over discriminators of the means of theirs.
    assert_near(feature_matching(real, fake, layers="mean"), got / 5)
    scalar = torch.tensor(1.0), torch.tensor(3.0)
    assert feature_matching(*scalar) == 4


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_computes_in_float32(dtype, norm):
    real, fake = features(0, dtype), features(1, dtype)
    fake[0][0].requires_grad_()
    wide = [[[x.double() for x in layers] for layers in each] for each in (real, fake)]
    expected = feature_matching(*wide, norm=norm)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = feature_matching(real, fake, norm=norm)
    got = feature_matching(real, fake, norm=norm)
    assert got.dtype == again.dtype == torch.float32
    assert torch.equal(got, again)
    assert_near(got, expected, torch.float32)
    assert torch.autograd.grad(got, fake[0][0])[0].dtype == dtype


def test_neither_overflows_nor_is_narrowed():
    big = torch.full((4,), 60000.0, dtype=torch.float16)
    assert feature_matching(big, -big, weight=1.0) == 120000
    assert feature_matching(big, -big, weight=1.0, norm="l2") == 120000.0**2
    real, fake = features(0), features(1)
    mixed = feature_matching([[x.float() for x in layers] for layers in real], fake)
    assert mixed.dtype == torch.float64
    got = feature_matching(real[0][0].float(), fake[0][0].float(), weight=torch.ones(1).double())
    assert got.dtype == torch.float32


def test_second_derivatives():
    real, fake = (x.requires_grad_() for x in features(0)[0][:2])
    fake = fake.detach()[:, :4, :5].requires_grad_()
    real = real.detach()[:, :, :5]

    def loss(fake):
        return feature_matching(real, fake, norm="l2")

    assert torch.autograd.gradcheck(loss, fake)
    assert torch.autograd.gradgradcheck(loss, fake)


def test_without_gradients_and_compiled():
    real, fake = features(0, torch.float32), features(1, torch.float32)
    with torch.no_grad():
        got = feature_matching(real, fake)
    with torch.inference_mode():
        assert feature_matching(real, fake) == got
    compiled = torch.compile(feature_matching, backend="eager", fullgraph=True)
    assert torch.equal(compiled(real, fake), got)


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "real, fake, error, message",
    [
        (None, X, TypeError, "real_features to be a tensor, .* got NoneType"),
        (X, 0.5, TypeError, "fake_features to be a tensor, .* got float"),
        ((x for x in [X]), [X], TypeError, r"got generator; pass list\(real_features\)"),
        ({"a": X}, {"a": X}, TypeError, "real_features to be a tensor, .* got dict"),
        ([[X], X], [[X], X], TypeError, r"got one with Tensor at real_features\[1\]"),
        ([X, [X]], [X, [X]], TypeError, r"got one with Tensor at real_features\[0\]"),
        ([[X, [X]]], [[X, [X]]], TypeError, "got one with list of discriminator 0"),
        ([X], [X.long()], TypeError, "fake_features of a floating-point dtype, got torch.int64"),
        ([], [], ValueError, "real_features with layers, got an empty list"),
        ([[X], []], [[X], []], ValueError, "real_features with layers, got an empty list"),
        (X[:0], X[:0], ValueError, r"with elements to average, got the empty shape \(0, 3\)"),
        ([X], X, ValueError, "in the same lists, got a list of 1 and a tensor; pass the features"),
        ([X], [[X]], ValueError, "in the same lists, got a list of 1 and lists of 1"),
        ([X, X], [X], ValueError, "in the same lists, got a list of 2 and a list of 1"),
        ([[X, X], [X]], [[X], [X, X]], ValueError, "got lists of 2, 1 and lists of 1, 2"),
        ([[X], [X, X]], [[X], [X, X[:1]]], ValueError,
         r"one shape, .* got \(2, 3\) of real and \(1, 3\) of fake samples in layer 1 of discrim.* "
         "1; use as many"),
        (X, X[:, :1], ValueError, r"got \(2, 3\) of real and \(2, 1\) of fake"),
        ([X, X], [X, X.to("meta")], ValueError, "all features on one device, got cpu and meta"),
    ],
)  # fmt: skip
def test_refuses_features(real, fake, error, message):
    with pytest.raises(error, match=f"^feature_matching: expected .*{message}"):
        feature_matching(real, fake)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"layers": "none"}, ValueError, 'layers "sum" or "mean", got \'none\''),
        ({"norm": 1}, ValueError, 'norm "l1" or "l2", got 1'),
        ({"weight": -1.0}, ValueError, "weight to be finite and not negative, got -1.0"),
        ({"weight": X}, ValueError, "weight to be a number or a tensor of one element"),
        ({"weight": None}, TypeError, "weight to be a number, got NoneType"),
    ],
)
def test_refuses_settings(settings, error, message):
    with pytest.raises(error, match=f"^feature_matching: expected {message}"):
        feature_matching(X, X, **settings)


# --- top-k ---------------------------------------------------------------------------------------


def test_the_best_are_kept():
    logits = torch.tensor([[0.5], [-2.0], [3.0], [1.0]], dtype=torch.float64, requires_grad=True)
    assert torch.equal(top_k(logits, 2), logits[[2, 3]])
    assert torch.equal(top_k(logits, 1), logits[[2]])
    assert torch.equal(top_k(logits, 4), logits[[2, 3, 0, 1]])
    # The loss is the mean over those k, and the others get no gradient.
    loss = losses.hinge.generator(top_k(logits, 2))
    assert_near(loss, torch.tensor(-2.0))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient.flatten().tolist() == [0, 0, -0.5, -0.5]


@pytest.mark.parametrize(
    "k, count", [(1.0, 7), (0.75, 5), (0.5, 3), (0.01, 1), (1, 1), (7, 7), (5, 5)]
)
def test_how_many(k, count):
    logits = drawer(0)(7, 1)
    kept = top_k(logits, k)
    assert kept.shape == (count, 1)
    assert torch.equal(kept, logits.sort(0, descending=True).values[:count])
    assert torch.equal(top_k(logits[:, 0], k), kept[:, 0])


def test_patches_count_by_their_mean():
    logits = drawer(1, torch.float16)(5, 1, 3, 4).requires_grad_()
    kept = top_k(logits, 2)
    order = logits.double().mean((1, 2, 3)).argsort(descending=True)
    assert torch.equal(kept, logits[order[:2]])
    assert kept.dtype == torch.float16
    assert kept.requires_grad


def test_each_critic_of_a_list_keeps_its_own():
    draw = drawer(2)
    logits = [draw(6, 1, 4, 4), draw(6, 1, 2, 2)]
    kept = top_k(logits, 0.5)
    assert isinstance(kept, list)
    for x, y in zip(logits, kept, strict=True):
        assert torch.equal(y, top_k(x, 3))
    assert losses.hinge.generator(kept) == sum(losses.hinge.generator(y) for y in kept)


def test_top_k_is_differentiable_and_compiles():
    logits = drawer(3, torch.float64)(6, 2).requires_grad_()

    def loss(x):
        return losses.non_saturating.generator(top_k(x, 4))

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    assert torch.equal(compiled(logits), loss(logits))


@pytest.mark.parametrize(
    "logits, k, error, message",
    [
        (X, 0, ValueError, "k to be at least 1, got 0"),
        (X, 3, ValueError, "with at least k = 3 samples, got float32 of shape"),
        (X, 0.0, ValueError, "k to be finite and positive, got 0.0"),
        (X, 1.5, ValueError, "k as a part of the batch to be at most 1.0, got 1.5; a number of s"),
        (X, float("nan"), ValueError, "k to be finite and positive, got nan"),
        (X, True, TypeError, "k to be an integer, got bool"),
        (X, "2", TypeError, "k to be an integer, got str"),
        (X, torch.tensor(2), TypeError, "k to be an integer, got Tensor"),
        (X[0, 0], 1, ValueError, r"fake_logits of shape \(B, \.\.\.\) with at least"),
        (X[:0], 1, ValueError, "fake_logits with elements"),
        (X.long(), 1, TypeError, "fake_logits of a floating-point dtype"),
        ([[X]], 1, TypeError, "fake_logits to be a tensor or a list of tensors"),
        ([X, X[:1]], 2, ValueError, "with at least k = 2 samples"),
    ],
)
def test_top_k_refuses(logits, k, error, message):
    with pytest.raises(error, match=f"^top_k: expected .*{message}"):
        top_k(logits, k)
