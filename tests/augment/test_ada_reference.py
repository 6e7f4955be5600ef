"""The reference of the augmentation pipeline, against formulas and against a second formulation."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from support.tensors import DTYPES, assert_near, drawer, dtype_name

from benchmarks.published import stylegan2_ada as ada

F64 = torch.float64
#: Channels, height, width.
SIZES = [
    (3, 16, 16),
    (3, 24, 40),
    (1, 33, 27),
    (2, 5, 7),
    (1, 3, 3),
    (2, 2, 9),
    (1, 1, 4),
    (1, 1, 1),
]
STRENGTHS = [0.15, 0.6, 1.0]


def size_name(size):
    return "x".join(map(str, size))


def images(batch, channels, height, width, seed=0):
    """Uniform in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(batch, channels, height, width, generator=generator, dtype=F64) - 1


def random_maps(batch, height, width, p, seed=0):
    return ada.random_maps(batch, height, width, p, torch.Generator().manual_seed(seed))


def maps_of(*rows):
    """Maps from a, b, tx, d, e, ty each."""
    return torch.tensor(rows, dtype=F64).view(-1, 2, 3)


IDENTITY = maps_of([1, 0, 0, 0, 1, 0])


def rotation(degrees, tx=0.0, ty=0.0):
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return maps_of([cos, -sin, tx, sin, cos, ty])


def error(got, expected):
    return (got - expected).abs().max().item()


def autocorrelation(taps):
    return F.conv1d(taps.view(1, 1, -1), taps.view(1, 1, -1), padding=len(taps) - 1).flatten()


def symlet():
    f = torch.tensor(ada.SYM6, dtype=F64)
    return f / f.sum()


# --- the filters ---------------------------------------------------------------------------------


def test_sym6_is_that_of_pywavelets():
    pywt = pytest.importorskip("pywt")

    expected = torch.tensor(pywt.Wavelet("sym6").dec_lo, dtype=F64)
    assert error(torch.tensor(ada.SYM6, dtype=F64), expected) < 1e-12


def test_sym2_is_that_of_pywavelets():
    pywt = pytest.importorskip("pywt")

    assert error(sym2(), torch.tensor(pywt.Wavelet("sym2").dec_lo, dtype=F64)) < 1e-11


def test_sym6_is_an_orthonormal_wavelet_of_six_vanishing_moments():
    f = torch.tensor(ada.SYM6, dtype=F64)
    assert len(f) == ada.TAPS == 12
    assert abs(f.sum().item() - math.sqrt(2)) < 1e-11
    even = autocorrelation(f)[1::2]  # lags -10, -8, ... 10
    assert error(even, torch.eye(11, dtype=F64)[5]) < 1e-11
    n = torch.arange(12, dtype=F64) - 5.5
    moments = torch.stack([((-1) ** torch.arange(12) * n**k * f).sum() for k in range(7)])
    assert moments[:6].abs().max() < 1e-8
    assert moments[6].abs() > 1


def sym2():
    root = math.sqrt(3)
    return torch.tensor([1 - root, 3 - root, 3 + root, 1 + root], dtype=F64) / (4 * math.sqrt(2))


def test_filter_bank_from_the_symlet_of_four_taps():
    low = autocorrelation(sym2()) / 2
    high = autocorrelation(sym2() * torch.tensor([1, -1, 1, -1])) / 2
    # The transfer functions at 43 frequencies determine 43 taps.
    angle = 2 * math.pi * torch.arange(43, dtype=F64) / 43

    def transfer(taps, level=0):
        k = (torch.arange(len(taps)) - len(taps) // 2) * 2**level
        return (taps * torch.cos(angle[:, None] * k)).sum(1)

    expected = [
        transfer(low) * transfer(low, 1) * transfer(low, 2),
        transfer(low) * transfer(low, 1) * transfer(high, 2),
        transfer(low) * transfer(high, 1),
        transfer(high),
    ]
    for band, response in zip(ada.filter_bank(), expected, strict=True):
        assert error(transfer(torch.tensor(band, dtype=F64)), response) < 1e-14


def test_filter_bank_is_exact():
    bank = torch.tensor(ada.filter_bank(), dtype=F64)
    assert bank.shape == (4, 43)
    assert torch.equal(bank[3, 18:25] * 32, torch.tensor([1, 0, -9, 16, -9, 0, 1], dtype=F64))
    assert bank[3, :18].abs().max() == 0
    assert torch.equal(bank, bank.flip(1))
    assert bank.sum(1).tolist() == [1, 0, 0, 0]
    delta = torch.zeros(43, dtype=F64)
    delta[21] = 1
    assert torch.equal(bank.sum(0), delta)
    assert torch.equal(bank.float().double(), bank)  # rationals that float32 holds
    assert bank[0, 0] == -1 / 32768


# --- geometry: two formulations ------------------------------------------------------------------


@pytest.mark.parametrize("p", STRENGTHS)
@pytest.mark.parametrize("size", SIZES, ids=size_name)
def test_two_formulations_agree(size, p):
    image = images(4, *size)
    maps = random_maps(4, *size[1:], p, seed=round(100 * p))
    margins = ada.geometry_margins(maps, *size[1:])
    expected = ada.geometry(image, maps)
    assert error(ada.geometry(image, maps, margins.tolist()), expected) == 0
    assert error(ada.composite_geometry(image, maps, margins), expected) < 1e-13
    assert error(ada.composite_geometry(image, maps, margins.tolist()), expected) < 1e-13


@pytest.mark.parametrize("size", [(1, 12, 12), (2, 9, 14), (1, 3, 5)], ids=size_name)
def test_two_formulations_agree_where_margins_are_clamped(size):
    _, height, width = size
    maps = torch.cat(
        [rotation(33, 0.9 * width, 1.3 * height), rotation(-70, -1.7 * width, -height)]
    )
    margins = ada.geometry_margins(maps, height, width)
    assert margins.tolist() == [width - 1, width - 1, height - 1, height - 1]
    image = images(2, *size)
    got = ada.composite_geometry(image, maps, margins)
    assert error(ada.geometry(image, maps), got) < 1e-13
    # Nothing but zeros comes from beyond.
    far = rotation(33, 5 * width, 0).expand(2, 2, 3)
    assert ada.geometry(image, far).abs().max() == 0
    assert ada.composite_geometry(image, far, margins).abs().max() == 0
    assert ada.composite_geometry(image, far).abs().max() > 0.1


@pytest.mark.parametrize("margins", [(0, 0, 0, 0), (3, 0, 7, 1), (0, 10, 2, 8)], ids=str)
def test_two_formulations_agree_with_any_margins(margins):
    image, maps = images(3, 2, 9, 11), random_maps(3, 9, 11, 1.0)
    got = ada.composite_geometry(image, maps, margins)
    assert error(got, ada.geometry(image, maps, margins)) < 1e-13
    assert error(got, ada.composite_geometry(image, maps)) > 1e-3


@pytest.mark.parametrize("p", STRENGTHS)
@pytest.mark.parametrize("size", [(2, 16, 16), (1, 24, 40), (1, 33, 27)], ids=size_name)
def test_enough_margins_are_as_good_as_reflection_without_end(size, p):
    image = images(12, *size)
    maps = random_maps(12, *size[1:], p, seed=3)
    required = ada.required_margins(maps, *size[1:])
    margins = ada.geometry_margins(maps, *size[1:])
    enough = (required <= margins).all(1)
    assert enough.any()
    difference = (ada.geometry(image, maps) - ada.composite_geometry(image, maps)).abs()
    assert difference.amax((1, 2, 3))[enough].max() < 1e-13


def test_margins_one_pixel_short_of_the_required_show():
    height, width = 20, 26
    image = images(1, 1, height, width)
    maps = rotation(27, 1.3, -0.8)
    ideal = ada.composite_geometry(image, maps)
    required = ada.required_margins(maps, height, width)[0].tolist()
    assert min(required) > 0
    assert error(ada.geometry(image, maps, required), ideal) < 1e-13
    for side in range(4):
        short = list(required)
        short[side] -= 1
        assert error(ada.geometry(image, maps, short), ideal) > 1e-8, side


def test_margins_of_a_turned_batch_are_less_than_required():
    # Rows of absolute sum 2 > 7 / 6: 6 pixels around the corners are less than the filter's reach.
    image, maps = images(1, 1, 32, 32), maps_of([1, -1, 0.4, 1, 1, 0])
    margins = ada.geometry_margins(maps, 32, 32)
    assert margins.max() < 31
    assert (ada.required_margins(maps, 32, 32)[0] > margins).any()
    assert error(ada.geometry(image, maps), ada.composite_geometry(image, maps)) > 1e-8
    # 7 / 6 is enough, whatever the offset.
    maps = torch.cat([maps_of([1, 1 / 6, k / 16, -1 / 6, 1, -k / 7]) for k in range(16)])
    for one in maps.split(1):
        margins = ada.geometry_margins(one, 32, 32)
        assert (ada.required_margins(one, 32, 32)[0] <= margins).all()


def test_a_sample_depends_on_its_batch_through_the_margins_alone():
    image = images(2, 1, 32, 32)
    maps = torch.cat([maps_of([1, -1, 0.4, 1, 1, 0]), maps_of([1, -1, 6, 1, 1, -6])])
    alone, together = ada.geometry(image[:1], maps[:1]), ada.geometry(image, maps)[:1]
    assert error(alone, together) > 1e-8
    ideal = ada.composite_geometry(image, maps)[:1]
    assert error(ada.composite_geometry(image[:1], maps[:1]), ideal) < 1e-15


# --- geometry: what it must be -------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES, ids=size_name)
def test_identity_reproduces_the_image(size):
    image = images(2, *size)
    maps = IDENTITY.expand(2, 2, 3)
    assert error(ada.composite_geometry(image, maps), image) < 5e-12
    if min(size[1:]) > 4:  # smaller ones have clamped margins
        assert error(ada.geometry(image, maps), image) < 5e-12


def test_margins_of_hand_computed_maps():
    def margins(maps, height=20, width=30):
        return ada.geometry_margins(maps, height, width).tolist()

    assert margins(IDENTITY) == [6, 6, 6, 6]
    assert margins(maps_of([1, 0, 2.5, 0, 1, -1.25])) == [4, 9, 8, 5]
    assert margins(maps_of([2, 0, 0, 0, 0.5, 0])) == [21, 21, 2, 2]  # 14.5 + 6, -4.75 + 6
    assert margins(maps_of([0, -1, 0, 1, 0, 0])) == [1, 1, 11, 11]  # 9.5 + 6 - 14.5; + 5
    assert margins(torch.cat([IDENTITY, maps_of([1, 0, 3, 0, 1, 0])])) == [6, 9, 6, 6]
    assert margins(maps_of([1, 0, -90, 0, 1, 50])) == [29, 0, 0, 19]
    assert margins(IDENTITY, 3, 1) == [0, 0, 2, 2]


def test_required_margins_of_hand_computed_maps():
    def required(maps):
        return ada.required_margins(maps, 20, 30).tolist()

    # The lattice lies from -2.5 to 32 and to 22. Taps lie within 3.5 before and 3 behind, excluded.
    assert required(IDENTITY) == [[5, 5, 5, 5]]
    assert required(torch.cat([IDENTITY, maps_of([1, 0, 2.25, 0, 1, -2.25])])) == [
        [5, 5, 5, 5],
        [3, 8, 8, 3],
    ]
    assert required(maps_of([1, 0, 9, 0, 1, -9])) == [[0, 14, 14, 0]]
    # x from 14.5 - 34 to 14.5 + 35, y from 9.5 - 6 to 9.5 + 6.25
    assert required(maps_of([2, 0, 0, 0, 0.5, 0])) == [[22, 23, 0, 0]]


@pytest.mark.parametrize(
    "geometry", [ada.geometry, ada.composite_geometry], ids=lambda f: f.__name__
)
def test_a_flip_is_the_filter_convolved_with_itself(geometry):
    # What a pixel becomes, for the filter is not symmetric: 2 (f * f) at even places. Fixes which
    # way round both filters are.
    width, at = 41, 23
    image = torch.zeros(1, 1, 1, width, dtype=F64)
    image[..., at] = 1
    f = symlet()

    def expected(f):
        square = torch.zeros(23, dtype=F64)
        for j, k in itertools.product(range(12), range(12)):
            square[j + k] += f[j] * f[k]
        row = torch.zeros(width, dtype=F64)
        for i in range(width):
            place = 10 - 2 * (i + at - (width - 1))
            if 0 <= place < 23:
                row[i] = 2 * square[place]
        return row

    image = image.expand(1, 1, 41, width)  # constant along y, where nothing happens
    got = geometry(image, maps_of([-1, 0, 0, 0, 1, 0]))
    assert error(got, expected(f).expand_as(got)) < 5e-12
    assert error(got, expected(f.flip(0)).expand_as(got)) > 1e-2


@pytest.mark.parametrize(
    "geometry", [ada.geometry, ada.composite_geometry], ids=lambda f: f.__name__
)
def test_whole_shifts_move_pixels(geometry):
    # They map output to input: (2, -3) shows what is 2 to the right and 3 above.
    image = images(1, 2, 18, 22)
    got = geometry(image, maps_of([1, 0, 2, 0, 1, -3]))
    assert error(got[:, :, 3:, :-2], image[:, :, :-3, 2:]) < 5e-12
    # Beyond the border, the mirror image: row -1 is row 1, column W is column W - 2.
    assert error(got[:, :, 2, :-2], image[:, :, 1, 2:]) < 5e-12
    assert error(got[:, :, 3:, -1], image[:, :, :-3, -3]) < 5e-12


@pytest.mark.parametrize(
    "geometry", [ada.geometry, ada.composite_geometry], ids=lambda f: f.__name__
)
def test_smooth_images_turn_by_the_formula(geometry):
    y, x = torch.meshgrid(
        torch.arange(40, dtype=F64) - 19.5, torch.arange(48, dtype=F64) - 23.5, indexing="ij"
    )

    def wave(x, y):
        return torch.cos(0.08 * x - 0.05 * y + 0.3)

    a, b, tx, d, e, ty = 0.9, 0.35, 1.7, -0.3, 0.8, -2.2
    got = geometry(wave(x, y)[None, None], maps_of([a, b, tx, d, e, ty]))[0, 0]
    expected = wave(a * x + b * y + tx, d * x + e * y + ty)
    middle = (slice(12, -12), slice(14, -14))
    assert error(got[middle], expected[middle]) < 5e-3
    swapped = wave(a * x + d * y + tx, b * x + e * y + ty)
    assert error(got[middle], swapped[middle]) > 0.1


def test_constant_images_stay_constant():
    image = torch.full((4, 1, 14, 19), 0.7, dtype=F64)
    got = ada.composite_geometry(image, random_maps(4, 14, 19, 1.0))
    assert error(got, image) < 1e-11


# --- color, filter, noise, cutout ---------------------------------------------------------------


def test_color_of_three_channels():
    draw = drawer(1, F64)
    image, matrices = draw(3, 3, 4, 5), draw(3, 3, 4)
    got = ada.color(image, matrices)
    for b, c, y, x in itertools.product(range(3), range(3), range(4), range(5)):
        value = matrices[b, c, 3] + sum(matrices[b, c, k] * image[b, k, y, x] for k in range(3))
        assert abs(got[b, c, y, x] - value) < 1e-13


def test_color_of_one_channel():
    draw = drawer(2, F64)
    image, matrices = draw(4, 1, 3, 6), draw(4, 1, 2)
    expected = torch.stack([matrices[b, 0, 0] * image[b] + matrices[b, 0, 1] for b in range(4)])
    assert error(ada.color(image, matrices), expected) < 1e-14


def test_color_of_some_channels():
    draw = drawer(3, F64)
    image, matrices = draw(2, 5, 4, 3), draw(2, 3, 4)
    got = ada.color(image, matrices, (0, 2, 3))
    assert torch.equal(got[:, [0, 2, 3]], ada.color(image[:, [0, 2, 3]], matrices))
    assert torch.equal(got[:, [1, 4]], image[:, [1, 4]])
    got = ada.color(image, draw(2, 1, 2), (4,))
    assert torch.equal(got[:, :4], image[:, :4])
    assert error(got[:, 4], image[:, 4]) > 0.1


@pytest.mark.parametrize("size", [(3, 30, 26), (2, 22, 21), (1, 9, 40), (2, 1, 2)], ids=size_name)
def test_image_filter_by_the_formula(size):
    _, height, width = size
    image, gains = images(2, *size), drawer(4, F64)(2, 4).exp()
    taps = gains @ torch.tensor(ada.filter_bank(), dtype=F64)

    def matrix(taps, size):
        """Of filtering along an axis that is reflected at its ends."""
        result = torch.zeros(size, size, dtype=F64)
        for i, k in itertools.product(range(size), range(43)):
            j = i + k - 21
            while not 0 <= j < size and size > 1:
                j = -j if j < 0 else 2 * (size - 1) - j
            result[i, j if size > 1 else 0] += taps[k]
        return result

    got = ada.image_filter(image, gains)
    for b in range(2):
        expected = matrix(taps[b], height) @ image[b] @ matrix(taps[b], width).T
        assert error(got[b], expected) < 1e-13
    assert error(got[0], ada.image_filter(image, gains.flip(0))[0]) > 1e-2


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=dtype_name)
def test_gains_of_one_leave_the_image_as_it_is(dtype):
    image = images(3, 2, 30, 25).to(dtype)
    assert torch.equal(ada.image_filter(image, torch.ones(3, 4, dtype=dtype)), image)


def test_noise():
    draw = drawer(5, F64)
    image, sigma, normals = (
        draw(3, 2, 4, 5),
        torch.tensor([0.0, 0.5, 2.0], dtype=F64),
        draw(3, 2, 4, 5),
    )
    got = ada.noise(image, sigma, normals)
    for b in range(3):
        assert torch.equal(got[b], image[b] + sigma[b] * normals[b])


def test_cutout_by_hand():
    # Pixel centers of columns: 1/12, 3/12, 5/12, ...; of rows: 1/8, 3/8, 5/8, 7/8.
    image = torch.ones(5, 2, 4, 6, dtype=F64)
    box = torch.tensor(
        [
            [0.5, 0.5, 0.5],  # columns at 3/12 and 9/12 lie on its border
            [0.0, 1.0, 0.5],  # hangs over a corner
            [0.5, 0.5, 0.0],  # nothing
            [0.5, 0.5, 2.0],  # everything
            [0.3, 0.1, 0.3],
        ],
        dtype=F64,
    )
    expected = [
        ["111111", "110011", "110011", "111111"],
        ["111111", "111111", "111111", "011111"],
        ["111111"] * 4,
        ["000000"] * 4,
        ["100111", "111111", "111111", "111111"],
    ]
    rows = torch.tensor([[[int(c) for c in row] for row in sample] for sample in expected])
    got = ada.cutout(image, box)
    assert torch.equal(got, rows[:, None].expand(-1, 2, -1, -1).to(F64))


def test_cutout_removes_what_is_not_finite():
    image = torch.full((1, 1, 4, 4), math.inf)
    assert torch.equal(ada.cutout(image, torch.tensor([[0.5, 0.5, 2.0]])), torch.zeros(1, 1, 4, 4))


# --- the pipeline --------------------------------------------------------------------------------


def pipeline(size, batch=3, p=1.0, seed=0):
    """What `augment` is given after the image."""
    channels, height, width = size
    draw = drawer(seed, F64)
    return {
        "maps": random_maps(batch, height, width, p, seed),
        "color": draw(batch, 3, 4) if channels == 3 else draw(batch, 1, 2),
        "gains": draw(batch, 4).exp(),
        "sigma": draw(batch).abs(),
        "normals": draw(batch, *size),
        "box": torch.rand(batch, 3, dtype=F64, generator=torch.Generator().manual_seed(seed)),
    }


def test_augment_is_its_steps_in_order():
    image, given = images(3, 3, 14, 17), pipeline((3, 14, 17))
    expected = ada.geometry(image, given["maps"])
    expected = ada.color(expected, given["color"])
    expected = ada.image_filter(expected, given["gains"])
    expected = ada.noise(expected, given["sigma"], given["normals"])
    expected = ada.cutout(expected, given["box"])
    assert torch.equal(ada.augment(image, **given), expected)
    margins = (2, 3, 4, 5)
    some = ada.augment(image, given["maps"], None, None, None, None, None, margins)
    assert torch.equal(some, ada.geometry(image, given["maps"], margins))
    nothing = ada.augment(image, None, None, None, None, None, None)
    assert torch.equal(nothing, image)
    five = images(3, 5, 14, 17)
    given = {"maps": None, "gains": None, "sigma": None, "normals": None, "box": None} | {
        "color": given["color"],
        "color_channels": (4, 1, 2),
    }
    assert torch.equal(ada.augment(five, **given), ada.color(five, given["color"], (4, 1, 2)))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_dtypes(dtype):
    image, given = images(3, 3, 16, 16), pipeline((3, 16, 16))
    expected = ada.augment(image.to(dtype).to(F64), **given)
    got = ada.augment(image.to(dtype), **given)
    assert got.dtype == dtype
    # Positions are float32, too: their error times the steepness of white noise, filtered.
    assert_near(got, expected, factor=20 if dtype == torch.float32 else 1)
    maps = given["maps"]
    expected = ada.composite_geometry(image.to(dtype).to(F64), maps)
    assert_near(ada.composite_geometry(image.to(dtype), maps), expected)


def test_autocast_rounds_nothing():
    image, given = images(3, 3, 16, 16).float(), pipeline((3, 16, 16))
    expected = ada.augment(image, **given)
    composite = ada.composite_geometry(image, given["maps"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ada.augment(image, **given), expected)
        assert torch.equal(ada.composite_geometry(image, given["maps"]), composite)


def test_memory_layouts():
    image, given = images(4, 3, 16, 12).float(), pipeline((3, 16, 12), batch=4)
    expected = ada.augment(image, **given)
    strange = {
        "channels_last": image.contiguous(memory_format=torch.channels_last),
        "transposed": image.mT.contiguous().mT,
        "slice": images(8, 3, 16, 12).float()[::2].copy_(image),
    }
    for name, view in strange.items():
        assert error(ada.augment(view, **given), expected) < 1e-5, name


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(batch):
    image, given = images(batch, 3, 16, 12), pipeline((3, 16, 12), batch=batch)
    assert ada.augment(image, **given).shape == image.shape
    assert ada.composite_geometry(image, given["maps"]).shape == image.shape
    assert ada.geometry_margins(given["maps"], 16, 12).shape == (4,)
    assert ada.required_margins(given["maps"], 16, 12).shape == (batch, 4)


def test_margins_are_computed_without_reading_the_maps():
    maps = random_maps(2, 16, 12, 1.0).to("meta")  # a device without values
    assert ada.geometry_margins(maps, 16, 12).shape == (4,)
    assert ada.required_margins(maps, 16, 12).shape == (2, 4)


# --- derivatives ---------------------------------------------------------------------------------


def linear_parts(size, batch=2):
    """Each step as a linear function of the image."""
    given = pipeline(size, batch, seed=7)
    maps, matrices = given["maps"], given["color"].clone()
    matrices[:, :, -1] = 0
    rest = {"gains": given["gains"], "sigma": None, "normals": None, "box": given["box"]}
    return {
        "geometry": lambda x: ada.geometry(x, maps),
        "geometry_few_margins": lambda x: ada.geometry(x, maps, (1, 0, 2, 1)),
        "composite": lambda x: ada.composite_geometry(x, maps),
        "composite_few_margins": lambda x: ada.composite_geometry(x, maps, (1, 0, 2, 1)),
        "color": lambda x: ada.color(x, matrices),
        "filter": lambda x: ada.image_filter(x, given["gains"]),
        "cutout": lambda x: ada.cutout(x, given["box"]),
        "augment": lambda x: ada.augment(x, maps, matrices, **rest),
    }


PARTS = list(linear_parts((1, 2, 2)))


def skip_where_once_differentiable(part):
    """The published pipeline takes grid_sample, which torch 2.11 differentiates once."""
    if part not in ("geometry", "geometry_few_margins", "augment"):
        return
    x, above = images(1, 1, 2, 2).requires_grad_(), images(1, 1, 1, 1, seed=2).requires_grad_()
    y = F.grid_sample(x, torch.zeros(1, 1, 1, 2, dtype=F64), align_corners=False)
    (grad,) = torch.autograd.grad(y, x, above, create_graph=True)
    try:
        grad.sum().backward()
    except RuntimeError as error:
        pytest.skip(f"torch {torch.__version__}: {error}")


@pytest.mark.parametrize("part", PARTS)
def test_steps_are_linear(part):
    function = linear_parts((3, 11, 8))[part]
    x, y = images(2, 3, 11, 8, seed=1), images(2, 3, 11, 8, seed=2)
    assert error(function(2 * x - 3 * y), 2 * function(x) - 3 * function(y)) < 1e-12


@pytest.mark.parametrize("part", PARTS)
def test_gradients_are_transposes_at_every_order(part):
    """Columns from images with a single 1, rows from gradients; and the derivatives of those."""
    skip_where_once_differentiable(part)
    function, shape = linear_parts((1, 4, 5))[part], (2, 1, 4, 5)
    ones = torch.eye(40, dtype=F64).view(40, *shape)
    matrix = torch.stack([function(one).flatten() for one in ones], 1)
    x = images(*shape).requires_grad_()
    y = function(x)
    weights = images(*shape, seed=3).requires_grad_()
    rows = [torch.autograd.grad(y, x, one, retain_graph=True)[0].flatten() for one in ones]
    assert error(torch.stack(rows), matrix) < 1e-13
    # The gradient is linear in what comes from above, and its gradient is the function.
    (grad,) = torch.autograd.grad(y, x, weights, create_graph=True)
    other = images(*shape, seed=4)
    (second,) = torch.autograd.grad(grad, weights, other)
    assert error(second, function(other)) < 1e-13


@pytest.mark.parametrize("part", ["geometry", "composite", "augment"])
def test_gradcheck(part):
    skip_where_once_differentiable(part)
    function = linear_parts((1, 4, 5))[part]
    x = images(2, 1, 4, 5).requires_grad_()
    assert torch.autograd.gradcheck(function, x)
    assert torch.autograd.gradgradcheck(function, x)


def test_all_but_the_image_is_constant():
    image, given = images(2, 3, 8, 9), pipeline((3, 8, 9), batch=2)
    given = {name: tensor.requires_grad_() for name, tensor in given.items()}
    assert not ada.augment(image, **given).requires_grad
    assert not ada.composite_geometry(image, given["maps"]).requires_grad


# --- random maps ---------------------------------------------------------------------------------


def composed_by_hand(batch, height, width, p, seed):
    """Forward matrices, sample by sample, and the inverse of their product."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, normal=False):
        function = torch.randn if normal else torch.rand
        return function(batch, *shape, generator=generator, dtype=F64).tolist()

    rotate_p = 1 - math.sqrt(1 - p)
    drawn = [(draw(), draw()), (draw(), draw()), (draw(2), draw(1)), (draw(normal=True), draw())]
    drawn += [(draw(), draw()), (draw(normal=True), draw()), (draw(), draw())]
    drawn += [(draw(2, normal=True), draw(1))]
    flips, quarters, whole, scales, turns, stretches, later_turns, fractions = drawn

    def matrix(a, b, c, d, e, f):
        return torch.tensor([[a, b, c], [d, e, f], [0, 0, 1]], dtype=F64)

    def turned_back(angle):  # the inverse is by +angle
        return matrix(math.cos(angle), math.sin(angle), 0, -math.sin(angle), math.cos(angle), 0)

    maps = []
    for b in range(batch):
        steps = []
        if flips[1][b] < p and flips[0][b] >= 0.5:
            steps.append(matrix(-1, 0, 0, 0, 1, 0))
        if quarters[1][b] < p:
            steps.append(turned_back(math.pi / 2 * math.floor(4 * quarters[0][b])))
        if whole[1][b][0] < p:
            tx, ty = ((2 * t - 1) * 0.125 for t in whole[0][b])
            steps.append(matrix(1, 0, round(tx * width), 0, 1, round(ty * height)))
        if scales[1][b] < p:
            s = 2 ** (0.2 * scales[0][b])
            steps.append(matrix(s, 0, 0, 0, s, 0))
        if turns[1][b] < rotate_p:
            steps.append(turned_back((2 * turns[0][b] - 1) * math.pi))
        if stretches[1][b] < p:
            s = 2 ** (0.2 * stretches[0][b])
            steps.append(matrix(s, 0, 0, 0, 1 / s, 0))
        if later_turns[1][b] < rotate_p:
            steps.append(turned_back((2 * later_turns[0][b] - 1) * math.pi))
        if fractions[1][b][0] < p:
            tx, ty = (0.125 * t for t in fractions[0][b])
            steps.append(matrix(1, 0, tx * width, 0, 1, ty * height))
        forward = torch.eye(3, dtype=F64)
        for step in steps:
            forward = step @ forward
        maps.append(torch.linalg.inv(forward)[:2])
    return torch.stack(maps)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_random_maps_are_inverses_of_what_is_done_in_order(p):
    got = random_maps(64, 24, 40, p, seed=11)
    assert got.shape == (64, 2, 3)
    assert got.dtype == F64
    assert error(got, composed_by_hand(64, 24, 40, p, seed=11)) < 1e-12
    if p == 0:
        assert torch.equal(got, IDENTITY.expand_as(got))


def test_random_maps_of_flips_and_turns_are_exact():
    maps = random_maps(4000, 16, 16, 0.2, seed=1)
    whole = ((maps == maps.round()).flatten(1)).all(1)
    assert 0.35 < whole.double().mean() < 0.5
    kinds = {tuple(m) for m in maps[whole][:, :, :2].flatten(1).tolist()}
    assert len(kinds) == 8
