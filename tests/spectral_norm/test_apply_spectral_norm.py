"""apply_spectral_norm against spectral_norm, layer by layer."""

import pytest
import torch
from support.networks import KINDS, WAYS, assert_same
from torch import nn

import gankernels as gk
from gankernels.nn.utils import parametrizations


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = nn.GroupNorm(2, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.skip = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        return self.conv(self.norm(x).tanh()) + self.skip(x)


class Critic(nn.Module):
    """Every kind of layer, and a block that the model has twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        block = Block(4)
        self.blocks = nn.Sequential(block, nn.LeakyReLU(), block)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2)
        self.labels = nn.Embedding(5, 6)
        self.head = nn.Sequential(nn.Linear(6, 4), nn.LayerNorm(4), nn.Linear(4, 1))

    def forward(self, x, labels):
        x = self.up(self.blocks(self.first(x))).mean((2, 3))
        return self.head(x + self.labels(labels))


NAMES = ["first", "blocks.0.conv", "blocks.0.skip", "up", "labels", "head.0", "head.2"]


def inputs():
    return torch.randn(3, 3, 4, 4), torch.tensor([0, 4, 1])


def names_of_normalized(model):
    return [name.removesuffix(".weight") for name in gk.spectral_norms(model).layers]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"n_power_iterations": 2, "eps": 1e-6, "max_norm": 0.5}])
def test_layer_by_layer(kind, options):
    got, wanted = Critic(), Critic()
    torch.manual_seed(1)
    assert gk.apply_spectral_norm(got, hook=kind == "hook", **options) == NAMES
    torch.manual_seed(1)
    for name in NAMES:
        KINDS[kind].ours(wanted.get_submodule(name), **options)
    x = inputs()
    for _ in range(2):
        assert_same(got(*x), wanted(*x))
    assert_same(got.state_dict(), wanted.state_dict())
    assert names_of_normalized(got) == NAMES
    assert gk.fuse_spectral_norm(got)


@pytest.mark.parametrize("hook", [False, True])
def test_options_reach_every_layer(hook):
    flags = dict.fromkeys(("guard", "cache_eval", "step_scoped", "trust_versions"), True)
    model = nn.Sequential(nn.Linear(3, 4), nn.ConvTranspose1d(4, 5, 2))
    gk.apply_spectral_norm(model, hook=hook, init_iterations=3, **flags)
    for layer, dim in zip(model, (0, 1), strict=True):
        (norm,) = [*layer._forward_pre_hooks.values()] if hook else [*layer.parametrizations.weight]
        assert norm.guard
        assert norm.settings.dim == dim
        assert norm.settings.cache_eval
        assert norm.settings.step_scoped
        assert norm.settings.trust_versions


def test_the_model_itself():
    layer = nn.Linear(3, 4)
    assert gk.apply_spectral_norm(layer) == [""]
    assert list(gk.spectral_norms(layer).layers) == ["weight"]


def test_another_name():
    model = nn.Sequential(nn.GRU(3, 4))
    assert gk.apply_spectral_norm(model, nn.GRU, name="weight_hh_l0") == ["0"]
    assert list(gk.spectral_norms(model).layers) == ["0.weight_hh_l0"]


@pytest.mark.parametrize(
    "types, found",
    [
        (nn.Conv2d, ["first", "blocks.0.conv", "blocks.0.skip"]),
        ([nn.Linear, nn.Embedding], ["labels", "head.0", "head.2"]),
        (nn.Conv2d.__bases__, ["first", "blocks.0.conv", "blocks.0.skip", "up"]),
    ],
    ids=["one", "two", "base"],
)
def test_types(types, found):
    assert gk.apply_spectral_norm(Critic(), types) == found


SKIPS = {
    "name": (lambda m: "head.2", ["head.2"]),
    "name of a part": (lambda m: "head", ["head.0", "head.2"]),
    "pattern": (lambda m: "*.skip", ["blocks.0.skip"]),
    "second name": (lambda m: "blocks.2.conv", ["blocks.0.conv"]),
    "module": (lambda m: m.up, ["up"]),
    "module with parts": (lambda m: m.blocks[2], ["blocks.0.conv", "blocks.0.skip"]),
    "class": (lambda m: nn.Embedding, ["labels"]),
    "class that is not there": (lambda m: nn.LSTM, []),
    "function": (lambda m: lambda name, x: getattr(x, "kernel_size", 0) == (1, 1), NAMES[2:3]),
    "list": (lambda m: ["first", m.up, nn.Linear], ["first", "up", "head.0", "head.2"]),
}


@pytest.mark.parametrize("case", SKIPS)
def test_skip(case):
    model = Critic()
    make, skipped = SKIPS[case]
    wanted = [name for name in NAMES if name not in skipped]
    assert gk.apply_spectral_norm(model, skip=make(model)) == wanted
    assert names_of_normalized(model) == wanted


@pytest.mark.parametrize("way", WAYS)
def test_keep(way):
    model = Critic()
    WAYS[way](model.up)
    refuses(model, ValueError, "without a spectral norm, and 'up' has one already")
    rest = [name for name in NAMES if name != "up"]
    assert gk.apply_spectral_norm(model, keep=True) == rest
    assert gk.apply_spectral_norm(model, keep=True) == []
    assert sorted(names_of_normalized(model)) == sorted(NAMES)


@pytest.mark.parametrize("hook", [False, True])
def test_tied_weights(hook):
    """The weight stays one parameter, and is normalized for both."""
    model = nn.ModuleDict({"in": nn.Embedding(5, 3), "out": nn.Linear(3, 5, bias=False)}).double()
    model["out"].weight = model["in"].weight
    assert gk.apply_spectral_norm(model, hook=hook, init_iterations=100) == ["in", "out"]
    (weight,) = model.parameters()
    sigma = torch.linalg.matrix_norm(weight, 2)
    x = model["in"](torch.arange(5))
    assert_same(x, weight / sigma)
    y = model["out"](torch.eye(3).double())
    assert_same(y, weight.mT / sigma)
    (x.sum() + y.square().sum()).backward()
    assert weight.grad.abs().sum() > 0


def test_multi_head_attention():
    """Its output layer is a Linear, whose weight it reads."""
    torch.manual_seed(0)
    model = nn.MultiheadAttention(4, 2)
    x = torch.randn(3, 2, 4)
    refuses(model, ValueError, "reads out_proj.weight without calling its layer", hook=True)
    before = model(x, x, x)[0]
    assert gk.apply_spectral_norm(model) == ["out_proj"]
    assert not torch.allclose(model(x, x, x)[0], before)


def refuses(model, error, message, *args, **options):
    """Nothing is changed by a call that is refused."""
    before = {k: (x, x._version) for k, x in model.state_dict(keep_vars=True).items()}
    hooks = [dict(m._forward_pre_hooks) for m in model.modules()]
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        gk.apply_spectral_norm(model, *args, **options)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[k] is x and x._version == n for k, (x, n) in before.items())
    assert [dict(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state)


REFUSED = {
    "no layer": (nn.Conv3d, {}, ValueError, "layers of Conv3d, got Critic with none"),
    "none left": (nn.Conv2d, {"skip": ["first", "blocks"]}, ValueError, "none that is not skipped"),
    "no name": (nn.Linear, {"skip": "haed"}, ValueError, 'and "haed" is none of them'),
    "no module": (nn.Linear, {"skip": nn.Linear(1, 1)}, ValueError, "and this Linear is none"),
    "skip": (nn.Linear, {"skip": [3]}, TypeError, "or functions of a name and a module, got int"),
    "types": ((3,), {}, TypeError, "expected types to be classes of modules.*got tuple"),
    "no types": ((), {}, TypeError, "expected types to be classes of modules"),
    "a module": (nn.Linear(1, 1), {}, TypeError, "expected types to be classes.*got Linear"),
    "int": (int, {}, TypeError, "expected types to be classes of modules.*got <class 'int'>"),
    "dim": (nn.Linear, {"dim": 0}, TypeError, "expected no dim, which is each layer's own"),
    "name": (nn.Linear, {"name": 3}, TypeError, "expected name to be a str, got int"),
    "hook": (nn.Linear, {"hook": 1}, TypeError, "expected hook to be True or False, got int"),
    "keep": (nn.Linear, {"keep": 1}, TypeError, "expected keep to be True or False, got int"),
    "option": (nn.Linear, {"n_power_iteration": 2}, TypeError, "unexpected keyword argument"),
    "value": (nn.Linear, {"max_norm": -1.0}, ValueError, "max_norm to be a positive, finite"),
    "vector": (nn.GroupNorm, {}, ValueError, r"got blocks.0.norm.weight of shape \(4,\)"),
    "container": (nn.Module, {}, ValueError, "got weight, where Critic has none; pass other"),
    "no parameter": (nn.Linear, {"name": "w"}, ValueError, "with a parameter w, got head.0.w"),
}


@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case, hook):
    types, options, error, message = REFUSED[case]
    refuses(Critic(), error, message, types, **{"hook": hook, **options})


def weight_norm(model):
    nn.utils.parametrizations.weight_norm(model.head[2])


def old_weight_norm(model):
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.head[2])


def lazy(model):
    model.head[2] = nn.LazyLinear(1)


def tied(model):
    model.head[1].weight = model.first.weight


def sparse(model):
    model.head[2].weight = nn.Parameter(model.head[2].weight.detach().to_sparse())


@pytest.mark.parametrize(
    "prepare, error, message",
    [
        (weight_norm, ValueError, "expected head.2.weight to be a parameter.*is computed"),
        (old_weight_norm, ValueError, "expected head.2.weight to be a parameter.*is computed"),
        (lazy, ValueError, "got head.2.weight of a lazy module; call the model once"),
        (tied, ValueError, "first.weight to be shared by normalized.*it is head.1.weight as well"),
        (sparse, TypeError, "expected head.2.weight to be a dense tensor"),
    ],
)
@pytest.mark.parametrize("hook", [False, True])
def test_refuses_one_layer_of_many(prepare, error, message, hook):
    model = Critic()
    prepare(model)
    refuses(model, error, message, hook=hook)


def test_refuses_what_is_no_model():
    with pytest.raises(TypeError, match=r"apply_spectral_norm: expected a torch\.nn\.Module"):
        gk.apply_spectral_norm(3)


def test_a_type_that_matches_through_a_parametrization():
    """The class of a parametrized module is one of its own."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    parametrizations.spectral_norm(model[0])
    assert gk.apply_spectral_norm(model, nn.Linear, keep=True) == ["1"]
