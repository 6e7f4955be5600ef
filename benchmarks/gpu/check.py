"""`python -m benchmarks.gpu.check`: confirms on a machine with a GPU all that needs one.

It has five parts, each of which ends within eight minutes, whatever becomes of those before it:

    1  environment and build
    2  values, CUDA graphs, determinism, launches, side streams, a second GPU
    3  all tests of the backend cuda
    4  times and bandwidth: augmentation, penalties, spectral normalization
    5  Nsight Compute, compute-sanitizer

What is found goes into a JSON file and an HTML page of the GPU's name, where it takes the place of
what the same steps found before. The exit status is 0 if no step failed, 1 if one did, and 2 where
there is nothing to check on. `--dry-run` goes through it without a GPU and measures nothing.
Packages: torch, numpy, pytest, and pytest-xdist if it is there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.core.environment import ROOT
from benchmarks.gpu import page, profile
from benchmarks.gpu.plan import NO_TIME, Plan, Say, SkipStepError, StepError
from benchmarks.gpu.steps import CASES, PARTS, STEPS, Part, Step, no_kernels, refusal
from benchmarks.gpu.tools import tail
from benchmarks.gpu.workout import check_all
from build_support.cuda import fingerprint

Facts = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "results" / "gpu-check"
#: What was measured before and is kept: a file for each GPU, to compare with.
MEASURED = Path(__file__).parent / "measured"
PASSED, FAILED, SKIPPED, NOT_RUN = "passed", "failed", "skipped", "not run"
DRY_REASON = "dry run; its parts without CUDA work"
PROGRESS = "progress: "
LEAST_SECONDS = 5.0  # a step is not begun for less


# --- a step ------------------------------------------------------------------------------------


def attempt(step: Step, plan: Plan, say: Say) -> Facts:
    """Runs a step in this process: status, reason and facts, whatever it raises."""
    try:
        if step.needs_kernels and not plan.dry_run and (reason := no_kernels()):
            raise StepError(reason)
        facts = step.run(plan, say)
    except SkipStepError as skip:
        return {"status": SKIPPED, "reason": str(skip), "facts": {}}
    except StepError as failure:
        return {"status": FAILED, "reason": str(failure), "facts": failure.facts}
    except Exception as error:
        return {"status": FAILED, "reason": f"{type(error).__name__}: {error}", "facts": {}}
    if plan.dry_run:
        return {"status": NOT_RUN, "reason": DRY_REASON, "facts": facts}
    return {"status": PASSED, "reason": "", "facts": facts}


def attempt_apart(step: Step, plan: Plan, say: Say) -> Facts:
    """Runs a step in a process of its own, and survives its end."""
    with tempfile.TemporaryDirectory() as folder:
        result, errors = Path(folder, "result.json"), Path(folder, "errors.txt")
        kept = Path(folder, "kept.json")
        command = [sys.executable, "-m", "benchmarks.gpu.check", "--step", step.name]
        command += ["--result", str(result), "--kept", str(kept)]
        command += ["--seconds", str(plan.seconds)]
        command += [f"--{flag}" for flag in ("full",) if plan.full]
        command += ["--dry-run"] if plan.dry_run else []
        with errors.open("w") as error_file:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=error_file,
                text=True,
                start_new_session=True,
            )
            late = threading.Timer(plan.seconds, _end, (process,))
            late.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.startswith(PROGRESS):
                        say(line.removeprefix(PROGRESS).strip())
                status = process.wait()
            finally:
                timed_out = not late.is_alive()
                late.cancel()
                _end(process)  # where the user breaks off, and whatever it left behind
        if result.exists():
            found: Facts = json.loads(result.read_text())
            return found
        if timed_out:
            reason = f"stopped after {plan.seconds:.0f} s"
        elif status < 0:
            reason = f"its process was ended by {signal.Signals(-status).name}"
        else:
            reason = f"its process ended with status {status}"
        facts = json.loads(kept.read_text()) if kept.exists() else {}
        facts["output"] = tail(errors.read_text())
        return {"status": FAILED, "reason": reason, "facts": facts}


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process with all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run_part(part: Part, steps: Sequence[Step], plan: Plan) -> list[Facts]:
    """These steps of a part, in its time."""
    results: list[Facts] = []
    until = time.monotonic() + part.seconds
    for step in steps:
        start = time.monotonic()
        seconds = min(step.seconds, until - start)
        if seconds < LEAST_SECONDS:
            result: Facts = {"status": NOT_RUN, "reason": NO_TIME, "facts": {}}
        else:
            own = Plan(plan.dry_run, plan.full, seconds)
            # In a dry run one of them is enough to see that processes of their own work.
            apart = not plan.dry_run or step.name == "values"
            result = (attempt_apart if apart else attempt)(step, own, _progress(step.title))
        took = round(time.monotonic() - start, 2)
        result = {
            "name": step.name,
            "title": step.title,
            "part": PARTS.index(part) + 1 if part in PARTS else 0,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "sources": fingerprint(),
            "seconds": took,
            **result,
        }
        results.append(result)
        print(f"{_clear()}{result['status']:<8}{step.title} ({took:.0f} s)", flush=True)
        if result["reason"] and result["status"] != PASSED and result["reason"] != DRY_REASON:
            print(f"        {result['reason']}", flush=True)
    return results


def _clear() -> str:
    return "\r\033[K" if sys.stdout.isatty() else ""


def _progress(title: str) -> Say:
    """Says what a step is at, on one line of a terminal."""

    def say(text: str) -> None:
        if sys.stdout.isatty():
            print(f"{_clear()}{title}: {text}"[:78], end="", flush=True)

    return say


# --- the report --------------------------------------------------------------------------------


def start_report(plan: Plan) -> Facts:
    """A report without steps."""
    on_gpu = not plan.dry_run and torch.cuda.is_available()
    return {
        "what": page.DRY_RUN if plan.dry_run else "gankernels on a GPU",
        "dry_run": plan.dry_run,
        "full": plan.full,
        "device": torch.cuda.get_device_name() if on_gpu else "none",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "steps": [],
    }


def merged(report: Facts, results: Sequence[Facts]) -> Facts:
    """The report with these results, in the place of those that the same steps had."""
    steps = {step["name"]: step for step in [*report["steps"], *results]}
    order = [step.name for step in STEPS]
    order += [name for name in steps if name not in order]
    ordered = [steps[name] for name in order if name in steps]
    return report | {
        "steps": ordered,
        "seconds": round(sum(step["seconds"] for step in ordered), 1),
        "failed": [step["name"] for step in ordered if step["status"] == FAILED],
    }


def earlier(path: Path, report: Facts) -> Facts:
    """The report of that file, to be continued; the new one where there is none of this GPU."""
    try:
        found: Facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return report
    same = (found.get("device"), found.get("dry_run")) == (report["device"], report["dry_run"])
    return found if same and not report["dry_run"] else report


def compare(report: Facts, before: Facts) -> None:
    """Adds to every time how long the same took before."""
    known = {
        (step["name"], row["network"], row["pass"], row.get("kind")): row["seconds"]["median"]
        for step in before["steps"]
        for row in step["facts"].get("rows", [])
        if "seconds" in row
    }
    for step in report["steps"]:
        for row in step["facts"].get("rows", []):
            row.pop("before", None)
            key = (step["name"], row.get("network"), row.get("pass"), row.get("kind"))
            if "seconds" in row and key in known:
                row["before"] = known[key]


def file_name(report: Facts) -> str:
    """Of both files, without the ending: the device's name."""
    if report["dry_run"]:
        return "dry-run"
    return re.sub(r"[^a-z0-9]+", "-", report["device"].lower()).strip("-") or "gpu"


def write(report: Facts, out: Path) -> tuple[Path, Path]:
    out.mkdir(parents=True, exist_ok=True)
    data, html = (out / f"{file_name(report)}.{end}" for end in ("json", "html"))
    data.write_text(json.dumps(report, indent=1), encoding="utf-8")
    html.write_text(page.render(report), encoding="utf-8")
    return data, html


def show(steps: Sequence[Facts]) -> None:
    """What these steps found, in the terminal."""
    for step in steps:
        for title, header, rows in page.tables(step):
            cells = [header, *rows]
            widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
            print(f"\n{title}")
            for row in cells:
                line = [
                    cell.ljust(width) if i < 2 else cell.rjust(width)
                    for i, (cell, width) in enumerate(zip(row, widths, strict=True))
                ]
                print("  " + "  ".join(line).rstrip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    numbers = range(1, len(PARTS) + 1)
    parser.add_argument("--part", nargs="+", type=int, choices=numbers, help="these parts alone")
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=", ".join(names))
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: measures nothing")
    parser.add_argument("--full", action="store_true", help="every network of the benchmarks")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the two files")
    parser.add_argument(
        "--against",
        type=Path,
        help="a JSON file to compare times with; default: that of this GPU in "
        f"{MEASURED.relative_to(ROOT)}, if there is one",
    )
    parser.add_argument(
        "--workout",
        metavar="DEVICE",
        help='every operator on awkward tensors, and nothing else: "cuda" or "cpu"',
    )
    parser.add_argument("--profiled", help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=1e9, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--kept", type=Path, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    plan = Plan(chosen.dry_run, chosen.full, chosen.seconds, chosen.kept)
    if chosen.workout:
        check_all(CASES, chosen.workout, print)
        return 0
    if chosen.profiled:
        profile.run_pass(chosen.profiled, plan.device)
        return 0
    if chosen.step:
        step = next(step for step in STEPS if step.name == chosen.step)
        result = attempt(step, plan, lambda text: print(PROGRESS + text, flush=True))
        chosen.result.write_text(json.dumps(result))
        return 0
    if not plan.dry_run and (reason := refusal()):
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 2
    report = start_report(plan)
    report = earlier(chosen.out / f"{file_name(report)}.json", report)
    against = chosen.against or MEASURED / f"{file_name(report)}.json"
    results: list[Facts] = []
    for number, part in enumerate(PARTS, 1):
        steps = [step for step in part.steps if not chosen.only or step.name in chosen.only]
        if not steps or (chosen.part and number not in chosen.part):
            continue
        print(f"{_clear()}part {number}: {part.title}", flush=True)
        results += run_part(part, steps, plan)
        report = merged(report, results)
        if against.exists():
            compare(report, json.loads(against.read_text(encoding="utf-8")))
        data, html = write(report, chosen.out)  # what comes next may not end well
    if not results:
        print("gpu-check: none of these steps is in these parts", file=sys.stderr)
        return 2
    show(results)
    if plan.dry_run:
        print(f"\n{page.DRY_RUN}")
    failed = [result["name"] for result in results if result["status"] == FAILED]
    print(f"\n{'failed: ' + ', '.join(failed) if failed else 'no step failed'}")
    print(f"report  {html}\ndata    {data}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
