"""Reads machine code (``nvdisasm -c -gi``) and holds kernels to what their sources promise."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

THREADS = 256  # kThreads of csrc/common/reduce.cuh, which kernels are launched with

#: Arithmetic in double, conversions between double and others included.
DOUBLE = re.compile(r"D(?!EPBAR)[A-Z]+\b|.*(\.F64|64H)\b")
VECTOR = re.compile(r"(LDG|STG)\.E\b.*\.128\b")
#: What an integer division by a number that is no constant begins with.
DIVISION = re.compile(r"I2F\b.*\.RP\b")
REGISTER = re.compile(r"\bR(\d+)\b")
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
    "affine_resample.h": "once a sample",
    "cuda/affine_resample_map.cuh": "once a sample",
    "common/epilogue.h": "cutout, once a sample",
    "spectral_norm.h": "the scale of a layer, by one thread",
    "cuda/factor.cuh": "factors of a layer, by one thread",
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
    lines: list[str] = field(default_factory=list)  # labels and instructions

    @property
    def in_flight(self) -> int:
        """Of the loops that load 16 bytes at a time, the least loads before the first is used."""
        return min((loads_in_flight(loop) for loop in self.streams()), default=0)

    def streams(self) -> list[list[str]]:
        """The innermost loops with loads of 16 bytes; all of it where these are in no loop."""
        loads = {i for i, text in enumerate(self.lines) if _is_load16(text)}
        everything = tuple(range(len(self.lines)))
        found = {min((x for x in self.loops if i in x), key=len, default=everything) for i in loads}
        return [[self.lines[i] for i in loop] for loop in sorted(found)]

    @cached_property
    def loops(self) -> list[tuple[int, ...]]:
        return loops(self.lines)


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
        elif re.match(r"\.L_\w+:", line):
            code.lines.append(line.strip())
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(@!?\w+\s+)?(\S.*)", line):
            chained = False
            code.lines.append((match[1] or "") + match[2])
            _count(code, match[2], places)
    return found


def operation_of(text: str) -> str:
    """``LDG.E.128`` of ``@!P0 LDG.E.128 R4, [R2] ;``."""
    words = text.split()
    return words[1 if text.startswith("@") else 0].rstrip(";")


def loops(lines: Sequence[str]) -> list[tuple[int, ...]]:
    """The loops of labels and instructions, by the numbers of their lines, those within others too.

    A loop is what leads back to itself: code that runs once may stand between its lines.
    """
    blocks, following = _blocks(lines)

    def within(nodes: set[int]) -> Iterator[set[int]]:
        for component in _components(nodes, following):
            if len(component) == 1 and not following[min(component)] & component:
                continue
            yield component
            entered = {
                to for at in set(range(len(blocks))) - component for to in following[at] & component
            }
            heads = entered or {min(component)}
            yield from within(component - heads)

    return [
        tuple(line for at in sorted(loop) for line in blocks[at])
        for loop in within(set(range(len(blocks))))
    ]


def _blocks(lines: Sequence[str]) -> tuple[list[list[int]], list[set[int]]]:
    """Lines that run one after the other, and the blocks that may follow each."""
    blocks: list[list[int]] = [[]]
    ends = re.compile(r"(BRA|BRX|EXIT|RET)\b")
    for i, text in enumerate(lines):
        if text.endswith(":") and blocks[-1]:
            blocks.append([])
        blocks[-1].append(i)
        if ends.match(operation_of(text)):
            blocks.append([])
    labels = {
        lines[i][:-1]: at
        for at, block in enumerate(blocks)
        for i in block
        if lines[i].endswith(":")
    }
    following: list[set[int]] = []
    for at, block in enumerate(blocks):
        last = lines[block[-1]] if block else ""
        branch = re.search(r"BRA\b(.*)`\((\.L_\w+)\)", last)
        found = {labels[branch[2]]} if branch and branch[2] in labels else set()
        ended = block and ends.match(operation_of(last)) and not last.startswith("@")
        conditional = branch and re.search(r"\bU?P\d|\.DIV", branch[0])
        if (not ended or conditional) and at + 1 < len(blocks):
            found.add(at + 1)
        following.append(found)
    return blocks, following


def _components(nodes: set[int], following: Sequence[set[int]]) -> list[set[int]]:
    """What can be reached from each other among nodes: Tarjan's algorithm, without recursion."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    found: list[set[int]] = []
    done: set[int] = set()
    for root in sorted(nodes):
        if root in order:
            continue
        work = [(root, iter(sorted(following[root] & nodes)))]
        order[root] = low[root] = len(order)
        stack.append(root)
        while work:
            node, rest = work[-1]
            for to in rest:
                if to not in order:
                    order[to] = low[to] = len(order)
                    stack.append(to)
                    work.append((to, iter(sorted(following[to] & nodes))))
                    break
                if to not in done:
                    low[node] = min(low[node], order[to])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == order[node]:
                    component: set[int] = set()
                    while node not in component:
                        component.add(stack.pop())
                    done |= component
                    found.append(component)
    return found


def _is_load16(text: str) -> bool:
    operation = operation_of(text)
    return operation.startswith("LDG") and VECTOR.match(operation) is not None


def loads_in_flight(loop: Sequence[str]) -> int:
    """The most loads of 16 bytes that are issued in a loop before one of their registers is named.

    Twice around it, as a loop may begin with the use of what it loaded in the turn before.
    """
    waiting: set[int] = set()
    batch = most = 0
    for text in (*loop, *loop):
        named = {int(n) for n in REGISTER.findall(text)}
        if _is_load16(text):
            first = int(REGISTER.findall(text)[0])
            own = set(range(first, first + 4))
            if (named - own) & waiting or own & waiting:
                waiting, batch = set(), 0
            waiting |= own
            batch += 1
            most = max(most, batch)
        elif named & waiting:
            waiting, batch = set(), 0
    return most


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
    in_flight: Mapping[str, int] = field(default_factory=dict)
    threads: Mapping[str, int] = field(default_factory=dict)

    def broken(self, kernel: str, code: Code) -> Iterator[str]:
        """Every promise that the machine code does not keep."""
        stem = kernel.partition("<")[0]
        if code.local:
            yield f"{code.local} accesses to local memory"
        if stem in self.loads16 and not code.loads16:
            yield "its comment says 16-byte loads, and there are none"
        if stem in self.stores16 and not code.stores16:
            yield "its comment says 16-byte stores, and there are none"
        promised = self.in_flight.get(stem, 0)
        # In double 16 bytes are two numbers, and compilers for some GPUs begin with the first.
        if code.in_flight < promised and not is_double(kernel):
            yield f"its comment says {promised} loads in flight, and a loop has {code.in_flight}"
        if promised:
            yield from slow_loops(code, is_double(kernel))
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


def slow_loops(code: Code, double: bool) -> Iterator[str]:
    """Integer divisions in loops over 16-byte loads, and double arithmetic in any loop."""
    for text in sorted({text for loop in code.streams() for text in loop}):
        if DIVISION.match(operation_of(text)):
            yield f"an integer division in a loop over tensors: {operation_of(text)}"
    inside = set() if double else {i for loop in code.loops for i in loop}
    for text in sorted({code.lines[i] for i in inside}):
        operation = operation_of(text)
        if DOUBLE.match(operation) or CALLS_DOUBLE.match(text):
            yield f"double arithmetic in a loop: {operation}"


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

    ``16-byte accesses: loads (4 in flight), stores`` promises that every loop that loads 16 bytes
    at a time has so many loads on their way before the first is used. Threads are those that
    ``KERNEL`` names, by a constant of the source or of what it includes.
    """
    loads: set[str] = set()
    stores: set[str] = set()
    in_flight: dict[str, int] = {}
    threads: dict[str, int] = {}
    kernel = re.compile(r"((?://.*\n)*)(?:template.*\n)?KERNEL(?:_FOR)?\((\w+)[\w, <>]*\)\s+(\w+)")
    for path in (source, *headers(source)):
        text = path.read_text()
        for comment, block, name in kernel.findall(text):
            threads[name] = _constant(path, block) or THREADS
            promised = re.search(r"16-byte accesses: ([\w, ()]+)", comment)
            if promised and "loads" in promised[1]:
                loads.add(name)
            if promised and "stores" in promised[1]:
                stores.add(name)
            if promised and (number := re.search(r"(\d+) in flight", promised[1])):
                in_flight[name] = int(number[1])
    return Rules(frozenset(loads), frozenset(stores), in_flight, threads)


def _constant(path: Path, name: str) -> int | None:
    """``constexpr int name = ...`` of a source of csrc/ or of what it includes."""
    if name.isdigit():
        return int(name)
    text = path.read_text()
    if found := re.search(rf"constexpr int (?:\w+ = [^;]*, )?{name} = (\d+)\b", text):
        return int(found[1])
    others = [path.parent.parent / name for name in re.findall(r'#include "([\w/.]+)"', text)]
    values = (_constant(other, name) for other in others if other.exists())
    return next((value for value in values if value is not None), None)
