"""affine_resample and its transpose: values against float64, on every backend, map and layout.

What the reference computes is checked in test_affine_resample_reference.py.
"""

import math

import pytest
import torch
from support.backends import EMULATED, current_backend, emulator, instruction_sets
from support.tensors import DTYPES, assert_near, drawer, dtype_name

from benchmarks.published import stylegan2_ada as _ada
from gankernels import maps_from_theta, ops, reference


def similar(angle=0.0, scale=1.0, x=0.0, y=0.0, stretch=1.0):
    """Rotation and scale in one, of output to input."""
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return [[c * stretch, -s, x], [s * stretch, c / stretch, y]]


MAPS = {
    "identity": similar(),
    "flip": [[-1, 0, 0], [0, 1, 0]],
    "quarter_turn": [[0, -1, 0], [1, 0, 0]],
    "turn_and_flip": [[0, 1, 2], [1, 0, -3]],
    "far_shift": similar(x=31, y=-70),
    "half_shift": similar(x=0.5, y=-0.25),
    "stretched": similar(scale=1.3, x=0.3, y=1.7, stretch=0.8),
    "turned_and_stretched": [[0, 1.2, 0.3], [-0.8, 0, 0.1]],
    "slightly_turned": similar(0.02, 1.01),
    "turned": similar(0.7, 0.9, 2.2, -1.1, 1.2),
    "sheared": [[1, 0.4, 0.1], [-0.2, 0.8, 0]],
    "shrunk": similar(0.3, 3.0),
    "grown": similar(-2.5, 0.3, 20.2, -31.1),
    "beyond_a_footprint": similar(0.3, 40.0),
    "steep_axes": similar(0, 1, stretch=20),
    "singular": [[1, 1, 0], [1, 1, 0.5]],
    "a_point": [[0, 0, 0.3], [0, 0, 0.2]],
}
FILTERS = ("sym6", "bilinear", "nearest")
PADDINGS = ("reflection", "zeros", "border")
SIZES = [(17, 23), (1, 1), (1, 7), (5, 3), (2, 2), (33, 70)]
LAYOUTS = {
    "contiguous": lambda draw: draw(2, 3, 9, 14),
    "channels_last": lambda draw: draw(2, 3, 9, 14).contiguous(memory_format=torch.channels_last),
    "crop": lambda draw: draw(2, 4, 13, 20)[:, 1:, 2:11, 3:17],
    "every_second": lambda draw: draw(2, 3, 18, 28)[:, :, ::2, ::2],
    "transposed": lambda draw: draw(2, 3, 14, 9).transpose(2, 3),
    "expanded": lambda draw: draw(1, 3, 9, 14).expand(2, 3, 9, 14),
}


def maps_of(name, device="cpu", batch=2):
    """The map, and behind it one that takes the general path: a batch may mix."""
    rows = [MAPS[name], MAPS["turned"]]
    return torch.tensor(rows, dtype=torch.float64, device=device)[:batch]


def check(x, maps, factor=1.0, **options):
    """The operator and its transpose, as far from float64 as roundings are.

    Which pixel is nearest is decided by the positions of the image's dtype.
    """
    wide = (lambda t: t) if options.get("filter") == "nearest" else torch.Tensor.double
    ideal = options.get("mode", "ideal") == "ideal"
    wanted = {k: v for k, v in options.items() if k != "mode"}
    if not ideal:
        wanted["margins"] = options.get("margins")
        if wanted["margins"] is None:
            wanted["margins"] = reference.batch_margins(maps, *x.shape[2:])
    expected = reference.affine_resample(wide(x), maps, **wanted)
    found = ops.affine_resample(x, maps, **options)
    assert found.dtype == x.dtype
    assert_near(found, expected, factor=factor, what="affine_resample")

    given = drawer(7, x.dtype, x.device)(*expected.shape)
    options.pop("output_size", None)
    wanted.pop("output_size", None)
    size = tuple(x.shape[2:])
    expected = reference.affine_resample_transpose(wide(given), maps, input_size=size, **wanted)
    found = ops.affine_resample_transpose(given, maps, input_size=size, **options)
    assert_near(found, expected, factor=factor, what="affine_resample_transpose")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_name)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_values(backend, name, size, dtype):
    large = size in (SIZES[0], SIZES[-1]) and (dtype == torch.float64 or size == SIZES[-1])
    if current_backend() in EMULATED and large and name not in ("flip", "turned"):
        pytest.skip("takes the emulator long")
    x = drawer(1, dtype, backend)(2, 3, *size)
    maps = maps_of(name, backend)
    for lossless in (True, False):
        check(x, maps, lossless_blits=lossless)
    check(x, maps, mode="stylegan2-ada")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_dtypes(backend, layout, dtype):
    x = LAYOUTS[layout](drawer(2, dtype, backend))
    for name in ("quarter_turn", "stretched", "turned"):
        maps = maps_of(name, backend)
        check(x, maps)
        found = ops.affine_resample(x, maps)
        last = layout == "channels_last"
        assert found.is_contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
def test_channels(backend, channels):
    x = drawer(3, torch.float32, backend)(2, channels, 11, 8)
    for name in ("flip", "turned_and_stretched", "turned"):
        check(x, maps_of(name, backend))


@pytest.mark.parametrize("padding_mode", ["reflection", "zeros", "border"])
@pytest.mark.parametrize("filter", ["bilinear", "nearest"])
@pytest.mark.parametrize("name", MAPS)
def test_plain_filters(backend, name, filter, padding_mode):
    x = drawer(4, torch.float64, backend)(2, 3, 9, 13)
    check(x, maps_of(name, backend), filter=filter, padding_mode=padding_mode)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("filter", ["bilinear", "nearest"])
def test_plain_filters_of_many_tiles(backend, filter, layout, dtype):
    """Tiles that see the border, far beyond it, and so much that they are not gathered first."""
    x = drawer(9, dtype, backend)(2, 3, 70, 131).contiguous(memory_format=layout)
    for name in ("turned", "shrunk", "far_shift", "beyond_a_footprint"):
        for padding_mode in PADDINGS:
            check(x, maps_of(name, backend), filter=filter, padding_mode=padding_mode)


@pytest.mark.parametrize("width", [3, 4, 5, 6])
def test_copies_of_padded_images(backend, width):
    """Whole pixels, shifted and flipped so that pixels and padding meet within every vector."""
    x = drawer(10, torch.float32, backend)(1, 3, 2, width)
    for shift in range(-width - 4, width + 5):
        for flip in (1, -1):
            maps = torch.tensor([[[flip, 0, shift], [0, 1, 0]]], dtype=torch.float64).to(backend)
            for padding_mode in PADDINGS:
                check(x, maps, filter="nearest", padding_mode=padding_mode)


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (80, 12)], ids=str)
@pytest.mark.parametrize("filter", ["sym6", "bilinear", "nearest"])
def test_output_size(backend, filter, size):
    x = drawer(5, torch.float64, backend)(2, 3, 17, 21)
    for name in ("identity", "quarter_turn", "stretched", "turned"):
        check(x, maps_of(name, backend), filter=filter, output_size=size)


def test_many_tiles(backend, threads):
    """More than a tile along both axes, and the same bits whatever the number of threads."""
    x = drawer(6, torch.float32, backend)(2, 4, 150, 131)
    maps = maps_of("turned", backend)
    maps[1] = torch.tensor(MAPS["stretched"])
    check(x, maps)
    results = []
    for n in (1, 2):
        threads(n)
        results.append([ops.affine_resample(x, maps), ops.affine_resample_transpose(x, maps)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("size", [(15, 31), (16, 32), (17, 33), (31, 65), (49, 47)], ids=str)
def test_sizes_around_tiles(backend, size):
    """The CUDA kernels' tiles have 16 x 16 pixels, or 32 x 16; in double the transpose's do not."""
    for dtype in (torch.float32, torch.float64):
        x = drawer(7, dtype, backend)(2, 2, *size)
        for name in ("flip", "turned", "stretched"):
            check(x, maps_of(name, backend))


def test_instruction_sets(backend, isa):
    x = drawer(8, torch.float32, backend)(2, 3, 40, 21)
    for name in instruction_sets():
        isa(name)
        for kind in ("stretched", "turned", "grown"):
            check(x, maps_of(kind, backend))


@pytest.mark.parametrize("size", [64, 256])
def test_float32_is_exact_enough(cpu_backend, size):
    """Below 1e-6 of the image's range: of the multi-pass pipeline in float64, and its gradient."""
    count = 4 if size == 64 else 2
    maps = _ada.random_maps(count, size, size, 1.0, torch.Generator().manual_seed(5))
    draw = torch.Generator().manual_seed(0)
    image, given = (2 * torch.rand(2, count, 3, size, size, generator=draw) - 1).unbind()
    x = image.double().requires_grad_()
    margins = _ada.required_margins(maps, size, size)
    one = [slice(k, k + 1) for k in range(count)]
    expected = torch.cat([_ada.geometry(x[k], maps[k], margins[k.start]) for k in one])
    (transposed,) = torch.autograd.grad(expected, x, given.double())
    found = ops.affine_resample(image, maps)
    assert (found - expected).abs().max() <= 1e-6 * 2
    found = ops.affine_resample_transpose(given, maps)
    assert (found - transposed).abs().max() <= 1e-6 * 2


def test_positions_are_exact(cpu_backend):
    """At any size, and not rounded to a float, which is why maps are float64."""
    size = 1024
    x = 2 * torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(0)) - 1
    maps = torch.tensor([similar(0.6, 0.93, 0.13 * size, -0.07 * size, 1.1)], dtype=torch.float64)
    expected = ops.affine_resample(x.double(), maps)
    assert (ops.affine_resample(x, maps) - expected).abs().max().item() <= 1e-6 * 2
    rounded = ops.affine_resample(x.double(), maps.float())
    assert (rounded - expected).abs().max().item() > 1e-6 * 2


@pytest.mark.parametrize("backend", ["emu"], indirect=True)
@pytest.mark.parametrize("name", ["flip", "stretched", "turned", "grown", "shrunk", "singular"])
def test_no_order_of_threads_changes_a_bit(backend, name):
    """Several tiles, and more channels than one group of planes."""
    panel = emulator()
    x = drawer(21)(2, 4, 12, 37)
    maps = maps_of(name)
    given = {**parameters(x), "color_channels": (0, 1, 2)}
    results = []
    for order, seed in (("ascending", 0), ("random", 1), ("random", 2), ("random", 3)):
        panel.set_order(getattr(panel.Order, order), seed)
        image = x.clone().requires_grad_()
        y = ops.affine_augment(image, maps, **given)
        results.append((y.detach(), *torch.autograd.grad(y, image, x)))
        results[-1] += (ops.affine_resample_transpose(x, maps, mode="stylegan2-ada"),)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# --- what is exact -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_blits_are_copies(backend, dtype):
    x = drawer(9, dtype, backend)(2, 3, 6, 6)
    wanted = {
        "identity": x,
        "flip": x.flip(3),
        "quarter_turn": torch.rot90(x, 1, (2, 3)),
    }
    for name, expected in wanted.items():
        maps = torch.tensor([MAPS[name]] * 2, dtype=torch.float64, device=backend)
        assert torch.equal(ops.affine_resample(x, maps), expected)
        assert torch.equal(ops.affine_resample_transpose(expected, maps), x)
        filtered = ops.affine_resample(x, maps, lossless_blits=False)
        if name == "identity":
            assert_near(filtered, x.double(), factor=10)  # to the digits of the filter
        else:  # the filter is not symmetric
            assert (filtered - expected).abs().max() > 0.01


def test_a_quarter_turn_of_an_image_that_is_not_square(backend):
    """Source positions are halves where the sides differ by an odd number: those are filtered."""
    maps = torch.tensor([MAPS["quarter_turn"]], dtype=torch.float64, device=backend)
    for size, copied in (((4, 8), True), ((4, 7), False)):
        x = drawer(10, torch.float64, backend)(1, 1, *size)
        found = ops.affine_resample(x, maps)
        assert torch.isin(found, x).all() == copied


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_samples_do_not_depend_on_their_batch(backend, dtype):
    x = drawer(11, dtype, backend)(4, 3, 12, 15)
    names = ("turned", "stretched", "grown", "flip")
    maps = torch.tensor([MAPS[n] for n in names], dtype=torch.float64, device=backend)
    found = ops.affine_resample(x, maps)
    for k in range(4):
        assert torch.equal(ops.affine_resample(x[k : k + 1], maps[k : k + 1]), found[k : k + 1])
    # As published, margins are the batch's: the first sample alone sees zeros beyond its own.
    joined = ops.affine_resample(x[1:], maps[1:], mode="stylegan2-ada")
    alone = ops.affine_resample(x[1:2], maps[1:2], mode="stylegan2-ada")
    assert not torch.equal(joined[:1], alone)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_maps_that_are_not_finite_give_nan(backend, value):
    x = drawer(12, torch.float32, backend)(2, 3, 6, 5)
    maps = maps_of("turned", backend)
    maps[0, 0, 2] = value
    for function in (ops.affine_resample, ops.affine_resample_transpose):
        for filter in ("sym6", "bilinear", "nearest"):
            found = function(x, maps, filter=filter)
            assert found[0].isnan().all()
            assert found[1].isfinite().all()


def test_empty_batches(backend):
    x = torch.empty(0, 3, 5, 4, device=backend)
    maps = torch.empty(0, 2, 3, device=backend)
    assert ops.affine_resample(x, maps).shape == (0, 3, 5, 4)
    assert ops.affine_resample_transpose(x, maps, input_size=(2, 3)).shape == (0, 3, 2, 3)


@pytest.mark.parametrize("mode", ["ideal", "stylegan2-ada"])
@pytest.mark.parametrize("name", ["flip", "stretched", "turned", "shrunk", "singular"])
def test_the_transpose_is_the_matrix_transposed(backend, name, mode):
    """Column by column."""
    height, width = 4, 5
    maps = maps_of(name, backend, 1)
    count = height * width
    columns = torch.eye(count, dtype=torch.float64, device=backend).view(count, 1, height, width)
    many = maps.expand(count, 2, 3)
    forward = ops.affine_resample(columns, many, mode=mode).flatten(1)
    backward = ops.affine_resample_transpose(columns, many, mode=mode).flatten(1)
    torch.testing.assert_close(forward.T, backward, rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [0.15, 1.0])
@pytest.mark.parametrize("size", [(20, 20), (24, 40), (33, 27), (5, 7)], ids=str)
def test_it_equals_the_published_pipeline(cpu_backend, size, p):
    """Pad, up-sample, grid_sample, down-sample; see also test_ada_published.py."""
    x = drawer(20, torch.float64)(4, 2, *size)
    maps = _ada.random_maps(4, *size, p, torch.Generator().manual_seed(1))
    expected = _ada.geometry(x, maps)
    found = ops.affine_resample(x, maps, mode="stylegan2-ada")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [(20, 20), (24, 40), (33, 27)], ids=str)
def test_the_ideal_mode_is_the_published_one_where_margins_suffice(cpu_backend, size):
    """And nowhere else: of some of the samples, each way."""
    x = drawer(20, torch.float64)(12, 2, *size)
    maps = _ada.random_maps(12, *size, 0.6, torch.Generator().manual_seed(1))
    published = ops.affine_resample(x, maps, mode="stylegan2-ada")
    ideal = ops.affine_resample(x, maps, lossless_blits=False)
    margins = reference.batch_margins(maps, *size)
    enough = (_ada.required_margins(maps, *size) <= margins).all(1)
    assert enough.any()
    assert not enough.all()
    torch.testing.assert_close(ideal[enough], published[enough], rtol=0, atol=1e-10)
    off = (ideal - published).abs().flatten(1).amax(1)
    assert off[~enough].min() > 1e-9


# --- grid_sample ---------------------------------------------------------------------------------


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("filter", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.filterwarnings("ignore:Since version 1.3.0:UserWarning")
def test_it_replaces_affine_grid_and_grid_sample(backend, padding_mode, filter, align_corners):
    if padding_mode == "reflection" and not align_corners:
        pytest.skip("torch reflects about the image's edges there")
    theta = drawer(14, torch.float64, backend)(3, 2, 3)
    of_one = [(1, 8), (7, 1), (1, 1)]  # sides of a single pixel, of the image, the result, or both
    sizes = [((9, 14), size) for size in ((9, 14), (12, 5), *of_one)]
    sizes += [(size, other) for size in of_one for other in (size, (3, 4), (1, 2))]
    for input_size, size in sizes:
        x = drawer(13, torch.float64, backend)(3, 2, *input_size)
        grid = torch.nn.functional.affine_grid(theta, (3, 2, *size), align_corners=align_corners)
        expected = torch.nn.functional.grid_sample(
            x, grid, filter, padding_mode, align_corners=align_corners
        )
        maps = maps_from_theta(theta, input_size, align_corners, output_size=size)
        found = ops.affine_resample(
            x, maps, filter=filter, padding_mode=padding_mode, output_size=size
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


# --- maps that reach far -------------------------------------------------------------------------

FAR = {
    "shift": similar(0.3, 1.1, x=3e9, y=-2e9),
    "whole_shift": similar(x=4e9, y=-(2**40)),
    "one_axis": similar(0.3, 1.1, x=3e9),
    "stretch": [[3e9, 0, 0.2], [0, 1, 0.1]],
    "turned": [[3e9, -2e9, 1e9], [1.5e9, 1e10, 0.2]],
    "about_the_middle": [[1e11, 0, 0], [0, -1e12, 0]],
    "singular": [[5e9, 5e9, 7e9], [5e9, 5e9, 7e9]],
}
FARTHEST = {
    "shift": similar(x=1e30, y=-1e300),
    "largest": [[1.7e308, -1.7e308, 1.7e308], [1.7e308, 1.7e308, -1.7e308]],
}


@pytest.mark.parametrize(
    ("filter", "padding_mode", "mode"),
    [
        ("sym6", "reflection", "ideal"),
        ("sym6", "reflection", "stylegan2-ada"),
        *((f, p, "ideal") for f in FILTERS[1:] for p in PADDINGS),
    ],
)
def test_far_maps_show_what_they_reach(backend, filter, padding_mode, mode):
    """On every backend the reference's pixels, and the transpose of that."""
    rows = [*FAR.values(), *FARTHEST.values(), MAPS["turned"]]
    maps = torch.tensor(rows, dtype=torch.float64, device=backend)
    known = [*range(len(FAR)), -1]  # positions of FARTHEST are rounded to whole images
    for size in ((5, 8), (1, 6)):
        x = drawer(16, torch.float64, backend)(len(maps), 1, *size)
        found = ops.affine_resample(x, maps, filter=filter, padding_mode=padding_mode, mode=mode)
        assert found.isfinite().all()
        margins = reference.batch_margins(maps, *size) if mode != "ideal" else None
        wanted = {"filter": filter, "padding_mode": padding_mode, "margins": margins}
        expected = reference.affine_resample(x, maps, **wanted)
        torch.testing.assert_close(found[known], expected[known], rtol=0, atol=1e-3)
        given = drawer(17, torch.float64, backend)(*x.shape)
        back = ops.affine_resample_transpose(
            given, maps, filter=filter, padding_mode=padding_mode, mode=mode
        )
        one, other = ((a * b).flatten(1).sum(1) for a, b in ((found, given), (x, back)))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("far", [1e6, 1e9])
@pytest.mark.parametrize("filter", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", PADDINGS)
def test_far_shifts_are_those_of_grid_sample(backend, padding_mode, filter, far):
    x = drawer(18, torch.float64, backend)(2, 1, 5, 8)
    theta = drawer(19, torch.float64, backend)(2, 2, 3)
    theta[:, :, 2] = torch.tensor([[far, 0.3], [-far / 3, 2 * far]])
    grid = torch.nn.functional.affine_grid(theta, x.shape, align_corners=True)
    expected = torch.nn.functional.grid_sample(x, grid, filter, padding_mode, align_corners=True)
    maps = maps_from_theta(theta, (5, 8), True)
    found = ops.affine_resample(x, maps, filter=filter, padding_mode=padding_mode)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14 * far + 1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_far_whole_periods_copy(backend, dtype):
    """Reflection repeats every 2 (size - 1) pixels: 2e8 of those away lies the image itself."""
    x = drawer(20, dtype, backend)(1, 3, 6, 9)
    maps = torch.tensor([similar(x=16 * 2e8, y=-10 * 2e8)], dtype=torch.float64, device=backend)
    assert torch.equal(ops.affine_resample(x, maps), x)
    assert torch.equal(ops.affine_resample_transpose(x, maps), x)


@pytest.mark.parametrize("mode", ["ideal", "stylegan2-ada"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [(0, 0), (1, 2)])
def test_maps_that_are_not_finite_give_nan_to_their_own_sample(backend, where, number, mode):
    x = drawer(21, torch.float64, backend)(2, 2, 6, 9)
    maps = torch.tensor([MAPS["turned"]] * 2, dtype=torch.float64, device=backend)
    maps[0][where] = number
    calls = [lambda m, x, maps: m.affine_resample(x, maps)]
    if mode == "ideal":
        calls += [
            lambda m, x, maps: m.affine_resample(x, maps, filter="nearest", padding_mode="zeros"),
            lambda m, x, maps: m.affine_resample_transpose(x, maps, **size_of(m, x)),
        ]
    else:
        margins = reference.batch_margins(maps, 6, 9)
        calls = [lambda m, x, maps: m.affine_resample(x, maps, margins=margins, **mode_of(m))]
    for call in calls:
        for module in (ops, reference):
            found = call(module, x, maps)
            assert found[0].isnan().all()
            assert found[1].isfinite().all()


def size_of(module, x):
    return {"input_size": tuple(x.shape[2:])} if module is reference else {}


def mode_of(module):
    return {"mode": "stylegan2-ada"} if module is ops else {}


# --- with an epilogue ----------------------------------------------------------------------------


def parameters(x, colors=3, dtype=None):
    """Everything that affine_augment takes, for a batch of 2."""
    wide = dtype or (torch.float64 if x.dtype == torch.float64 else torch.float32)
    draw = drawer(15, wide, x.device)
    return {
        "color": draw(2, colors, colors + 1),
        "sigma": draw(2).abs(),
        "seed": torch.tensor([3, -(2**62) - 5], device=x.device),
        "box": torch.tensor([[0.3, 0.8, 0.5], [0.5, 0.5, 0]], device=x.device).double(),
    }


EPILOGUES = {
    "color": ("color",),
    "noise": ("sigma", "seed"),
    "cutout": ("box",),
    "all": ("color", "sigma", "seed", "box"),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("name", [None, "flip", "stretched", "turned"])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_augment(backend, epilogue, name, dtype):
    for shape, channels in (((2, 3, 9, 14), None), ((2, 1, 7, 6), None), ((2, 6, 8, 5), (1, 2, 4))):
        x = drawer(16, dtype, backend)(*shape)
        given = parameters(x, 1 if shape[1] == 1 else 3)
        given = {k: v for k, v in given.items() if k in EPILOGUES[epilogue]}
        maps = None if name is None else maps_of(name, backend)
        wide = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
        selected = channels or tuple(range(shape[1]))
        named = {"color_channels": selected} if "color" in given else {}
        expected = reference.affine_augment(x.double(), maps, **wide, **named)
        found = ops.affine_augment(x, maps, **given, **(named if channels else {}))
        assert found.dtype == dtype
        # The noise is made in float32.
        low = dtype == torch.float64 and "sigma" in given
        assert_near(found, expected, torch.float32 if low else None)
        last = x.contiguous(memory_format=torch.channels_last)
        again = ops.affine_augment(last, maps, **given, **(named if channels else {}))
        assert torch.equal(again, found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("padding_mode", ["reflection", "zeros", "border"])
@pytest.mark.parametrize("filter", ["bilinear", "nearest"])
def test_augment_by_plain_filters(backend, filter, padding_mode, dtype):
    """Color, noise and cutout come after the padding; of a map, and of none."""
    x = drawer(16, dtype, backend)(2, 3, 9, 14)
    given = parameters(x)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    named = {"filter": filter, "padding_mode": padding_mode}
    for name in (None, "flip", "stretched", "turned"):
        maps = None if name is None else maps_of(name, backend)
        expected = reference.affine_augment(
            x.double(), maps, **wide, color_channels=(0, 1, 2), **named
        )
        assert_near(ops.affine_augment(x, maps, **given, **named), expected, None)


def test_the_color_of_one_of_two_channels(backend):
    x = drawer(17, torch.float64, backend)(2, 2, 5, 5)
    color = drawer(18, torch.float64, backend)(2, 1, 2)
    found = ops.affine_augment(x, color=color, color_channels=(1,))
    assert torch.equal(found[:, 0], x[:, 0])
    expected = x[:, 1] * color[:, 0, 0, None, None] + color[:, 0, 1, None, None]
    torch.testing.assert_close(found[:, 1], expected)


def test_nothing_done_is_nothing_changed(backend):
    for dtype in DTYPES:
        x = drawer(19, dtype, backend)(2, 3, 9, 4)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        zero = torch.zeros(2, device=backend, dtype=wide)
        seed = torch.tensor([1, 2], device=backend)
        box = torch.zeros(2, 3, device=backend, dtype=torch.float64)
        maps = torch.tensor([MAPS["identity"]] * 2, device=backend, dtype=torch.float64)
        color = torch.eye(3, 4, device=backend, dtype=wide).repeat(2, 1, 1)
        found = ops.affine_augment(x, maps, color=color, sigma=zero, seed=seed, box=box)
        assert torch.equal(found, x)
        assert torch.equal(ops.affine_augment(x), x)


def bits(x):
    return x.contiguous().view(torch.int32)


def nothing(x):
    """What affine_augment takes to do nothing, step by step."""
    color = torch.eye(3, 4, device=x.device).repeat(2, 1, 1)
    noise = {"sigma": torch.zeros(2, device=x.device), "seed": torch.tensor([1, 2]).to(x.device)}
    box = torch.zeros(2, 3, device=x.device, dtype=torch.float64)
    return {
        "none": {},
        "color": {"color": color},
        "noise": noise,
        "box": {"box": box},
        "all": {"color": color, **noise, "box": box},
    }


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("step", ["none", "color", "noise", "box", "all"])
def test_nothing_done_leaves_the_bits(backend, step, mapped):
    """Of -0, and of what lies beside infinity or NaN in another channel.

    The transpose, which sums, leaves finite values: -0 becomes 0.
    """
    x = drawer(22, torch.float32, backend)(2, 3, 9, 4)
    x[0, 0] = -0.0
    x[1, :, 2:4] = -0.0
    x[1, 0, 2], x[1, 1, 3], x[0, 2, 1] = math.inf, math.nan, -math.inf
    maps = torch.tensor([MAPS["identity"]] * 2, device=backend, dtype=torch.float64)
    given = nothing(x)[step]
    for image in (x, x.contiguous(memory_format=torch.channels_last)):
        image = image.detach().requires_grad_()
        found = ops.affine_augment(image, maps if mapped else None, **given)
        assert torch.equal(bits(found.detach()), bits(x))
        finite = x.nan_to_num(0, 0, 0)
        assert torch.equal(torch.autograd.grad(found, image, finite)[0], finite)


@pytest.mark.parametrize("name", [None, "flip", "stretched", "turned"])
@pytest.mark.parametrize("channels", [(0, 1, 2), (0, 2, 4), (1,)], ids=str)
@pytest.mark.parametrize("value", [math.inf, math.nan], ids=str)
def test_channels_that_are_not_color_stay_out_of_it(backend, value, channels, name):
    """Forward and transpose: what is not finite there reaches no other channel."""
    x = drawer(23, torch.float32, backend)(2, 5, 6, 5)
    other = [c for c in range(5) if c not in channels]
    color = parameters(x, len(channels))["color"]
    maps = None if name is None else maps_of(name, backend)

    def both(x):
        image = x.clone().requires_grad_()
        found = ops.affine_augment(image, maps, color=color, color_channels=channels)
        return found.detach(), torch.autograd.grad(found, image, x)[0]

    clean = both(x)
    x[:, other] = value
    for found, expected in zip(both(x), clean, strict=True):
        assert torch.equal(found[:, list(channels)], expected[:, list(channels)])
        assert not found[:, other].isfinite().all()
