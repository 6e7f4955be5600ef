"""pytest and compute-sanitizer as processes, and what their output says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from benchmarks.core.environment import ROOT

Facts = dict[str, Any]

TAIL = 30  # lines of an output that are kept where something failed


class StepError(Exception):
    """A step found something wrong, and these facts on the way."""

    def __init__(self, reason: str, facts: Facts | None = None) -> None:
        super().__init__(reason)
        self.facts = facts or {}


class SkipStepError(Exception):
    """A step lacks something; the message says what, and the cure."""


def tail(text: str, lines: int = TAIL) -> str:
    return "\n".join(text.strip().splitlines()[-lines:])


def _run(command: list[str], timeout_s: float, **variables: str) -> tuple[int, str]:
    """Exit status (124 where time ran out) and what was printed."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
        text = output.decode(errors="replace") if isinstance(output, bytes) else output
        return 124, f"{text}\nstopped after {timeout_s:.0f} s"
    return done.returncode, done.stdout


# --- tests -------------------------------------------------------------------------------------

# The fixture `backend` puts "cuda" into the brackets of a test's id, first or behind a dash. The
# files left out test the build and this check, not operators.
SELECTION = "[cuda or -cuda"
LEFT_OUT = ("tests/project/test_build_cuda.py", "tests/bench/test_gpu_check.py")
TESTS_SECONDS = 3600.0


def pytest_command(*more: str) -> list[str]:
    ignored = [f"--ignore={path}" for path in LEFT_OUT]
    quiet = ["-q", "--color=no", "--tb=short", "-p", "no:cacheprovider"]
    return [sys.executable, "-m", "pytest", "tests", "-k", SELECTION, *quiet, *ignored, *more]


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
        raise StepError(f"{bad} of {ran} tests failed", facts | {"output": tail(output)})
    return facts


def run_tests() -> Facts:
    return judge_pytest(*_run(pytest_command(), TESTS_SECONDS))


def collect_tests() -> Facts:
    """How many tests would run."""
    status, output = _run(pytest_command("--collect-only"), TESTS_SECONDS)
    count = parse_collection(output)
    if count is None:
        raise StepError(f"pytest cannot collect (exit status {status})", {"output": tail(output)})
    return {"selection": SELECTION, "selected": count}


# --- compute-sanitizer -------------------------------------------------------------------------

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SANITIZER_SECONDS = 1200.0
FOUND_ERRORS = 86  # compute-sanitizer's exit status where it found something
# torch's caching allocator hands out parts of large blocks, whose ends no tool can see.
NO_CACHING = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
# torch asks the driver things that it may refuse, which is no error.
MEMCHECK = ("--report-api-errors", "no", "--padding", "256")
CURE = (
    'compute-sanitizer was not found: put it on the PATH, or pip install "cuda-toolkit[sanitizer]"'
)


def find_sanitizer() -> str | None:
    """compute-sanitizer on the PATH, of the toolkit, or of its package."""
    if found := shutil.which("compute-sanitizer"):
        return found
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [Path(home) for home in [*homes, "/usr/local/cuda"] if home]
    packages = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    places += [place for path in sorted(packages) for place in Path(path).glob("nvidia/*")]
    for place in places:
        for folder in ("bin", "compute-sanitizer"):
            candidate = place / folder / "compute-sanitizer"
            if os.access(candidate, os.X_OK) and candidate.is_file():
                return str(candidate)
    return None


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


def run_sanitizer(say: Any) -> Facts:
    """Every tool on the workout."""
    sanitizer = find_sanitizer()
    if sanitizer is None:
        raise SkipStepError(CURE)
    rows = []
    for tool in TOOLS:
        say(tool)
        command = sanitizer_command(sanitizer, tool)
        rows.append(judge_sanitizer(tool, *_run(command, SANITIZER_SECONDS, **NO_CACHING)))
    facts: Facts = {"sanitizer": sanitizer, "rows": rows}
    bad = [row["tool"] for row in rows if not row["passed"]]
    if bad:
        raise StepError(f"not clean: {', '.join(bad)}", facts)
    return facts


def plan_sanitizer() -> Facts:
    """What would run."""
    sanitizer = find_sanitizer()
    planned = ["compute-sanitizer " + " ".join(sanitizer_options(tool)) for tool in TOOLS]
    return {"sanitizer": sanitizer or CURE, "planned": planned}
