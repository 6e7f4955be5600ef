"""Constants on a device, put there without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def constants(values: Sequence[float], device: torch.device) -> Tensor:
    """The numbers as a tensor of float64, each filled where it is.

    To copy a list to a GPU would wait for it, and could not be captured in a CUDA graph.
    """
    return torch.stack([torch.full((), x, dtype=torch.float64, device=device) for x in values])
