"""Two runs are compared: a slowdown is found, noise is not."""

import json
import random

import pytest

pytest.importorskip("rich")

from measurements import everything, report_of, spread

from benchmarks.core import harness
from benchmarks.core.events import Row, to_dict
from benchmarks.report import compare

GANKERNELS = {"gankernels": {"gankernels": "0.1.0"}}


def kept(rows, machine="some cpu, 2 cores"):
    """A file of rows: name to (seconds, ratio), or these and whether it was calm."""
    made = {}
    for name, (seconds, ratio, *calm) in rows.items():
        numbers = [[s.median, s.q25, s.q75, s.count] for s in (seconds, ratio)]
        made[name] = {"seconds": numbers[0], "ratio": numbers[1], "calm": all(calm)}
    versions = {"gankernels": "0.1.0", "torch": "2.0"}
    return {"machine": machine, "versions": versions, "started": "2020", "rows": made}


def measured(seed, ours=1.0, theirs=3.0, load=1.0, rounds=40):
    """A row as the harness measures it: noise of 5 % in each sample, a load that hits both."""
    draw = random.Random(seed)
    a, b = ([x * load * draw.gauss(1, 0.05) for _ in range(rounds)] for x in (ours, theirs))
    return harness.spread(a), harness.spread([y / x for x, y in zip(a, b, strict=True)])


def changed(old, new, **more):
    return [c.name for c in compare.slower(kept({"row": old}), kept({"row": new}, **more))]


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
    assert [c.name for c in compare.slower(old, new)] == ["c", "b", "a"]


@pytest.fixture
def results(tmp_path):
    """results.json of a whole report."""
    report = report_of(everything())
    report["environment"] |= GANKERNELS
    path = tmp_path / "results.json"
    path.write_text(json.dumps(report, default=to_dict))
    return path


def test_history_is_small_and_says_the_same(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare.keep, "__defaults__", (tmp_path / "history",))
    assert compare.main(["--keep", str(results)]) == 0
    (path,) = (tmp_path / "history").iterdir()
    assert str(path) in capsys.readouterr().out
    assert path.name == "some-cpu-2-cores-0.1.0.json"
    assert path.stat().st_size < results.stat().st_size / 5
    assert compare.load(path) == compare.load(results)
    assert compare.main([str(path), str(results)]) == 0
    assert "0 of" in capsys.readouterr().out


def test_exit_status_is_1_where_something_is_slower(results, tmp_path, capsys):
    facts = compare.load(results)
    name = next(name for name in facts["rows"] if "fused" in name)
    row = facts["rows"][name]
    row["seconds"] = [2 * x for x in row["seconds"][:3]] + [40]
    row["ratio"] = [x / 2 for x in row["ratio"][:3]] + [40]
    new = tmp_path / "new.json"
    new.write_text(json.dumps(facts))
    assert compare.main([str(results), str(new)]) == 1
    shown = capsys.readouterr().out
    assert f"slower: {name}: 4.0x (3.6 to 4.4) before, 2.0x (1.80 to 2.2) now" in shown
    assert compare.main([str(new), str(results)]) == 0


def test_rows_of_ours_are_kept():
    report = report_of(everything())
    report["environment"] |= GANKERNELS
    names = compare.condense(report)["rows"]
    ours = [e for e in report["events"] if isinstance(e, Row) and e.kind in ("fused", "layer")]
    assert len([name for name in names if name.startswith("spectral norm: ")]) > len(ours)
    assert any("R1 + R2" in name for name in names)
    assert not any("torch," in name for name in names if "step" not in name)


def test_nothing_in_common_is_an_error(tmp_path, capsys):
    for name in "ab":
        (tmp_path / name).write_text(json.dumps(kept({name: measured(0)})))
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert "nothing can be compared" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "a")])
