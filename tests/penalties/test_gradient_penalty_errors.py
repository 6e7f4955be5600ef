"""What gradient_penalty cannot take, and the words for it; what its operators refuse themselves."""

import re

import pytest
import torch
from support.backends import native_ops
from support.tensors import assert_near, drawer
from torch import nn

import gankernels
from gankernels import ops

G = torch.ones(4, 3)
CASES = [
    (TypeError, "a tensor or a list of tensors, with at least one, got an empty list", [[]], {}),
    (TypeError, "a tensor or a list of tensors, with at least one, got NoneType", [None], {}),
    (TypeError, "a tensor or a list of tensors, with at least one, got list", [[G, 1.0]], {}),
    (TypeError, "a list of tensors, with at least one, got float", [1.0], {}),
    (ValueError, "grads to have a batch dimension, got a scalar", [torch.ones(())], {}),
    (ValueError, "grads to have elements, got an empty batch", [torch.ones(0, 3)], {}),
    (ValueError, "grads to have elements, got samples without", [torch.ones(3, 0)], {}),
    (ValueError, "grads[1] to have a batch dimension", [[G, torch.ones(())]], {}),
    (ValueError, "grads[1] to have elements, got samples without", [[G, G[:, :0]]], {}),
    (
        ValueError,
        "one batch size, got 4 samples in grads[0] and 5 in grads[1]",
        [[G, torch.ones(5, 3)]],
        {},
    ),
    (ValueError, "one batch size, got 1 samples in grads[0] and 4", [[G[:1], G]], {}),
    (ValueError, "one dtype and device, got float32 of shape", [[G, G.double()]], {}),
    (ValueError, "grads[1] float32 of shape (4, 3) on meta", [[G, G.to("meta")]], {}),
    (TypeError, "floating-point dtype, got torch.int64", [G.long()], {}),
    (TypeError, "grads[1] of a floating-point dtype, got torch.int32", [[G, G.int()]], {}),
    (TypeError, "floating-point dtype, got torch.bool", [G.bool()], {}),
    (TypeError, "floating-point dtype, got torch.complex64", [G.cfloat()], {}),
    (ValueError, "weight to be finite and not negative, got -1.0", [G], {"weight": -1.0}),
    (ValueError, "weight to be finite and not negative, got nan", [G], {"weight": float("nan")}),
    (ValueError, "weight to be finite and not negative, got inf", [G], {"weight": float("inf")}),
    (TypeError, "weight to be a number, got bool", [G], {"weight": True}),
    (TypeError, "weight to be a number, got Tensor", [G], {"weight": torch.ones(())}),
    (ValueError, "center to be finite and not negative, got -0.5", [G], {"center": -0.5}),
    (ValueError, "center to be finite and not negative, got nan", [G], {"center": float("nan")}),
    (ValueError, "center to be finite and not negative, got inf", [G], {"center": float("inf")}),
    (TypeError, "center to be a number, got str", [G], {"center": "1"}),
    (TypeError, "one_sided to be True or False, got str", [G], {"one_sided": "yes"}),
    (TypeError, "one_sided to be True or False, got int", [G], {"one_sided": 1}),
    (TypeError, "one_sided to be True or False, got NoneType", [G], {"one_sided": None}),
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
    (TypeError, "floating-point dtype, got torch.bool", [G], {"sample_weight": G[:, 0] > 0}),
    (ValueError, "got float32 of shape ()", [G], {"sample_weight": torch.ones(())}),
    (ValueError, "got float32 of shape (1,)", [G], {"sample_weight": torch.ones(1)}),
    (ValueError, "sample_weight of shape (4,)", [G], {"sample_weight": torch.ones(3)}),
    (ValueError, "sample_weight of shape (4,)", [G], {"sample_weight": torch.ones(4, 1)}),
    (ValueError, "on cpu, got float32", [G], {"sample_weight": torch.ones(4, device="meta")}),
    (ValueError, "inv_scale of one element", [G], {"inv_scale": torch.ones(2)}),
    (ValueError, "inv_scale of one element", [G], {"inv_scale": torch.ones(0)}),
    (ValueError, "on cpu, got float32", [G], {"inv_scale": torch.ones(1, device="meta")}),
    (TypeError, "inv_scale of a floating-point", [G], {"inv_scale": torch.ones(1).int()}),
    (TypeError, "inv_scale to be a tensor, got float", [G], {"inv_scale": 2.0}),
]


@pytest.mark.parametrize("error, message, args, options", CASES, ids=[c[1] for c in CASES])
@pytest.mark.parametrize("where", ["native", "reference"])
def test_refused(where, error, message, args, options):
    with gankernels.backend(where), pytest.raises(error, match=re.escape(message)) as found:
        ops.gradient_penalty(*args, **options)
    assert str(found.value).startswith("gradient_penalty: expected ")


def moved(x, device, trainable=False):
    """The same on another device, but for what is on none."""
    if isinstance(x, (list, dict)):
        pairs = x.items() if isinstance(x, dict) else enumerate(x)
        found = {key: moved(value, device, trainable) for key, value in pairs}
        return found if isinstance(x, dict) else list(found.values())
    if not isinstance(x, torch.Tensor) or x.is_meta:
        return x
    return x.to(device).detach().clone().requires_grad_(trainable and x.is_floating_point())


@pytest.mark.parametrize("error, message, args, options", CASES, ids=[c[1] for c in CASES])
def test_refused_on_the_way_to_a_graph(backend, error, message, args, options):
    """On every backend, where the gradients need gradients."""
    if isinstance(args[0], torch.Tensor) and not args[0].is_floating_point():
        pytest.skip("has no kernels on any backend")
    args, options = moved(args, backend, trainable=True), moved(options, backend)
    message = message.replace("on cpu", f"on {torch.ones((), device=backend).device}")
    with pytest.raises(error, match=re.escape(message)) as found:
        ops.gradient_penalty(*args, **options)
    assert found.type is error


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


# --- unusual, and right --------------------------------------------------------------------------


def test_any_sequence_of_tensors(backend):
    draw = drawer(0, device=backend)
    a, b = draw(3, 4), draw(3, 5, 2)
    expected = ops.gradient_penalty([a, b], center=1.0)
    for given in ((a, b), [nn.Parameter(a), nn.Parameter(b)]):
        assert torch.equal(ops.gradient_penalty(given, center=1.0), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_dtype(backend, dtype):
    """They are cast, and their gradient comes back in their own dtype."""
    g = drawer(0, device=backend)(3, 4)
    weight = torch.tensor([0.5, 2.0, 0.0], dtype=dtype, device=backend, requires_grad=True)
    scale = torch.tensor([[0.25]], dtype=dtype, device=backend)
    value = ops.gradient_penalty(g, sample_weight=weight, inv_scale=scale, reduction="sum")
    assert value.dtype == torch.float32
    squares = (g.double() * 0.25).square().sum(1).cpu()
    assert_near(value.cpu(), (squares * weight.detach().double().cpu()).sum())
    (found,) = torch.autograd.grad(value, weight)
    assert found.dtype == dtype
    assert_near(found.cpu(), squares, torch.float32 if dtype == torch.float64 else dtype)


def test_weights_that_are_strided(backend):
    g = drawer(0, device=backend)(3, 4)
    every_second = torch.tensor([0.5, 9.0, 2.0, 9.0, 1.0, 9.0], device=backend)[::2]
    same_for_all = torch.tensor([3.0], device=backend).expand(3)
    for weight in (every_second, same_for_all):
        found = ops.gradient_penalty(g, sample_weight=weight)
        assert torch.equal(found, ops.gradient_penalty(g, sample_weight=weight.clone()))


def test_inv_scale_is_held_constant(backend):
    """1 / S of a gradient scaler: it takes no gradient, of whatever shape it comes."""
    g = drawer(0, device=backend)(3, 4).requires_grad_()
    scale = torch.full((1, 1), 0.25, device=backend, requires_grad=True)
    value = ops.gradient_penalty(g, center=1.0, inv_scale=scale)
    assert torch.autograd.grad(value, scale, allow_unused=True, retain_graph=True) == (None,)
    assert_near(value.cpu(), ops.gradient_penalty(g * 0.25, center=1.0).double().cpu().detach())
    (found,) = torch.autograd.grad(value, g)
    exact = g.detach().double().requires_grad_()
    expected = ((exact * 0.25).norm(dim=1) - 1).square().mean()
    assert_near(found.cpu(), torch.autograd.grad(expected, exact)[0].cpu())


# --- the operators by themselves: memory safety ---------------------------------------------------

NAMES = (
    "sample_weight",
    "inv_scale",
    "center",
    "one_sided",
    "weight",
    "per_tensor",
    "reduction",
)
OPTIONS = (None, None, 1.0, False, 1.0, False, 1)


def option(**changes):
    return tuple((dict(zip(NAMES, OPTIONS, strict=True)) | changes).values())


BAD_FORWARDS = {
    "no gradients": (
        lambda g: [],
        option(sample_weight=torch.ones(4)),
        "at least one gradient",
    ),
    "a scalar": (lambda g: [g[0, 0]], OPTIONS, "a batch dimension"),
    "no elements": (lambda g: [g[:0]], OPTIONS, "with elements"),
    "two batch sizes": (lambda g: [g, g[1:]], OPTIONS, "of one batch size"),
    "two dtypes": (lambda g: [g, g.double()], OPTIONS, "of one dtype"),
    "integers": (lambda g: [g.int()], OPTIONS, "float32, float64, bfloat16 or float16"),
    "samples with gaps": (lambda g: [g[:, 1:]], OPTIONS, "one row after the other"),
    "elements with gaps": (lambda g: [g[:, ::2]], OPTIONS, "memory is dense"),
    "samples over each other": (lambda g: [g[:1].expand(4, 6)], OPTIONS, "one row after the"),
    "elements over each other": (lambda g: [g[:, :1].expand(4, 6)], OPTIONS, "memory is dense"),
    "transposed": (lambda g: [g.t()], OPTIONS, "memory is dense"),
    "reduction of 3": (lambda g: [g], option(reduction=3), "reduction to be 0"),
    "reduction of -1": (lambda g: [g], option(reduction=-1), "reduction to be 0"),
    "short weights": (lambda g: [g], option(sample_weight=torch.ones(3)), "sample_weight of 4"),
    "wide weights": (
        lambda g: [g],
        option(sample_weight=torch.ones(4).double()),
        "sample_weight of 4 contiguous elements of float32",
    ),
    "strided weights": (
        lambda g: [g],
        option(sample_weight=torch.ones(8)[::2]),
        "sample_weight of 4 contiguous",
    ),
    "two scales": (lambda g: [g], option(inv_scale=torch.ones(2)), "inv_scale of 1 contiguous"),
}


def on(device, x):
    return x.to(device) if isinstance(x, torch.Tensor) and x.is_contiguous() else x


@pytest.mark.parametrize("case", BAD_FORWARDS)
def test_the_operator_refuses(backend, case):
    change, options, words = BAD_FORWARDS[case]
    grads = change(drawer(0, device=backend)(4, 6))
    options = [on(backend, x) for x in options]
    with pytest.raises(RuntimeError, match=f"gradient_penalty: expected .*{words}"):
        native_ops().gradient_penalty(grads, *options)


#: Changes to (seed, grads, norms) of a backward without a reduction, and words.
BAD_BACKWARDS = {
    "short seed": (lambda s, g, n: (s[:3], g, n), "the cotangents of 4 contiguous"),
    "long seed": (lambda s, g, n: (s.repeat(2), g, n), "the cotangents of 4 contiguous"),
    "strided seed": (lambda s, g, n: (s.repeat(2)[::2], g, n), "the cotangents of 4 contiguous"),
    "wide seed": (lambda s, g, n: (s.double(), g, n), "the cotangents of 4 .*float32"),
    "short norms": (lambda s, g, n: (s, g, n[:3]), "norms of 4 contiguous"),
    "wide norms": (lambda s, g, n: (s, g, n.double()), "norms of 4 .*float32"),
    "gaps": (lambda s, g, n: (s, [g[0][:, 1:]], n), "one row after the other"),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", BAD_BACKWARDS)
def test_the_backward_refuses(backend, case, order):
    change, words = BAD_BACKWARDS[case]
    g = drawer(0, device=backend)(4, 6)
    options = option(reduction=0)
    values, norms = native_ops().gradient_penalty([g], *options)
    args = change(values, [g], norms)
    name = "gradient_penalty_backward"
    if order == 2:
        name = "gradient_penalty_double_backward"
        args = ([torch.ones_like(x) for x in args[1]], None, *args)
    with pytest.raises(RuntimeError, match=f"{name}: expected .*{words}"):
        getattr(native_ops(), name)(*args, *options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h, e: ([], e), "one cotangent a gradient"),
        (lambda h, e: ([*h, *h], e), "one cotangent a gradient"),
        (lambda h, e: ([h[0][:3]], e), "of the shapes of what they belong to"),
        (lambda h, e: ([h[0].view(4, 2, 3)], e), "of the dtype and shapes"),
        (lambda h, e: ([h[0].double()], e), "of the dtype and shapes"),
        (lambda h, e: (h, e[:3]), "sample_weight's gradient of 4 contiguous"),
        (lambda h, e: (h, e.double()), "sample_weight's gradient of 4 .*float32"),
    ],
    ids=["none", "two", "few samples", "rank", "dtype", "short e", "wide e"],
)
def test_the_double_backward_refuses(backend, change, words):
    g = drawer(0, device=backend)(4, 6)
    weight = torch.ones(4, device=backend)
    options = option(sample_weight=weight)
    value, norms = native_ops().gradient_penalty([g], *options)
    h, e = change([torch.ones_like(g)], torch.ones(4, device=backend))
    with pytest.raises(RuntimeError, match=f"double_backward: expected .*{words}"):
        native_ops().gradient_penalty_double_backward(h, e, value, [g], norms, *options)
