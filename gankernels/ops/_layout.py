"""Where the elements of a tensor lie."""

from torch import Tensor


def is_dense(x: Tensor) -> bool:
    """Whether its memory has neither gaps nor overlaps, in whatever order of the dimensions."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
