"""What the compiler makes of the CUDA kernels: ``python -m build_support.cuda_report``.

Compiles every ``csrc/cuda/*.cu`` for every architecture, warnings, spills and local memory being
errors, and reads registers, shared memory and occupancy from ptxas, 16-byte accesses and double
arithmetic from the machine code. The whole table goes to build/cuda-report/table.md. ``--write``
writes a summary, docs/cuda-report.md, and the figures that no kernel may fall behind,
tests/kernels/cuda_report.json; without it they are compared with those of that file, and the exit
status is 1 where a kernel got worse.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from build_support import cuda, sass

ROOT = Path(__file__).resolve().parent.parent
SUMMARY = ROOT / "docs" / "cuda-report.md"
FIGURES = ROOT / "tests" / "kernels" / "cuda_report.json"
CACHE = ROOT / "build" / "cuda-report"
TABLE = CACHE / "table.md"
ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
PTX = ("75", "120")  # what newer GPUs compile for themselves: the oldest and the newest form
FLAGS = (
    "-std=c++20",
    "-O3",
    "--expt-relaxed-constexpr",
    "-lineinfo",
    "-Werror",
    "all-warnings",
    "-Xptxas",
    "-v,-warn-spills,-warn-lmem-usage,-Werror",
)
CURE = (
    "if that is wanted, run `make cuda-report` and commit docs/cuda-report.md and "
    "tests/kernels/cuda_report.json"
)

#: Threads and shared memory of a multiprocessor, and shared memory that a block can have: CUDA
#: Programming Guide, technical specifications per compute capability. Registers: 65,536 everywhere.
DEVICES = {
    "75": (1024, 64 << 10, 64 << 10),
    "80": (2048, 164 << 10, 163 << 10),
    "86": (1536, 100 << 10, 99 << 10),
    "89": (1536, 100 << 10, 99 << 10),
    "90": (2048, 228 << 10, 227 << 10),
    "100": (2048, 228 << 10, 227 << 10),
    "120": (1536, 100 << 10, 99 << 10),
}
OCCUPANCY = """
#include <cuda_occupancy.h>
#include <cstdio>
#include <cstdlib>
int main(int, char** a) {
  cudaOccDeviceProp device;
  device.computeMajor = atoi(a[1]);
  device.computeMinor = atoi(a[2]);
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = atoi(a[3]);
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor = atoi(a[4]);
  device.sharedMemPerBlockOptin = atoi(a[5]);
  device.reservedSharedMemPerBlock = device.computeMajor >= 8 ? 1024 : 0;
  device.numSms = 1;
  cudaOccDeviceState state;
  int threads, registers, shared;
  while (scanf("%d %d %d", &threads, &registers, &shared) == 3) {
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = threads;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = shared;
    kernel.maxDynamicSharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, 0))
      return 1;
    printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


class ReportError(Exception):
    """What is wrong with the kernels, or with the machine: one line each."""


Key = tuple[str, str]  # a kernel and an architecture


@dataclass(frozen=True)
class Figures:
    """What of a row may not get worse."""

    shared: int = 0
    occupancy: int = 0
    loads16: bool = False
    stores16: bool = False
    in_flight: int = 0
    doubles: int = 0


@dataclass(frozen=True)
class Row:
    """A kernel on an architecture."""

    kernel: str
    arch: str
    registers: int
    shared: int
    occupancy: int  # percent
    loads16: int
    stores16: int
    in_flight: int  # 16-byte loads before the first is used, in the loop with the fewest
    doubles: int  # instructions, of kernels that do not compute in double

    @property
    def key(self) -> Key:
        return self.kernel, self.arch

    @property
    def operator(self) -> str:
        return self.kernel.partition(":")[0]

    @property
    def figures(self) -> Figures:
        return Figures(
            self.shared,
            self.occupancy,
            self.loads16 > 0,
            self.stores16 > 0,
            self.in_flight,
            self.doubles,
        )


# --- ptxas --------------------------------------------------------------------------------------


def parse_ptxas(text: str) -> dict[str, tuple[int, int]]:
    """Registers and bytes of shared memory by mangled kernel; raises on spills and local memory."""
    found: dict[str, tuple[int, int]] = {}
    problems = []
    kernel = ""
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\w+)'", line):
            kernel = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", line):
            if int(match[1]) or int(match[2]):
                problems.append(f"{readable(kernel)}: {line.strip()}")
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found[kernel] = int(match[1]), int(shared[1]) if shared else 0
        elif "warning" in line or "error" in line:
            problems.append(line.strip())
    if problems:
        raise ReportError("\n".join(problems))
    return found


def readable(mangled: str) -> str:
    """``product<float>`` of a mangled name."""
    done = subprocess.run(["c++filt", mangled], capture_output=True, text=True)
    name = done.stdout.strip() or mangled
    name = re.sub(r"^void ", "", name).rpartition("(")[0] or name
    return re.sub(r"\b(\w+::)+", "", name)


# --- compiling ----------------------------------------------------------------------------------


def toolkit() -> cuda.Toolkit:
    import torch

    found = cuda.find_toolkit(torch.version.cuda or "13.0")
    if isinstance(found, cuda.Missing):
        raise ReportError(f"no CUDA compiler: {found.reason}. Cure: {found.cure}.")
    return found


def disassembler() -> str:
    """nvdisasm, of the toolkit or the package index."""
    places = [Path(place, "nvidia", "cu13", "bin", "nvdisasm") for place in sys.path]
    found = next((str(place) for place in places if place.exists()), shutil.which("nvdisasm"))
    if found is None:
        raise ReportError("nvdisasm was not found: pip install nvidia-cuda-nvdisasm")
    return found


def digest(tools: cuda.Toolkit, arch: str) -> str:
    """Of all that decides the result."""
    paths = sorted([*ROOT.glob("csrc/**/*.[hc]*"), *ROOT.glob("build_support/*.py")])
    state = hashlib.sha256(repr((FLAGS, tools.version, str(tools.nvcc), arch)).encode())
    for path in paths:
        state.update(path.read_bytes())
    return state.hexdigest()[:16]


def compile_kernels(tools: cuda.Toolkit, source: str, arch: str, folder: Path) -> tuple[str, str]:
    """What ptxas says of a source for ``sm_<arch>``, and its machine code with line numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    cubin = folder / f"{Path(source).stem}_{arch}.{os.getpid()}.cubin"
    command = [str(tools.nvcc), *FLAGS, *(f"-I{path}" for path in tools.include_dirs), "-Icsrc"]
    command += [f"-arch=sm_{arch}", "-cubin", "-o", str(cubin), source]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode != 0:
        lines = [line for line in said.splitlines() if "error" in line or "warning" in line]
        told = "; ".join(dict.fromkeys(lines)) or said.strip()
        raise ReportError(f"{source} for sm_{arch}: {told}")
    code = subprocess.run(
        [disassembler(), "-c", "-gi", str(cubin)], capture_output=True, text=True, check=True
    )
    cubin.unlink()
    return said, code.stdout


def compile_ptx(tools: cuda.Toolkit, source: str, arch: str) -> None:
    command = [str(tools.nvcc), *FLAGS[:-2], *(f"-I{path}" for path in tools.include_dirs)]
    command += ["-Icsrc", f"-arch=compute_{arch}", "-ptx", "-o", os.devnull, source]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise ReportError(f"{source} for compute_{arch}: {done.stderr.strip()}")


def occupancies(
    tools: cuda.Toolkit, arch: str, kernels: Sequence[tuple[int, int, int]], folder: Path
) -> list[int]:
    """Percent of a multiprocessor's threads: of (threads a block, registers, shared bytes)."""
    program = folder / "occupancy"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{path}" for path in tools.include_dirs]
        own = folder / f"occupancy.{os.getpid()}.{arch}"
        subprocess.run(
            ["g++", "-x", "c++", *includes, "-o", str(own), "-"],
            input=OCCUPANCY,
            text=True,
            check=True,
        )
        own.replace(program)
    threads, shared, optin = DEVICES[arch]
    facts = [arch[:-1], arch[-1], str(threads), str(shared), str(optin)]
    done = subprocess.run(
        [str(program), *facts],
        input="".join(f"{t} {r} {s}\n" for t, r, s in kernels),
        capture_output=True,
        text=True,
        check=True,
    )
    blocks = [int(line) for line in done.stdout.split()]
    return [100 * b * t // threads for b, (t, _, _) in zip(blocks, kernels, strict=True)]


def measure(tools: cuda.Toolkit, arch: str, sources: Sequence[str], folder: Path) -> list[Row]:
    """Every kernel on an architecture; raises where one breaks a rule."""
    rows, problems = [], []
    for source in sources:
        said, code = compile_kernels(tools, source, arch, folder)
        used = parse_ptxas(said)
        kernels = sass.parse(code)
        names = {mangled: readable(mangled) for mangled in used}
        rules = sass.rules(ROOT / source)
        sizes = [
            (rules.threads.get(names[mangled].partition("<")[0], sass.THREADS), *used[mangled])
            for mangled in used
        ]
        for (mangled, (registers, shared)), percent in zip(
            used.items(), occupancies(tools, arch, sizes, folder), strict=True
        ):
            name, found = names[mangled], kernels[mangled]
            problems += [f"{name} on sm_{arch}: {text}" for text in rules.broken(name, found)]
            rows.append(
                Row(
                    f"{Path(source).stem}: {name}",
                    arch,
                    registers,
                    shared,
                    percent,
                    found.loads16,
                    found.stores16,
                    found.in_flight,
                    0 if sass.is_double(name) else len(found.doubles),
                )
            )
    if problems:
        raise ReportError("\n".join(problems))
    return sorted(rows, key=lambda row: row.kernel)


def collect(tools: cuda.Toolkit, architectures: Sequence[str] = ARCHITECTURES) -> list[Row]:
    """All of it, several compilers at a time, from the cache where nothing has changed."""
    from tqdm import tqdm

    def one(arch: str) -> list[Row]:
        path = CACHE / f"{arch}-{digest(tools, arch)}.json"
        if path.exists():
            return [Row(**row) for row in json.loads(path.read_text())]
        rows = measure(tools, arch, cuda.sources(), CACHE)
        if arch in PTX:
            for source in cuda.sources():
                compile_ptx(tools, source, arch)
        own = path.with_suffix(f".{os.getpid()}")  # another run may be at the same
        own.write_text(json.dumps([asdict(row) for row in rows]))
        own.replace(path)
        return rows

    CACHE.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = pool.map(one, architectures)
        bar = tqdm(jobs, total=len(architectures), desc="sm_*", disable=None)
        return [row for rows in bar for row in rows]


# --- the report ---------------------------------------------------------------------------------

INTRO = """# What the compiler makes of the CUDA kernels

Compiled by nvcc {version} for sm_{architectures}, and as PTX for {ptx}: {count} instances of
kernels. Nothing here was run on a GPU. `make cuda-report` writes this file; the whole table, by
kernel and architecture, goes to `build/cuda-report/table.md`.

The worst of every operator, over all its kernels, dtypes and architectures:

"""
CHECKED = """
- registers of a thread, bytes of shared memory of a block of the threads that a kernel names,
  {threads} of most
- occupancy: the part of a multiprocessor's threads that can be resident, by `cuda_occupancy.h`
- 16-byte accesses: the kernels in whose machine code loads and stores of 16 bytes stand, of all
- in flight: 16-byte loads on their way before an instruction reads one of their registers, counted
  in the machine code, in the loop with the fewest; the least of the kernels that have such loads
- double: instructions of double arithmetic in kernels that do not compute in double

Errors, whatever was committed: warnings, spills, local memory, 16-byte accesses that a kernel's
comment promises and the machine code does not have, fewer loads in flight than it promises, double
arithmetic in a function whose comment does not say `double: why` (`build_support/sass.py` lists the
sources that may have it anywhere). In kernels that promise loads in flight, too: double arithmetic
in any loop, and integer divisions in a loop over tensors.

Compared with `tests/kernels/cuda_report.json`, which has a line a kernel with one figure for all
architectures, or one each: a kernel that comes or goes, less occupancy, more shared memory, more
double arithmetic, fewer loads in flight, no 16-byte accesses any more. Where that is wanted:
`make cuda-report`, and both files are to be committed.
"""
COLUMNS = (
    "kernel",
    "registers",
    "shared",
    "occupancy %",
    "16-byte loads",
    "16-byte stores",
    "in flight",
    "double",
)


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def table(rows: Sequence[Row]) -> str:
    """All rows, by architecture."""
    lines = []
    for arch in dict.fromkeys(row.arch for row in rows):
        lines += [f"## sm_{arch}", "", _line(COLUMNS), "|---" * len(COLUMNS) + "|"]
        for row in rows:
            if row.arch == arch:
                values = [getattr(row, field.name) for field in fields(row) if field.name != "arch"]
                lines.append(_line(values))
        lines.append("")
    return "\n".join(lines)


def summary(rows: Sequence[Row], version: str, threads: int) -> str:
    """A line an operator: the worst figures, and the kernel that has them."""

    def worst(rows: Sequence[Row], figure: str, sign: int = 1) -> str:
        row = max(rows, key=lambda row: sign * getattr(row, figure))
        value = getattr(row, figure)
        return f"{value} ({row.kernel.partition(': ')[2]}, sm_{row.arch})" if value else "0"

    lines = [
        _line(("operator", *COLUMNS[1:4], "16-byte loads, stores", "in flight", "double")),
        "|---" * 7 + "|",
    ]
    for operator in dict.fromkeys(row.operator for row in rows):
        own = [row for row in rows if row.operator == operator]
        kernels = {row.kernel for row in own}
        vectors = (
            {row.kernel for row in own if row.loads16},
            {row.kernel for row in own if row.stores16},
        )
        lines.append(
            _line(
                (
                    operator,
                    worst(own, "registers"),
                    worst(own, "shared"),
                    worst(own, "occupancy", -1),
                    f"{len(vectors[0])}, {len(vectors[1])} of {len(kernels)}",
                    worst([row for row in own if row.in_flight] or own, "in_flight", -1),
                    worst(own, "doubles"),
                )
            )
        )
    architectures = list(dict.fromkeys(row.arch for row in rows))
    intro = INTRO.format(
        version=version,
        architectures=", ".join(architectures),
        ptx=" and ".join(PTX),
        count=len({row.kernel for row in rows}),
    )
    return intro + "\n".join(lines) + "\n" + CHECKED.format(threads=threads)


def dump(rows: Sequence[Row], version: str) -> str:
    """The figures that are compared, as JSON: a line a kernel, what is zero or false left out."""
    architectures = list(dict.fromkeys(row.arch for row in rows))
    by_kernel: dict[str, dict[str, Figures]] = {}
    for row in rows:
        by_kernel.setdefault(row.kernel, {})[row.arch] = row.figures
    lines = []
    for kernel, found in sorted(by_kernel.items()):
        entry: dict[str, object] = {}
        for field in fields(Figures):
            values = [getattr(found[arch], field.name) for arch in architectures]
            if any(values):
                entry[field.name] = values[0] if len(set(values)) == 1 else values
        lines.append(f"{json.dumps(kernel)}: {json.dumps(entry)}")
    head = f'"nvcc": {json.dumps(version)},\n"architectures": {json.dumps(architectures)}'
    return f'{{\n{head},\n"kernels": {{\n' + ",\n".join(lines) + "\n}\n}\n"


def load(text: str) -> tuple[str, dict[Key, Figures]]:
    """The compiler's version and the figures of :func:`dump`."""
    found = json.loads(text)
    figures = {}
    for kernel, entry in found["kernels"].items():
        for i, arch in enumerate(found["architectures"]):
            values = {k: v[i] if isinstance(v, list) else v for k, v in entry.items()}
            figures[kernel, arch] = Figures(**values)
    return found["nvcc"], figures


def worse(before: Mapping[Key, Figures], now: Iterable[Row], same_compiler: bool) -> Iterator[str]:
    """Every way in which a kernel got worse.

    Another compiler allocates registers differently: a quarter of the occupancy may go, and counts
    may grow by a quarter.
    """
    slack = 1.0 if same_compiler else 1.25
    after = {row.key: row.figures for row in now}
    for kernel, arch in before.keys() - after.keys():
        yield f"{kernel} on sm_{arch} is gone"
    for (kernel, arch), new in after.items():
        old = before.get((kernel, arch))
        if old is None:
            yield f"{kernel} on sm_{arch} is not in tests/kernels/cuda_report.json"
            continue
        for what, bad in (
            ("occupancy", new.occupancy * slack < old.occupancy),
            ("shared", new.shared > old.shared * slack),
            ("doubles", new.doubles > old.doubles * slack),
            ("in_flight", new.in_flight < old.in_flight),
            ("loads16", old.loads16 and not new.loads16),
            ("stores16", old.stores16 and not new.stores16),
        ):
            if bad:
                yield (
                    f"{kernel} on sm_{arch}: {what} was {getattr(old, what)} and is "
                    f"{getattr(new, what)}"
                )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m build_support.cuda_report", description=__doc__
    )
    parser.add_argument(
        "--write", action="store_true", help="write the summary and the figures to compare with"
    )
    chosen = parser.parse_args(arguments)
    try:
        tools = toolkit()
        rows = collect(tools)
    except ReportError as error:
        print(error)
        return 1
    TABLE.write_text(table(rows))
    if chosen.write:
        SUMMARY.write_text(summary(rows, tools.version, sass.THREADS))
        FIGURES.write_text(dump(rows, tools.version))
        print(f"wrote {SUMMARY.relative_to(ROOT)} and {FIGURES.relative_to(ROOT)}")
        return 0
    version, before = load(FIGURES.read_text())
    problems = list(worse(before, rows, version == tools.version))
    for problem in problems:
        print(f"{problem}; {CURE}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
