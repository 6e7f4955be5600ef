"""ada_control_: what a controller does in an update, in one launch, counted on the device."""

import math

import pytest
import torch
from support.backends import emulator, native_ops
from support.tensors import DTYPES, dtype_name

from gankernels import ops, reference
from gankernels.ops import _operator
from gankernels.reference.ada_control import METRICS, STATE, SUMS

F64 = torch.float64


def state_on(device, *numbers):
    state = torch.zeros(STATE, dtype=F64)
    state[: len(numbers)] = torch.tensor(numbers, dtype=F64)
    return state.to(device)


def scores_on(device, *shapes, dtype=torch.float32, seed=0, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(s, generator=generator) + mean).to(dtype).to(device) for s in shapes]


def both(device, calls, **options):
    """The states and p after each call, of the kernel and of the reference."""
    found = []
    for op in (ops.ada_control_, reference.ada_control_):
        state, p = state_on(device), torch.tensor(0.3, device=device)
        trace = []
        for call in calls:
            op(state, p, **call, **options)
            trace.append(torch.cat((state, p.double()[None])).cpu())
        found.append(torch.stack(trace))
    return found


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("metric", METRICS)
def test_values(backend, metric, dtype):
    shapes = [(8, 1), (8, 1, 17, 19), (8,)], [(8, 3), (8, 225)], [(7, 257)]
    takes = {"rt": 1, "accuracy": 2, "rv": 3}[metric]
    calls = []
    for k in range(7):
        groups = [
            scores_on(backend, *s, dtype=dtype, seed=3 * k + i, mean=(k % 3 - 1) / 2 - i)
            for i, s in enumerate(shapes[:takes])
        ]
        calls.append(
            dict(zip(("real", "fake", "validation"), groups, strict=False)) | {"images": 8}
        )
    near(*both(backend, calls, metric=metric, interval=3, kimg=0.1, target=0.4))


def test_it_steps_in_every_interval_th_call_by_the_devices_count(backend):
    state, p = state_on(backend), torch.tensor(0.0, device=backend)
    ones = [torch.ones(10, device=backend)]
    seen = []
    for _ in range(9):
        # Every call is the same: as the replays of a graph are.
        ops.ada_control_(state, p, ones, images=10, interval=4, kimg=0.1)
        seen.append(round(float(p), 6))
    assert seen == [0, 0, 0, 0.4, 0.4, 0.4, 0.4, 0.8, 0.8]
    assert state.tolist() == [10, 10, 0, 0, 0, 0, 10, 9, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", METRICS)
def test_a_score_that_is_not_finite(backend, metric, bad):
    takes = {"rt": 1, "accuracy": 2, "rv": 3}[metric]
    names = ("real", "fake", "validation")[:takes]
    for where in names:
        call = {name: scores_on(backend, (300,), mean=1 - k) for k, name in enumerate(names)}
        call[where][0][257] = bad
        found, expected = both(backend, [call | {"images": 3}], metric=metric, interval=1)
        near(found, expected)
        assert found[0, -2].isnan()
        assert found[0, -1] == torch.tensor(0.3).double()


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0, math.nan, math.inf, -math.inf, -2.0, 7.0])
def test_p_is_brought_between_its_bounds(backend, p):
    for op in (ops.ada_control_, reference.ada_control_):
        strength = torch.tensor(p, device=backend)
        ones = [torch.ones(4, device=backend)]
        op(state_on(backend), strength, ones, images=4, interval=1, kimg=0.01, p_max=0.75)
        start = 0 if math.isnan(p) else p
        assert float(strength) == pytest.approx(min(max(start + 0.4, 0), 0.75))


def test_in_two_halves(backend):
    """Adding up and stepping apart, as several processes do, by the sums of all of them."""
    real = scores_on(backend, (6, 2), mean=0.5)
    whole, p = state_on(backend), torch.tensor(0.2, device=backend)
    apart, other = state_on(backend), torch.tensor(0.2, device=backend)
    for _ in range(5):
        ops.ada_control_(whole, p, real, images=6, interval=2, kimg=0.1)
        ops.ada_control_(apart, None, real, images=6, interval=2, kimg=0.1)
        ops.ada_control_(apart, other, sums=apart[:SUMS].clone(), interval=2, kimg=0.1)
        assert torch.equal(p, other)
        assert torch.equal(whole, apart)


def test_sums_of_others(backend):
    sums = torch.tensor([30.0, 40, 0, 0, 0, 0, 20], dtype=F64, device=backend)
    for op in (ops.ada_control_, reference.ada_control_):
        state, p = state_on(backend, 1, 9, 0, 0, 0, 0, 9, 4), torch.tensor(0.1, device=backend)
        op(state, p, sums=sums, interval=2, kimg=0.1)
        assert float(p) == pytest.approx(0.3)
        assert state.tolist() == [0, 0, 0, 0, 0, 0, 0, 4, 0.75]


def test_many_scales(backend):
    real = scores_on(backend, *[(2, k + 1) for k in range(60)])
    call = {"real": real, "fake": real[:20], "images": 2}
    near(*both(backend, [call], metric="accuracy", interval=1))


@pytest.mark.parametrize("layout", ["transposed", "expanded", "empty", "requires_grad"])
def test_layouts(backend, layout):
    x = {
        "transposed": lambda: torch.randn(6, 5).t(),
        "expanded": lambda: torch.randn(6, 1).expand(6, 5),
        "empty": lambda: torch.empty(0, 5),
        "requires_grad": lambda: torch.randn(6, 5, requires_grad=True),
    }[layout]()
    x = x.to(backend)
    near(*both(backend, [{"real": [x], "images": 6}] * 2, interval=2, kimg=0.1))


def test_one_launch_whatever_the_order_of_threads(monkeypatch):
    panel = emulator()
    monkeypatch.setattr(_operator, "kernels", torch.ops.gankernels_emu)
    real = scores_on("cpu", (7, 331), (1000,))
    found = set()
    for order in panel.Order.__members__.values():
        panel.set_order(order, 3)
        panel.reset_counters()
        trace = both("cpu", [{"real": real, "images": 7}] * 2, metric="rv", interval=2)[0]
        assert panel.counters()["launches"] == {"ada_control": 2}
        found.add(str(trace.tolist()))
    assert len(found) == 1


def arguments(device, sums=None, **changed):
    real = [] if sums is not None else scores_on(device, (4, 1), (4, 1, 2, 2))
    return {
        "state": state_on(device),
        "p": torch.tensor(0.3, device=device),
        "real": real,
        "sums": sums,
        "images": 4,
        **changed,
    }


def test_opcheck(backend):
    op = native_ops().ada_control_.default
    settings = (4, 1, 0.6, 1, 100.0, 1.0)
    one = arguments(backend)
    torch.library.opcheck(
        op, (one["state"], one["p"], one["real"], one["real"], [], None, *settings)
    )
    torch.library.opcheck(op, (one["state"], None, one["real"], [], [], None, *settings))
    sums = torch.ones(SUMS, dtype=F64, device=backend)
    torch.library.opcheck(op, (one["state"], one["p"], [], [], [], sums, *settings))


def test_compiled(backend):
    def function(state, p, real, images):
        ops.ada_control_(state, p, real, images=images, interval=2, kimg=0.1)
        return p * 2

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    one, other = arguments(backend), arguments(backend)
    for _ in range(3):
        got = compiled(one["state"], one["p"], one["real"], 4)
        expected = function(other["state"], other["p"], other["real"], 4)
        assert torch.equal(got, expected)
        assert torch.equal(one["state"], other["state"])
    torch.compiler.reset()


def test_versions_are_counted(backend):
    one = arguments(backend)
    before = one["state"]._version, one["p"]._version
    ops.ada_control_(**one)
    assert one["state"]._version > before[0]
    assert one["p"]._version > before[1]


@pytest.mark.parametrize(
    ("error", "said", "changed"),
    [
        (TypeError, "state to be a tensor of float64, got NoneType", {"state": None}),
        (ValueError, r"state to be contiguous, float64, of shape \(9,\)", {"state": torch.ones(9)}),
        (ValueError, "state to be contiguous", {"state": torch.ones(18, dtype=F64)[::2]}),
        (ValueError, r"p to be .*float32 or float64, of shape \(\)", {"p": torch.ones(1)}),
        (TypeError, "real to be a list of tensors, got Tensor", {"real": torch.ones(3)}),
        (TypeError, "real to be a list of tensors, got a list with int", {"real": [1]}),
        (TypeError, "fake of a floating-point dtype", {"fake": [torch.ones(3).long()]}),
        (ValueError, "real on cpu, where state is, got meta", {"real": [torch.ones(3).to("meta")]}),
        (ValueError, "no real with sums, got 2", {"sums": torch.ones(7, dtype=F64)}),
        (TypeError, "images to be an integer, got float", {"images": 1.0}),
        (ValueError, "images to be not negative, got -1", {"images": -1}),
        (ValueError, "a metric of rt, rv, accuracy, got 'r_t'", {"metric": "r_t"}),
        (ValueError, "interval to be at least 1, got 0", {"interval": 0}),
        (ValueError, "kimg to be finite and positive", {"kimg": 0}),
        (ValueError, "target to be finite", {"target": math.nan}),
        (ValueError, "p_max to be finite", {"p_max": math.inf}),
    ],
)
def test_errors(error, said, changed):
    one = arguments("cpu") | changed
    before = [x.clone() for x in (one["state"], one["p"]) if isinstance(x, torch.Tensor)]
    with pytest.raises(error, match=f"^ada_control_: expected {said}"):
        ops.ada_control_(**one)
    after = [x for x in (one["state"], one["p"]) if isinstance(x, torch.Tensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
