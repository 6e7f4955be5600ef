"""original_weights: what initializes plain models initializes normalized ones."""

import pytest
import torch
from support.networks import CRITIC_LABELS, WAYS, assert_same, batch, critic, loss
from torch import nn

import gankernels as gk
from gankernels.spectral_norm.sites import sites


def by_data(module):
    """As vocoders do it."""
    if module.__class__.__name__.find("Conv") != -1:
        module.weight.data.normal_(0.0, 0.01)


def by_init(module):
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.orthogonal_(module.weight)
        nn.init.zeros_(module.bias) if module.bias is not None else None


def by_no_grad(module):
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        with torch.no_grad():
            module.weight.uniform_(-1, 1)
            module.weight *= 2


INITS = [by_data, by_init, by_no_grad]


def originals(model):
    return {site.label: site.input() for site in sites(model)}


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("way", WAYS)
def test_initializes_as_plain_models(way, init, called):
    model = critic(way)
    plain = gk.fold_spectral_norm(model)
    for label, weight in originals(model).items():
        plain.get_parameter(label).data.copy_(weight)
    parameters = dict(model.named_parameters())
    if called:
        model(batch())
    torch.manual_seed(1)
    with gk.original_weights(model):
        model.apply(init)
    torch.manual_seed(1)
    plain.apply(init)
    for label, weight in originals(model).items():
        assert torch.equal(weight, plain.get_parameter(label)), label
    after = dict(model.named_parameters())
    assert list(after) == list(parameters)
    assert all(after[name] is p for name, p in parameters.items())


@pytest.mark.parametrize("way", WAYS)
def test_u_and_v_follow(way):
    model = critic(way)
    with gk.original_weights(model, init_iterations=200):
        model.apply(by_init)
        model.last.weight.data.normal_()
    model.eval()
    model(batch())
    for label in CRITIC_LABELS:
        weight = model.get_submodule(label.removesuffix(".weight")).weight.detach()
        rows = weight.movedim(1, 0) if label.startswith("up") else weight
        sigma = torch.linalg.matrix_norm(rows.flatten(1), 2)
        torch.testing.assert_close(sigma, torch.ones_like(sigma), rtol=2e-2, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_without_iterations_and_without_writes(way):
    model = critic(way)
    model(batch())
    before = {k: x.clone() for k, x in model.state_dict().items()}
    with gk.original_weights(model, init_iterations=0):
        assert model.first.weight is originals(model)["first.weight"]
    assert_same(model.state_dict(), before)
    assert model.first.weight is not originals(model)["first.weight"]


@pytest.mark.parametrize("way", WAYS)
def test_trains_afterwards(way):
    """As if the same had been written into the parameters themselves."""
    model, twin = critic(way), critic(way)
    classes = [type(m) for m in model.modules()]
    with gk.original_weights(model, init_iterations=0):
        model.first.weight.data.mul_(-3)
        nn.init.constant_(model.last.weight, 0.5)
    originals(twin)["first.weight"].data.mul_(-3)
    originals(twin)["last.weight"].data.fill_(0.5)
    assert [type(m) for m in model.modules()] == classes
    for _ in range(2):
        outputs = [m(batch()) for m in (model, twin)]
        assert_same(*outputs)
        for output in outputs:
            loss(output).backward()
    assert_same(model, twin)


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("way", ["ours_hook", "ours_parametrization"])
def test_what_was_remembered_is_forgotten(way, trusted):
    model = critic(way)
    gk.fuse_spectral_norm(model, step_scoped=True, cache_eval=True, trust_versions=trusted)
    with torch.no_grad():
        before = model(batch())
        model.eval()
        model(batch())
        with gk.original_weights(model, init_iterations=0):
            for module in model.modules():
                if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                    module.weight.data.zero_()
                    module.weight.data.flatten()[0] = 1
        in_eval, in_training = model(batch()), model.train()(batch())
    assert not torch.allclose(in_eval, before)
    assert not torch.allclose(in_training, before)


def test_zero_weights_keep_u_and_v():
    model = nn.Sequential(gk.nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4)))
    norm = model[0].parametrizations.weight[0]
    u, v = norm._u.clone(), norm._v.clone()
    with gk.original_weights(model):
        nn.init.zeros_(model[0].weight)
    assert torch.equal(norm._u, u)
    assert torch.equal(norm._v, v)
    assert not model[0].parametrizations.weight.original.any()


def test_an_error_within_the_block():
    model = critic("ours_hook", "ours_parametrization")
    classes = [type(m) for m in model.modules()]
    with pytest.raises(KeyError), gk.original_weights(model):
        raise KeyError
    assert [type(m) for m in model.modules()] == classes
    assert model.blocks[0].conv.weight is not originals(model)["blocks.0.conv.weight"]
    model(batch())


@pytest.mark.parametrize("way", WAYS)
def test_assignment(way):
    model = WAYS[way](nn.Linear(3, 4))
    (weight,) = originals(model).values()
    with gk.original_weights(model):
        model.weight = nn.Parameter(torch.ones(4, 3))
        model.weight.data = model.weight.data + 1
        with torch.no_grad():
            model.weight *= 2
        model.other = nn.Parameter(torch.ones(1))
    assert torch.equal(weight, torch.full((4, 3), 4.0))
    assert originals(model)["weight"] is weight
    assert "weight" not in dict(model.named_parameters(remove_duplicate=False))
    assert "other" in dict(model.named_parameters())


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("way", WAYS)
def test_a_call_within_the_block(way, grad_mode):
    model = critic(way)
    weight = originals(model)["first.weight"].clone()
    refused = pytest.raises(RuntimeError, match=r"original_weights: expected no call of .*Conv2d")
    with gk.original_weights(model), grad_mode(), refused:
        model(batch())
    assert torch.equal(originals(model)["first.weight"], weight)
    model(batch())


def test_two_weights_of_a_module():
    model = nn.GRU(3, 4)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        gk.nn.utils.parametrizations.spectral_norm(model, name)
    cls = type(model)
    with gk.original_weights(model):
        nn.init.ones_(model.weight_ih_l0)
        nn.init.zeros_(model.weight_hh_l0)
    assert type(model) is cls
    assert model.parametrizations.weight_ih_l0.original.eq(1).all()
    assert model.parametrizations.weight_hh_l0.original.eq(0).all()


def test_a_model_without_any():
    model = nn.Sequential(nn.Linear(2, 2))
    with gk.original_weights(model):
        nn.init.zeros_(model[0].weight)
    assert not model[0].weight.any()


def test_refuses():
    with pytest.raises(TypeError, match=r"original_weights: expected a torch\.nn\.Module"):
        gk.original_weights(3)
    with pytest.raises(ValueError, match="expected init_iterations to be at least 0, got -1"):
        gk.original_weights(nn.Linear(1, 1), init_iterations=-1)
    with pytest.raises(ValueError, match="expected init_iterations to be at most 1,000,000"):
        gk.original_weights(nn.Linear(1, 1), init_iterations=2**40)
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    gk.nn.utils.parametrizations.spectral_norm(layer)
    with pytest.raises(ValueError, match="weights that are parameters, and weight is computed"):
        gk.original_weights(layer)
