"""The steps of the check: what each does on a GPU, and what a dry run does of it on the CPU."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.core import environment
from benchmarks.gpu import augmentation, exact, gradient_penalty, measure, spectral_norm, tools
from benchmarks.gpu.tools import StepError
from benchmarks.gpu.workout import Results, Workout, check_all
from benchmarks.suites.spectral_norm import FUSED, build
from gankernels import info

Facts = dict[str, Any]
Say = Callable[[str], None]

RUNS = 100  # of the same step, which must be equal to the byte
REPLAYS = 10
CASES: tuple[Workout, ...] = (
    *spectral_norm.CASES,
    *gradient_penalty.CASES,
    *augmentation.CASES,
)
REPEATED: tuple[Workout, ...] = (
    *spectral_norm.REPEATED,
    *gradient_penalty.REPEATED,
    *augmentation.REPEATED,
)


@dataclass(frozen=True)
class Plan:
    """How the steps are run."""

    dry_run: bool = False
    full: bool = False

    @property
    def device(self) -> str:
        return "cpu" if self.dry_run else "cuda"


@dataclass(frozen=True)
class Step:
    """`run` gives facts or raises; `apart`: in a process of its own, as a fault ends CUDA there."""

    name: str
    title: str
    run: Callable[[Plan, Say], Facts]
    apart: bool = True
    timeout_s: float = 1800.0


def refusal() -> str | None:
    """Why nothing can be checked here, with the cure; None where there is a GPU and its kernels."""
    status = info.extension("_C_cuda", info.build_info())
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} is built without CUDA: install a CUDA build of torch, then "
            "reinstall gankernels."
        )
    if not torch.cuda.is_available():
        return (
            "there is no GPU that torch can use: run this where nvidia-smi lists one, or try "
            "--dry-run."
        )
    if not status["loaded"]:
        return f"gankernels._C_cuda is not loaded, {status['reason']}: {status['cure']}."
    return None


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip().splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        pass
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def _environment(plan: Plan, say: Say) -> Facts:
    facts = environment.facts()
    ours = facts.pop("gankernels")
    if "error" in ours:
        raise StepError(f"python -m gankernels.info: {ours['error']}", facts)
    build = (ours["build"] or {}).get("cuda", {})
    facts |= {
        "gankernels": ours["gankernels"],
        "cuda of torch": torch.version.cuda,
        "driver": _driver(),
        "nvcc": build.get("nvcc", build.get("left_out", "unknown")),
        "compiled": ", ".join(info.architectures(build.get("arch_flags", []))) or "none",
        "extensions": {name: e["path"] or e["reason"] for name, e in ours["extensions"].items()},
        "self-test": [
            {key: test[key] for key in ("op", "device", "max_error", "passed")}
            for test in ours["self_test"]
        ],
        "missing": [f"{gap['what']}: {gap['why']}; {gap['cure']}" for gap in ours["missing"]],
    }
    if ours["gpu"]:
        facts |= {"gpu": ours["gpu"]["name"], "architecture": ours["gpu"]["architecture"]}
    if plan.dry_run:
        return facts
    on_gpu = [test for test in ours["self_test"] if test["device"] == "cuda"]
    if not on_gpu or not all(test["passed"] for test in on_gpu):
        raise StepError("the self-test on cuda does not pass", facts)
    if not ours["gpu"]["covered"]:
        raise StepError("the kernels are compiled for other architectures", facts)
    return facts


def _tests(plan: Plan, say: Say) -> Facts:
    return tools.collect_tests() if plan.dry_run else tools.run_tests()


def _values(plan: Plan, say: Say) -> Facts:
    return {"device": plan.device, "rows": check_all(CASES, plan.device, say)}


def _sanitizer(plan: Plan, say: Say) -> Facts:
    return tools.plan_sanitizer() if plan.dry_run else tools.run_sanitizer(say)


def _repeated(plan: Plan) -> list[Workout]:
    return [case for case in REPEATED if not (plan.dry_run and "large" in case.name)]


def _graph(plan: Plan, say: Say) -> Facts:
    """Ops with second order, and a fused model with and without gradients."""
    done, wrong = [], []
    for case in _repeated(plan):
        say(case.name)
        try:
            _compare_case(plan, case)
            done.append(case.name)
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
    shapes = measure.chosen(False, plan.dry_run)[0].weights
    weights, grads = measure.tensors(shapes, plan.device)
    model = build(FUSED, weights, grads)
    for backward in (False, True):
        name = f"fused model, {'forward + backward' if backward else 'forward'}"
        say(name)
        try:
            if plan.dry_run:
                measure.fused_step(model, backward)
            else:
                measure.captured_model(model, backward, REPLAYS)
            done.append(name)
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
    facts: Facts = {"device": plan.device, "equal": done, "wrong": wrong}
    if wrong:
        raise StepError("; ".join(wrong), facts)
    return facts if plan.dry_run else facts | {"replays": REPLAYS}


def _compare_case(plan: Plan, case: Workout) -> None:
    given = case.data(plan.device)

    def step() -> Results:
        return case.works()[0](given)

    if plan.dry_run:
        step()
        given.reset()
        step()
    else:
        exact.compare_with_graph(case.name, step, given.reset, REPLAYS)


def _determinism(plan: Plan, say: Say) -> Facts:
    runs = 3 if plan.dry_run else RUNS
    done, wrong = [], []
    for case in _repeated(plan):
        say(case.name)
        try:
            exact.repeat(case, plan.device, runs)
            done.append(case.name)
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
    facts: Facts = {"device": plan.device, "runs": runs, "equal": done, "wrong": wrong}
    if wrong:
        raise StepError("; ".join(wrong), facts)
    return facts


def _launches(plan: Plan, say: Say) -> Facts:
    facts = measure.launches(plan.device, plan.dry_run, say)
    if plan.dry_run:
        return facts
    if not all(row["kernels"] for row in facts["rows"]):
        raise StepError("the profiler saw no kernel of a pass; may it count on this GPU?", facts)
    over = [row for row in facts["rows"] if row["kernels"] > row["promised"]]
    if over:
        told = [f"{r['op']} of {r['tensors']}, {r['pass']}: {r['kernels']}" for r in over]
        raise StepError("more launches than promised: " + ", ".join(told), facts)
    return facts


def _timed(facts: Facts) -> Facts:
    """Fails where ours could not be timed."""
    ours = [gone for gone in facts["left_out"] if gone["kind"] in measure.OURS]
    if ours:
        told = [f"{gone['network']}, {gone['kind']}: {gone['reason']}" for gone in ours]
        raise StepError("; ".join(told), facts)
    return facts


def _benchmark(plan: Plan, say: Say) -> Facts:
    return _timed(measure.benchmark(plan.device, plan.full, plan.dry_run, say))


def _penalties(plan: Plan, say: Say) -> Facts:
    return _timed(measure.penalties(plan.device, plan.dry_run, say))


def _bandwidth(plan: Plan, say: Say) -> Facts:
    return measure.bandwidth(plan.device, plan.full, plan.dry_run, say)


STEPS = (
    Step("environment", "GPU, driver, versions, self-test", _environment, apart=False),
    Step("tests", "Tests of the operators on CUDA", _tests, apart=False),
    Step("values", "Awkward tensors against float64", _values),
    Step("sanitizer", "compute-sanitizer", _sanitizer, apart=False),
    Step("graph", "Captured in a CUDA graph, bit for bit", _graph),
    Step("determinism", f"{RUNS} runs, equal to the byte", _determinism),
    Step("launches", "Kernel launches", _launches),
    Step("benchmark", "Times against torch", _benchmark, timeout_s=3600.0),
    Step("penalties", "Times of gradient penalties against torch", _penalties),
    Step("bandwidth", "Bytes over time", _bandwidth),
)
