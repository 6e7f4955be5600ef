"""Numbers to test with, and how near to the right ones a result has to be."""

from collections.abc import Callable

import torch
from torch import Tensor

#: Largest error against float64, relative to the largest number of the tensor: by the dtype that it
#: is stored in. A few roundings each.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 5e-3,
    torch.float16: 6e-4,
}

DTYPES = tuple(TOLERANCE)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def drawer(
    seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Callable[..., Tensor]:
    """A function that draws normal numbers of a shape, the same for every dtype up to rounding."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return x.to(device, dtype)

    return draw


def assert_near(
    got: Tensor,
    expected: Tensor,
    dtype: torch.dtype | None = None,
    *,
    factor: float = 1,
    what: str = "",
) -> None:
    """``got`` equals the float64 ``expected`` up to the tolerance of ``dtype``, by default its own.

    Relative to the largest finite number of ``expected``; NaN and infinity must be where they are.
    """
    assert got.shape == expected.shape, f"{what}: {tuple(got.shape)}, not {tuple(expected.shape)}"
    expected = expected.to(torch.float64)
    finite = expected[torch.isfinite(expected)].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    tolerance = factor * TOLERANCE[dtype or got.dtype] * largest
    torch.testing.assert_close(
        got.detach().to(torch.float64),
        expected.detach(),
        rtol=0,
        atol=tolerance,
        equal_nan=True,
        check_device=False,
        msg=lambda text: f"{what}\n{text}",
    )
