"""Builds the Python module gankernels_ptx: the operators on what nvcc made of the CUDA kernels.

    python tests/ptx/build.py [--out build/ptx] [--arch 90] [--fuse] [--asan] [--programs]

nvcc's objects, host stubs and launchers are linked with their own PTX, translated to C++. With
--programs: the programs of tests/cpp/test_emu_*.cpp on the same kernels instead.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ptx import translate  # noqa: E402

from build_support import cuda  # noqa: E402

NAME = "gankernels_ptx"
CSRC = ROOT / "csrc"
OWN = [HERE / "ptx.h", HERE / "runtime.h"]
#: As CMakeLists.txt compiles for the emulator.
CXX = ["-std=c++20", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing"]
#: What runs in place of the GPU; fma() must be one instruction, as it is there.
DEVICE = ["-O1", "-mfma", "-mf16c"]


class BuildError(Exception):
    """A command that failed, and what it said."""


def run(*command: object) -> None:
    done = subprocess.run([str(x) for x in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def make(output: Path, inputs: Iterable[Path], *command: object) -> Path:
    """Runs a command unless it is the one that made `output`, and no input is newer."""
    record = output.with_name(output.name + ".command")
    words = " ".join(map(str, command))
    made = output.exists() and record.exists() and record.read_text() == words
    if not made or any(x.stat().st_mtime >= output.stat().st_mtime for x in inputs):
        record.unlink(missing_ok=True)
        run(*command)
        record.write_text(words)
    return output


def nvcc_flags() -> list[str]:
    """The plain words of NVCC_FLAGS in setup.py: how the product compiles its kernels."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "NVCC_FLAGS":
            words = [x.value for x in node.value.elts if isinstance(x, ast.Constant)]
            return [str(word) for word in words]
    raise BuildError("setup.py has no NVCC_FLAGS")


def find_nvcc() -> list[str]:
    import torch

    toolkit = cuda.find_toolkit(torch.version.cuda or "13.0")
    if isinstance(toolkit, cuda.Missing):
        raise BuildError(f"no CUDA compiler: {toolkit.reason}. Cure: {toolkit.cure}.")
    return [str(toolkit.nvcc), *(f"-I{folder}" for folder in toolkit.include_dirs)]


def embedded_ptx(obj: Path) -> bytes:
    """The PTX within nvcc's object; the runtime compares its hash with what was translated."""
    binary = obj.with_suffix(".fatbin")
    run("objcopy", "-O", "binary", "--only-section=.nv_fatbin", obj, binary)
    data = binary.read_bytes()
    if int.from_bytes(data[:4], "little") != 0xBA55ED50 or data[16] != 1:
        raise BuildError(f"{obj}: expected a fat binary with PTX")
    begin = 16 + int.from_bytes(data[20:24], "little")
    size = int.from_bytes(data[24:32], "little")
    return data[begin : begin + size].split(b"\0")[0]


class Builder:
    """Compiles into a folder; its methods are tasks that yield objects."""

    def __init__(
        self,
        out: Path,
        arch: str = "90",
        fuse: bool = False,
        asan: bool = False,
        objects: Path | None = None,
    ) -> None:
        self.out = out
        self.objects = objects or out / "objects"  # of kernels, by their text
        self.sources = [x for x in CSRC.rglob("*") if x.is_file()]
        target = f"arch=compute_{arch},code=compute_{arch}"
        self.nvcc = [*find_nvcc(), *nvcc_flags(), f"-I{CSRC}", "-gencode", target]
        self.nvcc += ["-Xfatbin", "--compress-mode=none", "-Xcompiler=-fPIC"]
        # g++ contracts among its expensive optimizations only.
        fused = ["-ffp-contract=fast", "-fexpensive-optimizations"]
        self.device = [*DEVICE, *(fused if fuse else ["-ffp-contract=off"])]
        self.asan = ["-fsanitize=address", "--param=asan-stack=0"] if asan else []
        self.opcodes: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.objects.mkdir(parents=True, exist_ok=True)

    def cxx(self, source: Path, flags: Iterable[object], inputs: Iterable[Path] = ()) -> Path:
        output = self.out / f"{source.stem}.{source.parent.name}.o"
        command = ["g++", *CXX, *flags, "-c", source, "-o", output]
        return make(output, [source, *inputs], *command)

    def kernels(self, source: Path) -> list[Callable[[], Path]]:
        """Compiles a file of kernels with nvcc; what remains to be done for its kernels."""
        obj, ptx = self.out / f"{source.stem}.nvcc.o", self.out / f"{source.stem}.ptx"
        make(obj, [source, *self.sources], *self.nvcc, "-c", source, "-o", obj)
        text = embedded_ptx(obj)
        if not ptx.exists() or ptx.read_bytes() != text:
            ptx.write_bytes(text)
        files, opcodes = translate.translate(ptx, self.out / f"{source.stem}.kernels")
        self.opcodes += opcodes
        files.sort(key=lambda file: -file.stat().st_size)
        return [lambda: obj, *(lambda x=x: self.kernel(x) for x in files)]

    def kernel(self, source: Path) -> Path:
        flags = [f"-I{self.header().parent}", f"-I{HERE}", "-c", source]
        return self.cached(self.objects / "{}.o", [source, *OWN], flags)

    def header(self) -> Path:
        """ptx.h, compiled."""
        with self.lock:
            flags = ["-w", "-x", "c++-header", HERE / "ptx.h"]
            return self.cached(self.objects / "{}" / "ptx.h.gch", OWN, flags)

    def cached(self, output: Path, inputs: Iterable[Path], flags: Iterable[object]) -> Path:
        """What g++ makes of inputs: named by their content, so that it is made once."""
        command = ["g++", *CXX, *self.device, *self.asan]
        state = hashlib.sha256(" ".join(command).encode())
        for path in inputs:
            state.update(path.read_bytes())
        output = Path(str(output).format(state.hexdigest()[:24]))
        if not output.exists():
            output.parent.mkdir(exist_ok=True)
            partial = output.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            run(*command, *flags, "-o", partial)
            partial.replace(output)
        return output

    def runtime(self) -> Path:
        return self.cxx(HERE / "runtime.cpp", ["-O2", "-Wall", *self.asan], OWN)

    def binding(self, source: Path) -> Path:
        import pybind11
        from torch.utils import cpp_extension

        folders = [pybind11.get_include(), *cpp_extension.include_paths()]
        folders.append(sysconfig.get_paths()["include"])
        flags = ["-O1", "-fvisibility=hidden", "-DGANKERNELS_EMULATE", f"-Dgankernels_emu={NAME}"]
        flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{CSRC}", *self.asan]
        inputs = OWN if source.parent == HERE else self.sources
        return self.cxx(source, [*flags, *(f"-isystem{x}" for x in folders)], inputs)

    def link(self, objects: list[Path]) -> Path:
        from torch.utils import cpp_extension

        exported = self.out / "exported.map"  # torch brings a CUDA runtime: take nothing of it
        exported.write_text("{ global: PyInit_*; local: *; };\n")
        library = self.out / f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"
        folder = cpp_extension.library_paths()[0]
        run(
            *["g++", "-shared", *self.asan, "-Wl,-Bsymbolic", f"-Wl,--version-script={exported}"],
            *[*objects, f"-L{folder}", "-ltorch_cpu", "-o", library],
        )
        names = subprocess.run(["nm", "-D", "-u", library], capture_output=True, text=True).stdout
        if left := re.findall(r"\b(?:__)?cu\w+", names):
            raise BuildError(f"not in runtime.cpp: {left}")
        return library

    def program(self, source: Path, objects: list[Path]) -> Path:
        program = self.out / source.stem.replace("emu", "ptx")
        flags = ["-O2", *self.asan, f"-I{HERE / 'shim'}", f"-I{HERE}", f"-I{CSRC}", "-fopenmp"]
        inputs = [source, *source.parent.glob("*.h"), *objects, *(HERE / "shim").rglob("*.h")]
        return make(program, inputs, "g++", *CXX, *flags, source, *objects, "-o", program)


def build(builder: Builder, programs: bool, jobs: int) -> list[Path]:
    """The module, or the programs."""
    with ThreadPoolExecutor(jobs) as pool:
        first = pool.map(builder.kernels, sorted((CSRC / "cuda").glob("*.cu")))
        if programs:
            flags = ["-O2", "-fopenmp", "-ffp-contract=fast", f"-I{CSRC}"]
            sources = sorted((CSRC / "cpu").rglob("*.cpp"))
            others = [lambda x=x: builder.cxx(x, flags) for x in sources]
        else:
            sources = [x for x in sorted((CSRC / "bindings").glob("*.cpp")) if x.stem != "module"]
            others = [lambda x=x: builder.binding(x) for x in (*sources, HERE / "panel.cpp")]
        tasks = [builder.runtime, *others, *(task for tasks in first for task in tasks)]
        objects = list(pool.map(lambda task: task(), tasks))
        for old in set(builder.objects.glob("*.o")) - set(objects):
            old.unlink()
        if not programs:
            return [builder.link(objects)]
        tests = sorted((ROOT / "tests/cpp").glob("test_emu_*.cpp"))
        return list(pool.map(lambda source: builder.program(source, objects), tests))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build/ptx")
    parser.add_argument("--arch", default="90")
    parser.add_argument("--fuse", action="store_true", help="contract a*b+c, as ptxas may")
    parser.add_argument("--asan", action="store_true", help="for LD_PRELOAD=libasan.so")
    parser.add_argument("--programs", action="store_true", help="the C++ tests of tests/cpp")
    args = parser.parse_args()
    try:
        builder = Builder(args.out.resolve(), args.arch, args.fuse, args.asan)
        jobs = int(os.environ.get("MAX_JOBS", 0)) or os.cpu_count() or 1
        for path in build(builder, args.programs, jobs):
            print(path)
    except (BuildError, translate.UnknownError) as error:
        sys.exit(str(error))
    print(f"{builder.opcodes.total()} instructions of {len(builder.opcodes)} kinds")


if __name__ == "__main__":
    main()
