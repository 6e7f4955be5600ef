"""Filtering of images by four frequency bands in plain PyTorch.

Karras et al. 2020 (arXiv 2006.06676), appendix B, "image-space filtering", noise and cutout.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from gankernels._dtypes import accumulation_dtype
from gankernels.reference._constants import constants
from gankernels.reference._noise import normal_noise

#: Pixels that a band reaches to either side.
REACH = 21


def bank() -> list[list[float]]:
    """The taps of the four bands, the lowest first: those from the middle on, 22 a band.

    Products of the half-band pair of the 4-tap Daubechies wavelet; rationals that float32 holds.
    """
    low = [1.0]
    bands: list[list[float]] = []
    for stage in range(3):
        next_low = _convolve(low, _half_band(2**stage))
        padding = (len(next_low) - len(low)) // 2
        padded = [0.0] * padding + low + [0.0] * padding
        bands.insert(0, [x - y for x, y in zip(padded, next_low, strict=True)])
        low = next_low
    bands.insert(0, low)
    return [(b[len(b) // 2 :] + [0.0] * REACH)[: REACH + 1] for b in bands]


def _half_band(step: int) -> list[float]:
    taps = [0.0] * (6 * step + 1)
    for k, tap in zip(range(7), (-1, 0, 9, 16, 9, 0, -1), strict=True):
        taps[k * step] = tap / 32
    return taps


def _convolve(a: list[float], b: list[float]) -> list[float]:
    result = [0.0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            result[i + j] += x * y
    return result


_BANK = bank()


def image_filter(
    image: Tensor,
    gains: Tensor,
    *,
    sigma: Tensor | None = None,
    seed: Tensor | None = None,
    box: Tensor | None = None,
) -> Tensor:
    """See :func:`gankernels.ops.image_filter`. Differentiable to any order, in the image alone."""
    dtype = accumulation_dtype(image.dtype)
    with torch.autocast(image.device.type, enabled=False):
        x = image.to(dtype)
        taps = _taps(gains, dtype)
        for dim in (-1, -2):
            size = x.shape[dim]
            padded = x.index_select(dim, _reflected(size, x.device))
            x = _correlate(padded, taps, dim, size)
        x = torch.where(_filtered(gains, dtype), x, image.to(dtype))
        if sigma is not None and seed is not None:
            noise = normal_noise(seed, image.shape[1:], dtype)
            x = x + sigma.detach().to(dtype)[:, None, None, None] * noise
        x = _cut(x, box)
    return x.to(image.dtype)


def image_filter_transpose(grad: Tensor, gains: Tensor, *, box: Tensor | None = None) -> Tensor:
    """See :func:`gankernels.ops.image_filter_transpose`. Differentiable to any order."""
    dtype = accumulation_dtype(grad.dtype)
    with torch.autocast(grad.device.type, enabled=False):
        cut = _cut(grad.to(dtype), box)
        taps = _taps(gains, dtype)
        x = cut
        for dim in (-2, -1):
            # Every pixel adds to the 21 around it, also beyond the border; that is folded back.
            size = x.shape[dim]
            zeros = [0, 0] * (-1 - dim) + [2 * REACH, 2 * REACH]
            full = _correlate(functional.pad(x, zeros), taps, dim, size + 2 * REACH)
            x = torch.zeros_like(x).index_add(dim, _reflected(size, x.device), full)
        x = torch.where(_filtered(gains, dtype), x, cut)
    return x.to(grad.dtype)


def _taps(gains: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The composed filter, k[0] to k[21], each to be multiplied with images (B, C, H, W)."""
    bands = torch.stack([constants(band, gains.device) for band in _BANK]).to(dtype)
    taps = (gains.detach().to(dtype).unsqueeze(-1) * bands).sum(1)
    return [t[:, None, None, None] for t in taps.unbind(1)]


def _filtered(gains: Tensor, dtype: torch.dtype) -> Tensor:
    return (gains.to(dtype) != 1).any(1)[:, None, None, None]


def _correlate(x: Tensor, taps: list[Tensor], dim: int, size: int) -> Tensor:
    """``size`` sums over 43 neighbors along ``dim``, of which ``x`` has 42 more."""
    total = taps[0] * x.narrow(dim, REACH, size)
    for d in range(1, REACH + 1):
        pair = x.narrow(dim, REACH - d, size) + x.narrow(dim, REACH + d, size)
        total = total + taps[d] * pair
    return total


def _reflected(size: int, device: torch.device) -> Tensor:
    """The pixels from 21 before the first to 21 behind the last, by reflection at their centers."""
    period = max(2 * (size - 1), 1)
    at = torch.arange(-REACH, size + REACH, device=device) % period
    return torch.minimum(at, period - at) if size > 1 else at


def _cut(x: Tensor, box: Tensor | None) -> Tensor:
    """Zero within the box (B, 3): center x, center y and size in fractions of the image."""
    if box is None:
        return x
    height, width = x.shape[-2:]
    box = box.detach().to(torch.float64)[:, :, None]
    columns = (torch.arange(width, dtype=torch.float64, device=x.device) + 0.5) / width
    rows = (torch.arange(height, dtype=torch.float64, device=x.device) + 0.5) / height
    half = box[:, 2] / 2
    column_kept = (columns - box[:, 0]).abs() >= half
    row_kept = (rows - box[:, 1]).abs() >= half
    kept = column_kept[:, None, None, :] | row_kept[:, None, :, None]
    return torch.where(kept, x, 0)


__all__ = ["image_filter", "image_filter_transpose"]
