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
            if not any(is_marked(*place) or is_in_marked_function(*place) for place in places):
                unmarked.setdefault(places[0] if places else ("?", 0), operation)
        for (path, line), operation in sorted(unmarked.items()):
            yield (
                f"{operation} from {Path(path).name}:{line}, a line without `// double: why`; "
                "compute in float, or say why not"
            )


@cache
def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def is_marked(path: str, line: int) -> bool:
    """Whether the line, or one that it is continued on, is marked ``// double: why``."""
    if (path, line) == SUBROUTINE:
        return True
    lines = _lines(path)
    for text in lines[line - 1 : line + 3]:
        if MARK.search(text):
            return True
        if re.search(r"[;{}]\s*(//.*)?$", text):
            return False
    return False


def is_in_marked_function(path: str, line: int) -> bool:
    """Whether the function or struct of the line has ``double: why`` in the comment above it.

    For those that are about positions: the compiler spreads that arithmetic over all their lines.
    What doubles by mistake there, -Wdouble-promotion still finds when the emulator is built.
    """
    for text in reversed(_lines(path)[: line - 1]):
        if text.startswith("//"):
            if MARK.search(text):
                return True
        elif re.match(r"}|\S.*;", text):
            return False
    return False


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
