"""A fused model's second forward and all later ones: what is remembered of the first is checked,
and weights are read by a way of our own. Changes in between act as they do layer by layer."""

import copy

import pytest
import torch
from support.networks import KINDS, assert_same, states
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import gankernels as gk


@pytest.fixture(params=list(KINDS))
def kind(request):
    return KINDS[request.param]


class Net(nn.Module):
    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (norm(nn.Linear(6, 6, dtype=torch.float64)) for _ in range(3))

    def forward(self, x):
        return self.c(self.b(self.a(x).tanh()).tanh())


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 6, dtype=torch.float64, generator=generator)


def settings_of(net, kind):
    """What n_power_iterations and eps of the second layer are attributes of."""
    if hasattr(net.b, "parametrizations"):
        return net.b.parametrizations.weight[0]
    return next(iter(net.b._forward_pre_hooks.values()))


def assign(net, kind):
    state = {k: v.clone() * 1.5 if v.dim() > 1 else v.clone() for k, v in net.state_dict().items()}
    net.load_state_dict(state, assign=True)


def replace_parameter(net, kind):
    weight, _, _ = kind.parts(net.b)
    owner = net.b.parametrizations.weight if hasattr(net.b, "parametrizations") else net.b
    name = "original" if owner is not net.b else "weight_orig"
    setattr(owner, name, nn.Parameter(2 * weight.detach()))


def replace_buffers(net, kind):
    for module in net.b.modules():
        for name, x in module._buffers.items():
            module._buffers[name] = x.flip(0).contiguous()


def write_by_data(net, kind):
    kind.parts(net.b)[0].data.mul_(1.5)


def write(net, kind):
    with torch.no_grad():
        kind.parts(net.b)[0].mul_(1.5)


def other_memory(net, kind):
    weight = kind.parts(net.b)[0]
    weight.data = weight.data.t().contiguous().t() * 1.5


def more_steps(net, kind):
    settings_of(net, kind).n_power_iterations = 3


def larger_eps(net, kind):
    settings_of(net, kind).eps = 5.0


def evaluate_one(net, kind):
    net.b.eval()


def freeze_one(net, kind):
    for p in net.b.parameters():
        p.requires_grad_(False)


def remove_one(net, kind):
    if hasattr(net.b, "parametrizations"):
        parametrize.remove_parametrizations(net.b, "weight")
    else:
        nn.utils.remove_spectral_norm(net.b)


def add_one(net, kind):
    torch.manual_seed(6)
    net.d = kind.ours(nn.Linear(6, 6, dtype=torch.float64))


def replace_layer(net, kind):
    torch.manual_seed(5)
    net.b = kind.ours(nn.Linear(6, 6, dtype=torch.float64))


def write_in_a_hook(net, kind):
    net.b.register_forward_pre_hook(lambda module, _: write_by_data(net, kind), prepend=True)


def normalize_twice(net, kind):
    if not hasattr(net.b, "parametrizations"):
        pytest.skip("a hook is one")
    parametrize.register_parametrization(net.b, "weight", nn.Tanh())


CHANGES = [
    *(assign, replace_parameter, replace_buffers, write_by_data, write, other_memory, more_steps),
    *(larger_eps, evaluate_one, freeze_one, remove_one, add_one, replace_layer, write_in_a_hook),
    normalize_twice,
]


def run(net, change, kind):
    history = []
    for step in range(6):
        if step == 3:
            change(net, kind)
        for p in net.parameters():
            p.grad = None
        out = net(draw(step))
        out.sin().sum().backward()
        history += [out.detach(), *(p.grad for p in net.parameters()), states(net)]
        with torch.no_grad():
            for p in net.parameters():
                if p.grad is not None:
                    p -= 0.1 * p.grad
    with torch.no_grad():
        history += [net(draw(9)), states(net)]
    return history


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_changes(kind, change):
    plain, fused = Net(kind.ours), Net(kind.ours)
    gk.fuse_spectral_norm(fused)
    assert_same(run(fused, change, kind), run(plain, change, kind))


def test_there_is_a_plan(kind):
    """Or the tests above would say nothing."""
    net = Net(kind.ours)
    handle = gk.fuse_spectral_norm(net)
    net(draw(0))
    plan = handle._plan
    assert plan is not None
    net(draw(1))
    assert handle._plan is plan
    net.b.eval()
    net(draw(2))
    assert handle._plan is None
    net.b.train()
    for seed in (3, 4):
        net(draw(seed))
    assert handle._plan is not None
    assert copy.deepcopy(net)(draw(5)).shape == (4, 6)
    with gk.backend("reference"):
        net(draw(6))
    net(draw(7))


# --- reading -------------------------------------------------------------------------------------

PARAMETRIZATION = KINDS["parametrization"]


def property_of(module):
    return vars(type(module))["weight"]


def test_unfusing_gives_the_property_back():
    net = Net(PARAMETRIZATION.ours)
    torchs = property_of(net.a)
    handle = gk.fuse_spectral_norm(net)
    assert property_of(net.a) is not torchs
    twin = copy.deepcopy(net)  # of the same classes
    net(draw(0))
    handle.unfuse()
    assert property_of(net.a) is torchs
    assert_same(twin(draw(0)), Net(PARAMETRIZATION.ours)(draw(0)))
    net(draw(1))


def test_hooks_on_what_torch_calls_are_called():
    seen = []
    net = Net(PARAMETRIZATION.ours)
    gk.fuse_spectral_norm(net)
    net(draw(0))
    handles = [
        net.a.parametrizations.weight.register_forward_hook(lambda *_: seen.append("chain")),
        net.a.parametrizations.weight[0].register_forward_hook(lambda *_: seen.append("link")),
        net.b.parametrizations.weight[0].register_forward_pre_hook(lambda *_: seen.append("b")),
    ]
    net(draw(1))
    assert seen == ["link", "chain", "b"]
    for handle in handles:
        handle.remove()
    called = []
    handle = register_module_forward_hook(lambda module, *_: called.append(type(module).__name__))
    try:
        net(draw(2))
    finally:
        handle.remove()
    assert called.count("SpectralNorm") == called.count("ParametrizationList") == 3


@pytest.mark.parametrize("where", ["chain", "link", "everywhere"])
def test_hooks_of_a_running_forward_are_called(where):
    seen = []
    net = Runs(PARAMETRIZATION.ours, plainly)
    gk.fuse_spectral_norm(net)
    for seed in range(3):
        net(draw(seed))

    def registers(net, x):
        chain = net.b.parametrizations.weight
        module = {"chain": chain, "link": chain[0], "everywhere": None}[where]
        note = lambda module, *_: seen.append(module)  # noqa: E731
        handle = (module.register_forward_hook if module else register_module_forward_hook)(note)
        try:
            return plainly(net, x)
        finally:
            handle.remove()

    net.run = registers
    net(draw(3))
    chain = net.b.parametrizations.weight
    assert (chain if where == "chain" else chain[0]) in seen


def test_reading_calls_nothing(monkeypatch):
    """In the usual forward; also after somebody has registered a hook elsewhere."""
    net = Net(PARAMETRIZATION.ours)
    gk.fuse_spectral_norm(net)
    for seed in range(3):
        net(draw(seed))
    called = []
    monkeypatch.setattr(
        parametrize.ParametrizationList, "__call__", lambda *_: called.append(1) or 1 / 0
    )
    net(draw(3))
    net.register_forward_hook(lambda *_: None)
    net(draw(4))
    draw(5).requires_grad_().register_hook(print)
    net(draw(5))
    assert not called


def adds_a_link(net, x):
    net.b.parametrizations.weight.append(nn.Tanh())
    return plainly(net, x)


def caches(net, x):
    with parametrize.cached():
        return net.b(plainly(net, x)) + net.b.weight.sum()


@pytest.mark.parametrize("run", [adds_a_link, caches])
def test_a_running_forward_changes_how_weights_are_read(run):
    found = []
    for fused in (False, True):
        net = Runs(PARAMETRIZATION.ours, plainly)
        if fused:
            gk.fuse_spectral_norm(net)
        for seed in range(3):
            net(draw(seed))
        net.run = run
        found.append([net(draw(3)).detach(), states(net)])
    assert_same(*found)


def test_weights_are_set_as_before():
    found = []
    for fused in (False, True):
        net = Net(PARAMETRIZATION.ours)
        if fused:
            gk.fuse_spectral_norm(net)
        net(draw(0))
        net.a.weight = torch.eye(6, dtype=torch.float64)
        found.append([net(draw(1)).detach(), states(net)])
    assert_same(*found)


# --- within a forward, after weights were normalized ahead ---------------------------------------


class Runs(Net):
    """What its forward does is given; it is called as in the second of two steps, with a plan."""

    def __init__(self, norm, run):
        super().__init__(norm)
        self.run, self.kind = run, None

    def forward(self, x):
        return self.run(self, x)


def plainly(net, x):
    return Net.forward(net, x)


def writes_vectors(net, x):
    h = net.a(x).tanh()
    _, u, v = net.kind.parts(net.b)
    for vector in (u, v):
        vector.copy_(torch.arange(1.0, 7.0) / 10)
    return net.c(net.b(h).tanh())


def replaces_memory(net, x):
    h = net.a(x).tanh()
    weight = net.kind.parts(net.b)[0]
    weight.data = 1.5 * weight.data + torch.eye(6, dtype=weight.dtype)
    return net.c(net.b(h).tanh())


def reads_without_a_gradient(net, x):
    with torch.no_grad():
        net.a(x)
        weight = net.a.weight
    assert not weight.requires_grad
    return net.c(net.b(x @ weight.t()).tanh())


def differentiates_a_recomputed_part(net, x):
    y = x.detach().requires_grad_()
    out = checkpoint(lambda y: net.b(net.a(y).tanh()), y, use_reentrant=False).sin().sum()
    (gradient,) = torch.autograd.grad(out, y, create_graph=True)
    return net.c(gradient)


def takes_a_state_after_writing(net, x):
    """What is asked of one layer must not make the others forget what they were computed from."""
    with torch.no_grad():
        net.kind.parts(net.b)[0].mul_(1.5)
    net.a.state_dict()
    return plainly(net, x)


def exchanges_a_parameter(net, x):
    replace_parameter(net, net.kind)
    return plainly(net, x)


def exchanges(*ends):
    """Other vectors, which were written as often."""

    def run(net, x):
        for module in net.b.modules():
            for name, old in module._buffers.items():
                if name.endswith(ends):
                    module._buffers[name] = other = torch.arange(1.0, 7.0, dtype=old.dtype) / 10
                    while other._version < old._version:
                        other.add_(0)
        return plainly(net, x)

    run.__name__ = "exchanges" + "".join(ends)
    return run


def exchanges_a_parameter_for_its_twin(net, x):
    """In the same memory; its gradient is its own."""
    weight, _, _ = net.kind.parts(net.b)
    owner = net.b.parametrizations.weight if hasattr(net.b, "parametrizations") else net.b
    name = "original" if owner is not net.b else "weight_orig"
    twin = nn.Parameter(weight.data)
    with torch.no_grad():
        while twin._version < weight._version:  # written as often
            twin.add_(0)
    setattr(owner, name, twin)
    out = plainly(net, x)
    (gradient,) = torch.autograd.grad(out.sum(), twin, retain_graph=True)
    return out + gradient.sum()


def writes(part):
    """In place, which torch counts."""

    def run(net, x):
        h = net.a(x).tanh()
        with torch.no_grad():
            x = net.kind.parts(net.b)[part]
            x.copy_(torch.arange(1.0, x.numel() + 1, dtype=x.dtype).view_as(x) / 10)
        return net.c(net.b(h).tanh())

    run.__name__ = f"writes_{'Wuv'[part]}"
    return run


def evaluates_one(net, x):
    net.b.eval()
    return plainly(net, x)


def calls_one_twice(net, x):
    return plainly(net, net.b(x))


def saves_through_hooks(net, x):
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: x):
        return plainly(net, x)


def differentiates_with_a_hook_that_reads(net, x):
    y = x.detach().requires_grad_()
    z = y * 2
    z.register_hook(lambda grad: net.b(grad).detach())
    return plainly(net, x + torch.autograd.grad(z.sum(), y)[0])


RUNS = [
    *(writes_vectors, replaces_memory, reads_without_a_gradient),
    *(differentiates_a_recomputed_part, takes_a_state_after_writing, exchanges_a_parameter),
    *(exchanges("_u"), exchanges("_v"), exchanges("_u", "_v"), evaluates_one, calls_one_twice),
    *(exchanges_a_parameter_for_its_twin, writes(0), writes(1), writes(2)),
    saves_through_hooks,
    differentiates_with_a_hook_that_reads,
]


@pytest.mark.parametrize("run", RUNS, ids=lambda f: f.__name__)
def test_in_a_forward(kind, run):
    found = []
    for fused in (False, True):
        net = Runs(kind.ours, plainly)
        net.kind = kind
        if fused:
            gk.fuse_spectral_norm(net)
        net(draw(0))
        net(draw(1))
        net.run = run
        out = net(draw(2))
        out.sin().sum().backward()
        found.append([out.detach(), *(p.grad for p in net.parameters()), states(net)])
    assert_same(*found)


@pytest.mark.parametrize("reentrant", [True, False])
def test_an_earlier_forward_is_recomputed_in_a_later_one(kind, reentrant):
    """While the later one's weights wait for their layers, which are others."""
    found = []
    for fused in (False, True):
        net = Runs(kind.ours, plainly)
        if fused:
            gk.fuse_spectral_norm(net)
        y = draw(0).requires_grad_()
        early = []

        def keeps(net, x, y=y, early=early):
            early.append(checkpoint(lambda y: net.b(net.a(y).tanh()), y, use_reentrant=reentrant))
            return plainly(net, x)

        def goes_back(net, x, y=y, early=early):
            early[0].sin().sum().backward()
            return plainly(net, x + y.grad)

        for seed, run in enumerate((keeps, plainly, plainly, goes_back)):
            net.run = run
            out = net(draw(seed))
        out.sin().sum().backward()
        found.append([out.detach(), *(p.grad for p in net.parameters()), states(net)])
    assert_same(*found)
