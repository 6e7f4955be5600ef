"""Times on a GPU by CUDA events, in interleaved rounds; bytes over time; kernel launches.

An event time spans everything between two points of the stream: where the host is slower than the
device, it is the host's time, as it is for a user.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.core import contest
from benchmarks.core.contest import (
    BACKWARD,
    BYTES_PER_ELEMENT,
    COMPILED,
    FORWARD,
    Case,
    Contestant,
    Traffic,
    line_up,
    reason_of,
    relative_error,
    tolerated,
)
from benchmarks.core.harness import Sample, Timings
from benchmarks.gpu.exact import Captured, compare_with_graph
from benchmarks.gpu.plan import NO_TIME, Facts, Plan, Say
from benchmarks.gpu.workout import Results
from benchmarks.suites import workloads
from benchmarks.suites.spectral_norm import (
    FUSED,
    LABELS,
    LAYER,
    TOLERANCE,
    TORCH,
    NormCase,
    NormContestant,
    build,
)
from gankernels import ops

QUICK = ("sngan_resnet_cifar10", "stylegan2_256", "biggan_128")
TINY = workloads.Workload("tiny", 1, (3, 8, 8), ((16, 3, 3, 3), (32, 16), (1, 32)))
GRAPH = "graph"
EAGER, INDUCTOR, PENALTY, PENALTY_GRAPH = "eager", "inductor", "penalty", "penalty_graph"
PUBLISHED, PUBLISHED_COMPILED, GRID = "published", "published_compiled", "grid_sample"
AUGMENT_GRAPH = "augment_graph"
COMPILE_SECONDS = 60.0  # torch.compile is entered where at least as much is left
GPU_LABELS = {
    **LABELS,
    GRAPH: "gankernels fused, CUDA graph",
    EAGER: "torch",
    INDUCTOR: "torch.compile of it",
    PENALTY: "gankernels",
    PENALTY_GRAPH: "gankernels, CUDA graph",
    PUBLISHED: "published pipeline, plain PyTorch",
    PUBLISHED_COMPILED: "torch.compile of it",
    GRID: "grid_sample, bilinear: does less",
    contest.OURS: "gankernels",
    AUGMENT_GRAPH: "gankernels, CUDA graph",
}
KINDS = (TORCH, COMPILED, LAYER, FUSED)
OURS = (LAYER, FUSED, GRAPH, PENALTY, PENALTY_GRAPH, contest.OURS, AUGMENT_GRAPH)

GRADIENTS = ((64, 3, 32, 32), (64, 3, 128, 128), (64, 3, 256, 256))
TINY_GRADIENTS = ((3, 2, 5),)

ROUNDS = 15
SAMPLE_SECONDS = 0.02
COPY_BYTES = 1 << 28
PASSES_OVER_WEIGHTS = 4  # the least: 3 reads and 1 write of every weight, forward and backward
PASSES_OVER_GRADIENTS = {FORWARD: 1, "backward": 2, "double backward": 5}
TENSORS_PER_LAUNCH = 64
NORM_OP, PENALTY_OP = "spectral norm", "gradient penalty"
PROMISED = {  # launches for up to TENSORS_PER_LAUNCH weights or gradients
    NORM_OP: {FORWARD: 4, "backward": 2},
    PENALTY_OP: {FORWARD: 2, "backward": 1, "double backward": 3},
}


def chosen(full: bool, dry_run: bool) -> list[workloads.Workload]:
    """The networks to measure, smallest first."""
    if dry_run:
        return [TINY]
    loaded = workloads.load()
    names = loaded if full else QUICK
    return sorted((loaded[name] for name in names), key=lambda w: w.nbytes)


# --- timing ------------------------------------------------------------------------------------


def _sample(call: Callable[[], object], repeats: int) -> float:
    """Seconds a call, between two events."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / repeats


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> Timings:
    """Warms all up, then lets them take turns in a new random order each round."""
    repeats = {}
    for name, call in calls.items():
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        once = max(_sample(call, 3), 1e-6)
        repeats[name] = min(2000, max(1, round(SAMPLE_SECONDS / once)))
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            calls[name]()  # the caches are its own again
            samples[name].append(Sample(_sample(calls[name], repeats[name]), 0.0, False))
    return Timings(samples)


# --- who is timed ------------------------------------------------------------------------------


def tensors(shapes: Sequence[tuple[int, ...]], device: str) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and the gradients of their outputs."""
    weights = [w.to(device) for w in workloads.random_weights(shapes)]
    return weights, [g.to(device) * 50 for g in workloads.random_weights(shapes, seed=1)]


def fused_step(contestant: NormContestant, backward: bool) -> Results:
    """What a pass gives, and the vectors it moves."""
    outputs = contestant.call()
    results = {"outputs": [x.detach() for x in outputs]}
    if backward:
        gradients = torch.autograd.grad(outputs, contestant.parameters, contestant.grads)
        results["gradients"] = list(gradients)
    return {**results, "u and v": [x for pair in contestant.vectors() for x in pair]}


def captured_model(contestant: NormContestant, backward: bool, times: int) -> Captured:
    """A pass of a fused model as a CUDA graph, its replays compared with the eager pass."""
    state = [x for pair in contestant.vectors() for x in pair]
    start = [x.clone() for x in state]

    def reset() -> None:
        for x, value in zip(state, start, strict=True):
            x.copy_(value)

    name = f"fused model, {BACKWARD if backward else FORWARD}"
    return compare_with_graph(name, lambda: fused_step(contestant, backward), reset, times)


def affordable(kinds: Sequence[str], plan: Plan) -> tuple[list[str], dict[str, str]]:
    """The kinds to enter, and those that there is no time to compile."""
    slow = {COMPILED, INDUCTOR, PUBLISHED_COMPILED}
    if plan.dry_run:
        return [kind for kind in kinds if kind not in slow], {}
    if plan.left() > COMPILE_SECONDS:
        return list(kinds), {}
    return [k for k in kinds if k not in slow], {k: NO_TIME for k in kinds if k in slow}


def benchmark(plan: Plan, say: Say) -> Facts:
    """Every network: values checked, then (unless dry) timed. Ours being wrong is told apart."""
    rows: list[Facts] = []
    left_out: list[Facts] = []
    dry_run = plan.dry_run
    for workload in chosen(plan.full, dry_run):
        say(workload.name)
        kinds, unpaid = affordable(KINDS, plan)
        case = NormCase(workload.name, *tensors(workload.weights, plan.device))

        def say_kind(kind: str, name: str = workload.name) -> None:
            say(f"{name}, checking {LABELS[kind]}")

        entered, errors, missing = line_up(case, kinds, say_kind)
        missing |= unpaid
        found = {contestant.kind: contestant for contestant in entered}
        for which in (FORWARD, BACKWARD):
            calls = {kind: c.timed(which) for kind, c in found.items()}
            if not dry_run and FUSED in found:
                try:
                    calls[GRAPH] = captured_model(found[FUSED], which == BACKWARD, 1).replay
                    errors[GRAPH] = errors[FUSED]
                except Exception as error:
                    missing[GRAPH] = reason_of(error)
            say(f"{workload.name}, {which}")
            timings = None if dry_run else interleaved(calls)
            for kind in calls:
                row = timed_row(workload.name, which, kind, timings, TORCH)
                rows.append(row | {"error": errors[kind]})
        left_out += [
            {"network": workload.name, "kind": kind, "reason": reason}
            for kind, reason in missing.items()
        ]
        found.clear()
        entered.clear()
        torch._dynamo.reset()
        plan.keep({"rows": rows, "left_out": left_out})
    return {"rows": rows, "left_out": left_out}


def timed_row(network: str, which: str, kind: str, timings: Timings | None, baseline: str) -> Facts:
    """What a contestant took, and how many times less than the baseline, if that was measured."""
    row: Facts = {"network": network, "pass": which, "kind": kind}
    if timings is not None:
        row["seconds"] = timings.seconds(kind).to_dict()
        if baseline in timings.samples:
            row["times_faster"] = timings.ratio(baseline, kind).to_dict()
    return row


# --- gradient penalties ------------------------------------------------------------------------


def _torch_penalty(g: Tensor) -> Tensor:
    return (g.flatten(1).norm(2, dim=1) - 1).square().mean()


@dataclass
class GradientContestant(Contestant):
    """One way of penalizing a gradient; its results are returned, as a CUDA graph needs it."""

    penalty: Callable[[Tensor], Tensor]
    g: Tensor

    def results(self, which: str) -> Results:
        value = self.penalty(self.g)
        gradients = torch.autograd.grad(value, [self.g]) if which == BACKWARD else ()
        return {"value": [value.detach()], "gradient": list(gradients)}

    def passes(self) -> dict[str, Callable[[], object]]:
        return {which: partial(self.results, which) for which in (FORWARD, BACKWARD)}


@dataclass(frozen=True)
class GradientCase(Case[GradientContestant]):
    """One gradient, under WGAN-GP's term."""

    shape: tuple[int, ...]
    device: str

    @property
    def name(self) -> str:
        return f"gradient {self.shape}"

    @property
    def nbytes(self) -> int:
        return BYTES_PER_ELEMENT * math.prod(self.shape)

    def builder(self, kinds: Sequence[str]) -> Callable[[str], GradientContestant]:
        generator = torch.Generator().manual_seed(0)
        g = (torch.randn(self.shape, generator=generator) / 32).to(self.device).requires_grad_()
        penalties: dict[str, Callable[[Tensor], Tensor]] = {
            EAGER: _torch_penalty,
            INDUCTOR: torch.compile(_torch_penalty),
            PENALTY: partial(ops.gradient_penalty, center=1.0),
        }
        return lambda kind: GradientContestant(kind, penalties[kind], g)

    def check(self, contestant: GradientContestant) -> float:
        exact = contestant.g.detach().cpu().double().requires_grad_()
        wanted = GradientContestant(EAGER, _torch_penalty, exact).results(BACKWARD)
        got = contestant.results(BACKWARD)
        error = max(relative_error(got[what][0], wanted[what][0]) for what in wanted)
        return tolerated(error, TOLERANCE, GPU_LABELS[contestant.kind])

    def traffic(self, which: str) -> Traffic:
        return Traffic(self.nbytes, 2 * self.nbytes if which == BACKWARD else 0)


def penalties(plan: Plan, say: Say) -> Facts:
    """WGAN-GP's term of one gradient: values checked, then (unless dry) timed."""
    rows: list[Facts] = []
    left_out: list[Facts] = []
    dry_run = plan.dry_run
    for shape in TINY_GRADIENTS if dry_run else GRADIENTS:
        kinds, unpaid = affordable((EAGER, INDUCTOR, PENALTY), plan)
        case = GradientCase(shape, plan.device)
        name = case.name
        say(name)
        entered, errors, missing = line_up(case, kinds)
        missing |= unpaid
        for which in (FORWARD, BACKWARD):
            calls = {contestant.kind: contestant.timed(which) for contestant in entered}
            if not dry_run and PENALTY in errors:
                step = next(partial(c.results, which) for c in entered if c.kind == PENALTY)
                try:
                    graph = compare_with_graph(f"{name}, {which}", step, lambda: None, 1)
                    calls[PENALTY_GRAPH] = graph.replay
                except Exception as error:
                    missing[PENALTY_GRAPH] = reason_of(error)
            timings = None if dry_run else interleaved(calls)
            for kind in calls:
                row = timed_row(name, which, kind, timings, EAGER)
                rows.append(row | {"error": errors[PENALTY if kind == PENALTY_GRAPH else kind]})
        left_out += [{"network": name, "kind": k, "reason": why} for k, why in missing.items()]
        torch._dynamo.reset()
        plan.keep({"rows": rows, "left_out": left_out})
    return {"rows": rows, "left_out": left_out}


def penalty_calls(grads: list[Tensor]) -> dict[str, Callable[[], Any]]:
    """The three passes by themselves, as operators."""
    space = torch.ops.gankernels
    options = (None, None, 1.0, False, 1.0, False, 1)
    value, norms = space.gradient_penalty(grads, *options)
    seed, h = torch.ones_like(value), [torch.ones_like(g) for g in grads]
    return {
        FORWARD: lambda: space.gradient_penalty(grads, *options),
        "backward": lambda: space.gradient_penalty_backward(seed, grads, norms, *options),
        "double backward": lambda: space.gradient_penalty_double_backward(
            h, None, seed, grads, norms, *options
        ),
    }


# --- bytes over time ---------------------------------------------------------------------------


def fused_calls(weights: list[Tensor], grads: list[Tensor]) -> dict[str, Callable[[], Any]]:
    """The forward and the backward by themselves, as operators."""
    u = [torch.randn_like(w.flatten(1)[:, 0]) for w in weights]
    v = [torch.randn_like(w.flatten(1)[0]) for w in weights]
    saved_u, saved_v, sigma = ops.power_iteration_(weights, u, v)
    backward = torch.ops.gankernels.spectral_normalize_backward

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return ops.spectral_norm(weights, u, v)[0]

    return {
        FORWARD: forward,
        "backward": lambda: backward(grads, weights, saved_u, saved_v, sigma, None, None),
    }


def _graph_or_call(call: Callable[[], Any]) -> tuple[Callable[[], Any], str]:
    # A graph leaves out the host's time, which is most of the time of a small network.
    try:
        return Captured(lambda: {"results": call()}).replay, "CUDA graph"
    except Exception:
        torch.cuda.synchronize()
        return call, "calls"


def bandwidth(plan: Plan, say: Say) -> Facts:
    """What fused passes must move at the least over the time they take, beside a copy."""
    device, dry_run = plan.device, plan.dry_run
    calls: dict[str, Callable[[], Any]] = {}
    about: dict[str, Facts] = {}
    for workload in chosen(plan.full, dry_run):
        weights, grads = tensors(workload.weights, device)
        for which, call in fused_calls(weights, grads).items():
            call()
            name = f"{workload.name}, {which}"
            calls[name], how = (call, "") if dry_run else _graph_or_call(call)
            about[name] = {"network": workload.name, "pass": which, "tensor_bytes": workload.nbytes}
            about[name] |= {"bytes": PASSES_OVER_WEIGHTS * workload.nbytes, "timed": how}
    for shape in TINY_GRADIENTS if dry_run else GRADIENTS:
        g = torch.randn(shape, device=device)
        for which, call in penalty_calls([g]).items():
            call()
            name = f"gradient {shape}, {which}"
            calls[name], how = (call, "") if dry_run else _graph_or_call(call)
            about[name] = {"network": f"gradient {shape}", "pass": which, "tensor_bytes": g.nbytes}
            about[name] |= {"bytes": PASSES_OVER_GRADIENTS[which] * g.nbytes, "timed": how}
    if dry_run:
        return {"rows": list(about.values())}
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls["copy"] = lambda: target.copy_(source)
    say("timing")
    timings = interleaved(calls)
    copy = 2 * COPY_BYTES / timings.seconds("copy").median
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    for name, row in about.items():
        seconds = timings.seconds(name)
        speed = row["bytes"] / seconds.median
        row |= {"seconds": seconds.to_dict(), "bytes_per_second": speed, "of_copy": speed / copy}
        row["fits_in_l2"] = 2 * row["tensor_bytes"] <= cache
    return {"copy_bytes_per_second": copy, "l2_bytes": cache, "rows": list(about.values())}


# --- launches ----------------------------------------------------------------------------------


def _device_events(call: Callable[[], Any]) -> dict[str, list[str]]:
    """Names of what the device ran during the call: kernels, and copies and fills of memory."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    names = [
        e.name
        for e in profiler.events()
        if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)
    ]
    memory = [name for name in names if name.startswith(("Memcpy", "Memset"))]
    return {"kernels": [name for name in names if name not in memory], "memory": memory}


def promised(op: str, which: str, tensors: int) -> int:
    return PROMISED[op][which] * math.ceil(tensors / TENSORS_PER_LAUNCH)


def launches(plan: Plan, say: Say) -> Facts:
    """Kernel launches of fused models of 1 to 130 layers, and of penalties on as many gradients."""
    rows: list[Facts] = []
    device, dry_run = plan.device, plan.dry_run
    if not dry_run:
        _device_events(lambda: torch.ones(8, device=device) + 1)  # the first may miss some
    for layers in (1, 64, 65, 130):
        say(f"{layers} layers")
        weights, grads = tensors([(24 + i % 9, 40 + i % 7) for i in range(layers)], device)
        model = build(FUSED, weights, grads)
        for _ in range(3):
            fused_step(model, backward=True)
        rows += _counted(NORM_OP, layers, _model_calls(model), dry_run)
    for number in (1, 64, 65, 130):
        say(f"{number} gradients")
        grads = [torch.randn(8, 40 + i % 7, device=device) for i in range(number)]
        rows += _counted(PENALTY_OP, number, penalty_calls(grads), dry_run)
    return {"rows": rows}


def _model_calls(model: NormContestant) -> dict[str, Callable[[], Any]]:
    """The forward, and the backward of what that has given."""
    outputs: list[Tensor] = []
    return {
        FORWARD: lambda: outputs.extend(model.call()),
        "backward": lambda: torch.autograd.grad(outputs, model.parameters, model.grads),
    }


def _counted(
    op: str, tensors: int, calls: Mapping[str, Callable[[], Any]], dry_run: bool
) -> list[Facts]:
    rows: list[Facts] = []
    for which, call in calls.items():
        row: Facts = {"op": op, "tensors": tensors, "pass": which}
        row["promised"] = promised(op, which, tensors)
        if dry_run:
            call()
        else:
            row |= count(call)
        rows.append(row)
    return rows


def count(call: Callable[[], Any]) -> Facts:
    events = _device_events(call)
    return {
        "kernels": len(events["kernels"]),
        "names": sorted({name.split("<")[0].split("(")[0] for name in events["kernels"]}),
        "copies and fills": len(events["memory"]),
    }
