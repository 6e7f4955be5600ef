"""gankernels.augment: the controller of p, and its schedules."""

import copy
import math
import pickle
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support import devices
from support.capture import capturing
from support.launches import launches
from support.waits import standing_in
from torch import nn

from gankernels import ops
from gankernels.augment import APA, ADAController, ADAPipe, ADASchedule

pytestmark = pytest.mark.usefixtures("device")


def feed(controller, *means, batch=10, **others):
    """Updates with scores of which the mean of the signs is given."""
    for mean in means:
        above = round(batch * (1 + mean) / 2)
        controller.update(torch.cat((torch.ones(above), -2 * torch.ones(batch - above))), **others)


# --- feedback ------------------------------------------------------------------------------------


def test_a_trajectory_by_hand():
    pipe = ADAPipe("bgc", p=0.0)
    # 10 images an update, 2 updates a step: a step is 20 images of 200.
    controller = ADAController(pipe, target=0.6, interval=2, kimg=0.2)
    steps = [  # means of two updates, then r and p
        ((1, 0.8), 0.9, 0.1),
        ((1, 1), 1.0, 0.2),
        ((0.2, 1), 0.6, 0.2),  # on target
        ((0.2, 0.8), 0.5, 0.1),
        ((-1, 0), -0.5, 0.0),
        ((-1, -1), -1.0, 0.0),  # not below 0
        ((1, 1), 1.0, 0.1),
    ]
    for (first, second), r, p in steps:
        before = float(pipe.p)
        feed(controller, first)
        assert float(pipe.p) == before  # between the steps it rests
        feed(controller, second)
        assert float(controller.r) == pytest.approx(r)
        assert float(pipe.p) == pytest.approx(p, abs=1e-6)
    assert controller.p is pipe.p


def test_defaults_are_the_papers():
    controller = ADAController()
    assert controller.r.isnan()
    feed(controller, 1, 1, 1, batch=64)
    assert controller.p == 0
    feed(controller, 1, batch=64)
    assert float(controller.p) == pytest.approx(64 * 4 / 500_000)
    feed(controller, 0.25, 0.5, 0.75, 0.5, batch=64)
    assert controller.p == 0


def test_every_score_counts_and_images_once():
    controller = ADAController(interval=1, kimg=0.1, target=0.5)
    scales = [torch.ones(10, 1, 2, 2), -torch.ones(10)]  # 40 and 10 scores of 10 images
    controller.update(scales)
    assert float(controller.r) == pytest.approx(0.6)
    assert float(controller.p) == pytest.approx(0.1)
    controller.update(torch.zeros(10))  # the sign of 0 is 0
    assert controller.r == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_scores_of_any_dtype(dtype):
    controller = ADAController(interval=1, kimg=1)
    controller.update(torch.tensor([1e-3, 2, -3, 4], dtype=dtype).requires_grad_())
    assert controller.r == 0.5


def test_rv():
    controller = ADAController(metric="rv", target=0.5, interval=2, kimg=0.01)
    real, fake, validation = torch.tensor([3.0, 5]), torch.tensor([-2.0, 0]), torch.tensor([1.0, 1])
    for shift in (-0.5, 0.5):
        controller.update(
            real + shift, fake_logits=fake - shift, validation_logits=validation + 2 * shift
        )
    assert float(controller.r) == pytest.approx((4 - 1) / (4 - -1))
    assert float(controller.p) == pytest.approx(0.4)
    for _ in range(2):
        controller.update(real, fake_logits=fake, validation_logits=real)  # does not overfit
    assert controller.r == 0
    assert float(controller.p) == pytest.approx(0, abs=1e-7)


def test_accuracy():
    controller = ADAController(metric="accuracy", target=0.8, interval=1, kimg=0.01)
    controller.update(torch.tensor([1.0, 2, 3, -1]), fake_logits=torch.tensor([-1.0, -2]))
    assert float(controller.r) == pytest.approx((3 / 4 + 1) / 2)
    assert float(controller.p) == pytest.approx(0.4)
    controller.update(torch.tensor([1.0, -1]), fake_logits=torch.tensor([1.0, 1]))
    assert float(controller.r) == pytest.approx(1 / 4)


@pytest.mark.parametrize(("bound", "of_pipe"), [(0.3, 1.0), (None, 0.3), (0.9, 0.3)])
def test_p_max(bound, of_pipe):
    pipe = ADAPipe("bgc", p=0.0, p_max=of_pipe)
    controller = ADAController(pipe, interval=1, kimg=0.1, p_max=bound)
    feed(controller, *[1] * 8)
    assert float(pipe.p) == pytest.approx(0.3)


NAMES = ("real_logits", "fake_logits", "validation_logits")
TAKEN = {"rt": NAMES[:1], "rv": NAMES, "accuracy": NAMES[:2]}


@pytest.mark.parametrize("share", [1, 4])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("metric", "where"), [(metric, name) for metric, names in TAKEN.items() for name in names]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scores_that_are_not_finite_move_nothing(metric, where, bad, share, dtype):
    controller = ADAController(metric=metric, target=0.4, interval=2, kimg=1)
    means = dict(zip(NAMES, (1, -1, 0), strict=True))
    good = {name: torch.full((4,), means[name], dtype=dtype) for name in TAKEN[metric]}
    for _ in range(2):
        controller.update(**good)
    p = float(controller.p)
    assert p > 0
    scores = good[where].clone()
    scores[:share] = bad
    controller.update(**{**good, where: scores})
    controller.update(**good)
    assert float(controller.p) == p
    assert controller.r.isnan()
    for _ in range(2):
        controller.update(**good)  # and are forgotten
    assert float(controller.p) == pytest.approx(2 * p)


def test_a_p_of_0_8_does_not_leak():
    # float32(0.8) is more than 0.8.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for made in (
            ADAController(p_max=0.8, interval=1, kimg=0.01),
            ADASchedule(p=0.8, kimg=0.01),
        ):
            feed(made, 1, 1)
            assert float(made.p) == pytest.approx(0.8)


@devices.CPU_ONLY  # numbers on a GPU are not read
def test_bounds_are_compared_in_float32():
    rounded = torch.tensor(0.8)
    assert float(rounded) > 0.8
    pipe = ADAPipe("bgc", p=0.8, p_max=0.8)
    for p in (0.8, float(rounded), rounded, rounded.double()):
        pipe.p = p
        assert pipe.p == rounded
    for p in (0.8000002, torch.tensor(0.8000002)):
        with pytest.raises(ValueError, match="expected p"):
            pipe.p = p
    assert pipe.p == rounded
    assert ADASchedule(pipe, "fixed", p=float(rounded), kimg=1).p == rounded


def test_numbers_of_numpy():
    np = pytest.importorskip("numpy")
    pipe = ADAPipe("bg", p=np.float32(0.3), p_max=np.float32(0.8))
    assert pipe.p == torch.tensor(0.3)
    by_groups = ADAPipe("blit", p={"blit": np.float16(0.5)})
    assert by_groups.p[0] == 0.5
    controller = ADAController(
        pipe, target=np.float32(0.5), kimg=np.int64(1), p_max=np.float32(0.8), interval=1
    )
    feed(controller, 1)
    assert float(pipe.p) == pytest.approx(0.31)
    assert ADASchedule(p=np.float32(0.2), kimg=np.float32(1), shape="fixed").p == torch.tensor(0.2)
    for bad in (True, np.bool_(True), "0.3", 1j):
        with pytest.raises(TypeError, match="expected p to be a number, got"):
            pipe.p = bad
        with pytest.raises(TypeError, match="expected kimg to be a number, got"):
            ADAController(kimg=bad)


@devices.CPU_ONLY  # a GPU is not waited for: the warning comes some step later
def test_a_warning_where_augmentations_leak():
    controller = ADAController(interval=1, kimg=0.04)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(controller, *[1] * 3)
    said = r"p is 1; above 0\.8 augmentations begin to leak"
    with pytest.warns(UserWarning, match=said) as seen:
        feed(controller, 1)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        feed(controller, -1, -1, 1, 1, 1)
    with pytest.warns(UserWarning, match=said):  # for each controller
        feed(ADAController(interval=1, kimg=0.01), 1)


def test_state_dict():
    def make():
        return nn.ModuleDict({"ada": ADAController(ADAPipe("bg", p=0.0), interval=3, kimg=0.2)})

    one, other = make(), make()
    feed(one["ada"], 1, 1, 1, 1, 0.8)
    other.load_state_dict(one.state_dict())
    assert other["ada"].p == one["ada"].p > 0
    assert other["ada"].r == one["ada"].r
    for each in (one, other, copy.deepcopy(one)):
        before = float(each["ada"].p)
        feed(each["ada"], -0.8)  # the third
        assert float(each["ada"].r) == pytest.approx(1 / 3)
        assert float(each["ada"].p) < before


def state_of(controller):
    extra = controller.get_extra_state()
    return [float(controller.p), extra.pop("sums").tolist(), str(extra)]


def test_a_state_dict_stays_as_it_is():
    for made in (ADAController(interval=3), ADASchedule(p=0.5, kimg=1)):
        feed(made, 1)
        state = made.state_dict()["_extra_state"]
        kept = copy.deepcopy(state)
        feed(made, 1)
        assert torch.equal(state["sums"], kept["sums"])
        made.set_extra_state(state)
        feed(made, 1)
        assert torch.equal(state["sums"], kept["sums"])


@pytest.mark.parametrize(
    ("error", "said", "changed"),
    [
        (TypeError, "its state to be a dict, got NoneType", None),
        (TypeError, "its state to be a dict, got list", []),
        (ValueError, "a state of sums, calls, r, got one of nothing", {}),
        (ValueError, "a state of sums, calls, r, got one of sums;", {"sums": torch.zeros(1)}),
        (ValueError, r"sums to be .* of shape \(7,\), got float32 of", {"sums": torch.zeros(1)}),
        (ValueError, "sums to be a floating-point tensor", {"sums": torch.zeros(7).bool()}),
        (TypeError, "sums to be a floating-point tensor .*, got list", {"sums": [0.0] * 7}),
        (ValueError, "the number of images, .*, got -1", {"sums": -torch.ones(7)}),
        (ValueError, "the number of images, .*, got nan", {"sums": torch.full((7,), math.nan)}),
        (TypeError, "calls to be an integer, got float", {"calls": 1.0}),
        (TypeError, "calls to be an integer, got bool", {"calls": True}),
        (TypeError, "calls to be an integer, got NoneType", {"calls": None}),
        (ValueError, "calls to be not negative, got -1", {"calls": -1}),
        (TypeError, "r to be a floating-point tensor .*, got float", {"r": 0.5}),
        (ValueError, r"r to be .* of shape \(\), got", {"r": torch.zeros(1)}),
    ],
)
def test_bad_states(error, said, changed):
    controller, other = (ADAController(interval=2, kimg=0.1) for _ in range(2))
    feed(controller, 1, 1, 1)
    feed(other, 1, 1, 1, 1, 1)
    state = other.state_dict()
    if changed and "got one of" not in said:
        changed = state["_extra_state"] | changed
    before = state_of(controller)
    with pytest.raises(error, match=f"^ADAController: expected {said}"):
        controller.load_state_dict(state | {"_extra_state": changed})
    assert state_of(controller) == before


def test_a_state_in_part():
    controller, other = (ADAController(interval=2, kimg=0.1) for _ in range(2))
    feed(controller, 1)
    feed(other, 1, 1, 1)
    state = other.state_dict()
    p, sums = controller.p.clone(), controller.sums.clone()
    with pytest.raises(RuntimeError, match="Missing key"):
        copy.deepcopy(controller).load_state_dict({"pipe.p": state["pipe.p"]})
    controller.load_state_dict({"_extra_state": state["_extra_state"]}, strict=False)
    assert controller.p == p
    assert torch.equal(controller.sums, other.sums)
    controller.set_extra_state(state["_extra_state"] | {"sums": sums})
    controller.load_state_dict({"pipe.p": state["pipe.p"]}, strict=False)
    assert controller.p == other.p
    assert torch.equal(controller.sums, sums)


def test_a_state_of_the_other_kind():
    controller, schedule = ADAController(interval=1, kimg=0.1), ADASchedule(p=0.5, kimg=0.1)
    for one, other in ((controller, schedule), (schedule, controller)):
        feed(one, 1)
        feed(other, -1, 1, 1)
        before = state_of(one)
        for strict in (True, False):
            with pytest.raises(ValueError, match=f"load the state_dict of an {type(one).__name__}"):
                one.load_state_dict(other.state_dict(), strict=strict)
            assert state_of(one) == before


@pytest.mark.parametrize(
    ("said", "p"),
    [
        (r"pipe\.p: expected real numbers, got bool of shape", torch.tensor(True)),
        (r"pipe\.p: expected real numbers, got complex64 of shape", torch.tensor(0.5j)),
        (r"pipe\.p: expected p within \[0, 1\], got 1.5", torch.tensor(1.5)),
        (r"size mismatch for pipe\.p", torch.zeros(6)),
        (r"pipe\.p", 0.5),
    ],
)
@pytest.mark.parametrize("assign", [False, True])
def test_a_bad_p_in_a_state(said, p, assign):
    controller, other = (ADAController(interval=2, kimg=0.1) for _ in range(2))
    feed(controller, 1, 1, 1)
    before = state_of(controller)
    state = other.state_dict()
    state["pipe.p"] = p
    with pytest.raises(RuntimeError, match=said):
        controller.load_state_dict(state, assign=assign)
    assert state_of(controller) == before


@devices.CPU_ONLY
def test_a_state_is_loaded_to_where_p_is():
    controller, loaded = (ADAController(interval=1, kimg=0.1) for _ in range(2))
    feed(controller, 1)
    loaded.to("meta")
    assert loaded.r.device == loaded.p.device == torch.device("meta")
    loaded.load_state_dict(controller.state_dict(), assign=True)
    assert {x.device.type for x in (loaded.p, loaded.r, loaded.sums)} == {"cpu"}
    assert state_of(loaded) == state_of(controller)
    half = ADAController(interval=1).half()
    state = controller.state_dict()
    state["_extra_state"]["sums"] = state["_extra_state"]["sums"].float()
    half.load_state_dict(state)
    assert half.sums.dtype == half.r.dtype == torch.float64


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_state_is_loaded_to_the_gpu():
    controller = ADAController(interval=2, kimg=0.1)
    feed(controller, 1, 1, 1)
    loaded = ADAController(interval=2, kimg=0.1).to("cuda")
    loaded.load_state_dict(controller.state_dict())
    assert {x.device.type for x in (loaded.p, loaded.r, loaded.sums)} == {"cuda"}


def test_state_survives_a_file(tmp_path):
    controller = ADAController(interval=2, kimg=1)
    feed(controller, 1, 1, 1)
    torch.save(controller.state_dict(), tmp_path / "ada.pt")
    loaded = ADAController(interval=2, kimg=1)
    loaded.load_state_dict(torch.load(tmp_path / "ada.pt", weights_only=True))
    feed(loaded, 1)
    feed(controller, 1)
    assert loaded.p == controller.p
    assert float(loaded.p) == pytest.approx(0.04)


def test_half_keeps_what_it_adds_up():
    controller = ADAController(ADAPipe("bg", p=0.0), interval=2, kimg=500)
    feed(controller, 1)
    feed(controller.half(), 1)
    assert float(controller.p) == pytest.approx(20 / 500_000)


@pytest.mark.parametrize(
    ("error", "said", "arguments"),
    [
        (TypeError, "an ADAPipe, an APA or None", {"pipe": nn.Identity()}),
        (ValueError, "a pipe with one p", {"pipe": ADAPipe("blit", p={"blit": 0.0})}),
        (ValueError, "target to be at most 1", {"target": 60}),
        (ValueError, "target to be finite", {"target": math.nan}),
        (ValueError, "interval to be at least 1", {"interval": 0}),
        (ValueError, "kimg to be finite and positive", {"kimg": 0}),
        (ValueError, "p_max to be at most 1", {"p_max": 1.5}),
        (ValueError, 'metric "rt", "rv" or "accuracy", got \'r_t\'', {"metric": "r_t"}),
        (ValueError, r'metric "rt", "rv" or "accuracy", got \[.rt.\]', {"metric": ["rt"]}),
    ],
)
def test_bad_settings(error, said, arguments):
    with pytest.raises(error, match=f"^ADAController: expected {said}"):
        ADAController(**arguments)


@pytest.mark.parametrize(
    ("error", "said", "metric", "logits"),
    [
        (TypeError, "real_logits to be a tensor or a list", "rt", [1.0]),
        (TypeError, "real_logits .*, got list with int in it", "rt", [[torch.ones(4), 1]]),
        (TypeError, "real_logits .*, got dict; give the", "rt", [{"a": torch.ones(4)}]),
        (TypeError, "real_logits .*, got dict; give the", "rt", [{}]),
        (
            TypeError,
            "real_logits .*, got generator; pass list",
            "rt",
            [(torch.ones(4) for _ in "ab")],
        ),
        (TypeError, "real_logits .*, got str; give", "rt", ["scores"]),
        (TypeError, "real_logits of a floating-point dtype", "rt", [torch.ones(3).long()]),
        (ValueError, "real_logits whose first dimension", "rt", [torch.ones(())]),
        (ValueError, "real_logits of at least one scale", "rt", [[]]),
        (
            ValueError,
            "real_logits on (cpu|cuda:0), where p is, got meta",
            "rt",
            [torch.ones(3).to("meta")],
        ),
        (ValueError, 'real_.* only, as .* "rt" takes, got fake_logits', "rt", [torch.ones(3)] * 2),
        (ValueError, 'real_logits for the metric "rt", got no real_logits', "rt", [None]),
        (ValueError, "real_logits and fake_logits .*, got no fake", "accuracy", [torch.ones(3)]),
        (ValueError, "real.* and fake.* and val.*, got no val", "rv", [torch.ones(3)] * 2),
    ],
)
def test_bad_scores(error, said, metric, logits):
    controller = ADAController(metric=metric, interval=1)
    names = ("real_logits", "fake_logits", "validation_logits")
    with pytest.raises(error, match=rf"^ADAController\.update: expected {said}"):
        controller.update(**dict(zip(names, logits, strict=False)))
    assert controller.p == 0
    assert controller.r.isnan()


def test_of_apa():
    apa = APA()
    feed(ADAController(apa, interval=1, kimg=0.1), 1, 1)
    assert float(apa.p) == pytest.approx(0.2)


def test_training_reaches_the_target():
    # A critic that overfits the less, the stronger the augmentation: r = 1 - p.
    pipe = ADAPipe("bg", p=0.0)
    controller = ADAController(pipe, target=0.6, interval=2, kimg=4)
    for _ in range(400):
        feed(controller, 1 - float(pipe.p), batch=100)
    assert float(pipe.p) == pytest.approx(0.4, abs=0.06)


# --- on a GPU ------------------------------------------------------------------------------------


def taken(metric, scales=1):
    return {name: [torch.randn(6, 1, k + 1) for k in range(scales)] for name in TAKEN[metric]}


@pytest.mark.parametrize("scales", [1, 3, 20])
@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("metric", TAKEN)
def test_launches_of_an_update(metric, interval, scales):
    """At most 4, in a step of p too, where p is copied to the host to be looked at later."""
    controller = ADAController(metric=metric, interval=interval)
    for _ in range(4):
        scores = taken(metric, scales)
        with launches() as found:
            controller.update(**scores)
        read = found.count("_local_scalar_dense")  # of p on the CPU
        assert read <= 1
        joined = ["cat"] if scales * len(TAKEN[metric]) > 48 else []
        assert found == ["ada_control", *joined, *["_local_scalar_dense"] * read]
        assert len(found) <= 4


def test_launches_among_processes(monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda x: x.mul_(2))
    controller = ADAController(interval=2)
    seen = []
    for _ in range(4):
        scores = taken("rt")
        with launches() as found:
            controller.update(**scores)
        seen.append(found)
    step = ["ada_control", "ada_control", "clone", "mul_", "_local_scalar_dense"]
    assert seen == [["ada_control"], step] * 2


def recorded(controller, **scores):
    """The calls of the operator in an update that is captured: what a replay does again."""
    calls = []
    with capturing(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "ada_control_", lambda *args, **kw: calls.append((args, kw)))
        controller.update(**scores)
    return calls


@pytest.mark.parametrize("processes", [1, 2])
def test_a_captured_update_moves_p_in_every_interval_th_replay(processes, monkeypatch):
    if processes == 2:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "all_reduce", lambda x: None)
    controller = ADAController(ADAPipe("bg", p=0.0), interval=3, kimg=0.1)
    feed(controller, 1)  # the warm-up
    calls = recorded(controller, real_logits=torch.ones(10))
    assert float(controller.p) == 0
    seen = []
    for _ in range(6):
        for args, options in calls:
            if "sums" in options:  # of all processes, written by the graph
                options["sums"].copy_(controller.sums)
            ops.ada_control_(*args, **options)
        seen.append(round(float(controller.p), 6))
    assert seen == [0, 0.3, 0.3, 0.3, 0.6, 0.6]
    state = controller.state_dict()["_extra_state"]
    assert state["calls"] == 7
    assert isinstance(state["calls"], int)
    assert controller.r == 1
    loaded = ADAController(ADAPipe("bg", p=0.0), interval=3, kimg=0.1)
    loaded.load_state_dict(controller.state_dict())
    feed(loaded, 1)
    feed(controller, 1)
    assert float(loaded.p) == float(controller.p)
    feed(loaded, 1)
    assert float(loaded.p) == pytest.approx(0.9)


def test_a_capture_neither_warns_nor_asks_for_events():
    with standing_in() as waits:
        controllers = [
            ADAController(APA(), interval=1, kimg=0.001),
            ADASchedule(APA(), p=1.0, kimg=0.001),
        ]
        scores = torch.ones(10)
        stream = torch.cuda.current_stream
        with waits.looking(), capturing(), warnings.catch_warnings():
            warnings.simplefilter("error")
            for each in controllers:
                for _ in range(3):
                    each.update(scores)
        assert waits.found == []
        assert not stream.called
        assert all(each._copy is None for each in controllers)
        # The event of an update before, which a capture must not ask.
        for each in controllers:
            each.update(scores)
            event = each._copy[1]
            event.query.reset_mock()
            with capturing():
                each.update(scores)
            assert not event.query.called
            with pytest.warns(UserWarning, match="p is 1; above"):
                each.update(scores)


def test_a_capture_needs_the_state_where_p_is():
    for controller in (ADAController(APA()), ADASchedule(APA(), p=0.5, kimg=1)):
        controller._state = controller._state.to("meta")
        with capturing(), pytest.raises(RuntimeError, match="state on cpu before the capture"):
            controller.update(torch.ones(4))


def test_the_state_moves_with_the_module():
    controller = ADAController()
    with standing_in() as waits:
        moved = controller.to("cuda")
        with waits.looking():
            moved.update(torch.ones(4, device="cuda"))
    assert waits.found == []


# --- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("fixed", [0.4, 0.4, 0.4, 0.4, 0.4]),
        ("linear", [0.1, 0.2, 0.3, 0.4, 0.4]),
        ("cosine", [0.2 * (1 - 0.5**0.5), 0.2, 0.2 * (1 + 0.5**0.5), 0.4, 0.4]),
    ],
)
def test_schedules(shape, expected):
    pipe = ADAPipe("bgc", p=0.7)
    schedule = ADASchedule(pipe, shape, p=0.4, kimg=0.04)
    assert float(pipe.p) == pytest.approx(0.4 if shape == "fixed" else 0)
    for p in expected:
        schedule.update(torch.full((10, 1, 3, 3), math.nan), fake_logits=None)
        assert float(pipe.p) == pytest.approx(p, abs=1e-6)


def test_a_schedule_goes_on_where_it_was():
    schedule, other = (ADASchedule(ADAPipe("bg"), p=0.5, kimg=0.1) for _ in range(2))
    feed(schedule, 1, 1, 1)
    other.load_state_dict(schedule.state_dict())
    assert float(other.p) == pytest.approx(0.15)
    feed(other, 1)
    assert float(other.p) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("said", "arguments"),
    [
        ('"fixed", "linear" or "cosine"', {"shape": "step", "p": 0.4, "kimg": 1}),
        ("p to be at most 0.5", {"p": 0.6, "kimg": 1, "pipe": APA(p_max=0.5)}),
        ("p to be finite and not negative", {"p": -1, "kimg": 1}),
        ("kimg to be finite and positive", {"p": 0.4, "kimg": -1}),
    ],
)
def test_bad_schedules(said, arguments):
    with pytest.raises(ValueError, match=f"^ADASchedule: expected {said}"):
        ADASchedule(**arguments)


# --- processes -----------------------------------------------------------------------------------


def scores(rank):
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(3 + 4 * rank, 2, generator=generator) + rank for _ in range(12)]


def controllers():
    return [
        ADAController(target=0.4, interval=2, kimg=0.2),
        ADAController(metric="rv", target=0.4, interval=2, kimg=0.2),
        ADAController(metric="accuracy", target=0.6, interval=2, kimg=0.2),
        ADASchedule(p=0.5, kimg=0.2),
    ]


def follow(made, real):
    """An update of each; p of all."""
    others = {"fake_logits": real.flip(1) - 1, "validation_logits": real.abs() - 0.8}
    for each in made:
        names = TAKEN[each.metric][1:] if isinstance(each, ADAController) else ()
        each.update(real, **{name: others[name] for name in names})
    return torch.stack([each.p.clone() for each in made])


def control(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    try:
        made = controllers()
        seen = [follow(made, real) for real in scores(rank)]
        torch.save(torch.stack(seen), f"{folder}/{rank}.pt")
        dist.barrier()  # gloo aborts where one process is gone while the other still listens
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    mp.spawn(control, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    alone = controllers()
    for (*real,), p in zip(zip(*map(scores, range(2)), strict=True), first, strict=True):
        torch.testing.assert_close(follow(alone, torch.cat(real)), p)
    assert (first.diff(dim=0) != 0).any(0).all()


def test_a_copy_on_its_way_is_not_copied():
    """The event of a GPU can be neither copied nor pickled."""

    class Event:
        def __reduce__(self):
            raise TypeError("cannot pickle 'Event' object")

    controller = ADAController(ADAPipe("bgc"))
    controller._copy = torch.zeros(()), Event()
    for again in (copy.deepcopy(controller), pickle.loads(pickle.dumps(controller))):
        assert again._copy is None
        assert torch.equal(again.p, controller.p)
    assert controller._copy is not None
