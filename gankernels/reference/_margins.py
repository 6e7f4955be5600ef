"""The margins by which stylegan2-ada pads a batch (Karras et al. 2020, arXiv 2006.06676)."""

from __future__ import annotations

import torch
from torch import Tensor


def batch_margins(inverse_maps: Tensor, height: int, width: int) -> Tensor:
    """stylegan2-ada's margins of a batch, int64: left, right, top, bottom.

    They cover what the corners of the image reach, and 6 pixels of the filter; at most the image.
    """
    if inverse_maps.shape[0] == 0:
        return inverse_maps.new_zeros(4, dtype=torch.int64)
    cx, cy = (width - 1) / 2, (height - 1) / 2
    margins = []
    for row, half in zip(inverse_maps.unbind(1), (cx, cy), strict=True):
        a, b, t = row.unbind(1)
        reached = torch.stack([a * x + b * y + t for x in (-cx, cx) for y in (-cy, cy)])
        # A map that is not finite spoils its own sample only.
        reached = reached.nan_to_num(nan=0.0)
        for side in (-reached, reached):
            margins.append((side.amax() + 6 - half).clamp(0, 2 * half))
    return torch.stack(margins).ceil().long()
