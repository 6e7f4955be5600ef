"""What the report measures: jobs for `benchmarks.report.measure`, in the order they run in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.core.contest import BACKWARD, COMPILED, FORWARD, OURS, PLAIN, shape_name
from benchmarks.core.environment import DEFAULT, TUNED
from benchmarks.core.events import AUGMENTATION, GRADIENT_PENALTY, SPECTRAL_NORM
from benchmarks.suites import augmentation, critics, gradient_penalty, workloads
from benchmarks.suites.augmentation import BILINEAR, KORNIA_COMPILED, AugmentCase
from benchmarks.suites.gradient_penalty import EAGER, SHAPES, USUAL, PenaltyCase
from benchmarks.suites.networks import NETWORKS
from benchmarks.suites.spectral_norm import FUSED, HOOK, LAYER, PASSES, TORCH

Job = dict[str, Any]

QUICK_COMPILED = ("sngan_resnet_cifar10", "biggan_128")  # compiling takes its time
QUICK_DEFAULT = ("hifigan_msd", "biggan_128")
LARGE_BYTES = 1 << 27
QUICK_COMPILED_PENALTIES = (
    PenaltyCase((64, 3, 64, 64), False, 1.0),
    PenaltyCase((32, 3, 256, 256), False, 1.0),
)
LARGE_PENALTY_BYTES = 1 << 26


def quick_jobs() -> Iterator[Job]:
    """Two threads; every network with tuned malloc, a few with default malloc. Compiled ones last.

    Of the penalties WGAN-GP's everywhere, R1 on contiguous gradients but the largest.
    """
    loaded = sorted(workloads.load().values(), key=lambda workload: workload.nbytes)
    for workload in loaded:
        yield network_job(workload, [TORCH, LAYER, FUSED], [FORWARD, BACKWARD], TUNED, 2, 0.5)
    yield host_job(0.3)
    for shape in SHAPES:
        cases = [case for case in gradient_penalty.cases([shape]) if _in_quick(case)]
        rest = [case for case in cases if case not in QUICK_COMPILED_PENALTIES]
        yield penalty_job(rest, [USUAL, EAGER, OURS], TUNED, 2, 0.5)
    for kind in (TORCH, FUSED):
        yield memory_job(kind)
    yield penalty_memory_job()
    for workload in loaded:
        if workload.name in QUICK_DEFAULT:
            kinds = [TORCH, LAYER, FUSED]
            yield network_job(workload, kinds, [FORWARD, BACKWARD], DEFAULT, 2, 0.5)
    for case in augmentation.GEOMETRY:
        yield augment_job(case, [FORWARD, BACKWARD], 2, 2.0)
    yield augment_job(augmentation.COLOR, [FORWARD, augmentation.R1], 2, 2.0)
    yield augment_figures_job()
    for name in NETWORKS:
        yield step_job(name, quick=True, threads=2, budget_s=2.5)
    for name in critics.CRITICS:
        yield penalty_step_job(name, quick=True, budget_s=2.0, cost_s=7.0)
    yield job_of("penalty accuracy", network="three critics", batch=4, cost_s=12.0)
    yield method_job(compiled=False, budget_s=10.0, cost_s=16.0)
    yield job_of("layers", passes=[FORWARD, BACKWARD], budget_s=0.05, cost_s=22.0)
    everyone = [USUAL, EAGER, COMPILED, OURS]
    yield penalty_job(list(QUICK_COMPILED_PENALTIES), everyone, TUNED, 2, 0.5)
    for workload in loaded:
        if workload.name in QUICK_COMPILED:
            kinds = [TORCH, FUSED, COMPILED]
            job = network_job(workload, kinds, [FORWARD, BACKWARD], TUNED, 2, 1.0)
            yield job | {"show": [COMPILED]}  # the others have their rows already


def _in_quick(case: PenaltyCase) -> bool:
    return case.center == 1.0 or not (case.channels_last or case.shape == SHAPES[-1])


def full_jobs() -> Iterator[Job]:
    """Everything: every contestant and pass, both allocators, one and two threads."""
    kinds = [HOOK, TORCH, COMPILED, LAYER, FUSED]
    for workload in workloads.load().values():
        yield network_job(workload, kinds, list(PASSES), TUNED, 2, 3.0)
        yield network_job(workload, [HOOK, TORCH, LAYER, FUSED], list(PASSES), TUNED, 1, 1.5)
        some = [HOOK, TORCH, LAYER, FUSED]
        yield network_job(workload, some, [FORWARD, BACKWARD], DEFAULT, 2, 1.5)
    yield host_job(0.5)
    for shape in SHAPES:
        cases = list(gradient_penalty.cases([shape]))
        yield penalty_job(cases, [USUAL, EAGER, COMPILED, OURS], TUNED, 2, 1.0)
        yield penalty_job(cases, [USUAL, EAGER, OURS], TUNED, 1, 1.0)
        if shape in SHAPES[-2:]:
            yield penalty_job(cases, [USUAL, EAGER, OURS], DEFAULT, 2, 0.5)
    for kind in (TORCH, LAYER, FUSED):
        yield memory_job(kind)
    yield penalty_memory_job()
    for threads in (2, 1):
        for case in (*augmentation.GEOMETRY, augmentation.COLOR):
            yield augment_job(case, [FORWARD, BACKWARD, augmentation.R1], threads, 5.0)
    yield augment_figures_job()
    for threads in (2, 1):
        yield job_of(
            "layers", passes=[FORWARD, BACKWARD], budget_s=0.2, cost_s=50.0, threads=threads
        )
    for name in NETWORKS:
        yield step_job(name, quick=False, threads=2, budget_s=15.0)
    for name in critics.CRITICS:
        yield penalty_step_job(name, quick=False, budget_s=12.0, cost_s=45.0)
    yield job_of("penalty accuracy", network="three critics", batch=16, cost_s=45.0)
    yield method_job(compiled=True, budget_s=30.0, cost_s=180.0)
    for name in NETWORKS:  # whose compilation is longer than quick mode has for a job
        yield compiled_step_job(name, quick=True, budget_s=12.0, cost_s=100.0)
    yield compiled_augment_job(augmentation.GEOMETRY[-1], 5.0)


def host_job(budget_s: float) -> Job:
    kinds = [HOOK, TORCH, LAYER, FUSED]
    return network_job(workloads.HOST, kinds, [FORWARD, BACKWARD], TUNED, 1, budget_s)


def job_of(work: str, cost_s: float, **more: Any) -> Job:
    suites = {"penalty": GRADIENT_PENALTY, "compiled": GRADIENT_PENALTY, "augment": AUGMENTATION}
    suite = suites.get(work.split()[0], SPECTRAL_NORM)
    common = {"suite": suite, "work": work, "allocator": TUNED, "threads": 2, "cost_s": cost_s}
    return common | more


def penalty_job(
    cases: list[PenaltyCase], kinds: list[str], allocator: str, threads: int, budget_s: float
) -> Job:
    compiling = COMPILED in kinds
    extra = [5.0 if case.nbytes > LARGE_PENALTY_BYTES else 0.5 for case in cases]
    each = budget_s + (4.0 if compiling else 0.0)
    return job_of(
        "penalty",
        network=" and ".join(dict.fromkeys(shape_name(case.shape) for case in cases)),
        cases=[(case.shape, case.channels_last, case.center) for case in cases],
        kinds=kinds,
        passes=[BACKWARD],
        allocator=allocator,
        threads=threads,
        budget_s=budget_s,
        cost_s=(10.0 if compiling else 2.5) + each * len(cases) + sum(extra),
    )


def penalty_memory_job() -> Job:
    shape = SHAPES[-1]
    return job_of(
        "penalty memory",
        network=shape_name(shape),
        shape=shape,
        kinds=[USUAL, OURS],
        allocator=DEFAULT,
        cost_s=4.0,
    )


def penalty_step_job(name: str, **more: Any) -> Job:
    return job_of("penalty step", network=name, kinds=list(critics.STEPS), **more)


def compiled_step_job(name: str, **more: Any) -> Job:
    return job_of("compiled step", network=name, **more)


def method_job(**more: Any) -> Job:
    return job_of("penalty methods", network="transformer", **more)


def augment_job(case: AugmentCase, passes: list[str], threads: int, budget_s: float) -> Job:
    others = (KORNIA_COMPILED, *(() if case in augmentation.GEOMETRY else BILINEAR))
    return job_of(
        "augment",
        network=case.name,
        case=(case.preset, case.p, case.batch, case.size),
        kinds=[kind for kind in augmentation.LABELS if kind not in others],
        passes=passes,
        threads=threads,
        budget_s=budget_s,
        cost_s=4.0 + budget_s * len(passes),
    )


def compiled_augment_job(case: AugmentCase, budget_s: float) -> Job:
    """kornia compiled: it takes a minute, and has no second derivative; the others are shown."""
    kinds = [augmentation.MULTI_PASS, KORNIA_COMPILED, OURS]
    job = augment_job(case, [FORWARD, BACKWARD], 2, budget_s)
    return job | {"kinds": kinds, "show": [KORNIA_COMPILED], "cost_s": 90.0}


def augment_figures_job() -> Job:
    return job_of(
        "augment figures",
        network="ADAPipe",
        allocator=DEFAULT,
        budget_s=2.0,
        sizes=[(64, 16), (256, 4), (1024, 1)],
        cost_s=25.0,
    )


def network_job(
    workload: workloads.Workload,
    kinds: list[str],
    passes: list[str],
    allocator: str,
    threads: int,
    budget_s: float,
) -> Job:
    large = workload.nbytes > LARGE_BYTES
    budget_s *= 2 if large else 1
    extra = (12.0 if large else 2.0) + (40.0 if COMPILED in kinds else 0.0)
    return job_of(
        "network",
        network=workload.name,
        kinds=kinds,
        passes=passes,
        allocator=allocator,
        threads=threads,
        budget_s=budget_s,
        cost_s=extra + budget_s * len(passes),
    )


def memory_job(kind: str) -> Job:
    return job_of("memory", network="biggan_128", kind=kind, allocator=DEFAULT, cost_s=5.0)


def step_job(name: str, quick: bool, threads: int, budget_s: float) -> Job:
    kinds = [PLAIN, TORCH, LAYER, FUSED]
    return job_of(
        "step",
        network=name,
        kinds=kinds,
        quick=quick,
        threads=threads,
        budget_s=budget_s,
        cost_s=budget_s + 4.0,
    )


def title(job: Job) -> str:
    """What a job measures, for a line of progress of 80 columns."""
    what = {
        "network": "weights",
        "step": "whole step",
        "memory": "peak memory",
        "penalty": "penalty",
        "penalty step": "step with penalties",
        "penalty memory": "peak memory",
        "penalty accuracy": "gradients",
        "compiled step": "step, compiled",
        "penalty methods": "step, no second derivatives",
        "augment": "augmentation",
        "augment figures": "cycles, memory",
    }
    name = job.get("network", "every weight shape")
    malloc = ", default malloc" if job["allocator"] == DEFAULT else ""
    return f"{name}: {what.get(job['work'], 'per layer')}{malloc}"
