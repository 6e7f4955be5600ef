"""What the measurements say of gankernels against each alternative: faster, slower, or the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from benchmarks.core.contest import COMPILED, PLAIN
from benchmarks.core.environment import TUNED
from benchmarks.core.events import (
    GRADIENT_PENALTY,
    SPECTRAL_NORM,
    CompiledStep,
    Event,
    Layer,
    MethodStep,
    Row,
    TrainingStep,
    only,
)
from benchmarks.core.harness import Spread
from benchmarks.suites import first_order
from benchmarks.suites.registry import SUITES, Suite
from benchmarks.suites.spectral_norm import FUSED, LAYER, TORCH

THREADS = 2  # of most rows: another number is said

OURS_IN = {name: (suite.ours,) for name, suite in SUITES.items()} | {SPECTRAL_NORM: (FUSED, LAYER)}


@dataclass(frozen=True)
class Ratio:
    """How many times faster gankernels is than an alternative, at one place."""

    suite: str  # its title
    ours: str
    other: str
    where: str
    spread: Spread
    seconds: Spread | None  # ours, where they were kept
    calm: bool
    ranged: bool = True  # counts in the range: page faults of default malloc would widen it

    @property
    def name(self) -> str:
        return f"{self.suite}: {self.ours} over {self.other}, {self.where}"

    @property
    def verdict(self) -> str:
        """By the quartiles; nothing is said of what others disturbed."""
        if not self.calm:
            return "disturbed"
        if self.spread.q25 > 1:
            return "faster"
        return "slower" if self.spread.q75 < 1 else "same"


@dataclass(frozen=True)
class Against:
    """All ratios of gankernels to one alternative."""

    suite: str
    ours: str
    other: str
    ratios: list[Ratio]

    def count(self, verdict: str) -> int:
        return sum(ratio.verdict == verdict for ratio in self.ratios)

    @property
    def range(self) -> tuple[float, float] | None:
        """The lowest and the highest median, of what was not disturbed."""
        found = [r.spread.median for r in self.ratios if r.calm and r.ranged]
        return (min(found), max(found)) if found else None


def inverse(spread: Spread) -> Spread:
    """Of the other way round; the quartiles change places."""
    return Spread(1 / spread.median, 1 / spread.q75, 1 / spread.q25, spread.count)


def ratios(events: list[Event]) -> Iterator[Ratio]:
    """Gankernels against every alternative, wherever both were measured in the same rounds."""
    for suite in SUITES.values():
        yield from _of_rows(only(events, Row, suite=suite.name), suite)
    norms, penalties = SUITES[SPECTRAL_NORM], SUITES[GRADIENT_PENALTY]
    for e in only(events, Layer):
        where = f"one layer of {'x'.join(map(str, e.shape))}, {e.which}"
        of = norms.title, norms.labels[LAYER], norms.labels[TORCH]
        yield Ratio(*of, where + _threads(e), e.times_faster, e.our_seconds, e.calm)
    yield from _of_steps(only(events, TrainingStep, suite=SPECTRAL_NORM), norms)
    for c in only(events, CompiledStep):
        of = penalties.title, "gankernels.compile_step", "gankernels, eager"
        where = f"whole step of {c.network}, batch {c.batch}"
        yield Ratio(*of, where, c.times_faster, c.compiled_seconds, c.calm)
    for m in only(events, MethodStep):
        if m.kind not in (PLAIN, first_order.EXACT):
            ours = f"{m.kind}, {COMPILED}" if m.compiled else m.kind
            of = penalties.title, f"R1 + R2, {ours}", "exact R1 + R2"
            spread = inverse(m.over_exact)
            yield Ratio(*of, "whole step of a transformer", spread, m.seconds, m.calm)


def _threads(event: Event) -> str:
    return "" if event.threads == THREADS else f", {event.threads} thr."


def _of_rows(rows: list[Row], suite: Suite) -> Iterator[Ratio]:
    """From our row, or from the other's where ours is not shown."""
    mine, seen = OURS_IN[suite.name], set()
    seconds: Spread | None
    for row in sorted(rows, key=lambda row: row.kind not in mine):
        than = row.times_faster_than
        if row.kind in mine:
            found = [(row.kind, other, than[other]) for other in than if other not in mine]
            seconds = row.seconds
        else:
            found = [(ours, row.kind, inverse(than[ours])) for ours in mine if ours in than]
            seconds = None
        tuned = row.allocator == TUNED
        where = f"{row.network}, {row.which}" + ("" if tuned else ", default malloc")
        for ours, other, spread in found:
            of = suite.title, suite.labels[ours], suite.labels[other], where + _threads(row)
            if of not in seen:
                yield Ratio(*of, spread, seconds, row.calm, tuned)
            seen.add(of)


def _of_steps(steps: list[TrainingStep], suite: Suite) -> Iterator[Ratio]:
    """Whole steps: each was paired with one without spectral norm, so the quartiles are wide."""
    torch = {(s.network, s.threads): s for s in steps if s.kind == TORCH}
    for step in steps:
        other = torch.get((step.network, step.threads))
        if step.kind not in (FUSED, LAYER) or other is None:
            continue
        spread = Spread(
            (1 - step.share) / (1 - other.share),
            (1 - step.share_q75) / (1 - other.share_q25),
            (1 - step.share_q25) / (1 - other.share_q75),
            min(step.seconds.count, other.seconds.count),
        )
        of = suite.title, f"whole step, {suite.labels[step.kind]}", suite.labels[TORCH]
        where = f"{step.network}, batch {step.batch}{_threads(step)}"
        yield Ratio(*of, where, spread, step.seconds, step.calm and other.calm)


def against(events: list[Event]) -> list[Against]:
    """The ratios by alternative, in the order in which they were found."""
    grouped: dict[tuple[str, str, str], list[Ratio]] = {}
    for ratio in ratios(events):
        grouped.setdefault((ratio.suite, ratio.ours, ratio.other), []).append(ratio)
    return [Against(*key, found) for key, found in grouped.items()]


def slower(groups: Iterable[Against]) -> list[Ratio]:
    """Where gankernels loses, the worst first."""
    found = [r for group in groups for r in group.ratios if r.verdict == "slower"]
    return sorted(found, key=lambda r: r.spread.median)
