"""Steps that must agree to the byte: with themselves, and with their replays in a CUDA graph."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.workout import Results, Workout
from benchmarks.gpu.workouts.augmentation import AugmentWorkout
from benchmarks.gpu.workouts.gradient_penalty import PenaltyWorkout
from benchmarks.gpu.workouts.gradient_penalty import many as many_gradients
from benchmarks.gpu.workouts.spectral_norm import NormWorkout
from benchmarks.gpu.workouts.spectral_norm import many as many_weights

OTHERS: tuple[Workout, ...] = (
    NormWorkout("others", many_weights),
    PenaltyWorkout("others", many_gradients),
    AugmentWorkout("others", (3, 3, 20, 33)),
)

SLEEP_CYCLES = 50_000_000  # some 30 ms


def _bytes(x: Tensor) -> Tensor:
    return x.detach().contiguous().view(-1).view(torch.uint8)


def difference(got: Results, wanted: Results) -> str | None:
    """The first tensor whose bytes differ; None where all are equal."""
    for what, tensors in got.items():
        for i, (a, b) in enumerate(zip(tensors, wanted[what], strict=True)):
            if not torch.equal(_bytes(a), _bytes(b)):
                return f"{what}[{i}] of shape {tuple(a.shape)}"
    return None


def copied(results: Results) -> Results:
    return {what: [x.clone() for x in tensors] for what, tensors in results.items()}


def soil(results: Results) -> None:
    """Leaves NaN in the memory that the next results are likely to get."""
    soiled = [torch.full_like(x, -1 if x.dtype == torch.int64 else float("nan"))
              for tensors in results.values() for x in tensors]  # fmt: skip
    del soiled


def repeat(case: Workout, device: str, times: int) -> None:
    """`times` steps from one state; one that differs in a byte from the first is a ValueError."""
    given = case.data(device)
    step = case.works()[0]
    first = copied(step(given))
    for i in range(1, times):
        given.reset()
        soil(first)
        differs = difference(step(given), first)
        if differs:
            raise ValueError(f"{case.name}: run {i + 1} differs from the first in {differs}")


def beside(case: Workout, device: str) -> None:
    """A step on a stream of its own; a byte that differs from the default stream's is a ValueError.

    Its inputs are written on that stream too, late: who runs on another has read them too early.
    """
    step = case.works()[0]
    expected = copied(step(case.data(device)))
    prepared = case.data(device)
    soil(expected)
    if device == "cpu":
        found = step(copy.deepcopy(prepared))
    else:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(SLEEP_CYCLES)
            found = step(copy.deepcopy(prepared))
        stream.synchronize()
    differs = difference(found, expected)
    if differs:
        raise ValueError(f"{case.name}: on a side stream another {differs}")


class Captured:
    """A step in a CUDA graph; `results` are overwritten by every `replay`. It moves its state."""

    def __init__(self, step: Callable[[], Results]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # what is loaded, tuned or allocated once
                step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = step()

    def replay(self) -> None:
        self.graph.replay()


def compare_with_graph(
    name: str, step: Callable[[], Results], reset: Callable[[], None], times: int
) -> Captured:
    """Replays a captured step; a byte that differs from the eager step is a ValueError."""
    reset()
    eager = [copied(step()) for _ in range(times)]
    captured = Captured(step)
    # Whatever the launchers keep on the host for their kernels is now that of other tensors.
    for other in OTHERS:
        other.works()[0](other.data("cuda", seed=1))
    reset()
    for i, wanted in enumerate(eager):
        captured.replay()
        torch.cuda.synchronize()
        differs = difference(captured.results, wanted)
        if differs:
            raise ValueError(f"{name}: replay {i + 1} differs from eager in {differs}")
    return captured
