"""Adaptive discriminator augmentation in plain PyTorch (Karras et al. 2020, arXiv 2006.06676).

The images go through one pass for each step, as the pipeline is commonly composed in eager mode.
They are (B, C, H, W), of a nominal range of [-1, 1] that nothing enforces. Half precision is
computed in float32, under autocast too, and results have the dtype of the image. All functions of
images are differentiable to any order in the image; whatever else they are given is a constant.
On GPUs, float32 convolutions are as exact as ``torch.backends.cudnn.allow_tf32`` lets them be.

Maps take centered output pixels to centered input pixels: x right, y down, pixel centers at whole
numbers, the origin in the middle of the image.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

#: The symlet of 12 taps (PyWavelets: ``Wavelet("sym6").dec_lo``), not divided by its sum, sqrt(2).
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
TAPS = len(SYM6)

Margins = Sequence[int] | Tensor

_Function = TypeVar("_Function", bound=Callable[..., Tensor])


def _in_accumulation_dtype(function: _Function) -> _Function:
    """The function, given its image in float32 or float64, whatever autocast says."""

    @functools.wraps(function)
    def call(image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            x = image.float() if image.dtype in (torch.bfloat16, torch.float16) else image
            return function(x, *args, **kwargs).to(image.dtype)

    return cast(_Function, call)


@functools.cache
def _symlet(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        f = torch.tensor(SYM6, dtype=torch.float64)
        return (f / f.sum()).to(device, dtype)


# --- geometry: pad, up-sample, resample, down-sample ---------------------------------------------


@_in_accumulation_dtype
def geometry(image: Tensor, inverse_maps: Tensor, margins: Margins | None = None) -> Tensor:
    """Resample images under affine maps (appendix B, geometric transformations).

    Reflect the image at its border by ``margins``, up-sample it by 2 with the symlet, interpolate
    linearly at the points of a lattice of half output pixels, with zeros beyond the margins, filter
    the lattice with the symlet and keep every second point.

    Args:
        image: (B, C, H, W), of any floating-point dtype.
        inverse_maps: (B, 2, 3), from centered output pixels to centered input pixels.
        margins: pixels left, right, above and below, one set for the batch, at most W - 1 and
            H - 1. Default: :func:`geometry_margins`. Those on a GPU are read, which waits for it.

    Returns:
        (B, C, H, W), of the dtype of the image.
    """
    batch, channels, height, width = image.shape
    if image.numel() == 0:
        return image.clone()
    if margins is None:
        margins = geometry_margins(inverse_maps, height, width)
    if isinstance(margins, Tensor):
        margins = margins.tolist()
    left, right, above, below = margins

    # All planes as channels of one image: the fastest way to filter them.
    z = _reflection_pad(image.reshape(1, -1, height, width), left, right, above, below)
    rows, columns = z.shape[2:]
    doubled = _upsample(z).reshape(batch, channels, 2 * rows, 2 * columns)

    # From points of the lattice to nodes of the doubled plane, each plane from -1 to 1. The center
    # of the lattice lies at 1/4, that of the nodes at (right - left) / 2 + 1/4 pixels.
    a, b, tx, d, e, ty = inverse_maps.detach().to(torch.float64).flatten(1).unbind(1)
    lattice_width, lattice_height = 2 * width + TAPS - 2, 2 * height + TAPS - 2
    x = (a + b) / 4 + tx - ((right - left) / 2 + 0.25)
    y = (d + e) / 4 + ty - ((below - above) / 2 + 0.25)
    to_x = torch.stack([a * lattice_width / 2, b * lattice_height / 2, 2 * x], 1) / columns
    to_y = torch.stack([d * lattice_width / 2, e * lattice_height / 2, 2 * y], 1) / rows
    grid = F.affine_grid(
        torch.stack([to_x, to_y], 1).to(image.dtype),
        [batch, channels, lattice_height, lattice_width],
        align_corners=False,
    )
    lattice = F.grid_sample(doubled, grid, "bilinear", "zeros", align_corners=False)
    return _downsample(lattice.reshape(1, -1, *lattice.shape[2:])).reshape(image.shape)


def geometry_margins(inverse_maps: Tensor, height: int, width: int) -> Tensor:
    """The margins of a batch: as far as its maps take the corners of an image, and 6 pixels more.

    Args:
        inverse_maps: (B, 2, 3), from centered output pixels to centered input pixels.
        height, width: the size of the images.

    Returns:
        (4,), int64, on the device of the maps, without a synchronization: pixels left, right, above
        and below, at most W - 1 and H - 1.
    """
    if inverse_maps.shape[0] == 0:
        return torch.zeros(4, dtype=torch.int64, device=inverse_maps.device)
    cx, cy = (width - 1) / 2, (height - 1) / 2
    # Over the corners, a x + b y lies between -reach and reach.
    reach = inverse_maps[:, :, 0].abs() * cx + inverse_maps[:, :, 1].abs() * cy
    before = (reach - inverse_maps[:, :, 2]).amax(0)
    after = (reach + inverse_maps[:, :, 2]).amax(0)
    support = TAPS // 2
    margins = [
        (furthest[axis] + (support - c)).clamp(0, size - 1).ceil()
        for axis, c, size in ((0, cx, width), (1, cy, height))
        for furthest in (before, after)
    ]
    return torch.stack(margins).to(torch.int64)


def required_margins(inverse_maps: Tensor, height: int, width: int) -> Tensor:
    """The margins with which a sample comes out as it does under reflection without end.

    With smaller ones it does not; except that maps by whole pixels, where taps cancel, need less.

    Args:
        inverse_maps: (B, 2, 3), from centered output pixels to centered input pixels.
        height, width: the size of the images.

    Returns:
        (B, 4), int64: pixels left, right, above and below, of any size.
    """
    # The lattice, from -2.5 to W + 2: its center is at 1/4, as seen from that of the image.
    half_width, half_height = (width + 4.5) / 2, (height + 4.5) / 2
    linear = inverse_maps[:, :, :2]
    reach = linear[:, :, 0].abs() * half_width + linear[:, :, 1].abs() * half_height
    center = inverse_maps[:, :, 2] + linear.sum(2) / 4
    margins = []
    for axis, size in ((0, width), (1, height)):
        c = (size - 1) / 2
        first = center[:, axis] - reach[:, axis] + c
        last = center[:, axis] + reach[:, axis] + c
        # What interpolates the taps reaches from -3 to 3.5 pixels, both excluded.
        margins.append((3.5 - first).ceil() - 1)
        margins.append((last + 3 - (size - 1)).ceil() - 1)
    return torch.stack(margins, 1).clamp_min(0).to(torch.int64)


def _upsample(z: Tensor) -> Tensor:
    """U[u] = 2 sum_j f[j] z[(u + 5 - j) / 2] along both axes of (1, planes, H, W).

    Zeros between the pixels and around them, then a convolution: transposed, of stride 2.
    """
    planes, pad = z.shape[1], TAPS // 2 - 1
    f = (2 * _symlet(z.dtype, z.device)).expand(planes, 1, 1, -1)
    z = F.conv_transpose2d(z, f.mT, stride=(2, 1), padding=(pad, 0), groups=planes)
    return F.conv_transpose2d(z, f, stride=(1, 2), padding=(0, pad), groups=planes)


def _downsample(lattice: Tensor) -> Tensor:
    """out[i] = sum_j f[j] S[2 i + j] along both axes of (1, planes, H, W)."""
    planes = lattice.shape[1]
    f = _symlet(lattice.dtype, lattice.device).expand(planes, 1, 1, -1)
    lattice = F.conv2d(lattice, f, stride=(1, 2), groups=planes)
    return F.conv2d(lattice, f.mT, stride=(2, 1), groups=planes)


def _reflection_pad(image: Tensor, left: int, right: int, above: int, below: int) -> Tensor:
    """Pad (B, C, H, W) by reflection about the centers of its border pixels, by any number."""
    height, width = image.shape[2:]
    if max(left, right) < width and max(above, below) < height:
        return F.pad(image, [left, right, above, below], "reflect")
    columns = torch.arange(-left, width + right, device=image.device)
    rows = torch.arange(-above, height + below, device=image.device)
    image = image.index_select(3, _reflected(columns, width))
    return image.index_select(2, _reflected(rows, height))


def _reflected(index: Tensor, size: int) -> Tensor:
    """The pixels that pixels beyond the border show."""
    if size == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * (size - 1))
    return torch.where(index < size, index, 2 * (size - 1) - index)


# --- geometry once more: one kernel --------------------------------------------------------------


@_in_accumulation_dtype
def composite_geometry(
    image: Tensor, inverse_maps: Tensor, margins: Margins | None = None
) -> Tensor:
    """:func:`geometry` without the doubled plane: each point of the lattice gathers 7 x 7 pixels.

    Up-sampling and interpolation together are one kernel, continuous and piecewise linear, that
    takes 2 f[j] at (j - 5) / 2 pixels.

    Args:
        image: (B, C, H, W), of any floating-point dtype.
        inverse_maps: (B, 2, 3), from centered output pixels to centered input pixels.
        margins: as of :func:`geometry`. Default: images are reflected without end, so that none
            depends on its batch.

    Returns:
        (B, C, H, W), of the dtype of the image.
    """
    height, width = image.shape[2:]
    maps = inverse_maps.detach().to(torch.float64)
    # The lattice, in centered output pixels.
    x, y = (
        (torch.arange(2 * n + TAPS - 2, device=image.device, dtype=torch.float64) - (n + 4)) / 2
        for n in (width, height)
    )
    source = maps[:, :, :1, None] * x + maps[:, :, 1:2, None] * y[:, None] + maps[:, :, 2:, None]

    x_margins, y_margins = (None, None) if margins is None else (margins[:2], margins[2:])
    columns, x_weights = _gathered(source[:, 0] + (width - 1) / 2, width, x_margins)
    rows, y_weights = _gathered(source[:, 1] + (height - 1) / 2, height, y_margins)
    pixels = image.flatten(2)
    lattice = image.new_zeros(*image.shape[:2], y.numel(), x.numel())
    for row, y_weight in zip(rows, y_weights, strict=True):
        for column, x_weight in zip(columns, x_weights, strict=True):
            index = (row * width + column).flatten(1).unsqueeze(1).expand(-1, image.shape[1], -1)
            weight = (y_weight * x_weight).to(image.dtype).unsqueeze(1)
            lattice = lattice + weight * pixels.gather(2, index).view_as(lattice)
    f = _symlet(image.dtype, image.device)
    return lattice.unfold(2, TAPS, 2).matmul(f).unfold(3, TAPS, 2).matmul(f)


def _gathered(
    position: Tensor, size: int, margins: Margins | None
) -> tuple[list[Tensor], list[Tensor]]:
    """The 7 pixels that reach a position along an axis, counted from pixel 0, and their weights."""
    f = F.pad(_symlet(torch.float64, position.device), [1, 2])  # from f[-1] to f[13]
    low = (2 * position).floor()
    r = 2 * position - low
    node = low.to(torch.int64)
    parity, base = node & 1, (node >> 1) - 3
    at, past = torch.ones_like(r), torch.ones_like(r)
    if margins is not None:
        first, last = -2 * margins[0], 2 * (size + margins[1]) - 1
        at = ((node >= first) & (node <= last)).to(r.dtype)
        past = ((node + 1 >= first) & (node + 1 <= last)).to(r.dtype)
    pixels, weights = [], []
    for i in range(7):
        j = parity + 11 - 2 * i
        weight = 2 * ((1 - r) * at * f[j + 1] + r * past * f[j + 2])
        pixel = base + i
        if margins is not None:
            weight = weight * ((pixel >= -margins[0]) & (pixel <= size - 1 + margins[1]))
        pixels.append(_reflected(pixel, size))
        weights.append(weight)
    return pixels, weights


# --- color, filter, corruptions -----------------------------------------------------------------


@_in_accumulation_dtype
def color(image: Tensor, matrices: Tensor, channels: Sequence[int] | None = None) -> Tensor:
    """Transform the colors of each sample (appendix B, color transformations).

    Args:
        image: (B, C, H, W), of any floating-point dtype.
        matrices: (B, 3, 4) for three channels of color, (B, 1, 2) for one: matrix, then offset.
        channels: the numbers of those channels. Default: all. The others stay as they are.

    Returns:
        (B, C, H, W), of the dtype of the image.
    """
    matrices = matrices.detach().to(image.dtype)
    if channels is None:
        pixels = torch.baddbmm(matrices[:, :, -1:], matrices[:, :, :-1], image.flatten(2))
        return pixels.view(image.shape)
    planes = list(image.unbind(1))
    colored = color(torch.stack([planes[c] for c in channels], 1), matrices)
    for c, plane in zip(channels, colored.unbind(1), strict=True):
        planes[c] = plane
    return torch.stack(planes, 1)


def filter_bank() -> list[list[float]]:
    """The four bands of 43 taps, lowest first, exactly (appendix B, image-space filtering).

    They are products of a half-band pair, dilated: half the autocorrelation of the symlet of 4
    taps, and what is missing to a single 1 in the middle. All bands together sum up to that 1, too.
    """
    low = [-1, 0, 9, 16, 9, 0, -1]
    high = [1, 0, -9, 16, -9, 0, 1]
    factors = ((low, low, low), (low, low, high), (low, high), (high,))
    bank = []
    for band in factors:
        taps = [1]
        for level, factor in enumerate(band):
            dilated = [0] * (6 * 2**level + 1)
            dilated[:: 2**level] = factor
            product = [0] * (len(taps) + len(dilated) - 1)
            for (i, a), (k, b) in itertools.product(enumerate(taps), enumerate(dilated)):
                product[i + k] += a * b
            taps = product
        sides = [0.0] * ((43 - len(taps)) // 2)
        bank.append([*sides, *(tap / 32 ** len(band) for tap in taps), *sides])
    return bank


@functools.cache
def _bands(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(filter_bank(), dtype=dtype, device=device)


@_in_accumulation_dtype
def image_filter(image: Tensor, gains: Tensor) -> Tensor:
    """Amplify or weaken four bands of frequencies (appendix B, image-space filtering).

    The bands weighted by the gains make one filter of 43 taps a sample, used along x and along y;
    beyond its border the image is reflected.

    Args:
        image: (B, C, H, W), of any floating-point dtype and any size.
        gains: (B, 4), lowest band first. Gains of 1 leave the sample as it is.

    Returns:
        (B, C, H, W), of the dtype of the image.
    """
    batch, channels, height, width = image.shape
    if image.numel() == 0:
        return image.clone()
    taps = gains.detach().to(image.dtype) @ _bands(image.dtype, image.device)
    taps = taps.repeat_interleave(channels, 0)
    x = _reflection_pad(image, 21, 21, 21, 21).reshape(1, -1, height + 42, width + 42)
    x = F.conv2d(x, taps[:, None, None, :], groups=batch * channels)
    x = F.conv2d(x, taps[:, None, :, None], groups=batch * channels)
    return x.reshape(image.shape)


@_in_accumulation_dtype
def noise(image: Tensor, sigma: Tensor, normals: Tensor) -> Tensor:
    """Add noise (appendix B, image-space corruptions).

    Args:
        image: (B, C, H, W), of any floating-point dtype.
        sigma: (B,), the standard deviations of the samples.
        normals: (B, C, H, W), drawn from N(0, 1).

    Returns:
        (B, C, H, W), of the dtype of the image.
    """
    sigma, normals = sigma.detach().to(image.dtype), normals.detach().to(image.dtype)
    return image + sigma[:, None, None, None] * normals


def cutout(image: Tensor, box: Tensor) -> Tensor:
    """Set a rectangle of each sample to 0 (appendix B, image-space corruptions).

    Args:
        image: (B, C, H, W), of any floating-point dtype.
        box: (B, 3): the center along x and along y, and the size, in fractions of the image. It may
            hang over the border; a pixel is in it if its center is, the border of the box excluded.
            A size of 0 removes nothing.

    Returns:
        (B, C, H, W), of the dtype of the image.
    """
    height, width = image.shape[2:]
    center_x, center_y, size = box.detach().to(torch.float64)[:, :, None, None, None].unbind(1)
    x = (torch.arange(width, device=image.device, dtype=torch.float64) + 0.5) / width
    y = (torch.arange(height, device=image.device, dtype=torch.float64) + 0.5) / height
    outside_x = (x - center_x).abs() >= size / 2
    outside_y = (y[:, None] - center_y).abs() >= size / 2
    return torch.where(outside_x | outside_y, image, 0)


_transform_color = color


@_in_accumulation_dtype
def augment(
    image: Tensor,
    maps: Tensor | None,
    color: Tensor | None,
    gains: Tensor | None,
    sigma: Tensor | None,
    normals: Tensor | None,
    box: Tensor | None,
    margins: Margins | None = None,
    *,
    color_channels: Sequence[int] | None = None,
) -> Tensor:
    """The pipeline: geometry, color, filter, noise, cutout (appendix B). None leaves a step out.

    Args:
        image: (B, C, H, W), of any floating-point dtype.
        maps: (B, 2, 3), inverse maps, of :func:`geometry`.
        color: (B, 3, 4) or (B, 1, 2), of :func:`color`.
        gains: (B, 4), of :func:`image_filter`.
        sigma, normals: (B,) and (B, C, H, W), of :func:`noise`.
        box: (B, 3), of :func:`cutout`.
        margins: of :func:`geometry`.
        color_channels: the ``channels`` of :func:`color`.

    Returns:
        (B, C, H, W), of the dtype of the image; half precision is rounded once, at the end.
    """
    if maps is not None:
        image = geometry(image, maps, margins)
    if color is not None:
        image = _transform_color(image, color, color_channels)
    if gains is not None:
        image = image_filter(image, gains)
    if sigma is not None and normals is not None:
        image = noise(image, sigma, normals)
    if box is not None:
        image = cutout(image, box)
    return image


# --- random maps ---------------------------------------------------------------------------------


def random_maps(
    batch: int, height: int, width: int, p: float, generator: torch.Generator
) -> Tensor:
    """Maps as the geometric transformations of strength ``p`` draw them (appendix B): for tests.

    Flips, quarter turns, shifts by whole pixels, scaling, rotation, stretching, a second rotation
    and shifts by fractions, each with probability p, the rotations together. Flips and quarter
    turns are exact.

    Returns:
        (batch, 2, 3), float64, on the device of the generator: from centered output pixels to
        centered input pixels.
    """
    device, dtype = generator.device, torch.float64

    def uniform(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=generator, dtype=dtype, device=device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator, dtype=dtype, device=device)

    def gated(value: Tensor, otherwise: float, probability: float) -> Tensor:
        gate = uniform(*[1] * (value.dim() - 1)) < probability
        return torch.where(gate, value, otherwise)

    def diagonal(x: Tensor, y: Tensor) -> Tensor:
        return torch.diag_embed(torch.stack([x, y, torch.ones_like(x)], 1))

    def rotation(cos: Tensor, sin: Tensor) -> Tensor:
        matrix = diagonal(cos, cos)
        matrix[:, 0, 1], matrix[:, 1, 0] = -sin, sin
        return matrix

    def shift(t: Tensor) -> Tensor:
        matrix = diagonal(torch.ones_like(t[:, 0]), torch.ones_like(t[:, 0]))
        matrix[:, :2, 2] = t
        return matrix

    def pixels(fractions: Tensor) -> Tensor:
        return torch.stack([fractions[:, 0] * width, fractions[:, 1] * height], 1)

    rotate_p = 1 - math.sqrt(max(0.0, 1 - p))  # of each rotation, so that there is one with p

    flip = gated((2 * uniform()).floor(), 0, p)
    inverse = diagonal(1 - 2 * flip, torch.ones_like(flip))
    quarter = gated((4 * uniform()).floor(), 0, p) * (math.pi / 2)
    inverse = inverse @ rotation(quarter.cos().round(), quarter.sin().round())
    whole = gated((2 * uniform(2) - 1) * 0.125, 0, p)
    inverse = inverse @ shift(-pixels(whole).round())
    scale = gated(torch.exp2(0.2 * normal()), 1, p)
    inverse = inverse @ diagonal(1 / scale, 1 / scale)
    angle = gated((2 * uniform() - 1) * math.pi, 0, rotate_p)
    inverse = inverse @ rotation(angle.cos(), angle.sin())
    stretch = gated(torch.exp2(0.2 * normal()), 1, p)
    inverse = inverse @ diagonal(1 / stretch, stretch)
    angle = gated((2 * uniform() - 1) * math.pi, 0, rotate_p)
    inverse = inverse @ rotation(angle.cos(), angle.sin())
    fraction = gated(0.125 * normal(2), 0, p)
    inverse = inverse @ shift(-pixels(fraction))
    return inverse[:, :2]
