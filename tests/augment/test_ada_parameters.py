"""ada_parameters: from random numbers and p to values, maps, colors, gains and boxes."""

import importlib
import math

import pytest
import torch
from support.backends import emulator, native_ops
from support.tensors import DTYPES, assert_near, dtype_name
from torch._subclasses.fake_tensor import FakeTensorMode

import gankernels
from gankernels import _library, ops, reference
from gankernels.augment.draws import draw_compat, preview_values
from gankernels.ops.ada_parameters import (
    NORMALS,
    UNIFORMS,
    VALUES,
    AdaConstants,
    AdaMultipliers,
    Parameters,
)
from gankernels.reference.ada_parameters import GATES, NORMAL_VALUES, UNIFORM_VALUES

F64 = torch.float64
ALL = AdaMultipliers(*[1.0] * 15)
NONE = AdaMultipliers()
#: The columns of values that a transform has; rotations by themselves.
COLUMNS = {
    **{name: (name,) for name in GATES},
    "xint": ("xint_x", "xint_y"),
    "xfrac": ("xfrac_x", "xfrac_y"),
    "cutout": ("cutout", "cutout_x", "cutout_y"),
}
ONES = ("scale", "aniso", "contrast", "saturation", *(f"band_{i}" for i in range(4)))
IDENTITY = {name: float(name in ONES) for name in VALUES}
SIZE = {"height": 24, "width": 40}


def draws(batch, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(batch, UNIFORMS, dtype=F64, generator=generator)
    normals = torch.randn(batch, NORMALS, dtype=F64, generator=generator)
    return {"uniforms": uniforms.to(device), "normals": normals.to(device)}


def number(x, device, dtype=torch.float32):
    return torch.tensor(x, dtype=dtype, device=device)


def sampled(multipliers, p, device, batch=1000, seed=0, **options):
    """The values by their names, on the CPU."""
    p = number(p, device, F64)
    found = ops.ada_parameters(p, multipliers, **draws(batch, seed, device), **options)
    return dict(zip(VALUES, found.values.cpu().unbind(1), strict=True))


def values_of(device, **columns):
    """The identity with some columns other than that: one sample."""
    row = [columns.get(name, IDENTITY[name]) for name in VALUES]
    return torch.tensor([row], dtype=F64, device=device)


def composed(multipliers, device, channels=3, size=SIZE, **columns):
    """Of one sample, in float64."""
    return ops.ada_parameters(
        None,
        multipliers,
        values=values_of(device, **columns),
        seed=torch.zeros(1, dtype=torch.int64, device=device),
        color_channels=channels,
        dtype=F64,
        **size,
    )


def same(found, expected, strict=True):
    """Bit for bit."""
    for name, x, y in zip(Parameters._fields, found, expected, strict=strict):
        assert (x is None) == (y is None), name
        if x is not None:
            assert x.dtype == y.dtype, name
            assert torch.equal(x, y), name


# --- against the reference -----------------------------------------------------------------------

MULTIPLIERS = {
    "all": ALL,
    "none": NONE,
    "uneven": AdaMultipliers(
        *(0.3, 1.7, 0.0, 0.9, 0.6, 0.2, 0.8, 0.5, 0.0, 1.0, 0.4, 2.0, 0.7),
        imgfilter_bands=(1.0, 0.5, 0.0, 1.5),
        noise=0.1,
        cutout=0.9,
    ),
    "hue": AdaMultipliers(hue=1.0),
    "rotate": AdaMultipliers(rotate=1.0),
    "cutout": AdaMultipliers(cutout=1.0),
    "filter": AdaMultipliers(imgfilter=1.0, imgfilter_bands=(0.0, 0.0, 0.0, 1.0)),
}
STRENGTHS = {
    "0": 0.0,
    "0.6": 0.6,
    "1": 1.0,
    "groups": [0.1, 0.9, 0.5, 1.0, 0.3, 0.7],
}


@pytest.mark.parametrize("channels", [0, 1, 3])
@pytest.mark.parametrize("p", STRENGTHS)
@pytest.mark.parametrize("multipliers", MULTIPLIERS)
def test_values(backend, multipliers, p, channels):
    for batch, dtype in ((1, F64), (32, torch.float32), (70, F64)):
        arguments = {
            "p": number(STRENGTHS[p], backend, dtype),
            "multipliers": MULTIPLIERS[multipliers],
            **draws(batch, batch, backend),
            **SIZE,
            "color_channels": channels,
            "constants": AdaConstants(scale_std=0.3, xint_max=0.2, rotate_max=0.7, noise_std=0.4),
        }
        found = ops.ada_parameters(**arguments)
        expected = reference.ada_parameters(**arguments, dtype=F64)
        for name, x, y in zip(Parameters._fields, found, expected, strict=True):
            assert (x is None) == (y is None), name
            if x is None or y is None:
                continue
            if name == "seed":
                assert torch.equal(x, y)
            else:
                wide = name in ("values", "maps", "box")
                assert x.dtype == (F64 if wide else torch.float32), name
                assert_near(x, y, factor=4, what=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_dtypes(backend, dtype):
    arguments = {"p": number(0.8, backend), "multipliers": ALL, **draws(9, 1, backend), **SIZE}
    found = ops.ada_parameters(**arguments, color_channels=3, dtype=dtype)
    exact = ops.ada_parameters(**arguments, color_channels=3, dtype=F64)
    assert found.color.dtype == (F64 if dtype == F64 else torch.float32)
    both = zip(exact, found, strict=True)
    same(found, [None if x is None else x.to(y.dtype) for x, y in both])


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=dtype_name)
@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_factors_out_of_range(backend, channels, margins, dtype):
    """Normal numbers that no generator draws: factors are 0 or infinite, of their sample alone."""
    given = draws(12, 3, backend)
    given["normals"][::2] *= 1e4
    given["normals"][0], given["normals"][2] = 1040, -1040  # next to the last powers of two
    stds = dict.fromkeys(("scale_std", "aniso_std", "contrast_std", "saturation_std"), 1.0)
    arguments = {"p": number(1.0, backend), "multipliers": ALL, **given, **SIZE, "dtype": dtype}
    arguments["constants"] = AdaConstants(**stds)
    found = ops.ada_parameters(**arguments, color_channels=channels, margins=margins)
    expected = reference.ada_parameters(**arguments, color_channels=channels, margins=margins)
    torch.testing.assert_close(found.values, expected.values, rtol=1e-12, atol=1e-12)
    assert (found.values == math.inf).any()
    for name, x, y in zip(Parameters._fields, found, expected, strict=True):
        if y is not None and name not in ("values", "seed", "margins"):
            assert_near(x[1::2], y[1::2], factor=4, what=name)


def test_what_is_absent_is_none(backend):
    def names(channels=3, **multipliers):
        m = AdaMultipliers(**multipliers)
        found = ops.ada_parameters(
            number(1.0, backend), m, **draws(2, 0, backend), **SIZE, color_channels=channels
        )
        return {name for name, x in zip(Parameters._fields, found, strict=True) if x is not None}

    always = {"values", "seed"}
    assert names() == always
    for name in ("xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac"):
        assert names(**{name: 0.1}) == {*always, "maps"}
    for name in ("brightness", "contrast", "lumaflip"):
        assert names(**{name: 0.1}) == names(1, **{name: 0.1}) == {*always, "color"}
        assert names(0, **{name: 0.1}) == always
    for name in ("hue", "saturation"):
        assert names(**{name: 0.1}) == {*always, "color"}
        assert names(1, **{name: 0.1}) == always
    assert names(imgfilter=0.1) == {*always, "gains"}
    assert names(imgfilter=0.1, imgfilter_bands=(0, 0, 0, 0)) == always
    assert names(noise=0.1) == {*always, "sigma"}
    assert names(cutout=0.1) == {*always, "box"}


@pytest.mark.parametrize("batch", [0, 1, 31, 33])
def test_batches(backend, batch):
    found = ops.ada_parameters(
        number(1.0, backend), ALL, **draws(batch, 0, backend), **SIZE, color_channels=1
    )
    shapes = [tuple(x.shape) for x in found[:-1]]
    assert shapes == [(batch, *rest) for rest in ((23,), (), (2, 3), (1, 2), (4,), (), (3,))]
    assert all(x.device == found.values.device and x.is_contiguous() for x in found[:-1])
    assert found.margins is None


def test_samples_do_not_know_each_other(backend):
    """Nor the memory that they lie in."""
    drawn = draws(40, 3, backend)
    every = ops.ada_parameters(number(0.5, backend), ALL, **drawn, **SIZE, color_channels=3)
    some = {name: x[5:8] for name, x in drawn.items()}
    apart = {name: x.t().contiguous().t() for name, x in some.items()}
    for inputs in (some, apart):
        found = ops.ada_parameters(number(0.5, backend), ALL, **inputs, **SIZE, color_channels=3)
        same(found, [*(x[5:8] for x in every[:-1]), None])


# --- margins -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(24, 40), (1, 1), (1, 90), (61, 3), (300, 300)], ids=str)
def test_margins(backend, size):
    """And the rest as without them."""
    options = {"height": size[0], "width": size[1], "color_channels": 3}
    for batch in (0, 1, 31, 33, 255, 257, 600):
        for p in (0.0, 0.05, 1.0):
            drawn = draws(batch, batch, backend)
            found = ops.ada_parameters(number(p, backend), ALL, **drawn, **options, margins=True)
            exact = reference.ada_parameters(
                number(p, backend), ALL, **drawn, **options, margins=True
            )
            assert found.margins.dtype == torch.int64
            assert torch.equal(found.margins, exact.margins)
            assert torch.equal(found.margins, reference.batch_margins(found.maps, *size))
            plain = ops.ada_parameters(number(p, backend), ALL, **drawn, **options)
            same(found[:-1], plain[:-1], strict=False)
            again = ops.ada_parameters(
                None, ALL, values=found.values, seed=found.seed, **options, margins=True
            )
            same(again, found)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_margins_of_values_that_are_not_finite(backend, bad):
    for name in ("xint_x", "xfrac_y", "scale", "aniso", "rotate_after"):
        values = values_of(backend).repeat(3, 1)
        values[1, VALUES.index(name)] = bad
        found = ops.ada_parameters(None, ALL, values=values, **SIZE, margins=True)
        assert torch.equal(found.margins, reference.batch_margins(found.maps, 24, 40))


def test_no_margins_without_maps(backend):
    drawn = draws(3, 0, backend)
    for m, size in ((AdaMultipliers(hue=1.0), SIZE), (ALL, {})):
        found = ops.ada_parameters(number(1.0, backend), m, **drawn, **size, margins=True)
        assert found.margins is None


# --- one transform at a time, by hand ------------------------------------------------------------


def rotation(angle):
    return [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]]


GEOMETRY = {
    "identity": ({}, [[1, 0, 0], [0, 1, 0]]),
    "xflip": ({"xflip": 1}, [[-1, 0, 0], [0, 1, 0]]),
    "rotate90_1": ({"rotate90": 1}, [[0, -1, 0], [1, 0, 0]]),
    "rotate90_2": ({"rotate90": 2}, [[-1, 0, 0], [0, -1, 0]]),
    "rotate90_3": ({"rotate90": 3}, [[0, 1, 0], [-1, 0, 0]]),
    "xint": ({"xint_x": 0.1, "xint_y": -0.08}, [[1, 0, -4], [0, 1, 2]]),  # 4, and -1.92
    "xint_down": ({"xint_x": 0.0625, "xint_y": 0.0625}, [[1, 0, -2], [0, 1, -2]]),  # 2.5: to even
    "xint_up": ({"xint_x": -0.0875, "xint_y": 0.0}, [[1, 0, 4], [0, 1, 0]]),  # -3.5: to even
    "scale": ({"scale": 1.6}, [[0.625, 0, 0], [0, 0.625, 0]]),
    "rotate_before": ({"rotate_before": 0.7}, rotation(0.7)),
    "rotate_after": ({"rotate_after": -2.9}, rotation(-2.9)),
    "both": ({"rotate_before": 2.0, "rotate_after": 0.9}, rotation(2.9)),
    "aniso": ({"aniso": 1.6}, [[0.625, 0, 0], [0, 1.6, 0]]),
    "xfrac": ({"xfrac_x": 0.31, "xfrac_y": -0.2}, [[1, 0, -12.4], [0, 1, 4.8]]),
    # The order: the first acts first on the image, so that its inverse is the left factor.
    "xflip, xint": ({"xflip": 1, "xint_x": 0.1}, [[-1, 0, 4], [0, 1, 0]]),
    "rotate90, xint": ({"rotate90": 1, "xint_x": 0.1}, [[0, -1, 0], [1, 0, -4]]),
    "xint, scale": ({"xint_x": 0.1, "scale": 2}, [[0.5, 0, -4], [0, 0.5, 0]]),
    "scale, xfrac": ({"scale": 2, "xfrac_x": 0.1}, [[0.5, 0, -2], [0, 0.5, 0]]),
    "aniso, xfrac": ({"aniso": 2, "xfrac_y": 0.25}, [[0.5, 0, 0], [0, 2, -12]]),
    "rotate, aniso": (
        {"rotate_before": math.pi / 6, "aniso": 2},
        [[math.sqrt(3) / 4, -1, 0], [0.25, math.sqrt(3), 0]],
    ),
    "aniso, rotate": (
        {"rotate_after": math.pi / 6, "aniso": 2},
        [[math.sqrt(3) / 4, -0.25, 0], [1, math.sqrt(3), 0]],
    ),
}


@pytest.mark.parametrize("case", GEOMETRY)
def test_geometry_by_hand(backend, case):
    columns, expected = GEOMETRY[case]
    maps = composed(ALL, backend, **columns).maps
    assert_near(maps.cpu(), torch.tensor([expected], dtype=F64))


def test_angles(backend):
    """By more than a turn too, and next to quarter turns."""
    angles = torch.cat(
        [
            torch.linspace(-20, 20, 4001, dtype=F64),
            torch.arange(-8, 9, dtype=F64) * (math.pi / 2),
            torch.tensor([1e-300, -1e-9, 5e-9, 0.0, -0.0], dtype=F64),
        ]
    )
    values = values_of(backend).repeat(len(angles), 1)
    values[:, VALUES.index("rotate_before")] = angles.to(backend)
    seed = torch.zeros(len(angles), dtype=torch.int64, device=backend)
    maps = ops.ada_parameters(None, ALL, values=values, seed=seed, **SIZE).maps.cpu()
    for got, exact in zip(maps[:, :, 0].unbind(1), (angles.cos(), angles.sin()), strict=True):
        assert (got - exact).abs().max() < 1e-15
    assert torch.equal(maps[:, 0, 0], maps[:, 1, 1])
    assert torch.equal(maps[:, 0, 1], -maps[:, 1, 0])
    small = angles.abs() < 1e-8
    assert_near(maps[small, 1, 0], angles[small])  # and relative to themselves
    assert maps[-3, 1, 0] == 5e-9


def grey_rotation(angle):
    """By Rodrigues' formula, about (1, 1, 1)."""
    axis = torch.ones(3, dtype=F64) / math.sqrt(3)
    x = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=F64) / math.sqrt(3)
    eye = torch.eye(3, dtype=F64)
    return math.cos(angle) * eye + math.sin(angle) * x + (1 - math.cos(angle)) * axis.outer(axis)


THIRD = torch.full((3, 3), 1 / 3, dtype=F64)
EYE = torch.eye(3, dtype=F64)
#: Matrix and offset, and what they are of one channel.
COLORS = {
    "identity": ({}, EYE, 0.0, (1.0, 0.0)),
    "brightness": ({"brightness": -0.3}, EYE, -0.3, (1.0, -0.3)),
    "contrast": ({"contrast": 1.7}, 1.7 * EYE, 0.0, (1.7, 0.0)),
    "lumaflip": ({"lumaflip": 1}, EYE - 2 * THIRD, 0.0, (-1.0, 0.0)),
    "hue": ({"hue": 0.8}, grey_rotation(0.8), 0.0, (1.0, 0.0)),
    "hue, a third": ({"hue": 2 * math.pi / 3}, EYE[[2, 0, 1]], 0.0, (1.0, 0.0)),  # red to green
    "saturation": ({"saturation": 0.4}, THIRD + 0.4 * (EYE - THIRD), 0.0, (1.0, 0.0)),
    "gray": ({"saturation": 0.0}, THIRD, 0.0, (1.0, 0.0)),
    # The order: brightness first.
    "brightness, contrast": ({"brightness": 0.5, "contrast": 3}, 3 * EYE, 1.5, (3.0, 1.5)),
    "brightness, lumaflip": (
        {"brightness": 0.5, "lumaflip": 1},
        EYE - 2 * THIRD,
        -0.5,
        (-1.0, -0.5),
    ),
    "all": (
        {"brightness": 0.2, "contrast": 2, "lumaflip": 1, "hue": -1.1, "saturation": 0.3},
        2 * (THIRD + 0.3 * (EYE - THIRD)) @ grey_rotation(-1.1) @ (EYE - 2 * THIRD),
        -0.4,
        (-2.0, -0.4),
    ),
}


@pytest.mark.parametrize("case", COLORS)
def test_color_by_hand(backend, case):
    columns, matrix, offset, one = COLORS[case]
    expected = torch.cat([matrix, torch.full((3, 1), offset, dtype=F64)], 1)
    assert_near(composed(ALL, backend, **columns).color.cpu(), expected[None])
    assert_near(
        composed(ALL, backend, channels=1, **columns).color.cpu(),
        torch.tensor([[one]], dtype=F64),
    )


def test_gains_by_hand(backend):
    def gains(*bands):
        columns = {f"band_{i}": t for i, t in enumerate(bands)}
        return composed(ALL, backend, **columns).gains[0].tolist()

    first = math.sqrt((40 + 3) / 13)
    assert gains(2, 1, 1, 1) == pytest.approx([2 / first, 1 / first, 1 / first, 1 / first])
    third = math.sqrt((12 + 0.25) / 13)
    assert gains(1, 1, 0.5, 1) == pytest.approx([1 / third, 1 / third, 0.5 / third, 1 / third])
    expected = [x * y for x, y in zip(gains(2, 1, 1, 1), gains(1, 1, 0.5, 1), strict=True)]
    assert gains(2, 1, 0.5, 1) == pytest.approx(expected, rel=1e-14)
    # One band amplified leaves the power of natural images as it is.
    g = gains(1, 3, 1, 1)
    assert 10 * g[0] ** 2 + g[1] ** 2 + g[2] ** 2 + g[3] ** 2 == pytest.approx(13, rel=1e-14)


def test_noise_and_cutout_by_hand(backend):
    found = composed(ALL, backend, noise=0.3, cutout=0.5, cutout_x=0.2, cutout_y=0.9)
    assert found.sigma.tolist() == [0.3]
    assert found.box.tolist() == [[0.2, 0.9, 0.5]]


# --- what is exact -------------------------------------------------------------------------------


def test_at_p_0_everything_is_the_identity(backend):
    found = ops.ada_parameters(
        number(0.0, backend), ALL, **draws(50, 1, backend), **SIZE, color_channels=3
    )
    expected = values_of(backend).repeat(50, 1)
    assert torch.equal(found.values, expected)
    eye = torch.eye(3, 4, dtype=F64, device=backend)
    for x, identity in (
        (found.maps, eye[:2, :3]),
        (found.color, eye),
        (found.gains, torch.ones(4)),
    ):
        assert (x == identity.to(x)).all()
    assert not found.maps.signbit().any()
    assert not found.color.signbit().any()
    assert not found.sigma.any()
    assert not found.box.any()
    one = ops.ada_parameters(
        number(0.0, backend), ALL, **draws(5, 1, backend), **SIZE, color_channels=1
    )
    assert (one.color == eye[:1, [0, 3]].to(one.color)).all()


def test_blits_are_exact(backend):
    m = AdaMultipliers(xflip=1, rotate90=1, xint=1)
    maps = ops.ada_parameters(number(1.0, backend), m, **draws(300, 2, backend), **SIZE).maps
    assert torch.equal(maps, maps.round())
    assert torch.equal(maps[:, :, :2].abs().sum(1), torch.ones(300, 2, dtype=F64, device=backend))
    assert not (maps.signbit() & (maps == 0)).any()
    flips = maps[:, :, :2].flatten(1).cpu().unique(dim=0)
    assert len(flips) == 8


def test_axes_stay_axes(backend):
    m = ALL._replace(rotate=0.0)
    maps = ops.ada_parameters(number(1.0, backend), m, **draws(300, 3, backend), **SIZE).maps
    straight = (maps[:, 0, 1] == 0) & (maps[:, 1, 0] == 0)
    swapped = (maps[:, 0, 0] == 0) & (maps[:, 1, 1] == 0)
    assert (straight ^ swapped).all()
    assert 100 < straight.sum() < 200


def test_gains_are_1_where_no_band_is_amplified(backend):
    found = ops.ada_parameters(number(0.3, backend), ALL, **draws(300, 4, backend), **SIZE)
    first = VALUES.index("band_0")
    untouched = (found.values[:, first : first + 4] == 1).all(1)
    assert torch.equal((found.gains == 1).all(1), untouched)
    assert 30 < untouched.sum() < 150


def test_not_a_number_stays(backend):
    """Wherever it is; it is not taken for something else."""
    nan = float("nan")
    for name in VALUES:
        found = composed(ALL, backend, **{name: nan})
        results = [found.maps, found.color, found.gains, found.sigma, found.box]
        assert sum(bool(x.isnan().any()) for x in results) == 1, name


# --- gates ---------------------------------------------------------------------------------------

BATCH = 20_000
#: Of a statistic that is normal: what one in a million exceeds.
SIGMAS = 4.9


def applied(values, name):
    """Whether a transform happened, and did something."""
    return torch.stack([values[column] != IDENTITY[column] for column in COLUMNS[name]]).any(0)


#: How often a transform that happens does something.
EFFECTS = {"xflip": 1 / 2, "rotate90": 3 / 4, "lumaflip": 1 / 2}


def test_probabilities(backend):
    m = AdaMultipliers(
        *(0.9, 0.4, 0.5, 1.0, 0.8, 0.3, 0.6, 0.7, 0.2, 1.0, 0.5, 0.9, 0.8),
        imgfilter_bands=(1.0, 0.5, 0.3, 0.0),
        noise=0.6,
        cutout=0.4,
    )
    p = 0.7
    values = sampled(m, p, backend, BATCH)
    expected = {**m._asdict(), **{f"band_{i}": band for i, band in enumerate(m.bands())}}
    expected["rotate_before"] = expected["rotate_after"] = (1 - math.sqrt(1 - m.rotate * p)) / p
    flags = []
    for name in GATES:
        chance = expected[name] * p * EFFECTS.get(name, 1)
        found = applied(values, name).to(F64)
        error = SIGMAS * math.sqrt(chance * (1 - chance) / BATCH)
        assert abs(found.mean().item() - chance) <= error, name
        if chance > 0:
            flags.append(found)
    assert values["band_3"].eq(1).all()
    rotated = applied(values, "rotate_before") | applied(values, "rotate_after")
    chance = m.rotate * p
    error = SIGMAS * math.sqrt(chance * (1 - chance) / BATCH)
    assert abs(rotated.to(F64).mean().item() - chance) <= error
    # Independent of each other.
    correlations = torch.corrcoef(torch.stack(flags)) - torch.eye(len(flags), dtype=F64)
    assert correlations.abs().max() <= SIGMAS / math.sqrt(BATCH)


def test_a_multiplier_above_1_is_always_from_some_p_on(backend):
    values = sampled(ALL._replace(scale=4.0, rotate=4.0), 0.25, backend)
    assert applied(values, "scale").all()
    assert applied(values, "rotate_before").all()
    assert applied(values, "rotate_after").all()


def test_gates_are_strict(backend):
    """A number of exactly m p is not below it, and 0 is not below 0."""
    drawn = draws(3, 1, backend)
    for gate, column in (("brightness", "brightness"), ("noise", "noise"), ("scale", "scale")):
        drawn["uniforms"][:, GATES.index(gate)] = torch.tensor(
            [0.375, math.nextafter(0.375, 0), math.nextafter(0.375, 1)], dtype=F64
        )
        found = ops.ada_parameters(number(0.75, backend), ALL._replace(**{gate: 0.5}), **drawn)
        happened = found.values[:, VALUES.index(column)] != IDENTITY[column]
        assert happened.tolist() == [False, True, False]
    drawn["uniforms"][:, : len(GATES)] = 0
    for p, m in ((0.0, ALL), (1.0, NONE)):
        found = ops.ada_parameters(number(p, backend), m, **drawn)
        assert torch.equal(found.values, values_of(backend).repeat(3, 1))


def test_no_transform_changes_the_numbers_of_another(backend):
    every = sampled(ALL, 0.8, backend, 200)
    for name in AdaMultipliers._fields:
        if name == "imgfilter_bands":
            continue
        columns = [
            column
            for gate in GATES
            if gate == name
            or (name == "rotate" and gate.startswith("rotate_"))
            or (name == "imgfilter" and gate.startswith("band_"))
            for column in COLUMNS[gate]
        ]
        alone = sampled(NONE._replace(**{name: 1.0}), 0.8, backend, 200)
        for column in VALUES:
            if column in columns:
                assert torch.equal(alone[column], every[column])
                assert (alone[column] != IDENTITY[column]).any()
            else:
                assert (alone[column] == IDENTITY[column]).all()


# --- p -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=dtype_name)
def test_p_is_clamped(backend, dtype):
    drawn = {**draws(64, 5, backend), **SIZE}
    half = AdaMultipliers(*[0.5] * 15)
    for p, clamped in (
        (math.nan, 0.0),
        (-0.5, 0.0),
        (-math.inf, 0.0),
        (1.5, 1.0),
        (math.inf, 1.0),
    ):
        found = ops.ada_parameters(number(p, backend, dtype), half, **drawn)
        same(found, ops.ada_parameters(number(clamped, backend), half, **drawn))
        exact = reference.ada_parameters(number(p, backend, dtype), half, **drawn)
        assert_near(found.values, exact.values)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=dtype_name)
def test_groups(backend, dtype):
    """A number for each group is as good as a call for each."""
    drawn = draws(200, 6, backend)
    p = [0.2, 0.9, 0.5, 0.7, 0.3, math.nan]
    strided = number([[x, 0.0] for x in p], backend, dtype)[:, 0]
    for each in (number(p, backend, dtype), strided):
        found = ops.ada_parameters(each, ALL, **drawn).values
        groups = (range(4), range(4, 10), range(10, 15), range(15, 19), [19], range(20, 23))
        for x, columns in zip(p, groups, strict=True):
            alone = ops.ada_parameters(number(x, backend, dtype), ALL, **drawn).values
            assert torch.equal(found[:, list(columns)], alone[:, list(columns)])


# --- distributions -------------------------------------------------------------------------------


def ks(x, cdf):
    """The statistic of Kolmogorov and Smirnov times the root of the count."""
    found = cdf(x.sort().values)
    steps = torch.arange(len(x) + 1, dtype=F64) / len(x)
    distance = torch.maximum((found - steps[:-1]).max(), (steps[1:] - found).max())
    return (distance * math.sqrt(len(x))).item()


KS = 2.2  # what one in 10,000 exceeds


def uniform(low, high):
    return lambda x: ((x - low) / (high - low)).clamp(0, 1)


def normal(std):
    return lambda x: torch.special.ndtr(x / std)


def factor(std):
    return lambda x: torch.special.ndtr(x.log2() / std)


def half_normal(std):
    return lambda x: 2 * torch.special.ndtr(x / std) - 1


DISTRIBUTIONS = {
    "xint_x": uniform(-0.125, 0.125),
    "xint_y": uniform(-0.125, 0.125),
    "scale": factor(0.2),
    "rotate_before": uniform(-math.pi, math.pi),
    "aniso": factor(0.2),
    "rotate_after": uniform(-math.pi, math.pi),
    "xfrac_x": normal(0.125),
    "xfrac_y": normal(0.125),
    "brightness": normal(0.2),
    "contrast": factor(0.5),
    "hue": uniform(-math.pi, math.pi),
    "saturation": factor(1.0),
    **{f"band_{i}": factor(1.0) for i in range(4)},
    "noise": half_normal(0.1),
    "cutout_x": uniform(0, 1),
    "cutout_y": uniform(0, 1),
}
COUNTS = {"xflip": 2, "rotate90": 4, "lumaflip": 2}


def test_distributions(backend):
    values = sampled(ALL, 1.0, backend, BATCH)
    assert {*DISTRIBUTIONS, *COUNTS, "cutout"} == set(VALUES)
    for name, cdf in DISTRIBUTIONS.items():
        assert ks(values[name], cdf) < KS, name
    for name, count in COUNTS.items():
        frequencies = torch.bincount(values[name].long(), minlength=count) / BATCH
        assert len(frequencies) == count
        error = SIGMAS * math.sqrt((1 - 1 / count) / count / BATCH)
        assert (frequencies - 1 / count).abs().max() < error, name
    assert (values["cutout"] == 0.5).all()
    table = torch.stack([values[name] for name in VALUES if name != "cutout"])
    correlations = torch.corrcoef(table) - torch.eye(len(table), dtype=F64)
    assert correlations.abs().max() < SIGMAS / math.sqrt(BATCH) * 1.2  # heavy tails


def test_values_do_not_depend_on_their_gates(backend):
    values = sampled(ALL, 0.5, backend, BATCH)
    for name in ("xint_x", "scale", "hue", "noise", "cutout_y"):
        happened = values[name] != IDENTITY[name]
        assert ks(values[name][happened], DISTRIBUTIONS[name]) < KS, name


def test_the_statistic_finds_what_is_wrong():
    x = torch.randn(BATCH, dtype=F64, generator=torch.Generator().manual_seed(0))
    assert ks(x, normal(1.0)) < KS
    for wrong in (normal(1.08), normal(0.93), lambda x: normal(1.0)(x - 0.05), uniform(-3, 3)):
        assert ks(x, wrong) > KS


def test_constants(backend):
    doubled = AdaConstants(*(2 * x for x in AdaConstants()))
    plain, strong = (
        sampled(ALL, 1.0, backend, 100, constants=constants)
        for constants in (AdaConstants(), doubled)
    )
    for name in ("scale", "aniso", "contrast", "saturation", "band_0", "band_3"):
        assert_near(strong[name], plain[name].square())
    for name in ("xint_x", "rotate_before", "xfrac_y", "brightness", "hue", "noise", "cutout"):
        assert_near(strong[name], 2 * plain[name])


def test_seeds(backend):
    drawn = draws(1000, 7, backend)
    seed = ops.ada_parameters(number(0.0, backend), NONE, **drawn).seed
    assert seed.dtype == torch.int64
    assert torch.equal(seed, (drawn["uniforms"][:, -1] * 2**53).long())
    assert len(seed.unique()) == 1000
    assert 0 <= seed.min() < 2**46
    assert 2**52 < seed.max() < 2**53


# --- composition ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_composing_again_equals_drawing_again(backend, channels):
    drawn = draws(40, 8, backend)
    p = number(0.7, backend)
    small = ops.ada_parameters(p, ALL, **drawn, **SIZE, color_channels=channels)
    alone = ops.ada_parameters(p, ALL, **drawn)
    assert alone[2:] == (None,) * 6
    assert torch.equal(alone.values, small.values)
    for first in (small, alone):
        other = {"height": 33, "width": 27, "color_channels": channels, "dtype": F64}
        again = ops.ada_parameters(None, ALL, values=first.values, seed=first.seed, **other)
        same(again, ops.ada_parameters(p, ALL, **drawn, **other))
        assert again.values is first.values
        assert again.seed is first.seed
    assert not torch.equal(again.maps, small.maps)


def test_a_shift_is_rounded_for_each_size(backend):
    columns = {"xint_x": 0.1, "xint_y": 0.1}
    for size, expected in ((16, 2.0), (64, 6.0), (256, 26.0)):
        maps = composed(ALL, backend, size={"height": size, "width": size}, **columns).maps
        assert maps[0, :, 2].tolist() == [-expected, -expected]


# --- preview -------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.1, 0.25, 0.5, 0.6, 0.95])
def test_preview(q):
    values = preview_values(q, ALL, 3)
    assert values.shape == (3, 23)
    assert values.dtype == F64
    assert (values == values[0]).all()
    found = dict(zip(VALUES, values[0].tolist(), strict=True))
    z = torch.special.erfinv(torch.tensor(2 * q - 1, dtype=F64)).item()
    half = torch.special.erfinv(torch.tensor(q, dtype=F64)).item()
    turn = (2 * q - 1) * math.pi
    assert found == pytest.approx(
        {
            "xflip": math.floor(2 * q),
            "rotate90": math.floor(4 * q),
            "xint_x": (2 * q - 1) / 8,
            "xint_y": (2 * q - 1) / 8,
            "scale": 2 ** (z / 5),
            "rotate_before": turn,
            "aniso": 2 ** (z / 5),
            "rotate_after": 0,
            "xfrac_x": z / 8,
            "xfrac_y": z / 8,
            "brightness": z / 5,
            "contrast": 2 ** (z / 2),
            "lumaflip": math.floor(2 * q),
            "hue": turn,
            "saturation": 2**z,
            **{f"band_{i}": 2**z for i in range(4)},
            "noise": half / 10,
            "cutout": 0.5,
            "cutout_x": q,
            "cutout_y": q,
        },
        rel=1e-12,
        abs=1e-15,
    )


def test_preview_of_some_transforms(backend):
    m = AdaMultipliers(scale=0.1, imgfilter=1.0, imgfilter_bands=(0.0, 1.0, 0.0, 0.0))
    values = preview_values(0.9, m, 2, AdaConstants(scale_std=0.5), device=backend)
    names = {
        name for name, x in zip(VALUES, values[0].tolist(), strict=True) if x != IDENTITY[name]
    }
    assert names == {"scale", "band_1"}
    found = ops.ada_parameters(None, m, values=values, **SIZE)
    scale = values[0, VALUES.index("scale")].item()
    assert found.seed is None
    assert scale > 1.2
    assert_near(found.maps.cpu()[0, :, :2], torch.eye(2, dtype=F64) / scale)
    assert (preview_values(0.9, NONE, 1).cpu() == values_of("cpu")).all()


# --- the draws of StyleGAN2-ADA ------------------------------------------------------------------


def replayed(generator, m, channels, batch, p):
    """Values from draws in the order and the shapes that StyleGAN2-ADA has, in float32."""
    found = {}

    def uniform(*shape):
        return torch.rand([batch, *shape], generator=generator)

    def normal(*shape):
        return torch.randn([batch, *shape], generator=generator)

    def put(names, value, identity, gate, chance):
        value = torch.where(gate < chance, value, torch.full_like(value, identity)).view(batch, -1)
        for k, name in enumerate(names.split()):
            found[name] = value[:, k]

    rotates = 1 - (1 - m.rotate * p).clamp(0, 1).sqrt()
    if m.xflip:
        put("xflip", (uniform() * 2).floor(), 0, uniform(), m.xflip * p)
    if m.rotate90:
        put("rotate90", (uniform() * 4).floor(), 0, uniform(), m.rotate90 * p)
    if m.xint:
        put("xint_x xint_y", (uniform(2) * 2 - 1) * 0.125, 0, uniform(1), m.xint * p)
    if m.scale:
        put("scale", (normal() * 0.2).exp2(), 1, uniform(), m.scale * p)
    if m.rotate:
        put("rotate_before", (uniform() * 2 - 1) * math.pi, 0, uniform(), rotates)
    if m.aniso:
        put("aniso", (normal() * 0.2).exp2(), 1, uniform(), m.aniso * p)
    if m.rotate:
        put("rotate_after", (uniform() * 2 - 1) * math.pi, 0, uniform(), rotates)
    if m.xfrac:
        put("xfrac_x xfrac_y", normal(2) * 0.125, 0, uniform(1), m.xfrac * p)
    if m.brightness:
        put("brightness", normal() * 0.2, 0, uniform(), m.brightness * p)
    if m.contrast:
        put("contrast", (normal() * 0.5).exp2(), 1, uniform(), m.contrast * p)
    if m.lumaflip:
        put("lumaflip", (uniform(1, 1) * 2).floor(), 0, uniform(1, 1), m.lumaflip * p)
    if m.hue and channels > 1:
        put("hue", (uniform() * 2 - 1) * math.pi, 0, uniform(), m.hue * p)
    if m.saturation and channels > 1:
        put("saturation", normal(1, 1).exp2(), 1, uniform(1, 1), m.saturation * p)
    if m.imgfilter:
        for i, band in enumerate(m.imgfilter_bands):
            put(f"band_{i}", normal().exp2(), 1, uniform(), m.imgfilter * p * band)
    if m.noise:
        put("noise", normal(1, 1, 1).abs() * 0.1, 0, uniform(1, 1, 1), m.noise * p)
    if m.cutout:
        size = torch.full((batch, 1, 1, 1, 1), 0.5)
        gate = uniform(1, 1, 1, 1)
        put("cutout", size, 0, gate, m.cutout * p)
        put("cutout_x cutout_y", uniform(2, 1, 1, 1), 0, gate, m.cutout * p)
    return found


COMPAT = {
    "blit": AdaMultipliers(xflip=1.0, rotate90=1.0, xint=1.0),
    "geom": AdaMultipliers(scale=1.0, rotate=1.0, aniso=1.0, xfrac=1.0),
    "color": ALL._replace(rotate=0.0, imgfilter=0.0, noise=0.0, cutout=0.0),
    "all but noise": ALL._replace(noise=0.0, scale=0.5, imgfilter_bands=(1.0, 0.5, 0.0, 1.0)),
    "all but cutout": ALL._replace(cutout=0.0),
    "none": NONE,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("case", COMPAT)
def test_compat(case, channels):
    m, p, batch = COMPAT[case], torch.tensor(0.6), 500
    torch.manual_seed(3)
    uniforms, normals = draw_compat(batch, m, color_channels=channels)
    after = torch.rand(3)
    assert uniforms.shape == (batch, UNIFORMS)
    assert normals.shape == (batch, NORMALS)
    assert uniforms.dtype == normals.dtype == F64
    generator = torch.Generator().manual_seed(3)
    expected = replayed(generator, m, channels, batch, p)
    if not m.noise:  # else the numbers of the noise would come
        assert torch.equal(after, torch.rand(3, generator=generator))
        assert not uniforms[:, -1].any()
    else:
        assert len(uniforms[:, -1].unique()) == batch
    # The same from a generator that is given.
    again = draw_compat(batch, m, torch.Generator().manual_seed(3), color_channels=channels)
    assert torch.equal(again[0], uniforms)
    assert torch.equal(again[1], normals)
    values = ops.ada_parameters(p, m, uniforms=uniforms, normals=normals).values
    for name, x in zip(VALUES, values.unbind(1), strict=True):
        wanted = expected.get(name, torch.full((batch,), IDENTITY[name]))
        assert (x - wanted).abs().max() < 1e-6 * max(1, wanted.abs().max()), name
        assert torch.equal(x != IDENTITY[name], wanted != IDENTITY[name]), name


# --- a citizen of torch --------------------------------------------------------------------------


def test_nothing_is_differentiable(backend):
    drawn = {name: x.requires_grad_() for name, x in draws(4, 1, backend).items()}
    p = number(0.5, backend).requires_grad_()
    found = ops.ada_parameters(p, ALL, **drawn, **SIZE, color_channels=3, margins=True)
    assert not any(x.requires_grad for x in found)
    again = ops.ada_parameters(
        None, ALL, values=found.values.clone().requires_grad_(), seed=found.seed, **SIZE
    )
    assert not again.maps.requires_grad
    with gankernels.backend("reference"):
        found = ops.ada_parameters(p, ALL, **drawn, **SIZE, color_channels=3, margins=True)
    assert not any(x.requires_grad for x in found)


def test_nothing_is_written_to(backend):
    drawn = draws(40, 1, backend)
    p = number(0.5, backend)
    before = {name: x.clone() for name, x in drawn.items()}
    found = ops.ada_parameters(p, ALL, **drawn, **SIZE)
    values = found.values.clone()
    ops.ada_parameters(None, ALL, values=found.values, seed=found.seed, **SIZE)
    assert torch.equal(found.values, values)
    assert all(torch.equal(x, before[name]) for name, x in drawn.items())
    assert p == 0.5


def arguments_of_the_operator(device, values=None, size=(24, 40), p=0.5, margins=False):
    drawn = draws(5, 1, device)
    inputs = (number(p, device), drawn["uniforms"], drawn["normals"], None)
    if values is not None:
        inputs = (None, None, None, values)
    numbers = ([*ALL[:12], *ALL.bands(), ALL.noise, ALL.cutout], list(AdaConstants()))
    return (*inputs, *numbers, *size, 3, False, margins)


def test_opcheck(backend):
    op = native_ops().ada_parameters.default
    values = op(*arguments_of_the_operator(backend))[0]
    for arguments in (
        arguments_of_the_operator(backend),
        arguments_of_the_operator(backend, size=(None, None)),
        arguments_of_the_operator(backend, p=[0.1] * 6),
        arguments_of_the_operator(backend, values=values),
        arguments_of_the_operator(backend, margins=True),
    ):
        torch.library.opcheck(op, arguments)


@pytest.fixture
def forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_compiled(backend, forget_compiled_code):
    def function(p, uniforms, normals):
        drawn = ops.ada_parameters(
            p, ALL, uniforms=uniforms, normals=normals, **SIZE, color_channels=3, margins=True
        )
        again = ops.ada_parameters(
            None, ALL, values=drawn.values, seed=drawn.seed, height=12, width=20
        )
        return *drawn, again.maps

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    arguments = (number(0.7, backend).requires_grad_(), *draws(6, 2, backend).values())
    for got, expected in zip(compiled(*arguments), function(*arguments), strict=True):
        assert torch.equal(got, expected)


def test_one_graph_for_every_size(forget_compiled_code):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def function(p, uniforms, normals, image):
        height, width = image.shape[-2:]
        return ops.ada_parameters(
            p, ALL, uniforms=uniforms, normals=normals, height=height, width=width
        )

    compiled = torch.compile(function, fullgraph=True, backend=count, dynamic=True)
    for batch, height, width in ((4, 24, 40), (7, 32, 16), (3, 9, 65)):
        drawn = draws(batch, batch).values()
        arguments = (torch.tensor(0.9), *drawn, torch.zeros(batch, 3, height, width))
        same(compiled(*arguments), function(*arguments))
    assert len(graphs) == 1


def test_fake_tensors():
    with FakeTensorMode():
        drawn = {"uniforms": torch.rand(4, UNIFORMS, dtype=F64)}
        drawn["normals"] = torch.randn(4, NORMALS, dtype=F64)
        found = ops.ada_parameters(
            torch.tensor(1.0), ALL, **drawn, **SIZE, color_channels=1, margins=True
        )
    assert [tuple(x.shape) for x in found] == [
        *((4, 23), (4,), (4, 2, 3), (4, 1, 2), (4, 4), (4,), (4, 3), (4,))
    ]
    assert [x.dtype for x in found[:3]] == [F64, torch.int64, F64]


def test_autocast(backend):
    drawn = {**draws(4, 1, backend), **SIZE, "color_channels": 3}
    expected = ops.ada_parameters(number(0.5, backend), ALL, **drawn)
    with torch.autocast(backend.type, torch.bfloat16):
        same(ops.ada_parameters(number(0.5, backend), ALL, **drawn), expected)
        exact = reference.ada_parameters(number(0.5, backend), ALL, **drawn)
    assert_near(exact.maps, expected.maps)
    assert_near(exact.color, expected.color)


def test_without_kernels_the_reference_answers(monkeypatch):
    drawn = {**draws(4, 1), **SIZE}
    monkeypatch.setattr(_library, "NATIVE_DEVICES", frozenset())
    monkeypatch.setattr(_library, "_fallbacks", {("ada_parameters", "anything")})
    found = ops.ada_parameters(torch.tensor(0.5), ALL, **drawn)
    assert len(_library._fallbacks) == 2
    same(found, reference.ada_parameters(torch.tensor(0.5), ALL, **drawn))


@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_one_launch(backend):
    """And the bytes that csrc/cuda/ada_parameters.cuh states."""
    panel = emulator()
    panel.reset_counters()
    arguments = {**SIZE, "color_channels": 3}
    found = ops.ada_parameters(torch.tensor(0.5), ALL, **draws(70), **arguments)
    counted = panel.counters()
    assert counted["launches"] == {"ada_parameters": 1}
    moved = {name: tuple(int(x) for x in both) for name, both in counted["buffers"].items()}
    assert moved["uniforms"][0] + moved["normals"][0] == 70 * 336
    assert moved["values"][1] + moved["seed"][1] == 70 * 192
    assert moved["maps"] == (0, 70 * 48)
    assert moved["color"] == (0, 70 * 12 * 4)
    assert moved["box"] == (0, 70 * 24)
    panel.reset_counters()
    ops.ada_parameters(None, ALL, values=found.values, seed=found.seed, **arguments)
    counted = panel.counters()
    assert counted["launches"] == {"ada_parameters": 1}
    assert {"uniforms", "p", "seed"}.isdisjoint(counted["buffers"])
    panel.reset_counters()
    ops.ada_parameters(torch.tensor(0.5), ALL, **draws(0), **arguments)
    assert panel.counters()["launches"] == {}
    for batch in (0, 300):
        panel.reset_counters()
        ops.ada_parameters(torch.tensor(0.5), ALL, **draws(batch), **arguments, margins=True)
        counted = panel.counters()
        assert counted["launches"] == {"ada_parameters": 1}
        assert tuple(int(x) for x in counted["buffers"]["margins"]) == (0, 32)


# --- what is refused -----------------------------------------------------------------------------


def call(**changes):
    drawn = draws(4)
    arguments = {"p": torch.tensor(0.5), "multipliers": ALL, **drawn, **SIZE, **changes}
    return ops.ada_parameters(**arguments)


VALUES_ROW = {"uniforms": None, "normals": None, "values": torch.ones(4, 23, dtype=F64)}
SEED = torch.zeros(4, dtype=torch.int64)
REFUSED = [
    ({"multipliers": ALL._replace(scale=-0.1)}, ValueError, "of scale to be finite and not neg"),
    ({"multipliers": ALL._replace(noise=math.nan)}, ValueError, "of noise to be finite"),
    ({"multipliers": ALL._replace(hue="1")}, TypeError, "of hue to be a number, got str"),
    ({"multipliers": [1.0] * 18}, TypeError, "to be AdaMultipliers, got list"),
    ({"multipliers": {"xflip": 1.0}}, TypeError, "to be AdaMultipliers, got dict"),
    ({"multipliers": ALL._replace(imgfilter_bands=(1.0,) * 3)}, ValueError, "4 numbers.*got 3"),
    ({"multipliers": ALL._replace(imgfilter_bands=1.0)}, ValueError, "4 numbers.*got float"),
    (
        {"multipliers": ALL._replace(imgfilter_bands=(1, -1, 1, 1))},
        ValueError,
        "every number of imgfilter_bands to be finite and not negative",
    ),
    ({"constants": AdaConstants(noise_std=-1.0)}, ValueError, "noise_std to be finite and not"),
    ({"constants": AdaConstants(hue_max=math.inf)}, ValueError, "hue_max to be finite"),
    ({"constants": None}, TypeError, "to be AdaConstants, got NoneType"),
    ({"p": 0.5}, TypeError, "p to be a tensor, got float; keep it on the device"),
    ({"p": None}, TypeError, "p to be a tensor, got NoneType"),
    ({"p": torch.tensor(1)}, TypeError, "p of float32 or float64, got torch.int64"),
    ({"p": torch.tensor(0.5, dtype=torch.bfloat16)}, TypeError, "p of float32 or float64, got"),
    ({"p": torch.ones(5)}, ValueError, r"shape \(6,\), for the groups blit, geom.*\(5,\)"),
    ({"p": torch.ones(1, 6)}, ValueError, r"of shape \(6,\).*\(1, 6\)"),
    ({"p": torch.ones(1)}, ValueError, r"p to be a scalar or of shape \(6,\).*\(1,\)"),
    ({"uniforms": None}, TypeError, "uniforms to be a tensor, got NoneType"),
    ({"normals": None}, TypeError, "normals to be a tensor, got NoneType"),
    ({"uniforms": None, "normals": None}, ValueError, "or values, got neither"),
    ({"values": torch.ones(4, 23, dtype=F64)}, ValueError, "or values, got both"),
    ({"uniforms": torch.rand(4, 30)}, ValueError, r"uniforms to be float64.*float32 of"),
    ({"uniforms": torch.rand(4, 29, dtype=F64)}, ValueError, r"of shape \(B, 30\), got.*\(4, 29\)"),
    ({"uniforms": torch.rand(30, dtype=F64)}, ValueError, r"shape \(B, 30\), got.*\(30,\)"),
    ({"normals": torch.rand(4, 11, dtype=F64)}, ValueError, r"of shape \(4, 12\).*\(4, 11\)"),
    ({"normals": torch.rand(3, 12, dtype=F64)}, ValueError, r"of shape \(4, 12\).*\(3, 12\)"),
    ({"normals": torch.rand(4, 12)}, ValueError, "normals to be float64"),
    ({"seed": SEED}, ValueError, "seed to come with values"),
    ({**VALUES_ROW, "values": torch.ones(4, 22, dtype=F64)}, ValueError, r"\(B, 23\).*\(4, 22\)"),
    ({**VALUES_ROW, "values": torch.ones(4, 23)}, ValueError, "values to be float64"),
    ({**VALUES_ROW, "values": [1.0]}, TypeError, "values to be a tensor, got list"),
    ({**VALUES_ROW, "seed": SEED[:3]}, ValueError, r"seed to be int64 of shape \(4,\)"),
    ({**VALUES_ROW, "seed": SEED.int()}, ValueError, "seed to be int64"),
    ({**VALUES_ROW, "seed": 3}, TypeError, "seed to be a tensor, got int"),
    ({**VALUES_ROW, "height": None, "width": None}, ValueError, "height and width, got None"),
    ({"height": None}, ValueError, "height and width, got None and 40"),
    ({"height": 0}, ValueError, "height to be at least 1, got 0"),
    ({"width": 40.0}, TypeError, "width to be an integer, got float"),
    ({"color_channels": 2}, ValueError, "0, 1 or 3 color_channels, got 2"),
    ({"color_channels": None}, ValueError, "0, 1 or 3 color_channels, got None"),
    ({"dtype": torch.int64}, ValueError, "dtype float32, float64, bfloat16 or float16, got"),
    ({"dtype": None}, ValueError, "dtype float32, .* got None"),
    ({"uniforms": torch.rand(4, 30, dtype=F64, device="meta")}, ValueError, "on meta, got .* cpu"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused(number):
    changes, error, message = REFUSED[number]
    with pytest.raises(error, match=f"^ada_parameters: .*{message}"):
        call(**changes)
    with (
        gankernels.backend("reference"),
        pytest.raises(error, match=f"^ada_parameters: .*{message}"),
    ):
        call(**changes)


def test_the_operator_itself_refuses(backend):
    """What its memory would not be safe with, whoever calls it."""
    op = native_ops().ada_parameters
    good = list(arguments_of_the_operator(backend))
    op(*good)
    for place, wrong in (
        (0, None),
        (0, torch.ones(5, device=backend)),
        (0, torch.ones(6, 2, device=backend)[:, 0]),
        (0, torch.ones((), dtype=torch.float16, device=backend)),
        (1, None),
        (1, good[1][:, :29]),
        (1, good[1].float()),
        (2, good[2][:3]),
        (2, good[2].t().contiguous().t()),
        (3, torch.ones(5, 23, dtype=F64, device=backend)),
        (4, good[4][:17]),
        (4, [*good[4][:17], -1.0]),
        (5, [*good[5], 1.0]),
        (5, [math.nan, *good[5][1:]]),
        (6, None),
        (7, 0),
        (8, 2),
    ):
        arguments = list(good)
        arguments[place] = wrong
        with pytest.raises(RuntimeError, match="ada_parameters: expected"):
            op(*arguments)


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, math.nan, math.inf])
def test_refused_percentiles(q):
    with pytest.raises(ValueError, match="preview_values: expected percentile to be"):
        preview_values(q, ALL, 4)


def test_refused_previews_and_draws():
    for function, name in (
        (lambda m, b: preview_values(0.5, m, b), "preview_values"),
        (lambda m, b: draw_compat(b, m), "draw_compat"),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected multipliers to be AdaMultipliers"):
            function({}, 4)
        with pytest.raises(ValueError, match=f"{name}: .*multiplier of aniso"):
            function(ALL._replace(aniso=-1.0), 4)
        for batch in (-1, 2.0, True):
            with pytest.raises(ValueError, match=f"{name}: expected batch to be an integer"):
                function(ALL, batch)
        assert function(ALL, 0) is not None
    with pytest.raises(ValueError, match="draw_compat: expected 1 or 3 color_channels, got 2"):
        draw_compat(4, ALL, color_channels=2)
    with pytest.raises(ValueError, match="preview_values: expected xint_max"):
        preview_values(0.5, ALL, 4, AdaConstants(xint_max=-1.0))


def test_columns():
    """The tables of names count what the contract does."""
    assert (UNIFORMS, NORMALS, len(VALUES)) == (30, 12, 23)
    assert len(set(GATES)) == len(GATES) == 19
    assert len(set(UNIFORM_VALUES)) == len(UNIFORM_VALUES)
    assert set(NORMAL_VALUES) <= set(VALUES)
    assert set(UNIFORM_VALUES) - {"seed"} <= set(VALUES)
    module = importlib.import_module("gankernels.ops.ada_parameters")
    assert {name for name in module.__all__ if not hasattr(module, name)} == set()
