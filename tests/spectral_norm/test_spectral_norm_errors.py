"""Bad input, and what takes the reference: refused in words, with nothing half-updated."""

import logging
import math

import pytest
import torch
from support.tensors import assert_near, drawer
from torch import nn

import gankernels
from gankernels import _library, ops, reference

NAN = math.nan


def good(dtype=torch.float32, device="cpu"):
    draw = drawer(0, dtype, device)
    weights = [draw(4, 3), draw(2, 3, 2), draw(5)]
    u = [draw(4), draw(2), draw(5)]
    v = [draw(3), draw(6), draw(1)]
    return weights, u, v


def replaced(values, i, x):
    values = list(values)
    values[i] = x
    return values


def strided(n):
    return torch.ones(2 * n)[::2]


def shared(n, m):
    """Two vectors that overlap by one element."""
    memory = torch.ones(n + m - 1)
    return memory[:n], memory[n - 1 :]


#: A change to good arguments (weights, u, v, keywords), the exception, and words of its message.
BAD_LISTS = {
    "no weights": (
        lambda w, u, v: ([], [], []),
        ValueError,
        "at least one weight, got an empty list",
    ),
    "a tensor for weights": (lambda w, u, v: (w[0], u, v), TypeError, "weights .* got Tensor"),
    "a tensor for u": (
        lambda w, u, v: (w, u[0], v),
        TypeError,
        "expected u to be a list.* got Tensor",
    ),
    "a tensor for v": (
        lambda w, u, v: (w, u, v[0]),
        TypeError,
        "expected v to be a list.* got Tensor",
    ),
    "None for u": (
        lambda w, u, v: (w, None, v),
        TypeError,
        "expected u to be a list.* got NoneType",
    ),
    "None for weights": (
        lambda w, u, v: (None, u, v),
        TypeError,
        "expected weights .*got NoneType",
    ),
    "a number for a weight": (
        lambda w, u, v: (replaced(w, 1, 3.0), u, v),
        TypeError,
        "expected weights to be a list of tensors",
    ),
    "None in u": (
        lambda w, u, v: (w, replaced(u, 1, None), v),
        TypeError,
        "u to be a list of tensors",
    ),
    "u too short": (
        lambda w, u, v: (w, u[:2], v),
        ValueError,
        r"u to have one vector a weight, 3, got 2",
    ),
    "v too long": (lambda w, u, v: (w, u, [*v, v[0]]), ValueError, "v to have .* 3, got 4"),
    "no u": (lambda w, u, v: (w, [], v), ValueError, "u to have .* 3, got 0"),
    "a scalar weight": (
        lambda w, u, v: (replaced(w, 1, torch.tensor(1.0)), u, v),
        ValueError,
        r"weights\[1\] to have a dimension and elements, got shape \(\)",
    ),
    "no rows": (
        lambda w, u, v: (replaced(w, 0, torch.ones(0, 3)), replaced(u, 0, torch.ones(0)), v),
        ValueError,
        r"weights\[0\] .* got shape \(0, 3\)",
    ),
    "no columns": (
        lambda w, u, v: (replaced(w, 0, torch.ones(4, 0)), u, replaced(v, 0, torch.ones(0))),
        ValueError,
        r"weights\[0\] .* got shape \(4, 0\)",
    ),
    "two dtypes": (
        lambda w, u, v: (replaced(w, 1, w[1].double()), u, v),
        ValueError,
        "one dtype and device, got torch.float32 .* torch.float64",
    ),
    "whole numbers": (
        lambda w, u, v: ([x.int() for x in w], [x.int() for x in u], [x.int() for x in v]),
        TypeError,
        "float32, .*float64 .*got torch.int32",
    ),
    "two devices": (
        lambda w, u, v: (replaced(w, 1, w[1].to("meta")), u, v),
        ValueError,
        "one dtype and device, got .*cpu .*meta",
    ),
    "u elsewhere": (
        lambda w, u, v: (w, replaced(u, 2, u[2].to("meta")), v),
        ValueError,
        r"u\[2\] on cpu, got it on meta",
    ),
    "v elsewhere": (
        lambda w, u, v: (w, u, replaced(v, 0, v[0].to("meta"))),
        ValueError,
        r"v\[0\] on cpu, got it on meta",
    ),
    "u of another size": (
        lambda w, u, v: (w, replaced(u, 1, torch.ones(3)), v),
        ValueError,
        r"u\[1\] of shape \(2,\) for a weight of shape \(2, 3, 2\), got \(3,\)",
    ),
    "v of another size": (
        lambda w, u, v: (w, u, replaced(v, 1, torch.ones(5))),
        ValueError,
        r"v\[1\] of shape \(6,\) .* got \(5,\)",
    ),
    "u of another rank": (
        lambda w, u, v: (w, replaced(u, 0, u[0].view(4, 1)), v),
        ValueError,
        r"u\[0\] of shape \(4,\) .* got \(4, 1\)",
    ),
    "u and v exchanged": (lambda w, u, v: (w, v, u), ValueError, r"u\[0\] of shape \(4,\)"),
    "whole numbers for u": (
        lambda w, u, v: (w, replaced(u, 0, u[0].int()), v),
        TypeError,
        r"u\[0\] of .*got torch.int32",
    ),
    "u wider than the weights": (
        lambda w, u, v: (w, replaced(u, 0, u[0].double()), v),
        TypeError,
        r"u\[0\] of .*float32, got torch.float64",
    ),
}

BAD_STATE = {
    "u of bfloat16": (
        lambda w, u, v: (w, replaced(u, 0, u[0].bfloat16()), v),
        TypeError,
        r"u\[0\] of the weights' torch.float32, got torch.bfloat16",
    ),
    "u twice": (
        lambda w, u, v: ([w[0], w[0]], [u[0], u[0]], v[:1] * 2),
        ValueError,
        "memory of its own",
    ),
    "v twice": (
        lambda w, u, v: ([w[0], w[0]], [u[0], u[0].clone()], [v[0], v[0]]),
        ValueError,
        "memory of its own, got two that overlap",
    ),
    "u and v the same": (
        lambda w, u, v: ([torch.ones(3, 3)], [u[0][:3]], [u[0][:3]]),
        ValueError,
        "memory of its own",
    ),
    "u and v overlapping": (
        lambda w, u, v: ([w[0]], *([x] for x in shared(4, 3))),
        ValueError,
        "memory of its own",
    ),
    "u not contiguous": (
        lambda w, u, v: (w, replaced(u, 0, strided(4)), v),
        ValueError,
        r"u\[0\] contiguous, got stride \(2,\)",
    ),
    "v not contiguous": (
        lambda w, u, v: (w, u, replaced(v, 1, strided(6))),
        ValueError,
        r"v\[1\] contiguous, got stride \(2,\)",
    ),
    "v expanded": (
        lambda w, u, v: (w, u, replaced(v, 1, torch.ones(1).expand(6))),
        ValueError,
        r"v\[1\] contiguous",
    ),
    "u that needs a gradient": (
        lambda w, u, v: (w, replaced(u, 1, u[1].clone().requires_grad_()), v),
        ValueError,
        r"u\[1\] to be a buffer that needs no gradient",
    ),
}

BAD_KEYWORDS = {
    "n of 0": ({"n": 0}, ValueError, "n to be at least 1, got 0"),
    "n below 0": ({"n": -3}, ValueError, "n to be at least 1, got -3"),
    "half an n": ({"n": 1.5}, TypeError, "n to be an int, got float"),
    "n of None": ({"n": None}, TypeError, "n to be an int, got NoneType"),
    "eps below 0": ({"eps": -1e-12}, ValueError, "eps to be finite and not negative, got -1e-12"),
    "eps of NaN": ({"eps": NAN}, ValueError, "eps to be finite and not negative, got nan"),
    "eps of infinity": ({"eps": math.inf}, ValueError, "eps to be finite .* got inf"),
    "eps of words": ({"eps": "small"}, TypeError, "eps to be a number, got str"),
    "no such order": ({"order": "both"}, ValueError, '"u_first" or "v_first", got \'both\''),
    "order of None": ({"order": None}, ValueError, '"u_first" or "v_first", got None'),
    "skipped of float": (
        {"skipped": torch.zeros(3)},
        ValueError,
        "contiguous int64 .*torch.float32",
    ),
    "skipped too long": (
        {"skipped": torch.zeros(4, dtype=torch.int64)},
        ValueError,
        r"of shape \(3,\) .*got .*of shape \(4,\)",
    ),
    "skipped strided": (
        {"skipped": torch.zeros(6, dtype=torch.int64)[::2]},
        ValueError,
        "skipped to be contiguous",
    ),
    "skipped elsewhere": (
        {"skipped": torch.zeros(3, dtype=torch.int64, device="meta")},
        ValueError,
        "skipped .* on cpu, got .* on meta",
    ),
    "skipped a list": ({"skipped": [0, 0, 0]}, TypeError, "skipped .* got list"),
}

BAD_COEFFICIENTS = {
    "0": (0.0, ValueError, "expected max_norm to be a positive, finite number, got 0.0"),
    "below 0": (-1.0, ValueError, "expected max_norm to be a positive, finite number, got -1.0"),
    "NaN": (NAN, ValueError, "expected max_norm to be a positive, finite number, got nan"),
    "infinity": (
        math.inf,
        ValueError,
        "expected max_norm to be a positive, finite number, got inf",
    ),
    "words": ("one", TypeError, "max_norm to be a number, got str"),
}

ITERATIONS = ("power_iteration_", "spectral_norm")


def refused(function, arguments, keywords, error, words, named):
    """The call raises, in words that name the op, and leaves every tensor as it was."""
    tensors = [x for group in arguments for x in (group if isinstance(group, list) else [group])]
    tensors = [x for x in tensors if isinstance(x, torch.Tensor) and x.device.type != "meta"]
    before = [x.detach().clone() for x in tensors]
    versions = [x._version for x in tensors]
    with pytest.raises(error, match=words) as raised:
        getattr(ops, function)(*arguments, **keywords)
    assert raised.type is error
    assert str(raised.value).startswith(tuple(f"{name}: expected" for name in named))
    for x, old, version in zip(tensors, before, versions, strict=True):
        assert torch.equal(x, old), "expected nothing to change"
        assert x._version == version


@pytest.mark.parametrize("route", ["native", "reference"])
@pytest.mark.parametrize("function", [*ITERATIONS, "spectral_normalize"])
@pytest.mark.parametrize("case", BAD_LISTS)
def test_bad_lists(function, case, route):
    change, error, words = BAD_LISTS[case]
    with gankernels.backend(route):
        refused(function, change(*good()), {}, error, words, (function, "power_iteration_"))


@pytest.mark.parametrize("route", ["native", "reference"])
@pytest.mark.parametrize("function", ITERATIONS)
@pytest.mark.parametrize("case", BAD_STATE)
def test_bad_state(function, case, route):
    change, error, words = BAD_STATE[case]
    if case == "u that needs a gradient" and route == "native":
        pytest.skip("the kernels do not look: it costs time on every call")
    with gankernels.backend(route):
        refused(function, change(*good()), {}, error, words, (function, "power_iteration_"))


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("function", ITERATIONS)
@pytest.mark.parametrize("case", BAD_KEYWORDS)
def test_bad_settings(function, case, trainable):
    keywords, error, words = BAD_KEYWORDS[case]
    weights, u, v = good()
    weights = [w.requires_grad_(trainable) for w in weights]
    refused(function, (weights, u, v), keywords, error, words, (function, "power_iteration_"))


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("function", ["spectral_norm", "spectral_normalize"])
@pytest.mark.parametrize("case", BAD_COEFFICIENTS)
def test_bad_coefficients(function, case, trainable):
    max_norm, error, words = BAD_COEFFICIENTS[case]
    weights, u, v = good()
    weights = [w.requires_grad_(trainable) for w in weights]
    keywords = {"max_norm": max_norm}
    named = (function, "spectral_normalize")
    refused(function, (weights, u, v), keywords, error, words, named)


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize(
    ("sigma", "error", "words"),
    [
        (torch.ones(2), ValueError, r"sigma of shape \(3,\) on cpu, got \(2,\)"),
        (torch.ones(3, 1), ValueError, r"sigma of shape \(3,\)"),
        (
            torch.ones(3).double(),
            TypeError,
            "sigma to be a tensor of torch.float32, got torch.float64",
        ),
        (torch.ones(3, device="meta"), ValueError, "sigma .* on cpu, got .* on meta"),
        (1.0, TypeError, "sigma to be a tensor of torch.float32, got float"),
    ],
    ids=["short", "rank", "dtype", "device", "number"],
)
def test_bad_sigma(sigma, error, words, trainable):
    weights, u, v = good()
    weights = [w.requires_grad_(trainable) for w in weights]
    refused("spectral_normalize", (weights, u, v, sigma), {}, error, words, ("spectral_normalize",))


def test_a_sigma_that_is_not_contiguous(backend):
    """Is as good as any other."""
    weights, u, v = good(device=backend)
    sigma = torch.tensor([2.0, 0.0, 3.0, 0.0, 4.0], device=backend)[::2]
    out, found = ops.spectral_normalize(weights, u, v, sigma)
    assert torch.equal(found, sigma)
    for w, o, s in zip(weights, out, sigma, strict=True):
        assert_near(o, w.double() / s.double())


def test_a_bad_weight_among_many_moves_nothing():
    """The last of several weights is refused before the first is touched."""
    weights, u, v = good()
    v[2] = torch.ones(7)
    refused(
        "power_iteration_",
        (weights, u, v),
        {},
        ValueError,
        r"v\[2\] of shape",
        ["power_iteration_"],
    )


# --- fallbacks -----------------------------------------------------------------------------------


@pytest.fixture
def untold(monkeypatch):
    """No fallback has been reported yet."""
    monkeypatch.setattr(_library, "_fallbacks", set())


@pytest.mark.parametrize("order", ["u_first", "v_first"])
def test_complex_weights_take_the_reference(untold, caplog, order):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(5, 3, dtype=torch.complex64, generator=generator).requires_grad_()
    u, v = (torch.randn(n, dtype=torch.complex64, generator=generator) for n in (5, 3))
    with caplog.at_level(logging.WARNING, logger="gankernels"):
        for _ in range(20):
            found = ops.power_iteration_([w], [u], [v], order=order)
        for _ in range(2):
            (out,), sigma = ops.spectral_normalize([w], *found)
    if order == "u_first":  # v_first is that of torch's hook, which transposes without conjugating
        assert_near(sigma.real, torch.linalg.matrix_norm(w.detach(), 2).double()[None])
        assert torch.linalg.matrix_norm(out.detach(), 2).item() == pytest.approx(1, abs=1e-5)
    out.abs().sum().backward()
    assert torch.isfinite(torch.view_as_real(w.grad)).all()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2, messages
    for name, message in zip(("power_iteration_", "spectral_normalize"), messages, strict=True):
        assert f"gankernels.{name} takes the slower PyTorch reference" in message
        assert "complex64" in message


def test_complex_weights_have_every_option(untold):
    w = torch.randn(5, 3, dtype=torch.complex128)
    zero = torch.zeros(2, 2, dtype=torch.complex128)
    u, v = ([torch.randn(n, dtype=torch.complex128) for n in sizes] for sizes in ((5, 2), (3, 2)))
    before = u[1].clone()
    skipped = torch.zeros(2, dtype=torch.int64)
    out, sigma = ops.spectral_norm([w, zero], u, v, 50, skipped=skipped, max_norm=0.5)
    assert skipped.tolist() == [0, 1]
    assert torch.equal(u[1], before)
    torch.testing.assert_close(out[0], w * 0.5 / sigma[0])
    assert torch.equal(out[1], zero)


def test_each_reason_is_told(untold, caplog):
    weights, u, v = good()
    with caplog.at_level(logging.WARNING, logger="gankernels"):
        for _ in range(2):
            torch.func.vmap(lambda w: ops.spectral_normalize([w], u[:1], v[:1])[1])(
                weights[0].expand(2, 4, 3)
            )
            with torch.autograd.forward_ad.dual_level():
                ops.spectral_normalize(weights, u, v)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "torch.func" in messages[0]
    assert "forward-mode AD" in messages[1]


def nested_choices(weights, u, v):
    with gankernels.backend("reference"):
        ops.power_iteration_(weights, u, v)
        with gankernels.backend("native"):
            ops.power_iteration_(weights, u, v)
        with gankernels.backend("reference"):
            pass
        ops.power_iteration_(weights, u, v)
        raise KeyError("inside")


def test_backend_is_restored(untold, caplog, monkeypatch):
    ran = []
    real = reference.power_iteration_
    monkeypatch.setattr(
        reference,
        "power_iteration_",
        lambda *a, **k: ran.append(_library._backend) or real(*a, **k),
    )
    weights, u, v = good()
    with caplog.at_level(logging.WARNING, logger="gankernels"):
        ops.power_iteration_(weights, u, v)
        assert ran == []
        with pytest.raises(KeyError, match="inside"):
            nested_choices(weights, u, v)
        ops.power_iteration_(weights, u, v)
    assert ran == ["reference", "reference"]
    assert caplog.records == [], "what was asked for is no fallback"


@pytest.mark.parametrize("name", ["cuda", "Native", "", None, 1])
def test_backend_takes_two_names(name):
    with (
        pytest.raises(ValueError, match=f'backend: expected "native" or "reference", got {name!r}'),
        gankernels.backend(name),
    ):
        pass
    assert _library._backend == "native"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_backends_agree(dtype):
    """Shapes, dtypes and strides of what is returned, and its gradients."""
    draw = drawer(0, dtype)
    weights = [nn.Parameter(draw(6, 4)), nn.Parameter(draw(3, 5, 2).movedim(1, 0).detach())]
    results = []
    for route in ("native", "reference"):
        u, v = [draw(6) * 0 + 1, draw(5) * 0 + 1], [draw(4) * 0 + 1, draw(6) * 0 + 1]
        with gankernels.backend(route):
            out, sigma = ops.spectral_norm(weights, u, v, 2)
        grads = torch.autograd.grad(sum(o.float().square().sum() for o in out), weights)
        results.append([*out, sigma, *u, *v, *grads])
    for native, plain in zip(*results, strict=True):
        assert native.dtype == plain.dtype
        assert native.shape == plain.shape
        assert native.stride() == plain.stride()
        assert_near(native, plain, torch.bfloat16 if dtype == torch.bfloat16 else None, factor=2)
