"""The dtypes that the kernels take, and those that they accumulate in."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

#: The dtypes that the compiled kernels take.
NATIVE_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float32, or the dtype itself where that is wider."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def without_autocast(x: Tensor) -> AbstractContextManager:
    """A block in which operations have the dtypes of their tensors; there is no autocast for some
    devices, meta among them.
    """
    if torch.amp.is_autocast_available(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()
