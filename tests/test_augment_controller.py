"""gankernels.augment: the controller of p, and its schedules."""

import copy
import math
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from gankernels.augment import APA, ADAController, ADAPipe, ADASchedule


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


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_move_nothing(bad):
    controller = ADAController(metric="rv", target=0.4, interval=1, kimg=1)
    logits = {"fake_logits": -torch.ones(4), "validation_logits": torch.zeros(4)}
    controller.update(torch.ones(4), **logits)
    p = float(controller.p)
    assert p > 0
    controller.update(torch.tensor([1, bad]), **logits)
    assert float(controller.p) == p
    controller.update(torch.ones(4), **logits)  # and are forgotten
    assert float(controller.p) == pytest.approx(2 * p)


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
    ],
)
def test_bad_settings(error, said, arguments):
    with pytest.raises(error, match=f"^ADAController: expected {said}"):
        ADAController(**arguments)


@pytest.mark.parametrize(
    ("error", "said", "metric", "logits"),
    [
        (TypeError, "real_logits to be a tensor or a list", "rt", [1.0]),
        (TypeError, "real_logits of a floating-point dtype", "rt", [torch.ones(3).long()]),
        (ValueError, "real_logits whose first dimension", "rt", [torch.ones(())]),
        (ValueError, "real_logits of at least one scale", "rt", [[]]),
        (ValueError, "real_logits on cpu, where p is, got meta", "rt", [torch.ones(3).to("meta")]),
        (ValueError, 'real_logits for the metric "rt", got fake_logits', "rt", [torch.ones(3)] * 2),
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


def control(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    try:
        made = ADAController(target=0.4, interval=2, kimg=0.2), ADASchedule(p=0.5, kimg=0.2)
        seen = []
        for real in scores(rank):
            for each in made:
                each.update(real)
            seen.append(torch.stack([each.p.clone() for each in made]))
        torch.save(torch.stack(seen), f"{folder}/{rank}.pt")
        dist.barrier()  # gloo aborts where one process is gone while the other still listens
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    mp.spawn(control, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    alone = ADAController(target=0.4, interval=2, kimg=0.2), ADASchedule(p=0.5, kimg=0.2)
    for (*real,), p in zip(zip(*map(scores, range(2)), strict=True), first, strict=True):
        for each in alone:
            each.update(torch.cat(real))
        torch.testing.assert_close(torch.stack([each.p for each in alone]), p)
    assert (first[:, 0].diff() != 0).any()
