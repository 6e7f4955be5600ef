"""The parameters of differentiable augmentation for each sample, in plain PyTorch.

Zhao et al. 2020 (arXiv 2006.10738).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gankernels._dtypes import accumulation_dtype

#: Of a sample: three of color, then x and y of the shift and of the cutout.
UNIFORMS = 7
#: The paper's, of each side: how far images are shifted, and the side of the cutout.
TRANSLATION, CUTOUT = 0.125, 0.5


class DiffParameters(NamedTuple):
    """The parameters of B samples. See :func:`gankernels.ops.diff_augment_parameters`."""

    maps: Tensor | None  #: (B, 2, 3), float64
    box: Tensor | None  #: (B, 3), float64
    color: Tensor | None  #: (B, 3, 4) or (B, 1, 2)
    mix: Tensor | None  #: (B, 4)
    shade: Tensor | None  #: (B,), where color is wanted


def diff_augment_parameters(
    uniforms: Tensor,
    height: int,
    width: int,
    *,
    maps: bool = True,
    box: bool = True,
    color_channels: int = 0,
    mix: bool = False,
    before: bool = False,
    after: bool = False,
    dtype: torch.dtype = torch.float32,
    translation: float = TRANSLATION,
    cutout: float = CUTOUT,
) -> DiffParameters:
    """See :func:`gankernels.ops.diff_augment_parameters`."""
    acc = accumulation_dtype(dtype)
    with torch.no_grad():
        b, s, c, *rest = uniforms.unbind(1)
        one, zero = torch.ones_like(b), torch.zeros_like(b)
        shifts, centers = [], []
        for k, side in enumerate((width, height)):
            reach, length = int(side * translation + 0.5), int(side * cutout + 0.5)
            odd = length - length // 2 * 2  # Dynamo has no % of what was a float
            shifts.append((rest[k] * (2 * reach + 1)).floor() - reach)
            offset = (rest[2 + k] * (side + 1 - odd)).floor()
            moved = (before - after) * shifts[k]
            centers.append((offset + odd / 2 + moved) / side)
        rows = torch.stack([one, zero, shifts[0], zero, one, shifts[1]], 1).unflatten(1, (2, 3))
        contrast, offset = c + 0.5, b - 0.5
        pixel, gray = contrast * 2 * s, contrast * (1 - 2 * s)
        matrix = None
        if color_channels:
            eye = torch.eye(color_channels, dtype=b.dtype, device=b.device)
            weights = pixel[:, None, None] * eye + gray[:, None, None] / color_channels
            column = offset[:, None, None].expand(-1, color_channels, 1)
            matrix = torch.cat((weights, column), 2).to(acc)
        return DiffParameters(
            rows if maps else None,
            torch.stack([*centers, cutout * one], 1) if box else None,
            matrix,
            torch.stack([pixel, gray, (1 - contrast) / contrast, offset], 1).to(acc)
            if mix
            else None,
            (1 - contrast).to(acc) if color_channels else None,
        )


__all__ = ["diff_augment_parameters"]
