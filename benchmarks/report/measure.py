"""One measuring process: `python -m benchmarks.report.measure JOB`, in JSON, as is each line out.

A process of its own because malloc's settings are read when a process starts.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import gankernels
from benchmarks.core import bandwidth
from benchmarks.core.contest import (
    BACKWARD,
    BYTES_PER_ELEMENT,
    COMPILED,
    FORWARD,
    OURS,
    PLAIN,
    Case,
    WrongResultError,
    line_up,
    reason_of,
    shape_name,
)
from benchmarks.core.events import (
    Checked,
    CompiledStep,
    Event,
    Figure,
    GradientAccuracy,
    Layer,
    LeftOut,
    Memory,
    MethodStep,
    Reduction,
    Row,
    StepMemory,
    TrainingStep,
    to_dict,
)
from benchmarks.core.harness import Spread, Timings, interleaved
from benchmarks.report.jobs import Job
from benchmarks.suites import (
    augmentation,
    critics,
    first_order,
    gradient_penalty,
    networks,
    spectral_norm,
    workloads,
)
from benchmarks.suites.augmentation import AugmentCase
from benchmarks.suites.gradient_penalty import USUAL, PenaltyCase
from benchmarks.suites.spectral_norm import LAYER, TORCH


def network_rows(job: Job) -> Iterator[Event]:
    """All the weights of one network."""
    case = spectral_norm.case_of(workloads.named(job["network"]))
    yield from _rows(job, case, layers=len(case.weights))


def penalty_rows(job: Job) -> Iterator[Event]:
    """The penalty of given gradients, case by case."""
    for shape, channels_last, center in job["cases"]:
        case = PenaltyCase(tuple(shape), channels_last, center)
        yield from _rows(job, case, shape=shape_name(case.shape))


def augment_rows(job: Job) -> Iterator[Event]:
    """Augmentation of one batch."""
    yield from _rows(job, AugmentCase(*job["case"]))


def _rows(job: Job, case: Case[Any], shape: str = "", layers: int = 0) -> Iterator[Event]:
    """Every contestant, every pass, next to the bandwidth."""
    started = time.perf_counter()
    entered, errors, left_out = line_up(case, job["kinds"])
    for kind, reason in left_out.items():
        yield LeftOut(network=case.name, kind=kind, reason=reason)
    yield Checked(seconds=time.perf_counter() - started)
    numel = case.nbytes // BYTES_PER_ELEMENT
    probes = bandwidth.probes(numel)
    for which in job["passes"]:
        calls = {c.kind: c.timed(which) for c in entered}
        timings = interleaved({**calls, **probes}, job["budget_s"])
        speed = bandwidth.from_timings(timings, numel)
        traffic = case.traffic(which)
        for contestant in (c for c in entered if c.kind in job.get("show", calls)):
            kind = contestant.kind
            seconds = timings.seconds(kind)
            yield Row(
                network=case.name,
                which=which,
                kind=kind,
                nbytes=case.nbytes,
                shape=shape,
                layers=layers,
                form=contestant.form,
                seconds=seconds,
                times_faster_than={other: timings.ratio(other, kind) for other in calls},
                error=errors[kind],
                dropped=timings.dropped(kind),
                calm=timings.calm(kind),
                page_faults=timings.faults(kind),
                floor_bytes=traffic.total,
                floor_seconds=speed.seconds(traffic),
                bytes_per_second=traffic.total / seconds.median,
                read_bandwidth=speed.read,
                copy_bandwidth=speed.copy,
            )


def layer_rows(job: Job) -> Iterator[Event]:
    """Every weight shape by itself: is the drop-in ever slower than torch's?"""
    for shape in workloads.unique_shapes()[:: job.get("every", 1)]:
        case = spectral_norm.case_of_weights(str(shape), workloads.random_weights([shape]))
        entered, errors, left_out = line_up(case, [TORCH, LAYER])
        for kind, reason in left_out.items():
            yield LeftOut(network=case.name, kind=kind, reason=reason)
        if left_out:
            continue
        for which in job["passes"]:
            timings = interleaved({c.kind: c.timed(which) for c in entered}, job["budget_s"])
            yield Layer(
                shape=list(shape),
                nbytes=case.nbytes,
                which=which,
                torch_seconds=timings.seconds(TORCH),
                our_seconds=timings.seconds(LAYER),
                times_faster=timings.ratio(TORCH, LAYER),
                error=errors[LAYER],
                calm=timings.calm(LAYER) and timings.calm(TORCH),
            )


def step_rows(job: Job) -> Iterator[Event]:
    """A whole discriminator step, without spectral norm and with each kind of it."""
    network = networks.NETWORKS[job["network"]]
    batch = network.quick_batch if job["quick"] else network.batch
    generator = torch.Generator().manual_seed(0)
    real, fake = (network.inputs(batch, generator) for _ in range(2))

    def contestant(kind: str) -> Callable[[], float]:
        torch.manual_seed(0)
        model = network.build()
        call = model
        if kind != PLAIN:
            call = spectral_norm.normalize_layers(model, networks.normalizable(model), kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        return lambda: networks.discriminator_step(call, optimizer, real, fake)

    steps: dict[str, Callable[[], float]] = {}
    losses: dict[str, float] = {}
    for kind in job["kinds"]:
        try:
            step = contestant(kind)
            losses[kind] = step()
            # per layer and fused differ from torch only by rounding: one step shows it (D(fake)
            # sees one more iteration per layer either way)
            if kind not in (PLAIN, TORCH) and TORCH in losses:
                off = abs(losses[kind] - losses[TORCH]) / abs(losses[TORCH])
                if not off <= 1e-4:
                    raise WrongResultError(f"loss is off by {off:.1e} from torch's")
            steps[kind] = step
        except Exception as error:
            yield LeftOut(network=job["network"], kind=kind, reason=reason_of(error))
    timings = interleaved(steps, job["budget_s"])
    for kind in steps:
        yield _step(network, job, batch, kind, timings)


def penalty_step_rows(job: Job) -> Iterator[Event]:
    """A whole critic step with each penalty: time, peak memory, and the share of the reduction."""
    network = critics.CRITICS[job["network"]]
    batch = network.quick_batch if job["quick"] else network.batch
    generator = torch.Generator().manual_seed(0)
    real, fake = (network.inputs(batch, generator) for _ in range(2))

    def contestant(kind: str) -> Callable[[], torch.Tensor]:
        torch.manual_seed(0)
        model = network.build()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
        return lambda: critics.critic_step(model, optimizer, real, fake, kind)

    steps = {kind: contestant(kind) for kind in job["kinds"]}
    for kind, step in steps.items():
        if not step().isfinite():
            raise WrongResultError(f"the loss with {kind} is not finite")
    reductions, _, _ = line_up(PenaltyCase(tuple(real.shape), False, 0.0), [USUAL, OURS])
    timings = interleaved(
        {**steps, **{c.kind: c.timed(BACKWARD) for c in reductions}},
        job["budget_s"],
    )
    for kind in steps:
        yield _step(network, job, batch, kind, timings)
    yield Reduction(
        network=job["network"],
        title=network.title,
        batch=batch,
        shares={c.kind: timings.ratio(c.kind, critics.R1).median for c in reductions},
    )
    for kind, step in steps.items():
        yield StepMemory(network=job["network"], kind=kind, peak_bytes=_peak_bytes(step)[0])


def accuracy_rows(job: Job) -> Iterator[Event]:
    """Gradients without second derivatives, against the exact ones."""
    for found in first_order.accuracies(job["batch"]):
        yield GradientAccuracy(**asdict(found))


def method_rows(job: Job) -> Iterator[Event]:
    """A whole step with R1 + R2 by each method: time and peak memory; compiled where asked for."""
    steps: dict[str, Callable[[], torch.Tensor]] = {}
    for compiled in (False, True) if job["compiled"] else (False,):
        for kind in first_order.STEPS:
            if compiled and kind == first_order.EXACT:
                continue  # torch differentiates a compiled critic once
            name = f"{kind}, {COMPILED}" if compiled else kind
            try:
                step = first_order.step_of(kind, compiled=compiled)
                if not step().isfinite():
                    raise WrongResultError(f"the loss with {name} is not finite")
                steps[name] = step
            except Exception as error:
                yield LeftOut(network=job["network"], kind=name, reason=reason_of(error))
    timings = interleaved(steps, job["budget_s"])
    for name, step in steps.items():
        yield MethodStep(
            kind=name.removesuffix(f", {COMPILED}"),
            compiled=name.endswith(f", {COMPILED}"),
            seconds=timings.seconds(name),
            over_exact=timings.ratio(name, first_order.EXACT),
            peak_bytes=_peak_bytes(step)[0],
            calm=timings.calm(name),
        )


def compiled_step_rows(job: Job) -> Iterator[Event]:
    """A whole step as one graph against eager mode; losses are compared before it is timed."""
    network = networks.NETWORKS[job["network"]]
    batch = min(network.quick_batch, 8) if job["quick"] else network.batch
    steps = critics.penalized_steps(network, batch)
    expected = steps[critics.EAGER_STEP]()
    started = time.perf_counter()
    try:
        found = steps[COMPILED]()
    except Exception as error:
        yield LeftOut(network=job["network"], kind=COMPILED, reason=reason_of(error))
        return
    first = time.perf_counter() - started
    for _ in range(2):  # the first numbers are those of eager mode, which it compares itself with
        off = abs(float(found / expected) - 1)
        if not off <= 1e-3:
            raise WrongResultError(f"the loss is off by {off:.1e} from eager mode's")
        found, expected = steps[COMPILED](), steps[critics.EAGER_STEP]()
    timings = interleaved(steps, job["budget_s"])
    yield CompiledStep(
        network=job["network"],
        title=network.title,
        batch=batch,
        full_batch=network.batch,
        eager_seconds=timings.seconds(critics.EAGER_STEP),
        compiled_seconds=timings.seconds(COMPILED),
        times_faster=timings.ratio(critics.EAGER_STEP, COMPILED),
        first_seconds=first,
        calm=timings.calm(COMPILED) and timings.calm(critics.EAGER_STEP),
    )


def _step(
    network: networks.FullNetwork, job: Job, batch: int, kind: str, timings: Timings
) -> TrainingStep:
    share = timings.ratio(PLAIN, kind)
    return TrainingStep(
        network=job["network"],
        title=network.title,
        batch=batch,
        full_batch=network.batch,
        kind=kind,
        seconds=timings.seconds(kind),
        share=1 - share.median,
        share_q25=1 - share.q75,
        share_q75=1 - share.q25,
        calm=timings.calm(kind),
    )


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")


def _peak_bytes(call: Callable[[], Any]) -> tuple[int, Any]:
    """How far the memory of this process grows during `call`, and what that returns."""
    # Memory that was freed but kept, by us or by malloc, would serve the results and hide them.
    gc.collect()
    gankernels.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status_bytes("VmRSS")
    result = call()
    return _status_bytes("VmHWM") - before, result


def memory_row(job: Job) -> Iterator[Event]:
    """Peak memory of one forward, over the memory of its results W/sigma."""
    kind = job["kind"]
    small = spectral_norm.build(kind, workloads.random_weights([(8, 8)]), [torch.ones(8, 8)])
    small.forward()  # thread pools and lazy imports are not the forward's memory
    workload = workloads.load()[job["network"]]
    entered = spectral_norm.build(kind, workloads.random_weights(workload.weights), [])
    peak, outputs = _peak_bytes(entered.call)
    yield Memory(
        network=workload.name,
        kind=kind,
        peak_bytes=peak,
        result_bytes=sum(output.nbytes for output in outputs),
        largest_weight_bytes=max(output.nbytes for output in outputs),
    )


def penalty_memory_rows(job: Job) -> Iterator[Event]:
    """Peak memory of one forward, recorded by autograd, next to that of the gradients."""
    case = PenaltyCase(tuple(job["shape"]), False, 1.0)
    grads = case.grads()
    for kind in job["kinds"]:
        small = PenaltyCase((64, 3, 32, 32), False, 1.0).grads()
        gradient_penalty.build(kind, small, case.center).forward()  # as above
        yield Memory(
            network=case.name,
            kind=kind,
            peak_bytes=_peak_bytes(gradient_penalty.build(kind, grads, case.center).call)[0],
            gradient_bytes=case.nbytes,
        )


def augment_figures(job: Job) -> Iterator[Event]:
    """Cycles, what is saved, accuracy, and the memory of a forward pass."""

    def figure(of: str, what: str, value: float) -> Figure:
        return Figure(network=of, kind=OURS, what=what, value=value)

    case = augmentation.GEOMETRY[-1]
    torch.set_num_threads(1)
    seconds = augmentation.processor_seconds(case, job["budget_s"]).median
    torch.set_num_threads(job["threads"])
    yield figure(case.name, "cycles a pixel", seconds * _megahertz() * 1e6)
    everything = AugmentCase("bgcfnc", 1.0, 4, 64)
    saved = augmentation.saved_floats(OURS, everything)
    yield figure(everything.name, "floats saved a sample", saved)
    for size, batch in job["sizes"]:
        error = augmentation.accuracy(size, batch)
        of = f"geometry, {batch}x3x{size}x{size}"
        yield figure(of, "error over the range, in 1e-6", error * 1e6)

    yield from _ratios(job)

    case = AugmentCase("bgc", 1.0, 8, 512)
    pipe, images = augmentation.pipe_of(OURS, case), case.images().detach()
    pipe(images[:, :, :64, :64])  # as above
    peak, found = _peak_bytes(partial(pipe, images))
    yield Memory(
        network=case.name,
        kind=OURS,
        peak_bytes=peak,
        result_bytes=found.nbytes,
        image_bytes=case.nbytes,
    )


def _ratios(job: Job) -> Iterator[Event]:
    """The transpose, plain filters and instruction sets, one thread and all of them."""

    def figure(of: str, what: str, found: Spread) -> Figure:
        return Figure(network=of, kind=OURS, what=what, value=found.median)

    budget_s = job["budget_s"] / 20
    for threads in (1, job["threads"]):
        torch.set_num_threads(threads)
        for case in augmentation.GEOMETRY:
            of = f"{shape_name(case.shape)}, {threads} thr."
            found = augmentation.transpose_over_forward(case, budget_s)
            yield figure(f"geometry, {of}", "transpose over forward", found)
            for (filter, padding_mode), which in itertools.product(
                augmentation.PLAIN_FILTERS, (FORWARD, BACKWARD)
            ):
                found = augmentation.over_grid_sample(filter, padding_mode, case, which, budget_s)
                what = f"plain filters over grid_sample, {which}"
                yield figure(f"{filter}, {padding_mode}, {of}", what, found)
    torch.set_num_threads(1)
    for name, operator in augmentation.operators(augmentation.GEOMETRY[-1]).items():
        wider = augmentation.wider_over_narrower(operator, 4 * budget_s)
        if wider is not None:
            yield figure(name, "AVX-512 over AVX2", wider)
    torch.set_num_threads(job["threads"])


def _megahertz() -> float:
    """The processor's, by /proc/cpuinfo; that of the time-stamp counter on virtual machines."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("cpu MHz"):
            return float(line.partition(":")[2])
    raise RuntimeError("/proc/cpuinfo has no frequency")


WORK: dict[str, Callable[[Job], Iterator[Event]]] = {
    "network": network_rows,
    "layers": layer_rows,
    "step": step_rows,
    "memory": memory_row,
    "penalty": penalty_rows,
    "penalty step": penalty_step_rows,
    "penalty memory": penalty_memory_rows,
    "penalty accuracy": accuracy_rows,
    "penalty methods": method_rows,
    "compiled step": compiled_step_rows,
    "augment": augment_rows,
    "augment figures": augment_figures,
}


def main() -> None:
    job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    for event in WORK[job["work"]](job):
        of_job = {key: job[key] for key in ("suite", "allocator", "threads")}
        print(json.dumps(to_dict(replace(event, **of_job))), flush=True)


if __name__ == "__main__":
    main()
