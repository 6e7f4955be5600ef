"""Translates the PTX that nvcc wrote for one source file to C++ (see ptx.h). Knows the instructions
that these kernels consist of, and ends with an error at any other."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

TYPES = {
    **{f"{k}{n}": f"{'s' if k == 's' else 'u'}{n}" for k in "bus" for n in (8, 16, 32, 64)},
    "f32": "f32",
    "f64": "f64",
    "pred": "bool",
}
SIZE = {"8": 1, "6": 2, "2": 4, "4": 8}  # by the last digit of a type
GAP = 64  # bytes between the variables of shared memory, which no thread may touch
MOST_PARAMETERS, MOST_SHARED = 32764, 48 * 1024  # bytes that a kernel may have
SPECIAL = {"%tid.x": "c.tid", "%ntid.x": "c.ntid", "%ctaid.x": "c.ctaid", "%nctaid.x": "c.nctaid"}
ROUNDING = {"rmi": "floor", "rni": "nearbyint", "rzi": "trunc", "rpi": "ceil"}
#: What an atomic operation puts in place of x, given y.
ATOMS = {
    "add": "add(x, y)",
    "min": "ptx::min(x, y)",
    "max": "ptx::max(x, y)",
    "exch": "y",
    "and": "x & y",
    "or": "x | y",
    "xor": "x ^ y",
}
COMPARISONS = {
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "equ",
    "neu",
    "ltu",
    "leu",
    "gtu",
    "geu",
    "nan",
    "num",
}


class UnknownError(Exception):
    pass


def size_of(kind: str) -> int:
    return SIZE[kind[-1]]


def align_up(x: int, n: int) -> int:
    return (x + n - 1) // n * n


@dataclass
class Block:
    """Instructions without a jump into them or out of them."""

    line: int
    opcodes: Counter[str] = field(default_factory=Counter)


@dataclass
class Kernel:
    name: str
    first_line: int
    params: list[tuple[str, int, int, int]] = field(
        default_factory=list
    )  # name, offset, size, align
    param_size: int = 0
    threads: int = 0
    shared: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: offset, size
    shared_size: int = 0
    declared: int = 0
    registers: dict[str, str] = field(default_factory=dict)
    code: list[str] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)


class Translator:
    def __init__(self, text: str) -> None:
        self.text = text
        self.kernels: list[Kernel] = []
        self.module_shared: dict[str, tuple[int, int]] = {}  # name: size, align
        self.used = -1  # the bytes that count of what the next instruction loads

    # --- statements -------------------------------------------------------------------------------

    TOKEN = re.compile(r"//[^\n]*|/\*.*?\*/|\"[^\"]*\"|[{};]|[^{};\"/\n]+|\n|/", re.S)

    def run(self) -> None:
        """Cuts the text into statements, which end with ';', and the braces of scopes."""
        self.kernel: Kernel | None = None
        self.scopes: list[dict[str, str]] = []
        self.line = self.start = 1
        pending, vector = "", False
        for token in self.TOKEN.findall(self.text):
            newlines = token.count("\n")
            if token.startswith(("//", "/*")):
                pass
            elif vector:
                pending += token
                vector = token != "}"
            elif token == "{" and pending.strip() and not self.is_header(pending):
                pending += token  # the operand of an instruction: {%r1, %r2}
                vector = True
            elif token in "{}":
                if pending.strip():
                    self.header(pending)
                    pending = ""
                self.open() if token == "{" else self.close()
            elif token == ";":
                self.statement(" ".join(pending.split()))
                pending = ""
            else:
                if not pending.strip():
                    self.start = self.line
                pending += token
                if newlines and (m := re.fullmatch(r"\s*([$\w]+):\s*", pending)):
                    self.emit(f"{self.label(m[1])}:;")
                    self.block()
                    pending = ""
                elif newlines and (m := re.match(r"\s*\.(version|target|address_size)\b", pending)):
                    pending = ""
            self.line += newlines
        if pending.strip() or self.kernel or self.scopes:
            raise UnknownError("the text ends within a statement")

    @staticmethod
    def is_header(text: str) -> bool:
        return text.lstrip().startswith((".visible .entry", ".entry"))

    def header(self, text: str) -> None:
        """.visible .entry name( parameters ) .maxntid ..., just before its {."""
        m = re.fullmatch(r"\s*(?:\.visible )?\.entry ([$\w]+)\s*\((.*?)\)(.*)", text, re.S)
        if not m:
            raise UnknownError(text)
        kernel = Kernel(m[1], self.start)
        for param in filter(None, (p.strip() for p in m[2].split(","))):
            p = re.fullmatch(r"\.param (?:\.align (\d+) )?\.(\w+) ([$\w]+)(?:\[(\d+)\])?", param)
            if not p:
                raise UnknownError(param)
            size = size_of(p[2]) * int(p[4] or 1)
            align = int(p[1] or size_of(p[2]))
            offset = align_up(kernel.param_size, align)
            kernel.params.append((p[3], offset, size, align))
            kernel.param_size = offset + size
        if kernel.param_size > MOST_PARAMETERS:
            raise UnknownError(f"{kernel.name}: {kernel.param_size} bytes of parameters")
        for directive, value in re.findall(r"\.(\w+)\s+([\d, ]+)", m[3]):
            numbers = [int(x) for x in value.split(",")]
            if directive == "maxntid":
                if numbers[1:] not in ([], [1, 1]):
                    raise UnknownError(text)
                kernel.threads = numbers[0]
            elif directive != "minnctapersm":
                raise UnknownError(f".{directive}")
        self.kernel = kernel
        body = self.text[self.text.index(f" {m[1]}(") :].partition("\n}")[0]
        used, based = Counter(re.findall(r"%\w+", body)), Counter(re.findall(r"\[(%\w+)", body))
        self.bases = {register for register, n in based.items() if used[register] == n + 1}
        added = re.findall(r"add\.[su]32 %\w+, (%\w+), (%\w+);", body)
        self.addends = {register for pair in added for register in pair if used[register] == 2}

    def name_of(self, opcode: str, rest: str) -> str:
        """The opcode, or the kind of one that ptxas has no instruction for."""
        constant = re.match(r"add\.[su](32|64)", opcode) and re.search(r", -?\d+$", rest)
        if constant and rest.partition(",")[0] in self.bases:
            return "add (the offset of an address)"
        shifted = opcode == "shl.b32" and re.fullmatch(r"(%\w+), %\w+, \d+", rest)
        if shifted and shifted[1] in self.addends:
            return "shl (of an addend)"  # LEA
        if re.match(r"shr\.[su]64", opcode) and rest.endswith(", 32"):
            return "shr (the upper half of a register)"
        return opcode

    def open(self) -> None:
        if not self.kernel:
            raise UnknownError("{ outside of a kernel")
        if self.scopes:
            self.emit("{")
        self.scopes.append({})
        self.fresh = len(self.scopes) == 1  # the first block begins after the declarations

    def close(self) -> None:
        self.scopes.pop()
        if self.scopes:
            self.emit("}")
            return
        self.kernels.append(self.kernel)
        self.kernel = None

    def emit(self, line: str) -> None:
        self.kernel.code.append(line)

    def block(self) -> None:
        self.emit(f"++c.visits[{len(self.kernel.blocks)}];")
        self.kernel.blocks.append(Block(self.at))

    def statement(self, text: str) -> None:
        if not text:
            return
        if text.startswith("."):
            self.declaration(text)
            return
        if self.fresh:
            self.block()
            self.fresh = False
        m = re.match(r"@(!?)(%\w+) ", text)
        guard = ""
        if m:
            guard = f"if ({m[1]}{self.operand(m[2], 'bool')}) "
            text = text[m.end() :]
        opcode, _, rest = text.partition(" ")
        self.kernel.blocks[-1].opcodes[self.name_of(opcode, rest)] += 1
        operands = [x.strip() for x in re.findall(r"(?:\{[^}]*\}|\[[^]]*\]|[^,])+", rest)]
        try:
            code = self.instruction(opcode, operands)
        except (KeyError, ValueError, IndexError) as error:
            raise UnknownError(f"line {self.start}: {text} ({error!r})") from error
        except UnknownError as error:
            raise UnknownError(f"line {self.start}: {text}: {error}") from error
        self.used = -1
        self.emit(guard + (f"{{ {code} }}" if ";" in code[:-1] else code))
        if guard and opcode.startswith("bra"):
            self.block()

    def declaration(self, text: str) -> None:
        if m := re.fullmatch(r"\.reg \.(\w+) (%\w+)<(\d+)>", text):
            for i in range(int(m[3])):
                self.scopes[-1][f"{m[2]}{i}"] = TYPES[m[1]]
            names = [self.name(f"{m[2]}{i}") for i in range(int(m[3]))]
            for i in range(0, len(names), 16):
                self.emit(f"{TYPES[m[1]]} {', '.join(names[i : i + 16])};")
        elif m := re.fullmatch(r"\.reg \.(\w+) (%\w+)", text):
            self.scopes[-1][m[2]] = TYPES[m[1]]
            self.emit(f"{TYPES[m[1]]} {self.name(m[2])};")
        elif m := re.fullmatch(r"\.shared \.align (\d+) \.(\w+) ([$\w]+)(?:\[(\d+)\])?", text):
            size = size_of(m[2]) * int(m[4] or 1)
            if self.kernel:
                self.place(m[3], size, int(m[1]))
            else:
                self.module_shared[m[3]] = size, int(m[1])
        elif m := re.fullmatch(r'\.pragma "used_bytes_mask (\w+)"', text):
            self.used = int(m[1], 0)
        elif not text.startswith(".pragma "):
            raise UnknownError(f"line {self.start}: {text}")

    def place(self, name: str, size: int, align: int) -> None:
        """Gives a variable of shared memory a place of just its alignment, after a gap."""
        k = self.kernel
        offset = align_up(k.shared_size + GAP, align)
        if offset // align % 2 == 0:
            offset += align
        k.shared[name] = offset, size
        k.shared_size = offset + size
        k.declared = align_up(k.declared, align) + size
        if k.declared > MOST_SHARED:
            raise UnknownError(f"{k.name}: {k.declared} bytes of shared memory")

    # --- operands ---------------------------------------------------------------------------------

    @property
    def at(self) -> int:
        """The line within the kernel: its C++ stays what it is when another kernel changes."""
        return self.start - self.kernel.first_line + 1

    @staticmethod
    def label(name: str) -> str:
        return name.lstrip("$")

    @staticmethod
    def name(register: str) -> str:
        return register[1:] + "_"

    def type_of(self, register: str) -> str:
        for scope in reversed(self.scopes):
            if register in scope:
                return scope[register]
        raise UnknownError(f"register {register}")

    def symbol(self, name: str) -> str:
        for param, offset, _, _ in self.kernel.params:
            if param == name:
                return f"(kParamBase + {offset})"
        if name in self.module_shared and name not in self.kernel.shared:
            self.place(name, *self.module_shared[name])
        if name in self.kernel.shared:
            return f"(kSharedBase + {self.kernel.shared[name][0]})"
        raise UnknownError(f"symbol {name}")

    def operand(self, text: str, kind: str) -> str:
        """A C++ expression of type `kind`."""
        if text in SPECIAL:
            return f"{kind}({SPECIAL[text]})"
        if text.startswith("%"):
            name = self.name(text)
            return name if self.type_of(text) == kind else f"get<{kind}>({name})"
        if m := re.fullmatch(r"0f([0-9A-Fa-f]{8})", text):
            if kind not in ("f32", "u32"):
                raise UnknownError(text)
            return f"F32(0x{m[1]}u)" if kind == "f32" else f"0x{m[1]}u"
        if m := re.fullmatch(r"0d([0-9A-Fa-f]{16})", text):
            if kind not in ("f64", "u64"):
                raise UnknownError(text)
            return f"F64(0x{m[1]}ull)" if kind == "f64" else f"0x{m[1]}ull"
        if re.fullmatch(r"-?\d+|0x[0-9A-Fa-f]+", text):
            if kind in ("f32", "f64"):
                raise UnknownError(text)
            return f"{kind}({int(text, 0) % 2**64}ull)"
        if re.fullmatch(r"[$_A-Za-z][$\w]*", text):
            return f"{kind}{self.symbol(text)}"
        raise UnknownError(f"operand {text}")

    def address(self, text: str) -> str:
        m = re.fullmatch(r"\[([%$\w]+)(?:\+(-?\d+))?\]", text)
        if not m:
            raise UnknownError(text)
        if m[1].startswith("%"):
            kind = self.type_of(m[1])
            if kind not in ("u32", "u64"):
                raise UnknownError(text)
            return f"u64({kind}({self.name(m[1])} + {kind}({int(m[2] or 0) % 2**64}ull)))"
        return f"u64{self.symbol(m[1])} + {int(m[2] or 0) % 2**64}ull"

    def assign(self, register: str, kind: str, value: str) -> str:
        if register == "_":
            return f"(void)({value});"
        own = self.type_of(register)
        name = self.name(register)
        return f"{name} = {value};" if own == kind else f"{name} = put<{own}>({kind}({value}));"

    # --- instructions -----------------------------------------------------------------------------

    def instruction(self, opcode: str, o: list[str]) -> str:
        name, *mods = opcode.split(".")
        method = getattr(self, f"op_{name}", None)
        if not method:
            raise UnknownError(f"opcode {opcode}")
        return method(mods, o)

    def apply(self, function: str, kind: str, o: list[str], count: int, result: str = "") -> str:
        """d = function(a, b, ...), all of one type."""
        d, *inputs = o
        if len(inputs) != count:
            raise UnknownError("number of operands")
        values = ", ".join(self.operand(x, kind) for x in inputs)
        return self.assign(d, result or kind, f"{function}({values})")

    def only(self, mods: list[str], allowed: str) -> str:
        """The C++ type of an instruction whose one modifier is a type among `allowed`."""
        if len(mods) != 1 or mods[0] not in allowed.split():
            raise UnknownError("modifiers")
        return TYPES[mods[0]]

    def arithmetic(self, function: str, mods: list[str], o: list[str]) -> str:
        exact = mods[0] == "rn"
        kind = self.only(
            mods[1:] if exact else mods, "f32 f64" if exact else "s16 u16 s32 u32 s64 u64 f32 f64"
        )
        d, a, b = o
        a, b = self.operand(a, kind), self.operand(b, kind)
        if not exact:
            return self.assign(d, kind, f"{function}<{kind}>({a}, {b})")
        # Of the operands too: a sum of .rn must not take in a product of which g++ knows.
        return self.assign(d, kind, f"exactly({function}<{kind}>(exactly({a}), exactly({b})))")

    def op_add(self, mods, o):
        return self.arithmetic("add", mods, o)

    def op_sub(self, mods, o):
        return self.arithmetic("sub", mods, o)

    def op_mul(self, mods, o):
        if mods[0] == "wide":
            kind = self.only(mods[1:], "s16 u16 s32 u32")
            return self.apply(f"mul_wide<{kind}>", kind, o, 2, f"{kind[0]}{16 * size_of(kind)}")
        if mods[0] == "hi":
            kind = self.only(mods[1:], "s32 u32 s64 u64")
            return self.apply(f"mul_hi<{kind}>", kind, o, 2)
        if mods[0] == "lo":
            kind = self.only(mods[1:], "s16 u16 s32 u32 s64 u64")
            return self.apply(f"mul<{kind}>", kind, o, 2)
        if mods[-1] not in ("f32", "f64"):
            raise UnknownError("modifiers")
        return self.arithmetic("mul", mods, o)

    def op_mad(self, mods, o):
        how, of = mods
        kind = self.only([of], "s32 u32" if how == "wide" else "s32 u32 s64 u64")
        function, wide = {"lo": ("mul", kind), "wide": ("mul_wide", kind[0] + "64")}[how]
        a, b, c = self.operand(o[1], kind), self.operand(o[2], kind), self.operand(o[3], wide)
        return self.assign(o[0], wide, f"add<{wide}>({function}<{kind}>({a}, {b}), {c})")

    def op_fma(self, mods, o):
        if mods[0] != "rn":
            raise UnknownError("modifiers")
        return self.apply("ptx::fma", self.only(mods[1:], "f32 f64"), o, 3)

    def op_div(self, mods, o):
        if mods[0] == "rn":
            kind = self.only(mods[1:], "f32 f64")
            a, b = (self.operand(x, kind) for x in o[1:])
            return self.assign(o[0], kind, f"exactly({a} / {b})")
        return self.divide(mods, o, "false")

    def op_rem(self, mods, o):
        return self.divide(mods, o, "true")

    def divide(self, mods, o, remainder):
        kind = self.only(mods, "s32 u32 s64 u64")
        a, b = (self.operand(x, kind) for x in o[1:])
        return self.assign(o[0], kind, f"divide<{kind}>(c, {a}, {b}, {remainder}, {self.at})")

    def op_rcp(self, mods, o):
        if mods[0] != "rn":
            raise UnknownError("modifiers")
        kind = self.only(mods[1:], "f32 f64")
        return self.assign(o[0], kind, f"exactly({kind}(1) / {self.operand(o[1], kind)})")

    def op_sqrt(self, mods, o):
        if mods[0] != "rn":
            raise UnknownError("modifiers")
        kind = self.only(mods[1:], "f32 f64")
        return self.assign(o[0], kind, f"exactly(std::sqrt({self.operand(o[1], kind)}))")

    def op_min(self, mods, o):
        kind = self.only(mods, "s32 u32 s64 u64 f32 f64")
        return self.apply(f"ptx::min<{kind}>", kind, o, 2)

    def op_max(self, mods, o):
        kind = self.only(mods, "s32 u32 s64 u64 f32 f64")
        return self.apply(f"ptx::max<{kind}>", kind, o, 2)

    def op_neg(self, mods, o):
        kind = self.only(mods, "s32 s64 f32 f64")
        return self.apply(f"neg<{kind}>", kind, o, 1)

    def op_abs(self, mods, o):
        kind = self.only(mods, "s32 s64 f32 f64")
        return self.apply(f"ptx::abs<{kind}>", kind, o, 1)

    def logic(self, sign, mods, o):
        kind = self.only(mods, "pred b16 b32 b64")
        a, b = (self.operand(x, kind) for x in o[1:])
        return self.assign(o[0], kind, f"{kind}({a} {sign} {b})")

    def op_and(self, mods, o):
        return self.logic("&", mods, o)

    def op_or(self, mods, o):
        return self.logic("|", mods, o)

    def op_xor(self, mods, o):
        return self.logic("^", mods, o)

    def op_not(self, mods, o):
        kind = self.only(mods, "pred b16 b32 b64")
        a = self.operand(o[1], kind)
        return self.assign(o[0], kind, f"!{a}" if kind == "bool" else f"{kind}(~{a})")

    def op_shl(self, mods, o):
        kind = self.only(mods, "b16 b32 b64")
        amount = self.operand(o[2], "u32")
        return self.assign(o[0], kind, f"shl<{kind}>({self.operand(o[1], kind)}, {amount})")

    def op_shr(self, mods, o):
        kind = self.only(mods, "u16 u32 u64 s16 s32 s64 b16 b32 b64")
        amount = self.operand(o[2], "u32")
        return self.assign(o[0], kind, f"shr<{kind}>({self.operand(o[1], kind)}, {amount})")

    def op_bfi(self, mods, o):
        kind = self.only(mods, "b32 b64")
        values = [
            self.operand(x, k) for x, k in zip(o[1:], (kind, kind, "u32", "u32"), strict=True)
        ]
        return self.assign(o[0], kind, f"bfi<{kind}>({', '.join(values)})")

    def op_shf(self, mods, o):
        side, mode = (
            {"l": "true", "r": "false"}[mods[0]],
            {"wrap": "false", "clamp": "true"}[mods[1]],
        )
        self.only(mods[2:], "b32")
        inputs = ", ".join(self.operand(x, "u32") for x in o[1:])
        return self.assign(o[0], "u32", f"funnel({inputs}, {side}, {mode})")

    def op_popc(self, mods, o):
        kind = self.only(mods, "b32 b64")
        return self.assign(o[0], "u32", f"u32(std::popcount({self.operand(o[1], kind)}))")

    def op_clz(self, mods, o):
        kind = self.only(mods, "b32 b64")
        return self.assign(o[0], "u32", f"u32(std::countl_zero({self.operand(o[1], kind)}))")

    def op_prmt(self, mods, o):
        return self.apply("prmt", self.only(mods, "b32"), o, 3)

    def op_setp(self, mods, o):
        if len(mods) != 2 or mods[0] not in COMPARISONS or "|" in o[0] or len(o) != 3:
            raise UnknownError("modifiers")
        kind = self.only(mods[1:], "b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64")
        if (mods[0][-1] == "u" or mods[0] in ("nan", "num")) and kind not in ("f32", "f64"):
            raise UnknownError("modifiers")
        a, b = (self.operand(x, kind) for x in o[1:])
        return self.assign(o[0], "bool", f"ptx::{mods[0]}<{kind}>({a}, {b})")

    def op_selp(self, mods, o):
        kind = self.only(mods, "b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64")
        a, b = (self.operand(x, kind) for x in o[1:3])
        return self.assign(o[0], kind, f"{self.operand(o[3], 'bool')} ? {a} : {b}")

    def op_mov(self, mods, o):
        kind = self.only(mods, "pred b16 b32 b64 u16 u32 u64 s16 s32 s64 f32 f64")
        d, a = o
        if d.startswith("{"):  # unpack, the lowest bits first
            parts = [x.strip() for x in d[1:-1].split(",")]
            bits = size_of(mods[0]) * 8 // len(parts)
            whole = f"get<u{bits * len(parts)}>({self.name(a)})"
            if self.type_of(a)[-1] != mods[0][-1]:
                raise UnknownError("sizes")
            return f"const auto whole = {whole}; " + " ".join(
                self.assign(x, f"u{bits}", f"u{bits}(whole >> {bits * i})")
                for i, x in enumerate(parts)
            )
        if a.startswith("{"):
            parts = [x.strip() for x in a[1:-1].split(",")]
            bits = size_of(mods[0]) * 8 // len(parts)
            value = " | ".join(
                f"{kind}({self.operand(x, f'u{bits}')}) << {bits * i}" for i, x in enumerate(parts)
            )
            return self.assign(d, kind, f"{kind}({value})")
        return self.assign(d, kind, self.operand(a, kind))

    def op_cvt(self, mods, o):
        *rounding, to, of = mods
        how = ".".join(rounding)
        if (to, of) in (("f16", "f32"), ("bf16", "f32")) and how == "rn":
            return self.assign(o[0], "u16", f"{to}_of_f32({self.operand(o[1], 'f32')})")
        if (to, of) in (("f32", "f16"), ("f32", "bf16")) and not how:
            return self.assign(o[0], "f32", f"f32_of_{of}({self.operand(o[1], 'u16')})")
        d, s = TYPES[to], TYPES[of]
        a = self.operand(o[1], s)
        float_to, float_of = to[0] == "f", of[0] == "f"
        if not float_to and not float_of and not how:
            return self.assign(o[0], d, f"{d}({a})")
        if (to, of, how) == ("f64", "f32", "") or (to, of, how) == ("f32", "f64", "rn"):
            return self.assign(o[0], d, f"{d}({a})")
        if float_to and not float_of and how == "rn":
            return self.assign(o[0], d, f"{d}({a})")
        if float_of and not float_to and how in ROUNDING:
            return self.assign(o[0], d, f"to_integer<{d}>(std::{ROUNDING[how]}({a}))")
        if float_of and to == of and how in ROUNDING:
            return self.assign(o[0], d, f"std::{ROUNDING[how]}({a})")
        raise UnknownError("modifiers")

    def op_cvta(self, mods, o):  # addresses of one space are none of another
        if mods not in (["to", "global", "u64"], ["to", "shared", "u64"], ["shared", "u64"]):
            raise UnknownError("modifiers")
        return self.assign(o[0], "u64", self.operand(o[1], "u64"))

    def memory(self, mods: list[str], spaces: str) -> tuple[str, int, str]:
        space, *rest = mods
        count = int(rest.pop(0)[1:]) if rest[0] in ("v2", "v4") else 1
        if space not in spaces.split() or len(rest) != 1:
            raise UnknownError("modifiers")
        return space, count, TYPES[rest[0]]

    def op_ld(self, mods, o):
        if mods[:2] == ["global", "nc"]:  # of memory that no thread of the launch writes
            mods = ["global", *mods[2:]]
        space, count, kind = self.memory(mods, "param global shared")
        where = f"{self.address(o[1])}, {self.at}"
        words = range(count * size_of(mods[-1]) // 4) if space == "shared" else ()
        if unused := sum(1 << k for k in words if not self.used >> 4 * k & 15):
            where += f", {unused}"
        value = f"ld_{space}<{kind}, {count}>(c, {where})"
        if count == 1:
            return self.assign(o[0], kind, f"{value}.at[0]")
        registers = [x.strip() for x in o[0][1:-1].split(",")]
        if len(registers) != count:
            raise UnknownError("number of operands")
        return f"const auto x = {value}; " + " ".join(
            self.assign(r, kind, f"x.at[{i}]") for i, r in enumerate(registers)
        )

    def op_st(self, mods, o):
        if mods[:2] == ["global", "wb"]:  # how caches do it anyway
            mods = ["global", *mods[2:]]
        space, count, kind = self.memory(mods, "global shared")
        registers = [x.strip() for x in o[1].strip("{}").split(",")]
        if len(registers) != count:
            raise UnknownError("number of operands")
        values = ", ".join(self.operand(r, kind) for r in registers)
        return f"st_{space}<{kind}, {count}>(c, {self.address(o[0])}, {{{{{values}}}}}, {self.at});"

    def op_atom(self, mods, o):
        space, operation, of = mods
        kind = TYPES[of]
        if space not in ("global", "shared") or of[0] == "f" or len(o) != 3:
            raise UnknownError("modifiers")  # a sum of floats depends on the order
        result = f"[&](auto x) {{ const {kind} y = {self.operand(o[2], kind)}; "
        result += f"return static_cast<{kind}>({ATOMS[operation]}); }}"
        address = self.address(o[1])
        value = f"atom_{space}<{kind}>(c, {address}, {result}, {self.at})"
        return self.assign(o[0], kind, value)

    def op_red(self, mods, o):
        return self.op_atom(mods, ["_", *o])

    def op_shfl(self, mods, o):
        ways = {"up": "kUp", "down": "kDown", "bfly": "kXor", "idx": "kIndex"}
        if len(mods) != 3 or mods[0] != "sync" or mods[2] != "b32":
            raise UnknownError("modifiers")
        d, _, valid = o[0].partition("|")
        inputs = ", ".join(self.operand(x, "u32") for x in o[1:])
        value = f"exchange(c, Warp::{ways[mods[1]]}, {inputs}, &valid, {self.at})"
        code = "bool valid; " + self.assign(d, "u32", value)
        return code + (" " + self.assign(valid, "bool", "valid") if valid else "")

    def op_vote(self, mods, o):
        whether, mask = self.operand(o[1], "bool"), self.operand(o[2], "u32")
        value = f"exchange(c, Warp::kBallot, {whether}, 0, 0, {mask}, &valid, {self.at})"
        if mods == ["sync", "ballot", "b32"]:
            return "bool valid; " + self.assign(o[0], "u32", value)
        if mods == ["sync", "any", "pred"]:
            return "bool valid; " + self.assign(o[0], "bool", f"{value} != 0")
        if mods == ["sync", "all", "pred"]:
            return "bool valid; " + self.assign(o[0], "bool", f"{value} == {mask}")
        raise UnknownError("modifiers")

    def op_cp(self, mods, o):
        what = ".".join(mods)
        if what in ("async.ca.shared.global", "async.cg.shared.global") and len(o) == 3:
            to, source = self.address(o[0]), self.address(o[1])
            return f"cp_async(c, {to}, {source}, {int(o[2])}, {self.at});"
        if what == "async.commit_group":
            return "cp_async_commit(c);"
        if what == "async.wait_all":
            return f"cp_async_wait(c, ~0u, {self.at});"
        if what == "async.wait_group":
            return f"cp_async_wait(c, {int(o[0])}, {self.at});"
        raise UnknownError("modifiers")

    def op_bar(self, mods, o):
        if mods != ["sync"] or len(o) != 1:
            raise UnknownError("modifiers")
        return f"bar_sync(c, {self.operand(o[0], 'u32')}, {self.at});"

    def op_membar(self, mods, o):
        if mods != ["gl"] or o:
            raise UnknownError("modifiers")
        return 'asm volatile("" ::: "memory");'

    def op_bra(self, mods, o):
        if mods not in ([], ["uni"]):
            raise UnknownError("modifiers")
        return f"goto {self.label(o[0])};"

    def op_ret(self, mods, o):
        return "return;"

    # --- output -----------------------------------------------------------------------------------

    def source(self, kernel: Kernel) -> str:
        """The C++ of a kernel, a file of its own."""
        out = ['#include "ptx.h"', "using namespace ptx;", "namespace {"]
        out += [f"// {kernel.name}", "void run(Context& c) {", *kernel.code, "}"]
        params = ", ".join(f"{{{o}, {s}, {a}}}" for _, o, s, a in kernel.params)
        out.append(f"const Param params[] = {{{params or '{}'}}};")
        shared = ", ".join(f'{{"{n}", {o}, {s}}}' for n, (o, s) in kernel.shared.items())
        out.append(f"const Variable variables[] = {{{shared or '{}'}}};")
        blocks = (f"{{{b.line}, {b.opcodes.total()}}}," for b in kernel.blocks)
        out += [
            "const Block blocks[] = {",
            *blocks,
            "};",
            f"u64 issues[{len(kernel.blocks)}];",
            "}",
        ]
        out.append(
            f'extern const Kernel ptx_{kernel.name} = {{"{kernel.name}", run, {kernel.threads}, '
            f"{len(kernel.params)}, params, {kernel.param_size}, {len(kernel.shared)}, variables, "
            f"{align_up(kernel.shared_size, 16)}, {kernel.declared}, {len(kernel.blocks)}, blocks, "
            f"issues}};"
        )
        return "\n".join([*out, ""])

    def index(self, file: str, text_hash: int) -> str:
        """The C++ that lists the kernels of a text."""
        out = ['#include "ptx.h"', "using namespace ptx;"]
        out += [f"extern const Kernel ptx_{k.name};" for k in self.kernels]
        out.append("static const Kernel* const kernels[] = {")
        out += [*(f"&ptx_{k.name}," for k in self.kernels), "};"]
        out.append(
            f'static const Module module(0x{text_hash:x}ull, "{file}", kernels, '
            f"{len(self.kernels)});"
        )
        return "\n".join([*out, ""])


def fnv(data: bytes) -> int:
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 % 2**64
    return h


def translate(ptx: Path, folder: Path) -> tuple[list[Path], Counter[str]]:
    """Writes the C++ of a text to a folder, and beside it what its blocks consist of."""
    data = ptx.read_bytes()
    translator = Translator(data.decode())
    try:
        translator.run()
    except UnknownError as error:
        raise UnknownError(f"{ptx}: {error}") from error
    folder.mkdir(exist_ok=True)
    texts = {f"{ptx.stem}_index": translator.index(ptx.name, fnv(data))}
    for i, kernel in enumerate(translator.kernels):
        texts[f"{ptx.stem}_{i}"] = translator.source(kernel)
    for old in folder.iterdir():
        if old.stem not in texts:
            old.unlink()
    for stem, text in texts.items():
        write_if_new(folder / f"{stem}.cpp", text)
    blocks = {k.name: [(b.line, b.opcodes) for b in k.blocks] for k in translator.kernels}
    write_if_new(ptx.with_suffix(".json"), json.dumps(blocks))
    opcodes: Counter[str] = Counter()
    for kernel in translator.kernels:
        for block in kernel.blocks:
            opcodes += block.opcodes
    return [folder / f"{stem}.cpp" for stem in texts], opcodes


def write_if_new(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
