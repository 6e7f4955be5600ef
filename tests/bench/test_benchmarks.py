"""The benchmark suite works: its statistics, its checks, its report; one tiny run of each."""

import dataclasses
import time

import pytest
import torch

pytest.importorskip("rich")

from rich.console import Console

from benchmarks.core import bandwidth, events, harness
from benchmarks.core.contest import (
    BACKWARD,
    COMPILED,
    FORWARD,
    OURS,
    PLAIN,
    WrongResultError,
    line_up,
)
from benchmarks.core.events import (
    AUGMENTATION,
    GRADIENT_PENALTY,
    SPECTRAL_NORM,
    CompiledStep,
    Figure,
    GradientAccuracy,
    LeftOut,
    Memory,
    MethodStep,
    Row,
    StepMemory,
    TrainingStep,
    only,
)
from benchmarks.report import bars, jobs, measure, page, terminal, words
from benchmarks.report.processes import run
from benchmarks.suites import augmentation, critics, first_order, networks, workloads
from benchmarks.suites import gradient_penalty as penalties
from benchmarks.suites import spectral_norm as contestants
from benchmarks.suites.augmentation import AugmentCase
from benchmarks.suites.gradient_penalty import EAGER, USUAL, PenaltyCase
from benchmarks.suites.spectral_norm import FUSED, HOOK, LAYER, TORCH, case_of_weights
from gankernels import _C

SHAPES = [(8, 3, 3, 3), (16, 8), (1, 16)]
#: Nothing here is judged by its time: a process that takes this long hangs.
HUNG_S = 1800.0


def test_spread_of_a_few_values():
    spread = harness.spread([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (spread.median, spread.q25, spread.q75, spread.iqr) == (3.0, 2.0, 4.0, 2.0)
    assert harness.spread([1.0, 2.0]).median == 1.5
    with pytest.raises(ValueError, match="at least one"):
        harness.spread([])


def _samples(values, disturbed=()):
    return [harness.Sample(value, 0.0, i in disturbed) for i, value in enumerate(values)]


def test_ratio_is_paired_by_round_and_drops_disturbed_rounds():
    slow = [2.0, 4.0, 20.0, 8.0, 10.0, 12.0]
    fast = [1.0, 2.0, 1.0, 4.0, 5.0, 6.0]
    timings = harness.Timings({"slow": _samples(slow), "fast": _samples(fast, {2})})
    ratio = timings.ratio("slow", "fast")
    assert (ratio.median, ratio.q25, ratio.q75, ratio.count) == (2.0, 2.0, 2.0, 5)
    assert timings.dropped("fast") == 1
    assert timings.calm("fast")
    assert timings.seconds("fast").count == 5


def test_everything_is_used_and_said_so_where_too_little_is_calm():
    timings = harness.Timings({"a": _samples([1.0] * 6, {0, 1, 2, 3})})
    assert not timings.calm("a")
    assert timings.seconds("a").count == 6


def test_interleaved_times_a_sleep():
    timings = harness.interleaved({"sleep": lambda: time.sleep(0.004)}, budget_s=0.05)
    assert timings.seconds("sleep").median >= 0.004
    assert timings.ratio("sleep", "sleep").median == 1.0


def test_bandwidth_probes_run_and_floor_adds_up():
    probes = bandwidth.probes(4096)
    timings = harness.interleaved(probes, budget_s=0.05, sample_seconds=1e-4)
    speed = bandwidth.from_timings(timings, 4096)
    assert speed.read > 0
    assert speed.copy > 0
    unit = bandwidth.Bandwidth(read=1.0, copy=1.0)
    norms, penalty = case_of_weights("", [torch.ones(2, 5)]), PenaltyCase((2, 1, 5), False, 1.0)
    for case, which, passes in (
        (norms, FORWARD, 3),
        (norms, BACKWARD, 7),
        (penalty, FORWARD, 1),
        (penalty, BACKWARD, 3),
    ):
        traffic = case.traffic(which)
        assert unit.seconds(traffic) == traffic.total == passes * case.nbytes == passes * 40


def test_workloads_match_the_networks_built_in_full():
    loaded = workloads.load()
    assert len(loaded) >= 10
    for name, network in networks.NETWORKS.items():
        layers = networks.normalizable(network.build())
        shapes = [tuple(layer.weight.shape) for layer in layers]
        wanted = list(loaded[name].weights)
        assert sorted(shapes) == sorted(wanted[: len(shapes)])
        assert network.batch == loaded[name].batch


@pytest.mark.parametrize("name", list(networks.NETWORKS))
def test_a_network_takes_a_step(name):
    network = networks.NETWORKS[name]
    torch.manual_seed(0)
    model = network.build()
    real, fake = (network.inputs(1, torch.Generator().manual_seed(0)) for _ in range(2))
    assert real.shape[1:] == workloads.load()[name].image
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = [networks.discriminator_step(model, optimizer, real, fake) for _ in range(2)]
    assert all(torch.tensor(losses).isfinite())


@pytest.mark.parametrize("kind", [HOOK, TORCH, LAYER, FUSED])
def test_every_contestant_is_right(kind):
    entered, errors, left_out = line_up(
        case_of_weights("", workloads.random_weights(SHAPES)), [kind]
    )
    assert left_out == {}
    assert [c.kind for c in entered] == [kind]
    assert errors[kind] <= contestants.TOLERANCE


def test_a_wrong_result_is_not_timed():
    weights = workloads.random_weights(SHAPES)
    contestant = contestants.build(TORCH, weights, [torch.ones(shape) for shape in SHAPES])
    honest = contestant.call
    contestant.call = lambda: [1.001 * w for w in honest()]
    with pytest.raises(WrongResultError, match="off by"):
        contestants.check(contestant, weights)


CASES = [
    PenaltyCase(shape, channels_last, center)
    for shape, channels_last in (((3, 1, 50), False), ((4, 3, 6, 5), False), ((4, 3, 6, 5), True))
    for center in penalties.PENALTIES
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_penalty_is_right_and_leaves_the_layout(case):
    grads = case.grads()
    assert grads.is_contiguous() is not case.channels_last
    norms = grads.detach().flatten(1).double().norm(dim=1)
    assert 0.3 < norms.min() < norms.max() < 3
    for kind, form in [(USUAL, ""), (OURS, ""), *((EAGER, f) for f in _forms(case))]:
        contestant = penalties.build(kind, grads, case.center, form)
        assert penalties.check(contestant, case.center) < 1e-5, (kind, form)


def _forms(case):
    return penalties.eager_forms(case.center)


def test_the_check_is_of_the_papers_formula():
    case = PenaltyCase((4, 3, 6, 5), False, 1.0)
    contestant = penalties.build(USUAL, case.grads(), 1.0)
    with pytest.raises(WrongResultError, match="off by"):
        penalties.check(contestant, 0.0)
    norms = contestant.grads.detach().double().flatten(1).norm(dim=1)
    wanted = ((norms - 1) ** 2).mean()
    assert contestant.call().item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("factor", [1.01, float("nan")])
@pytest.mark.parametrize("what", ["value", "gradient"])
def test_a_wrong_penalty_is_not_timed(what, factor):
    case = PenaltyCase((4, 3, 6, 5), False, 1.0)
    contestant = penalties.build(USUAL, case.grads(), 1.0)
    honest = contestant.call

    def wrong():
        value = honest()
        if what == "value":
            return value + (factor - 1) * value.detach()
        return value.detach() + factor * (value - value.detach())

    contestant.call = wrong
    with pytest.raises(WrongResultError, match="off by"):
        penalties.check(contestant, 1.0)


def test_a_wrong_eager_form_is_not_the_fastest(monkeypatch):
    forms = {
        "nothing": lambda g, center: g[0].sum(),
        "right": penalties.eager_forms(1.0)["vector_norm"],
    }
    monkeypatch.setattr(penalties, "eager_forms", lambda center: forms)
    assert penalties.fastest_form(CASES[0].grads(), CASES[0].center) == "right"
    del forms["right"]
    with pytest.raises(WrongResultError, match="no eager form"):
        penalties.fastest_form(CASES[0].grads(), CASES[0].center)


@pytest.mark.parametrize("kind", critics.STEPS)
def test_a_critic_takes_a_step_with_every_penalty(kind):
    torch.manual_seed(0)
    critic = critics.ResidualCritic(channels=16)
    inputs = critics.CRITICS["r3gan_like"].inputs
    real, fake = (inputs(2, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    before = [p.detach().clone() for p in critic.parameters()]
    optimizer = torch.optim.SGD(critic.parameters(), lr=1e-3)
    loss = critics.critic_step(critic, optimizer, real, fake, kind)
    assert all((a != b).any() for a, b in zip(before, critic.parameters(), strict=True))
    torch.manual_seed(0)
    plain_critic = critics.ResidualCritic(channels=16)
    optimizer = torch.optim.SGD(plain_critic.parameters(), lr=1e-3)
    plain = critics.critic_step(plain_critic, optimizer, real, fake, PLAIN)
    assert loss == plain if kind == PLAIN else loss > plain


def _small_report(found):
    return {
        "mode": "quick",
        "started": "2020-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "environment": {"cpu": "some <cpu>", "cores": 2, "torch": torch.__version__},
        "events": found,
        "bars": [verdict.to_dict() for verdict in bars.verdicts(found)],
    }


def test_a_disturbed_measurement_is_not_judged():
    verdict = bars.Verdict("what", "where", bar=2.0, measured=3.0)
    assert verdict.reached
    disturbed = dataclasses.replace(verdict, calm=False).to_dict()
    assert disturbed["reached"] is None
    assert "disturbed" in words.verdict_mark(disturbed)


def test_nothing_measured_still_renders():
    made = _small_report([])
    assert {bar["reached"] for bar in made["bars"]} == {None}
    assert "some &lt;cpu&gt;" in page.render(made)


def test_a_small_run_from_process_to_page(tmp_path, capsys):
    job = {
        "suite": SPECTRAL_NORM,
        "work": "network",
        "network": "mlp_critic",
        "kinds": [TORCH, LAYER, FUSED],
        "passes": [FORWARD, BACKWARD],
        "allocator": "tuned",
        "threads": 2,
        "budget_s": 0.2,
    }
    found = list(run(job, limit_s=HUNG_S))
    assert only(found, LeftOut) == []
    rows = only(found, Row)
    assert len(rows) == 6
    assert all(row.seconds.median > 0 for row in rows)
    made = _small_report(found)
    judged = [bar for bar in made["bars"] if "mlp_critic" in bar["subject"]]
    assert all(bar["measured"] is not None for bar in judged)
    html, data = page.write(made, tmp_path)
    assert events.parse(data.read_text())["events"] == found
    text = html.read_text()
    assert "<figure" in text
    assert "http" not in text
    terminal.show(made, Console(width=200))
    assert "mlp_critic" in capsys.readouterr().out


def test_a_small_run_of_penalties_from_process_to_page(tmp_path, capsys):
    cases = [PenaltyCase((64, 3, 32, 32), layout, 1.0) for layout in (False, True)]
    todo = [
        jobs.penalty_job(cases, [USUAL, EAGER, OURS], "tuned", 2, 0.1),
        jobs.job_of(
            "penalty step",
            cost_s=1.0,
            network="r3gan_like",
            kinds=[PLAIN, critics.R1],
            quick=True,
            budget_s=0.1,
        ),
        jobs.job_of(
            "penalty memory",
            cost_s=1.0,
            network="small",
            shape=(8, 3, 256, 256),
            kinds=[USUAL, OURS],
            allocator="default",
        ),
    ]
    found = [event for job in todo for event in run(job, limit_s=HUNG_S)]
    assert only(found, LeftOut) == []
    rows = only(found, Row)
    assert {(r.network, r.kind) for r in rows} == {
        (case.name, kind) for case in cases for kind in (USUAL, EAGER, OURS)
    }
    assert all(bool(r.form) == (r.kind == EAGER) for r in rows)
    peaks = {e.kind: e.peak_bytes for e in only(found, Memory)}
    assert peaks[OURS] < 0.5 * 4 * 8 * 3 * 256 * 256
    assert [e.kind for e in only(found, TrainingStep)] == [PLAIN, critics.R1]
    assert all(e.peak_bytes > 0 for e in only(found, StepMemory))
    made = _small_report(found)
    judged = [bar for bar in made["bars"] if bar["subject"] == "64x3x32x32"]
    assert [bar["measured"] is not None for bar in judged] == [True, True, False]
    text = page.render(made)
    assert text.count("<figure") == 3
    assert "reduction of the gradients" in text
    terminal.show(made, Console(width=250))
    shown = capsys.readouterr().out
    assert "64x3x32x32 channels_last, WGAN-GP" in shown
    assert next(r.form for r in rows if r.kind == EAGER) in shown


@pytest.mark.slow
def test_a_small_run_of_compiled_steps_from_process_to_page(monkeypatch, capsys):
    small = dataclasses.replace(
        networks.NETWORKS["sngan_resnet_cifar10"],
        build=lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 1)),
    )
    monkeypatch.setitem(networks.NETWORKS, "small", small)
    job = jobs.compiled_step_job("small", quick=True, budget_s=0.1, cost_s=1.0)
    found = [dataclasses.replace(e, suite=job["suite"]) for e in measure.compiled_step_rows(job)]
    (step,) = only(found, CompiledStep)
    assert found == [step]
    assert step.first_seconds > step.compiled_seconds.median > 0
    made = _small_report(found)
    assert "one compiled graph" in page.render(made)
    terminal.show(made, Console(width=250))
    assert step.title in capsys.readouterr().out


def test_a_small_run_of_methods_from_process_to_page(monkeypatch, capsys):
    """Gradients without second derivatives, and steps with them, in this process."""
    monkeypatch.setattr(first_order, "SIGMAS", (0.01, 0.002))
    monkeypatch.setattr(first_order, "CRITICS", dict(list(first_order.CRITICS.items())[1:]))
    monkeypatch.setattr(
        first_order, "AttentionCritic", lambda **_: first_order.convolutional(torch.nn.GELU())
    )
    rows = measure.accuracy_rows({"batch": 2})
    steps = measure.method_rows({"network": "small", "compiled": False, "budget_s": 0.2})
    found = [dataclasses.replace(event, suite=GRADIENT_PENALTY) for event in (*rows, *steps)]
    assert only(found, LeftOut) == []
    accuracies = only(found, GradientAccuracy)
    assert len(accuracies) == 2 * 2 * 2 * 2
    best = [e for e in accuracies if (e.method, e.precision) == ("difference", "float32")]
    assert all(e.error < 1e-3 for e in best if e.critic == first_order.GELU)
    assert [e.kind for e in only(found, MethodStep)] == list(first_order.STEPS)
    made = _small_report(found)
    judged = [bar for bar in made["bars"] if bar["group"].startswith(("differences", "step over"))]
    assert len(judged) == 10
    assert all(bar["measured"] is not None for bar in judged)
    text = page.render(made)
    assert text.count("<figure") == 1
    assert "without second derivatives" in text
    terminal.show(made, Console(width=200))
    assert "difference, one-sided" in capsys.readouterr().out


def test_a_small_run_of_augmentation_from_process_to_page(capsys):
    case = AugmentCase("bg", 1.0, 2, 32)
    todo = [
        jobs.augment_job(case, list(augmentation.PASSES), 2, 0.1),
        jobs.augment_figures_job() | {"budget_s": 0.1, "sizes": [(32, 2)]},
    ]
    found = [event for job in todo for event in run(job, limit_s=HUNG_S)]
    assert {e.kind for e in only(found, LeftOut)} <= {*augmentation.BILINEAR}
    rows = [e for e in only(found, Row) if e.kind not in augmentation.BILINEAR]
    kinds = augmentation.MULTI_PASS, OURS
    assert {(r.which, r.kind) for r in rows} == {
        (which, kind) for which in augmentation.PASSES for kind in kinds
    }
    assert all(r.error < 1e-6 for r in rows if r.kind == OURS)
    made = _small_report(found)
    judged = {bar["group"]: bar for bar in made["bars"] if bar["group"].startswith("augm")}
    assert judged["augmentation, error over the range, in 1e-6"]["reached"]
    assert judged["augmentation, floats saved a sample"]["reached"]
    assert judged["augmentation, memory beyond the images'"]["reached"]
    assert judged["augmentation, cycles a pixel"]["measured"] > 1
    for what in (
        "transpose over forward",
        "plain filters over grid_sample, forward",
        "plain filters over grid_sample, forward + backward",
    ):
        assert judged[f"augmentation, {what}"]["measured"] > 0
    figures = {e.what for e in only(found, Figure)}
    both = {"avx2", "avx512"} <= set(_C.isas())
    assert ("AVX-512 over AVX2" in figures) == both
    assert judged["augmentation vs plain PyTorch"]["measured"] is None  # of these images is no bar
    text = page.render(made)
    assert "Augmentation: all of it" in text
    assert "bilinearly" in text
    assert "floats saved a sample" in text
    terminal.show(made, Console(width=250))
    assert case.name in capsys.readouterr().out


def test_the_bars_of_augmentation_are_on_what_is_measured():
    todo = [job for job in jobs.quick_jobs() if job["work"] == "augment"]
    measured = {(job["network"], which) for job in todo for which in job["passes"]}
    assert measured == {(name, which) for name, of in bars.AUGMENT_BARS.items() for which in of}


def test_what_is_bilinear_is_entered_for_what_it_can_do():
    case = AugmentCase("bgc", 0.2, 2, 16)
    entered, _, left_out = line_up(case, augmentation.BILINEAR)
    assert entered == []
    assert all("geometry at p = 1" in left_out[kind] for kind in augmentation.BILINEAR)
    for job in jobs.quick_jobs():
        if job["work"] == "augment":
            there = {
                kind in job["kinds"] for kind in (augmentation.KORNIA, augmentation.TORCHVISION)
            }
            assert there == {job["case"][0] == "bg"}


@pytest.mark.parametrize("size", [16, 48])
@pytest.mark.parametrize("kind", [augmentation.KORNIA, augmentation.TORCHVISION])
def test_others_draw_what_they_say(kind, size):
    pytest.importorskip(kind)
    assert augmentation.check(kind, AugmentCase("bg", 1.0, 2, size)) < 1e-4


@pytest.mark.slow
def test_kornia_compiled_draws_what_it_says():
    pytest.importorskip("kornia")
    kind = augmentation.KORNIA_COMPILED
    assert augmentation.check(kind, AugmentCase("bg", 1.0, 2, 16)) < 1e-4


def _row(ratios, **fields):
    """A row of which only what is given matters."""
    rest = {"nbytes": 4, "seconds": harness.spread([1.0]), "error": 0.0, "copy_bandwidth": 1.0}
    return Row(times_faster_than=ratios, **rest | fields)


@pytest.mark.parametrize("ratio", [100.0, 1.0])
def test_bars_of_augmentation_are_judged(ratio):
    common = {"suite": AUGMENTATION, "kind": OURS, "threads": 2, "network": "some"}
    ratios = {augmentation.MULTI_PASS: harness.spread([ratio])}
    rows = [
        _row(ratios, **common | {"network": name, "which": which})
        for name, of in bars.AUGMENT_BARS.items()
        for which in of
    ]
    figures = [
        Figure(**common, what=what, value=2 * bar if which else bar)
        for what, bar in bars.AUGMENT_FIGURES.items()
        for which in range(2 if ratio == 1 else 1)
    ]
    extra = 0 if ratio > 1 else 20
    memory = Memory(**common, image_bytes=100, result_bytes=100, peak_bytes=100 + extra)
    found = [
        v for v in bars.verdicts([*rows, *figures, memory]) if v.group.startswith("augmentation")
    ]
    assert len(found) == len(rows) + len(bars.AUGMENT_FIGURES) + 1
    assert {v.reached for v in found} == {ratio > 1}


def test_an_augmentation_that_is_wrong_is_not_timed(monkeypatch):
    case = AugmentCase("bg", 1.0, 2, 16)
    monkeypatch.setattr(augmentation, "pipe_of", lambda kind, case: lambda x: 1.01 * x)
    entered, _, left_out = line_up(case, [OURS])
    assert entered == []
    assert "is off by" in left_out[OURS]


def test_a_bar_on_a_shape_is_on_its_worst_row():
    def row(network, faster, calm=True, **more):
        fields = {
            "suite": GRADIENT_PENALTY,
            "network": network,
            "shape": "64x3x64x64",
            "which": BACKWARD,
            "kind": OURS,
            "allocator": "tuned",
            "threads": 2,
            "error": 1e-7,
            "calm": calm,
        }
        return _row({USUAL: harness.spread([faster])}, **fields | more)

    def verdict(*rows):
        return next(
            v
            for v in bars.verdicts(list(rows))
            if v.subject == "64x3x64x64" and v.group == "penalty vs usual form"
        )

    good, bad = row("good", 4.0), row("bad", 2.9)
    assert verdict(good).reached
    assert verdict(good, bad).reached is False
    assert "bad" in verdict(good, bad).note
    assert verdict(good, row("bad", 2.9, calm=False)).reached is None
    for ignored in ({"allocator": "default"}, {"which": FORWARD}, {"kind": USUAL}):
        assert verdict(good, row("bad", 2.9, **ignored)).reached
    error = next(v for v in bars.verdicts([row("x", 4.0, error=2e-6)]) if "float64" in v.group)
    assert error.reached is False


def test_a_job_that_fails_is_reported_as_left_out():
    job = jobs.job_of("network", cost_s=1.0, network="no such network")
    (event,) = list(run(job, limit_s=HUNG_S))
    assert isinstance(event, LeftOut)
    assert "no such network" in event.reason


def test_what_there_is_no_time_for_is_reported_as_left_out():
    job = jobs.job_of("layers", cost_s=1.0)
    (event,) = list(run(job, limit_s=0.0))
    assert isinstance(event, LeftOut)


def test_modes_cover_every_network_and_fit_their_time():
    for mode, limit in ((jobs.quick_jobs(), 360), (jobs.full_jobs(), 1950)):
        todo = list(mode)
        tuned = {j["network"] for j in todo if j["work"] == "network" and j["allocator"] == "tuned"}
        assert tuned == {*workloads.load(), workloads.HOST.name}
        measured = [j for j in todo if j["work"] == "penalty" and j["allocator"] == "tuned"]
        names = [(*case, j["threads"]) for j in measured for case in j["cases"]]
        assert len(set(names)) == len(names)  # a second row would hide the first
        if limit == 360:
            assert {name[0] for name in names} == set(penalties.SHAPES)
        else:
            wanted = [(c.shape, c.channels_last, c.center) for c in penalties.cases()]
            assert set(names) == {(*case, threads) for case in wanted for threads in (1, 2)}
        assert any(COMPILED in j["kinds"] for j in measured)
        assert sum(job["cost_s"] for job in todo) <= limit
