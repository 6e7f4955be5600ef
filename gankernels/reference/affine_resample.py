"""Affine resampling in plain PyTorch (Karras et al. 2020, arXiv 2006.06676, appendix B).

Every point of the sampling lattice takes its pixels through the composite of up-sampling and linear
interpolation, one tap at a time: a gather, or for the transpose a scatter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels._dtypes import accumulation_dtype
from gankernels.reference._constants import constants
from gankernels.reference._margins import batch_margins
from gankernels.reference._noise import normal_noise

#: The symlet of 12 taps (PyWavelets: ``Wavelet("sym6").dec_lo``), divided by its sum.
SYMLET = (
    0.010892350163280001,
    0.0024683061859200003,
    -0.08343160770584002,
    -0.03416156079324,
    0.34722898647835004,
    0.55694639196396,
    0.23895218566605003,
    -0.05136248493090002,
    -0.014891875649220001,
    0.031625281329940004,
    0.0012499610463900003,
    -0.005515933754690001,
)

#: Maps beyond the one are shrunk to it; positions beyond the other are brought near.
_FARTHEST, _COUNTED = 2.0**50, 1e9


def affine_resample(
    image: Tensor,
    inverse_maps: Tensor,
    *,
    filter: str = "sym6",
    margins: Tensor | None = None,
    padding_mode: str = "reflection",
    output_size: tuple[int, int] | None = None,
    lossless_blits: bool = True,
) -> Tensor:
    """See :func:`gankernels.ops.affine_resample`; ``margins`` make it stylegan2-ada's."""
    height, width = output_size or image.shape[2:]
    pixels = image.to(accumulation_dtype(image.dtype)).flatten(2)

    def gather(taps: Iterator[tuple[Tensor, Tensor]], shape: torch.Size) -> Tensor:
        total = pixels.new_zeros(()).expand(*pixels.shape[:2], *shape)
        for index, weight in taps:
            taken = pixels.gather(2, index.flatten(1)[:, None].expand(-1, pixels.shape[1], -1))
            total = total + taken.unflatten(2, shape) * weight[:, None].to(pixels.dtype)
        return total

    with torch.autocast(image.device.type, enabled=False):
        repeats = padding_mode == "reflection" and margins is None
        lattice, axes = _lattice(
            inverse_maps.double(), image.shape[2:], (height, width), repeats, image.dtype
        )
        points, fir = _points(filter, height, width, image.device)
        x, y = (_positions(axis, points) for axis in axes)
        resampled = gather(_taps(filter, x, y, image.shape[2:], margins, padding_mode), x.shape[1:])
        if fir is not None:
            resampled = _decimate(resampled, fir.to(resampled))
        if lossless_blits and margins is None:
            whole = _whole_pixels(*lattice)[:, None, None, None]
            x, y = (_positions(axis, _pixels(height, width, image.device)) for axis in axes)
            taps = _taps("nearest", x, y, image.shape[2:], None, padding_mode)
            resampled = torch.where(whole, gather(taps, x.shape[1:]), resampled)
        resampled = torch.where(_finite(inverse_maps), resampled, math.nan)
    return resampled.to(image.dtype)


def affine_resample_transpose(
    grad: Tensor,
    inverse_maps: Tensor,
    *,
    input_size: tuple[int, int],
    filter: str = "sym6",
    margins: Tensor | None = None,
    padding_mode: str = "reflection",
    lossless_blits: bool = True,
) -> Tensor:
    """See :func:`gankernels.ops.affine_resample_transpose`."""
    dtype = accumulation_dtype(grad.dtype)
    size = torch.Size(input_size)
    height, width = grad.shape[2:]

    def scatter(values: Tensor, taps: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        total = values.new_zeros(*values.shape[:2], size.numel())
        for index, weight in taps:
            index = index.flatten(1)[:, None].expand(-1, values.shape[1], -1)
            total = total.scatter_add(2, index, (values * weight[:, None].to(dtype)).flatten(2))
        return total.unflatten(2, size)

    with torch.autocast(grad.device.type, enabled=False):
        values = grad.to(dtype)
        repeats = padding_mode == "reflection" and margins is None
        lattice, axes = _lattice(inverse_maps.double(), size, (height, width), repeats, grad.dtype)
        points, fir = _points(filter, height, width, grad.device)
        x, y = (_positions(axis, points) for axis in axes)
        spread = values if fir is None else _decimate(values, fir.to(values), transpose=True)
        scattered = scatter(spread, _taps(filter, x, y, size, margins, padding_mode))
        if lossless_blits and margins is None:
            whole = _whole_pixels(*lattice)[:, None, None, None]
            x, y = (_positions(axis, _pixels(height, width, grad.device)) for axis in axes)
            taps = _taps("nearest", x, y, size, None, padding_mode)
            scattered = torch.where(whole, scatter(values, taps), scattered)
        scattered = torch.where(_finite(inverse_maps), scattered, math.nan)
    return scattered.to(grad.dtype)


def affine_augment(
    image: Tensor,
    inverse_maps: Tensor | None = None,
    *,
    color: Tensor | None = None,
    color_channels: Sequence[int] = (),
    sigma: Tensor | None = None,
    seed: Tensor | None = None,
    box: Tensor | None = None,
    filter: str = "sym6",
    margins: Tensor | None = None,
    padding_mode: str = "reflection",
    lossless_blits: bool = True,
) -> Tensor:
    """See :func:`gankernels.ops.affine_augment`; ``margins`` make it stylegan2-ada's."""
    x = image.to(accumulation_dtype(image.dtype))
    with torch.autocast(image.device.type, enabled=False):
        if inverse_maps is not None:
            x = affine_resample(
                x,
                inverse_maps,
                filter=filter,
                margins=margins,
                padding_mode=padding_mode,
                lossless_blits=lossless_blits,
            )
        if color is not None:
            matrix, offset = color[:, :, :-1], color[:, :, -1]
            planes = list(x.unbind(1))
            colors = torch.stack([planes[c] for c in color_channels], 1)
            mixed = torch.einsum("bij,bjhw->bihw", matrix, colors)
            mixed = mixed + offset[:, :, None, None]
            for k, c in enumerate(color_channels):
                planes[c] = mixed[:, k]
            x = torch.stack(planes, 1)
        return noise_and_cutout(x, sigma, seed, box).to(image.dtype)


def noise_and_cutout(
    x: Tensor, sigma: Tensor | None, seed: Tensor | None, box: Tensor | None
) -> Tensor:
    """The end of the last pass over (B, C, H, W)."""
    if sigma is not None and seed is not None:
        noise = normal_noise(seed, x.shape[1:], x.dtype)
        x = x + sigma[:, None, None, None] * noise
    if box is not None:
        height, width = x.shape[2:]
        far = []
        for k, size in ((0, width), (1, height)):
            at = (torch.arange(size, device=x.device, dtype=torch.float64) + 0.5) / size
            far.append((at - box[:, k, None]).abs() >= box[:, 2, None] / 2)
        kept = (far[0][:, None, :] | far[1][:, :, None])[:, None]
        x = torch.where(kept, x, 0)
    return x


# Points are pairs (columns, rows) of half output pixels, counted from the center of pixel 0. A
# lattice is (a, b, c), (d, e, f) of csrc/affine_resample.h, each (B,). Its axes are what positions
# are computed from, each (B, 3) with the number of fractional bits, (B,): integers in fixed point,
# or for images in float64 the lattice itself.
_Axis = tuple[Tensor, Tensor | None]


def _lattice(
    maps: Tensor,
    size: torch.Size,
    output_size: tuple[int, int],
    repeats: bool,
    dtype: torch.dtype,
) -> tuple[tuple[Tensor, Tensor], tuple[_Axis, _Axis]]:
    (height, width), (out_height, out_width) = size, output_size
    largest = maps.abs().amax((1, 2), keepdim=True)
    maps = torch.where(largest > _FARTHEST, maps * (_FARTHEST / largest), maps)
    rows: list[Tensor] = []
    axes: list[_Axis] = []
    for k, extent in ((0, width), (1, height)):
        a, b, t = maps[:, k].unbind(1)
        offset = (extent - 1) + 2 * t - a * (out_width - 1) - b * (out_height - 1)
        row = torch.stack((a, b, offset), 1)
        reach = a.abs() * (2 * out_width + 10) + b.abs() * (2 * out_height + 10) + offset.abs()
        far = reach >= _COUNTED
        rows.append(torch.where(far[:, None], _near(row, reach[:, None], extent, repeats), row))
        fixed = _fixed(rows[k], t, far, extent, output_size)
        axes.append((rows[k], None) if dtype == torch.float64 else fixed)
    return (rows[0], rows[1]), (axes[0], axes[1])


def _fixed(
    row: Tensor, shift: Tensor, far: Tensor, extent: int, output_size: tuple[int, int]
) -> _Axis:
    """``Axis<float>`` of csrc/affine_resample.h: an axis in fixed point."""
    height, width = output_size
    row = row.nan_to_num(posinf=0.0, neginf=0.0)
    a, b, c = row.unbind(1)
    shift = shift.nan_to_num(posinf=0.0, neginf=0.0)
    reach = torch.maximum(a.abs() * (2 * width + 10), b.abs() * (2 * height + 10))
    largest = torch.maximum(reach, torch.where(far, c.abs(), (2 * shift).abs().clamp_min(extent)))
    limits = 2.0 ** torch.arange(20, 28, dtype=largest.dtype, device=largest.device)
    bits = 40 - (largest[:, None] >= limits).sum(1)
    one = torch.ones_like(bits) << bits
    a, b, c, shift = ((x * one + 0.5).floor().long() for x in (a, b, c, 2 * shift))
    offset = (extent - 1) * one + shift - a * (width - 1) - b * (height - 1)
    return torch.stack((a, b, torch.where(far, c, offset)), 1), bits


def _near(row: Tensor, reach: Tensor, size: int, repeats: bool) -> Tensor:
    """Positions moved nearer by whole periods: ``Lattice::near`` of csrc/affine_resample.h."""
    middle = size - 1
    if repeats:
        period = max(4, 4 * middle)
        return row - period * (row / period + 0.5).floor()
    about = F.pad(row.new_full((1,), middle), (2, 0))
    return about + (0.5 * _COUNTED / reach) * (row - about)


def _finite(maps: Tensor) -> Tensor:
    return maps.isfinite().all(2).all(1)[:, None, None, None]


def _points(filter: str, height: int, width: int, device: torch.device):
    if filter != "sym6":
        return _pixels(height, width, device), None
    columns, rows = (torch.arange(-5, 2 * n + 5, device=device).double() for n in (width, height))
    return (columns, rows), constants(SYMLET, device)


def _pixels(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    columns, rows = (2 * torch.arange(n, device=device).double() for n in (width, height))
    return columns, rows


def _positions(axis: _Axis, points: tuple[Tensor, Tensor]) -> Tensor:
    """Where the points lie along one axis, in half input pixels, (B, rows, columns)."""
    row, bits = axis
    a, b, c = row[:, :, None, None].unbind(1)
    columns, rows = (p.to(row.dtype) for p in points)
    positions = a * columns + b * rows[:, None] + c
    if bits is None:
        return positions
    return positions.double() / (torch.ones_like(bits) << bits)[:, None, None]


def _whole_pixels(x: Tensor, y: Tensor) -> Tensor:
    """(B,), whether every output pixel lies on a pixel and axes go to axes."""
    (a, b, c), (d, e, f) = x.unbind(1), y.unbind(1)
    straight = (a.abs() == 1) & (b == 0) & (d == 0) & (e.abs() == 1)
    swapped = (a == 0) & (b.abs() == 1) & (d.abs() == 1) & (e == 0)
    return (straight | swapped) & (c % 2 == 0) & (f % 2 == 0)


def _decimate(points: Tensor, fir: Tensor, transpose: bool = False) -> Tensor:
    """Filter along both axes, every second point; or the transpose of that."""
    channels = points.shape[1]
    for kernel in (fir[:, None], fir[None, :]):
        weight = kernel.expand(channels, 1, *kernel.shape)
        stride = tuple(2 if n == len(fir) else 1 for n in kernel.shape)
        convolve = F.conv_transpose2d if transpose else F.conv2d
        points = convolve(points, weight, stride=stride, groups=channels)
    return points


def _taps(
    filter: str, x: Tensor, y: Tensor, size: torch.Size, margins: Tensor | None, padding_mode: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The pixels of every point, as (index into the flattened image, weight)."""
    height, width = size
    low_high = (None, None) if margins is None else (margins[:2], margins[2:])
    columns = list(_axis_taps(filter, x, width, low_high[0], padding_mode))
    for row, row_weight in _axis_taps(filter, y, height, low_high[1], padding_mode):
        for column, column_weight in columns:
            yield row * width + column, row_weight * column_weight


def _axis_taps(
    filter: str, u: Tensor, size: int, margins: Tensor | None, padding_mode: str
) -> Iterator[tuple[Tensor, Tensor]]:
    if filter == "nearest":
        yield _padded((u / 2).round().long(), torch.ones_like(u), size, padding_mode)
        return
    if filter == "bilinear":
        first = (u / 2).floor()
        for k, weight in ((0, 1 - (u / 2 - first)), (1, u / 2 - first)):
            yield _padded(first.long() + k, weight, size, padding_mode)
        return
    node = u.floor()
    share = u - node
    node = node.long()
    nearer, farther = 1 - share, share
    if margins is not None:
        first, last = -2 * margins[0], 2 * (size + margins[1]) - 1
        nearer = nearer * ((node >= first) & (node <= last))
        farther = farther * ((node + 1 >= first) & (node + 1 <= last))
    table = F.pad(constants(SYMLET, u.device), (4, 4))
    base = node.div(2, rounding_mode="floor") - 3
    for i in range(7):
        j = node + 5 - 2 * (base + i) + 4
        weight = 2 * (nearer * table[j] + farther * table[j + 1])
        if margins is not None:
            weight = weight * ((base + i >= -margins[0]) & (base + i <= size - 1 + margins[1]))
        yield _padded(base + i, weight, size, "reflection")


def _padded(index: Tensor, weight: Tensor, size: int, padding_mode: str) -> tuple[Tensor, Tensor]:
    if padding_mode == "reflection":
        period = max(1, 2 * (size - 1))
        index = index % period
        return torch.where(index < size, index, period - index), weight
    if padding_mode == "zeros":
        weight = weight * ((index >= 0) & (index < size))
    return index.clamp(0, size - 1), weight


__all__ = ["affine_augment", "affine_resample", "affine_resample_transpose", "batch_margins"]
