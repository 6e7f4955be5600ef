"""What the page and the terminal say alike."""

from __future__ import annotations

from typing import Any

from benchmarks.core.contest import OURS, PLAIN
from benchmarks.core.events import (
    CompiledStep,
    Event,
    GradientAccuracy,
    LeftOut,
    MethodStep,
    Reduction,
    StepMemory,
    TrainingStep,
    only,
)
from benchmarks.core.harness import MIN_ROUNDS, Spread
from benchmarks.report.findings import Against, Ratio
from benchmarks.suites.first_order import CENTRAL, DIFFERENCE, EXACT, NOISE, ONE_SIDED
from benchmarks.suites.gradient_penalty import USUAL
from benchmarks.suites.registry import who

Facts = dict[str, Any]

#: What long names become where the width is short, in this order.
SHORT = {
    "gankernels.compile_step": "compile_step",
    "gankernels, eager": "eager mode",
    "gankernels per layer": "per layer",
    "gankernels fused": "fused",
    "torch parametrization": "torch",
    "torch hook": "hook",
    "torch.compile of it": "compiled",
    "torch.compile of that": "compiled",
    "view, norm(2, 1)": "norm(2, 1)",
    "fastest eager form": "eager",
    "published pipeline": "published",
    "kornia, bilinear, compiled": "kornia c.",
    "kornia, bilinear": "kornia",
    "torchvision, one by one": "torchvis.",
    "forward, no_grad": "no_grad",
    "forward + backward": "fwd+bwd",
    "R1 double backward": "R1",
    "forward": "fwd",
    " channels_last": " NHWC",
    " at p = ": " ",
    "convolutions": "conv",
    " autocast": "",
    "difference, ": "",
    " (in full: ": " (",
    "Spectral norm: ": "norm: ",
    "Gradient penalties: ": "penalties: ",
    "exact, second derivatives": "exact",
    "times faster": "faster",
}


def short(text: str) -> str:
    """The same with the short names."""
    for long, brief in SHORT.items():
        text = text.replace(long, brief)
    return text


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def times(ratio: float) -> str:
    """1.24x, 3.4x, 20x."""
    return f"{ratio:.{2 if ratio < 1.995 else 1 if ratio < 9.95 else 0}f}x"


def quartiles(spread: Spread) -> str:
    return f"{times(spread.q25)[:-1]} to {times(spread.q75)[:-1]}"


def range_of(group: Against) -> str:
    """From the lowest median to the highest."""
    if group.range is None:
        return "all disturbed"
    low, high = map(times, group.range)
    return low if low == high else f"{low} to {high}"


AGAINST_COLUMNS = ["gankernels", "against", "as fast", "slower", "faster", "same", "disturbed"]


def against_rows(groups: list[Against]) -> list[list[str]]:
    """By alternative: the range, and how many measurements say what."""
    return [
        [
            f"{group.suite}: {group.ours}",
            group.other,
            range_of(group),
            str(group.count("slower")),
            *(str(group.count(verdict) or "") for verdict in AGAINST_COLUMNS[4:]),
        ]
        for group in groups
    ]


def loss(ratio: Ratio) -> str:
    """Where gankernels is slower, and by how much."""
    found = f"{times(ratio.spread.median)} ({quartiles(ratio.spread)})"
    return f"{ratio.ours} is slower than {ratio.other}, {ratio.where}: {found}"


def mark(calm: bool, seconds: Spread) -> str:
    """What a reader must know of a time that little stands behind."""
    few = f" ({seconds.count} samples)" if seconds.count < MIN_ROUNDS else ""
    return ("" if calm else " *") + few


def share(step: TrainingStep) -> str:
    """What of a step the suite's subject takes; no number where that may as well be nothing."""
    if step.kind == PLAIN:
        return ""
    low, high = 100 * step.share_q25, 100 * step.share_q75
    if low <= 0 <= high:
        return f"within noise ({low:.1f} to {high:.1f} %)"
    return f"{100 * step.share:.1f} % ({low:.1f} to {high:.1f})"


def left_out_lines(events: list[Event]) -> list[str]:
    """Who was left out, and why: a line for all missing packages, and one for each other reason."""
    missing: dict[str, None] = {}
    others: dict[tuple[str, str], list[str]] = {}
    for event in only(events, LeftOut):
        if event.reason.startswith("ModuleNotFoundError"):
            missing[event.reason.rpartition("'")[0].rpartition("'")[2]] = None
        else:
            others.setdefault((who(event), event.reason), []).append(event.network)
    lines = [f"Not compared, as not installed: {', '.join(missing)}"] if missing else []
    for (contestant, reason), networks in others.items():
        lines.append(f"Left out: {contestant} ({'; '.join(dict.fromkeys(networks))}): {reason}")
    return lines


def verdict_mark(bar: Facts) -> str:
    """What is said of a bar."""
    if bar["reached"] is None:
        return "not measured" if bar["measured"] is None else "disturbed, not judged"
    return "reached" if bar["reached"] else "not reached"


def batch(step: TrainingStep | CompiledStep) -> str:
    """The batch of a step, and that of the full mode where it is another."""
    taken, full = step.batch, step.full_batch
    return str(taken) if taken == full else f"{taken} (in full: {full})"


def step_peaks(events: list[Event]) -> dict[tuple[str, str], int]:
    """Peak memory by network and kind, of the steps where it was measured."""
    return {(e.network, e.kind): e.peak_bytes for e in only(events, StepMemory)}


def reduction_sentence(event: Reduction) -> str:
    """How little of a step the penalty's own arithmetic is."""
    usual, ours = (100 * event.shares[kind] for kind in (USUAL, OURS))
    return (
        f"{event.title}: of a whole step with R1, the penalty's reduction of the gradients, "
        f"which is what gankernels makes faster, is {usual:.2f} % in the usual form and "
        f"{ours:.2f} % in gankernels. The rest is the critic's own."
    )


METHODS = {
    PLAIN: "no penalty",
    NOISE: "noise",
    ONE_SIDED: "difference, one-sided",
    CENTRAL: "difference, central",
    EXACT: "exact, second derivatives",
}


def method_rows(events: list[Event]) -> list[list[str]]:
    """By method: milliseconds a step and times the exact one's, eager and compiled; peak memory."""
    rows = []
    for kind, label in METHODS.items():
        cells = [label]
        for compiled in (False, True):
            found = only(events, MethodStep, kind=kind, compiled=compiled)
            for step in found[:1]:
                cells += [milliseconds(step.seconds.median), f"{step.over_exact.median:.2f}"]
            cells += [] if found else ["", ""]
        peaks = [e.peak_bytes / 1e6 for e in only(events, MethodStep, kind=kind, compiled=False)]
        rows.append([*cells, f"{peaks[0]:.0f}" if peaks else ""])
    return rows


METHOD_COLUMNS = ["R1 + R2", "ms", "over exact", "compiled ms", "over exact", "peak MB"]


def compiled_rows(events: list[Event]) -> list[list[str]]:
    """By network: a whole step in eager mode and compiled, and what the first call takes."""
    return [
        [
            e.title + mark(e.calm, e.compiled_seconds),
            batch(e),
            milliseconds(e.eager_seconds.median),
            milliseconds(e.compiled_seconds.median),
            f"{e.times_faster.median:.2f}",
            f"{e.first_seconds:.0f}",
        ]
        for e in only(events, CompiledStep)
    ]


COMPILED_COLUMNS = ["critic", "batch", "eager ms", "compiled ms", "times faster", "first call s"]
COMPILED_TITLE = "A whole step with R1 of a spectrally normalized critic, as one compiled graph"


def accuracy_rows(events: list[Event]) -> list[list[str]]:
    """Relative error and cosine of gradients, a line for each critic, precision and sigma."""
    rows = []
    found = only(events, GradientAccuracy)
    for key in dict.fromkeys((e.critic, e.precision, e.sigma) for e in found):
        cells = [*key[:2], f"{key[2]:g}"]
        for method in (DIFFERENCE, NOISE):
            for e in found:
                if (e.critic, e.precision, e.sigma) == key and e.method == method:
                    cells += [f"{e.error:.1e}", f"{e.cosine:.4f}"]
        rows.append(cells)
    return rows


ACCURACY_COLUMNS = ["critic", "precision", "sigma", "error", "cosine", "noise: error", "its cosine"]


AUGMENTATION_SENTENCES = (
    "The published pipeline is composed of its passes in plain PyTorch, as benchmarks/published "
    "has it, without its own CUDA operators.",
    "kornia and torchvision interpolate bilinearly and do not anti-alias: they do less work, and "
    "another. torchvision takes images one by one, as it draws one transform a call.",
    "Cycles a pixel are for all 3 channels: processor seconds of one thread times the frequency "
    "in /proc/cpuinfo, which on virtual machines is that of the time-stamp counter.",
)
