"""weight_norm as a citizen of torch: compile, export, autocast, transforms, fake tensors."""

import warnings

import pytest
import torch
from support.tensors import DTYPES, assert_near, drawer, dtype_name
from support.transforms import Transforms
from torch._subclasses.fake_tensor import FakeTensorMode

from gankernels import _library, ops


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


DIMS = [0, 1, 0, None]


def leaves(dtype=torch.float32, rows=6):
    """Layers: a convolution in channels_last, a transposed one, a linear one, a norm for all."""
    draw = drawer(1, dtype)
    v = [
        draw(rows, 3, 3, 2).contiguous(memory_format=torch.channels_last),
        draw(4, rows, 2, 2),
        draw(rows, 7),
        draw(3, 5),
    ]
    g = [draw(rows, 1, 1, 1), draw(1, rows, 1, 1), draw(rows, 1), draw(1, 1)]
    return [x.requires_grad_() for x in (*v, *g)]


def normalize(*tensors):
    n = len(tensors) // 2
    return tuple(ops.weight_norm(list(tensors[:n]), list(tensors[n:]), dim=DIMS))


def loss_of(outputs):
    return sum((x * x.tanh()).sum() for x in outputs)


def results(function, inputs):
    w = function(*inputs)
    return [*w, *torch.autograd.grad(loss_of(w), inputs)]


def steps(x):
    """The strides of dimensions of more than one element: those of others mean nothing."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


# --- compile -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_compiled_call_equals_eager(dtype):
    inputs = leaves(dtype)
    compiled = torch.compile(normalize, fullgraph=True, backend="aot_eager")
    for got, want in zip(results(compiled, inputs), results(normalize, inputs), strict=True):
        assert torch.equal(got, want)
        assert steps(got) == steps(want)


@pytest.mark.slow
def test_inductor(backend):
    inputs = [x.detach().to(backend).requires_grad_() for x in leaves()]
    compiled = torch.compile(normalize, fullgraph=True)
    for got, want in zip(results(compiled, inputs), results(normalize, inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_one_graph_for_every_size():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(normalize, fullgraph=True, backend=count, dynamic=True)
    for rows in (6, 9, 13):
        inputs = leaves(rows=rows)
        expected = results(normalize, inputs)
        for got, want in zip(results(compiled, inputs), expected, strict=True):
            assert torch.equal(got, want)
    assert len(graphs) == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_graphs_copy_no_weight_that_is_rows_first(dynamic):
    found = []

    def look(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    v = drawer(1)(4, 3, 6, 5)
    for weight in (v, v.contiguous(memory_format=torch.channels_last)):
        torch.compiler.reset()
        found.clear()
        compiled = torch.compile(ops.weight_norm, backend=look, fullgraph=True, dynamic=dynamic)
        g = torch.ones(4)
        assert torch.equal(compiled(weight, g), ops.weight_norm(weight, g))
        assert any("gankernels.weight_norm" in name for name in found)
        assert not any("contiguous" in name or "clone" in name for name in found)


def twice(function, inputs):
    """Outputs, and the gradients of a function of their first derivatives."""
    w = function(*inputs)
    first = torch.autograd.grad(loss_of(w), inputs, create_graph=True)
    second = torch.autograd.grad(loss_of(first), inputs)
    return [x.detach() for x in (*w, *first, *second)]


def test_double_backward_through_a_compiled_call():
    """What torch.compile cannot do in one graph, it must refuse, not get wrong."""
    inputs = leaves(torch.float64)
    expected = twice(normalize, inputs)
    with pytest.raises(RuntimeError, match="double backward"):
        twice(torch.compile(normalize, fullgraph=True, backend="aot_eager"), inputs)
    # Where AOTAutograd is not in between, the operator's own double backward is there.
    compiled = torch.compile(normalize, fullgraph=True, backend="eager")
    for got, want in zip(twice(compiled, inputs), expected, strict=True):
        assert_near(got, want, factor=4)


def test_frozen_and_unused_compiled():
    inputs = leaves()
    frozen = [x.detach() if i in (1, 5, 2) else x for i, x in enumerate(inputs)]

    def function(*tensors):
        w = normalize(*tensors)
        return w[0].sum() * w[2].sum()

    wanted = [inputs[0], inputs[4], inputs[6]]
    found = [
        torch.autograd.grad(run(*frozen), wanted)
        for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager"))
    ]
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)
        assert want.any()


def test_a_step_in_one_graph():
    """From the parameters to the loss of a network of normalized layers."""
    draw = drawer(3, torch.float64)
    v, g = [draw(8, 5), draw(3, 8)], [draw(8, 1), draw(3, 1)]
    x = draw(4, 5)

    def ours(*tensors):
        first, second = ops.weight_norm(list(tensors[:2]), list(tensors[2:]))
        return (torch.tanh(x @ first.t()) @ second.t()).square().mean()

    def plain(*tensors):
        first, second = (
            torch._weight_norm(a, b, 0) for a, b in zip(tensors[:2], tensors[2:], strict=True)
        )
        return (torch.tanh(x @ first.t()) @ second.t()).square().mean()

    inputs = [t.requires_grad_() for t in (*v, *g)]
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*inputs), inputs)
    for got, want in zip(found, torch.autograd.grad(plain(*inputs), inputs), strict=True):
        assert_near(got, want, factor=10)


def test_compiled_errors():
    with pytest.raises(Exception, match="weight_norm: expected g of 4 elements"):
        torch.compile(ops.weight_norm, backend="eager")(torch.ones(4, 3), torch.ones(3))


def test_export():
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return normalize(*tensors)

    inputs = tuple(x.detach() for x in leaves())
    exported = torch.export.export(Module(), inputs, strict=False)
    names = {str(node.target) for node in exported.graph.nodes}
    assert any("gankernels.weight_norm" in name for name in names)
    for got, want in zip(exported.module()(*inputs), Module()(*inputs), strict=True):
        assert torch.equal(got, want)


# --- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("route", ["kernels", "compiled", "reference"])
def test_autocast_leaves_the_numbers(route, cast):
    inputs = leaves()
    expected = results(normalize, inputs)
    function = normalize
    if route == "compiled":
        function = torch.compile(normalize, fullgraph=True, backend="aot_eager")
    with (
        _library.backend("reference" if route == "reference" else "native"),
        torch.autocast("cpu", dtype=cast),
    ):
        found = results(function, inputs)
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == torch.float32
        assert_near(got, want.double(), factor=2)


# --- functional transforms -----------------------------------------------------------------------


class OfDirection(Transforms):
    """torch.func and forward mode go to the reference, and are right."""

    op = "weight_norm"
    dim = 0

    def setup_method(self):
        _library._fallbacks.clear()
        self.at = drawer(0, torch.float64)(3, 2, 4)
        self.direction = drawer(1, torch.float64)(3, 2, 4)
        rows = 1 if self.dim is None else self.at.shape[self.dim]
        self.g = drawer(2, torch.float64)(rows)

    def weight(self, v, g):
        others = [d for d in range(3) if d != self.dim]
        shape = [n if d == self.dim else 1 for d, n in enumerate(v.shape)]
        return v * (g.reshape(shape) / v.square().sum(others, keepdim=True).sqrt())

    def plain(self, v):
        return (self.weight(v, self.g) * v.cos()).sum()

    def ours(self, v):
        return (ops.weight_norm(v, self.g, dim=self.dim) * v.cos()).sum()


class TestOfDirection(OfDirection):
    def test_third_order(self):
        def third(f):
            def first(v):
                return torch.func.grad(f)(v).pow(2).sum()

            def second(v):
                return torch.func.grad(first)(v).pow(2).sum()

            return [torch.func.grad(second)(self.at)]

        self.check(third)


class TestOfDimOne(OfDirection):
    dim = 1


class TestOfAll(OfDirection):
    dim = None


class TestOfBoth(OfDirection):
    """In g, of a list."""

    def plain(self, v):
        return self.weight(v.sin(), v[:, 0, 0]).square().sum() + self.weight(v, v[:, 1, 1]).sum()

    def ours(self, v):
        a, b = ops.weight_norm([v.sin(), v], [v[:, 0, 0], v[:, 1, 1]])
        return a.square().sum() + b.sum()


# --- fakes ---------------------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda draw: draw(4, 3, 5, 2),
    "channels_last": lambda draw: draw(4, 3, 5, 2).contiguous(memory_format=torch.channels_last),
    "permuted": lambda draw: draw(4, 5, 6, 7).permute(0, 3, 1, 2),
    "transposed": lambda draw: draw(31, 6).t(),
    "expanded": lambda draw: draw(1, 13).expand(7, 13),
    "every_second_row": lambda draw: draw(8, 5)[::2],
    "one_row": lambda draw: draw(1, 6, 5).transpose(1, 2),
    "vector": lambda draw: draw(9),
}


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes_look_like_the_results(layout, dtype, kind):
    v = LAYOUTS[layout](drawer(0, dtype))
    mode = FakeTensorMode()

    def convert(x):
        if kind == "fake":
            return mode.from_tensor(x)
        like = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
        return like.requires_grad_()

    for dim in dict.fromkeys((0, v.dim() - 1, None)):
        leaf = v.detach().requires_grad_()
        g = torch.ones(1 if dim is None else v.shape[dim], dtype=dtype, requires_grad=True)
        want = looks(leaf, g, dim)
        got = looks(convert(leaf), convert(g), dim)
        for x, y in zip(got, want, strict=True):
            assert (x.shape, x.dtype, steps(x)) == (y.shape, y.dtype, steps(y)), dim
            assert x.requires_grad == y.requires_grad
            assert x.device.type == ("meta" if kind == "meta" else "cpu")


def looks(v, g, dim):
    """The weight and all gradients of first and second order."""
    (w,) = ops.weight_norm([v], [g], dim=dim)
    first = torch.autograd.grad(w.sum(), (v, g), create_graph=True)
    second = torch.autograd.grad(sum(x.sum() for x in first), (v, g))
    return [w, *first, *second]


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twice(normalize, leaves())
