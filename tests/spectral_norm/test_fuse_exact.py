"""Fused is layer by layer: situations in which a layer is not simply called once in a forward.

Each is run on three models from the same seed: under torch's own normalization, under ours layer by
layer, and fused; outputs, gradients, u and v must agree over several steps.
"""

import copy
import pickle
import threading
import weakref

import pytest
import torch
from support.networks import KINDS, assert_same, loss, states
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_map

from gankernels import fold_spectral_norm, fuse_spectral_norm, spectral_norms
from gankernels.ema import AveragedModel
from gankernels.spectral_norm._fused import deposits

D = torch.float64


@pytest.fixture(params=list(KINDS))
def kind(request):
    return KINDS[request.param]


class Net(nn.Module):
    """Three layers; what its forward does with them is given."""

    def __init__(self, norm, run):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (norm(nn.Linear(4, 4, dtype=D)) for _ in range(3))
        self.run, self.calls = run, 0

    def forward(self, x):
        self.calls += 1
        return self.run(self, x)


def x_of(seed):
    return torch.randn(3, 4, dtype=D, generator=torch.Generator().manual_seed(seed))


def train(model, steps=4, forwards=2):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    history = []
    for step in range(steps):
        optimizer.zero_grad()
        outputs = [model(x_of(7 * step + k)) for k in range(forwards)]
        sum((k + 1) * loss(out) for k, out in enumerate(outputs)).backward()
        history.append([*outputs, states(model)])
        optimizer.step()
    model.eval()
    history.append([model(x_of(99)), states(model)])
    model.train()
    with torch.no_grad():
        history.append([model(x_of(98)), states(model)])
    return history


def twice(net, x):
    return net.c(net.a(x) + net.a(2 * x) + net.b(x))


def heads(net, x):
    return net.a(x) + (net.b(x) if net.calls % 2 else net.c(x))


def without_gradient(net, x):
    with torch.no_grad():
        y = net.a(x)
    return net.c(net.b(x) + y)


def changes_the_mode(net, x):
    net.b.eval()
    y = net.c(net.b(net.a(x)))
    net.b.train()
    return y


def writes_a_weight(net, x):
    y = net.a(x)
    for name, parameter in net.b.named_parameters():
        if "bias" not in name:
            with torch.no_grad():
                parameter.mul_(1.1)
    return net.c(net.b(y))


def writes_into_the_normalized(net, x):
    w = net.a.weight
    if w.requires_grad:
        w = w * torch.ones_like(w)
    w.mul_(2)
    return net.c(net.b(x @ w.t()))


def in_place(net, x):
    return net.c(nn.functional.leaky_relu(net.b(nn.functional.leaky_relu(net.a(x), 0.2, True))))


def stops(net, x):
    y = net.a(x)
    if net.calls % 3 == 2:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            return y
    return net.c(net.b(y))


RUNS = [
    twice,
    heads,
    without_gradient,
    changes_the_mode,
    writes_a_weight,
    writes_into_the_normalized,
    in_place,
    stops,
]


def three(kind, run, prepare=lambda net: None):
    nets = [Net(norm, run) for norm in (kind.torch, kind.ours, kind.torch)]
    for net in nets:
        prepare(net)
    fuse_spectral_norm(nets[2])
    return nets


def assert_all_same(nets, act, bitwise=True):
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())  # u and v to the bit
    torchs, ours, fused = (act(net) for net in nets)
    assert_same(ours, torchs, factor=50)
    assert_same(fused, torchs, factor=50)
    if bitwise:
        assert all(torch.equal(a, b) for a, b in zip(flat(fused), flat(ours), strict=True)), (
            "rounded differently from layer by layer"
        )
    assert not deposits.open_frames.frames


def flat(values):
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, (list, tuple)):
        return [x for value in values for x in flat(value)]
    return [values]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.__name__)
def test_in_a_forward(kind, run):
    forwards = 1 if run is writes_a_weight else 2
    assert_all_same(three(kind, run), lambda net: train(net, forwards=forwards))


def write_by_data(module, args):
    for name, parameter in module.named_parameters():
        if "bias" not in name:
            parameter.data.mul_(1.05)


@pytest.mark.parametrize("where", ["layer", "model", "model_before"])
def test_pre_hooks_that_write_weights(kind, where):
    def prepare(net):
        if where == "model_before":
            net.register_forward_pre_hook(write_by_data)

    nets = three(kind, twice, prepare)
    for net in nets:
        if where == "layer":
            net.b.register_forward_pre_hook(write_by_data, prepend=True)
        elif where == "model":
            net.register_forward_pre_hook(write_by_data)
    assert_all_same(nets, train)


def test_writes_by_data_between_forwards(kind):
    def act(net):
        history = []
        for step in range(3):
            history.append([net(x_of(step)), states(net)])
            write_by_data(net, ())
        return history

    assert_all_same(three(kind, twice), act)


@pytest.mark.parametrize("change", [True, False])
def test_two_heads_go_backward_apart(kind, change):
    """And the weights of one may change in between."""

    def act(net):
        pair = net(x_of(1))
        loss(pair[0]).backward()
        if change:
            with torch.no_grad():
                for parameter in net.a.parameters():
                    parameter.mul_(1.1)
        loss(pair[1]).backward()
        return states(net)

    assert_all_same(three(kind, lambda net, x: (net.a(x), net.b(x))), act)


def test_second_derivatives_of_two_heads_apart(kind):
    def act(net):
        for part in net(x_of(1)):
            used = [p for p in net.parameters() if p.ndim > 1]
            grads = torch.autograd.grad(
                part.square().sum(), used, create_graph=True, allow_unused=True, retain_graph=True
            )
            sum(g.square().sum() for g in grads if g is not None).backward()
        return states(net)

    assert_all_same(three(kind, lambda net, x: (net.a(x), net.b(x))), act)


@pytest.mark.parametrize("held", [True, False])
def test_an_interrupted_forward(kind, held):
    """Layers that were not reached are where they were, whoever holds the traceback; and nothing
    that was left is used, not even after writes that nothing counts."""

    def run(net, x):
        y = net.a(x)
        if net.calls == 2:
            raise KeyboardInterrupt
        return net.c(net.b(y))

    def act(net):
        errors, history = [], [net(x_of(1))]
        try:
            net(x_of(2))
        except KeyboardInterrupt as error:
            if held:
                errors.append(error)
        history.append([t.clone() for t in net.state_dict().values()])
        if not held:
            history.append(states(net))
        write_by_data(net, ())
        history += [net.b(x_of(3)), net.a(x_of(3))]
        history.append(states(net))
        return [*history, *train(net)]

    assert_all_same(three(kind, run), act)


def test_hooks_after_it_see_a_plain_tuple(kind):
    """Copied, pickled and mapped over: what carries the token is none of theirs."""
    net = Net(kind.torch, twice)
    fuse_spectral_norm(net)
    seen = []

    def note(_, args, *__):
        seen.append([copy.copy(args), copy.deepcopy(args), pickle.loads(pickle.dumps(args))])
        seen[-1].append(tree_map(lambda t: 2 * t, args))
        return seen[-1][-1] if len(seen) == 1 else None

    net.register_forward_pre_hook(note)
    net.register_forward_hook(note)
    x = x_of(1)
    y, again = net(x), Net(kind.torch, twice)(2 * x)
    torch.testing.assert_close(y, again)
    for values, argument in zip(seen, (x, 2 * x), strict=True):
        assert [type(value) for value in values] == 4 * [tuple]
        for value, factor in zip(values, (1, 1, 1, 2), strict=True):
            torch.testing.assert_close(value, (factor * argument,))


def test_copies_made_within_a_forward(kind):
    made = []

    def run(net, x):
        y = net.a(x)
        if net.calls == 2:
            made.append([copy.deepcopy(net.b), copy.deepcopy(nn.ModuleList([net.c, net.a]))])
            made[-1].append([t.clone() for t in net.state_dict().values()])
        return net.c(net.b(y))

    # torch's own hook does not let itself be copied after a forward.
    nets = [Net(norm, run) for norm in (kind.ours, kind.ours, kind.torch)]
    fuse_spectral_norm(nets[2])
    assert_all_same(nets, train)
    for twins in made[1:]:
        for twin, want in zip(twins, made[0], strict=True):
            assert_same(twin, want, factor=10)


def test_a_pickle_made_within_a_forward():
    kind, made = KINDS["hook"], []

    class Keeps(nn.Sequential):
        def forward(self, x):
            x = self[0](x)
            if not self.training:
                return self[1](x)
            run, made[:] = made[:], []
            made.extend([*run, pickle.loads(pickle.dumps(list(self.state_dict().values())))])
            return self[1](x)

    for fused in (False, True):
        torch.manual_seed(0)
        model = Keeps(*(kind.ours(nn.Linear(4, 4, dtype=D)) for _ in range(2)))
        if fused:
            fuse_spectral_norm(model)
        model(x_of(1))
    assert_same(made[1], made[0])


@pytest.mark.parametrize("train_mode", [True, False])
def test_threads(train_mode):
    """Of the hooks, torch's own mix the threads up: they store the weight on the module."""
    kind = KINDS["parametrization"]
    net = Net(kind.torch, twice).train(train_mode)
    fuse_spectral_norm(net)
    want = copy.deepcopy(net).eval()(x_of(0))
    errors = []

    def work():
        try:
            for step in range(20):
                out = net(x_of(0 if not train_mode else step))
                if not train_mode:
                    assert_same(out, want)
                loss(out).backward()
        except Exception as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_within_another_fused_model(kind):
    def build(norm, fuse):
        inner = Net(norm, twice)
        outer = Net(norm, lambda net, x: net.c(net.inner(net.a(x))))
        outer.inner = inner
        if fuse:
            fuse_spectral_norm(outer)
            fuse_spectral_norm(inner)
        return outer

    nets = [build(kind.torch, False), build(kind.ours, False), build(kind.torch, True)]
    assert_all_same(nets, train)


def test_shared_u_and_v(kind):
    def build(norm):
        net = Net(norm, lambda net, x: net.c(net.b(net.a(x))))
        if kind is KINDS["hook"]:
            net.b = copy.copy(net.a)
        else:
            a, b = (m.parametrizations.weight[0] for m in (net.a, net.b))
            b._buffers = a._buffers
        return net

    nets = [build(kind.torch), build(kind.ours), build(kind.torch)]
    fuse_spectral_norm(nets[2])
    assert_all_same(nets, lambda net: [net(x_of(1)), net(x_of(2)), states(net)])


@pytest.fixture
def swapping():
    """Loading and converting swap tensors, which refuses what others refer to."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


def test_swap_tensors(kind, swapping):
    for options in ({}, {"step_scoped": True}, {"cache_eval": True}):
        net, plain = Net(kind.ours, twice), Net(kind.ours, twice)
        fuse_spectral_norm(net, **options)
        with torch.no_grad():
            net(x_of(1)), net.eval()(x_of(1))
        state = Net(kind.ours, twice).state_dict()
        net.load_state_dict(state)
        plain.load_state_dict(state)
        net.float().double(), plain.float().double()
        assert_same(net.eval()(x_of(2)), plain.eval()(x_of(2)))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "layers"])
@pytest.mark.parametrize("step_scoped", [True, False])
def test_swap_tensors_while_a_graph_is_kept(kind, step_scoped, fused, swapping):
    """Of a transposed convolution too, whose weight the operators read through a view."""

    def norm(layer):
        return kind.ours(layer, step_scoped=step_scoped)

    def build():
        torch.manual_seed(0)
        layers = nn.Conv1d(2, 3, 3, dtype=D), nn.ConvTranspose1d(3, 4, 3, dtype=D)
        return nn.Sequential(*map(norm, layers))

    net, plain = build(), build()
    if fused:
        fuse_spectral_norm(net, step_scoped=step_scoped)
    x = torch.randn(2, 2, 9, dtype=D)
    net(x).square().sum().backward()
    net.zero_grad()
    state = plain.state_dict()
    net.load_state_dict(state)
    net.float().double(), plain.float().double()
    outputs = [model(x) for model in (net, plain)]
    assert_same(*outputs)
    for y in outputs:
        y.square().sum().backward()
    assert_same(*([p.grad for p in model.parameters()] for model in (net, plain)))


# --- chains and parametrized hooks -------------------------------------------------------------


class Double(nn.Module):
    def forward(self, weight):
        return 2 * weight

    def right_inverse(self, weight):
        return weight / 2


def over_weight_norm(norm):
    return lambda m: norm(parametrizations.weight_norm(m))


def over_double(norm):
    def wrap(module):
        parametrize.register_parametrization(module, "weight", Double())
        return norm(module)

    return wrap


def below_double(norm):
    def wrap(module):
        parametrize.register_parametrization(norm(module), "weight", Double())
        return module

    return wrap


def two(norm):
    return lambda m: norm(norm(m))


CHAINS = [over_weight_norm, over_double, below_double, two]


@pytest.mark.parametrize("chain", CHAINS, ids=lambda c: c.__name__)
def test_chains(chain):
    kind = KINDS["parametrization"]
    nets = [Net(chain(norm), twice) for norm in (kind.torch, kind.ours, kind.torch)]
    handle = fuse_spectral_norm(nets[2])
    assert len(handle.sites) == (6 if chain is two else 3)
    assert_all_same(nets, train)
    for net in nets:
        before = states(net)
        eval_output = copy.deepcopy(net).eval()(x_of(5))
        average = AveragedModel(net, decay=0.999)
        average.update_parameters(net)
        for plain in (fold_spectral_norm(net), average):
            assert_same(plain(x_of(5)), eval_output, factor=10)
        assert len(spectral_norms(net).layers) == len(handle.sites)
        assert_same(states(net), before)
        assert not parametrize.is_parametrized(fold_spectral_norm(net).a)
    handle.unfuse()
    assert_all_same(nets, train, bitwise=False)


def hooked_and_parametrized(theirs):
    """A hook whose weight_orig is parametrized: reading that computes."""

    def wrap(module):
        module = KINDS["hook"].torch(module) if theirs else KINDS["hook"].ours(module)
        inner = KINDS["parametrization"]
        return (inner.torch if theirs else inner.ours)(module, "weight_orig")

    return wrap


def test_a_hook_on_a_parametrized_weight():
    nets = [Net(hooked_and_parametrized(theirs), twice) for theirs in (True, False, True)]
    handle = fuse_spectral_norm(nets[2])
    assert len(handle.sites) == 6
    assert_all_same(nets, train)
    for net in nets:
        before = states(net)
        want = copy.deepcopy(net).eval()(x_of(5))
        average = AveragedModel(net, decay=0.999)
        average.update_parameters(net)
        for plain in (fold_spectral_norm(net), average):
            assert_same(plain(x_of(5)), want, factor=10)
        assert len(spectral_norms(net).layers) == 6
        assert_same(states(net), before)


def test_sigma_of_a_chain():
    module = KINDS["parametrization"].ours(parametrizations.weight_norm(nn.Linear(4, 4, dtype=D)))
    for _ in range(200):
        module.weight  # noqa: B018
    weights = module.parametrizations.weight
    right = torch.linalg.matrix_norm(weights[0](weights.original0, weights.original1), 2)
    assert_same(
        spectral_norms(nn.Sequential(module)).layers["0.weight"], right.detach(), factor=1e3
    )


# --- ties and folding --------------------------------------------------------------------------


@pytest.mark.parametrize("partner", ["plain", "normalized", "same_module", "buffer"])
@pytest.mark.parametrize("inplace", [True, False])
def test_fold_of_a_tied_weight(kind, partner, inplace):
    torch.manual_seed(0)
    first, second = nn.Linear(4, 4, dtype=D), nn.Linear(4, 4, dtype=D)
    if partner == "buffer" and kind is KINDS["parametrization"]:
        del first.weight
        first.register_buffer("weight", torch.randn(4, 4, dtype=D))
        del second.weight
        second.register_buffer("weight", first.weight)
    else:
        second.weight = first.weight
    first = kind.ours(first)
    if partner == "normalized":
        second = kind.ours(second)
    model = nn.Sequential(first, nn.Tanh(), first if partner == "same_module" else second).eval()
    tied = None if partner != "plain" else second.weight.detach().clone()
    want = model(x_of(1))
    average = AveragedModel(model, decay=0.999)
    average.update_parameters(model)
    assert_same(average(x_of(1)), want)
    folded = fold_spectral_norm(model, inplace=inplace)
    assert_same(folded(x_of(1)), want)
    if tied is not None:
        assert torch.equal(folded[2].weight, tied)
    if not inplace:
        assert_same(model(x_of(1)), want)


def test_old_weight_norm_beside_it(kind):
    with pytest.warns(FutureWarning):
        other = nn.utils.weight_norm(nn.Linear(4, 4, dtype=D))
    model = nn.Sequential(other, kind.ours(nn.Linear(4, 4, dtype=D)))
    model(x_of(1))
    want = copy.deepcopy(fold_spectral_norm(model))(x_of(2))
    average = AveragedModel(model, decay=0.999)
    average.update_parameters(model)
    assert_same(average(x_of(2)), want)
    assert_same(model.eval()(x_of(2)), want)


@pytest.mark.parametrize("fused", [False, True])
def test_recurrent_layers_after_a_forward(kind, fused):
    """They keep their weights in a list as well, those with a history too."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.lstm = nn.LSTM(4, 4, dtype=D)
            for name in ("weight_ih_l0", "weight_hh_l0"):
                kind.torch(self.lstm, name)

        def forward(self, x):
            return self.lstm(x)[0]

    model = Net()
    if fused:
        fuse_spectral_norm(model)
    model(x_of(1))
    average = AveragedModel(model, decay=0.0)
    for step in range(3):
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        loss(model.train()(x_of(step))).backward()
        optimizer.step()
        average.update_parameters(model)
        folded = fold_spectral_norm(model)
        want = model.eval()(x_of(5))
        assert_same(folded.eval()(x_of(5)), want)
        assert_same(average(x_of(5)), want)


# --- nothing remembered is stale ---------------------------------------------------------------


OPTIMIZERS = {
    "SGD": torch.optim.SGD,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "Adagrad": torch.optim.Adagrad,
}


def expected_weight(module):
    w = (
        module.weight_orig
        if hasattr(module, "weight_orig")
        else module.parametrizations.weight.original
    )
    norm = module if hasattr(module, "weight_u") else module.parametrizations.weight[0]
    u, v = (norm.weight_u, norm.weight_v) if norm is module else (norm._u, norm._v)
    return (w / (u @ w @ v)).detach()


def step_by_data(parameters):
    for p in parameters:
        if p.grad is not None:
            p.data.add_(p.grad, alpha=-0.5)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("way", [*OPTIMIZERS, "data", "assigned"])
@pytest.mark.parametrize("fuse", [True, False])
def test_step_scoped_is_never_stale(kind, way, trust, fuse):
    if trust and way == "data":
        pytest.skip("what trust_versions promises not to happen")
    options = {"step_scoped": True, "trust_versions": trust}
    net = nn.Sequential(
        (kind.torch if fuse else kind.ours)(nn.Linear(4, 4, dtype=D), **({} if fuse else options))
    )
    if fuse:
        fuse_spectral_norm(net, **options)
    parameters = list(net.parameters())
    optimizer = OPTIMIZERS[way](parameters, 0.1, fused=True) if way in OPTIMIZERS else None
    for step in range(3):
        net.zero_grad()
        first, second = net(x_of(step)), net(x_of(step + 10))
        layer = net[0]
        assert_same(first, x_of(step) @ expected_weight(layer).t() + layer.bias, factor=10)
        u = [b.clone() for _, b in net.named_buffers()]
        (loss(first) - 2 * loss(second)).backward()
        net(x_of(step))
        assert all(torch.equal(a, b) for a, (_, b) in zip(u, net.named_buffers(), strict=True))
        if optimizer is not None:
            optimizer.step()
        elif way == "data":
            step_by_data(parameters)
        else:
            for p in parameters:
                p.data = p.detach() + 0.1


@pytest.mark.parametrize("what", ["weight", "u"])
@pytest.mark.parametrize("option", ["step_scoped", "cache_eval"])
def test_writes_by_data_are_seen(kind, option, what):
    net = nn.Sequential(kind.torch(nn.Linear(4, 4, dtype=D)))
    fuse_spectral_norm(net, **{option: True})
    net.train(option == "step_scoped")
    weight, u, v = kind.parts(net[0])
    with torch.no_grad():
        net(x_of(1))
        if what == "weight":
            weight.data.copy_(torch.diag(torch.arange(1.0, 5, dtype=D)) + 0.1)
        else:
            u.data.copy_(torch.ones(4, dtype=D) / 2)
            v.data.copy_(torch.ones(4, dtype=D) / 2)
        got = net(x_of(1))
        net.eval()
        assert_same(got, copy.deepcopy(net)(x_of(1)), factor=5)


def test_a_step_of_another_optimizer_is_no_step(kind):
    net, other = nn.Sequential(kind.torch(nn.Linear(4, 4, dtype=D))), nn.Linear(4, 4)
    fuse_spectral_norm(net, step_scoped=True, trust_versions=True)
    net(x_of(1))
    before = states(net)
    optimizer = torch.optim.Adam(other.parameters())
    other(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    net(x_of(1))
    assert_same(states(net), before)


@pytest.mark.parametrize("name", ["guard", "step_scoped", "cache_eval", "trust_versions"])
def test_options_are_true_or_false(kind, name):
    net = Net(kind.torch, twice)
    before = dict(net._forward_pre_hooks)
    with pytest.raises(
        TypeError, match=f"^fuse_spectral_norm: expected {name} to be True or False"
    ):
        fuse_spectral_norm(net, **{name: "no"})
    assert dict(net._forward_pre_hooks) == before


@pytest.mark.parametrize(
    "function", [fold_spectral_norm, spectral_norms, fuse_spectral_norm, AveragedModel]
)
def test_models_are_modules(function):
    with pytest.raises(
        TypeError, match=f"^{function.__name__}: expected a torch.nn.Module, got list"
    ):
        function([nn.Linear(1, 1)])


def test_memory_is_freed(kind):
    net = Net(kind.torch, twice)
    fuse_spectral_norm(net)
    weight = net.a.weight_orig if kind is KINDS["hook"] else net.a.parametrizations.weight.original
    seen = []

    class Alive(dict):
        pass

    def note(module, args, output):
        node = output.grad_fn
        while type(node).__name__ != "SpectralNormBackward":
            node = [n for n, _ in node.next_functions if n is not None][-1]
        node.metadata["alive"] = alive = Alive()
        seen.append(weakref.ref(alive))

    net.a.register_forward_hook(note)
    out = net(x_of(1))
    assert all(ref() is not None for ref in seen)
    del out
    if kind is KINDS["hook"]:
        vars(net.a)["weight"] = vars(net.b)["weight"] = vars(net.c)["weight"] = weight.detach()
    assert all(ref() is None for ref in seen)
    assert not deposits.open_frames.frames
