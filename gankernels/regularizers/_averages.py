"""Moving averages that regularizers keep: of all processes, and in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn


def joint_means(values: Sequence[Tensor], group: Any) -> Tensor:
    """The mean of each of these vectors over all processes, by how many each has: (n,), float32."""
    if not (dist.is_available() and dist.is_initialized()):
        return torch.stack([x.mean().float() for x in values])
    sums = [total for x in values for total in (x.sum(), torch.full_like(x[0], len(x)))]
    shared = torch.stack(sums).float().view(-1, 2)
    dist.all_reduce(shared, group=group)
    return shared[:, 0] / shared[:, 1]


class KeepsAverages(nn.Module):
    """A module whose averages stay in float32 when it is converted to another dtype: in bfloat16 an
    average of decay 0.99 stands still; converted and back it would be rounded.
    """

    _averages: ClassVar[tuple[str, ...]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> KeepsAverages:
        before = [self.get_buffer(name) for name in self._averages]
        super()._apply(fn, recurse)
        for name, average in zip(self._averages, before, strict=True):
            moved = self.get_buffer(name)
            if moved.dtype != average.dtype:
                setattr(self, name, average.to(moved.device))
        return self
