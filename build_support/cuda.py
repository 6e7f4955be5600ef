"""Finds the CUDA compiler to build gankernels._C_cuda with. Free of torch: easy to test.

Looked at in this order; the first that can really compile for torch's CUDA version is taken:
CUDA_HOME, the nvcc on PATH, /usr/local/cuda, and the compiler packages of the package index, which
lie in site-packages/nvidia/cu<major>. In an isolated build these may be spread over two
site-packages: torch brought the runtime and its headers into one, the compiler is in the other.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: The CUDA runtime is linked statically: a wheel runs with any torch of that CUDA major.
STATIC_RUNTIME = "libcudart_static.a"
SOURCE_SUFFIXES = {".h", ".inc", ".cuh", ".cpp", ".cu"}
SMOKE_TEST = "#include <cuda_fp16.h>\n__global__ void fill(float* x) { x[threadIdx.x] = 1.f; }\n"


@dataclass(frozen=True)
class Toolkit:
    """A CUDA compiler that was tried and works."""

    home: Path
    version: str  # "13.0"
    origin: str  # where it was found: "CUDA_HOME", "PATH", ...
    library_dir: Path  # where STATIC_RUNTIME lies
    include_dirs: tuple[Path, ...]

    @property
    def nvcc(self) -> Path:
        return self.home / "bin" / "nvcc"


@dataclass(frozen=True)
class Missing:
    """No usable CUDA compiler: why, and what to do about it."""

    reason: str
    cure: str


def parse_switch(value: str | None) -> str:
    """The value of GANKERNELS_CUDA: "auto" (also when unset or empty), "0" or "1"."""
    value = value or "auto"
    if value not in ("auto", "0", "1"):
        raise ValueError(f"GANKERNELS_CUDA: expected auto, 0 or 1, got {value!r}")
    return value


def find_toolkit(
    torch_cuda: str | None,
    arch_flags: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    system_home: Path = Path("/usr/local/cuda"),
    site_packages: Sequence[str | Path] | None = None,
) -> Toolkit | Missing:
    """The toolkit to compile with, for a torch built with this CUDA version (None: without)."""
    if torch_cuda is None:
        return Missing("torch is built without CUDA", "install a CUDA build of torch")
    rejected = []
    for parts, origin in _candidates(torch_cuda, environ, system_home, site_packages):
        found = _examine(parts, origin, torch_cuda, arch_flags)
        if isinstance(found, Toolkit):
            return found
        rejected.append(f"{origin}: {found}")
    return Missing("; ".join(rejected) or "no nvcc was found", cure(torch_cuda))


def sources() -> list[str]:
    """The CUDA kernels of this source tree, relative to its root."""
    root = Path(__file__).resolve().parent.parent
    return sorted(str(path.relative_to(root)) for path in root.glob("csrc/cuda/*.cu"))


def fingerprint() -> str:
    """What the extension modules are compiled from, in one word."""
    root = Path(__file__).resolve().parent.parent
    files = [root / "setup.py", Path(__file__).resolve()]
    for folder in ("csrc", "csrc/common", "csrc/cpu", "csrc/cuda", "csrc/bindings"):
        pattern = "**/*" if folder == "csrc/cpu" else "*"
        files += [p for p in (root / folder).glob(pattern) if p.suffix in SOURCE_SUFFIXES]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def compiler_packages(torch_cuda: str) -> list[str]:
    """The compiler in the package index, of the CUDA version torch was built with."""
    # Not "cuda-toolkit[nvcc]": pip takes the cuda-toolkit that torch brought for it, extra or not.
    names = ["nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime"]
    return [*(f"{name}=={torch_cuda}.*" for name in names), "nvidia-cuda-cccl"]


def packages_to_install(torch_cuda: str | None) -> list[str]:
    """What pip has to install before gankernels._C_cuda can be built; empty where it is no help."""
    if torch_cuda is None or int(torch_cuda.split(".")[0]) < 13 or not sources():
        return []
    found = find_toolkit(torch_cuda)
    return [] if isinstance(found, Toolkit) else compiler_packages(torch_cuda)


def cure(torch_cuda: str) -> str:
    """What a user does to get a compiler for this CUDA version."""
    toolkit = f"install the CUDA {torch_cuda} toolkit and set CUDA_HOME"
    if int(torch_cuda.split(".")[0]) < 13:
        return toolkit  # the package index has no complete compiler before CUDA 13
    packages = " ".join(f'"{package}"' for package in compiler_packages(torch_cuda))
    return f"pip install {packages} and build with --no-build-isolation, or {toolkit}"


def _candidates(
    torch_cuda: str,
    environ: Mapping[str, str],
    system_home: Path,
    site_packages: Sequence[str | Path] | None,
) -> Iterator[tuple[list[Path], str]]:
    """The folders of a toolkit, the one of nvcc last, and where they were found."""
    if environ.get("CUDA_HOME"):
        yield [Path(environ["CUDA_HOME"])], "CUDA_HOME"
    on_path = shutil.which("nvcc", path=environ.get("PATH", ""))
    if on_path is not None:
        yield [_home_of(Path(on_path))], "PATH"
    if system_home.is_dir():
        yield [system_home], str(system_home)
    places = sys.path if site_packages is None else site_packages
    parts = [Path(place, "nvidia", f"cu{torch_cuda.split('.')[0]}") for place in places]
    parts = [part for part in dict.fromkeys(parts) if part.is_dir()]
    parts.sort(key=_has_nvcc)
    if parts and _has_nvcc(parts[-1]):
        yield parts, "package index"


def _has_nvcc(home: Path) -> bool:
    return (home / "bin" / "nvcc").exists()


def _home_of(nvcc: Path) -> Path:
    """The toolkit that an nvcc on PATH belongs to; it may be a link or a script around another."""
    home = nvcc.resolve().parent.parent
    if _library_dir(home) is None:
        # nvcc prints where it takes its own files from: "#$ TOP=/usr/local/cuda-13.0/bin/.."
        dry = _run([str(nvcc), "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull])
        top = re.search(r"^#\$ TOP=(.+)$", dry.stdout, re.MULTILINE)
        if top is not None:
            return Path(top.group(1).strip().strip('"')).resolve()
    return home


def _examine(
    parts: list[Path], origin: str, torch_cuda: str, arch_flags: Sequence[str]
) -> Toolkit | str:
    """The toolkit in these folders, or why it cannot be used."""
    home = parts[-1]
    nvcc = home / "bin" / "nvcc"
    if not _has_nvcc(home):
        return f"{nvcc} does not exist"
    release = re.search(r"release (\d+\.\d+)", _run([str(nvcc), "--version"]).stdout)
    if release is None:
        return f"{nvcc} --version names no release"
    version = release.group(1)
    if version.split(".")[0] != torch_cuda.split(".")[0]:
        return f"nvcc is of CUDA {version}, torch is built with CUDA {torch_cuda}"
    library_dir = next(filter(None, map(_library_dir, parts)), None)
    if library_dir is None:
        return f"{STATIC_RUNTIME} is not under {home}"
    include_dirs = [part / "include" / sub for part in parts for sub in ("", "cccl")]
    include_dirs = [folder for folder in include_dirs if folder.is_dir()]
    includes = [f"-I{folder}" for folder in include_dirs]
    failure = _smoke_test(nvcc, [*includes, *arch_flags])
    if failure is not None:
        return f"nvcc {version} does not compile: {failure}"
    return Toolkit(home, version, origin, library_dir, tuple(include_dirs))


def _library_dir(home: Path) -> Path | None:
    places = [home / "lib64", home / "lib", *sorted(home.glob("targets/*-linux/lib"))]
    places += sorted(home.glob("lib/*-linux-gnu"))
    return next((place for place in places if (place / STATIC_RUNTIME).exists()), None)


def _smoke_test(nvcc: Path, flags: Sequence[str]) -> str | None:
    """Compiles two lines for the wanted architectures; None when it works, else the error."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "smoke.cu")
        source.write_text(SMOKE_TEST)
        target = Path(folder, "smoke.o")
        done = _run([str(nvcc), "-std=c++20", *flags, "-c", str(source), "-o", str(target)])
        if done.returncode == 0 and target.exists():
            return None
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        told = [line for line in lines if "error" in line or "fatal" in line] or lines
        return told[0].replace(folder + os.sep, "") if told else f"it ended with {done.returncode}"


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Runs a compiler, stdout and stderr together; one that cannot be started counts as failed."""
    try:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, stdout=str(error))


if __name__ == "__main__":  # for the Makefile
    import torch

    print(*packages_to_install(torch.version.cuda))
