"""gankernels.augment: DiffAugment and APA, which are without kernels of their own."""

import copy
import math
import pickle
from unittest import mock

import pytest
import torch
from support import devices
from support.launches import launches

from gankernels.augment import APA, ADAPipe, DiffAugment
from gankernels.ops import _operator

pytestmark = pytest.mark.usefixtures("device")


def seeded(seed=0):
    return devices.generator(seed)


def images_of(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


# --- DiffAugment: as the paper writes it, step by step, with the same draws ----------------------


def published(x, u, policy, translation=0.125, cutout=0.5):
    """Zhao et al. 2020, appendix; every image by itself, with the numbers u that were drawn."""
    out = []
    for image, (b, s, c, *rest) in zip(x, u.tolist(), strict=True):
        y = image.clone()
        height, width = y.shape[1:]
        for name in policy.split(","):
            if name == "color":
                y = y + (b - 0.5)
                gray = y.mean(0, keepdim=True)
                y = (y - gray) * (2 * s) + gray
                y = (y - y.mean()) * (c + 0.5) + y.mean()
            elif name == "translation":
                moved = torch.zeros_like(y)
                tx, ty = (
                    math.floor(v * (2 * int(n * translation + 0.5) + 1))
                    - int(n * translation + 0.5)
                    for v, n in zip(rest[:2], (width, height), strict=True)
                )
                for i in range(height):
                    for j in range(width):
                        if 0 <= i + ty < height and 0 <= j + tx < width:
                            moved[:, i, j] = y[:, i + ty, j + tx]
                y = moved
            else:
                y = y.clone()
                spans = []
                for v, n in zip(rest[2:], (width, height), strict=True):
                    box = int(n * cutout + 0.5)
                    start = math.floor(v * (n + 1 - box % 2)) - box // 2
                    spans.append(slice(max(start, 0), min(start + box, n)))
                y[:, spans[1], spans[0]] = 0
        out.append(y)
    return torch.stack(out)


POLICIES = [
    "color",
    "translation",
    "cutout",
    "translation,cutout",
    "color,translation,cutout",
    "cutout,translation,color",
    "translation,color",
    "cutout,color,translation",
    "color,cutout,translation",
    "translation,color,cutout",
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "shape", [(3, 8, 8), (1, 7, 13), (4, 17, 6), (3, 11, 1), (3, 10, 9)], ids=str
)
def test_equals_the_paper(policy, shape):
    x = images_of(40, *shape)
    u = torch.rand(40, 7, dtype=torch.float64, generator=seeded(5))
    found = DiffAugment(policy)(x, generator=seeded(5))
    torch.testing.assert_close(found, published(x, u, policy), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("cutout, translation", [(0.2, 0.125), (0.3, 0.4), (0.5, 0.0), (1.0, 1.0)])
@pytest.mark.parametrize("shape", [(3, 8, 9), (1, 7, 13), (4, 21, 6)], ids=str)
def test_sizes_of_the_box_and_of_the_shift(policy, cutout, translation, shape):
    x = images_of(20, *shape)
    u = torch.rand(20, 7, dtype=torch.float64, generator=seeded(5))
    augment = DiffAugment(policy, cutout=cutout, translation=translation)
    expected = published(x, u, policy, translation, cutout)
    found = augment(x, generator=seeded(5))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_box_of_nothing_and_a_shift_of_nothing():
    x = images_of(5, 3, 8, 6)
    none = DiffAugment("translation,cutout", cutout=0, translation=0)
    assert torch.equal(none(x), x)
    assert (DiffAugment("cutout", cutout=1.0)(x) == 0).double().mean() > 0.3


# --- a probability, and nothing ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_p_is_of_the_whole_batch(dtype):
    x = images_of(4, 3, 8, 6, dtype=dtype)
    x[0, 0, 0, 0], x[1, 0, 0, 0] = -0.0, math.inf  # which 0 times another would not bring back
    augment, generator, always = DiffAugment(p=0.3), seeded(), DiffAugment()
    left = 0
    for _ in range(200):
        state = generator.get_state()
        found = augment(x, generator=generator)
        expected = always(x, generator=devices.generator(0).set_state(state))
        same = torch.equal(found, x) and torch.equal(found.signbit(), x.signbit())
        assert same or torch.equal(found.nan_to_num(5), expected.nan_to_num(5))
        left += same
    assert left / 200 == pytest.approx(0.7, abs=0.1)


def test_p_holds_for_all_of_a_list():
    views = [images_of(2, 3, 8, 6), images_of(2, 1, 5, 5), images_of(2, 3, 4, 8, 6)]
    decided = set()
    for seed in range(30):
        found = DiffAugment("color", p=0.5)(views, generator=seeded(seed))
        (same,) = {torch.equal(y, x) for x, y in zip(views, found, strict=True)}
        decided.add(same)
    assert decided == {True, False}


@pytest.mark.parametrize("seed", range(4))
def test_gradients_with_p(seed):
    x = images_of(2, 3, 5, 4).requires_grad_()

    def run(x):
        return DiffAugment(p=0.5, cutout=0.4)(x, generator=seeded(seed))

    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(lambda x: run(x) ** 2, x)
    (grad,) = torch.autograd.grad(run(x).sum(), x)
    happens = torch.rand(15, dtype=torch.float64, generator=seeded(seed))[-1] < 0.5
    assert happens == (not torch.equal(grad, torch.ones_like(x)))


@pytest.mark.parametrize("augment", [DiffAugment(""), DiffAugment(" "), DiffAugment(p=0)], ids=repr)
def test_nothing_is_the_tensor_itself(augment):
    x, generator = images_of(2, 3, 5, 4), seeded()
    state = generator.get_state()
    assert augment(x, generator=generator) is x
    found = augment((x, x[:, :1]), generator=generator)
    assert isinstance(found, list)
    assert found[0] is x
    assert torch.equal(generator.get_state(), state)
    with pytest.raises(ValueError, match="expected images of shape"):  # as of any policy
        augment(x[0])


def test_what_p_launches():
    x = images_of(2, 3, 8, 8)
    found = []
    for augment in (DiffAugment("translation,cutout"), DiffAugment("translation,cutout", p=0.5)):
        with launches() as each:
            augment(x)
        found.append(each)
    assert sorted(found[1]) == sorted([*found[0], "rand", "lt", "where"])
    with launches() as other:
        DiffAugment(cutout=0.2)(x)
    with launches() as usual:
        DiffAugment()(x)
    assert not {"_to_copy", "_local_scalar_dense", "item"} & set(other)  # nothing from the host
    assert len(other) - len(usual) <= 35


def test_settings_are_kept_and_shown():
    augment = DiffAugment("color,cutout", p=0.5, cutout=0.2)
    assert repr(augment) == "DiffAugment('color,cutout', p=0.5, cutout=0.2)"
    assert repr(DiffAugment("")) == "DiffAugment('')"
    assert not augment.state_dict()
    x = images_of(3, 3, 8, 8)
    for other in (copy.deepcopy(augment), pickle.loads(pickle.dumps(augment))):
        assert torch.equal(other(x, generator=seeded(1)), augment(x, generator=seeded(1)))


@pytest.mark.parametrize(
    ("error", "said", "arguments"),
    [
        (ValueError, "p to be at most 1, got 1.5", {"p": 1.5}),
        (ValueError, "p to be finite and not negative, got -0.5", {"p": -0.5}),
        (ValueError, "p to be finite and not negative, got nan", {"p": math.nan}),
        (TypeError, "p to be a number, got str", {"p": "1"}),
        (TypeError, "p to be a number, got bool", {"p": True}),
        (TypeError, "p to be a number, got Tensor", {"p": torch.tensor(0.5)}),
        (ValueError, "cutout to be at most 1, a fraction of each side, got 8", {"cutout": 8}),
        (ValueError, "translation to be at most 1, a fraction of", {"translation": 4}),
        (ValueError, "translation to be finite and not neg", {"translation": -0.1}),
        (TypeError, "cutout to be a number, got tuple", {"cutout": (0.5, 0.5)}),
    ],
)
def test_bad_settings(error, said, arguments):
    with pytest.raises(error, match=f"^DiffAugment: expected {said}"):
        DiffAugment(**arguments)


# --- dtypes, formats, laws -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    x = images_of(6, 3, 12, 10, dtype=dtype)
    found = DiffAugment()(x, generator=seeded())
    assert found.dtype == dtype
    expected = DiffAugment()(x.double(), generator=seeded())
    rounding = torch.finfo(dtype).eps / 2  # one, of what was computed in float32
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=2e-6)


def test_memory_format_and_empty_batches():
    x = images_of(4, 3, 12, 10).contiguous(memory_format=torch.channels_last)
    found = DiffAugment()(x, generator=seeded())
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, DiffAugment()(x.contiguous(), generator=seeded()))
    assert DiffAugment()(x[:0]).shape == x[:0].shape
    halved = DiffAugment(p=0.5)(x, generator=seeded())
    assert halved.is_contiguous(memory_format=torch.channels_last)
    assert DiffAugment(p=0.5, cutout=0.2)(x[:0]).shape == x[:0].shape


def test_laws():
    x = torch.ones(4000, 1, 16, 24, dtype=torch.float64)
    cut = DiffAugment("cutout")(x, generator=seeded())[:, 0]
    missing = 1 - cut.mean(0)
    # Offsets are uniform in 0 to side, so that a pixel in the middle is cut by half of them.
    assert missing[8, 12].item() == pytest.approx(8 / 17 * 12 / 25, abs=0.03)
    assert missing[0, 0].item() == pytest.approx(5 / 17 * 7 / 25, abs=0.03)
    moved = DiffAugment("translation")(x, generator=seeded())[:, 0]
    columns = moved[:, 8].sum(1)
    shifts = 24 - columns  # of 24 columns, up to 3 are gone to either side
    assert [(shifts == n).double().mean().item() for n in range(4)] == pytest.approx(
        [1 / 7, 2 / 7, 2 / 7, 2 / 7], abs=0.03
    )
    gray = DiffAugment("color")(torch.zeros(4000, 3, 2, 2, dtype=torch.float64), generator=seeded())
    offsets = gray[:, 0, 0, 0]
    assert (offsets.min().item(), offsets.max().item()) == pytest.approx((-0.5, 0.5), abs=0.01)
    assert (offsets.mean().item(), offsets.var().item()) == pytest.approx((0, 1 / 12), abs=0.01)


def test_gradients():
    x = images_of(2, 3, 5, 4).requires_grad_()

    def run(x):
        return DiffAugment()(x, generator=seeded(3))

    assert torch.autograd.gradcheck(run, x)
    assert torch.autograd.gradgradcheck(lambda x: run(x) ** 2, x)


@pytest.mark.parametrize("settings", [{}, {"p": 0.5, "cutout": 0.2}], ids=str)
def test_compiles_into_one_graph(settings):
    augment = DiffAugment(**settings)
    compiled = torch.compile(augment, backend="aot_eager", fullgraph=True)
    x = images_of(3, 3, 8, 8)
    torch.manual_seed(0)
    expected = augment(x)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("module", [DiffAugment(), APA(0.5)], ids=["DiffAugment", "APA"])
def test_compiles_for_another_batch_size(module):
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for batch in (8, 5, 6):
        x = [images_of(batch, 3, 8, 8, seed=i) for i in range(2 if isinstance(module, APA) else 1)]
        torch.manual_seed(0)
        expected = module(*x)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(*x), expected)


def test_policies_happen_in_the_order_given():
    x = images_of(3, 3, 8, 8)
    one, other = DiffAugment(" cutout, color"), DiffAugment("color,cutout")
    assert repr(one) == "DiffAugment('cutout,color')"
    found = [each(x, generator=seeded()) for each in (one, other)]
    boxes = (found[1] == 0).all(1)  # black, where they come last; else colored as all the rest
    assert boxes.any()
    assert (found[0] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", POLICIES)
def test_launches(policy, channels, dtype):
    x = images_of(2, channels, 8, 8, dtype=dtype)
    with launches() as found:
        DiffAugment(policy)(x)
    passes = {"cutout,color,translation": 3, "color,cutout": 1, "color": 1}
    count = passes.get(policy, 1 + (policy.count(",") > 0) if "color" in policy else 1)
    # A pass that shifts or cuts has a launch for its samples, too; one of color alone has none.
    alone = "color" in policy and policy not in ("color,cutout", "translation,color,cutout")
    expected = ["rand", "diff_augment", *["resample_plainly"] * count]
    expected += ["prepare"] * (count - alone)
    expected += ["mean", "addcmul_"] if "color" in policy else []
    assert sorted(found) == sorted(expected)
    assert len(found) <= (9 if count == 3 else 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_launches_of_the_backward(dtype):
    x = images_of(2, 3, 8, 8, dtype=dtype).requires_grad_()
    with launches() as found:
        y = DiffAugment()(x)
        torch.autograd.grad(y, x, y.detach())
    assert found.count("gather_plainly") == found.count("resample_plainly") == 2
    assert len(found) <= 8 + 7


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("cut", [False, True])
def test_color_in_one_pass_is_color_of_what_the_mean_was_added_to(channels, cut):
    """Forward, and the gradients of first and second order: the graph that compiled calls take."""
    found = []
    x = images_of(4, channels, 6, 5)
    policy = "color,cutout" if cut else "color"
    for compiled in (False, True):
        images = x.clone().requires_grad_()
        with mock.patch.object(_operator, "runs_eagerly", return_value=not compiled):
            y = DiffAugment(policy)(images, generator=seeded())
            (g,) = torch.autograd.grad(y.square().sum(), images, create_graph=True)
            (h,) = torch.autograd.grad(g.pow(3).sum(), images)
        found.append((y.detach(), g.detach(), h))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_half_precision(dtype):
    """Computed in float32, and rounded where autograd has them."""
    found = []
    for x in (images_of(4, 3, 6, 6, dtype=dtype), images_of(4, 3, 6, 6, dtype=dtype).float()):
        x.requires_grad_()
        y = DiffAugment("color")(x, generator=seeded())
        assert y.dtype == x.dtype
        first = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.float().square().sum(), x)[0]
        found.append((first.float(), second.float()))
    rounding = 4 * torch.finfo(dtype).eps
    for half, full in zip(*found, strict=True):
        assert (half - full).abs().max() <= rounding * full.abs().max()


@pytest.mark.parametrize("policy", POLICIES)
def test_gradients_of_every_policy(policy):
    x = images_of(2, 3, 5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: DiffAugment(policy)(x, generator=seeded(3)), x)


@pytest.mark.parametrize("generator", [0, "cpu", torch.Generator])
def test_bad_generators(generator):
    said = "expected generator to be a torch.Generator or None, got"
    x = images_of(2, 3, 8, 8)
    with pytest.raises(TypeError, match=f"^DiffAugment: {said}"):
        DiffAugment()(x, generator=generator)
    with pytest.raises(TypeError, match=f"^APA: {said}"):
        APA(0.5)(x, x, generator=generator)


@pytest.mark.parametrize(
    ("error", "said", "policy"),
    [
        (ValueError, "policies of color, translation, cutout, got 'colors'", "colors"),
        (ValueError, "policies of color, translation, cutout, got ''", "color,"),
        (ValueError, "each policy once, got 'color,color'", "color,color"),
        (TypeError, "policy to be a string", None),
    ],
)
def test_bad_policies(error, said, policy):
    with pytest.raises(error, match=f"^DiffAugment: expected {said}"):
        DiffAugment(policy)


def test_bad_images():
    with pytest.raises(
        ValueError, match=r"^DiffAugment: expected images of shape \(B, C, H, W\) or clips"
    ):
        DiffAugment()(images_of(3, 8, 8))
    with pytest.raises(TypeError, match=r"got torch.uint8; bring them to \[-1, 1\] first"):
        DiffAugment()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


# --- APA -----------------------------------------------------------------------------------------


def test_apa_replaces_whole_samples():
    real, fake = images_of(2000, 3, 4, 4), images_of(2000, 3, 4, 4, seed=2)
    apa = APA(0.3)
    found = apa(real, fake, generator=seeded())
    replaced = (found == fake).flatten(1).all(1)
    assert torch.equal(found[~replaced], real[~replaced])
    assert replaced.double().mean().item() == pytest.approx(0.3, abs=0.04)
    assert torch.equal(APA(0.0)(real, fake), real)
    assert torch.equal(APA(1.0)(real, fake), fake)
    assert torch.equal(found, apa(real, fake, generator=seeded()))


def test_apa_passes_no_gradient_to_the_generator():
    real, fake = (images_of(50, 2).requires_grad_() for _ in range(2))
    APA(0.5)(real, fake, generator=seeded()).sum().backward()
    assert fake.grad is None
    kept = (torch.rand(50, generator=seeded()) >= 0.5).double()
    assert torch.equal(real.grad, kept[:, None].expand(50, 2))


def test_apa_bounds_p():
    apa = APA(0.1, p_max=0.2)
    real, fake = images_of(1000, 1), images_of(1000, 1, seed=2)
    for written, expected in ((5.0, 0.2), (math.nan, 0.0), (-1.0, 0.0)):
        apa.p.fill_(written)
        share = (apa(real, fake, generator=seeded()) == fake).double().mean().item()
        assert share == pytest.approx(expected, abs=0.04)
    assert list(apa.state_dict()) == ["p"]
    assert repr(apa) == "APA(p_max=0.2)"


@pytest.mark.parametrize(
    ("error", "said", "samples"),
    [
        (TypeError, "fake to be a tensor, got NoneType", (torch.ones(3, 2), None)),
        (ValueError, "real and fake samples .* of one shape and", (torch.ones(3), torch.ones(2))),
        (ValueError, ".* of one shape and dtype", (torch.ones(3), torch.ones(3).double())),
        (ValueError, "real on (cpu|cuda:0), where p is", (torch.ones(3).to("meta"),) * 2),
    ],
)
def test_bad_samples(error, said, samples):
    with pytest.raises(error, match=f"^APA: expected {said}"):
        APA(0.5)(*samples)


def test_apa_has_no_groups():
    with pytest.raises(TypeError, match=r"^APA: expected p to be one number, got dict; only the"):
        APA(p={"blit": 0.2})


def test_apa_goes_before_a_pipe():
    pipe, apa = ADAPipe("bg", p=0.5), APA(0.5)
    real, fake = images_of(4, 3, 8, 8), images_of(4, 3, 8, 8, seed=2)
    assert pipe(apa(real, fake)).shape == real.shape
