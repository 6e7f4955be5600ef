"""What the drop-ins and fuse_spectral_norm do beyond torch, and what is read off a network."""

import copy
import importlib
import pickle

import pytest
import torch
from support.networks import (
    CRITIC_LABELS,
    KINDS,
    WAYS,
    Critic,
    Scale,
    assert_same,
    batch,
    critic,
    draw,
    loss,
    make,
    states,
    twins,
)
from torch import nn
from torch.nn.utils import parametrize

from gankernels import fold_spectral_norm, fuse_spectral_norm, ops, spectral_norms

MIX = ["torch_hook", "ours_parametrization", "ours_hook", "torch_parametrization"]


@pytest.fixture(params=list(KINDS))
def kind(request):
    return KINDS[request.param]


def linear():
    return nn.Linear(7, 5)


def vectors(model):
    """Every u and v."""
    return [b.clone() for name, b in model.named_buffers() if not name.endswith("_skipped")]


def moved(before, model):
    return [not torch.equal(a, b) for a, b in zip(before, vectors(model), strict=True)]


def change(model, factor=1.5, offset=0.02):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor).add_(offset)


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def with_options(**options):
    """A critic, each of its layers under one of ours with these options."""
    torch.manual_seed(0)
    ours = KINDS["hook"].ours, KINDS["parametrization"].ours
    return Critic([lambda m, way=way: way(m, **options) for way in ours], torch.float64)


def fused(**options):
    model = critic(*MIX)
    fuse_spectral_norm(model, **options)
    return model


#: An option is given to every layer, or to fuse_spectral_norm.
GIVEN_TO = {"layers": with_options, "model": fused}


@pytest.fixture(params=list(GIVEN_TO))
def given_to(request):
    return GIVEN_TO[request.param]


# --- step_scoped -------------------------------------------------------------------------------


def test_u_and_v_move_once_a_step(given_to):
    model = given_to(step_scoped=True)
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        model(batch(1))
        after_first = vectors(model)
        model(batch(2))
        with torch.no_grad():
            model(batch(3))
        model(batch(4))
        assert not any(moved(after_first, model))
        loss(model(batch(5))).backward()
        optimizer.step()
        model(batch(6))
        assert all(moved(after_first, model))
        loss(model(batch(7))).backward()
        optimizer.step()


@pytest.mark.parametrize("announced_by", ["step", "optimizer"])
def test_a_step_is_announced(announced_by):
    model = critic(*MIX)
    frozen = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    if announced_by == "step":
        announce = fuse_spectral_norm(model, step_scoped=True).step
    else:
        handle = fuse_spectral_norm(model, step_scoped=True, optimizer=frozen)
        assert fuse_spectral_norm(model, step_scoped=True, optimizer=frozen) is handle
        assert len(frozen._optimizer_step_post_hooks) == 1
        announce = frozen.step
    model(batch())
    before = vectors(model)
    model(batch())
    assert not any(moved(before, model))
    announce()
    model(batch())
    assert all(moved(before, model))
    if announced_by == "optimizer":
        handle.unfuse()
        assert not frozen._optimizer_step_post_hooks


@pytest.mark.parametrize("backwards", ["one", "separate"])
def test_passes_of_a_step_share_a_weight(given_to, backwards):
    """D(a) and D(b) are then what one pass over both batches is in torch."""
    model = given_to(step_scoped=True)
    expected = critic(*MIX) if given_to is fused else critic("ours_hook", "ours_parametrization")
    for m in (model, expected):
        change(m)  # registering a layer's has iterated once already
    for step in range(2):
        a, b = batch(2 * step), batch(2 * step + 1)
        for m in (model, expected):
            m.zero_grad()
        both = expected(torch.cat([a, b]))
        want = both[:3], both[3:]
        (loss(want[0]) - loss(want[1])).backward()
        got = model(a), model(b)
        parts = loss(got[0]), -loss(got[1])
        for part in [sum(parts)] if backwards == "one" else parts:
            part.backward()
        assert_same(got, want, factor=5)
        assert_same(model, expected, factor=5)
        for m in (model, expected):
            with torch.no_grad():
                for parameter in m.parameters():
                    parameter -= 0.1 * parameter.grad


def test_one_backward_pass_through_the_shared_weight(monkeypatch):
    module = importlib.import_module("gankernels.ops._spectral_norm_autograd")
    original, calls = module._backward_op, []

    def counted(grads, *args):
        calls.append(len(grads))
        return original(grads, *args)

    monkeypatch.setattr(module, "_backward_op", counted)
    model = critic("torch_hook")
    fuse_spectral_norm(model, step_scoped=True)
    (loss(model(batch(1))) - loss(model(batch(2))) + loss(model(batch(3)))).backward()
    assert calls == [7]


def test_one_call_a_step(monkeypatch):
    calls = []
    for name in ("spectral_norm", "power_iteration_", "spectral_normalize"):
        original = getattr(ops, name)

        def counted(weights, *args, original=original, name=name, **kwargs):
            calls.append((name, len(weights)))
            return original(weights, *args, **kwargs)

        monkeypatch.setattr(ops, name, counted)
    model = critic("torch_hook")
    fuse_spectral_norm(model, step_scoped=True)
    for _ in range(3):
        model(batch())
    assert calls == [("power_iteration_", 7), ("spectral_normalize", 7)]


@pytest.mark.parametrize("first", ["no_grad", "grad"])
def test_with_and_without_a_gradient_in_a_step(given_to, first):
    model, alone = given_to(step_scoped=True), given_to(step_scoped=True)
    want = alone(batch())
    loss(want).backward()

    def without():
        with torch.no_grad():
            out = model(batch())
        assert not out.requires_grad
        return out

    outputs = [without()] if first == "no_grad" else []
    with_gradient = model(batch())
    loss(with_gradient).backward()
    outputs += [with_gradient, without()]
    for out in outputs:
        assert_same(out, want)
    assert_same(model, alone)


def test_freezing_within_a_step(given_to):
    model, alone = given_to(step_scoped=True), given_to(step_scoped=True)
    loss(alone(batch())).backward()
    model.requires_grad_(False)
    x = batch().requires_grad_()
    (slope,) = torch.autograd.grad(loss(model(x)), x)  # the generator's step
    assert slope.abs().sum() > 0
    model.requires_grad_(True)
    loss(model(batch())).backward()
    assert_same(model, alone)


@pytest.mark.parametrize("how", ["in_place", "load_state_dict", "data", "replaced", "to"])
def test_a_weight_changed_without_an_announcement_is_not_stale(given_to, how):
    model = given_to(step_scoped=True)
    model(batch())
    before = vectors(model)
    if how == "in_place":
        change(model)
    elif how == "load_state_dict":
        state = model.state_dict()
        change_of = {
            k: v * 1.5 + 0.02 if k.endswith(("orig", "original")) else v.clone()
            for k, v in state.items()
        }
        model.load_state_dict(change_of)
    elif how == "data":
        for parameter in model.parameters():
            parameter.data = 1.5 * parameter.data + 0.02
    elif how == "replaced":
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(1.5 * parameter.detach() + 0.02)
    else:
        model.float()
        before = vectors(model)
        change(model)
    x = batch().to(next(model.parameters()).dtype)
    got = model(x)
    assert all(moved(before, model))
    copied = copy.deepcopy(model).eval()  # has no memory: computes from what is there
    assert_same(got, copied(x), factor=10)


def test_an_in_place_change_before_the_backward_is_refused(given_to):
    model = given_to(step_scoped=True)
    out = loss(model(batch()))
    change(model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_eval_between_passes_of_a_step(given_to):
    model, alone = given_to(step_scoped=True), given_to(step_scoped=True)
    for m in (model, alone):
        m(batch())
    before = vectors(model)
    model.eval()
    model(batch())
    model.train()
    assert_same(model(batch()), alone(batch()))
    assert not any(moved(before, model))


def test_double_backward_in_a_step(given_to):
    model, alone = given_to(step_scoped=True), given_to(step_scoped=True)
    alone.eval()
    model(batch(1))
    alone.load_state_dict(model.state_dict())
    for m in (model, alone):
        x = batch(2).requires_grad_()
        out = m(x)
        slope = torch.autograd.grad(out.sum(), x, create_graph=True)[0]
        (loss(m(batch(3))) + slope.square().sum()).backward()
    assert_same(gradients(model), gradients(alone), factor=5)


def test_a_copy_has_a_memory_of_its_own(given_to):
    model = given_to(step_scoped=True)
    loss(model(batch())).backward()
    twin = copy.deepcopy(model)
    change(twin)
    change(model, 0.5)
    for m in (model, twin):
        got = m(batch())
        assert_same(got, copy.deepcopy(m).eval()(batch()), factor=5)


def test_copies_leave_the_optimizer_behind():
    model = critic("torch_hook")
    optimizer = torch.optim.Adam(model.parameters())
    handle = fuse_spectral_norm(model, step_scoped=True, optimizer=optimizer)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        copied = fuse_spectral_norm(twin, step_scoped=True)
        assert copied is not handle
        assert not copied._optimizers
        copied.unfuse()
    assert len(optimizer._optimizer_step_post_hooks) == 1
    model(batch())
    before = vectors(model)
    optimizer.step()  # without gradients: changes nothing, and announces
    model(batch())
    assert all(moved(before, model))


def test_gradient_accumulation(given_to):
    model, alone = given_to(step_scoped=True), given_to(step_scoped=True)
    for seed in range(3):
        loss(model(batch(seed))).backward()
    sum(loss(alone(batch(seed))) for seed in range(3)).backward()
    assert_same(model, alone, factor=5)


# --- guard -------------------------------------------------------------------------------------


def counters(model):
    return {
        name: int(b) for name, b in model.named_buffers() if name.endswith("skipped") and b.numel()
    }


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("step_scoped", [False, True])
def test_guard_keeps_u_and_v(given_to, value, step_scoped):
    model = given_to(guard=True, step_scoped=step_scoped)
    healthy = given_to(guard=True, step_scoped=step_scoped)
    assert set(counters(model).values()) == {0}
    for m in (model, healthy):
        m(batch())
        change(m, 1.0, 0.0)
    before = vectors(model)
    weights = [p for n, p in model.named_parameters() if n.startswith("blocks.0") and p.ndim > 1]
    good = [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w in weights:
            w.fill_(value)
    model(batch())
    for name, a, b in zip(
        [n for n, _ in model.named_buffers() if not n.endswith("_skipped")],
        before,
        vectors(model),
        strict=True,
    ):
        assert b.isfinite().all(), name
        assert torch.equal(a, b) is ("blocks.0" in name), name
    assert counters(model) == {k: int("blocks.0" in k) for k in counters(model)}
    assert not any("skipped" in name for name in model.state_dict())
    with torch.no_grad():
        for w, g in zip(weights, good, strict=True):
            w.copy_(g)
    healthy.load_state_dict(model.state_dict())
    for m in (model, healthy):
        m.zero_grad()
        change(m, 1.0, 0.0)
        loss(m(batch())).backward()
    assert_same(model, healthy)  # a good step as if nothing had been
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_guarded_and_zero_is_zero_with_a_finite_gradient(kind):
    module = make(kind.ours, linear, torch.float64, guard=True)
    with torch.no_grad():
        kind.parts(module)[0].zero_()
    loss(module(draw((4, 7), 1, torch.float64))).backward()
    assert kind.parts(module)[0].grad.isfinite().all()


def test_guard_changes_nothing_where_all_is_well(given_to):
    model, plain = given_to(guard=True), given_to()
    for m in (model, plain):
        for k in range(2):
            loss(m(batch(k))).backward()
    assert_same(model, plain)


def test_the_handle_counts():
    model = critic(*MIX)
    handle = fuse_spectral_norm(model, guard=True)
    assert list(handle.skipped) == CRITIC_LABELS
    with torch.no_grad():
        for parameter in model.up.parameters():
            parameter.zero_()
    model(batch())
    model(batch())
    assert {k: int(n) for k, n in handle.skipped.items()} == {
        label: 2 if label == "up.weight" else 0 for label in CRITIC_LABELS
    }
    fuse_spectral_norm(model, guard=False)
    assert handle.skipped == {}


def test_the_counter_of_a_guarded_layer(kind):
    module = make(kind.ours, linear, guard=True)
    holder = module if kind is KINDS["hook"] else module.parametrizations.weight[0]
    name = "weight_skipped" if kind is KINDS["hook"] else "_skipped"
    weight = kind.parts(module)[0]
    with torch.no_grad():
        weight.zero_()
    module(draw((4, 7)))
    assert getattr(holder, name).tolist() == [1]
    copied = copy.deepcopy(module)
    copied(draw((4, 7)))
    assert getattr(holder, name).tolist() == [1]
    model = nn.Sequential(module)
    handle = fuse_spectral_norm(model)  # keeps the layer's own guard
    model(draw((4, 7)))
    assert {k: int(n) for k, n in handle.skipped.items()} == {"0.weight": 2}
    handle.unfuse()
    assert getattr(holder, name).tolist() == [2]


# --- max_norm -------------------------------------------------------------------------------


@pytest.mark.parametrize("relative", [0.3, 0.99, 1.01, 4.0])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", ["linear", "conv_transpose"])
def test_coefficient(kind, relative, training, layer):
    factory = linear if layer == "linear" else (lambda: nn.ConvTranspose2d(7, 5, 3))
    plain = make(kind.ours, factory, torch.float64, init_iterations=100)
    plain.eval()
    (s,) = spectral_norms(plain).layers.values()
    c = relative * s.item()
    module = make(kind.ours, factory, torch.float64, init_iterations=100, max_norm=c)
    module.train(training)
    x = draw((4, 7) if layer == "linear" else (2, 7, 3, 3), 1, torch.float64)
    got = module(x)
    grad = torch.autograd.grad(loss(got), kind.parts(module)[0], create_graph=True)[0]
    second = torch.autograd.grad(grad.square().sum(), kind.parts(module)[0])[0]

    weight, u, v = (p.detach().clone() for p in kind.parts(module))
    weight.requires_grad_()
    matrix = (weight if layer == "linear" else weight.transpose(0, 1)).flatten(1)
    scaled = weight * torch.clamp(c / (u @ matrix @ v), max=1.0)
    if layer == "linear":
        want = nn.functional.linear(x, scaled, module.bias)
    else:
        want = nn.functional.conv_transpose2d(x, scaled, module.bias)
    expected = torch.autograd.grad(loss(want), weight, create_graph=True)[0]
    assert_same([got, grad], [want, expected], factor=10)
    assert_same(second, torch.autograd.grad(expected.square().sum(), weight)[0], factor=100)
    if relative > 1:
        assert_same(scaled, weight)


def test_coefficient_of_a_fused_model():
    model = critic(*MIX)
    torch.manual_seed(0)
    kinds = [WAYS[way.replace("torch", "ours")] for way in MIX]
    expected = Critic([lambda m, way=way: way(m, max_norm=0.4) for way in kinds], torch.float64)
    fuse_spectral_norm(model, max_norm=0.4)
    for m in (model, expected):
        loss(m(batch(1)) - m(batch(2))).backward()
    assert_same(model, expected, factor=5)


def test_fusing_keeps_the_layers_own_options():
    model, expected = with_options(max_norm=0.4), with_options(max_norm=0.4)
    fuse_spectral_norm(model)
    for m in (model, expected):
        loss(m(batch(1)) - m(batch(2))).backward()
    assert_same(model, expected)


# --- init_iterations ---------------------------------------------------------------------------


def test_init_iterations_make_sigma_useful():
    kind = KINDS["hook"]
    module = make(kind.ours, linear, torch.float64, init_iterations=200)
    largest = torch.linalg.matrix_norm(module.weight_orig.detach(), 2)
    assert_same(spectral_norms(module).layers["weight"], largest, factor=100)
    plain = make(kind.torch, linear, torch.float64)
    for _ in range(3):
        plain(draw((4, 7), 1, torch.float64))
    three = make(kind.ours, linear, torch.float64, init_iterations=3)
    assert_same([three.weight_u, three.weight_v], [plain.weight_u, plain.weight_v])


# --- cache_eval --------------------------------------------------------------------------------


@pytest.fixture
def normalized(monkeypatch):
    """How many weights were normalized for evaluation, by call."""
    calls, original = [], ops.spectral_normalize

    def counted(weights, *args, **kwargs):
        calls.append(len(weights))
        return original(weights, *args, **kwargs)

    monkeypatch.setattr(ops, "spectral_normalize", counted)
    return calls


def fresh(model):
    """The output that nothing kept has to do with."""
    return copy.deepcopy(model)(batch())


@torch.no_grad()
def test_cache_eval_hits(given_to, normalized):
    model, plain = given_to(cache_eval=True), given_to()
    for m in (model, plain):
        m.eval()
    normalized.clear()
    first, second = model(batch()), model(batch())
    assert sum(normalized) == 7
    assert_same([first, second], [plain(batch())] * 2)
    assert torch.equal(first, second)


def _train_on(model):
    model.train()
    model(batch(5))
    model.eval()


def _optimize(model):
    with torch.enable_grad():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss(model(batch(4))).backward()
        optimizer.step()


def _move_u(model):
    for name, buffer in model.named_buffers():
        if name.endswith("_u"):
            buffer.neg_().roll(1)
            buffer.add_(0.01)


def _assign(model):
    for parameter in model.parameters():
        parameter.data = 1.5 * parameter.data


INVALIDATIONS = {
    "weight": change,
    "optimizer": _optimize,
    "load_state_dict": lambda model: model.load_state_dict(
        {k: 1.2 * v for k, v in model.state_dict().items()}
    ),
    "u": _move_u,
    "train": _train_on,
    "data": _assign,
    "dtype": lambda model: model.float().double(),
}


@torch.no_grad()
@pytest.mark.parametrize("how", list(INVALIDATIONS))
def test_cache_eval_is_never_stale(given_to, how, normalized):
    model = given_to(cache_eval=True).eval()
    model(batch())
    INVALIDATIONS[how](model)
    normalized.clear()
    got = model(batch())
    assert sum(normalized) == 7
    assert_same(got, fresh(model))
    model(batch())
    assert sum(normalized) == 14  # the copy's, and no others


def test_cache_eval_is_not_for_gradients(given_to, normalized):
    model, plain = given_to(cache_eval=True).eval(), given_to().eval()
    with torch.no_grad():
        model(batch())
    normalized.clear()
    for m in (model, plain):
        for k in (1, 2):
            loss(m(batch(k))).backward()
    assert sum(normalized) == 4 * 7
    assert_same(model, plain)
    model.requires_grad_(False)
    with torch.no_grad():
        model(batch())
    normalized.clear()
    model(batch())  # no gradient of a frozen weight
    assert not normalized


def test_cache_eval_and_inference_mode(given_to, normalized):
    model, plain = given_to(cache_eval=True).eval(), given_to().eval()
    with torch.inference_mode():
        first = model(batch())
        model(batch())
    assert sum(normalized) == 14  # nothing that inference mode made is kept
    assert_same(first, plain(batch()).detach())
    with torch.no_grad():
        model(batch())
    normalized.clear()
    with torch.inference_mode():
        assert_same(model(batch()), first)
    assert not normalized  # what was kept serves there too
    model.requires_grad_(False)
    x = batch().requires_grad_()
    loss(model(x)).backward()
    assert x.grad is not None


def test_a_copy_has_an_eval_cache_of_its_own(kind):
    module = make(kind.ours, linear, torch.float64, cache_eval=True).eval()
    with torch.no_grad():
        module(draw((4, 7), 1, torch.float64))
        twin = copy.deepcopy(module)
        first = module.weight
        kind.parts(twin)[0].mul_(2)
        assert_same(module.weight, first)
        assert twin.weight is not first


# --- sigma -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [[way] for way in WAYS] + [MIX], ids=str)
@pytest.mark.parametrize("is_fused", [False, True])
def test_sigma(ways, is_fused):
    model = critic(*ways)
    if is_fused:
        fuse_spectral_norm(model)
    model(batch())
    before = states(model)
    found = spectral_norms(model)
    assert list(found.layers) == CRITIC_LABELS
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    product = 1.0
    for label, value in found.layers.items():
        path = label.removesuffix("weight")
        for kind in KINDS.values():
            if path + kind.names[0] in named:
                weight, u, v = (named[path + name].detach() for name in kind.names)
        matrix = (weight.transpose(0, 1) if "up" in label else weight).flatten(1)
        expected = u @ matrix @ v
        assert_same(value, expected)
        assert value.shape == ()
        assert not value.requires_grad
        product = product * expected
    assert_same(found.product, product)
    assert_same(states(model), before)


def test_sigma_under_autocast():
    model = critic(*MIX, dtype=torch.float32)
    expected = spectral_norms(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = spectral_norms(model)
    assert found.layers == expected.layers


def test_sigma_of_nothing():
    with pytest.raises(ValueError, match="expected a model with spectrally normalized weights"):
        spectral_norms(nn.Linear(3, 4))


# --- fold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ways", [[way] for way in WAYS] + [MIX], ids=str)
@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_fold(ways, is_fused, inplace):
    model, other = critic(*ways), critic(*ways)
    if is_fused:
        fuse_spectral_norm(model)
    for m in (model, other):
        m(batch())
    before = states(model)
    folded = fold_spectral_norm(model, inplace=inplace)
    assert (folded is model) is inplace
    x = batch(2)
    other.eval()
    want = other(x)
    assert_same(folded(x), want)
    plain = Critic([lambda m: m], torch.float64)
    assert set(folded.state_dict()) == set(plain.state_dict())
    plain.load_state_dict(folded.state_dict())
    assert_same(plain(x), want)
    assert all(isinstance(p, nn.Parameter) for p in folded.parameters())
    assert not list(folded.buffers())
    loss(folded(x)).backward()
    if not inplace:
        assert_same(states(model), before)
        other.train()
        for m in (model, other):
            m.zero_grad()
            loss(m(x)).backward()
        assert_same(model, other)
        assert model.training


def test_fold_in_training_mode_moves_nothing():
    model = critic(*MIX)
    before = vectors(model)
    fold_spectral_norm(model)
    assert not any(moved(before, model))


class Half(nn.Module):
    def forward(self, weight):
        return weight / 2


def test_fold_takes_vectors_and_chains_and_leaves_the_rest():
    torch.manual_seed(0)
    ours = KINDS["parametrization"].ours
    scale, chained, other = Scale(4), ours(nn.Linear(4, 4)), nn.Linear(4, 4)
    for module in (chained, other):
        parametrize.register_parametrization(module, "weight", Half())
    model = nn.Sequential(ours(scale), chained, other).eval()
    x = draw((2, 4))
    want = model(x)
    folded = fold_spectral_norm(model)
    assert_same(folded(x), want)
    assert not parametrize.is_parametrized(folded[0])
    assert not parametrize.is_parametrized(folded[1])
    assert parametrize.is_parametrized(folded[2])


def test_fold_of_a_model_with_options():
    model = with_options(max_norm=0.4, guard=True, step_scoped=True, cache_eval=True)
    model(batch())
    want = copy.deepcopy(model).eval()(batch())
    folded = fold_spectral_norm(model)
    assert_same(folded(batch()), want)
    assert not list(folded.buffers())


@pytest.mark.parametrize("way", list(WAYS))
def test_fold_keeps_frozen_weights_frozen(way):
    model = critic(way)
    model.up.requires_grad_(False)
    folded = fold_spectral_norm(model)
    assert not folded.up.weight.requires_grad
    assert folded.last.weight.requires_grad


def test_folding_twice_and_folding_nothing():
    model = fold_spectral_norm(critic(*MIX))
    again = fold_spectral_norm(model)
    assert_same(again, model)
    layer = nn.Linear(3, 4)
    assert fold_spectral_norm(layer, inplace=True) is layer


def test_a_folded_copy_of_a_layer_leaves_its_siblings():
    _, layer = twins(KINDS["parametrization"], linear)
    siblings = copy.deepcopy(layer), copy.deepcopy(layer)
    fold_spectral_norm(siblings[0], inplace=True)
    assert parametrize.is_parametrized(siblings[1])
    assert_same(siblings[1].eval().weight, layer.eval().weight)
