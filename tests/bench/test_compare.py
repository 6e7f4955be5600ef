"""Two runs are compared: a slowdown is found, noise is not."""

import itertools
import json
import random
import re

import pytest

pytest.importorskip("rich")

from measurements import everything, report_of, spread

from benchmarks.core import events, harness
from benchmarks.core.contest import FORWARD, OURS
from benchmarks.core.environment import TUNED
from benchmarks.core.events import AUGMENTATION, Row, to_dict
from benchmarks.report import compare, findings, history, site, words
from benchmarks.suites import augmentation
from benchmarks.suites.spectral_norm import FUSED

GANKERNELS = {"gankernels": {"gankernels": "0.1.0"}}


WHERE = {"suite": AUGMENTATION, "allocator": TUNED, "threads": 2, "which": FORWARD}


def kept(rows, machine="some cpu, 2 cores"):
    """A report of rows: name to (seconds, ratio), or these and whether it was calm."""
    found = [
        Row(
            **WHERE,
            network=name,
            kind=OURS,
            nbytes=1,
            seconds=seconds,
            times_faster_than={augmentation.MULTI_PASS: ratio},
            error=0.0,
            calm=all(calm),
        )
        for name, (seconds, ratio, *calm) in rows.items()
    ]
    versions = {"gankernels": "0.1.0", "torch": "2.0"}
    return {"machine": machine, "versions": versions, "started": "2020", "events": found}


def measured(seed, ours=1.0, theirs=3.0, load=1.0, rounds=40):
    """A row as the harness measures it: noise of 5 % in each sample, a load that hits both."""
    draw = random.Random(seed)
    a, b = ([x * load * draw.gauss(1, 0.05) for _ in range(rounds)] for x in (ours, theirs))
    return harness.spread(a), harness.spread([y / x for x, y in zip(a, b, strict=True)])


def changed(old, new, **more):
    return names(compare.slower(kept({"row": old}), kept({"row": new}, **more)))


def names(changes):
    return [re.search(r", (\w+), forward$", change.name)[1] for change in changes]


def test_a_slowdown_is_found():
    for seed in range(50):
        assert changed(measured(seed), measured(seed + 100, ours=1.25)) == ["row"]


def test_noise_is_none():
    rows = [{f"{i}": measured(1000 * run + i) for i in range(300)} for run in range(2)]
    assert compare.slower(*map(kept, rows)) == []


def test_a_busy_machine_is_no_slowdown():
    assert changed(measured(0), measured(1, load=1.6)) == []


def test_an_opponent_that_became_faster_is_no_slowdown():
    new = measured(1, theirs=2.0)
    assert changed(measured(0), new) == []
    assert changed(measured(0), new, machine="another") == ["row"]  # seconds say nothing there


def test_what_is_faster_or_disturbed_is_not_found():
    assert changed(measured(0), measured(1, ours=0.5)) == []
    assert changed(measured(0), (*measured(1, ours=2.0), False)) == []
    narrow = [(spread(x, 0.001), spread(3 / x, 0.001)) for x in (1.0, 1.03)]
    assert changed(*narrow) == []


def test_the_worst_comes_first():
    old = kept({name: measured(i) for i, name in enumerate("abc")})
    new = kept({name: measured(9 + i, ours=2.0 + i) for i, name in enumerate("abc")})
    assert names(compare.slower(old, new)) == ["c", "b", "a"]


@pytest.fixture
def results(tmp_path):
    """results.json of a whole report."""
    report = report_of(everything())
    report["environment"] |= GANKERNELS
    path = tmp_path / "results.json"
    path.write_text(json.dumps(report, default=to_dict))
    return path


def test_history_is_small_and_says_the_same(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(history.keep, "__defaults__", (tmp_path / "history",))
    history.main([str(results)])
    (path,) = (tmp_path / "history").iterdir()
    assert str(path) in capsys.readouterr().out
    assert path.name == "some-cpu-2-cores-0.1.0.json"
    assert path.stat().st_size < results.stat().st_size / 2
    assert history.load(path) == history.load(results)
    assert compare.main([str(path), str(results)]) == 0
    assert "0 of" in capsys.readouterr().out


def test_what_was_kept_is_what_was_found(results, tmp_path):
    """But for digits that say nothing."""
    before = events.parse(results.read_text())["events"]
    after = history.load(history.keep(events.parse(results.read_text()), tmp_path))["events"]
    for old, new in zip(before, after, strict=True):
        assert type(old) is type(new)
        for name, value in (to_dict(old) | to_dict(new)).items():
            if name != "times_faster_than" and name not in history.SPARED:
                assert history._rounded(to_dict(old)[name]) == history._rounded(value), name
    for old, new in zip(findings.against(before), findings.against(after), strict=True):
        assert (old.ours, old.other) == (new.ours, new.other)
        assert [ratio.verdict for ratio in old.ratios] == [ratio.verdict for ratio in new.ratios]
        assert old.range == pytest.approx(new.range, rel=1e-3)


def test_the_newest_report_comes_first(results, tmp_path):
    report = events.parse(results.read_text())
    for day in ("02", "03", "01"):
        of = report["environment"] | {"cpu": f"cpu {day}"}
        history.keep(report | {"environment": of, "started": f"2026-01-{day}"}, tmp_path / "kept")
    started = [found["started"] for found in history.kept(tmp_path / "kept")]
    assert started == ["2026-01-03", "2026-01-02", "2026-01-01"]


def test_exit_status_is_1_where_something_is_slower(results, tmp_path, capsys):
    report = json.loads(results.read_text())
    row = next(e for e in report["events"] if e["event"] == "row" and e["kind"] == FUSED)
    for spread_of, factor in ((row["seconds"], 2), (row["times_faster_than"]["torch"], 1 / 2)):
        spread_of |= {name: factor * spread_of[name] for name in ("median", "q25", "q75")}
    new = tmp_path / "new.json"
    new.write_text(json.dumps(report))
    assert compare.main([str(results), str(new)]) == 1
    shown = capsys.readouterr().out
    name = f"gankernels fused over torch parametrization, {row['network']}, {row['which']}"
    assert f"{name}: 4.0x (3.6 to 4.4) before, 2.0x (1.80 to 2.2) now" in shown
    assert compare.main([str(new), str(results)]) == 0


def test_every_alternative_is_compared(results):
    found = history.load(results)
    assert {(r.ours, r.other) for r, _ in compare.common(found, found)} == {
        (group.ours, group.other) for group in findings.against(found["events"])
    }
    names = [ratio.name for ratio, _ in compare.common(found, found)]
    assert len(names) == len(set(names))


def test_nothing_in_common_is_an_error(tmp_path, capsys):
    for name in "ab":
        environment = {"cpu": "a cpu", "cores": 2} | GANKERNELS
        report = kept({name: measured(0)}) | {"environment": environment, "mode": "quick"}
        del report["machine"]
        (tmp_path / name).write_text(json.dumps(report, default=to_dict))
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "nothing can be compared" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "a")])


def test_the_site_and_the_readme_say_what_was_kept():
    """``python -m benchmarks.report.site``."""
    reports = history.kept()
    assert reports
    for path, text in ((site.PAGE, site.page(reports)), (site.README, site.readme(reports))):
        assert f"{site.BEGIN}\n{text}\n{site.END}" in path.read_text()


def test_a_page_has_all_that_the_terminal_has(results):
    report = history.load(results)
    report["environment"] |= {"caches": {}, "memory_gib": 1.0, "libc": "", "torch_isa": ""}
    text = site.page([report])
    for part in words.contents(report):
        cells = itertools.chain(*part.rows) if isinstance(part, words.Table) else [part]
        for cell in filter(None, cells):
            assert site._text(cell) in text
