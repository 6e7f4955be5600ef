"""The steps of the check: what each does on a GPU, and what a dry run does of it on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.core import environment
from benchmarks.gpu import exact, measure, measure_augmentation, profile, tools
from benchmarks.gpu.plan import Facts, Plan, Say, SkipStepError, StepError
from benchmarks.gpu.workout import Results, Workout, check_all
from benchmarks.gpu.workouts import augmentation, gradient_penalty, spectral_norm
from benchmarks.suites.spectral_norm import FUSED, build
from build_support import cuda
from gankernels import _library, info

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
class Step:
    """`run` gives facts or raises. It has a process of its own, as a fault ends CUDA in it."""

    name: str
    title: str
    run: Callable[[Plan, Say], Facts]
    #: The most that it may take of its part.
    seconds: float = 120.0
    needs_kernels: bool = True


@dataclass(frozen=True)
class Part:
    """Steps that one command runs: within the time that a machine may be lent for."""

    title: str
    steps: tuple[Step, ...]
    seconds: float = 480.0


def refusal() -> str | None:
    """Why nothing can be checked here, with the cure; None where torch can use a GPU."""
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
    return None


def no_kernels() -> str | None:
    """Why the kernels cannot be run, with the cure; None where they are loaded."""
    status = info.extension("_C_cuda", info.build_info())
    if status["loaded"]:
        return None
    return f"gankernels._C_cuda is not loaded, {status['reason']}: {status['cure']}."


# --- the build ---------------------------------------------------------------------------------


def outdated() -> str | None:
    """Why the extension modules have to be built; None where they are of these sources and load."""
    build = info.build_info()
    for name, status in _library.EXTENSIONS.items():
        if not status.loaded:
            return f"gankernels.{name}: {status.reason}"
    if build is None or build.get("sources") != cuda.fingerprint():
        return "they were built from other sources"
    gpu = info.gpu(build)
    if gpu is not None and not gpu["covered"]:
        return f"they are for {', '.join(gpu['compiled'])}, the GPU is {gpu['architecture']}"
    return None


def _build(plan: Plan, say: Say) -> Facts:
    """Takes binaries of these sources for the GPU that is there, or compiles them in place."""
    reason = outdated()
    facts: Facts = {"python": sys.executable, "because": reason or "", "built": reason is not None}
    # What is there is good enough for a dry run, which must not change the working tree.
    if reason is None or (plan.dry_run and _library.EXTENSIONS["_C"].loaded):
        return facts | {"built": False}
    say("compiling")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    variables = {"GANKERNELS_CUDA": os.environ.get("GANKERNELS_CUDA", "1")}
    status, output = tools.run(command, plan.left() - 5, **variables)
    if status != 0:
        facts["output"] = tools.errors(output)
        raise StepError(f"setup.py ended with status {status}", facts)
    return facts


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
    if reason := no_kernels():
        raise StepError(reason, facts)
    on_gpu = [test for test in ours["self_test"] if test["device"] == "cuda"]
    if not on_gpu or not all(test["passed"] for test in on_gpu):
        raise StepError("the self-test on cuda does not pass", facts)
    if not ours["gpu"]["covered"]:
        raise StepError("the kernels are compiled for other architectures", facts)
    return facts


def _tests(plan: Plan, say: Say) -> Facts:
    if plan.dry_run:
        return tools.collect_tests(plan.left())
    return tools.run_tests(plan.left() - 40)


def _values(plan: Plan, say: Say) -> Facts:
    return {"device": plan.device, "rows": check_all(CASES, plan.device, say)}


def _sanitizer(plan: Plan, say: Say) -> Facts:
    return tools.plan_sanitizer() if plan.dry_run else tools.run_sanitizer(plan, say)


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
    return _each(plan, say, lambda case, device: exact.repeat(case, device, runs), f"{runs} runs")


def _launches(plan: Plan, say: Say) -> Facts:
    facts = measure.launches(plan, say)
    if plan.dry_run:
        return facts
    if not all(row["kernels"] for row in facts["rows"]):
        raise StepError("the profiler saw no kernel of a pass; may it count on this GPU?", facts)
    over = [row for row in facts["rows"] if row["kernels"] > row["promised"]]
    if over:
        told = [f"{r['op']} of {r['tensors']}, {r['pass']}: {r['kernels']}" for r in over]
        raise StepError("more launches than promised: " + ", ".join(told), facts)
    return facts


def _streams(plan: Plan, say: Say) -> Facts:
    return _each(plan, say, exact.beside, "on a stream of their own")


def _devices(plan: Plan, say: Say) -> Facts:
    """Every case on the last GPU, while the first is the current one."""
    if plan.dry_run:
        return {"GPUs": 0}
    count = torch.cuda.device_count()
    if count < 2:
        raise SkipStepError("there is one GPU: this needs two")
    other = f"cuda:{count - 1}"
    return {"GPUs": count, "device": other, "rows": check_all(CASES, other, say)}


def _each(plan: Plan, say: Say, check: Callable[[Workout, str], None], how: str) -> Facts:
    done, wrong = [], []
    for case in _repeated(plan):
        say(case.name)
        try:
            check(case, plan.device)
            done.append(case.name)
        except Exception as error:
            wrong.append(f"{type(error).__name__}: {error}")
    facts: Facts = {"device": plan.device, "how": how, "equal": done, "wrong": wrong}
    if wrong:
        raise StepError("; ".join(wrong), facts)
    return facts


def _timed(facts: Facts) -> Facts:
    """Fails where ours could not be timed."""
    ours = [gone for gone in facts["left_out"] if gone["kind"] in measure.OURS]
    if ours:
        told = [f"{gone['network']}, {gone['kind']}: {gone['reason']}" for gone in ours]
        raise StepError("; ".join(told), facts)
    return facts


def _benchmark(plan: Plan, say: Say) -> Facts:
    return _timed(measure.benchmark(plan, say))


def _penalties(plan: Plan, say: Say) -> Facts:
    return _timed(measure.penalties(plan, say))


def _augmentation(plan: Plan, say: Say) -> Facts:
    return _timed(measure_augmentation.benchmark(plan, say))


def _bandwidth(plan: Plan, say: Say) -> Facts:
    return measure.bandwidth(plan, say)


def _profile(plan: Plan, say: Say) -> Facts:
    return profile.rehearse() if plan.dry_run else profile.run_all(plan, say)


#: Right, fast, why: each part is worth having without those behind it.
PARTS = (
    Part(
        "environment and build",
        (
            Step("build", "Extension modules", _build, 440.0, needs_kernels=False),
            Step("environment", "GPU, driver, versions, self-test", _environment,
                 needs_kernels=False),
        ),
    ),
    Part(
        "right",
        (
            Step("values", "Awkward tensors against float64", _values, 150.0),
            Step("graph", "Captured in a CUDA graph, bit for bit", _graph, 100.0),
            Step("determinism", f"{RUNS} runs, equal to the byte", _determinism, 100.0),
            Step("launches", "Kernel launches", _launches, 60.0),
            Step("streams", "On a side stream, bit for bit", _streams, 60.0),
            Step("devices", "On a second GPU", _devices, 60.0),
        ),
    ),
    Part("right, by all tests", (Step("tests", "Tests of the backend cuda", _tests, 470.0),)),
    Part(
        "fast",
        (
            Step("bandwidth", "Bytes over time", _bandwidth, 70.0),
            Step("augmentation", "Times of augmentation", _augmentation, 160.0),
            Step("penalties", "Times of gradient penalties", _penalties, 90.0),
            Step("benchmark", "Times of spectral normalization", _benchmark, 160.0),
        ),
    ),
    Part(
        "why",
        (
            Step("profile", "Nsight Compute", _profile, 240.0),
            Step("sanitizer", "compute-sanitizer", _sanitizer, 240.0),
        ),
    ),
)  # fmt: skip
STEPS = tuple(step for part in PARTS for step in part.steps)
