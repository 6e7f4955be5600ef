"""clip_weights_ against clamp, tensor by tensor."""

import pytest
import torch
from support.tensors import DTYPES, drawer
from torch import nn

from gankernels import clip
from gankernels.clip import clip_weights_


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2), nn.Linear(2, 1)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("c", [0.01, 0.1, 1, 1e-30, 1e30])
def test_clamps_every_weight(c):
    model = network()
    model[0].weight.data.mul_(100)
    expected = [p.detach().clamp(-c, c) for p in model.parameters()]
    pointers = [p.data_ptr() for p in model.parameters()]
    assert clip_weights_(model.parameters(), c) is None
    for p, value, pointer in zip(model.parameters(), expected, pointers, strict=True):
        assert torch.equal(p, value)
        assert p.data_ptr() == pointer
        assert p.requires_grad
        assert p.is_leaf


def test_the_papers_bound():
    x = torch.tensor([-1.0, -0.01, -0.005, 0.0, 0.005, 0.01, 1.0])
    clip_weights_(x)
    assert torch.equal(x, torch.tensor([-0.01, -0.01, -0.005, 0.0, 0.005, 0.01, 0.01]))


@pytest.mark.parametrize("container", [list, tuple, iter, set])
def test_iterables(container):
    tensors = [torch.ones(2), torch.ones(3, dtype=torch.float64)]
    clip_weights_(container(tensors))
    assert all(torch.equal(x, torch.full_like(x, 0.01)) for x in tensors)


def test_mixed_dtypes_and_layouts():
    draw = drawer(0)
    tensors = [draw(5, 3).to(dtype) for dtype in DTYPES for _ in range(2)]
    tensors += [draw(4, 6).t(), draw(4, 6)[::2, 1:], draw(), draw(0, 3)]
    tensors += [draw(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)]
    expected = [x.clamp(-0.5, 0.5) for x in tensors]
    clip_weights_(tensors, 0.5)
    for x, value in zip(tensors, expected, strict=True):
        assert torch.equal(x, value)
        assert x.stride() == value.stride() or not x.is_contiguous()


def test_one_call_for_each_dtype(monkeypatch):
    calls = []
    for name in ("foreach_clamp_max_", "foreach_clamp_min_"):
        original = getattr(clip, name)

        def counting(tensors, bound, original=original):
            calls.append((len(tensors), bound))
            original(tensors, bound)

        monkeypatch.setattr(clip, name, counting)
    clip_weights_([torch.ones(2) for _ in range(9)] + [torch.ones(2).double() for _ in range(3)])
    assert sorted(calls) == [(3, -0.01), (3, 0.01), (9, -0.01), (9, 0.01)]


def test_nan_and_infinity():
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0])
    clip_weights_([x, torch.ones(1)])
    expected = torch.tensor([float("nan"), 0.01, -0.01, 0.0])
    torch.testing.assert_close(x, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("grad_mode", [torch.enable_grad, torch.no_grad])
def test_a_graph_of_the_weights_before_is_refused(grad_mode):
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))
    output = model(torch.ones(2, 3, requires_grad=True)).sum()
    versions = [p._version for p in model.parameters()]
    with grad_mode():
        clip_weights_(model.parameters())
    assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))
    assert all(p.grad_fn is None for p in model.parameters())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_a_critic_within_its_bound_through_training():
    model = network()[3:]
    optimizer = torch.optim.RMSprop(model.parameters(), lr=0.05)
    outside = []
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 2)).mean().backward()
        optimizer.step()
        outside.append(max(p.abs().max().item() for p in model.parameters()) > 0.01)
        clip_weights_(model.parameters())
        assert all(p.abs().max() <= 0.01 for p in model.parameters())
    assert all(outside)


@pytest.mark.parametrize(
    "parameters, error, message",
    [
        (nn.Linear(1, 1), TypeError, r"got Linear; pass critic.parameters\(\)"),
        (nn.Sequential(nn.Linear(1, 1)), TypeError, "an iterable of tensors, got Sequential"),
        (3, TypeError, "an iterable of tensors, got int"),
        (None, TypeError, "an iterable of tensors, got NoneType"),
        ([torch.ones(1), 2.0], TypeError, "got one of float"),
        (nn.Linear(1, 1).named_parameters(), TypeError, "got one of tuple"),
        ([torch.ones(1).long()], TypeError, "weights of a floating-point dtype, got torch.int64"),
        ([torch.ones(1).cfloat()], TypeError, "floating-point dtype, got torch.complex64"),
        ([], ValueError, "at least one tensor, got none; an iterator"),
        (iter(()), ValueError, "at least one tensor, got none; an iterator"),
    ],
)
def test_refuses_parameters(parameters, error, message):
    with pytest.raises(error, match=f"^clip_weights_: expected .*{message}"):
        clip_weights_(parameters)


@pytest.mark.parametrize(
    "c, error, message",
    [
        (0, ValueError, "be finite and positive, got 0"),
        (-0.01, ValueError, "be finite and positive, got -0.01"),
        (float("inf"), ValueError, "be finite and positive, got inf"),
        (float("nan"), ValueError, "be finite and positive, got nan"),
        ("0.01", TypeError, "be a number, got str"),
        (torch.tensor(0.01), TypeError, "be a number, got Tensor"),
    ],
)
def test_refuses_bounds(c, error, message):
    with pytest.raises(error, match=f"^clip_weights_: expected c to {message}"):
        clip_weights_([torch.ones(1)], c)


def test_an_error_changes_nothing():
    x = torch.ones(3)
    with pytest.raises(TypeError):
        clip_weights_([x, torch.ones(1).long()])
    assert x._version == 0
    assert torch.equal(x, torch.ones(3))
