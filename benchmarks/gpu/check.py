"""`python -m benchmarks.gpu.check`: confirms on a machine with a GPU all that needs one.

Tests, values, compute-sanitizer, CUDA graphs, determinism, launches, times and bandwidth, one after
the other whatever becomes of each; then a JSON file and an HTML page. The exit status is 0 if no
step failed, 1 if one did, and 2 where there is nothing to check on. `--dry-run` goes through it
without a GPU and measures nothing.
"""

from __future__ import annotations

import argparse
import json
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
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.core.environment import ROOT
from benchmarks.gpu import page
from benchmarks.gpu.steps import CASES, STEPS, Plan, Say, Step, refusal
from benchmarks.gpu.tools import SkipStepError, StepError, tail
from benchmarks.gpu.workout import check_all

Facts = dict[str, Any]

RESULTS = ROOT / "benchmarks" / "results" / "gpu-check"
PASSED, FAILED, SKIPPED, NOT_RUN = "passed", "failed", "skipped", "not run"
DRY_REASON = "dry run; its parts without CUDA work"
PROGRESS = "progress: "
COLORS = {PASSED: "green", FAILED: "red", SKIPPED: "yellow", NOT_RUN: "dim"}


# --- a step ------------------------------------------------------------------------------------


def attempt(step: Step, plan: Plan, say: Say) -> Facts:
    """Runs a step in this process: status, reason and facts, whatever it raises."""
    try:
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
        command = [sys.executable, "-m", "benchmarks.gpu.check", "--step", step.name]
        command += ["--result", str(result)]
        command += [f"--{flag}" for flag in ("full",) if plan.full]
        command += ["--dry-run"] if plan.dry_run else []
        with errors.open("w") as error_file:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.PIPE, stderr=error_file, text=True
            )
            late = threading.Timer(step.timeout_s, process.kill)
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
                process.kill()  # where the user breaks off
        if result.exists():
            found: Facts = json.loads(result.read_text())
            return found
        if timed_out:
            reason = f"stopped after {step.timeout_s:.0f} s"
        elif status < 0:
            reason = f"its process was ended by {signal.Signals(-status).name}"
        else:
            reason = f"its process ended with status {status}"
        return {"status": FAILED, "reason": reason, "facts": {"output": tail(errors.read_text())}}


def run_steps(steps: Sequence[Step], plan: Plan, console: Console) -> list[Facts]:
    """Every step, behind a progress bar."""
    results: list[Facts] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(steps))
        for step in steps:

            def say(text: str, title: str = step.title) -> None:
                progress.update(task, description=f"{title}: {text}"[:70])

            progress.update(task, description=step.title)
            start = time.monotonic()
            # In a dry run one of them is enough to see that processes of their own work.
            apart = step.apart and (not plan.dry_run or step.name == "values")
            result = (attempt_apart if apart else attempt)(step, plan, say)
            seconds = round(time.monotonic() - start, 2)
            result = {"name": step.name, "title": step.title, "seconds": seconds, **result}
            results.append(result)
            mark = f"[{COLORS[result['status']]}]{result['status']}[/]"
            progress.console.print(f"{mark} {step.title} ({seconds:.0f} s)", highlight=False)
            if result["reason"] and result["status"] in (FAILED, SKIPPED):
                progress.console.print(f"  {result['reason']}", markup=False, highlight=False)
            progress.advance(task)
    return results


# --- the report --------------------------------------------------------------------------------


def check(steps: Sequence[Step], plan: Plan, console: Console) -> Facts:
    """The whole report, as data."""
    start = time.monotonic()
    on_gpu = not plan.dry_run and torch.cuda.is_available()
    report: Facts = {
        "what": page.DRY_RUN if plan.dry_run else "gankernels on a GPU",
        "dry_run": plan.dry_run,
        "full": plan.full,
        "device": torch.cuda.get_device_name() if on_gpu else "none",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    report["steps"] = run_steps(steps, plan, console)
    report["seconds"] = round(time.monotonic() - start, 1)
    report["failed"] = [step["name"] for step in report["steps"] if step["status"] == FAILED]
    return report


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


def show(report: Facts, console: Console) -> None:
    """What was found, in the terminal."""
    for step in report["steps"]:
        for title, header, rows in page.tables(step):
            table = Table(title=title)
            for i, name in enumerate(header):
                table.add_column(name, justify="left" if i < 2 else "right")
            for row in rows:
                table.add_row(*row)
            console.print(table)
    if report["dry_run"]:
        console.print(page.DRY_RUN)
    failed = report["failed"]
    console.print(f"failed: {', '.join(failed)}" if failed else "no step failed", highlight=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="without a GPU: measures nothing")
    parser.add_argument("--full", action="store_true", help="every network of the benchmarks")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the two files")
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=", ".join(names))
    parser.add_argument(
        "--workout",
        metavar="DEVICE",
        help='every operator on awkward tensors, and nothing else: "cuda" or "cpu"',
    )
    parser.add_argument("--step", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    plan = Plan(chosen.dry_run, chosen.full)
    if chosen.workout:
        check_all(CASES, chosen.workout, print)
        return 0
    if chosen.step:
        step = next(step for step in STEPS if step.name == chosen.step)
        result = attempt(step, plan, lambda text: print(PROGRESS + text, flush=True))
        chosen.result.write_text(json.dumps(result))
        return 0
    if not plan.dry_run and (reason := refusal()):
        print(f"gpu-check: {reason}", file=sys.stderr)
        return 2
    console = Console()
    steps = [step for step in STEPS if not chosen.only or step.name in chosen.only]
    report = check(steps, plan, console)
    show(report, console)
    data, html = write(report, chosen.out)
    console.print(f"\nreport  {html}\ndata    {data}", soft_wrap=True, highlight=False)
    return 1 if report["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
