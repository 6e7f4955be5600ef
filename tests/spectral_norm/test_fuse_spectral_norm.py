"""fuse_spectral_norm against the same model normalized layer by layer."""

import copy
import io
import pickle

import pytest
import torch
from support.networks import (
    CRITIC_LABELS,
    KINDS,
    WAYS,
    assert_same,
    batch,
    critic,
    loss,
    make,
    replicate,
    states,
)
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

import gankernels
from gankernels import fuse_spectral_norm, ops
from gankernels.spectral_norm._fused import deposits
from gankernels.spectral_norm.fuse import FusedSpectralNorm, sites

pytestmark = pytest.mark.usefixtures("device")

#: Who normalizes the layers of a critic, in turn; and torch's own for the same numbers.
MIXES = {
    "torch_hook": (["torch_hook"], ["torch_hook"]),
    "ours_hook": (["ours_hook"], ["torch_hook"]),
    "torch_parametrization": (["torch_parametrization"], ["torch_parametrization"]),
    "ours_parametrization": (["ours_parametrization"], ["torch_parametrization"]),
    "all": (
        ["torch_hook", "ours_parametrization", "ours_hook", "torch_parametrization"],
        ["torch_hook", "torch_parametrization", "torch_hook", "torch_parametrization"],
    ),
}


@pytest.fixture(params=list(MIXES))
def pair(request):
    """A model to fuse, and the same under torch's own normalization."""
    ways, torchs = MIXES[request.param]
    return critic(*ways), critic(*torchs)


def real_and_fake(step):
    return batch(2 * step + 1), batch(2 * step + 2)


def train(model, steps=3, start=0, optimizer=None, lr=0.01):
    """Steps of Adam on D(fake) - D(real), two forwards before the backward."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=lr)
    history = []
    for step in range(start, start + steps):
        real, fake = real_and_fake(step)
        optimizer.zero_grad()
        outputs = model(fake), model(real)
        (loss(outputs[0]) - 2 * loss(outputs[1])).backward()
        history.append([*outputs, states(model)])
        optimizer.step()
    return history


def norms(model):
    return [site.norm for site in sites(model)]


def nothing_deposited():
    assert not deposits.open_frames.frames


# --- the same as layer by layer ----------------------------------------------------------------


def test_trains_as_layer_by_layer(pair):
    model, expected = pair
    handle = fuse_spectral_norm(model)
    assert isinstance(handle, FusedSpectralNorm)
    assert repr(handle) == "FusedSpectralNorm(7 weights)"
    assert_same(train(model), train(expected), factor=10)
    nothing_deposited()
    model.eval(), expected.eval()
    assert_same(model(batch()), expected(batch()), factor=10)
    assert_same(states(model), states(expected), factor=10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_dtypes(dtype):
    model, expected = (critic(*ways, dtype=dtype) for ways in MIXES["all"])
    fuse_spectral_norm(model)
    x = batch(dtype=dtype)
    for m in (model, expected):
        loss(m(x)).backward()
    if dtype == torch.float32:
        assert_same(model, expected)
    else:  # torch rounds every step of the iteration to bfloat16
        assert_same([b for _, b in model.named_buffers()], [b for _, b in expected.named_buffers()])


def test_double_backward(pair):
    for model in pair:
        if model is pair[0]:
            fuse_spectral_norm(model)
        x = batch().requires_grad_()
        slope = torch.autograd.grad(model(x).sum(), x, create_graph=True)[0]
        (slope.flatten(1).norm(dim=1) - 1).square().mean().backward()
    assert_same(*pair)


def test_under_the_reference_backend(pair):
    model, expected = pair
    fuse_spectral_norm(model)
    with gankernels.backend("reference"):
        got = train(model, 2)
    assert_same(got, train(expected, 2), factor=10)


def test_state_dict_is_untouched_and_loads_after_fusing(pair):
    model, other = pair
    before = model.state_dict()
    tensors = {k: v.data_ptr() for k, v in before.items()}
    train(other, 1)
    fuse_spectral_norm(model, guard=True, step_scoped=True)
    after = model.state_dict()
    assert list(after) == list(before)
    assert after._metadata == before._metadata
    assert {k: v.data_ptr() for k, v in after.items()} == tensors
    model.load_state_dict(other.state_dict())
    assert_same(model(batch()), other(batch()))
    other.load_state_dict(model.state_dict())


def test_parameters_seen_by_optimizers_are_untouched(pair):
    model, _ = pair
    before = list(model.named_parameters())
    fuse_spectral_norm(model)
    assert all(
        a[0] == b[0] and a[1] is b[1] for a, b in zip(before, model.named_parameters(), strict=True)
    )


def test_frozen_layers(pair):
    for model in pair:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("blocks" not in name)
    model, expected = pair
    fuse_spectral_norm(model)
    for m in pair:
        loss(m(batch())).backward()
    assert_same(model, expected)
    assert all(p.grad is None for p in model.blocks.parameters())


def test_no_grad_and_inference_mode_move_u_and_v(pair):
    model, expected = pair
    fuse_spectral_norm(model)
    for m in pair:
        with torch.no_grad():
            m(batch())
        with torch.inference_mode():
            m(batch())
        loss(m(batch())).backward()
    assert_same(model, expected)


def test_train_and_eval_of_each_submodule(pair):
    model, expected = pair
    fuse_spectral_norm(model)
    for m in pair:
        m.blocks[0].eval()
        m.last.eval()
        loss(m(batch(1)) - m(batch(2))).backward()
        m.eval()
        m.up.train()
        loss(m(batch(3))).backward()
        m.train()
    assert_same(train(model, 2), train(expected, 2), factor=10)


class Mixed(nn.Module):
    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.single = way(nn.Linear(4, 5))
        self.wide = way(nn.Linear(5, 3).double())
        self.again = way(nn.Linear(3, 4))

    def forward(self, x):
        return self.again(torch.tanh(self.wide(torch.tanh(self.single(x)).double())).float())


def test_mixed_dtypes_and_settings():
    nets = [Mixed(WAYS[way]) for way in ("torch_hook", "torch_hook")]
    for net in nets:
        (hook,) = net.again._forward_pre_hooks.values()
        hook.n_power_iterations = 3
    fuse_spectral_norm(nets[1])
    for net in nets:
        x = torch.linspace(-1, 1, 8).view(2, 4)
        loss(net(x) - net(2 * x)).backward()
    got, want = ({k: v.float() for k, v in states(net).items()} for net in nets[::-1])
    assert_same(got, want, factor=5)


# --- one call ----------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch):
    """How many weights each call of the operators was given."""
    found = []
    for name in ("spectral_norm", "power_iteration_", "spectral_normalize"):
        original = getattr(ops, name)

        def counted(weights, *args, original=original, name=name, **kwargs):
            found.append((name, len(weights)))
            return original(weights, *args, **kwargs)

        monkeypatch.setattr(ops, name, counted)
    return found


@pytest.mark.parametrize("kind", list(KINDS))
def test_one_call_a_forward(kind, calls):
    model = critic(f"torch_{kind}")
    fuse_spectral_norm(model)
    model(batch())
    assert calls == [("spectral_norm", 7)]
    calls.clear()
    model.eval()
    model(batch())
    assert calls == [("spectral_normalize", 7)]
    calls.clear()
    model.train()
    model.blocks[1].eval()
    model.up.requires_grad_(False)
    model(batch())
    assert sorted(calls) == [("spectral_norm", 1), ("spectral_norm", 4), ("spectral_normalize", 2)]


def test_one_call_for_each_order(calls):
    model = critic("torch_hook", "ours_parametrization")
    fuse_spectral_norm(model)
    calls.clear()
    model(batch())
    assert sorted(calls) == [("spectral_norm", 3), ("spectral_norm", 4)]


# --- fusing and taking it back -----------------------------------------------------------------


def test_unfuse_gives_back_the_very_objects(pair):
    model, expected = pair
    before = norms(model)
    hooks = dict(model._forward_pre_hooks), dict(model._forward_hooks)
    keys = [set(vars(m)) for m in model.modules()]
    handle = fuse_spectral_norm(model, guard=True)
    assert all(a is not b for a, b in zip(norms(model), before, strict=True))
    got = train(model, 2)
    assert handle.unfuse() is model
    assert all(a is b for a, b in zip(norms(model), before, strict=True))
    assert (dict(model._forward_pre_hooks), dict(model._forward_hooks)) == hooks
    new = [set(vars(m)) - k for m, k in zip(model.modules(), keys, strict=True)]
    assert all(not k - {"_gankernels_deposits"} for k in new)
    assert not [name for name, _ in model.named_buffers() if "skipped" in name]
    got += train(model, 2, 2)
    want = train(expected, 2) + train(expected, 2, 2)
    assert_same(got, want, factor=20)
    handle.unfuse()  # once more does nothing
    assert all(a is b for a, b in zip(norms(model), before, strict=True))


def test_unfuse_keeps_the_mode_of_today(pair):
    model, expected = pair
    handle = fuse_spectral_norm(model)
    model.eval(), expected.eval()
    handle.unfuse()
    assert_same([model(batch()), model(batch())], [expected(batch()), expected(batch())])
    assert_same(states(model), states(expected))


@pytest.mark.parametrize("again", [False, True])
def test_unfuse_keeps_the_settings_of_today(pair, again):
    """n_power_iterations and eps, which torch lets be set at any time."""
    model, expected = pair
    handle = fuse_spectral_norm(model)
    for m in pair:
        for norm in norms(m):
            norm.n_power_iterations, norm.eps = 5, 0.5
    if again:
        fuse_spectral_norm(model, max_norm=1e300).unfuse()
    handle.unfuse()
    assert_same([model(batch()), model(batch())], [expected(batch()), expected(batch())])
    assert_same(states(model), states(expected))


def test_fusing_again_is_the_same(pair):
    model, expected = pair
    handle = fuse_spectral_norm(model)
    ours, hooks = norms(model), len(model._forward_pre_hooks)
    assert fuse_spectral_norm(model) is handle
    assert all(a is b for a, b in zip(norms(model), ours, strict=True))
    assert len(model._forward_pre_hooks) == hooks
    assert_same(train(model, 2), train(expected, 2), factor=10)


def test_fusing_again_finds_what_was_added(pair):
    model, expected = pair
    handle = fuse_spectral_norm(model)
    for m in pair:
        torch.manual_seed(9)
        m.plain = WAYS["torch_hook"](m.plain)
    x = batch()
    assert_same(model(x), expected(x))  # not fused yet, and right
    assert fuse_spectral_norm(model) is handle
    assert len(handle.sites) == 8
    assert_same(train(model, 2), train(expected, 2), factor=10)
    handle.unfuse()
    assert_same(train(model, 1, 2), train(expected, 1, 2), factor=20)


def test_fusing_again_with_other_options():
    model = critic("torch_parametrization")
    before = norms(model)
    handle = fuse_spectral_norm(model, guard=True)
    assert len(handle.skipped) == 7
    assert fuse_spectral_norm(model, max_norm=2.0) is handle
    assert handle.skipped == {}
    assert all(norm.settings.max_norm == 2.0 for norm in norms(model))
    handle.unfuse()
    assert all(a is b for a, b in zip(norms(model), before, strict=True))


def test_removed_and_replaced_layers(pair):
    model, expected = pair
    handle = fuse_spectral_norm(model)
    model(batch()), expected(batch())
    for m in pair:
        if parametrize.is_parametrized(m.last):
            parametrize.remove_parametrizations(m.last, "weight")
        else:
            gankernels.nn.utils.remove_spectral_norm(m.last)
        m.blocks[1] = nn.Identity()
    x = batch(2)
    assert_same(model(x), expected(x))
    handle.unfuse()
    assert_same(model(x), expected(x))
    assert_same(states(model), states(expected))


def test_a_parametrization_on_top_of_the_fused_one():
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    nets = critic("torch_parametrization"), critic("torch_parametrization")
    fuse_spectral_norm(nets[0])
    for net in nets:
        parametrize.register_parametrization(net.last, "weight", Double())
    # Registering reads the weight, in both.
    assert_same(train(nets[0], 2), train(nets[1], 2), factor=10)


# --- structure of the model --------------------------------------------------------------------


@pytest.mark.parametrize("order", ["outer_first", "inner_first"])
@pytest.mark.parametrize("fused_first", ["outer", "inner"])
def test_nested_roots(pair, order, fused_first):
    model, expected = pair
    before = norms(model)
    roots = {"outer": model, "inner": model.blocks}
    second = "inner" if fused_first == "outer" else "outer"
    handles = {name: fuse_spectral_norm(roots[name]) for name in (fused_first, second)}
    got, want = train(model, 2), train(expected, 2)
    x = batch(5).expand(3, 3, 5, 5)[:, :1].expand(3, 4, 5, 5)
    got.append(model.blocks(x))  # the inner one alone
    want.append(expected.blocks(x))
    for name in ("outer", "inner") if order == "outer_first" else ("inner", "outer"):
        handles[name].unfuse()
        got += train(model, 1, 3)
        want += train(expected, 1, 3)
    assert_same(got, want, factor=50)
    assert all(a is b for a, b in zip(norms(model), before, strict=True))


@pytest.mark.parametrize("way", list(WAYS))
def test_a_layer_that_is_the_whole_model(way):
    layer, expected = (make(w, lambda: nn.Linear(4, 3)) for w in (WAYS[way], WAYS[way]))
    handle = fuse_spectral_norm(layer)
    x = torch.linspace(-1, 1, 8).view(2, 4)
    for m in (layer, expected):
        for k in (1, 2):
            loss(m(k * x)).backward()
    assert_same(layer, expected)
    handle.unfuse()
    assert_same(layer(x), expected(x))


class Shared(nn.Module):
    """The same layer under two names, called once in a forward; u and v move once either way."""

    def __init__(self, layer):
        super().__init__()
        self.a = layer
        self.holder = nn.ModuleList([layer])

    def forward(self, x):
        return self.holder[0](x)


@pytest.mark.parametrize("way", list(WAYS))
def test_a_module_under_two_names(way):
    def build():
        return Shared(make(WAYS[way], lambda: nn.Linear(4, 3), torch.float64))

    model, expected = build(), build()
    assert len(fuse_spectral_norm(model).sites) == 1
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)
    for m in (model, expected):
        loss(m(x) - m(2 * x)).backward()
    assert_same(model, expected)


@pytest.mark.parametrize("way", list(WAYS))
def test_one_parameter_in_two_modules(way):
    def build():
        torch.manual_seed(0)
        first, second = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()
        second.weight = first.weight
        return nn.Sequential(WAYS[way](first), nn.Tanh(), WAYS[way](second))

    model, expected = build(), build()
    fuse_spectral_norm(model)
    x = torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)
    for m in (model, expected):
        for k in (1, 2):
            loss(m(k * x)).backward()
    assert_same(model, expected)


def test_a_submodule_called_alone_is_never_stale(pair):
    model, expected = pair
    fuse_spectral_norm(model)
    x = batch(4)
    for m in pair:
        m(batch())
        with torch.no_grad():
            for parameter in m.parameters():
                parameter.mul_(1.5).add_(0.01)
        loss(m.first(x)).backward()
        m.blocks[0](m.first(x))
    assert_same(model, expected)
    assert_same(model(x), expected(x))


class Interrupted(nn.Module):
    def __init__(self, ways):
        super().__init__()
        self.critic = critic(*ways)
        self.error = None

    def forward(self, x):
        if self.error:
            self.critic.first(x)
            raise self.error
        return self.critic(x)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("way", list(KINDS))
def test_an_exception_leaves_nothing_deposited(way, error):
    model, expected = Interrupted([f"torch_{way}"]), Interrupted([f"torch_{way}"])
    fuse_spectral_norm(model)
    model.error = error
    with pytest.raises(type(error)):
        model(batch())
    if not isinstance(error, KeyboardInterrupt):
        nothing_deposited()
    model.error = None
    expected.critic.load_state_dict(model.critic.state_dict())
    with torch.no_grad():
        for m in (model, expected):
            for parameter in m.parameters():
                parameter.mul_(1.5)
    assert_same(model.critic.first(batch()), expected.critic.first(batch()))
    assert_same(train(model, 2), train(expected, 2), factor=10)
    nothing_deposited()


def test_an_exception_in_a_pre_hook_of_the_model():
    model, expected = critic("torch_hook"), critic("torch_hook")
    fuse_spectral_norm(model)

    def refuse(module, args):
        raise ValueError("no")

    refusing = model.register_forward_pre_hook(refuse)
    with pytest.raises(ValueError, match="no"):
        model(batch())
    refusing.remove()
    expected.load_state_dict(model.state_dict())
    with torch.no_grad():
        for m in (model, expected):
            for parameter in m.parameters():
                parameter.mul_(1.5)
    assert_same(model.first(batch()), expected.first(batch()))
    assert_same(model(batch()), expected(batch()))


class Penalized(nn.Module):
    """Wants gradients within a forward that is called without."""

    def __init__(self, way):
        super().__init__()
        self.critic = critic(way)
        self.penalty = None

    def forward(self, x):
        with torch.enable_grad():
            out = self.critic(x)
            self.penalty = loss(out)
        return out


@pytest.mark.parametrize("way", list(WAYS))
def test_gradients_wanted_within_a_forward_without(way):
    model, expected = Penalized(way), Penalized(way)
    fuse_spectral_norm(model)
    for m in (model, expected):
        with torch.no_grad():
            m(batch())
        m.penalty.backward()
        assert m.critic.last.bias.grad is not None
    assert set(states(model)) == set(states(expected))  # all the gradients are there


def test_parameters_given_to_the_call(pair):
    model, expected = pair
    fuse_spectral_norm(model)
    results = []
    for m in pair:
        given = {k: (1.5 * p.detach()).requires_grad_() for k, p in m.named_parameters()}
        out = torch.func.functional_call(m, given, (batch(),))
        results.append([out, *torch.autograd.grad(loss(out), list(given.values()))])
    assert_same(results[0], results[1])
    assert_same(states(model), states(expected))
    assert_same(model(batch()), expected(batch()))


def test_within_a_transform_of_torch_func(pair):
    fuse_spectral_norm(pair[0])
    results = []
    for m in pair:
        m.eval()
        given = {k: p.detach() for k, p in m.named_parameters()}

        def run(given, m=m):
            return loss(torch.func.functional_call(m, given, (batch(),)))

        results.append(torch.func.grad(run)(given))
    assert_same(results[0], results[1])


def test_weights_of_inference_mode():
    outputs = []
    for fused in (True, False):
        with torch.inference_mode():
            model = critic("torch_hook", "torch_parametrization")
            if fused:
                fuse_spectral_norm(model, cache_eval=True)
            outputs.append([model(batch()), model.eval()(batch())])
    assert_same(outputs[0], outputs[1])


# --- copies and replicas -----------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_deepcopy_is_independent(pair, when):
    model, expected = pair
    fuse_spectral_norm(model)
    if when == "after":
        model(batch()), expected(batch())
    twin = copy.deepcopy(model)
    before = states(model)
    got = train(twin, 2)
    assert_same(states(model), before, "the original")
    want = train(expected, 2)
    assert_same(got, want, factor=10)
    handle = fuse_spectral_norm(twin)  # finds that it is fused
    assert handle.model is twin
    assert len(twin._forward_pre_hooks) == len(model._forward_pre_hooks)
    handle.unfuse()
    assert_same(train(twin, 1, 2), train(expected, 1, 2), factor=20)
    assert_same(states(model), before, "the original")
    got = train(model, 2)  # and is still fused
    assert_same(got, want, factor=10)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", ["torch_hook", "ours_hook"])
def test_a_pickle_is_independent(way, when):
    model, expected = critic(way), critic("torch_hook")
    fuse_spectral_norm(model)
    if when == "after":
        model(batch()), expected(batch())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        other = copy.deepcopy(twin)
        assert_same(train(twin, 2), train(other, 2))
    assert_same(train(model, 2), train(expected, 2), factor=10)
    assert_same(train(twin, 2, 2), train(model, 2, 2), factor=50)


def test_replicas(pair):
    model, expected = pair
    fuse_spectral_norm(model)
    outputs = []
    for m in pair:
        first, second = replicate(m), replicate(m)
        outputs.append((first(batch(1)), second(batch(2))))
        loss(outputs[-1][0] - outputs[-1][1]).backward()
    assert_same(outputs[0], outputs[1])
    # The gradient of a bias is what is left of a sum that cancels; its rounding is the processor's.
    assert_same(model, expected, factor=10)
    assert_same(train(model, 1), train(expected, 1), factor=10)


# --- torch.compile -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mix", ["torch_hook", "all"])
@pytest.mark.parametrize("guard", [False, True])
def test_compiles_in_one_graph(mix, guard):
    torch._dynamo.reset()
    model, expected = critic(*MIXES[mix][0]), critic(*MIXES[mix][0])
    for m in (model, expected):
        fuse_spectral_norm(m, guard=guard)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got, want = [], []
    for step in range(2):
        for call, m, history in ((compiled, model, got), (expected, expected, want)):
            m.zero_grad()
            out = call(batch(step))
            loss(out).backward()
            history.append([out, states(m)])
            with torch.no_grad():
                for parameter in m.parameters():
                    parameter -= 0.1 * parameter.grad
    assert_same(got, want, factor=10)
    torch._dynamo.reset()


def test_compiles_once():
    """The first trace leaves no attribute that the second call would find."""
    torch._dynamo.reset()
    model = nn.Sequential(*(WAYS["torch_parametrization"](nn.Linear(4, 4)) for _ in range(2)))
    fuse_spectral_norm(model)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, backend=backend)
    for _ in range(3):
        compiled(torch.ones(2, 4))
    assert len(graphs) == 1
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiles_with_inductor():
    torch._dynamo.reset()
    model, expected = (
        nn.Sequential(*(WAYS["torch_parametrization"](nn.Linear(4, 4)) for _ in range(2)))
        for _ in range(2)
    )
    expected.load_state_dict(model.state_dict())
    fuse_spectral_norm(model)
    x = torch.linspace(-1, 1, 8).view(2, 4)
    for call in (torch.compile(model, fullgraph=True), expected):
        loss(call(x)).backward()
    assert_same(model, expected)
    torch._dynamo.reset()


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, error, words",
    [
        (
            {"max_norm": 0.0},
            ValueError,
            "expected max_norm to be a positive, finite number, got 0.0",
        ),
        (
            {"max_norm": float("nan")},
            ValueError,
            "expected max_norm to be a positive, finite number, got nan",
        ),
        (
            {"max_norm": "1"},
            ValueError,
            "expected max_norm to be a positive, finite number, got '1'",
        ),
        ({"optimizer": "adam"}, ValueError, "which only step_scoped=True waits for"),
        ({"optimizer": "wrong", "step_scoped": True}, TypeError, "torch.optim.Optimizer, got str"),
    ],
    ids=str,
)
def test_refused_before_anything_changes(options, error, words):
    model = critic("torch_hook", "torch_parametrization")
    options = dict(options)
    if options.get("optimizer") == "adam":
        options["optimizer"] = torch.optim.Adam(model.parameters())
    before, state = norms(model), states(model)
    hooks = dict(model._forward_pre_hooks)
    with pytest.raises(error, match=words):
        fuse_spectral_norm(model, **options)
    assert all(a is b for a, b in zip(norms(model), before, strict=True))
    assert model._forward_pre_hooks == hooks
    assert_same(states(model), state)


def test_refuses_what_is_no_model_or_has_nothing():
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got list"):
        fuse_spectral_norm([nn.Linear(3, 4)])
    with pytest.raises(ValueError, match="got Linear with none; apply gankernels"):
        fuse_spectral_norm(nn.Linear(3, 4))


def test_labels():
    for way in WAYS:
        assert [site.label for site in sites(critic(way))] == CRITIC_LABELS
        layer = WAYS[way](nn.Linear(3, 4))
        assert [site.label for site in sites(layer)] == ["weight"]


def test_checkpointed_parts_of_a_fused_model_are_exact():
    class Checkpointed(nn.Module):
        def __init__(self, inner, reentrant):
            super().__init__()
            self.inner, self.reentrant = inner, reentrant

        def forward(self, x):
            x = torch.tanh(self.inner.first(x))
            if self.reentrant is None:
                x = self.inner.blocks(x)
            else:
                x = checkpoint(self.inner.blocks, x, use_reentrant=self.reentrant)
            return self.inner.last(self.inner.up(x).mean((2, 3)))

    results = []
    for reentrant in (None, True, False):
        model = Checkpointed(critic("torch_parametrization"), reentrant)
        fuse_spectral_norm(model, step_scoped=True)
        loss(model(batch(1))).backward()
        results.append(model)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@pytest.mark.parametrize(
    "spectral_norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm]
)
def test_sigma_of_a_complex_weight_is_what_it_is_divided_by(spectral_norm):
    layer = spectral_norm(nn.Linear(4, 5, dtype=torch.complex128)).eval()
    layer(torch.randn(2, 4, dtype=torch.complex128))
    name = "weight_orig" if hasattr(layer, "weight_orig") else "parametrizations.weight.original"
    sigma = gankernels.spectral_norms(nn.Sequential(layer)).product
    torch.testing.assert_close(layer.weight * sigma, layer.get_parameter(name))
