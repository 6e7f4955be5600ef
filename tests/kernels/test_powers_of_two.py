"""Sizes at and beside the powers of two, where the kernels' pieces, chunks and vectors end."""

import pytest
import torch
from support.tensors import DTYPES, assert_near, drawer, dtype_name
from support.weights import joined
from torch import Tensor

import gankernels
from gankernels import ops, reference

#: 2^k and one less and one more: a piece of half precision is 2^11 elements, of a penalty 2^15.
SIZES = sorted({2**k + d for k in (3, 5, 11) for d in (-1, 0, 1)})
#: Whole samples and the last piece of one.
SAMPLES = [2**11 - 1, 2**11, 2**11 + 1, 2**12, 2**15 - 1, 2**15, 2**15 + 1, 2**15 + 2**11]


@pytest.fixture(autouse=True)
def one_thread(threads):
    threads(1)


#: Weights of `size` elements or a few times that, rows first.
WEIGHTS = {
    "one_row": lambda draw, size: draw(1, size),
    "one_column": lambda draw, size: draw(size, 1),
    "rows": lambda draw, size: draw(17, size),
    "columns": lambda draw, size: draw(size, 17),
    "transposed": lambda draw, size: draw(size, 17).t(),
    "slabs": lambda draw, size: draw(3, size, 2).movedim(1, 0),
    "one_slab": lambda draw, size: draw(1, size, 4).movedim(1, 0),
    "channels_last": lambda draw, size: draw(2, size, 2, 2).to(memory_format=torch.channels_last),
}


def check_spectral_norm(weights: list[Tensor], order: str, what: str) -> None:
    """Forward, backward and double backward against float64, from the same u, v and sigma."""
    dtype, draw = weights[0].dtype, drawer(1, weights[0].dtype)
    u = [torch.nn.functional.normalize(draw(w.shape[0]), dim=0) for w in weights]
    v = [torch.nn.functional.normalize(draw(w.numel() // w.shape[0]), dim=0) for w in weights]
    wide = [[x.to(torch.float64, copy=True) for x in vectors] for vectors in (weights, u, v)]
    found = ops.power_iteration_(weights, u, v, 1, 1e-12, order)
    expected = reference.power_iteration_(*wide, 1, 1e-12, order)
    assert_near(joined(found), joined(expected), dtype, factor=4, what=f"{what}: the iteration")
    u, v, sigma = found
    constants = [x.double() for x in u], [x.double() for x in v], sigma.double()
    g, h = ([draw(*w.shape) for w in weights] for _ in range(2))

    def passes(weights, u, v, sigma, normalize):
        weights = [w.detach().requires_grad_() for w in weights]
        cotangents = [x.to(weights[0].dtype).requires_grad_() for x in g]
        outputs, _ = normalize(weights, u, v, sigma)
        grads = torch.autograd.grad(outputs, weights, cotangents, create_graph=True)
        seeds = [x.to(weights[0].dtype) for x in h]
        second = torch.autograd.grad(grads, [*cotangents, *weights], seeds)
        return [*outputs, *grads, *second]

    got = passes(weights, u, v, sigma, ops.spectral_normalize)
    right = passes(wide[0], *constants, reference.spectral_normalize)
    for i, (a, b) in enumerate(zip(got, right, strict=True)):
        assert_near(a, b, dtype, factor=4, what=f"{what}: result {i}")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", WEIGHTS)
def test_spectral_norm(cpu_backend, layout, dtype):
    for i, size in enumerate(SIZES):
        weight = WEIGHTS[layout](drawer(0, dtype), size)
        order = "u_first" if i % 2 else "v_first"
        check_spectral_norm([weight], order, f"{layout} {size} {order}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_chunks_of_2048_elements(cpu_backend, dtype):
    """The last chunk of a weight that is cut into several has as many elements as a piece."""
    draw = drawer(0, dtype)
    for shape in ((2048 * 16 + 2048, 1), (34, 1024), (64, 32), (1, 128, 4, 4), (16, 8, 4, 4)):
        check_spectral_norm([draw(*shape)], "u_first", str(shape))
    check_spectral_norm([draw(16, 8, 4, 4).movedim(1, 0), draw(64, 32)], "v_first", "two weights")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("size", SAMPLES)
def test_gradient_penalty(cpu_backend, size, dtype):
    draw = drawer(0, dtype)
    x, h = draw(3, size), draw(3, size)

    def passes(x, penalty):
        x = x.clone().requires_grad_()
        value = penalty(x)
        (grad,) = torch.autograd.grad(value, x, create_graph=True)
        (second,) = torch.autograd.grad(grad, x, h.to(x.dtype))
        return value, grad, second

    for center in (0.0, 1.0):
        got = passes(x, lambda x, c=center: ops.gradient_penalty(x, center=c))
        right = passes(x.double(), lambda x, c=center: reference.gradient_penalty(x, center=c))
        for i, (a, b) in enumerate(zip(got, right, strict=True)):
            assert_near(a, b, dtype, factor=4, what=f"center {center}: result {i}")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("size", SAMPLES)
def test_weight_norm(cpu_backend, size, dtype):
    draw = drawer(0, dtype)
    v, g, x, h = draw(3, size), draw(3), draw(3, size), draw(3, size)

    def passes(op, *tensors):
        v, g, x, h = (t.detach().requires_grad_() for t in tensors)
        w = op(v, g)
        first = torch.autograd.grad(w, (v, g), x, create_graph=True)
        return [w, *first, *torch.autograd.grad(first[0], (x, v, g), h)]

    got = passes(ops.weight_norm, v, g, x, h)
    right = passes(reference.weight_norm, *(t.double() for t in (v, g, x, h)))
    for i, (a, b) in enumerate(zip(got, right, strict=True)):
        assert_near(a, b, dtype, factor=4, what=f"result {i}")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("how", ["hook", "parametrization", "fused"])
def test_drop_ins(cpu_backend, how, dtype):
    """Training steps of layers whose gradients are pieces of 2048 elements."""
    layers = [torch.nn.Linear(2048, 1), torch.nn.Linear(64, 32), torch.nn.Linear(1024, 34)]
    normalize = gankernels.nn.utils.spectral_norm
    if how != "hook":
        normalize = gankernels.nn.utils.parametrizations.spectral_norm
    model = torch.nn.ModuleList(normalize(layer) for layer in layers).to(dtype)
    if how == "fused":
        gankernels.fuse_spectral_norm(model)
    for layer in model:
        x = torch.randn(2, layer.in_features, dtype=dtype, requires_grad=True)
        (g,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
        g.float().square().sum().backward()
        assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)
