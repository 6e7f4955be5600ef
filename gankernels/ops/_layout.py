"""The layout of a tensor's elements in memory."""

from torch import Tensor


def is_dense(x: Tensor) -> bool:
    """Whether a tensor's memory has neither gaps nor overlaps, in any order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
