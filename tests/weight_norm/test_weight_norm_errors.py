"""What weight_norm cannot take, and the words for it; what its operators refuse themselves."""

import re

import pytest
import torch
from support.backends import native_ops
from support.tensors import drawer
from torch import nn

import gankernels
from gankernels import ops

V, G = torch.ones(4, 3), torch.ones(4)
SPARSE = torch.eye(4).to_sparse()
NESTED = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
CASES = [
    (TypeError, "v to be a list of tensors, got NoneType", [None, G], {}),
    (
        TypeError,
        "v to be a list of tensors, got generator; pass list(v)",
        [(x for x in [V]), [G]],
        {},
    ),
    (TypeError, "v to be a list of tensors, got a list with float", [[1.0], [G]], {}),
    (ValueError, "v with at least one tensor, got an empty list", [[], []], {}),
    (TypeError, "g to be a tensor, as v is, got float", [V, 1.0], {}),
    (TypeError, "g to be a tensor, as v is, got list", [V, [G]], {}),
    (TypeError, "g to be a list of tensors, got Tensor", [[V], G], {}),
    (TypeError, "g to be a list of tensors, got a list with NoneType", [[V], [None]], {}),
    (ValueError, "one g and one dim for each v, got 2 v, 1 g and 2 dims", [[V, V], [G]], {}),
    (
        ValueError,
        "one g and one dim for each v, got 1 v, 1 g and 2 dims",
        [[V], [G]],
        {"dim": [0, 0]},
    ),
    (TypeError, "dim to be an int or None, got list", [V, G], {"dim": [0]}),
    (TypeError, "dim to be an int or None, got bool", [V, G], {"dim": True}),
    (TypeError, "dim to be an int or None, got float", [V, G], {"dim": 0.0}),
    (TypeError, "dim to be an int or None, got str", [[V], [G]], {"dim": ["0"]}),
    (
        ValueError,
        "dim from 0 to 1 for v of shape (4, 3), or None for one norm of all elements, got -1 "
        "(torch's -1 is None here)",
        [V, G],
        {"dim": -1},
    ),
    (ValueError, "dim from 0 to 1 for v[1] of shape (4, 3)", [[V, V], [G, G]], {"dim": [0, 2]}),
    (ValueError, "v to have a dimension and elements, got shape ()", [torch.ones(()), G], {}),
    (ValueError, "v to have a dimension and elements, got shape (0, 3)", [V[:0], G[:0]], {}),
    (ValueError, "v[1] to have a dimension and elements", [[V, V[:, :0]], [G, G]], {}),
    (
        ValueError,
        "g of 4 elements, one for each slice along dim 0 of v, got shape (3,)",
        [V, G[:3]],
        {},
    ),
    (ValueError, "g of 3 elements, one for each slice along dim 1 of v", [V, G], {"dim": 1}),
    (ValueError, "g of 1 elements", [V, G], {"dim": None}),
    (ValueError, "g[1] of 4 elements", [[V, V], [G, G[:1]]], {}),
    (
        ValueError,
        "v and g of one dtype and device, got float32 of shape (4, 3) on cpu and g float64 of "
        "shape (4,) on cpu; convert them, or make a call for each",
        [V, G.double()],
        {},
    ),
    (ValueError, "and v[1] bfloat16 of shape (4, 3)", [[V, V.bfloat16()], [G, G.bfloat16()]], {}),
    (ValueError, "and g float32 of shape (4,) on meta", [V, G.to("meta")], {}),
    (TypeError, "v of a floating-point dtype, got torch.int64; convert it", [V.long(), G], {}),
    (TypeError, "g of a floating-point dtype, got torch.bool; convert it", [V, G > 0], {}),
    (TypeError, "v of a floating-point dtype, got torch.complex64", [V.cfloat(), G], {}),
    (TypeError, "g[0] of a floating-point dtype", [[V, V], [G.int(), G]], {}),
    (TypeError, "v to be a dense tensor, got torch.sparse_coo; pass v.to_dense()", [SPARSE, G], {}),
    (TypeError, "v to be a dense tensor, got a nested tensor", [NESTED, G[:2]], {}),
    (
        TypeError,
        "v of a floating-point dtype, got torch.float8_e4m3fn",
        [V.to(torch.float8_e4m3fn), G],
        {},
    ),
]


@pytest.mark.parametrize("error, message, args, options", CASES, ids=[c[1] for c in CASES])
@pytest.mark.parametrize("where", ["native", "reference"])
def test_refused(where, error, message, args, options):
    with gankernels.backend(where), pytest.raises(error, match=re.escape(message)) as found:
        ops.weight_norm(*args, **options)
    assert str(found.value).startswith("weight_norm: expected ")
    assert type(found.value) is error


def test_any_list_of_parameters(backend):
    draw = drawer(0, device=backend)
    v, g = [draw(3, 4), draw(5, 2)], [draw(3), draw(5)]
    expected = ops.weight_norm(v, g)
    for given in (
        (tuple(v), tuple(g)),
        ([nn.Parameter(x) for x in v], [nn.Parameter(x) for x in g]),
    ):
        found = ops.weight_norm(*given)
        assert isinstance(found, list)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    mixed = ops.weight_norm(v, [g[0], g[1][:1]], dim=(0, None))
    assert torch.equal(mixed[0], expected[0])


def test_the_same_weight_twice(backend):
    draw = drawer(0, device=backend)
    v, g = draw(3, 4).requires_grad_(), draw(3).requires_grad_()
    a, b = ops.weight_norm([v, v], [g, g])
    found = torch.autograd.grad((a * b).sum(), (v, g))
    w = ops.weight_norm(v, g)
    expected = torch.autograd.grad((w * w).sum(), (v, g))
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want)


# --- the operators by themselves: memory safety ---------------------------------------------------

BAD_FORWARDS = {
    "nothing": (lambda v, g: ([], [g]), "at least one weight, and one g for each"),
    "no g": (lambda v, g: ([v], []), "at least one weight, and one g for each"),
    "a scalar": (lambda v, g: ([v[0, 0]], [g]), "weights with elements"),
    "no elements": (lambda v, g: ([v[:0]], [g[:0]]), "weights with elements"),
    "two dtypes": (lambda v, g: ([v, v.double()], [g, g]), "weights of one dtype"),
    "integers": (lambda v, g: ([v.int()], [g]), "float32, float64, bfloat16 or float16"),
    "rows with gaps": (lambda v, g: ([v[:, 1:]], [g]), "one row after the other"),
    "elements with gaps": (lambda v, g: ([v[:, ::2]], [g]), "memory is dense"),
    "rows over each other": (lambda v, g: ([v[:1].expand(4, 6)], [g]), "one row after the other"),
    "transposed": (lambda v, g: ([v.t()], [g]), "memory is dense"),
    "short g": (lambda v, g: ([v], [g[:3]]), "g of 4 contiguous elements of float32"),
    "wide g": (lambda v, g: ([v], [g.double()]), "g of 4 contiguous elements of float32"),
    "strided g": (lambda v, g: ([v], [g.repeat(2)[::2]]), "g of 4 contiguous"),
    "a second g": (lambda v, g: ([v, v], [g, g[:2]]), "g of 4 contiguous"),
}


@pytest.mark.parametrize("case", BAD_FORWARDS)
def test_the_operator_refuses(backend, case):
    change, words = BAD_FORWARDS[case]
    draw = drawer(0, device=backend)
    with pytest.raises(RuntimeError, match=f"weight_norm: expected .*{words}"):
        native_ops().weight_norm(*change(draw(4, 6), draw(4)))


#: Changes to (x, v, g, norms) of a backward, and words.
BAD_BACKWARDS = {
    "no cotangents": (lambda x, v, g, n: ([], v, g, n), "one cotangent a weight"),
    "two cotangents": (lambda x, v, g, n: (x * 2, v, g, n), "one cotangent a weight"),
    "few rows": (lambda x, v, g, n: ([x[0][:3]], v, g, n), "of the shapes of what they belong to"),
    "rank": (lambda x, v, g, n: ([x[0].view(4, 2, 3)], v, g, n), "of the dtype and shapes"),
    "wide": (lambda x, v, g, n: ([x[0].double()], v, g, n), "of the dtype and shapes"),
    "short norms": (lambda x, v, g, n: (x, v, g, n[:3]), "norms of 4 contiguous"),
    "wide norms": (lambda x, v, g, n: (x, v, g, n.double()), "norms of 4 .*float32"),
    "strided norms": (lambda x, v, g, n: (x, v, g, n.repeat(2)[::2]), "norms of 4 contiguous"),
    "gaps": (lambda x, v, g, n: (x, [v[0][:, 1:]], g, n), "one row after the other"),
    "short g": (lambda x, v, g, n: (x, v, [g[0][:3]], n), "g of 4 contiguous"),
    "no g": (lambda x, v, g, n: (x, v, [], n), "one g for each"),
}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("case", BAD_BACKWARDS)
def test_the_backward_refuses(backend, case, order):
    change, words = BAD_BACKWARDS[case]
    draw = drawer(0, device=backend)
    v, g = draw(4, 6), draw(4)
    _, norms = native_ops().weight_norm([v], [g])
    args = change([draw(4, 6)], [v], [g], norms)
    name = "weight_norm_backward"
    if order == 2:
        name = "weight_norm_double_backward"
        args = ([torch.ones_like(x) for x in args[1]], [torch.ones_like(x) for x in args[2]], *args)
    with pytest.raises(RuntimeError, match=f"{name}: expected .*{words}"):
        getattr(native_ops(), name)(*args)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h, e: ([], e), "one cotangent a weight"),
        (lambda h, e: (h, []), "one cotangent a weight"),
        (lambda h, e: ([h[0][:3]], e), "of the shapes of what they belong to"),
        (lambda h, e: ([h[0].double()], e), "of the dtype and shapes"),
        (lambda h, e: (h, [e[0][:3]]), "of the shapes of what they belong to"),
        (lambda h, e: (h, [e[0].view(4, 1)]), "of the dtype and shapes"),
        (lambda h, e: (h, [e[0].double()]), "of the dtype and shapes"),
    ],
    ids=["no h", "no e", "few rows", "wide h", "short e", "rank of e", "wide e"],
)
def test_the_double_backward_refuses(backend, change, words):
    draw = drawer(0, device=backend)
    v, g, x = draw(4, 6), draw(4), draw(4, 6)
    _, norms = native_ops().weight_norm([v], [g])
    h, e = change([torch.ones_like(v)], [torch.ones_like(g)])
    with pytest.raises(RuntimeError, match=f"double_backward: expected .*{words}"):
        native_ops().weight_norm_double_backward(h, e, [x], [v], [g], norms)
