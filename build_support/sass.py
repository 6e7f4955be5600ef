"""Reads machine code (``nvdisasm -c -gi``) and holds kernels to what their sources promise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

THREADS = 256  # kThreads of csrc/common/reduce.cuh, which kernels are launched with

#: Arithmetic in double, conversions between double and others included.
DOUBLE = re.compile(r"D(?!EPBAR)[A-Z]+\b|.*(\.F64|64H)\b")
VECTOR = re.compile(r"(LDG|STG)\.E\b.*\.128\b")
LOCAL = re.compile(r"^(LDL|STL)\b")
MARK = re.compile(r"//.*\bdouble: \w")
#: Sources of csrc/ that may compute in double in any kernel, and why. Elsewhere a function
#: may whose comment has a mark, ``double: why``.
DOUBLE_SOURCES = {
    "ada_control.h": "once a call",
    "cuda/ada_control.cuh": "once a call, and scores add up exactly: some thousands at most",
    "ada_parameters.h": "once a sample",
    "cuda/ada_parameters.cuh": "once a sample",
    "diff_augment.h": "once a sample",
    "affine_resample.h": "positions in an image of any size",
    "cuda/affine_resample.cuh": "positions in an image of any size",
    "cuda/affine_resample_transpose.cuh": "positions, and the bounds of what is reached from them",
    "spectral_norm.h": "the scale of a layer, once a block",
    "cuda/factor.cuh": "factors of a layer, once a block",
    "common/reduce.cuh": "sums of other blocks' sums, one addition a tile",
}
#: What the toolkit and the platform offer is of the line that calls it.
DIALECT = re.compile(r"/include/|/csrc/common/platform\.h$")
Place = tuple[str, int]  # a source file and a line
#: Slow paths of divisions and roots, which the compiler puts after the kernel without line numbers;
#: the instruction that calls one is of the line that needs it.
SUBROUTINE: Place = ("a subroutine of the compiler", 0)
CALLS_DOUBLE = re.compile(r"CALL\b.*\$__internal[\w$]*(dbl|f64|dsqrt)")


@dataclass
class Code:
    """What is of interest in a kernel's instructions."""

    loads16: int = 0
    stores16: int = 0
    local: int = 0
    doubles: list[tuple[str, list[Place]]] = field(default_factory=list)  # and where they come from


def parse(text: str) -> dict[str, Code]:
    """By mangled kernel."""
    found: dict[str, Code] = {}
    code = Code()
    places: list[Place] = []
    chained = False  # the next place is one that the last was inlined into
    for line in text.splitlines():
        if line.startswith(".text."):
            code = found.setdefault(line.removeprefix(".text.").rstrip(":"), Code())
            places = []
        elif "//## File" in line:
            places = places if chained else []
            places += [(path, int(n)) for path, n in re.findall(r'"([^"]+)", line (\d+)', line)]
            chained = "inlined at" in line
        elif line.startswith("$__internal"):
            places = [SUBROUTINE]
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?(\S.*)", line):
            chained = False
            _count(code, match[1], places)
    return found


def _count(code: Code, instruction: str, places: list[Place]) -> None:
    operation = instruction.split()[0].rstrip(";")
    if VECTOR.match(operation):
        if operation.startswith("LDG"):
            code.loads16 += 1
        else:
            code.stores16 += 1
    elif LOCAL.match(operation):
        code.local += 1
    elif DOUBLE.match(operation) or CALLS_DOUBLE.match(instruction):
        code.doubles.append((operation, list(places)))


def is_double(kernel: str) -> bool:
    """Whether a kernel such as ``add_tiles<double, (Sums)1>`` computes in double."""
    return re.search(r"<double\b", kernel) is not None


@dataclass(frozen=True)
class Rules:
    """What the comments of a source promise of its kernels, by their names without arguments."""

    loads16: frozenset[str]
    stores16: frozenset[str]
    threads: int = THREADS

    def broken(self, kernel: str, code: Code) -> Iterator[str]:
        """Every promise that the machine code does not keep."""
        stem = kernel.partition("<")[0]
        if code.local:
            yield f"{code.local} accesses to local memory"
        if stem in self.loads16 and not code.loads16:
            yield "its comment says 16-byte loads, and there are none"
        if stem in self.stores16 and not code.stores16:
            yield "its comment says 16-byte stores, and there are none"
        if is_double(kernel):
            return
        unmarked: dict[Place, str] = {}
        for operation, places in code.doubles:
            if not may_be_double(places):
                unmarked.setdefault(places[0] if places else ("?", 0), operation)
        for (path, line), operation in sorted(unmarked.items()):
            yield (
                f"{operation} from {Path(path).name}:{line}, where no comment above the function "
                "has `double: why`; compute in float, or say why not"
            )


def may_be_double(places: list[Place]) -> bool:
    """Whether an instruction may compute in double, by the places that it was inlined through.

    It may where one of them is in a source that may, or in a marked function. The mark of a kernel
    holds for the kernel's own lines only: not for the loops that are inlined into it.
    """
    if SUBROUTINE in places:
        return True
    own = [place for place in places if not DIALECT.search(place[0])]
    for i, (path, line) in enumerate(own):
        if path.rpartition("/csrc/")[2] in DOUBLE_SOURCES:
            return True
        marked = marked_function(path, line)
        if marked == "function" or (marked == "kernel" and i == 0):
            return True
    return False


@cache
def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def marked_function(path: str, line: int) -> str | None:
    """What a line is in, a kernel or a function, if the comment above has ``double: why``."""
    kind, comment = "function", False
    for text in reversed(_lines(path)[: line - 1]):
        if text.startswith("KERNEL"):
            kind = "kernel"
        elif text.startswith("//"):
            comment = True
            if MARK.search(text):
                return kind
        elif re.match(r"}|\S.*;", text) or (comment and not text):
            return None
    return None


def headers(source: Path) -> list[Path]:
    """The headers of a source's kernels, which begin with its stem."""
    return sorted(source.parent.glob(f"{source.stem}*.cuh"))


def rules(source: Path) -> Rules:
    """From the comments above ``KERNEL`` in a source and the headers beside it.

    A header whose kernels are launched with other than ``kThreads`` threads says so by ``kBlock``.
    """
    loads: set[str] = set()
    stores: set[str] = set()
    threads = THREADS
    kernel = re.compile(r"((?://.*\n)*)(?:template.*\n)?KERNEL(?:_FOR)?\([\w, ]+\)\s+(\w+)")
    for path in (source, *headers(source)):
        text = path.read_text()
        block = re.search(r"constexpr int kBlock = (\d+);", text)
        threads = int(block[1]) if block else threads
        for comment, name in kernel.findall(text):
            promised = re.search(r"16-byte accesses: ([\w, ]+)", comment)
            if promised and "loads" in promised[1]:
                loads.add(name)
            if promised and "stores" in promised[1]:
                stores.add(name)
    return Rules(frozenset(loads), frozenset(stores), threads)
