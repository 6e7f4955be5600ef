"""What gradient_penalty cannot take, and the words for it."""

import re

import pytest
import torch

from gankernels import backend, ops

G = torch.ones(4, 3)
CASES = [
    (TypeError, "a tensor or a list of tensors, with at least one, got an empty list", [[]], {}),
    (TypeError, "a tensor or a list of tensors, with at least one, got NoneType", [None], {}),
    (TypeError, "a tensor or a list of tensors, with at least one, got list", [[G, 1.0]], {}),
    (ValueError, "grads to have a batch dimension, got a scalar", [torch.ones(())], {}),
    (ValueError, "grads to have elements, got an empty batch", [torch.ones(0, 3)], {}),
    (ValueError, "grads to have elements, got samples without", [torch.ones(3, 0)], {}),
    (
        ValueError,
        "one batch size, got 4 samples in grads[0] and 5 in grads[1]",
        [[G, torch.ones(5, 3)]],
        {},
    ),
    (ValueError, "one dtype and device, got float32 of shape", [[G, G.double()]], {}),
    (ValueError, "grads[1] float32 of shape (4, 3) on meta", [[G, G.to("meta")]], {}),
    (TypeError, "floating-point dtype, got torch.int64", [G.long()], {}),
    (TypeError, "floating-point dtype, got torch.bool", [G.bool()], {}),
    (TypeError, "floating-point dtype, got torch.complex64", [G.cfloat()], {}),
    (ValueError, "weight to be finite and not negative, got -1.0", [G], {"weight": -1.0}),
    (ValueError, "weight to be finite and not negative, got nan", [G], {"weight": float("nan")}),
    (ValueError, "weight to be finite and not negative, got inf", [G], {"weight": float("inf")}),
    (TypeError, "weight to be a number, got bool", [G], {"weight": True}),
    (TypeError, "weight to be a number, got Tensor", [G], {"weight": torch.ones(())}),
    (ValueError, "center to be finite and not negative, got -0.5", [G], {"center": -0.5}),
    (TypeError, "center to be a number, got str", [G], {"center": "1"}),
    (TypeError, "one_sided to be True or False, got str", [G], {"one_sided": "yes"}),
    (TypeError, "per_tensor to be True or False, got int", [G], {"per_tensor": 1}),
    (ValueError, 'reduction "mean", "sum" or "none", got \'max\'', [G], {"reduction": "max"}),
    (ValueError, 'reduction "mean", "sum" or "none", got None', [G], {"reduction": None}),
    (TypeError, "sample_weight to be a tensor, got float", [G], {"sample_weight": 0.5}),
    (
        TypeError,
        "floating-point dtype, got torch.int64",
        [G],
        {"sample_weight": torch.ones(4).long()},
    ),
    (ValueError, "sample_weight of shape (4,)", [G], {"sample_weight": torch.ones(3)}),
    (ValueError, "sample_weight of shape (4,)", [G], {"sample_weight": torch.ones(4, 1)}),
    (ValueError, "on cpu, got float32", [G], {"sample_weight": torch.ones(4, device="meta")}),
    (ValueError, "inv_scale of one element", [G], {"inv_scale": torch.ones(2)}),
    (TypeError, "inv_scale to be a tensor, got float", [G], {"inv_scale": 2.0}),
]


@pytest.mark.parametrize("error, message, args, options", CASES, ids=[c[1] for c in CASES])
@pytest.mark.parametrize("where", ["native", "reference"])
def test_refused(where, error, message, args, options):
    with backend(where), pytest.raises(error, match=re.escape(message)) as found:
        ops.gradient_penalty(*args, **options)
    assert str(found.value).startswith("gradient_penalty: expected ")


@pytest.mark.parametrize("error, message, args, options", CASES, ids=[c[1] for c in CASES])
def test_compiled_calls_are_refused_alike(error, message, args, options):
    """Dynamo traces the checks, and raises what they raise or wraps it."""
    if not isinstance(args[0], torch.Tensor) or not args[0].is_floating_point():
        pytest.skip("traced as far as this, others are refused in the same place")
    torch._dynamo.reset()
    with pytest.raises(Exception, match=re.escape(message)):
        torch.compile(ops.gradient_penalty, backend="eager")(*args, **options)


def test_integers_are_numbers():
    assert ops.gradient_penalty(G, center=1, weight=2) == ops.gradient_penalty(
        G, center=1.0, weight=2.0
    )
