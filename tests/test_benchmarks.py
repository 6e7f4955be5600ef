"""The benchmark suite works: its statistics, its checks, its report; one tiny run of each."""

import dataclasses
import json
import time

import pytest
import torch

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from benchmarks import bandwidth, bars, contestants, harness, networks, page, report, workloads
from benchmarks.contestants import BACKWARD, FORWARD, FUSED, HOOK, LAYER, TORCH

SHAPES = [(8, 3, 3, 3), (16, 8), (1, 16)]


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
    for backward in (False, True):
        assert unit.floor_seconds(10, backward) == bandwidth.floor_bytes(10, backward)


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
    entered, errors, left_out = contestants.line_up([kind], workloads.random_weights(SHAPES))
    assert left_out == {}
    assert [c.kind for c in entered] == [kind]
    assert errors[kind] <= contestants.TOLERANCE


def test_a_wrong_result_is_not_timed():
    weights = workloads.random_weights(SHAPES)
    contestant = contestants.build(TORCH, weights, [torch.ones(shape) for shape in SHAPES])
    honest = contestant.call
    contestant.call = lambda: [1.001 * w for w in honest()]
    with pytest.raises(contestants.WrongResultError, match="off by"):
        contestants.check(contestant, weights)


def _small_report(events):
    return {
        "mode": "quick",
        "started": "2020-01-01T00:00:00+00:00",
        "seconds": 1.0,
        "environment": {"cpu": "some <cpu>", "cores": 2, "torch": torch.__version__},
        "events": events,
        "bars": [verdict.to_dict() for verdict in bars.verdicts(events)],
    }


def test_a_disturbed_measurement_is_not_judged():
    verdict = bars.Verdict("what", "where", bar=2.0, measured=3.0)
    assert verdict.reached
    disturbed = dataclasses.replace(verdict, calm=False).to_dict()
    assert disturbed["reached"] is None
    assert "disturbed" in page.verdict_mark(disturbed)


def test_nothing_measured_still_renders():
    made = _small_report([])
    assert {bar["reached"] for bar in made["bars"]} == {None}
    assert "some &lt;cpu&gt;" in page.render(made)


def test_a_small_run_from_process_to_page(tmp_path, capsys):
    job = {
        "work": "network",
        "network": "mlp_critic",
        "kinds": [TORCH, LAYER, FUSED],
        "passes": [FORWARD, BACKWARD],
        "allocator": "tuned",
        "threads": 2,
        "budget_s": 0.2,
    }
    events = list(report.run(job, limit_s=120))
    assert [e for e in events if e["event"] == "left out"] == []
    rows = [e for e in events if e["event"] == "row"]
    assert len(rows) == 6
    assert all(row["seconds"]["median"] > 0 for row in rows)
    made = _small_report(events)
    judged = [bar for bar in made["bars"] if "mlp_critic" in bar["subject"]]
    assert all(bar["measured"] is not None for bar in judged)
    data, html = report.write(made, tmp_path)
    assert json.loads(data.read_text())["events"] == events
    text = html.read_text()
    assert "<svg" in text
    assert "http://" not in text.replace("http://www.w3.org", "").replace(
        "http://purl.org", ""
    ).replace("http://creativecommons.org", "")
    report.show(made, report.Console(width=200))
    assert "mlp_critic" in capsys.readouterr().out


def test_a_job_that_fails_is_reported_as_left_out():
    job = {"work": "network", "network": "no such network", "allocator": "tuned", "threads": 1}
    (event,) = list(report.run(job, limit_s=120))
    assert event["event"] == "left out"
    assert "no such network" in event["reason"]


def test_what_there_is_no_time_for_is_reported_as_left_out():
    job = {"work": "layers", "allocator": "tuned", "threads": 2}
    (event,) = list(report.run(job, limit_s=0.0))
    assert event["event"] == "left out"


def test_modes_cover_every_network_and_fit_their_time():
    for jobs, limit in ((report.quick_jobs(), 300), (report.full_jobs(), 1200)):
        jobs = list(jobs)
        tuned = {j["network"] for j in jobs if j["work"] == "network" and j["allocator"] == "tuned"}
        assert tuned == set(workloads.load())
        assert sum(job["cost_s"] for job in jobs) <= limit
