"""image_filter and its transpose: values, gradients, compiled graphs, and what they refuse."""

import pytest
import torch
from support.backends import instruction_sets, native_ops
from support.tensors import DTYPES, assert_near, drawer, dtype_name
from support.transforms import Transforms

from gankernels import ops, reference

SIZES = [(1, 1), (1, 7), (5, 3), (2, 2), (22, 21), (33, 47), (40, 70)]


def parameters(x, seed=2):
    """Gains, of which the second sample's do nothing, noise, and a box for the first sample."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    draw = drawer(seed, wide, x.device)
    gains = draw(x.shape[0], 4).abs() + 0.2
    gains[1:2] = 1
    box = torch.tensor([[0.3, 0.8, 0.5], [0.5, 0.5, 0]], device=x.device, dtype=torch.float64)
    return {
        "gains": gains,
        "sigma": draw(x.shape[0]).abs(),
        "seed": torch.tensor([3, -(2**62) - 5], device=x.device),
        "box": box,
    }


def matrix(k, size):
    """The filter along one axis, with reflection about the centers of the first and last pixel."""
    rows = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        for d in range(-21, 22):
            at = i + d
            while size > 1 and not 0 <= at < size:
                at = -at if at < 0 else 2 * (size - 1) - at
            rows[i, at if size > 1 else 0] += k[abs(d)]
    return rows


def bank():
    """The bands by polynomials: lo(z) lo(z^2) lo(z^4) and what each stage leaves."""
    lo = torch.tensor([-1, 0, 9, 16, 9, 0, -1], dtype=torch.float64) / 32

    def spread(step):
        taps = torch.zeros(6 * step + 1, dtype=torch.float64)
        taps[::step] = lo
        return taps

    def product(a, b):
        return torch.nn.functional.conv1d(a.view(1, 1, -1), b.flip(0).view(1, 1, -1),
                                          padding=len(b) - 1).flatten()  # fmt: skip

    def wide(a):
        side = (43 - len(a)) // 2
        return torch.nn.functional.pad(a, (side, side))

    one = torch.ones(1, dtype=torch.float64)
    low = [one, spread(1), product(spread(1), spread(2))]
    low.append(product(low[2], spread(4)))
    bands = [wide(low[3])] + [wide(low[k]) - wide(low[k + 1]) for k in (2, 1, 0)]
    return torch.stack(bands)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_values_against_matrices(backend, size):
    """Column by column, the filter and its transpose."""
    x = drawer(1, torch.float64, backend)(2, 3, *size)
    gains = parameters(x)["gains"]
    bands = bank()
    assert torch.allclose(bands.sum(0), torch.eye(43, dtype=torch.float64)[21])
    expected, transposed = [], []
    for sample, g in zip(x.cpu(), gains.cpu(), strict=True):
        k = (g[:, None] * bands).sum(0)[21:]
        down, across = matrix(k, size[0]), matrix(k, size[1])
        expected.append(down @ sample @ across.T)
        transposed.append(down.T @ sample @ across)
    assert_near(ops.image_filter(x, gains).cpu(), torch.stack(expected), factor=10)
    found = ops.image_filter_transpose(x, gains)
    assert_near(found.cpu(), torch.stack(transposed), factor=10)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("size", [(1, 7), (22, 21), (40, 70)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_dtypes_and_layouts(backend, channels, size, dtype):
    draw = drawer(3, dtype, backend)
    x = draw(2, channels, *size)
    given = parameters(x)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    expected = reference.image_filter(x.double(), **wide)
    transposed = reference.image_filter_transpose(x.double(), wide["gains"], box=wide["box"])
    low = torch.float32 if dtype == torch.float64 else None  # the noise is made in float32
    layouts = (
        x,
        x.contiguous(memory_format=torch.channels_last),
        draw(2, channels, size[1], size[0]).transpose(2, 3).copy_(x),
    )
    for image in layouts:
        found = ops.image_filter(image, **given)
        assert found.dtype == dtype
        assert found.stride() == image.stride()
        assert_near(found, expected, low)
        found = ops.image_filter_transpose(image, given["gains"], box=given["box"])
        assert_near(found, transposed)
    crop = draw(2, channels, size[0] + 2, size[1] + 3)[:, :, 1:-1, 2:-1].copy_(x)
    assert_near(ops.image_filter(crop, **given), expected, low)


def test_unit_gains_copy_bit_for_bit(backend):
    for dtype in DTYPES:
        x = drawer(4, dtype, backend)(2, 3, 11, 9)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        ones = torch.ones(2, 4, device=backend, dtype=wide)
        assert torch.equal(ops.image_filter(x, ones), x)
        assert torch.equal(ops.image_filter_transpose(x, ones), x)


def test_nothing_done_leaves_the_bits_of_zeros(backend):
    x = torch.full((2, 3, 6, 5), -0.0, device=backend)
    given = {"sigma": torch.zeros(2, device=backend), "seed": torch.tensor([1, 2]).to(backend)}
    ones = torch.ones(2, 4, device=backend)
    for options in ({}, given):
        found = ops.image_filter(x, ones, **options)
        assert torch.equal(found.view(torch.int32), x.view(torch.int32))


def test_threads_and_instruction_sets(backend, threads, isa):
    x = drawer(5, torch.float32, backend)(2, 3, 90, 70)
    given = parameters(x)
    results = []
    for n in (1, 2):
        threads(n)
        results.append(ops.image_filter(x, **given))
    assert torch.equal(*results)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    expected = reference.image_filter(x.double(), **wide)
    for name in instruction_sets():
        isa(name)
        assert_near(ops.image_filter(x, **given), expected)


def test_noise_is_that_of_affine_augment(backend):
    """One seed, one noise, wherever it is added."""
    x = torch.zeros(2, 3, 8, 9, device=backend)
    given = parameters(x)
    noise = {k: given[k] for k in ("sigma", "seed")}
    ones = torch.ones(2, 4, device=backend)
    assert_near(ops.image_filter(x, ones, **noise), ops.affine_augment(x, **noise).double())


@pytest.mark.parametrize("size", [(4, 5), (1, 3)], ids=str)
def test_gradcheck(backend, size):
    x = drawer(6, torch.float64, backend)(2, 2, *size).requires_grad_()
    given = parameters(x)
    for call in (
        lambda x: ops.image_filter(x, **given).square(),
        lambda x: ops.image_filter_transpose(x, given["gains"], box=given["box"]).square(),
    ):
        assert torch.autograd.gradcheck(call, x, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, x, fast_mode=True)


@pytest.mark.parametrize("size", [(4, 5), (1, 3)], ids=str)
def test_third_order_equals_the_reference(backend, size):
    """Of both passes; without noise, which is made in float32."""
    x = drawer(6, torch.float64, backend)(2, 2, *size)
    given = {k: v for k, v in parameters(x).items() if k in ("gains", "box")}
    for name in ("image_filter", "image_filter_transpose"):
        thirds = []
        for module in (ops, reference):
            image = x.clone().requires_grad_()
            directions = drawer(11, torch.float64, backend)
            y = getattr(module, name)(image, **given).pow(4).sum()
            for _ in range(3):
                (y,) = torch.autograd.grad(y, image, create_graph=True)
                last = y
                y = (y * directions(2, 2, *size)).sum()
            thirds.append(last.detach())
        assert thirds[1].abs().max() > 0.1
        assert_near(*thirds, factor=100, what=name)


def test_opcheck(backend):
    space = native_ops()
    x = drawer(7, torch.float64, backend)(2, 3, 5, 4).requires_grad_()
    gains, sigma, seed, box = (parameters(x)[k] for k in ("gains", "sigma", "seed", "box"))
    for image in (x, x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()):
        torch.library.opcheck(space.image_filter.default, (image, gains, sigma, seed, box))
        torch.library.opcheck(space.image_filter_transpose.default, (image, gains, box))


def test_a_compiled_call_equals_eager(cpu_backend):
    torch.compiler.reset()
    x = drawer(8, torch.float64)(2, 3, 5, 4).requires_grad_()
    given = parameters(x)

    def step(x):
        y = ops.image_filter(x, **given)
        return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        found = torch.compile(step, fullgraph=True, backend="aot_eager")(x)
    for a, b in zip(found, step(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class TestTransforms(Transforms):
    op = "image_filter"
    at = drawer(9, torch.float64)(2, 1, 3, 4)
    direction = drawer(10, torch.float64)(2, 1, 3, 4)

    @staticmethod
    def ours(x):
        return ops.image_filter(x, GAINS).pow(3).sum()

    @staticmethod
    def plain(x):
        return reference.image_filter(x, GAINS).pow(3).sum()


X = torch.randn(2, 3, 4, 5)
GAINS = torch.tensor([[1.5, 0.5, 0.7, 1.1], [1, 1, 1, 1]])
REFUSED = [
    (TypeError, "image to be a tensor, got list", lambda: ops.image_filter([X], GAINS)),
    (TypeError, "floating-point dtype", lambda: ops.image_filter(X.byte(), GAINS)),
    (ValueError, "image of shape (B, C, H, W) with pixels", lambda: ops.image_filter(X[0], GAINS)),
    (ValueError, "gains of shape (2, 4) on cpu", lambda: ops.image_filter(X, GAINS[:1])),
    (ValueError, "sigma and seed together, got sigma alone",
     lambda: ops.image_filter(X, GAINS, sigma=torch.ones(2))),
    (TypeError, "seed of dtype int64",
     lambda: ops.image_filter(X, GAINS, sigma=torch.ones(2), seed=torch.ones(2))),
    (ValueError, "box of shape (2, 3)", lambda: ops.image_filter(X, GAINS, box=torch.ones(3))),
    (ValueError, "grad of shape (B, C, H, W) with pixels",
     lambda: ops.image_filter_transpose(X[:, :, :0], GAINS)),
]  # fmt: skip


@pytest.mark.parametrize("error, message, call", REFUSED, ids=[case[1] for case in REFUSED])
def test_refused(error, message, call):
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)


def test_empty_batches(backend):
    x = torch.empty(0, 3, 5, 4, device=backend)
    assert ops.image_filter(x, torch.empty(0, 4, device=backend)).shape == x.shape
