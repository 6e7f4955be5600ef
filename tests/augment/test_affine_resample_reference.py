"""reference.affine_resample against the passes of ``_ada``, its own matrix, and grid_sample."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.tensors import drawer
from test_affine_resample import MAPS, maps_of

from benchmarks.published import stylegan2_ada as _ada
from gankernels import reference

SIZES = [(12, 12), (9, 14), (33, 27), (5, 7), (2, 9), (1, 6), (7, 1), (1, 1)]
MODERATE = [name for name in MAPS if name not in ("beyond_a_footprint", "far_shift", "steep_axes")]


def random_maps(batch, size, p, seed=1):
    return _ada.random_maps(batch, *size, p, torch.Generator().manual_seed(seed))


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)


def ideal(x, maps):
    """Of the multi-pass pipeline: each sample with margins of its own that suffice."""
    margins = _ada.required_margins(maps, *x.shape[2:])
    passes = [_ada.geometry(x[k : k + 1], maps[k : k + 1], margins[k]) for k in range(len(x))]
    return torch.cat(passes)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("p", [0.15, 1.0])
def test_both_modes_equal_the_passes(size, p):
    x = drawer(1, torch.float64)(6, 2, *size)
    maps = random_maps(6, size, p)
    near(reference.affine_resample(x, maps, lossless_blits=False), ideal(x, maps))
    margins = reference.batch_margins(maps, *size)
    near(reference.affine_resample(x, maps, margins=margins), _ada.geometry(x, maps))


@pytest.mark.parametrize("name", MODERATE)
def test_maps_of_every_kind_equal_the_passes(name):
    x = drawer(2, torch.float64)(2, 1, 9, 14)
    maps = maps_of(name)
    expected = ideal(x, maps)
    near(reference.affine_resample(x, maps, lossless_blits=False), expected)
    found = reference.affine_resample(x, maps)
    copies = {"identity": x[0], "flip": x[0].flip(2)}
    near(found[1:], expected[1:])
    near(found[0], copies.get(name, expected[0]))
    assert name not in copies or torch.equal(found[0], copies[name])


@pytest.mark.parametrize("margins", [(0, 0, 0, 0), (3, 0, 1, 2), (13, 13, 8, 8)], ids=str)
def test_given_margins_equal_the_passes(margins):
    x = drawer(3, torch.float64)(3, 2, 9, 14)
    maps = random_maps(3, (9, 14), 1.0)
    found = reference.affine_resample(x, maps, margins=torch.tensor(margins))
    near(found, _ada.geometry(x, maps, margins))


@pytest.mark.parametrize("mode", ["ideal", "filtered", "margins", "bilinear", "nearest"])
@pytest.mark.parametrize("name", ["identity", "flip", "stretched", "turned", "shrunk", "singular"])
def test_it_and_its_transpose_are_one_matrix(name, mode):
    """The columns are what the operator makes of single pixels; the transpose is that of them."""
    size, count = (4, 5), 20
    maps = maps_of(name, batch=1)
    options = {
        "ideal": {},
        "filtered": {"lossless_blits": False},
        "margins": {"margins": reference.batch_margins(maps, *size)},
        "bilinear": {"filter": "bilinear", "padding_mode": "zeros"},
        "nearest": {"filter": "nearest", "padding_mode": "border"},
    }[mode]
    pixels = torch.eye(count, dtype=torch.float64).view(count, 1, *size)
    many = maps.expand(count, 2, 3)
    columns = reference.affine_resample(pixels, many, **options).flatten(1)
    x = drawer(4, torch.float64)(3, 2, *size)
    found = reference.affine_resample(x, maps.expand(3, 2, 3), **options)
    near(found.flatten(2), x.flatten(2) @ columns)
    found = reference.affine_resample_transpose(x, maps.expand(3, 2, 3), input_size=size, **options)
    near(found.flatten(2), x.flatten(2) @ columns.T)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_batch_margins(size):
    """Those of the passes."""
    for p in (0.15, 0.6, 1.0):
        for seed in range(20):
            maps = random_maps(1 + seed % 4, size, p, seed)
            found = reference.batch_margins(maps, *size)
            assert found.dtype == torch.int64
            assert torch.equal(found, _ada.geometry_margins(maps, *size))


def test_batch_margins_of_no_sample():
    found = reference.batch_margins(torch.empty(0, 2, 3, dtype=torch.float64), 5, 4)
    assert found.dtype == torch.int64
    assert found.tolist() == [0, 0, 0, 0]
    x = torch.empty(0, 3, 5, 4)
    maps = torch.empty(0, 2, 3)
    assert reference.affine_resample(x, maps, margins=found).shape == x.shape


# --- plain filters -------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("filter", ["bilinear", "nearest"])
@pytest.mark.parametrize("name", MAPS)
def test_plain_filters_equal_grid_sample(name, filter, padding_mode):
    """Points made by hand: centered pixels, then shares of the distance of outermost centers."""
    height, width = 9, 14
    x = drawer(5, torch.float64)(2, 2, height, width)
    maps = maps_of(name)
    maps[:, :, 2] += torch.tensor([1e-3, 2e-3])  # no halves, which one or the other rounds
    rows = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    columns = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    at = [m[:, None, None] for m in maps.flatten(1).unbind(1)]
    u = (at[0] * columns + at[1] * rows + at[2]) / ((width - 1) / 2)
    v = (at[3] * columns + at[4] * rows + at[5]) / ((height - 1) / 2)
    grid = torch.stack((u, v), 3)
    expected = F.grid_sample(x, grid, filter, padding_mode, align_corners=True)
    found = reference.affine_resample(x, maps, filter=filter, padding_mode=padding_mode)
    near(found, expected)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("filter", ["sym6", "bilinear", "nearest"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_maps_that_are_not_finite_give_nan(value, filter, transpose):
    """All of the sample, as the kernels do, and nothing of the other."""
    x = drawer(6, torch.float64)(2, 2, 6, 5)
    for place in ((0, 0), (0, 2), (1, 1)):
        maps = maps_of("turned")
        maps[0][place] = value
        if transpose:
            found = reference.affine_resample_transpose(x, maps, input_size=(6, 5), filter=filter)
        else:
            found = reference.affine_resample(x, maps, filter=filter)
        assert found[0].isnan().all(), place
        assert found[1].isfinite().all()
