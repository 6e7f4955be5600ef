"""The model in words and tables: the section of docs/cuda.md, whose words are in section.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from benchmarks.core.contest import shape_name
from benchmarks.gpu.model import comparisons as of
from benchmarks.gpu.model.costs import GPUS, ISSUED, LAUNCH_S, SCHEDULERS, Comparison, Gpu
from benchmarks.gpu.model.counts import (
    BOTH,
    DIRECTIONS,
    FORWARD,
    IMAGES,
    Counts,
    P,
    filter_name,
    geometry_name,
)

DOCS = Path(__file__).resolve().parents[3] / "docs" / "cuda.md"
TEMPLATE = Path(__file__).with_name("section.md")
BEGIN, END = "## A model of ", "## To do\n"


def _time(seconds: float) -> str:
    us = seconds * 1e6
    return f"{us / 1000:#.3g} ms" if us >= 1000 else f"{us:.0f} us"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |\n"


def _head(cells: Sequence[str]) -> str:
    names = [*cells, *(gpu.name for gpu in GPUS)]
    return _row(names) + "|---" * len(names) + "|\n"


def _table(cells: Sequence[str], rows: Sequence[Comparison]) -> str:
    def cell(row: Comparison, gpu: Gpu) -> str:
        text = f"{row.faster(gpu):.1f}x, {_time(row.ours.seconds(gpu))}"
        return (
            text if row.faster(gpu) >= 1 else f"**{row.faster(gpu):.2f}x**{text[text.index(',') :]}"
        )

    lines = (_row([*row.name, *(cell(row, gpu) for gpu in GPUS)]) for row in rows)
    return _head(cells) + "".join(lines)


def _gpus() -> str:
    head = ("GPU", "multiprocessors", "clock", "memory", "L2", "instructions of threads a second")
    lines = (
        _row(
            (
                g.name,
                str(g.multiprocessors),
                f"{g.clock_hz / 1e9:g} GHz",
                f"{g.bytes_per_s / 1e12:g} TB/s",
                f"{g.cache_bytes >> 20} MiB",
                f"{g.instructions_per_s / 1e12:.1f}e12",
            )
        )
        for g in GPUS
    )
    return _row(head) + "|---" * len(head) + "|\n" + "".join(lines)


def _limits(counts: Counts) -> str:
    """Of our passes over large images: what memory takes, and what issuing does."""
    nbytes = of.ITEM * math.prod(IMAGES[0])
    passes = {
        f"`affine_resample`, p = {p:g}{', transpose' if transpose else ''}": of.resampling(
            counts, transpose, p, nbytes
        )
        for p in P
        for transpose in (False, True)
    } | {
        f"`image_filter`{', transpose' if transpose else ''}": of.filtering(
            counts, transpose, nbytes
        )
        for transpose in (False, True)
    }
    text = _head(("pass", "instructions"))
    for name, cost in passes.items():
        times = (f"{_time(cost.memory_s(g))}, {_time(cost.issue_s(g))}" for g in GPUS)
        text += _row((name, f"{cost.executed.instructions / nbytes * of.ITEM:.0f}", *times))
    return text


def _kinds(counts: Counts) -> str:
    def instructions(operator: str, kind: str) -> str:
        return f"{counts.executed(f'{operator} {kind} 4x3x256x256').instructions:,.0f}"

    operators = ("affine_resample", "affine_resample_transpose")
    return "; ".join(f"{k}: {', '.join(instructions(o, k) for o in operators)}" for k in of.KINDS)


def _losses(rows: Sequence[Comparison]) -> str:
    """Where others are faster, a line a pass."""
    text = ""
    for row in rows:
        lost = [f"{row.faster(g):.2f}x on the {g.name}" for g in GPUS if row.faster(g) < 1]
        if lost:
            text += f"- {', '.join(row.name)}: {', '.join(lost)}\n"
    if text:
        return "Where we lose:\n\n" + text
    faster, name, gpu = min(
        (row.faster(g), ", ".join(row.name), g.name) for row in rows for g in GPUS
    )
    return f"By these counts we lose nowhere; the least is {faster:.2f}x: {name} on the {gpu}.\n"


def _words(passes: Mapping[str, of.Passes]) -> SimpleNamespace:
    return SimpleNamespace(
        forward=passes[FORWARD].passes,
        launches=passes[FORWARD].launches,
        both=passes[BOTH].passes,
        launches_both=passes[BOTH].launches,
    )


def section() -> str:
    """The section, with its heading."""
    counts = Counts()
    norms, penalties = list(of.norms(counts)), list(of.penalties(counts))
    augmentations = list(of.augmentations(counts))
    nbytes = of.ITEM * math.prod(IMAGES[0])
    theirs = [
        counts.published(case, direction, nbytes)
        for case in (geometry_name(IMAGES[0], 1.0), filter_name(IMAGES[0]))
        for direction in DIRECTIONS
    ]
    return TEMPLATE.read_text().format(
        launch_us=f"{LAUNCH_S * 1e6:g}",
        schedulers=SCHEDULERS,
        issued=f"{ISSUED:.0%}",
        warps=f"{SCHEDULERS * ISSUED:g}",
        gpus=_gpus(),
        losses=_losses([*norms, *penalties, *augmentations]),
        torch=_words(of.TORCH),
        ours=_words(of.OURS),
        tensors=of.TENSORS_A_CALL,
        norms=_table(("network", "layers", "weights", "pass"), norms),
        usual=_words(of.TORCH_PENALTY),
        reduction=_words(of.OUR_PENALTY),
        penalties=_table(("gradient", "size", "pass"), penalties),
        passes=[f"{cost.nbytes / nbytes:.0f}" for cost in theirs],
        launches=[cost.launches for cost in theirs],
        shares=of.shares(0.2),
        augmentations=_table(("operator", "images", "pass"), augmentations),
        images=shape_name(IMAGES[0]),
        limits=_limits(counts),
        kinds=_kinds(counts),
    )


def write() -> None:
    """Put the section in its place in docs/cuda.md."""
    before, _, rest = DOCS.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"{DOCS}: expected sections {BEGIN!r} and {END!r}")
    DOCS.write_text(before + section() + end + after)
