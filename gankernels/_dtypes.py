"""The dtypes that the kernels take, and those that they accumulate in."""

import torch

#: The dtypes that the compiled kernels take.
NATIVE_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums: float32, or the dtype itself where that is wider."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
