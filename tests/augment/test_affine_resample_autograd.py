"""affine_resample and affine_augment: gradients, compiled graphs, and what they refuse."""

from typing import ClassVar

import pytest
import torch
from support.backends import emulator
from support.tensors import drawer
from support.transforms import Transforms
from test_affine_resample import maps_of, parameters

from gankernels import maps_from_theta, ops, reference
from gankernels.augment import ADAPipe

SHAPE = (2, 3, 4, 5)
NAMES = ("turned", "stretched", "flip")


PARAMETERS = {}


def given_to(x):
    """All that affine_augment takes, made once: a compiled graph draws no numbers."""
    key = x.dtype, x.device.type
    if key not in PARAMETERS:
        PARAMETERS[key] = parameters(x)
    return PARAMETERS[key]


CALLS = {
    "resample": lambda x, maps: ops.affine_resample(x, maps),
    "other_size": lambda x, maps: ops.affine_resample(x, maps, output_size=(6, 3)),
    "bilinear": lambda x, maps: ops.affine_resample(x, maps, filter="bilinear"),
    "stylegan2-ada": lambda x, maps: ops.affine_resample(x, maps, mode="stylegan2-ada"),
    "transpose": lambda x, maps: ops.affine_resample_transpose(x, maps, input_size=(3, 6)),
    "augment": lambda x, maps: ops.affine_augment(x, maps, **given_to(x)),
    "nearest": lambda x, maps: ops.affine_augment(
        x, maps, **given_to(x), filter="nearest", padding_mode="zeros"
    ),
    "color_only": lambda x, maps: ops.affine_augment(x, color=given_to(x)["color"]),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("call", CALLS)
def test_gradcheck(backend, call, name):
    """First, second and third order, of powers of what they return: they are affine themselves."""
    maps = maps_of(name, backend)
    x = drawer(1, torch.float64, backend)(*SHAPE).requires_grad_()
    directions = drawer(2, torch.float64, backend)

    def squared(x):
        return CALLS[call](x, maps).square()

    assert torch.autograd.gradcheck(squared, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(squared, x, fast_mode=True)
    y = CALLS[call](x, maps).pow(4).sum()
    for _ in range(3):
        (y,) = torch.autograd.grad(y, x, create_graph=True)
        y = (y * directions(*SHAPE)).sum()
    z = x.detach().requires_grad_()
    with_reference = CALLS[call]
    from gankernels import backend as use

    with use("reference"):
        w = with_reference(z, maps).pow(4).sum()
        directions = drawer(2, torch.float64, backend)
        for _ in range(3):
            (w,) = torch.autograd.grad(w, z, create_graph=True)
            w = (w * directions(*SHAPE)).sum()
    torch.testing.assert_close(y, w, rtol=1e-6, atol=1e-8)


def test_what_is_saved_for_the_backward(backend):
    """At most 64 floats a sample, whatever the image."""
    x = drawer(3, torch.float32, backend)(2, 3, 32, 32).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.affine_augment(x, maps_of("turned", backend), **parameters(x))
    assert sum(t.numel() * t.element_size() for t in saved) <= 64 * 4 * 2


def test_a_penalty_through_it(backend):
    """R1 with respect to the image before augmentation, with kernels and with the reference."""
    from gankernels import backend as use

    results = []
    for which in ("native", "reference"):
        with use(which):
            x = drawer(4, torch.float64, backend)(*SHAPE).requires_grad_()
            w = drawer(5, torch.float64, backend)(3, 4, 5).requires_grad_()
            given = parameters(x)
            exact = {k: given[k] for k in ("color", "box")}  # the noise is made in float32
            y = ops.affine_augment(x, maps_of("turned", backend), **exact)
            score = (y * w).flatten(1).sum(1).tanh()
            (g,) = torch.autograd.grad(score.sum(), x, create_graph=True)
            results.append(torch.autograd.grad(g.square().sum(), w)[0])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_opcheck(backend):
    from support.backends import native_ops

    space = native_ops()
    x = drawer(6, torch.float64, backend)(*SHAPE).requires_grad_()
    maps = maps_of("turned", backend)
    given = parameters(x)
    color, sigma, seed, box = (given[k] for k in ("color", "sigma", "seed", "box"))
    margins = torch.tensor([1, 2, 0, 1], device=backend)
    calls = [
        (space.affine_resample, (x, maps, None, 2, 0, True, 6, 3)),
        (space.affine_resample, (x, maps, margins, 2, 0, True, 4, 5)),
        (space.affine_resample_transpose, (x, maps, None, 1, 1, True, 6, 3)),
        (
            space.affine_augment,
            (x, maps, None, 2, 0, True, color, [0, 1, 2], sigma, seed, box, True),
        ),
        (space.affine_augment_transpose, (x, maps, None, 0, 1, True, color, [0, 1, 2], box)),
    ]
    for op, arguments in calls:
        last = arguments[0].detach().contiguous(memory_format=torch.channels_last)
        for image in (x, last.requires_grad_()):
            torch.library.opcheck(op.default, (image, *arguments[1:]))


@pytest.mark.parametrize("call", CALLS)
def test_a_compiled_call_equals_eager(cpu_backend, call):
    torch.compiler.reset()
    maps = maps_of("turned")
    x = drawer(7, torch.float64)(*SHAPE).requires_grad_()
    given_to(x)

    def step(x):
        y = CALLS[call](x, maps)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        found = torch.compile(step, fullgraph=True, backend="aot_eager")(x)
    for a, b in zip(found, step(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_autocast_leaves_it_alone(backend):
    x = drawer(8, torch.float32, backend)(*SHAPE)
    maps = maps_of("turned", backend)
    with torch.autocast(backend.type, torch.bfloat16):
        assert torch.equal(ops.affine_resample(x, maps), ops.affine_resample(x, maps))
    outside = ops.affine_resample(x, maps)
    with torch.autocast(backend.type, torch.bfloat16):
        assert torch.equal(ops.affine_resample(x, maps), outside)


class TestTransforms(Transforms):
    op = "affine_resample"
    at = drawer(9, torch.float64)(*SHAPE)
    direction = drawer(10, torch.float64)(*SHAPE)

    @staticmethod
    def ours(x):
        return ops.affine_resample(x, maps_of("turned")).pow(3).sum()

    @staticmethod
    def plain(x):
        return reference.affine_resample(x, maps_of("turned")).pow(3).sum()


class TestTransformsOfAugment(Transforms):
    """Color and cutout are float64; the noise, made in float32, would not be near enough."""

    op = "affine_augment"
    at = drawer(11, torch.float64)(*SHAPE)
    direction = drawer(12, torch.float64)(*SHAPE)

    given: ClassVar = {k: v for k, v in given_to(at).items() if k in ("color", "box")}

    @classmethod
    def ours(cls, x):
        return ops.affine_augment(x, maps_of("turned"), **cls.given).pow(3).sum()

    @classmethod
    def plain(cls, x):
        given = {**cls.given, "color_channels": (0, 1, 2)}
        return reference.affine_augment(x, maps_of("turned"), **given).pow(3).sum()


@pytest.mark.parametrize("preset", ["bgc", "bgcf"])
def test_vmap_of_a_pipe(preset):
    """Of a transform and of the pipe itself, whose parameters are drawn inside."""
    x = drawer(13, torch.float64)(3, *SHAPE)
    pipe = ADAPipe(preset)
    t = pipe.sample(2, generator=torch.Generator().manual_seed(1))
    expected = torch.stack([t(image) for image in x])
    torch.testing.assert_close(torch.func.vmap(t)(x), expected, rtol=0, atol=1e-10)
    same = torch.func.vmap(pipe, randomness="same")(x[:1].expand(3, *SHAPE))
    assert torch.equal(same[0], same[1])
    different = torch.func.vmap(pipe, randomness="different")(x[:1].expand(3, *SHAPE))
    assert different.shape == x.shape
    assert not torch.allclose(different[0], different[1])


def test_jvp_of_a_transform():
    """Linear but for the offsets: the tangent is what it does to the direction, less to zeros."""
    x, direction = drawer(14, torch.float64)(2, *SHAPE).unbind()
    t = ADAPipe("bgcf").sample(2, generator=torch.Generator().manual_seed(1))
    value, tangent = torch.func.jvp(t, (x,), (direction,))
    torch.testing.assert_close(value, t(x), rtol=0, atol=1e-10)
    moved = t(direction) - t(torch.zeros_like(x))
    torch.testing.assert_close(tangent, moved, rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["emu"], indirect=True)
@pytest.mark.parametrize("mode", ["ideal", "stylegan2-ada"])
@pytest.mark.parametrize("preset", ["bgc", "bgcf", "bgcfnc"])
def test_launches_of_a_pipe(backend, preset, mode):
    """One for the parameters, one for the maps of resampling, one for each pass over the images.

    The backward has none for the parameters.
    """
    panel = emulator()
    pipe = ADAPipe(preset, mode=mode)
    x = drawer(15)(2, 3, 9, 8).requires_grad_()
    passes = 1 if preset == "bgc" else 2
    panel.reset_counters()
    y = pipe(x)
    launches = panel.counters()["launches"]
    assert launches["ada_parameters"] == 1
    assert launches["prepare"] == 1
    assert sum(launches.values()) == 2 + passes, launches
    panel.reset_counters()
    y.sum().backward()
    launches = panel.counters()["launches"]
    filtered = {} if preset == "bgc" else {"filter": 1}
    assert launches == {"prepare": 1, "gather": 1, **filtered}


# --- what is refused -----------------------------------------------------------------------------

X = torch.randn(2, 3, 4, 5)
MAPS = maps_of("turned")
REFUSED = [
    (TypeError, "image to be a tensor, got list", lambda: ops.affine_resample([X], MAPS)),
    (TypeError, "floating-point dtype, got torch.uint8",
     lambda: ops.affine_resample(X.byte(), MAPS)),
    (ValueError, "image of shape (B, C, H, W) with pixels, got (3, 4, 5)",
     lambda: ops.affine_resample(X[0], MAPS)),
    (ValueError, "with pixels, got (2, 3, 0, 5)", lambda: ops.affine_resample(X[:, :, :0], MAPS)),
    (ValueError, "inverse_maps of shape (2, 2, 3) on cpu, got float64 of shape (2, 3, 3)",
     lambda: ops.affine_resample(X, torch.zeros(2, 3, 3).double())),
    (TypeError, "inverse_maps of a floating-point dtype",
     lambda: ops.affine_resample(X, MAPS.int())),
    (ValueError, "inverse_maps without a gradient",
     lambda: ops.affine_resample(X, MAPS.clone().requires_grad_())),
    (ValueError, "a filter of nearest, bilinear, sym6, got 'bicubic'",
     lambda: ops.affine_resample(X, MAPS, filter="bicubic")),
    (ValueError, "mode \"ideal\" or \"stylegan2-ada\", got 'exact'",
     lambda: ops.affine_resample(X, MAPS, mode="exact")),
    (ValueError, "padding_mode \"reflection\" with the filter \"sym6\"",
     lambda: ops.affine_resample(X, MAPS, padding_mode="zeros")),
    (ValueError, "a padding_mode of reflection, zeros, border",
     lambda: ops.affine_resample(X, MAPS, filter="nearest", padding_mode="wrap")),
    (ValueError, "the filter \"sym6\" with mode 'stylegan2-ada'",
     lambda: ops.affine_resample(X, MAPS, filter="nearest", mode="stylegan2-ada")),
    (ValueError, "no output_size with mode \"stylegan2-ada\"",
     lambda: ops.affine_resample(X, MAPS, mode="stylegan2-ada", output_size=(2, 2))),
    (ValueError, "margins with mode \"stylegan2-ada\" only",
     lambda: ops.affine_resample(X, MAPS, margins=torch.zeros(4).long())),
    (ValueError, "margins int64 of shape (4,)",
     lambda: ops.affine_resample(X, MAPS, mode="stylegan2-ada", margins=torch.zeros(4))),
    (ValueError, "output_size to be (height, width) of at least 1, got (0, 3)",
     lambda: ops.affine_resample(X, MAPS, output_size=(0, 3))),
    (ValueError, "input_size to be (height, width)",
     lambda: ops.affine_resample_transpose(X, MAPS, input_size=(3,))),
    (ValueError, "1 or 3 color channels, got 4",
     lambda: ops.affine_augment(torch.ones(2, 4, 3, 3), color=torch.ones(2, 3, 4))),
    (ValueError, "ascending color_channels of 0 to 2, got [2, 1, 0]",
     lambda: ops.affine_augment(X, color=torch.ones(2, 3, 4), color_channels=(2, 1, 0))),
    (ValueError, "color of torch.float32 and shape (2, 3, 4)",
     lambda: ops.affine_augment(X, color=torch.ones(2, 3, 3))),
    (ValueError, "sigma and seed together", lambda: ops.affine_augment(X, sigma=torch.ones(2))),
    (ValueError, "box of torch.float64", lambda: ops.affine_augment(X, box=torch.ones(2, 3))),
    (ValueError, "color without a gradient",
     lambda: ops.affine_augment(X, color=torch.ones(2, 3, 4, requires_grad=True))),
    (ValueError, "theta of shape (B, 2, 3)", lambda: maps_from_theta(torch.eye(3), (4, 5))),
]  # fmt: skip


@pytest.mark.parametrize("error, message, call", REFUSED, ids=[case[1] for case in REFUSED])
def test_refused(error, message, call):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
