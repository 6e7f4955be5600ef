"""gradient_penalty as a citizen of torch: compile, export, autocast, transforms, fake tensors."""

import warnings

import pytest
import torch
from support.tensors import DTYPES, assert_near, drawer, dtype_name
from support.transforms import Transforms
from torch._subclasses.fake_tensor import FakeTensorMode

from gankernels import _library, ops

OPTIONS = [
    {},
    {"center": 1.0, "weight": 10.0, "reduction": "sum"},
    {"center": 0.7, "one_sided": True, "per_tensor": True},
    {"center": 1.0, "per_tensor": True, "reduction": "none"},
]


#: To go once gankernels._checks.check_number compares instead: `not 0 <= value < math.inf`.
@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def images(dtype=torch.float32, batch=4):
    """A channels_last gradient and a plain one that require gradients, and weights for samples."""
    draw = drawer(1, dtype)
    first = draw(batch, 3, 6, 5).contiguous(memory_format=torch.channels_last)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = drawer(2, wide)(batch).abs()
    return [x.requires_grad_() for x in (first, draw(batch, 7), weight)]


def penalize(a, b, sample_weight, **options):
    return ops.gradient_penalty([a, b], sample_weight=sample_weight, return_norms=True, **options)


def results(function, leaves, **options):
    values, norms = function(*leaves, **options)
    assert not norms.requires_grad
    return [values, norms, *torch.autograd.grad(values.square().sum(), leaves)]


# --- compile -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_compiled_call_equals_eager(options):
    leaves = images()
    compiled = torch.compile(penalize, fullgraph=True, backend="aot_eager")
    expected = results(penalize, leaves, **options)
    # A compiled call multiplies by the weight once the sum has been rounded.
    tolerance = 1e-6 if "weight" in options else 0
    for got, want in zip(results(compiled, leaves, **options), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=tolerance, atol=0)
        assert got.stride() == want.stride()


def test_one_graph_for_every_batch():
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def function(*leaves):
        return penalize(*leaves, center=1.0)

    compiled = torch.compile(function, fullgraph=True, backend=count, dynamic=True)
    for batch in (4, 6, 9):
        leaves = images(batch=batch)
        expected = results(function, leaves)
        for got, want in zip(results(compiled, leaves), expected, strict=True):
            assert torch.equal(got, want)
    assert len(graphs) == 1


def test_an_annealed_weight_compiled():
    """From its second value on, Dynamo makes a float a symbol."""
    leaves = images()
    compiled = torch.compile(penalize, fullgraph=True, backend="eager")
    for weight in (
        10.0,
        9.0,
        8.5,
        *(8 - k / 4 for k in range(12)),
    ):  # more than Dynamo would recompile
        expected = results(penalize, leaves, weight=weight)
        for got, want in zip(results(compiled, leaves, weight=weight), expected, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("rank", [4, 5])
def test_graphs_copy_no_channels_last_gradient(rank, dynamic):
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}[rank]
    found = []

    def look(graph, inputs):
        found.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    g = drawer(1)(*(4, 3, 6, 5, 2)[:rank]).contiguous(memory_format=layout)
    compiled = torch.compile(ops.gradient_penalty, backend=look, fullgraph=True, dynamic=dynamic)
    assert torch.equal(compiled(g), ops.gradient_penalty(g))
    assert any("gankernels.gradient_penalty" in name for name in found)
    assert not any("contiguous" in name or "clone" in name for name in found)

    found.clear()  # but where samples are not one after the other, a graph copies
    torch.compiler.reset()
    other = drawer(1)(5, 4).t()
    torch.testing.assert_close(compiled(other), other.square().sum(1).mean())
    assert any("contiguous" in name for name in found)


def test_double_backward_through_a_compiled_call():
    """What torch.compile cannot do in one graph, it must refuse, not get wrong."""
    leaves = images(torch.float64)

    def twice(function):
        values, _ = function(*leaves, center=1.0, per_tensor=True)
        first = torch.autograd.grad(values.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)

    expected = twice(penalize)
    with pytest.raises(RuntimeError, match="double backward"):
        twice(torch.compile(penalize, fullgraph=True, backend="aot_eager"))
    # Where AOTAutograd is not in between, the operator's own double backward is there.
    for got, want in zip(
        twice(torch.compile(penalize, fullgraph=True, backend="eager")), expected, strict=True
    ):
        assert_near(got, want)


def test_frozen_and_unused_compiled():
    a, b, weight = images()

    def function(a, b, weight):
        values, _ = penalize(a, b, weight, center=1.0, per_tensor=True)
        return values[0]

    found = [
        torch.autograd.grad(run(a, b.detach(), weight), (a, weight))
        for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager"))
    ]
    for got, want in zip(*found, strict=True):
        assert torch.equal(got, want)
        assert want.any()


def test_the_whole_step_in_one_graph():
    """From the critic's weights to the penalty's gradient in them, by the formula."""
    draw = drawer(3, torch.float64)
    hidden, last, x = draw(8, 5), draw(8), draw(4, 5)

    def gradient(hidden, last):
        """Of ``last . tanh(hidden x)`` in x, written out."""
        return ((1 - torch.tanh(x @ hidden.t()).square()) * last) @ hidden

    def ours(hidden, last):
        return ops.gradient_penalty(gradient(hidden, last), center=1.0)

    def plain(hidden, last):
        return (gradient(hidden, last).norm(dim=1) - 1).square().mean()

    leaves = [hidden.requires_grad_(), last.requires_grad_()]
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*leaves), leaves)
    for got, want in zip(found, torch.autograd.grad(plain(*leaves), leaves), strict=True):
        assert_near(got, want, factor=10)


def test_export():
    class Module(torch.nn.Module):
        def forward(self, a, b, weight):
            return penalize(a, b, weight, center=1.0)

    leaves = [x.detach() for x in images()]
    exported = torch.export.export(Module(), tuple(leaves), strict=False)
    names = {str(node.target) for node in exported.graph.nodes}
    assert any("gankernels.gradient_penalty" in name for name in names)
    for got, want in zip(exported.module()(*leaves), Module()(*leaves), strict=True):
        assert torch.equal(got, want)


# --- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("route", ["kernels", "compiled", "reference"])
def test_autocast_leaves_the_numbers(route, cast):
    leaves = images()
    expected = results(penalize, leaves, center=1.0)
    function = penalize
    if route == "compiled":
        function = torch.compile(penalize, fullgraph=True, backend="aot_eager")
    with (
        _library.backend("reference" if route == "reference" else "native"),
        torch.autocast("cpu", dtype=cast),
    ):
        found = results(function, leaves, center=1.0)
    for got, want in zip(found, expected, strict=True):
        assert got.dtype == torch.float32
        assert_near(got, want.double())


# --- functional transforms -----------------------------------------------------------------------


class TestTransforms(Transforms):
    """torch.func and forward mode go to the reference, and are right."""

    op = "gradient_penalty"

    def setup_method(self):
        _library._fallbacks.clear()
        self.at = drawer(0, torch.float64)(3, 2, 4)
        self.direction = drawer(1, torch.float64)(3, 2, 4)
        self.weight = drawer(2, torch.float64)(3).abs()

    def plain(self, g):
        norms = (0.5 * g).flatten(1).norm(dim=1)
        return (3 * self.weight * (norms - 1).square()).sum()

    def ours(self, g):
        return ops.gradient_penalty(
            g,
            center=1.0,
            weight=3.0,
            sample_weight=self.weight,
            inv_scale=torch.full((1,), 0.5, dtype=torch.float64),
            reduction="sum",
        )

    def test_third_order(self):
        def third(f):
            def first(g):
                return torch.func.grad(f)(g).pow(2).sum()

            def second(g):
                return torch.func.grad(first)(g).pow(2).sum()

            return [torch.func.grad(second)(self.at)]

        self.check(third)


# --- fakes ---------------------------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda draw: draw(4, 3, 5, 2),
    "channels_last": lambda draw: draw(4, 3, 5, 2).contiguous(memory_format=torch.channels_last),
    "permuted": lambda draw: draw(4, 5, 6, 7).permute(0, 3, 1, 2),
    "transposed": lambda draw: draw(31, 6).t(),
    "expanded": lambda draw: draw(1, 13).expand(7, 13),
    "every_second_sample": lambda draw: draw(8, 5)[::2],
    "one_sample": lambda draw: draw(1, 6, 5).transpose(1, 2),
    "scalars": lambda draw: draw(9),
}


@pytest.mark.parametrize("kind", ["meta", "fake"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fakes_look_like_the_results(layout, dtype, kind):
    g = LAYOUTS[layout](drawer(0, dtype))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    weight = torch.ones(g.shape[0], dtype=wide, requires_grad=True)
    g = g.detach().requires_grad_()

    mode = FakeTensorMode()
    if kind == "fake":
        convert = mode.from_tensor
    else:

        def convert(x):
            like = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
            return like.requires_grad_()

    fake_g, fake_weight = convert(g), convert(weight)
    for options in OPTIONS:
        want = looks(g, weight, options)
        got = looks(fake_g, fake_weight, options)
        for x, y in zip(got, want, strict=True):
            assert (x.shape, x.dtype, steps(x)) == (y.shape, y.dtype, steps(y)), options
            assert x.requires_grad == y.requires_grad
            assert x.device.type == ("meta" if kind == "meta" else "cpu")


def looks(g, weight, options):
    """Values, norms and all gradients of first and second order."""
    values, norms = ops.gradient_penalty([g], sample_weight=weight, return_norms=True, **options)
    first = torch.autograd.grad(values.sum(), (g, weight), create_graph=True)
    second = torch.autograd.grad(sum(x.sum() for x in first), (g, weight))
    return [values, norms, *first, *second]


def steps(x):
    """The strides of dimensions of more than one element: those of others mean nothing."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def test_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        leaves = images()
        values, _ = penalize(*leaves, center=1.0)
        first = torch.autograd.grad(values, leaves, create_graph=True)
        torch.autograd.grad(sum(x.square().sum() for x in first), leaves)
