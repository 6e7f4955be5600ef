"""The drop-ins under what torch offers besides eager mode and plain tensors: complex weights, meta
and fake tensors, tracers, torch.func, sparse gradients, subclasses. What torch's own do is right.
"""

import copy
import io
import warnings

import pytest
import torch
import torch.distributed as dist
from support.networks import (
    KINDS,
    assert_same,
    critic,
    draw,
    loss,
    make,
    outcome,
    states,
    train,
    twins,
)
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.testing._internal.two_tensor import TwoTensor

import gankernels
from gankernels.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm

HOOK, PARAMETRIZATION = KINDS["hook"], KINDS["parametrization"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:Complex modules"),
    pytest.mark.filterwarnings("ignore:.*is deprecated. Please switch:FutureWarning"),
]


@pytest.fixture(params=list(KINDS))
def kind(request):
    return KINDS[request.param]


def linear():
    return nn.Linear(7, 5)


# --- complex weights ---------------------------------------------------------------------------

COMPLEX_LAYERS = {
    "linear": (linear, (4, 7)),
    "conv": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 5, 5)),
    "conv_transpose": (lambda: nn.ConvTranspose2d(3, 4, 3), (2, 3, 4, 4)),
}


@pytest.mark.parametrize("layer", list(COMPLEX_LAYERS))
def test_complex_layers_train_and_evaluate_as_torchs_do(kind, layer):
    factory, shape = COMPLEX_LAYERS[layer]
    theirs, ours = twins(kind, factory, torch.complex128)
    xs = [draw(shape, seed, torch.complex128) for seed in range(2)]
    assert_same(train(ours, xs, forwards=1), train(theirs, xs, forwards=1), factor=10)
    theirs.eval(), ours.eval()
    assert_same(train(ours, xs, forwards=1), train(theirs, xs, forwards=1), "eval", factor=10)
    twin = copy.deepcopy(ours)
    assert_same(twin(xs[0]), theirs(xs[0]), "a copy", factor=10)


def test_complex_values():
    w = torch.diag(torch.tensor([2j, 1.0], dtype=torch.complex128))
    layer = nn.Linear(2, 2, bias=False, dtype=torch.complex128)
    layer.weight = nn.Parameter(w)
    PARAMETRIZATION.ours(layer, n_power_iterations=50)
    expected = torch.tensor([1j, 0.5], dtype=torch.complex128)
    assert_same(layer.weight.diagonal(), expected)


@pytest.mark.parametrize("training", [True, False])
def test_complex_double_backward(kind, training):
    modules = twins(kind, linear, torch.complex128)
    for module in modules:
        module.train(training)
        weight = kind.parts(module)[0]
        grad = torch.autograd.grad(
            loss(module(draw((4, 7), 1, torch.complex128))), weight, create_graph=True
        )[0]
        grad.abs().square().sum().backward()
    assert_same(modules[1], modules[0], factor=100)


@pytest.mark.parametrize("whose", ["torch", "ours"])
@pytest.mark.parametrize("options", [{}, {"step_scoped": True}, {"cache_eval": True}], ids=str)
def test_complex_fused(kind, whose, options):
    expected, layer = (make(way, linear, torch.complex128) for way in (kind.torch, kind.torch))
    layer = layer if whose == "torch" else make(kind.ours, linear, torch.complex128)
    model = nn.Sequential(layer)
    gankernels.fuse_spectral_norm(model, **options)
    for seed in range(2):
        x = draw((4, 7), seed, torch.complex128)
        for m in (model, expected):
            loss(m(x)).backward()
            with torch.no_grad():
                for p in m.parameters():
                    p -= 0.1 * p.grad
    model.eval(), expected.eval()
    with torch.no_grad():
        for _ in range(2):
            assert_same(model(x), expected(x), factor=10)
    assert_same(states(layer), states(expected), factor=10)


@pytest.mark.parametrize("training", [True, False])
def test_complex_coefficient_bounds_the_size_of_sigma(kind, training):
    plain, bounded, free = (
        make(kind.ours, linear, torch.complex128, max_norm=c) for c in (None, 0.01, 1e6)
    )
    x = draw((4, 7), 1, torch.complex128)
    for module in (plain, bounded, free):
        module.train(training)(x)
        if training and kind is PARAMETRIZATION:
            module.eval()  # reading the weight iterates
    assert_same(bounded.weight, 0.01 * plain.weight, factor=10)
    assert_same(free.weight, kind.parts(free)[0])


def test_complex_guard(kind):
    module = make(kind.ours, linear, torch.complex128, guard=True)
    weight, u, v = kind.parts(module)
    good, before = weight.detach().clone(), [u.clone(), v.clone()]
    with torch.no_grad():
        weight.zero_()
    module(draw((4, 7), 1, torch.complex128))
    assert_same(kind.parts(module)[1:], before)
    with torch.no_grad():
        weight.copy_(good)
    assert module(draw((4, 7), 1, torch.complex128)).isfinite().all()


def test_complex_vectors(kind):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6))

        def forward(self, x):
            return x * self.weight

    theirs, ours = twins(kind, Scaled, torch.complex128)
    for module in (theirs, ours):
        loss(module(draw((2, 6), 1, torch.complex128))).backward()
    assert_same(ours, theirs, factor=10)


# --- tensors without memory --------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"guard": True, "max_norm": 0.5}], ids=str)
def test_meta_and_fake_tensors(kind, training, options):
    def run(device):
        module = kind.ours(nn.Conv2d(3, 4, 3, device=device), **options).train(training)
        out = module(torch.ones(2, 3, 5, 5, device=device))
        out.sum().backward()
        assert out.shape == (2, 4, 3, 3)
        assert kind.parts(module)[0].grad.shape == (4, 3, 3, 3)
        with torch.no_grad():
            return module(torch.ones(2, 3, 5, 5, device=device))

    assert run("meta").device.type == "meta"
    with gankernels.backend("reference"):
        assert run("meta").device.type == "meta"
    with FakeTensorMode():
        assert run("cpu").device.type == "cpu"


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_deferred_initialization(kind, fused, guard):
    source = make(kind.torch, linear)
    with torch.device("meta"):
        module = kind.ours(linear(), guard=guard)
    model = nn.Sequential(module)
    if fused:
        gankernels.fuse_spectral_norm(model, guard=guard)
    model(torch.ones(2, 7, device="meta"))
    module.load_state_dict({k: v.clone() for k, v in source.state_dict().items()}, assign=True)
    assert_same(model.eval()(draw((4, 7))), source.eval()(draw((4, 7))))
    assert_same(model.train()(draw((4, 7))), source.train()(draw((4, 7))))
    assert [int(x) for name, x in model.named_buffers() if "_skipped" in name] == guard * [0]

    other = kind.ours(linear().to("meta")).to_empty(device="cpu")
    other.load_state_dict(source.state_dict())
    assert_same(other(draw((4, 7))), source(draw((4, 7))))


@pytest.mark.parametrize("training", [True, False])
def test_exported(kind, training):
    theirs, ours = twins(kind, linear)
    x = draw((4, 7))
    program = torch.export.export(ours.train(training), (x,)).module()
    theirs.train(training)
    for _ in range(2):
        assert_same(program(x), theirs(x))


# --- torch.jit.trace ---------------------------------------------------------------------------


def traced(module, x, **options):
    """Traced, saved and loaded; whatever the tracer warns of is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        trace = torch.jit.trace(module, x, **options)
    file = io.BytesIO()
    torch.jit.save(trace, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.parametrize("options", [{}, {"cache_eval": True, "guard": True}], ids=str)
@pytest.mark.parametrize("forwards", [0, 1])
def test_a_trace_in_eval_follows_the_weight(kind, options, forwards):
    module = nn.Sequential(make(kind.ours, linear, torch.float64, **options))
    for _ in range(forwards):
        module(draw((4, 7), 1, torch.float64))
    module.eval()
    with torch.no_grad():
        module(draw((4, 7), 1, torch.float64))  # and is kept, with cache_eval
    trace = traced(module, draw((4, 7), 1, torch.float64))
    x = draw((3, 7), 2, torch.float64)
    assert_same(trace(x), module(x))
    for m in (trace, module):
        with torch.no_grad():
            next(m.parameters()).mul_(3).add_(0.1)
        loss(m(x)).backward()
    assert_same(next(trace.parameters()).grad, next(module.parameters()).grad)


@pytest.mark.parametrize("training", [True, False])
def test_a_trace_of_a_fused_model(training):
    ways = ["torch_hook", "ours_parametrization", "ours_hook", "torch_parametrization"]
    model = critic(*ways)
    gankernels.fuse_spectral_norm(model)
    x = draw((2, 3, 5, 5), 1, torch.float64)
    trace = traced(model.train(training), x, check_trace=not training)
    for _ in range(2):
        assert_same(trace(x), model(x))


def test_a_trace_in_training_mode_moves_u_and_v(kind):
    theirs, ours = twins(kind, linear)
    x = draw((4, 7))
    traces = [traced(m, x, check_trace=False) for m in (theirs, ours)]
    with torch.no_grad():  # torch's has no other use
        for _ in range(3):
            assert_same(traces[1](x), traces[0](x))
    loss(traces[1](x)).backward()
    assert not any(b.requires_grad for b in traces[1].buffers())


# --- torch.func --------------------------------------------------------------------------------


def of_weights(module, x, call=torch.func.grad):
    values = {k: p.detach() for k, p in module.named_parameters()}
    return call(lambda p: loss(torch.func.functional_call(module, p, (x,))))(values)


def of_weights_without_buffers(module, x):
    buffers = {k: b.clone() for k, b in module.named_buffers()}
    values = {k: p.detach() for k, p in module.named_parameters()}

    def f(p):
        return loss(torch.func.functional_call(module, (p, buffers), (x,)))

    return torch.func.grad(f)(values)


TRANSFORMS = {
    "jacrev": lambda m, x: torch.func.jacrev(m)(x[0]),
    "jacfwd": lambda m, x: torch.func.jacfwd(m)(x[0]),
    "jvp": lambda m, x: torch.func.jvp(m, (x,), (x.cos(),)),
    "vjp": lambda m, x: torch.func.vjp(m, x)[1](x.new_ones(4, 5)),
    "hessian": lambda m, x: torch.func.hessian(lambda y: m(y).square().sum())(x[0]),
    "vmap": lambda m, x: torch.func.vmap(m)(x),
    "vmap_of_jacrev": lambda m, x: torch.func.vmap(torch.func.jacrev(m))(x),
    "of_the_weights": of_weights,
    "of_the_weights_and_none_of_the_buffers": of_weights_without_buffers,
    "jacobian_of_the_weights": lambda m, x: of_weights(m, x, torch.func.jacrev),
    "functionalize": lambda m, x: torch.func.functionalize(m)(x),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(TRANSFORMS))
def test_transforms(kind, name, training):
    modules = twins(kind, linear, torch.float64)
    x = draw((4, 7), 1, torch.float64)
    found = [TRANSFORMS[name](m.train(training), x) for m in modules]
    leaves = [torch.utils._pytree.tree_leaves(f) for f in found]
    assert_same(leaves[1], leaves[0], factor=10)
    assert_same(states(modules[1]), states(modules[0]))  # u and v moved once, or not


def test_forward_mode_in_the_weights_holds_u_and_v_constant(kind):
    """torch cannot do it in training mode."""
    module = make(kind.ours, linear, torch.float64)
    values = {k: p.detach() for k, p in module.named_parameters()}
    tangents = {k: p.cos() for k, p in values.items()}
    x = draw((4, 7), 1, torch.float64)
    twin, after = copy.deepcopy(module), copy.deepcopy(module)

    def f(p, m=module):
        return torch.func.functional_call(m, p, (x,))

    _, got = torch.func.jvp(f, (values,), (tangents,))
    after(x)
    _, expected = torch.func.jvp(lambda p: f(p, after.eval()), (values,), (tangents,))
    assert_same(got, expected)
    with torch.autograd.forward_ad.dual_level():
        duals = {k: torch.autograd.forward_ad.make_dual(values[k], tangents[k]) for k in values}
        got = torch.autograd.forward_ad.unpack_dual(f(duals, twin)).tangent
    assert_same(got, expected)
    for m in (module, twin):
        assert_same(kind.parts(m)[1:], kind.parts(after)[1:])


def test_ensembles(kind):
    modules = [kind.ours(linear().double(), guard=True)]
    modules += [copy.deepcopy(modules[0]) for _ in range(2)]
    for i, module in enumerate(modules):
        with torch.no_grad():
            kind.parts(module)[0].add_(draw((5, 7), i, torch.float64))
    state = torch.func.stack_module_state(modules)
    x = draw((4, 7), 1, torch.float64)

    def f(parameters, buffers):
        return torch.func.functional_call(modules[0], (parameters, buffers), (x,))

    twins = copy.deepcopy(modules)
    got = torch.func.vmap(f)(*state)
    assert_same(got, torch.stack([m(x) for m in twins]))


# --- sparse gradients --------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("route", ["native", "reference", "fused"])
def test_sparse_embeddings(kind, route, training):
    modules = twins(kind, lambda: nn.Embedding(6, 4, sparse=True), torch.float64)
    index = torch.tensor([0, 2, 2])
    expected, ours = (m.train(training) for m in modules)
    model = nn.Sequential(ours)
    if route == "fused":
        gankernels.fuse_spectral_norm(model, step_scoped=True)
    expected(index).square().sum().backward()
    with gankernels.backend("reference" if route == "reference" else "native"):
        model(index).square().sum().backward()
    assert_same(ours, expected)
    assert kind.parts(ours)[0].grad.layout is kind.parts(expected)[0].grad.layout


@pytest.mark.parametrize("route", ["native", "reference"])
def test_sparse_embeddings_values(kind, route):
    torch.manual_seed(0)
    right = {"hook": 0.4657450904, "parametrization": 0.5670425120}
    module = kind.ours(nn.Embedding(6, 4, sparse=True).double())
    with gankernels.backend(route):
        module(torch.tensor([0, 2, 2])).square().sum().backward()
    expected = right["hook" if kind is HOOK else "parametrization"]
    assert next(module.parameters()).grad.sum().item() == pytest.approx(expected, abs=1e-9)


def test_sparse_gradients_of_ops_and_their_gradient(backend):
    """Against the same gradient made dense."""
    draws = [draw(s, i, torch.float64) for i, s in enumerate([(6, 4), (6,), (4,)])]
    weight, u, v = draws[0].to(backend).requires_grad_(), *(x.to(backend) for x in draws[1:])
    index = torch.tensor([0, 2, 2], device=backend)
    results = []
    for sparse in (True, False):
        (out,), _ = gankernels.ops.spectral_normalize([weight], [u], [v], max_norm=0.5)
        rows = nn.functional.embedding(index, out, sparse=sparse)
        results.append(torch.autograd.grad(rows.square().sum(), weight)[0])
    assert_same(*results)


# --- subclasses --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield torch.distributed.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def distribute(module, mesh, placement):
    """The matrices so; vectors are whole."""
    for m in list(module.modules()):
        for name, p in list(m._parameters.items()):
            where = placement if p.dim() > 1 else Replicate()
            m._parameters[name] = nn.Parameter(distribute_tensor(p.detach(), mesh, [where]))
        for name, b in list(m._buffers.items()):
            m._buffers[name] = distribute_tensor(b, mesh, [Replicate()])
    return module


@pytest.mark.parametrize(
    "options",
    [{}, {"guard": True}, {"step_scoped": True}, {"cache_eval": True}, {"init_iterations": 3}],
    ids=str,
)
@pytest.mark.parametrize("first", [True, False])
def test_replicated_weights(kind, mesh, options, first):
    if kind is PARAMETRIZATION and "step_scoped" in options and not first:
        pytest.skip("a new parameter is a new step")
    expected = make(kind.ours, linear, torch.float64, **options)
    torch.manual_seed(0)
    module = linear().double()
    if first:
        distribute(module, mesh, Replicate())
    kind.ours(module, **options)
    if not first:
        distribute(module, mesh, Replicate())
    x = draw((4, 7), 1, torch.float64)
    whole = distribute_tensor(x, mesh, [Replicate()])
    for _ in range(2):
        got, want = module(whole), expected(x)
        loss(got).backward(), loss(want).backward()
        assert_same(got.full_tensor(), want)
        with torch.no_grad():
            for m in (module, expected):
                for p in m.parameters():
                    p -= 0.1 * p.grad
    with torch.no_grad():
        assert_same(module.eval()(whole).full_tensor(), expected.eval()(x))
    assert all(isinstance(x, DTensor) for x in kind.parts(module))
    assert_same([x.full_tensor() for x in kind.parts(module)], kind.parts(expected))


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("first", [True, False])
def test_split_weights(kind, mesh, first, dim):
    """Normalized after they were split, or before; tests/distributed has more ranks than one."""
    expected = make(kind.ours, linear)
    torch.manual_seed(0)
    module = linear()
    if first:
        kind.ours(distribute(module, mesh, Shard(dim)))
    else:
        distribute(kind.ours(module), mesh, Shard(dim))
    x = draw((4, 7))
    whole = distribute_tensor(x, mesh, [Replicate()])
    for _ in range(2):
        assert_same(module(whole).full_tensor(), expected(x))
    assert_same(module.eval()(whole).full_tensor(), expected.eval()(x))
    with pytest.raises(TypeError, match=r"whole on every rank with cache_eval=True, .*Shard"):
        kind.ours(distribute(linear(), mesh, Shard(dim)), cache_eval=True)


def test_wrapper_subclasses(kind):
    """A tensor that is two tensors: both get what each would get alone."""
    module = linear().double()
    a, b = draw((5, 7), 1, torch.float64), draw((5, 7), 2, torch.float64)
    module.weight = nn.Parameter(TwoTensor(a, b))
    module.bias = None
    kind.ours(module)
    _, u, v = kind.parts(module)
    expected = []
    for w, left, right in ((a, u.a, v.a), (b, u.b, v.b)):
        single = nn.Linear(7, 5, bias=False).double()
        kind.torch(single)
        with torch.no_grad():
            for x, value in zip(kind.parts(single), (w, left, right), strict=True):
                x.copy_(value)
        if kind is HOOK:
            single(w[:1])
        expected.append(single.weight.detach())
    if kind is HOOK:
        module(TwoTensor(a[:1], b[:1]))
    weight = module.weight.detach()
    assert_same([weight.a, weight.b], expected)


BAD_WEIGHTS = {
    "sparse": lambda w: w.to_sparse(),
    "csr": lambda w: w.to_sparse_csr(),
    "mkldnn": lambda w: w.to_mkldnn(),
    "nested": lambda w: torch.nested.nested_tensor([w, w]),
    "float8": lambda w: w.to(torch.float8_e4m3fn),
    "quantized": lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8),
    "integers": lambda w: w.int(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", list(BAD_WEIGHTS))
def test_weights_that_nothing_is_computed_with(kind, case):
    module = nn.Module()
    weight = BAD_WEIGHTS[case](torch.ones(5, 7))
    module.weight = nn.Parameter(weight, requires_grad=False)
    with pytest.raises(TypeError, match="spectral_norm: expected weight "):
        kind.ours(module)
    assert list(module._parameters) == ["weight"]
    assert not module._forward_pre_hooks
    for op in ("power_iteration_", "spectral_norm", "spectral_normalize"):
        with pytest.raises(TypeError, match=rf"^{op}: expected weights\[0\] "):
            getattr(gankernels.ops, op)([weight], [torch.ones(5)], [torch.ones(7)])


# --- the class of the hook ---------------------------------------------------------------------


@pytest.mark.parametrize("factory", [linear, lambda: nn.ConvTranspose1d(7, 5, 2)])
@pytest.mark.parametrize("by", ["position", "name"])
def test_apply_of_the_hooks_class_installs_ours(factory, by):
    values = {"name": "weight", "n_power_iterations": 2, "dim": 1, "eps": 1e-6}
    modules, hooks = [], []
    for cls in (torch.nn.utils.spectral_norm, SpectralNorm):
        cls = cls if cls is SpectralNorm else SpectralNorm.__bases__[0]
        torch.manual_seed(0)
        module = factory()
        call = {"module": module, **values}
        hooks.append(cls.apply(**call) if by == "name" else cls.apply(*call.values()))
        modules.append(module)
    theirs, ours = modules
    hook = hooks[1]
    assert type(hook) is SpectralNorm
    assert list(ours._forward_pre_hooks.values()) == [hook]
    assert (hook.name, hook.n_power_iterations, hook.dim, hook.eps) == tuple(values.values())
    x = draw((4, 7, 3) if ours.weight.dim() == 3 else (4, 7))
    assert_same(train(ours, [x]), train(theirs, [x]))
    assert ours.state_dict()._metadata[""] == theirs.state_dict()._metadata[""]
    remove_spectral_norm(ours)
    assert isinstance(ours.weight, nn.Parameter)


@pytest.mark.parametrize("case", ["twice", "missing", "none", "lazy", "no steps"])
def test_apply_fails_as_torchs(case):
    def call(cls):
        module = nn.LazyLinear(3) if case == "lazy" else linear()
        if case == "none":
            module.weight = None
        if case == "twice":
            cls.apply(module, "weight", 1, 0, 1e-12)
        name, n = "wait" if case == "missing" else "weight", 0 if case == "no steps" else 1
        cls.apply(module, name, n, 0, 1e-12)

    theirs, ours = (outcome(lambda c=c: call(c)) for c in (SpectralNorm.__bases__[0], SpectralNorm))
    assert theirs is not None
    assert ours == theirs


def test_the_class_makes_hooks_as_torchs_does():
    hook = SpectralNorm("kernel", 2, 1, 1e-6)
    assert (hook.name, hook.n_power_iterations, hook.dim, hook.eps) == ("kernel", 2, 1, 1e-6)
    assert (SpectralNorm().name, SpectralNorm().dim) == ("weight", 0)


# --- arguments ---------------------------------------------------------------------------------

BAD_ARGUMENTS = [
    *(
        ({name: value}, TypeError, f"{name} to be True or False, got ")
        for name in ("guard", "cache_eval", "step_scoped")
        for value in ("no", 1, None)
    ),
    ({"n_power_iterations": 2**31}, ValueError, "n_power_iterations to be at most 1,000,000"),
    ({"n_power_iterations": 2**70}, ValueError, "n_power_iterations to be at most 1,000,000"),
    ({"n_power_iterations": "2"}, TypeError, "n_power_iterations to be an int, got str"),
    ({"n_power_iterations": 1.5}, TypeError, "n_power_iterations to be an int, got float"),
    ({"n_power_iterations": None}, TypeError, "n_power_iterations to be an int, got NoneType"),
    ({"n_power_iterations": True}, TypeError, "n_power_iterations to be an int, got bool"),
    ({"init_iterations": 2**31}, ValueError, "init_iterations to be at most 1,000,000"),
    ({"init_iterations": True}, ValueError, "init_iterations of 0 or more, got True"),
    ({"eps": float("nan")}, ValueError, "eps to be finite and not negative, got nan"),
    ({"eps": -1e-12}, ValueError, "eps to be finite and not negative, got -1e-12"),
    ({"eps": float("inf")}, ValueError, "eps to be finite and not negative, got inf"),
    ({"eps": "small"}, TypeError, "eps to be a number, got str"),
    ({"eps": True}, TypeError, "eps to be a number, got bool"),
    ({"eps": 10**400}, ValueError, "eps to be finite"),
    ({"dim": 0.0}, TypeError, "dim to be an int or None, got float"),
    ({"dim": "0"}, TypeError, "dim to be an int or None, got str"),
    ({"dim": True}, TypeError, "dim to be an int or None, got bool"),
    ({"dim": 2**64}, IndexError, "dim to be a dimension of the weight"),
    ({"name": 5}, TypeError, "name to be a str, got int"),
    ({"max_norm": True}, ValueError, "max_norm to be a positive, finite number, got True"),
    (
        {"max_norm": 10**400},
        ValueError,
        "max_norm to be a positive, finite number, got 1000",
    ),
]


@pytest.mark.parametrize("options, error, words", BAD_ARGUMENTS, ids=lambda x: str(x)[:50])
def test_bad_arguments(kind, options, error, words):
    module, state = linear(), torch.random.get_rng_state()
    with pytest.raises(error, match=f"^spectral_norm: expected (a )?{words}"):
        kind.ours(module, **options)
    assert [n for n, _ in module.named_parameters()] == ["weight", "bias"]
    assert not [*module.buffers(), *module._forward_pre_hooks]
    assert torch.equal(torch.random.get_rng_state(), state)


ITERATION = [
    ({"n": 2**31}, ValueError, "n to be at most 1,000,000, got 2147483648"),
    ({"n": 2**70}, ValueError, "n to be at most 1,000,000"),
    ({"n": True}, TypeError, "n to be an int, got bool"),
    ({"eps": True}, TypeError, "eps to be a number, got bool"),
    ({"eps": 10**400}, ValueError, "eps to be finite"),
    ({"u": iter([torch.ones(5)])}, TypeError, r"u to be a list .*; pass list\(u\)"),
    ({"v": iter([torch.ones(7)])}, TypeError, r"v to be a list .*; pass list\(v\)"),
    ({"weights": iter([torch.ones(5, 7)])}, TypeError, r"weights to .*; pass list\(weights\)"),
]
NORMALIZATION = [
    ({"retain": "no"}, TypeError, "retain to be True or False, got str"),
    ({"retain": 1}, TypeError, "retain to be True or False, got int"),
    ({"max_norm": True}, TypeError, "max_norm to be a number, got bool"),
    ({"max_norm": 10**400}, ValueError, "max_norm to be a positive, finite number"),
    *ITERATION[-3:],
]


@pytest.mark.parametrize("route", ["native", "reference"])
@pytest.mark.parametrize(
    "op, table",
    [
        ("power_iteration_", ITERATION),
        ("spectral_norm", ITERATION + NORMALIZATION[:-3]),
        ("spectral_normalize", NORMALIZATION),
    ],
)
def test_bad_arguments_of_ops(op, table, route):
    for change, error, words in table:
        u, v = torch.ones(5), torch.ones(7)
        arguments = {"weights": [torch.ones(5, 7)], "u": [u], "v": [v], **change}
        with (
            gankernels.backend(route),
            pytest.raises(error, match=f"^{op}: expected (a )?{words}"),
        ):
            getattr(gankernels.ops, op)(**arguments)
        assert torch.equal(u, torch.ones(5))
        assert torch.equal(v, torch.ones(7))


@pytest.mark.parametrize("module", [None, torch.ones(2), [nn.Linear(1, 1)], nn.Linear])
def test_what_is_no_module(kind, module):
    with pytest.raises(
        TypeError, match=r"^spectral_norm: expected module to be a torch\.nn\.Module"
    ):
        kind.ours(module)


def test_an_integer_of_another_type_is_one(kind):
    numpy = pytest.importorskip("numpy")
    module = make(kind.ours, linear, n_power_iterations=numpy.int64(2), dim=numpy.int64(0))
    assert_same(
        train(module, [draw((4, 7))]),
        train(make(kind.torch, linear, n_power_iterations=2), [draw((4, 7))]),
    )
