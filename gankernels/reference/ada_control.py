"""The controller of the strength p of adaptive discriminator augmentation, in plain PyTorch.

Karras et al. 2020 (arXiv 2006.06676), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: The numbers of a state, float64: for real, fake and validation scores their total and their count
#: since the last step of p, the images, all updates from the beginning, and r of the last step.
STATE = 9
#: The first of them are sums, which processes add up.
SUMS = 7

METRICS = ("rt", "rv", "accuracy")


def ada_control_(
    state: Tensor,
    p: Tensor | None,
    real: Sequence[Tensor] = (),
    fake: Sequence[Tensor] = (),
    validation: Sequence[Tensor] = (),
    *,
    sums: Tensor | None = None,
    images: int = 0,
    metric: str = "rt",
    target: float = 0.6,
    interval: int = 4,
    kimg: float = 500.0,
    p_max: float = 1.0,
) -> None:
    """See :func:`gankernels.ops.ada_control_`."""
    with torch.no_grad():
        if sums is None:
            for i, scores in enumerate((real, fake, validation)):
                for x in scores:
                    value = x if metric == "rv" else x.sign()
                    # NaN where x is not finite. The sign would hide that, and so would a ratio.
                    state[2 * i] += (value.double() + 0 * x.double()).sum()
                    state[2 * i + 1] += x.numel()
            state[6] += images
            state[7] += 1
        if p is None:
            return
        used = (state if sums is None else sums).to(torch.float64)[:SUMS].clone()
        real_mean, fake_mean, validation_mean = (used[0:6:2] / used[1:6:2]).unbind()
        if metric == "rt":
            r = real_mean
        elif metric == "rv":
            r = (real_mean - validation_mean) / (real_mean - fake_mean)
        else:  # of signs, s = 2 share - 1
            r = 0.5 + (real_mean - fake_mean) / 4
        step = ((r - target).sign() * (used[6] / (1000 * kimg))).nan_to_num(0.0)
        moved = (p.double().nan_to_num(0.0) + step).clamp(0, p_max)
        due = state[7] % interval == 0
        p.copy_(torch.where(due, moved, p.double()))
        state[:SUMS] = torch.where(due, 0.0, state[:SUMS])
        state[8] = torch.where(due, r, state[8])


__all__ = ["ada_control_"]
