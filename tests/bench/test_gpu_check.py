"""The check on a GPU, as far as it goes without one: its dry run, its parsers, its judgment."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT

from benchmarks.core.contest import WrongResultError
from benchmarks.gpu import check as gpu_check
from benchmarks.gpu import exact as gpu_exact
from benchmarks.gpu import measure as gpu_measure
from benchmarks.gpu import page as gpu_page
from benchmarks.gpu import profile as gpu_profile
from benchmarks.gpu import steps as gpu_steps
from benchmarks.gpu import tools as gpu_tools
from benchmarks.gpu import workout as gpu_workout
from benchmarks.gpu.measure import EAGER, PENALTY
from benchmarks.gpu.plan import Plan, SkipStepError, StepError
from benchmarks.gpu.steps import Part, Step
from benchmarks.gpu.workouts import spectral_norm as gpu_norm
from benchmarks.suites import spectral_norm
from benchmarks.suites.spectral_norm import FUSED, LAYER, TORCH
from build_support import cuda
from gankernels import _library


def _silent(_: str) -> None:
    pass


def _run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu.check", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
def test_dry_run_writes_both_files_and_says_what_it_is(tmp_path):
    done = _run("--dry-run", "--out", str(tmp_path), COLUMNS="200")
    assert done.returncode == 0, done.stdout + done.stderr
    assert gpu_page.DRY_RUN in done.stdout
    report = json.loads((tmp_path / "dry-run.json").read_text())
    html = (tmp_path / "dry-run.html").read_text()
    assert (report["what"], report["failed"]) == (gpu_page.DRY_RUN, [])
    assert gpu_page.DRY_RUN in html
    assert report["device"] == "none"
    assert [step["name"] for step in report["steps"]] == [step.name for step in gpu_steps.STEPS]
    assert {step["status"] for step in report["steps"]} == {gpu_check.NOT_RUN}
    facts = {step["name"]: step["facts"] for step in report["steps"]}
    assert len(facts["values"]["rows"]) == len(gpu_steps.CASES)
    assert facts["values"]["device"] == "cpu"
    for name in ("augmentation", "benchmark", "penalties", "bandwidth", "launches"):
        assert facts[name]["rows"]
        for row in facts[name]["rows"]:
            assert not {"seconds", "times_faster", "bytes_per_second", "kernels"} & set(row)
    assert "copy_bytes_per_second" not in facts["bandwidth"]
    assert "<svg" not in html


@pytest.mark.slow
def test_without_a_gpu_it_refuses_in_one_sentence(tmp_path):
    done = _run("--out", str(tmp_path / "out"), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("gpu-check: ")
    assert not (tmp_path / "out").exists()


def test_refusals_name_the_cure(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "install a CUDA build of torch" in gpu_steps.refusal()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--dry-run" in gpu_steps.refusal()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_steps.refusal() is None


MISSING = _library.ExtensionStatus(False, reason="it was not built", cure="reinstall")


def test_without_kernels_steps_fail_at_once(monkeypatch):
    monkeypatch.setitem(_library.EXTENSIONS, "_C_cuda", MISSING)
    result = gpu_check.attempt(Step("a", "A", _break), Plan(), _silent)
    assert result["status"] == gpu_check.FAILED
    assert result["reason"] == "gankernels._C_cuda is not loaded, it was not built: reinstall."


# --- the build ---------------------------------------------------------------------------------


def test_binaries_are_taken_or_built(monkeypatch, tmp_path):
    loaded = _library.ExtensionStatus(True, path="_C_cuda.so")
    build = {"sources": gpu_check.fingerprint(), "cuda": {"arch_flags": ["code=sm_90"]}}
    monkeypatch.setattr(gpu_steps.info, "build_info", lambda: build)
    gpu = {"covered": True, "compiled": ["9.0"], "architecture": "9.0"}
    monkeypatch.setattr(gpu_steps.info, "gpu", lambda _: gpu)
    commands = []

    def run(command, seconds, **variables):
        commands.append((command[1:], variables))
        return status, "a.cu:7: error: no such thing\n" + 40 * "Traceback\n"

    monkeypatch.setattr(gpu_steps.tools, "run", run)
    monkeypatch.setitem(_library.EXTENSIONS, "_C", loaded)
    monkeypatch.setitem(_library.EXTENSIONS, "_C_cuda", loaded)
    step, status = gpu_steps.STEPS[0], 0
    assert not gpu_check.attempt(step, Plan(), _silent)["facts"]["built"]
    assert not commands
    for change, reason in (
        (lambda: gpu.update(covered=False, architecture="7.5"), "for 9.0, the GPU is 7.5"),
        (lambda: build.update(sources="older"), "from other sources"),
        (lambda: monkeypatch.setitem(_library.EXTENSIONS, "_C_cuda", MISSING), "was not built"),
    ):
        change()
        assert not gpu_check.attempt(step, Plan(dry_run=True), _silent)["facts"]["built"]
        result = gpu_check.attempt(step, Plan(), _silent)
        assert result["status"] == gpu_check.PASSED
        assert reason in result["facts"]["because"]
        assert commands.pop() == (["setup.py", "build_ext", "--inplace"], {"GANKERNELS_CUDA": "1"})
    status = 1
    result = gpu_check.attempt(step, Plan(), _silent)
    assert result["status"] == gpu_check.FAILED
    assert result["facts"]["output"].startswith("a.cu:7: error: no such thing\n...\nTraceback")


def test_the_fingerprint_is_of_what_is_compiled(monkeypatch, tmp_path):
    before = cuda.fingerprint()
    for changed in (
        "setup.py",
        "csrc/X.h",
        "csrc/cuda/X.cuh",
        "csrc/cpu/simd/X.inc",
        "csrc/emu/X.h",
    ):
        root = tmp_path / changed.replace("/", "_")
        (root / "build_support").mkdir(parents=True)
        (root / "build_support" / "cuda.py").write_text("")
        monkeypatch.setattr(cuda, "__file__", str(root / "build_support" / "cuda.py"))
        for name in ("setup.py", changed):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("a")
        first = cuda.fingerprint()
        assert first != before
        (root / changed).write_text("b")
        assert (cuda.fingerprint() == first) == ("emu" in changed)


# --- pytest and compute-sanitizer --------------------------------------------------------------


@pytest.mark.parametrize(
    "line, counts",
    [
        ("3 passed, 2 skipped, 17 deselected in 4.20s", {"passed": 3, "skipped": 2}),
        ("=== 1 failed, 2 passed, 1 error in 61.00s (0:01:01) ===", {"failed": 1, "error": 1}),
        ("1 passed, 1 xfailed, 3 warnings, 2 errors in 0.1s", {"xfailed": 1, "error": 2}),
        ("no tests ran in 0.01s", {}),
        ("17 deselected in 0.9s", {"deselected": 17}),
    ],
)
def test_summaries_of_pytest(line, counts):
    found = gpu_tools.parse_pytest(f"tests/test_x.py .F. in 5.00s\n{line}\n")
    assert found is not None
    assert found | counts == found
    assert bool(found) == bool(counts)


def test_no_summary_of_pytest():
    assert gpu_tools.parse_pytest("Fatal Python error: Aborted") is None
    with pytest.raises(StepError, match="without a summary"):
        gpu_tools.judge_pytest(-6, "Fatal Python error: Aborted")


def test_judgment_of_pytest():
    assert gpu_tools.judge_pytest(0, "5 passed, 9 deselected in 1.0s")["counts"]["passed"] == 5
    with pytest.raises(StepError, match="no test was selected"):
        gpu_tools.judge_pytest(5, "9 deselected in 1.0s")
    with pytest.raises(StepError, match="all 4 selected tests were skipped"):
        gpu_tools.judge_pytest(0, "4 skipped, 9 deselected in 1.0s")
    failing = "FAILED tests/test_x.py::test[cuda] - assert 0\n1 failed, 3 passed in 1.0s"
    with pytest.raises(StepError, match="1 of 4 tests failed") as failure:
        gpu_tools.judge_pytest(1, failing)
    assert failure.value.facts["failures"] == ["FAILED tests/test_x.py::test[cuda] - assert 0"]


@pytest.mark.parametrize(
    "line, count",
    [
        ("12/345 tests collected (333 deselected) in 3.2s", 12),
        ("1 test collected in 0.1s", 1),
        ("no tests collected (345 deselected) in 3.2s", 0),
        ("ImportError: no", None),
    ],
)
def test_collections_of_pytest(line, count):
    assert gpu_tools.parse_collection(f"tests/test_x.py::test[cuda]\n{line}") == count


@pytest.mark.slow
def test_selection_takes_the_cuda_backend_and_no_other(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_cuda_things.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('dtype', ['f', 'h'])\n"
        "@pytest.mark.parametrize('backend', ['cpu', 'emu', 'cuda'])\n"
        "def test_first(backend, dtype): pass\n"
        "@pytest.mark.parametrize('backend', ['cpu', 'emu', 'cuda'])\n"
        "@pytest.mark.parametrize('dtype', ['f', 'h'])\n"
        "def test_last(backend, dtype): pass\n"
        "@pytest.mark.parametrize('backend', ['cpu', 'cuda'])\n"
        "def test_only(backend): pass\n"
        "def test_cuda_flags(): pass\n"
    )
    done = subprocess.run(
        gpu_tools.pytest_command(), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    facts = gpu_tools.judge_pytest(done.returncode, done.stdout)
    assert facts["counts"] == {"passed": 5, "deselected": 10}


CLEAN = """========= COMPUTE-SANITIZER
float32
========= ERROR SUMMARY: 0 errors
"""
OUT_OF_BOUNDS = """========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at void products<float>(Batch)+0x1f0 in spectral_norm.cu:120
=========     by thread (31,0,0) in block (2,0,0)
=========     Address 0x7f0000000400 is out of bounds
=========
========= Invalid __global__ read of size 4 bytes
=========     at void products<float>(Batch)+0x1f0 in spectral_norm.cu:120
=========
========= Target application returned an error
========= ERROR SUMMARY: 2 errors
"""
RACE = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at reduce+0x20 and Read access at reduce+0x40
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""


def test_output_of_compute_sanitizer():
    clean = gpu_tools.judge_sanitizer("memcheck", 0, CLEAN)
    assert clean["passed"]
    assert clean["messages"] == []
    race_free = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
    assert gpu_tools.judge_sanitizer("racecheck", 0, race_free)["passed"]

    bad = gpu_tools.judge_sanitizer("memcheck", gpu_tools.FOUND_ERRORS, OUT_OF_BOUNDS)
    assert not bad["passed"]
    assert bad["errors"] == 2
    assert bad["messages"][0] == "Invalid __global__ read of size 4 bytes"
    assert "out of bounds" in bad["output"]
    race = gpu_tools.judge_sanitizer("racecheck", 0, RACE)
    assert not race["passed"]
    assert race["errors"] == 1
    assert race["messages"][0].startswith("Error: Race reported")


def test_a_sanitizer_that_could_not_run_has_not_passed():
    broken = "========= Error: Target application terminated before first instrumented API call"
    assert not gpu_tools.judge_sanitizer("memcheck", 255, broken)["passed"]
    assert not gpu_tools.judge_sanitizer("memcheck", 0, "")["passed"]
    wrong_values = gpu_tools.judge_sanitizer("memcheck", 1, CLEAN)
    assert not wrong_values["passed"]


@pytest.fixture
def no_sanitizer(monkeypatch):
    monkeypatch.setattr(gpu_tools, "find_sanitizer", lambda: None)
    monkeypatch.setattr(gpu_check, "no_kernels", lambda: None)


def test_without_compute_sanitizer_the_step_is_skipped_with_the_cure(no_sanitizer):
    step = next(step for step in gpu_steps.STEPS if step.name == "sanitizer")
    result = gpu_check.attempt(step, Plan(), _silent)
    assert result["status"] == gpu_check.SKIPPED
    assert "pip install" in result["reason"]


def test_compute_sanitizer_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for place, variable in [("home/bin", "CUDA_HOME"), ("site/nvidia/cu13/bin", None)]:
        program = tmp_path / place / "compute-sanitizer"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        monkeypatch.delenv("CUDA_HOME", raising=False)
        monkeypatch.delenv("CUDA_PATH", raising=False)
        if variable:
            monkeypatch.setenv(variable, str(tmp_path / "home"))
        monkeypatch.setattr(gpu_tools.sysconfig, "get_path", lambda _: str(tmp_path / "site"))
        monkeypatch.setattr(gpu_tools, "Path", lambda *p: Path(str(p[0]).replace("/usr/", "/no/")))
        assert gpu_tools.find_sanitizer() == str(program)
    monkeypatch.setenv("PATH", str(tmp_path / "home" / "bin"))
    assert gpu_tools.find_sanitizer() == str(tmp_path / "home/bin/compute-sanitizer")


# --- steps -------------------------------------------------------------------------------------


def _break(plan, say):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def _skip(plan, say):
    raise SkipStepError("not here: do this")


PART = Part(
    "part",
    (
        Step("a", "A", lambda plan, say: {"x": 1}),
        Step("b", "B", _break),
        Step("c", "C", _skip),
        Step("d", "D", lambda plan, say: {"y": 2}),
    ),
)


def test_a_failing_step_does_not_stop_the_later_ones():
    steps = gpu_check.run_part(PART, PART.steps, Plan(dry_run=True))
    statuses = [step["status"] for step in steps]
    not_run = gpu_check.NOT_RUN
    assert statuses == [not_run, gpu_check.FAILED, gpu_check.SKIPPED, not_run]
    report = gpu_check.merged(gpu_check.start_report(Plan(dry_run=True)), steps)
    assert report["failed"] == ["b"]
    assert "illegal memory access" in report["steps"][1]["reason"]
    assert "illegal memory access" in gpu_page.render(report)


def test_a_part_ends_in_its_time():
    part = Part("part", PART.steps, seconds=gpu_check.LEAST_SECONDS / 2)
    steps = gpu_check.run_part(part, part.steps, Plan(dry_run=True))
    assert {step["reason"] for step in steps} == {"no time was left"}
    assert {step["status"] for step in steps} == {gpu_check.NOT_RUN}
    for part in gpu_steps.PARTS:
        assert part.seconds <= 480
        assert all(step.seconds <= part.seconds for step in part.steps)
        # Those that take all that they may leave the later ones what these need.
        assert sum(step.seconds for step in part.steps[:-1]) < part.seconds


def test_exit_status_follows_the_steps(tmp_path, monkeypatch):
    for steps, status in ((PART.steps[:1], 0), (PART.steps[:2], 1)):
        monkeypatch.setattr(gpu_check, "PARTS", (Part("part", steps),))
        assert gpu_check.main(["--dry-run", "--out", str(tmp_path)]) == status
    report = json.loads((tmp_path / "dry-run.json").read_text())
    assert [step["status"] for step in report["steps"]] == [gpu_check.NOT_RUN, gpu_check.FAILED]


def test_a_part_alone(tmp_path, monkeypatch):
    one, other = PART.steps[:1], PART.steps[3:]
    monkeypatch.setattr(gpu_check, "PARTS", (Part("first", one), Part("second", other)))
    assert gpu_check.main(["--dry-run", "--out", str(tmp_path), "--part", "2"]) == 0
    report = json.loads((tmp_path / "dry-run.json").read_text())
    assert [(step["name"], step["part"]) for step in report["steps"]] == [("d", 2)]


def _result(name, status, **rows):
    facts = {"rows": [{"network": "net", "pass": "forward", "kind": "x", **rows}]}
    return {"name": name, "title": name, "status": status, "seconds": 1.0, "facts": facts}


def test_parts_are_merged_in_one_report(tmp_path):
    report = gpu_check.start_report(Plan()) | {"device": "GPU"}
    first = [_result("bandwidth", "passed"), _result("values", "failed")]
    report = gpu_check.merged(report, first)
    assert report["failed"] == ["values"]
    path = tmp_path / "gpu.json"
    path.write_text(json.dumps(report))
    again = gpu_check.earlier(path, gpu_check.start_report(Plan()) | {"device": "GPU"})
    again = gpu_check.merged(again, [_result("values", "passed"), _result("tests", "passed")])
    assert [step["name"] for step in again["steps"]] == ["values", "tests", "bandwidth"]
    assert again["failed"] == []
    other = gpu_check.earlier(path, gpu_check.start_report(Plan()) | {"device": "another"})
    assert other["steps"] == []


def test_times_are_compared_with_those_before():
    def report(median, kind="x"):
        step = _result("bandwidth", "passed", seconds=_spread(median), kind=kind)
        return {"steps": [step]}

    now = report(2.0)
    gpu_check.compare(now, report(3.0))
    assert now["steps"][0]["facts"]["rows"][0]["before"] == 3.0
    gpu_check.compare(now, report(3.0, kind="y"))
    assert "before" not in now["steps"][0]["facts"]["rows"][0]


@pytest.mark.slow
def test_a_process_that_dies_is_a_failed_step():
    unknown = Step("nothing of that name", "?", _break)
    result = gpu_check.attempt_apart(unknown, Plan(dry_run=True), _silent)
    assert result["status"] == gpu_check.FAILED
    assert "ended with status 2" in result["reason"]
    late = Step("values", "?", _break)
    result = gpu_check.attempt_apart(late, Plan(dry_run=True, seconds=0.1), _silent)
    assert result["status"] == gpu_check.FAILED
    assert "stopped after" in result["reason"]


def test_what_was_found_in_time_is_kept(monkeypatch):
    """By a step that does not live to return it."""
    dies = (
        "import json, pathlib, sys; at = sys.argv.index('--kept') + 1; "
        "pathlib.Path(sys.argv[at]).write_text(json.dumps({'rows': [1]})); sys.exit(3)"
    )
    right = subprocess.Popen

    def popen(command, **options):
        return right([sys.executable, "-c", dies, *command], **options)

    monkeypatch.setattr(gpu_check.subprocess, "Popen", popen)
    result = gpu_check.attempt_apart(
        Step("values", "?", _break), Plan(dry_run=True, seconds=60), _silent
    )
    assert result["reason"] == "its process ended with status 3"
    assert result["facts"]["rows"] == [1]


@pytest.mark.parametrize("here", [signal.default_int_handler, signal.SIG_IGN])
def test_who_is_stopped_says_what_it_knows(here):
    waits = "import time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('5 passed in 1.0s')"
    before = signal.signal(signal.SIGINT, here)
    try:
        # Long enough for a busy machine to start a process in.
        status, output = gpu_tools.run([sys.executable, "-c", waits], 8.0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == gpu_tools.STOPPED
    assert gpu_tools.parse_pytest(output) == {"passed": 5}
    with pytest.raises(StepError, match="time ran out"):
        gpu_tools.judge_pytest(status, output)


def test_without_time_nothing_is_compiled():
    everyone = (EAGER, gpu_measure.INDUCTOR, PENALTY)
    assert gpu_measure.affordable(everyone, Plan()) == (list(everyone), {})
    short = gpu_measure.affordable(everyone, Plan(seconds=1.0))
    assert short == ([EAGER, PENALTY], {gpu_measure.INDUCTOR: "no time was left"})


# --- Nsight Compute ----------------------------------------------------------------------------

NCU = """==PROF== Connected to process 7
"ID","Process ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread"
"","","","ns","register/thread"
"0","7","void resample<float, (int)3>(Args)","1,234","96"
"1","7","finish(Table)","2000","40"
==PROF== Disconnected from process 7
"""


def test_output_of_nsight_compute():
    first, second = gpu_profile.parse(NCU)
    assert (first["kernel"], second["kernel"]) == ("void resample", "finish")
    assert first["us"] == pytest.approx(1.234)
    assert first["registers"] == 96
    assert first["SM %"] is None
    assert gpu_profile.parse("==ERROR== no kernels were profiled") == []


def test_nsight_compute_is_run_on_every_pass(monkeypatch):
    monkeypatch.setattr(gpu_profile, "find_tool", lambda *_: "/opt/ncu")
    ran = []

    def run(command, seconds):
        ran.append(command[-1])
        return 0, NCU

    monkeypatch.setattr(gpu_profile, "run", run)
    facts = gpu_profile.run_all(Plan(seconds=240.0), _silent)
    assert len(ran) == len(set(ran)) == 7
    assert len(facts["rows"]) == 14
    monkeypatch.setattr(gpu_profile, "run", lambda *_: (1, "==ERROR== ERR_NVGPUCTRPERM"))
    with pytest.raises(SkipStepError, match="run it as root"):
        gpu_profile.run_all(Plan(seconds=240.0), _silent)
    monkeypatch.setattr(gpu_profile, "run", lambda *_: (1, "==ERROR== broken"))
    with pytest.raises(StepError, match="ended with status 1"):
        gpu_profile.run_all(Plan(seconds=240.0), _silent)
    with pytest.raises(StepError, match="no time was left for spectral norm, forward"):
        gpu_profile.run_all(Plan(seconds=1.0), _silent)
    monkeypatch.setattr(gpu_profile, "find_tool", lambda *_: None)
    with pytest.raises(SkipStepError, match="install Nsight Compute"):
        gpu_profile.run_all(Plan(), _silent)


# --- values ------------------------------------------------------------------------------------


@pytest.fixture
def wrong_launcher(monkeypatch):
    """Kernels whose outputs are off by a thousandth."""
    right = gpu_norm.ops.spectral_norm

    def wrong(*args, **kwargs):
        outputs, sigma = right(*args, **kwargs)
        if _library._backend == "native":
            outputs = [x * 1.001 for x in outputs]
        return outputs, sigma

    monkeypatch.setattr(gpu_norm.ops, "spectral_norm", wrong)


def test_workout_passes_on_the_cpu():
    for case in gpu_steps.CASES:
        assert gpu_workout.check_case(case, "cpu")["share of tolerance"] <= 1


def test_wrong_values_are_caught(wrong_launcher):
    step = next(step for step in gpu_steps.STEPS if step.name == "values")
    result = gpu_check.attempt(step, Plan(dry_run=True), _silent)
    assert result["status"] == gpu_check.FAILED
    assert "float32: " in result["reason"]
    assert "times what is tolerated" in result["reason"]


def test_wrong_values_are_caught_before_they_are_timed(wrong_launcher):
    step = next(step for step in gpu_steps.STEPS if step.name == "benchmark")
    result = gpu_check.attempt(step, Plan(dry_run=True), _silent)
    assert result["status"] == gpu_check.FAILED
    assert "gankernels fused is off by 1.0e-03 from float64" in result["reason"]


@pytest.fixture
def wrong_penalty(monkeypatch):
    """Kernels whose penalties are off by a thousandth."""
    right = gpu_norm.ops.gradient_penalty

    def wrong(*args, **kwargs):
        found = right(*args, **kwargs)
        if _library._backend == "reference":
            return found
        if isinstance(found, tuple):
            return found[0] * 1.001, found[1]
        return found * 1.001

    monkeypatch.setattr(gpu_norm.ops, "gradient_penalty", wrong)


def test_wrong_penalties_are_caught(wrong_penalty):
    steps = {step.name: step for step in gpu_steps.STEPS}
    result = gpu_check.attempt(steps["values"], Plan(dry_run=True), _silent)
    assert result["status"] == gpu_check.FAILED
    assert "penalty of 131 gradients: " in result["reason"]
    result = gpu_check.attempt(steps["penalties"], Plan(dry_run=True), _silent)
    assert result["status"] == gpu_check.FAILED
    assert (
        "penalty: WrongResultError: gankernels is off by 1.0e-03 from float64" in result["reason"]
    )
    assert {row["kind"] for row in result["facts"]["rows"]} == {EAGER}


def test_wrong_contestants_of_ours_fail_the_benchmark(monkeypatch):
    def wrong(contestant, weights):
        if contestant.kind == FUSED:
            raise WrongResultError("off by 1e-3")
        return 0.0

    monkeypatch.setattr(spectral_norm, "check", wrong)
    step = next(step for step in gpu_steps.STEPS if step.name == "benchmark")
    result = gpu_check.attempt(step, Plan(dry_run=True), _silent)
    assert result["status"] == gpu_check.FAILED
    assert "WrongResultError: off by 1e-3" in result["reason"]
    assert {row["kind"] for row in result["facts"]["rows"]} == {TORCH, LAYER}


def test_the_reference_in_place_of_the_kernels_is_caught(monkeypatch):
    monkeypatch.setattr(_library, "NATIVE_DEVICES", frozenset())
    with pytest.raises(ValueError, match="got the reference"):
        gpu_workout.check_case(gpu_norm.CASES[0], "cpu")


def test_a_step_that_differs_is_caught(monkeypatch):
    right, calls = gpu_norm.training_step, []

    def drifting(case, given):
        results = right(case, given)
        calls.append(1)
        if len(calls) == 3:
            results["gradients"][1].view(-1)[0] += 1e-6
        return results

    case = gpu_norm.REPEATED[0]
    gpu_exact.repeat(case, "cpu", 3)
    monkeypatch.setattr(gpu_norm, "training_step", drifting)
    with pytest.raises(ValueError, match=r"run 3 differs .* gradients\[1\]"):
        gpu_exact.repeat(case, "cpu", 4)


def test_differences_are_of_bytes():
    zero = {"x": [torch.tensor([0.0, float("nan")])]}
    assert gpu_exact.difference(zero, zero) is None
    assert gpu_exact.difference(zero, {"x": [torch.tensor([-0.0, float("nan")])]}) == (
        "x[0] of shape (2,)"
    )


def test_promised_launches():
    found = [
        gpu_measure.promised(op, which, n)
        for op, passes in gpu_measure.PROMISED.items()
        for n in (1, 64, 65)
        for which in passes
    ]
    assert found == [4, 2, 4, 2, 8, 4, 2, 1, 3, 2, 1, 3, 4, 2, 6]


# --- the page ----------------------------------------------------------------------------------


def _spread(median):
    return {"median": median, "q25": median, "q75": median, "count": 5}


def test_page_of_a_made_up_gpu():
    row = {"network": "net<1>", "pass": "forward", "error": 1e-7, "times_faster": _spread(3.5)}
    slow = row | {"kind": TORCH, "seconds": _spread(7e-4), "times_faster": _spread(1.0)}
    rows = [slow, row | {"kind": FUSED, "seconds": _spread(2e-4)}]
    left_out = [{"network": "net<1>", "kind": "compiled", "reason": "no compiler"}]
    penalty = row | {"network": "gradient (2, 3)", "seconds": _spread(4e-5)}
    penalties = [penalty | {"kind": EAGER}, penalty | {"kind": PENALTY, "error": 2e-7}]
    augmented = [row | {"kind": kind, "seconds": _spread(1e-3), "before": 2e-3}
                 for kind in (gpu_measure.PUBLISHED, "gankernels")]  # fmt: skip
    moved = {"network": "net<1>", "pass": "forward", "bytes": 8_000_000, "timed": "CUDA graph"}
    moved |= {"seconds": _spread(1e-5), "bytes_per_second": 8e11, "of_copy": 0.8}
    launched = {
        "op": "spectral norm",
        "tensors": 65,
        "pass": "forward",
        "kernels": 6,
        "promised": 8,
        "names": ["a"],
    }
    facts = {
        "benchmark": {"rows": rows, "left_out": left_out},
        "augmentation": {"rows": augmented, "left_out": []},
        "profile": {"rows": [{"pass": "resampling, forward", **gpu_profile.parse(NCU)[0]}]},
        "penalties": {"rows": penalties, "left_out": []},
        "bandwidth": {"copy_bytes_per_second": 1e12, "rows": [moved | {"fits_in_l2": True}]},
        "launches": {"rows": [launched | {"copies and fills": 1}]},
        "sanitizer": {
            "rows": [gpu_tools.judge_sanitizer("memcheck", gpu_tools.FOUND_ERRORS, OUT_OF_BOUNDS)]
        },
    }
    steps = [
        {
            "name": name,
            "title": name,
            "status": "passed",
            "reason": "",
            "seconds": 1.0,
            "facts": f,
            "part": 1,
        }
        for name, f in facts.items()
    ]
    report = {"what": "", "dry_run": False, "device": "Made-up GPU (80 GB)", "started": "today"}
    report |= {"seconds": 4.0, "steps": steps, "failed": [], "full": False}
    html = gpu_page.render(report)
    assert gpu_check.file_name(report) == "made-up-gpu-80-gb"
    assert gpu_page.DRY_RUN not in html
    for text in ("2000.0", "void resample", "published pipeline"):
        assert text in html
    for text in ("<svg", "3.50", "700.0", "net&lt;1&gt;", "80 %", "no compiler", "Invalid __glo"):
        assert text in html
    assert "net<1>" not in html
    assert html.count("<svg") == 3
    assert "gradient (2, 3)" in html
    gpu_check.show(report["steps"])
