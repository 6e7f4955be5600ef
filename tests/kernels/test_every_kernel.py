"""Every kernel, in every dtype, with every capacity of its table, at sizes around its constants.

Operators of a few large calls, and their first and second derivatives, against the reference in
float64. `make ptx` counts what of the compiled kernels runs: by far the most of it does here.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from support.backends import current_backend, native_ops
from support.tensors import DTYPES, assert_near, drawer, dtype_name
from support.weights import LARGE_LAYOUTS, LAYOUTS
from torch import Tensor

import gankernels
from gankernels import ops

Result = Sequence[Tensor]


class Draw:
    """Draws the numbers of a case: those of a dtype, or the same in float64 for the reference."""

    def __init__(self, dtype: torch.dtype, device: torch.device, exact: bool) -> None:
        self.dtype, self.device, self.exact = dtype, device, exact
        self.acc = torch.float64 if dtype == torch.float64 else torch.float32
        self.normal = drawer(1, torch.float64)

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.cast(self.normal(*shape), dtype or self.dtype)

    def wide(self, *shape: int) -> Tensor:
        return self(*shape, dtype=self.acc)

    def cast(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        x = x.to(dtype or self.dtype)
        return x.double() if self.exact else x.to(self.device)

    def derivatives(self, outputs: Result, inputs: Result) -> Iterator[Tensor]:
        """Outputs and two derivatives along drawn cotangents, the second by those, too."""
        seeds = [self(*y.shape).to(y.dtype).requires_grad_() for y in outputs]
        first = torch.autograd.grad(outputs, inputs, seeds, create_graph=True)
        along = [self(*x.shape) for x in first]
        second = torch.autograd.grad(
            first, [*inputs, *seeds], along, allow_unused=True, materialize_grads=True
        )
        for x in itertools.chain(outputs, first, second):
            yield x.detach()


Case = Callable[[Draw], Iterator[Tensor]]


def compare(
    case: Case, dtype: torch.dtype, device: torch.device, parts: Sequence[str] = ()
) -> None:
    with gankernels.backend("reference"):
        expected = list(case(Draw(dtype, torch.device("cpu"), exact=True)))
    found = list(case(Draw(dtype, device, exact=False)))
    assert len(found) == len(expected)
    if "noise" in parts and dtype == torch.float64:
        dtype = torch.float32  # which noise is made in
    for i, (x, right) in enumerate(zip(found, expected, strict=True)):
        assert_near(x.cpu(), right, dtype, factor=3, what=f"number {i}")


def skip_unless_compiled() -> None:
    if current_backend() in ("cpu", "emu"):
        pytest.skip("of what nvcc makes of the kernels; takes the emulator long")


def skip_on_emulator() -> None:
    if current_backend() == "emu":
        pytest.skip("tests/augment has the emulator's; these take it long")


every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
#: Of tensors in a call: tables hold 1, 8 or 64.
COUNTS = (1, 8, 80)


# --- gradient penalties ---------------------------------------------------------------------------

PENALTIES: list[dict[str, Any]] = [
    {},
    {"center": 0.7, "reduction": "none", "weighted": True},
    {"center": 4.0, "one_sided": True, "reduction": "sum", "inv_scale": 0.25},
    {"center": 0.7, "per_tensor": True, "weighted": True},
    {"per_tensor": True, "reduction": "none", "inv_scale": 0.5},
]


def penalty(draw: Draw, shapes: Sequence[Sequence[int]], options: dict[str, Any]) -> Iterator[Any]:
    given = dict(options)
    grads = [draw(*shape).requires_grad_() for shape in shapes]
    inputs = list(grads)
    if given.pop("weighted", False):
        given["sample_weight"] = draw.wide(shapes[0][0]).abs().requires_grad_()
        inputs.append(given["sample_weight"])
    if "inv_scale" in given:
        given["inv_scale"] = draw.wide(1) * 0 + given["inv_scale"]
    value, norms = ops.gradient_penalty(grads, return_norms=True, **given)
    yield norms
    yield from draw.derivatives([value], inputs)


@every_dtype
@pytest.mark.parametrize("options", PENALTIES, ids=str)
@pytest.mark.parametrize("count", COUNTS)
def test_gradient_penalty(backend, count, options, dtype):
    """Samples of whole vectors and others, of a chunk and of more than a warp adds at once."""
    sizes = itertools.cycle([(40, 9), (3,), (1024,), (2049,), (16,)])
    shapes = [(3, *size) for size in itertools.islice(sizes, count)]
    shapes[0] = (3, 96 * 2048 + 40)  # half precision has chunks of 2048
    if count == 1:
        compare(lambda draw: penalty(draw, [(1100, 5)], options), dtype, backend)
    compare(lambda draw: penalty(draw, shapes, options), dtype, backend)


@every_dtype
@pytest.mark.parametrize("count", COUNTS)
def test_large_gradient_penalty(backend, count, dtype):
    """All vectors that a thread has on their way at once, and as many elements by themselves."""
    skip_unless_compiled()
    for elements, more in (((33 << 20) // dtype.itemsize, 0), (2_200_000, 1)):
        shapes = [(2, elements // 2 // count // 8 * 8 + more)] * count
        compare(lambda draw, s=shapes: penalty(draw, s, {"center": 0.7}), dtype, backend)


# --- spectral normalization -----------------------------------------------------------------------

Layout = Callable[[Draw], Tensor]
_MIXED = (0, 7, 5, 3, 1, 6, 4, 2)  # no two dimensions lie in memory as they follow each other
#: Columns in an order of seven dimensions, and what else the layouts of all tests do not have.
OWN_LAYOUTS: dict[str, Layout] = {
    "rows_first": lambda draw: draw(8, 2, 3, 2, 3, 2, 3, 4).permute(_MIXED),
    "rows_first_odd": lambda draw: draw(3, 3, 3, 3, 3, 3, 3, 3).permute(_MIXED),
    "rows_last": lambda draw: draw(2, 3, 2, 3, 2, 3, 4, 8).permute(7, 0, 2, 4, 6, 1, 3, 5),
    "rows_last_odd": lambda draw: draw(2, 3, 2, 3, 2, 3, 4, 7).permute(7, 0, 2, 4, 6, 1, 3, 5),
    "rows_between": lambda draw: draw(2, 3, 2, 3, 8, 3, 2, 4).permute(4, 0, 2, 6, 1, 3, 5, 7),
    "rows_between_odd": lambda draw: draw(2, 3, 2, 3, 5, 3, 3, 3).permute(4, 0, 2, 6, 1, 3, 5, 7),
    "few_columns": lambda draw: draw(20_001, 2),
    "wide_groups": LARGE_LAYOUTS["conv_transpose_many_rows"],
}
#: Without those of one element, whose derivative is 0 up to rounding.
NORMS = {k: f for k, f in (LAYOUTS | OWN_LAYOUTS).items() if not k.endswith(("of_one", "element"))}


def in_tables(count: int) -> list[list[Layout]]:
    """The layouts, so many in a call; 16 in the last table of 64."""
    every = [*NORMS.values()]
    if count > 64:
        return [[*every, *every][:count]]
    return [every[i : i + count] for i in range(0, len(every), count)]


def vectors(draw: Draw, weights: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    return [draw(len(w)) for w in weights], [draw(w.numel() // len(w)) for w in weights]


def norms(draw: Draw, layouts: Sequence[Layout], **options: Any) -> Iterator[Tensor]:
    weights = [layout(draw).requires_grad_() for layout in layouts]
    u, v = vectors(draw, weights)
    out, sigma = ops.spectral_norm(weights, u, v, 2, **options)
    yield from (sigma, *u, *v)
    yield from draw.derivatives(together(out, sigma), weights)
    found = ops.power_iteration_(weights, *vectors(draw, weights), 1)
    out, sigma = ops.spectral_normalize(weights, found.u, found.v)
    yield from draw.derivatives(together(out, sigma), weights)
    yield from together(*ops.spectral_normalize(weights, *found, max_norm=3.0))


def together(out: Result, sigma: Tensor) -> Result:
    """A derivative by sigma may be small by chance: it is judged among others."""
    return [torch.cat([out[0].flatten(), sigma.to(out[0].dtype)]), *out[1:]]


@every_dtype
@pytest.mark.parametrize("count", COUNTS)
def test_spectral_norm(backend, count, dtype):
    for layouts, order in zip(in_tables(count), itertools.cycle(["u_first", "v_first"])):
        compare(lambda draw, x=layouts, o=order: norms(draw, x, order=o), dtype, backend)


@every_dtype
@pytest.mark.parametrize("count", COUNTS)
def test_large_spectral_norm(backend, count, dtype):
    """One of almost all tiles of a launch: every thread adds up several of their sums."""
    skip_unless_compiled()
    layouts: list[Layout] = [lambda draw: draw(1200, (6 << 20) // 1200 // dtype.itemsize)]
    layouts += [lambda draw: draw(5, 7)] * (count - 1)
    compare(lambda draw: norms(draw, layouts, max_norm=2.0), dtype, backend)


@every_dtype
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("order", ["u_first", "v_first"])
def test_guarded_spectral_norm(backend, order, count, dtype):
    """Vectors from which nothing leads anywhere, and weights of which nothing is left."""

    def case(draw: Draw, odd: int) -> Iterator[Tensor]:
        weights = [draw(600, 530 if k == 0 else 3) for k in range(count)]
        u, v = vectors(draw, weights)
        for k, (x, y) in enumerate(zip(u, v, strict=True)):
            which = (odd + k) % 5
            if which < 3:
                (x, y, weights[k])[which].zero_()
            elif which == 3:
                x[-1], y[0] = float("inf"), float("nan")
        skipped = torch.zeros(count, dtype=torch.int64, device=draw.device)
        options: dict[str, Any] = {"order": order, "skipped": skipped}
        out, sigma = ops.spectral_norm(weights, u, v, **options)
        yield from (*out, sigma, *u, *v, skipped)
        yield from ops.spectral_normalize(weights, u, v, guard=True)[0]

    for odd in range(4):
        compare(lambda draw, odd=odd: case(draw, odd), dtype, backend)


# --- weight normalization -------------------------------------------------------------------------


def weights_of(draw: Draw, shapes: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Of operators, as autograd would go through the second order a weight at a time."""
    v, x, h = ([draw(*shape) for shape in shapes] for _ in range(3))
    g, e = ([draw(shape[0]) for shape in shapes] for _ in range(2))
    if draw.exact:
        v, g, x = ([t.requires_grad_() for t in each] for each in (v, g, x))
        w = ops.weight_norm(v, g)
        first = torch.autograd.grad(w, [*v, *g], x, create_graph=True)
        second = torch.autograd.grad(first, [*x, *v, *g], [*h, *e])
        found = [t.detach() for t in (*w, *first, *second)]
    else:
        w, norms = native_ops().weight_norm(v, g)
        first = native_ops().weight_norm_backward(x, v, g, norms)
        second = native_ops().weight_norm_double_backward(h, e, x, v, g, norms)
        found = [*w, *(t for each in (*first, *second) for t in each)]
    # The gradients of g are one a row, which may be small by chance: they are judged together.
    parts = [found[i : i + len(v)] for i in range(0, len(found), len(v))]
    for i, part in enumerate(parts):
        yield from [torch.cat(part)] if i in (2, 5) else part


@every_dtype
@pytest.mark.parametrize("count", COUNTS)
def test_weight_norm(backend, count, dtype):
    """Rows of whole vectors and others, less than a block reads at once, and several chunks."""
    row = (64 << 10) // dtype.itemsize
    sizes = itertools.cycle([(40, 9), (3,), (1024,), (2049,), (16,), (130, 16)])
    shapes: list[tuple[int, ...]] = [(3, *size) for size in itertools.islice(sizes, count)]
    if count == 1:
        for own in ((1, row), (2, 4099), (3, 9)):
            compare(lambda draw, s=[own]: weights_of(draw, s), dtype, backend)
    else:
        shapes[0], shapes[2], shapes[-1] = (2, 3 * row + 8), (2, row + 1), (1, row)
        compare(lambda draw: weights_of(draw, shapes), dtype, backend)
    for rest in (8, 1):  # all rows are in chunks, of vectors or not
        long = [(2, row + rest)] * count
        compare(lambda draw, s=long: weights_of(draw, s), dtype, backend)


@every_dtype
@pytest.mark.parametrize("count", COUNTS)
def test_weight_norm_far_from_one(backend, count, dtype):
    """Squares that leave the range of their type, in rows and in chunks."""
    row = (64 << 10) // dtype.itemsize
    # Those of float16 do not, but for 0, whose direction is NaN.
    for scale in (0.0,) if dtype == torch.float16 else (2.0**-90, 2.0**90):
        for size in (7, 8, 2056, row + 1, row + 8):
            v = drawer(1, dtype, backend)(2, size) * scale
            g = torch.ones(2, dtype=dtype, device=backend)
            for w in ops.weight_norm([v] * count, [g] * count):
                right = v.double() / v.double().norm(dim=1, keepdim=True)
                assert_near(w.cpu(), right.cpu(), factor=3)


# --- images ---------------------------------------------------------------------------------------

#: From output to input: copies, axes to axes, and other maps, of which tiles take from a few pixels
#: up to the whole image and more. No position of most is half a pixel, where rounding decides.
MAPS = {
    "identity": [1, 0, 0, 0, 1, 0],
    "flip": [-1, 0, 0, 0, 1, 0],
    "quarter_turn": [0, -1, 3, 1, 0, -5],
    "far_shift": [1, 0, 310, 0, 1, -70],
    "half_shift": [1, 0, 0.5, 0, 1, -0.25],
    "stretched": [1.30135185, 0, 0.30176874, 0, -0.80119684, 1.70191475],
    "stretched_more": [6.10138628, 0, 0.30175080, 0, 3.30111849, 1.70193569],
    "stretched_across": [4.40131977, 0, 0.30171213, 0, 0.70193191, 1.70199917],
    "stretched_across_less": [2.60131977, 0, 0.30171213, 0, 0.70193191, 1.70199917],
    "turned_and_stretched_across": [0, 2.60131977, 0.30171213, -0.70193191, 0, 1.70199917],
    "turned_and_stretched": [0, 1.20132854, 0.30177091, -0.80118685, 0, 0.10195039],
    "turned": [0.80137238, -0.60179908, 2.20192670, 0.60115085, 0.80071214, -1.10034550],
    "mirrored": [-0.50137687, 0.80115579, 0.30173983, 0.70197380, 0.60073614, 4.60032178],
    "shrunk": [1.90133273, -1.20118288, 7.30173075, 1.10193166, 2.30071029, 1.90031087],
    "shrunk_more": [4.90134431, -1.20114530, 7.30173717, 1.10193727, 5.30075739, 1.90036138],
    "shrunk_most": [38.0134258, -12.0119834, 3.30174355, 14.0193976, 36.0074225, 7.10037278],
    "grown": [-0.30135895, 0.05111353, 20.2176917, 0.04197797, -0.35073719, -31.1033387],
    "steep_axes": [20.0135322, 0, 0.10172067, 0, 0.05116437, 0.20195937],
    "singular": [1, 1, 0, 1, 1, 0.55],
    "a_point": [0, 0, 0.3, 0, 0, 0.2],
    "farther": [1, 0.1, 3e9, 0.2, 1e12, 1e7],
}


def image(
    draw: Draw, batch: int, channels: int, layout: str, size: tuple[int, int] = (34, 37)
) -> Tensor:
    x = draw(batch, channels, *size)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    return (x[..., 3:, 1:-2] if layout == "crop" else x).requires_grad_()


def epilogue(draw: Draw, batch: int, channels: int, parts: Sequence[str]) -> dict[str, Tensor]:
    """Of a batch, whose second sample nothing is done to."""
    given: dict[str, Any] = {}
    if "color" in parts:
        chosen = [1, 2, 5] if channels > 5 else [0, 1, 2] if channels > 2 else [channels - 1]
        color = draw.wide(batch, len(chosen), len(chosen) + 1)
        color[1] = torch.eye(len(chosen), len(chosen) + 1)
        given |= {"color": color, "color_channels": chosen}
    if "noise" in parts:
        sigma = draw.wide(batch).abs()
        sigma[1] = 0
        seed = torch.arange(batch, device=draw.device) * (2**60 + 9)
        given |= {"sigma": sigma, "seed": seed}
    if "box" in parts:
        box = torch.rand(batch, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        box[1, 2] = 0
        given["box"] = box.to(draw.device)
    return given


def resampled(
    draw: Draw,
    maps: Sequence[str] | None,
    channels: int,
    layout: str,
    parts: Sequence[str],
    **options: Any,
) -> Iterator[Tensor]:
    rows = None
    if maps is not None:
        rows = torch.tensor([MAPS[name] for name in maps], dtype=torch.float64, device=draw.device)
        rows = rows.view(-1, 2, 3)
    x = image(draw, 2 if maps is None else len(maps), channels, layout)
    out = ops.affine_augment(x, rows, **epilogue(draw, len(x), channels, parts), **options)
    yield from draw.derivatives([out], [x])


EPILOGUES = [
    (3, "contiguous", ()),
    (2, "crop", ("color", "box")),
    (8, "channels_last", ("color", "noise", "box")),
]
FILTERS: list[dict[str, Any]] = [
    {},
    {"mode": "stylegan2-ada"},
    *(
        {"filter": f, "padding_mode": p}
        for f in ("bilinear", "nearest")
        for p in ("reflection", "zeros", "border")
    ),
]


@every_dtype
@pytest.mark.parametrize("end", EPILOGUES, ids=str)
@pytest.mark.parametrize("options", FILTERS, ids=str)
def test_affine_augment(backend, options, end, dtype):
    skip_on_emulator()
    near = options.get("filter") == "nearest"  # far away, rounding decides on the pixel
    maps = [name for name in MAPS if not (near and name == "farther")]
    compare(lambda draw: resampled(draw, maps, *end, **options), dtype, backend, end[2])


@every_dtype
@pytest.mark.parametrize("parts", [(), ("color", "noise"), ("box",)], ids=str)
@pytest.mark.parametrize("filter", ["sym6", "nearest"])
def test_affine_augment_without_maps(backend, filter, parts, dtype):
    end = 4, "contiguous", parts
    compare(lambda draw: resampled(draw, None, *end, filter=filter), dtype, backend, parts)


@every_dtype
@pytest.mark.parametrize("options", FILTERS[:1] + FILTERS[2:], ids=str)
def test_affine_resample_of_small_images(backend, options, dtype):
    """Images that an output shows more often than its tiles are asked for one by one."""
    rows = torch.tensor(
        [MAPS[name] for name in ("identity", "flip", "turned")], dtype=torch.float64
    )

    def case(draw: Draw) -> Iterator[Tensor]:
        x = draw(3, 3, 2, 3).requires_grad_()
        out = ops.affine_resample(
            x, rows.view(-1, 2, 3).to(draw.device), output_size=(18, 51), **options
        )
        yield from draw.derivatives([out], [x])

    compare(case, dtype, backend)


@every_dtype
@pytest.mark.parametrize("mode", ["ideal", "stylegan2-ada"])
def test_odd_cotangents(backend, mode, dtype):
    """What is not finite reaches what it is a part of, and nothing else changes."""
    maps = [*MAPS][:-1]
    rows = torch.tensor([MAPS[name] for name in maps], dtype=torch.float64, device=backend)
    grad = drawer(3, dtype, backend)(len(maps), 3, 34, 37)
    grad[:, 0, 5, 7], grad[:, 0, 20, 30], grad[:, 2, 33, 0] = (
        float("nan"),
        float("inf"),
        -float("inf"),
    )

    def transposed(g: Tensor) -> Tensor:
        return ops.affine_resample_transpose(g, rows.view(-1, 2, 3), mode=mode)

    found, clean = transposed(grad), transposed(grad.nan_to_num(0, 0, 0))
    reached = transposed((~grad.isfinite()).to(dtype)).abs()
    assert not found[reached > 1e-3].isfinite().any()
    finite = found.isfinite()
    assert finite[:, 1].all()
    assert finite[:, 0].any()
    assert_near(found[finite], clean[finite].double(), factor=3)


@every_dtype
@pytest.mark.parametrize("filter", ["sym6", "bilinear"])
def test_a_map_to_nowhere(backend, filter, dtype):
    x = image(Draw(dtype, backend, exact=False), 1, 5, "contiguous")
    maps = torch.full((1, 2, 3), float("nan"), dtype=torch.float64, device=backend)
    out = ops.affine_augment(x, maps, filter=filter)
    assert out.isnan().all()
    assert torch.autograd.grad(out.sum(), x)[0].isnan().all()


@every_dtype
@pytest.mark.parametrize("channels", [1, 3])
def test_image_filter(backend, channels, dtype):
    def case(draw: Draw) -> Iterator[Tensor]:
        for size, layout, parts in (
            ((34, 130), "contiguous", ("noise",)),
            ((34, 37), "crop", ("noise", "box")),
            ((41, 33), "channels_last", ("box",)),
            ((2, 3), "contiguous", ("box",)),
        ):
            for gains in (draw.wide(2, 4).abs() + 0.2, draw.wide(2, 4) * 0 + 1):
                x = image(draw, 2, channels, layout, size)
                out = ops.image_filter(x, gains, **epilogue(draw, 2, channels, parts))
                yield from draw.derivatives([out], [x])

    compare(case, dtype, backend, ["noise"])
