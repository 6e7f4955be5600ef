"""pytest and compute-sanitizer as processes, and what their output says."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.core.environment import ROOT
from benchmarks.gpu.plan import NO_TIME, Facts, Plan, Say, SkipStepError, StepError

STOPPED = 124  # the exit status of what was not given more time
GRACE_SECONDS = 20.0
TAIL = 30  # lines of an output that are kept where something failed


def tail(text: str, lines: int = TAIL) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def errors(text: str, lines: int = 5) -> str:
    """The first lines that a compiler calls errors, then the end."""
    found = [line.strip() for line in text.splitlines() if re.search(r"\berror\b", line)]
    return "\n".join([*found[:lines], "...", tail(text)]) if found else tail(text)


def run(command: list[str], timeout_s: float, **variables: str) -> tuple[int, str]:
    """Exit status (124 where time ran out) and what was printed.

    Where time runs out, the process is asked to end, as by Ctrl-C, so that it says what it knows.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Where it is ignored here, as in a script's background, it would be there, too.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        note = ""
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            note = f"\nstopped after {timeout_s:.0f} s\n"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):  # the workers that it left behind
                os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        output.seek(0)
        return STOPPED if note else status, output.read() + note


# --- tests -------------------------------------------------------------------------------------

# The fixtures `backend` and `device` put "cuda" into the brackets of a test's id, first or behind a
# dash. The files left out test the build and this check.
SELECTION = "[cuda or -cuda"
LEFT_OUT = ("tests/project/test_build_cuda.py", "tests/bench/test_gpu_check.py")
PROCESSES = 8
MEMORY_PER_PROCESS = 3 << 30  # of the GPU: a context, the kernels of torch, a test
FEW_THREADS = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}


def pytest_command(*more: str) -> list[str]:
    ignored = [f"--ignore={path}" for path in LEFT_OUT]
    quiet = ["-q", "--color=no", "--tb=short", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", "tests", "-k", SELECTION, *quiet, *ignored, *more]


def in_processes() -> list[str]:
    """How pytest is told to use several processes, which share the GPU; nothing without xdist."""
    if importlib.util.find_spec("xdist") is None:
        return []
    memory = torch.cuda.get_device_properties(0).total_memory
    count = min(PROCESSES, os.cpu_count() or 1, memory // MEMORY_PER_PROCESS)
    return ["-n", str(max(1, count)), "--dist", "worksteal"]


def parse_pytest(output: str) -> dict[str, int] | None:
    """The counts of pytest's last summary line; None where there is none."""
    for line in reversed(output.splitlines()):
        if not re.search(r" in [\d.]+s\b", line):
            continue
        counts = re.findall(r"(\d+) (passed|failed|skipped|deselected|error|xfailed|xpassed)", line)
        if counts or "no tests ran" in line:
            return {name: int(count) for count, name in counts}
    return None


def parse_collection(output: str) -> int | None:
    """How many tests `pytest --collect-only` selected; None where it does not say."""
    for line in reversed(output.splitlines()):
        if re.search(r"\bno tests (collected|ran)\b", line):
            return 0
        if found := re.search(r"(\d+)(?:/\d+)? tests? collected", line):
            return int(found[1])
    return None


def judge_pytest(status: int, output: str) -> Facts:
    """The facts of a run; StepError where a test failed, or none ran."""
    counts = parse_pytest(output)
    facts: Facts = {"exit status": status, "counts": counts or {}}
    facts["failures"] = [
        line for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))
    ]
    if counts is None:
        raise StepError("pytest ended without a summary", facts | {"output": tail(output)})
    ran = sum(n for name, n in counts.items() if name not in ("skipped", "deselected"))
    if ran == 0:
        skipped = counts.get("skipped", 0)
        why = f"all {skipped} selected tests were skipped" if skipped else "no test was selected"
        raise StepError(why, facts | {"output": tail(output)})
    if status != 0 or counts.get("failed") or counts.get("error"):
        bad = counts.get("failed", 0) + counts.get("error", 0)
        why = f"{bad} of {ran} tests failed"
        if status == STOPPED:
            why += ", and time ran out before all had run"
        raise StepError(why, facts | {"output": tail(output)})
    return facts


def run_tests(seconds: float) -> Facts:
    return judge_pytest(*run(pytest_command(*in_processes()), seconds, **FEW_THREADS))


def collect_tests(seconds: float) -> Facts:
    """How many tests would run."""
    status, output = run(pytest_command("--collect-only"), seconds)
    count = parse_collection(output)
    if count is None:
        raise StepError(f"pytest cannot collect (exit status {status})", {"output": tail(output)})
    return {"selection": SELECTION, "selected": count}


# --- compute-sanitizer -------------------------------------------------------------------------

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_SECONDS = 10.0  # the least that a tool is started for
FOUND_ERRORS = 86  # compute-sanitizer's exit status where it found something
# torch's caching allocator hands out parts of large blocks, whose ends no tool can see.
NO_CACHING = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
# torch asks the driver things that it may refuse, which is no error.
MEMCHECK = ("--report-api-errors", "no", "--padding", "256")
CURE = (
    'compute-sanitizer was not found: put it on the PATH, or pip install "cuda-toolkit[sanitizer]"'
)


def find_tool(name: str, *folders: str) -> str | None:
    """A tool of CUDA on the PATH, in these folders, of the toolkit, or of its package."""
    if found := shutil.which(name):
        return found
    homes = [os.environ.get(variable, "") for variable in ("CUDA_HOME", "CUDA_PATH")]
    places = [Path(home) for home in [*homes, "/usr/local/cuda"] if home]
    packages = {sysconfig.get_path(scheme) for scheme in ("purelib", "platlib")}
    places += [place for path in sorted(packages) for place in Path(path).glob("nvidia/*")]
    candidates = [place / folder / name for place in places for folder in ("bin", name)]
    for folder in folders:
        candidates += [place / name for place in sorted(Path("/").glob(folder), reverse=True)]
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and candidate.is_file():
            return str(candidate)
    return None


def find_sanitizer() -> str | None:
    return find_tool("compute-sanitizer")


def workout_command(device: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.check", "--workout", device]


def sanitizer_command(sanitizer: str, tool: str) -> list[str]:
    return [sanitizer, *sanitizer_options(tool), *workout_command("cuda")]


def sanitizer_options(tool: str) -> list[str]:
    options = ["--tool", tool, "--error-exitcode", str(FOUND_ERRORS), "--print-limit", "50"]
    return options + (list(MEMCHECK) if tool == "memcheck" else [])


def parse_sanitizer(output: str) -> Facts:
    """Number of errors by the summary, None where there is none, and the first few in words."""
    errors: int | None = None
    messages: list[str] = []
    for line in output.splitlines():
        if not line.startswith("========="):
            continue
        text = line.removeprefix("=========")
        if found := re.search(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", text):
            errors = int(found[1])
        # An error's first line is indented by a space, its details by more.
        elif re.match(r" \S", text) and "SUMMARY" not in text and "COMPUTE-SANITIZER" not in text:
            messages.append(text.strip())
    return {"errors": errors, "messages": list(dict.fromkeys(messages))[:10]}


def judge_sanitizer(tool: str, status: int, output: str) -> Facts:
    """One tool's row: passed only with a summary of no errors and a workout that went well."""
    found = parse_sanitizer(output)
    row: Facts = {"tool": tool, "exit status": status, **found}
    row["passed"] = status == 0 and found["errors"] == 0
    if not row["passed"]:
        row["output"] = tail(output)
    return row


def run_sanitizer(plan: Plan, say: Say) -> Facts:
    """Every tool on the workout, in shares of the time."""
    sanitizer = find_sanitizer()
    if sanitizer is None:
        raise SkipStepError(CURE)
    facts: Facts = {"sanitizer": sanitizer, "rows": [], "no time for": []}
    for i, tool in enumerate(TOOLS):
        seconds = (plan.left() - GRACE_SECONDS) / (len(TOOLS) - i)
        if seconds < SANITIZER_SECONDS:
            facts["no time for"].append(tool)
            continue
        say(tool)
        command = sanitizer_command(sanitizer, tool)
        row = judge_sanitizer(tool, *run(command, seconds, **NO_CACHING))
        facts["rows"].append(row)
        plan.keep(facts)
    bad = [row["tool"] for row in facts["rows"] if not row["passed"]]
    if bad:
        raise StepError(f"not clean: {', '.join(bad)}", facts)
    if facts["no time for"]:
        raise StepError(f"{NO_TIME} for {', '.join(facts['no time for'])}", facts)
    return facts


def plan_sanitizer() -> Facts:
    """What would run."""
    sanitizer = find_sanitizer()
    planned = ["compute-sanitizer " + " ".join(sanitizer_options(tool)) for tool in TOOLS]
    return {"sanitizer": sanitizer or CURE, "planned": planned}
