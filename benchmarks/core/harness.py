"""Timing that can be believed on a shared machine.

Contestants take turns in one process, in a new random order each round, so that drift of the
machine hits all of them alike; a ratio is the median of the ratios within rounds. Samples during
which a thread of ours stood waiting for a processor are dropped.
"""

from __future__ import annotations

import gc
import math
import os
import random
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

MIN_ROUNDS = 5
FEWEST_ROUNDS = 3  # where a budget is overrun threefold; undisturbed samples worth trusting
SAMPLE_SECONDS = 0.003  # a sample repeats a short call until it lasts about this long
DISTURBED = 0.05  # drop a sample that waited for a processor for more than this share of it


@dataclass(frozen=True)
class Spread:
    """A median and its quartiles."""

    median: float
    q25: float
    q75: float
    count: int

    @property
    def iqr(self) -> float:
        return self.q75 - self.q25

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def spread(values: list[float]) -> Spread:
    """Median and quartiles (linear interpolation) of at least one value."""
    if not values:
        raise ValueError("spread: expected at least one value, got none")
    ordered = sorted(values)

    def quantile(q: float) -> float:
        position = q * (len(ordered) - 1)
        low = math.floor(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (position - low) * (ordered[high] - ordered[low])

    return Spread(quantile(0.5), quantile(0.25), quantile(0.75), len(ordered))


@dataclass(frozen=True)
class Sample:
    """Seconds per call, page faults per call, and whether others took our processors."""

    seconds: float
    faults: float
    disturbed: bool


@dataclass(frozen=True)
class Timings:
    """The samples of every contestant, round by round."""

    samples: Mapping[str, list[Sample]]

    def seconds(self, name: str) -> Spread:
        samples = self.samples[name]
        calm = [s.seconds for s in samples if not s.disturbed]
        return spread(calm if len(calm) >= FEWEST_ROUNDS else [s.seconds for s in samples])

    def ratio(self, of: str, to: str) -> Spread:
        """How many times longer `of` takes than `to`: the spread of the ratios within rounds."""
        pairs = list(zip(self.samples[of], self.samples[to], strict=True))
        calm = [(a, b) for a, b in pairs if not (a.disturbed or b.disturbed)]
        chosen = calm if len(calm) >= FEWEST_ROUNDS else pairs
        return spread([a.seconds / b.seconds for a, b in chosen])

    def faults(self, name: str) -> float:
        return spread([sample.faults for sample in self.samples[name]]).median

    def dropped(self, name: str) -> int:
        return sum(sample.disturbed for sample in self.samples[name])

    def calm(self, name: str) -> bool:
        """Whether enough undisturbed samples were left; if not, all of them were used."""
        return len(self.samples[name]) - self.dropped(name) >= FEWEST_ROUNDS


def _run_queue_delay() -> float | None:
    """Seconds our threads have stood ready to run but without a processor; None if unknown."""
    total = 0
    try:
        for task in os.listdir("/proc/self/task"):
            total += int(Path(f"/proc/self/task/{task}/schedstat").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return total * 1e-9


def _take(call: Callable[[], object], repeats: int) -> Sample:
    waited_before = _run_queue_delay()
    faults_before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    cpu_before = time.thread_time()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wall = time.perf_counter() - start
    idle = wall - (time.thread_time() - cpu_before)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults_before
    waited_after = _run_queue_delay()
    if waited_before is None or waited_after is None:
        waited = idle  # not Linux: wall time in which this thread did not compute
    else:
        waited = waited_after - waited_before
    return Sample(wall / repeats, faults / repeats, waited > DISTURBED * wall)


def _repeats(call: Callable[[], object], sample_seconds: float) -> int:
    """Warms `call` up and says how often to repeat it for a sample of the wanted length."""
    call()
    start = time.perf_counter()
    call()
    once = time.perf_counter() - start
    if once >= sample_seconds:
        return 1
    count = max(2, round(0.3 * sample_seconds / max(once, 1e-7)))
    once = _take(call, count).seconds
    return max(1, round(sample_seconds / max(once, 1e-7)))


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    budget_s: float,
    min_rounds: int = MIN_ROUNDS,
    max_rounds: int = 300,
    sample_seconds: float = SAMPLE_SECONDS,
) -> Timings:
    """Times `calls` in turns for about `budget_s` seconds, for `min_rounds` rounds at least.

    On a machine so slow or so busy that this takes three times the budget, `FEWEST_ROUNDS` do.
    """
    start = time.perf_counter()
    repeats = {name: _repeats(call, sample_seconds) for name, call in calls.items()}
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    order = list(calls)
    shuffle = random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for done in range(max_rounds):
            elapsed = time.perf_counter() - start
            if elapsed > budget_s and done >= min_rounds:
                break
            if elapsed > 3 * budget_s and done >= min(min_rounds, FEWEST_ROUNDS):
                break
            shuffle(order)
            for name in order:
                if repeats[name] > 1:
                    calls[name]()  # the caches are its own again
                samples[name].append(_take(calls[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return Timings(samples)
