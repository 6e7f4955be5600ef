"""Writes into W / sigma before a model is used, by nn.init for one: lost, and warned of."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

import gankernels as gk


def network():
    return nn.Sequential(nn.Conv1d(3, 4, 3), nn.Tanh(), nn.ConvTranspose1d(4, 3, 2))


def each(model, write):
    for layer in (model[0], model[2]):
        write(layer)


def used(model, write, x):
    each(model, write)
    model(x)


def halve(layer):
    with torch.no_grad():
        layer.weight.mul_(0.5)


WRITES = {
    "init": lambda layer: nn.init.normal_(layer.weight),
    "data": lambda layer: layer.weight.data.normal_(0, 0.01),
    "zeros": lambda layer: nn.init.zeros_(layer.weight),
    "reset_parameters": lambda layer: layer.reset_parameters(),
    "in place": halve,
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_a_lost_write_is_warned_of_at_the_next_call(write, fused):
    model = network()
    gk.apply_spectral_norm(model)
    if fused:
        gk.fuse_spectral_norm(model)
    x = torch.randn(2, 3, 8)
    with pytest.warns(UserWarning, match=r"shape \(4, 3, 3\) was written into .* write is lost"):
        used(model, WRITES[write], x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x).sum().backward()
    watched = [layer.parametrizations.weight[0]._first_reads for layer in (model[0], model[2])]
    assert watched == [None, None]


def test_no_false_alarm():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = network()
        gk.apply_spectral_norm(model)
        assert model[0].weight.norm() > 0
        assert model[0].weight.data.sum() != 0
        model[0].parametrizations.weight.original.data.normal_()
        assert model[2].weight.shape == (4, 3, 2)
        nn.init.normal_(model[2].parametrizations.weight.original)
        with gk.original_weights(model):
            each(model, WRITES["init"])
        assert pickle.loads(pickle.dumps(copy.deepcopy(model).state_dict()))
        model(torch.randn(2, 3, 8)).sum().backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
        halve(model[0])  # of one who knows what a read weight is
        model(torch.randn(2, 3, 8))
