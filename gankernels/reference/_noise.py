"""Noise by counters: Philox4x32-10 (Salmon et al. 2011) and Box-Muller, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF


def normal_noise(seed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """N(0, 1), of which element n of a sample depends on the sample's seed and n alone.

    Args:
        seed: (B,), int64.
        shape: of a sample, (C, H, W); elements are counted as in a contiguous tensor.
        dtype: of the result; the numbers are computed in float32.

    Returns:
        (B, C, H, W).
    """
    count = math.prod(shape)
    block = torch.arange((count + 3) // 4, device=seed.device)
    c = [block & _LOW, block >> 32, torch.zeros_like(block), torch.zeros_like(block)]
    k0, k1 = (seed & _LOW)[:, None], ((seed >> 32) & _LOW)[:, None]
    for k in range(10):
        low0, high0 = _product(c[0], 0xD2511F53)
        low1, high1 = _product(c[2], 0xCD9E8D57)
        key0 = (k0 + k * 0x9E3779B9) & _LOW
        key1 = (k1 + k * 0xBB67AE85) & _LOW
        c = [high1 ^ c[1] ^ key0, low1, high0 ^ c[3] ^ key1, low0]
    noise = []
    for first, second in ((c[0], c[1]), (c[2], c[3])):
        uniform = ((first >> 8).float() + 1) * 2.0**-24
        radius = (-2 * uniform.log()).sqrt()
        angle = (second >> 8).float() * (2.0**-23 * math.pi)
        noise += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(noise, 2).flatten(1)[:, :count].unflatten(1, tuple(shape)).to(dtype)


def _product(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """The low and the high 32 bits of x * factor, both below 2^32."""
    low = (x & 0xFFFF) * factor  # below 2^48
    high = (x >> 16) * factor
    total = (low >> 16) + high
    return ((total & 0xFFFF) << 16) | (low & 0xFFFF), total >> 16
