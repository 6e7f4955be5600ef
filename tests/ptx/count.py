"""Counts the instructions that kernels execute: ``python tests/ptx/count.py [case ...]``.

nvcc's PTX runs on the processor (``make ptx``); a block of instructions counts as often as the
busiest lane of every warp comes there, times 32 lanes, and every instruction as what ptxas makes of
it (``weights.py``). None of this was measured on a GPU. Numbers are per output element and channel.
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
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ptx import weights  # noqa: E402
from support import backends  # noqa: E402

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


def maps_of(batch: int, size: int) -> Tensor:
    """Every geometric transform of ADA at p = 1: all images turned."""
    generator = torch.Generator().manual_seed(0)
    uniforms = torch.rand(batch, UNIFORMS, dtype=torch.float64, generator=generator)
    normals = torch.randn(batch, NORMALS, dtype=torch.float64, generator=generator)
    geometry = AdaMultipliers(xflip=1, rotate90=1, xint=1, scale=1, rotate=1, aniso=1, xfrac=1)
    drawn = ops.ada_parameters(
        torch.ones(()), geometry, uniforms=uniforms, normals=normals, height=size, width=size
    )
    assert drawn.maps is not None
    return drawn.maps


Run = tuple[Callable[[], object], int]  # and the elements that it writes


def resample(transpose: bool, batch: int = 4, size: int = 256) -> Run:
    x, maps = torch.randn(batch, 3, size, size), maps_of(batch, size)
    if transpose:
        return lambda: ops.affine_resample_transpose(x, maps, input_size=(size, size)), x.numel()
    return lambda: ops.affine_resample(x, maps), x.numel()


def image_filter(transpose: bool = False, batch: int = 2, size: int = 256) -> Run:
    x, gains = torch.randn(batch, 3, size, size), torch.rand(batch, 4) + 0.5
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
    "affine_resample 4x3x256x256": lambda: resample(False),
    "affine_resample_transpose 4x3x256x256": lambda: resample(True),
    "image_filter 2x3x256x256": image_filter,
    "spectral_norm 512x512x3x3": lambda: spectral_norm(512, 512, 3, 3),
    "spectral_norm 256x1024": lambda: spectral_norm(256, 1024),
    "spectral_norm backward 512x512x3x3": lambda: spectral_norm_backward(512, 512, 3, 3),
    "gradient_penalty 16x3x128x128": lambda: penalty(16, 3, 128, 128),
    "gradient_penalty backward 16x3x128x128": lambda: penalty_backward(16, 3, 128, 128),
}


def measure(panel: ModuleType, make: Callable[[], Run]) -> tuple[dict[str, Count], int]:
    """The counts of a case's run, by kernel, and its output elements."""
    run, elements = make()
    panel.reset_counters()
    run()
    return counts(panel), elements


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", help="beginnings of: " + ", ".join(CASES))
    parser.add_argument("--opcodes", type=int, default=0, help="the most frequent, so many")
    args = parser.parse_args()
    panel = backends.panel_of("ptx")
    _operator.kernels = torch.ops.gankernels_ptx
    for name, make in CASES.items():
        if args.cases and not name.startswith(tuple(args.cases)):
            continue
        torch.manual_seed(0)
        found, elements = measure(panel, make)
        total = sum(count.instructions for count in found.values()) / elements
        double = sum(count.double for count in found.values()) / elements
        print(f"{name}: {total:.4g} instructions an element, {double:.4g} in double")
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


if __name__ == "__main__":
    main()
