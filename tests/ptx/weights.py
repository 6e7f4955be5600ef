"""How many instructions of machine code (SASS, sm_90) an instruction of PTX becomes.

``python tests/ptx/weights.py`` measures them: ptxas compiles a straight kernel of one instance and
one of nine, and the difference, less loads and stores, is what an instance takes.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # as a script, too

from build_support import cuda_report, sass  # noqa: E402

#: Instructions, and of them in double, that a line of PTX with its result and operands becomes: d
#: is 64 bits wide, r 32, h 16, p a predicate. A row stands for all types of its kind (`kind_of`).
MEASURED = {
    "add.s64 d d d": (2, 0),
    "sub.s64 d d d": (2, 0),
    "and.b64 d d d": (2, 0),
    "or.b64 d d d": (2, 0),
    "xor.b64 d d d": (2, 0),
    "not.b64 d d": (2, 0),
    "neg.s64 d d": (2, 0),
    "shl.b64 d d r": (2, 0),
    "shr.s64 d d r": (2, 0),
    "shr.u64 d d r": (2, 0),
    "setp.lt.s64 p d d": (2, 0),
    "selp.b64 d d d p": (2, 0),
    "min.s64 d d d": (4, 0),
    "max.s64 d d d": (4, 0),
    "mul.wide.s32 d r r": (1, 0),
    "mad.wide.s32 d r r d": (3, 0),
    "mul.lo.s64 d d d": (4, 0),
    "mad.lo.s64 d d d d": (5, 0),
    "mul.hi.u64 d d d": (7, 0),
    "mul.hi.s64 d d d": (17, 0),
    "mul.lo.s32 r r r": (1, 0),
    "mul.hi.s32 r r r": (1, 0),
    "mul.hi.u32 r r r": (1, 0),
    "mad.lo.s32 r r r r": (1, 0),
    "cvt.s64.s32 d r": (1, 0),
    "abs.s32 r r": (1.75, 0),
    "abs.s64 d d": (5, 0),
    "bfi.b32 r r r 4 8": (2, 0),
    "prmt.b32 r r r 0x5410": (1, 0),
    "shf.l.wrap.b32 r r r r": (1, 0),
    "div.s32 r r r": (26, 0),
    "div.u32 r r r": (18, 0),
    "rem.s32 r r r": (23, 0),
    "rem.u32 r r r": (17, 0),
    # A call of a subroutine each, with all of its length.
    "div.s64 d d d": (88, 0),
    "rem.s64 d d d": (84, 0),
    "div.u64 d d d": (72, 0),
    "rem.u64 d d d": (68, 0),
    # Without the subroutine, which numbers at the end of the range take.
    "div.rn.f32 r r r": (12.625, 0),
    "rcp.rn.f32 r r": (12, 0),
    "sqrt.rn.f32 r r": (12, 0),
    "div.rn.f64 d d d": (17.875, 9),
    "rcp.rn.f64 d d": (15, 6),
    "sqrt.rn.f64 d d": (24.625, 9),
    "shl.b32+add.s32 r r r": (1, 0),  # of an addend: LEA
    "add.f32 r r r": (1, 0),
    "fma.rn.f32 r r r r": (1, 0),
    "min.f32 r r r": (1, 0),
    "setp.lt.f32 p r r": (1, 0),
    "add.f64 d d d": (1, 1),
    "mul.f64 d d d": (1, 1),
    "fma.rn.f64 d d d d": (1, 1),
    "setp.lt.f64 p d d": (1, 1),
    "min.f64 d d d": (7, 1),
    "max.f64 d d d": (7, 1),
    "cvt.f64.f32 d r": (1, 1),
    "cvt.rn.f32.f64 r d": (1, 1),
    "cvt.rn.f64.s64 d d": (1, 1),
    "cvt.rzi.s64.f64 d d": (1, 1),
    "cvt.rmi.f64.f64 d d": (1, 1),
    "cvt.rn.f32.s32 r r": (1, 0),
    "cvt.rzi.s32.f32 r r": (1, 0),
    "cvt.f32.f16 r h": (1, 0),
    "cvt.f32.bf16 r h": (1, 0),
    "cvt.rn.f16.f32 h r": (2, 0),
    "cvt.rn.bf16.f32 h r": (2, 0),
}
#: Loops, one round of each, read from the machine code. A 64-bit sum in shared memory compares and
#: swaps, once more for every lane of the warp that it meets in its word.
LOOPS = {r"atom\.shared\.\w+\.[bsu]64": (9, 0)}
#: No instruction, for what stands around it takes it in.
FREE = {
    r"ld\.param\..*": "an operand in constant memory",
    r"cvta\..*": "global addresses are addresses",
    r"mov\..*": "other names of registers, or constants, which are operands",
    r"cvt\.([su]32\.[su]64|u64\.u32|[su]64\.[su]64)": "parts of a register",
    r"cvt\.([su](8|16)\.[su]\d+|[su]32\.[su](8|16))": "parts of a register",
    r"(and|or|xor|not)\.pred": "operands of a comparison",
    r"(neg|abs)\.f(32|64)": "modifiers of operands",
    r"add \(the offset of an address\)": "loads and stores add a constant",
    r"shr \(the upper half of a register\)": "a register of 64 bits is two of 32",
    r"shl \(of an addend\)": "LEA shifts what it adds",
    r"bra\.uni": "the other side of a branch lies next to it",
}


def kind_of(opcode: str) -> str:
    """What costs the same: any comparison, and mostly any sign."""
    opcode = re.sub(r"^setp\.\w+", "setp", opcode)
    opcode = re.sub(r"^(add|sub|mul)\.rn", r"\1", opcode)
    opcode = re.sub(r"^selp\.\w", "selp.b", opcode)
    if not re.match(r"div|rem|cvt|mul\.hi", opcode):
        opcode = re.sub(r"\.[su](?=\d+$)", ".b", opcode)
    return opcode


COSTS = {kind_of(row.split()[0]): cost for row, cost in MEASURED.items()}


@cache
def weigh(opcode: str) -> tuple[float, float]:
    """Instructions of machine code, and of them in double, that an instruction of PTX becomes."""
    if any(re.fullmatch(pattern, opcode) for pattern in FREE):
        return 0, 0
    for pattern, loop in LOOPS.items():
        if re.fullmatch(pattern, opcode):
            return loop
    if cost := COSTS.get(kind_of(opcode)):
        return cost
    name, *mods = opcode.split(".")
    return 1, float("f64" in mods and name not in ("ld", "st"))


# --- measuring ----------------------------------------------------------------------------------

WIDTH = {"d": "64", "r": "32", "h": "16"}


def straight(name: str, row: str, count: int) -> str:
    """A kernel of `count` instances, each with operands of its own."""
    opcode, result, *operands = row.split()
    body, k = [], 0
    for _ in range(count):
        arguments = []
        for operand in operands:
            k += 8
            if operand == "p":
                body += [
                    f"ld.volatile.global.u32 %t{k}, [%base+{k}];",
                    f"setp.ne.s32 %p{k}, %t{k}, 0;",
                ]
            elif operand in WIDTH:
                body.append(f"ld.volatile.global.b{WIDTH[operand]} %{operand}{k}, [%base+{k}];")
            arguments.append(f"%{operand}{k}" if operand in "pdrh" else operand)
        k += 8
        if opcode == "shl.b32+add.s32":
            a, b = arguments
            body += [f"shl.b32 %t{k}, {a}, 2;", f"add.s32 %r{k}, {b}, %t{k};"]
        else:
            body.append(f"{opcode} %{result}{k}, {', '.join(arguments)};")
        kept, width = (f"%t{k}", "32") if result == "p" else (f"%{result}{k}", WIDTH[result])
        if result == "p":
            body.append(f"selp.b32 %t{k}, 1, 0, %p{k};")
        body.append(f"st.volatile.global.b{width} [%base+{k}], {kept};")
    registers = {"h": "b16", "r": "b32", "d": "b64", "p": "pred", "t": "b32"}
    declared = " ".join(f".reg .{kind} %{x}<{k + 1}>;" for x, kind in registers.items())
    return "\n".join(
        [
            f".visible .entry {name}(.param .u64 p) {{ {declared} .reg .b64 %base, %given;",
            "ld.param.u64 %given, [p]; cvta.to.global.u64 %base, %given;",
            *body,
            "ret; }\n",
        ]
    )


def lengths(text: str) -> dict[str, tuple[int, int, int]]:
    """By kernel: instructions, those in double, and those of the compiler's subroutines."""
    found: dict[str, list[int]] = {}
    kernel, subroutine = "", False
    for line in text.splitlines():
        if line.startswith(".text."):
            kernel, subroutine = line.removeprefix(".text.").rstrip(":"), False
            found[kernel] = [0, 0, 0]
        elif line.startswith("$__internal"):
            subroutine = True
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?(\w[\w.]*)", line):
            if match[1] == "NOP":
                continue
            found[kernel][2 if subroutine else 0] += 1
            found[kernel][1] += bool(sass.DOUBLE.match(match[1])) and not subroutine
    return {kernel: (a, b, c) for kernel, (a, b, c) in found.items()}


def measure() -> dict[str, tuple[float, float]]:
    """MEASURED, as ptxas has it."""
    text = ".version 9.0\n.target sm_90\n.address_size 64\n"
    for i, row in enumerate(MEASURED):
        text += straight(f"one{i}", row, 1) + straight(f"nine{i}", row, 9)
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "a.ptx"), Path(folder, "a.cubin")
        ptx.write_text(text)
        ptxas = cuda_report.toolkit().home / "bin" / "ptxas"
        subprocess.run([ptxas, "-arch=sm_90", ptx, "-o", cubin], check=True)
        command = [cuda_report.disassembler(), "-c", cubin]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = lengths(code)
    result = {}
    for i, row in enumerate(MEASURED):
        (many, doubles, subroutine), (one, double, _) = found[f"nine{i}"], found[f"one{i}"]
        _, kept, *operands = row.split()
        around = 1 + sum(1 + (x == "p") for x in operands if x in "pdrh") + (kept == "p")
        called = subroutine if re.match(r"(div|rem)\.[su]64", row) else 0
        result[row] = (many - one) / 8 - around + called, (doubles - double) / 8
    return result


if __name__ == "__main__":
    for row, found in measure().items():
        same = "" if found == MEASURED[row] else f"  expected {MEASURED[row]}"
        print(f"{row:26} {found[0]:7.3f} {found[1]:6.3f}{same}")
