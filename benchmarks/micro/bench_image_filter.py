"""Image filtering under pytest-benchmark: `pytest benchmarks/ --benchmark-only`.

Every sample is filtered, at 16x3x256x256, against the same in plain PyTorch.
"""

from __future__ import annotations

import pytest
import torch

from gankernels import ops, reference
from gankernels.reference.image_filter import image_filter as reference_image_filter


@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("kind", ["PyTorch", "gankernels"])
def test_filter(measure, device: str, kind: str, size: int) -> None:
    """16 images of 3 channels, forward."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 3, size, size, generator=generator).to(device)
    gains = (torch.rand(16, 4, generator=generator) + 0.5).to(device)
    run = {"PyTorch": reference, "gankernels": ops}[kind].image_filter
    expected = reference_image_filter(x.double(), gains.double())
    torch.testing.assert_close(run(x, gains).double(), expected, rtol=0, atol=1e-4)
    measure(lambda: run(x, gains), group=f"image_filter, 16x3x{size}x{size}", name=kind)
