"""Counts the instructions that kernels execute: ``python tests/ptx/count.py [case ...]``.

nvcc's PTX runs on the processor (``make ptx``); a block of instructions counts as often as the
busiest lane of every warp comes there, times 32 lanes, and every instruction as what ptxas makes of
it (``weights.py``). None of this was measured on a GPU. Numbers are per output element and channel.
``--write`` renews ``benchmarks/gpu/model/counts.json``, and the model in ``docs/cuda.md`` of it.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ptx import weights  # noqa: E402
from support import backends  # noqa: E402

from benchmarks.core.contest import shape_name  # noqa: E402
from benchmarks.gpu.model import counts as kept  # noqa: E402
from benchmarks.gpu.model import section  # noqa: E402
from gankernels import ops  # noqa: E402
from gankernels.ops import _operator  # noqa: E402
from gankernels.ops.ada_parameters import NORMALS, UNIFORMS, AdaMultipliers  # noqa: E402

WARP = 32
KINDS = {
    "global loads": r"ld\.global",
    "global stores": r"st\.global",
    "shared loads": r"ld\.shared",
    "shared stores": r"st\.shared",
    "atomics": r"(atom|red)\.",
    "barriers": r"(bar|barrier)\.",
    "shuffles": r"shfl\.",
}


@dataclass
class Count:
    """What a kernel's threads executed, idle lanes of a warp included."""

    instructions: float = 0
    double: float = 0
    ptx: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    opcodes: Counter[str] = field(default_factory=Counter)


def short(mangled: str) -> str:
    """``gather<float>`` of a mangled name."""
    done = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True)
    name = re.sub(r"^void |\(anonymous namespace\)::", "", done.stdout.strip())
    name = name.partition("(")[0] if "<" not in name else name[: name.rindex(">(") + 1]
    return re.sub(r"\b\w+::", "", name)


def counts(panel: ModuleType) -> dict[str, Count]:
    """By kernel, since the counters were reset."""
    found: dict[str, Count] = {}
    blocks: dict[str, list[tuple[int, dict[str, int]]]] = {}
    for path in backends.FOLDERS["ptx"].glob("*.json"):
        blocks |= json.loads(path.read_text())
    for kernel, issues in panel.issued().items():
        if not any(issues):
            continue
        count = found.setdefault(kernel, Count())
        for (_, opcodes), issued in zip(blocks[kernel], issues, strict=True):
            for opcode, number in opcodes.items():
                executed = number * issued * WARP
                instructions, double = weights.weigh(opcode)
                count.ptx += executed
                count.instructions += executed * instructions
                count.double += executed * double
                count.opcodes[opcode] += executed
                for kind, pattern in KINDS.items():
                    if re.match(pattern, opcode):
                        count.kinds[kind] += executed
    return {short(kernel): count for kernel, count in found.items()}


COPIED, SEPARABLE, TURNED = "copied", "separable", "turned"


def maps_of(batch: int, size: int, kind: str = TURNED) -> Tensor:
    """Maps of ADA's geometry: at p = 1, where all images are turned; the others at p = 0.2."""
    if kind == TURNED:
        return _drawn(batch, size, 1.0)
    maps = _drawn(64 * batch, size, 0.2)
    straight = (maps[:, 0, 1] == 0) & (maps[:, 1, 0] == 0)
    swapped = (maps[:, 0, 0] == 0) & (maps[:, 1, 1] == 0)
    whole = (maps == maps.round()).flatten(1).all(1) & (maps[:, :, :2].abs().sum((1, 2)) == 2)
    return maps[(straight | swapped) & (whole if kind == COPIED else ~whole)][:batch]


def _drawn(batch: int, size: int, p: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(batch, UNIFORMS, dtype=torch.float64, generator=generator)
    normals = torch.randn(batch, NORMALS, dtype=torch.float64, generator=generator)
    geometry = AdaMultipliers(xflip=1, rotate90=1, xint=1, scale=1, rotate=1, aniso=1, xfrac=1)
    drawn = ops.ada_parameters(
        torch.tensor(p), geometry, uniforms=uniforms, normals=normals, height=size, width=size
    )
    assert drawn.maps is not None
    return drawn.maps


Run = tuple[Callable[[], object], int]  # and the elements that it writes


def resample(transpose: bool, kind: str = TURNED, batch: int = 4, size: int = 256) -> Run:
    x, maps = torch.randn(batch, 3, size, size), maps_of(batch, size, kind)
    if transpose:
        return lambda: ops.affine_resample_transpose(x, maps, input_size=(size, size)), x.numel()
    return lambda: ops.affine_resample(x, maps), x.numel()


def image_filter(transpose: bool = False, batch: int = 2, size: int = 256) -> Run:
    x, gains = torch.randn(batch, 3, size, size), torch.rand(batch, 4) + 0.5
    if transpose:
        x.requires_grad_()
        out = ops.image_filter(x, gains)
        return lambda: torch.autograd.grad(out, x, x.detach(), retain_graph=True), x.numel()
    return lambda: ops.image_filter(x, gains), x.numel()


def spectral_norm(*shape: int) -> Run:
    w = torch.randn(*shape)
    u, v = torch.randn(w.shape[0]), torch.randn(w.numel() // w.shape[0])
    return lambda: ops.spectral_norm([w], [u], [v], 1), w.numel()


def spectral_norm_backward(*shape: int) -> Run:
    w = torch.randn(*shape, requires_grad=True)
    u, v = torch.randn(w.shape[0]), torch.randn(w.numel() // w.shape[0])
    out, _ = ops.spectral_norm([w], [u], [v], 1)
    return lambda: torch.autograd.grad(out[0].sum(), w, retain_graph=True), w.numel()


def penalty(*shape: int) -> Run:
    g = torch.randn(*shape)
    return lambda: ops.gradient_penalty([g]), g.numel()


def penalty_backward(*shape: int) -> Run:
    g = torch.randn(*shape, requires_grad=True)
    value = ops.gradient_penalty([g])
    return lambda: torch.autograd.grad(value, g, retain_graph=True), g.numel()


CASES: dict[str, Callable[[], Run]] = {
    "affine_resample turned 4x3x256x256": lambda: resample(False),
    "affine_resample_transpose turned 4x3x256x256": lambda: resample(True),
    "affine_resample separable 4x3x256x256": lambda: resample(False, SEPARABLE),
    "affine_resample_transpose separable 4x3x256x256": lambda: resample(True, SEPARABLE),
    "affine_resample copied 4x3x256x256": lambda: resample(False, COPIED),
    "affine_resample_transpose copied 4x3x256x256": lambda: resample(True, COPIED),
    "image_filter 2x3x256x256": image_filter,
    "image_filter_transpose 2x3x256x256": lambda: image_filter(True),
    **{f"spectral_norm {shape_name(s)}": partial(spectral_norm, *s) for s in kept.WEIGHTS},
    **{
        f"spectral_norm backward {shape_name(s)}": partial(spectral_norm_backward, *s)
        for s in kept.WEIGHTS
    },
    **{f"gradient_penalty {shape_name(s)}": partial(penalty, *s) for s in kept.GRADIENTS},
    **{
        f"gradient_penalty backward {shape_name(s)}": partial(penalty_backward, *s)
        for s in kept.GRADIENTS
    },
}


def measure(panel: ModuleType, make: Callable[[], Run]) -> tuple[dict[str, Count], int]:
    """The counts of a case's run, by kernel, and its output elements."""
    run, elements = make()
    panel.reset_counters()
    run()
    return counts(panel), elements


def totals(found: dict[str, Count], elements: int) -> tuple[float, float]:
    """The instructions of all kernels, an element, and those of them in double."""
    instructions = sum(count.instructions for count in found.values())
    return instructions / elements, sum(count.double for count in found.values()) / elements


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="beginnings of: " + ", ".join(CASES))
    parser.add_argument("--opcodes", type=int, default=0, help="the most frequent, so many")
    parser.add_argument("--write", action="store_true", help="renew the model in docs/cuda.md")
    args = parser.parse_args()
    if args.write and args.cases:
        parser.error("--write: expected no cases, as the model needs all of them")
    measured: dict[str, tuple[float, float]] = {}
    panel = backends.panel_of("ptx")
    _operator.kernels = torch.ops.gankernels_ptx
    for name, make in CASES.items():
        if args.cases and not name.startswith(tuple(args.cases)):
            continue
        torch.manual_seed(0)
        found, elements = measure(panel, make)
        measured[name] = totals(found, elements)
        instructions, double = measured[name]
        print(f"{name}: {instructions:.4g} instructions an element, {double:.4g} in double")
        for kernel, count in found.items():
            numbers = {
                "instructions": count.instructions,
                "in double": count.double,
                "of PTX": count.ptx,
                **count.kinds,
            }
            text = ", ".join(f"{n / elements:.4g} {kind}" for kind, n in numbers.items())
            print(f"  {kernel}: {text}", flush=True)
            for opcode, number in count.opcodes.most_common(args.opcodes):
                cost = weights.weigh(opcode)[0]
                print(f"    {number / elements:9.2f} x {cost:<6g} {opcode}")
    if args.write:
        kept.write(measured)
        section.write()


if __name__ == "__main__":
    main()
