"""What the report says of made-up measurements: in any width nothing is cut, losses are said."""

import itertools
import re

import pytest

pytest.importorskip("rich")

from measurements import everything, report_of, rows_of, spread, step_of
from rich.console import Console

from benchmarks.core.contest import FORWARD, OURS
from benchmarks.core.environment import DEFAULT
from benchmarks.core.events import (
    AUGMENTATION,
    SPECTRAL_NORM,
    LeftOut,
    Row,
    TrainingStep,
    only,
)
from benchmarks.report import __main__ as command
from benchmarks.report import bars, charts, findings, jobs, page, processes, terminal, words
from benchmarks.report.words import Table
from benchmarks.suites import networks
from benchmarks.suites import spectral_norm as norms
from benchmarks.suites.registry import SUITES

WIDTHS = (60, 80, 120)


# --- the terminal --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    return report_of(everything())


@pytest.mark.parametrize("width", WIDTHS)
def test_no_name_and_no_number_is_cut(whole, width):
    lines = list(itertools.chain(*terminal.lines_of(whole, width)))
    text = "\n".join(lines)
    assert max(map(len, lines)) <= width
    assert "…" not in text
    for row in only(whole["events"], Row):
        mine = [line for line in lines if line.startswith((row.network, words.short(row.network)))]
        assert mine
        suite = SUITES[row.suite]
        ratio = row.times_faster_than[suite.baseline]
        number = words.times(ratio.median)
        if row.kind == suite.baseline:
            number = f"{words.milliseconds(row.seconds.median)} ms"
        assert number in text
        for name in (row.which, suite.labels[row.kind]):
            assert name in text or words.short(name) in text
    for step in only(whole["events"], TrainingStep):
        assert f"{step.network}, {step.batch}" in text
        assert words.share(step) in text
    for group in findings.against(whole["events"]):
        assert words.range_of(group) in text


@pytest.mark.parametrize("width", WIDTHS)
def test_bars_are_shown_to_whom_asks(whole, width):
    judged = [verdict.to_dict() for verdict in bars.verdicts(whole["events"])]
    for of, shown in ((whole, False), (whole | {"bars": judged}, True)):
        lines = list(itertools.chain(*terminal.lines_of(of, width)))
        assert ("Bars" in lines) == shown
        assert max(map(len, lines)) <= width
        assert any("reached" in line for line in lines) == shown
        assert ("The bars" in page.render(of)) == shown


def test_a_table_takes_fewer_columns_before_it_stacks_its_rows():
    header, row = ["what", "times faster", "quartiles"], ["one name", "2.0x", "1.9 to 2.1"]
    of_one = Table("T", header, [row], optional=["quartiles"])
    wide = terminal.drawn(of_one, 40)
    assert wide[2:] == ["what      times faster   quartiles", "one name          2.0x  1.9 to 2.1"]
    shorter = terminal.drawn(of_one, 30)
    assert shorter[2:] == ["what      faster   quartiles", "one name    2.0x  1.9 to 2.1"]
    fewer = terminal.drawn(of_one, 20)
    assert fewer[2:] == ["what      faster", "one name    2.0x"]
    stacked = terminal.drawn(of_one, 14)
    assert stacked[2:] == ["one name", "  faster 2.0x"]


def test_words_are_not_broken():
    (path,) = terminal.wrap("64x3x1024x1024_WGAN-GP/without-a-space", 10)
    assert path.endswith("space")


FILES = ("benchmarks/results/report.html", "benchmarks/results/results.json")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_last_lines_are_a_summary_of_ten_at_most(whole, width):
    lines = terminal.summary(whole, FILES, width)
    assert len(lines) <= 10
    assert max(map(len, lines)) <= width
    assert lines[-2:] == list(FILES)
    text = " ".join(lines)
    assert "Spectral norm: 2.1x to 4.0x as fast as torch parametrization" in text
    assert "Slower in 2 of" in text
    assert "R1 + R2, difference, central is slower than exact R1 + R2" in text
    assert "0.77x (0.70 to 0.85)" in text


def test_nothing_measured_has_a_summary():
    assert terminal.summary(report_of([]), FILES, 80) == list(FILES)


def test_a_log_has_a_line_every_ten_seconds():
    now, said = [0.0], []
    log = processes.Log(said.append, lambda: now[0])
    for second in range(61):
        now[0] = float(second)
        log.tell(second / 60, "biggan_128: weights")
    assert len(said) == 6
    assert said[0] == " 17%  0:10  biggan_128: weights"
    assert all("\r" not in line for line in said)


def test_a_pipe_gets_lines_while_a_job_runs(monkeypatch, capsys):
    def run(job, limit_s, waiting):
        waiting()
        return []

    monkeypatch.setattr(processes, "run", run)
    monkeypatch.setattr(processes, "LINE_EVERY_S", 0.0)
    processes.measure(list(jobs.quick_jobs())[:2], 60.0, Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines if line.strip()] == ["weights", "weights"]


def test_a_line_of_progress_fits_80_columns():
    for job in (*jobs.quick_jobs(), *jobs.full_jobs()):
        assert len(jobs.title(job)) <= 50  # and 30 for times


def test_waiting_is_told_while_a_process_runs():
    told = []
    todo = jobs.job_of("network", cost_s=1.0, network="no such network")
    found = list(processes.run(todo, 600.0, lambda: told.append(1)))
    assert [type(event) for event in found] == [LeftOut]
    assert told


# --- what is concluded ---------------------------------------------------------------------------


def ratio_of(median, calm=True, around=0.1):
    return findings.Ratio("Suite", "ours", "theirs", "here", spread(median, around), None, calm)


def test_verdicts_are_by_quartiles():
    assert ratio_of(2.0).verdict == "faster"
    assert ratio_of(0.5).verdict == "slower"
    assert ratio_of(1.05).verdict == "same"
    assert ratio_of(0.5, calm=False).verdict == "disturbed"


def test_conclusions_follow_the_data():
    fast, even, slow = ratio_of(2.0), ratio_of(1.0), ratio_of(0.5)
    said = charts.conclude([fast, ratio_of(3.0)], "theirs")
    assert said == "ours is 2.0x to 3.0x as fast as theirs, faster in all 2."
    said = charts.conclude([fast, even, slow], "theirs")
    assert "faster in 1 of 3, slower in 1 (here: 0.50x), within noise in 1" in said
    assert "nothing is concluded" in charts.conclude([ratio_of(2.0, calm=False)], "theirs")


def test_a_disturbed_row_is_in_no_range_and_counted():
    took = {norms.TORCH: 2.0, norms.FUSED: 1.0}
    calm = rows_of(SPECTRAL_NORM, "calm", FORWARD, took)
    wild = rows_of(SPECTRAL_NORM, "wild", FORWARD, {**took, norms.TORCH: 30.0}, calm=False)
    (group,) = findings.against([*calm, *wild])
    assert words.range_of(group) == "2.0x"
    assert [group.count(v) for v in ("faster", "disturbed")] == [1, 1]
    wild = list(rows_of(SPECTRAL_NORM, "wild", FORWARD, took, calm=False))
    lines = terminal.summary(report_of(wild), FILES, 80)
    assert lines[0] == "Spectral norm: all disturbed"


def test_page_faults_of_default_malloc_are_in_no_range():
    took = {norms.TORCH: 20.0, norms.FUSED: 1.0}
    (group,) = findings.against(
        [
            *rows_of(SPECTRAL_NORM, "n", FORWARD, {**took, norms.TORCH: 2.0}),
            *rows_of(SPECTRAL_NORM, "n", FORWARD, took, allocator=DEFAULT),
        ]
    )
    assert words.range_of(group) == "2.0x"
    assert group.count("faster") == 2


def test_ours_may_be_shown_by_the_others_row_alone():
    took = {norms.COMPILED: 2.0, norms.FUSED: 1.0}
    rows = [r for r in rows_of(SPECTRAL_NORM, "n", FORWARD, took) if r.kind == norms.COMPILED]
    (ratio,) = findings.ratios(rows)
    assert ratio.spread.median == pytest.approx(2.0)
    assert ratio.spread.q25 < ratio.spread.q75
    assert len(list(findings.ratios([*rows_of(SPECTRAL_NORM, "n", FORWARD, took)]))) == 1


def test_noise_is_no_share():
    network = networks.NETWORKS["dcgan_64"]
    noise = step_of(SPECTRAL_NORM, "dcgan_64", network, norms.FUSED, 0.02, around=0.2)
    assert words.share(noise) == "within noise (-8.4 to 12.4 %)"
    clear = step_of(SPECTRAL_NORM, "dcgan_64", network, norms.FUSED, 0.2)
    assert words.share(clear) == "20.0 % (18.0 to 22.0)"
    assert words.mark(False, spread(1.0, count=3)) == " * (3 samples)"


def test_missing_packages_are_one_line():
    gone = [
        LeftOut(
            suite=AUGMENTATION,
            network=n,
            kind=k,
            reason=f"ModuleNotFoundError: No module named '{k}'",
        )
        for n, k in itertools.product("ab", ("kornia", "torchvision"))
    ]
    wrong = LeftOut(suite=AUGMENTATION, network="c", kind=OURS, reason="WrongResultError: off")
    assert words.left_out_lines([*gone, wrong]) == [
        "Not compared, as not installed: kornia, torchvision",
        "Left out: gankernels (c): WrongResultError: off",
    ]


# --- the page ------------------------------------------------------------------------------------


def test_every_chart_says_its_unit_and_what_to_conclude(whole):
    made = charts.all_charts(whole["events"])
    assert len(made) == 10
    for chart in made:
        assert chart.unit.endswith(".")
        assert re.search(r"\d", chart.conclusion)
        assert f'role=img aria-label="{chart.title}.' in chart.html()
        assert chart.conclusion.split("(")[0] in chart.html()


def test_a_disturbed_row_does_not_set_the_axis():
    calm = charts.Bar("a", "ours", spread(2.0), "2.0x")
    wild = charts.Bar("b", "ours", spread(40.0), "40x", calm=False)
    drawn = charts.bars({"": [calm, wild]})
    assert re.findall(r'style="width:([\d.]+)%"', drawn) == ["90.9", "100.0"]
    assert drawn.count("disturbed") == drawn.count("class=beyond") == 1
    series = charts.Series("s", "blue", [(1.0, 2.0), (10.0, 500.0)], calm=[True, False])
    plotted = charts.plot([series], "x", "y", {1.0: "1", 10.0: "10"})
    assert "500" not in plotted
    assert plotted.count("fill-opacity") == 1


def test_the_page_has_contents_and_stands_alone(whole):
    text = page.render(whole)
    targets = re.findall(r"href='#(\w+)'", text)
    assert targets == re.findall(r"<h2 id=(\w+)>", text)
    assert len(targets) > 15
    assert "http" not in text
    assert "prefers-color-scheme: dark" in text
    names = re.findall(r'<td[^>]* data-name="[^"]+">', text)
    assert len(names) > 1000  # on a phone a cell stands beside its name
    assert "R1 + R2, difference, central is slower than exact R1 + R2" in text


def test_a_path_below_the_working_folder_is_short(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(command.shorter(tmp_path / "results" / "x.json")) == "results/x.json"
