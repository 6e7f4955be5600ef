"""Parameters of augmentation under pytest-benchmark: `pytest benchmarks/ --benchmark-only`.

All transforms on, values and composed maps, against the same in plain PyTorch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gankernels import ops, reference
from gankernels.ops.ada_parameters import NORMALS, UNIFORMS, AdaMultipliers
from gankernels.reference.ada_parameters import ada_parameters as reference_ada_parameters

EVERYTHING = AdaMultipliers._make((*[1.0] * 15, (1.0,) * 4))


@pytest.mark.parametrize("batch", [16, 64])
@pytest.mark.parametrize("kind", ["PyTorch", "gankernels"])
def test_parameters(measure, device: str, batch: int, kind: str) -> None:
    """From draws to maps, color matrices and the rest, for 256 x 256 pixels."""
    options: Any = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(0)}
    arguments: dict[str, Any] = {
        "p": torch.tensor(0.6, device=device),
        "multipliers": EVERYTHING,
        "uniforms": torch.rand(batch, UNIFORMS, **options).to(device),
        "normals": torch.randn(batch, NORMALS, **options).to(device),
        "height": 256,
        "width": 256,
        "color_channels": 3,
    }
    run = {"PyTorch": reference, "gankernels": ops}[kind].ada_parameters
    expected = reference_ada_parameters(**arguments)
    torch.testing.assert_close(run(**arguments).maps, expected.maps, rtol=1e-12, atol=1e-9)
    measure(lambda: run(**arguments), group=f"ada_parameters, batch {batch}", name=kind)
