"""torch.jit.trace records operators, which it can save, also of inputs that require a gradient."""

import io

import pytest
import torch

from gankernels import ops
from gankernels.ops._operator import EXAMPLES

OF_TENSORS = [
    "affine_augment",
    "affine_resample",
    "affine_resample_transpose",
    "gradient_penalty",
    "image_filter",
    "image_filter_transpose",
    "weight_norm",
]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", OF_TENSORS)
@pytest.mark.parametrize("trainable", [False, True])
def test_a_trace_can_be_saved(name, trainable):
    arguments = EXAMPLES[name](lambda *shape: torch.randn(shape))
    arguments = {k: x[0] if isinstance(x, list) else x for k, x in arguments.items()}
    # What is recorded as a constant may not require a gradient.
    arguments = {k: x.detach() if torch.is_tensor(x) else x for k, x in arguments.items()}
    first, x = next(iter(arguments.items()))
    x = x.detach().requires_grad_(trainable)

    def call(x):
        found = getattr(ops, name)(**{**arguments, first: x})
        return found[0] if isinstance(found, tuple) else found

    trace = torch.jit.trace(call, (x,), check_trace=False)
    kinds = {node.kind() for node in trace.graph.nodes()}
    assert any(kind.startswith("gankernels::") for kind in kinds)
    file = io.BytesIO()
    torch.jit.save(trace, file)
    file.seek(0)
    again = torch.jit.load(file)
    y = torch.randn_like(x)
    torch.testing.assert_close(again(y), call(y))
