"""Compiles the two extension modules of gankernels; everything else is in pyproject.toml.

    gankernels._C       csrc/bindings/*.cpp + csrc/cpu/**/*.cpp                   always
    gankernels._C_cuda  csrc/bindings/*.cpp -DGANKERNELS_CUDA + csrc/cuda/*.cu    if nvcc is found

Both use torch's stable ABI and Python's limited API: one binary serves torch 2.11 and later and
CPython 3.10 and later. Read from the environment:

    GANKERNELS_CUDA       auto (default): without nvcc, say so and go on; 0: no CUDA; 1: or fail
    CUDA_HOME             the CUDA toolkit to prefer
    TORCH_CUDA_ARCH_LIST  GPU architectures, e.g. "8.0;9.0+PTX"; default: those of the visible GPUs
                          and PTX of the newest, without any what is below
    MAX_JOBS              how many compilers may run at a time
"""

import os
import pprint
import subprocess
import sys
from functools import cache
from glob import glob
from pathlib import Path

import torch
from setuptools import Extension, setup
from torch.utils import cpp_extension

from build_support import cuda

TORCH_TARGET = "2.11"
# Without a visible GPU; PTX is compiled on the fly by newer ones. A wheel is for every GPU from 7.5
# on; in place two do, which compile in a third of the time.
WHEEL_ARCH_LIST = "7.5;8.0;8.6;9.0;10.0;12.0+PTX"
INPLACE_ARCH_LIST = "8.0;9.0+PTX"

STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x030A0000"]
# What a wheel holds must not depend on where it was built: no folder names in it.
MAP_FOLDERS = [
    f"-ffile-prefix-map={os.getcwd()}=.",
    f"-ffile-prefix-map={Path(torch.__file__).parent}=torch",
]
# No -march: the sources choose the instruction set at run time. No -ffast-math: NaN stays NaN.
CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-Wall",
    "-fopenmp",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fvisibility=hidden",
    *MAP_FOLDERS,
    *STABLE_ABI,
]
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "--expt-relaxed-constexpr",  # device code may call what is constexpr, such as scale_of
    "-DUSE_CUDA",
    "-DGANKERNELS_CUDA",
    *(f"-Xcompiler={flag}" for flag in ["-fvisibility=hidden", "-Wall", *MAP_FOLDERS]),
    *STABLE_ABI,
]
# BuildExtension defines Py_LIMITED_API once more, to this: keep the two equal.
cpp_extension.min_supported_cpython = "0x030A0000"

BINDINGS = sorted(glob("csrc/bindings/*.cpp"))


def cpu_extension() -> Extension:
    return Extension(
        "gankernels._C",
        sources=BINDINGS + sorted(glob("csrc/cpu/**/*.cpp", recursive=True)),
        include_dirs=[os.path.abspath("csrc"), *cpp_extension.include_paths()],
        library_dirs=cpp_extension.library_paths(),
        libraries=["torch_cpu"],
        extra_compile_args={"cxx": CXX_FLAGS},
        extra_link_args=["-fopenmp"],
        language="c++",
        py_limited_api=True,
    )


def cuda_extension(toolkit: cuda.Toolkit, arch_flags: list[str]) -> Extension:
    cpp_extension.CUDA_HOME = str(toolkit.home)  # where BuildExtension takes nvcc from
    toolkit_includes = [str(folder) for folder in toolkit.include_dirs]
    return Extension(
        "gankernels._C_cuda",
        sources=BINDINGS + cuda.sources(),
        include_dirs=[os.path.abspath("csrc"), *cpp_extension.include_paths(), *toolkit_includes],
        library_dirs=[*cpp_extension.library_paths(), str(toolkit.library_dir)],
        libraries=["torch_cpu", "torch_cuda", "cudart_static", "dl", "pthread", "rt"],
        extra_compile_args={
            "cxx": [*CXX_FLAGS, "-DUSE_CUDA", "-DGANKERNELS_CUDA"],
            "nvcc": [*NVCC_FLAGS, *arch_flags],
        },
        extra_link_args=["-fopenmp", "-Wl,--exclude-libs,libcudart_static.a"],
        language="c++",
        py_limited_api=True,
    )


@cache
def find_nvcc(inplace: bool) -> tuple[cuda.Toolkit | cuda.Missing, list[str]]:
    """The CUDA toolkit to compile with, or why there is none, and nvcc's flags for the GPUs."""
    if cuda.parse_switch(os.environ.get("GANKERNELS_CUDA")) == "0":
        cure = "install a wheel with CUDA kernels, or build with GANKERNELS_CUDA=1"
        return cuda.Missing("this is a CPU build, of GANKERNELS_CUDA=0", cure), []
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not chosen and not torch.cuda.is_available():
        os.environ["TORCH_CUDA_ARCH_LIST"] = INPLACE_ARCH_LIST if inplace else WHEEL_ARCH_LIST
    arch_flags = cpp_extension._get_cuda_arch_flags()
    if not chosen:  # an editable install asks first for metadata, as if for a wheel
        os.environ.pop("TORCH_CUDA_ARCH_LIST", None)
    return cuda.find_toolkit(torch.version.cuda, arch_flags), arch_flags


class BuildExtensions(cpp_extension.BuildExtension):
    """torch's, with a folder of objects for each module and a record of how they were compiled."""

    def find_nvcc(self) -> tuple[cuda.Toolkit | cuda.Missing, list[str]]:
        return find_nvcc(bool(self.inplace or self.editable_mode))

    def finalize_options(self) -> None:
        toolkit, arch_flags = self.find_nvcc()
        self.distribution.ext_modules = [cpu_extension()]
        if isinstance(toolkit, cuda.Toolkit):
            self.distribution.ext_modules.append(cuda_extension(toolkit, arch_flags))
        super().finalize_options()
        if self.inplace:  # keep the objects of an editable install: the next one compiles less
            self.build_temp = os.path.join("build", f"editable-torch{torch.__version__}")

    def build_extension(self, extension) -> None:
        # The modules share sources that are compiled with different flags.
        shared = self.build_temp
        self.build_temp = os.path.join(shared, extension.name)
        super().build_extension(extension)
        self.build_temp = shared

    def run(self) -> None:
        toolkit, _ = self.find_nvcc()
        if isinstance(toolkit, cuda.Missing):
            switch = cuda.parse_switch(os.environ.get("GANKERNELS_CUDA"))
            if switch == "1":
                sys.exit(f"GANKERNELS_CUDA=1, but {toolkit.reason}. Cure: {toolkit.cure}.")
            if switch == "auto":
                print(f"gankernels._C_cuda is left out: {toolkit.reason}. Cure: {toolkit.cure}.")
        super().run()
        package = Path(self.get_ext_fullpath("gankernels._C")).parent
        built = {Path(self.get_ext_fullpath(extension.name)) for extension in self.extensions}
        for stale in set(package.glob("_C*.so")) - built:  # of an earlier editable install
            stale.unlink()
        (package / "_build_info.py").write_text(
            '"""How the extension modules were compiled. Written by setup.py."""\n\n'
            f"BUILD_INFO = {pprint.pformat(self.facts(), sort_dicts=False, width=100)}\n"
        )

    def facts(self) -> dict:
        toolkit, arch_flags = self.find_nvcc()
        if isinstance(toolkit, cuda.Toolkit):
            cuda_facts = {
                "nvcc": toolkit.version,
                "toolkit": toolkit.origin,
                "arch_flags": arch_flags,
            }
        else:
            cuda_facts = {"left_out": toolkit.reason, "cure": toolkit.cure}
        version = subprocess.run([*self.compiler.compiler_cxx, "--version"], capture_output=True)
        return {
            "version": self.distribution.get_version(),
            "torch": torch.__version__,
            "torch_target": TORCH_TARGET,
            "sources": cuda.fingerprint(),
            "compiler": version.stdout.decode(errors="replace").partition("\n")[0],
            "flags": [flag for flag in CXX_FLAGS if flag not in MAP_FOLDERS],
            "cuda": cuda_facts,
        }


setup(
    ext_modules=[cpu_extension()],  # build_ext adds the CUDA module once it has looked for nvcc
    cmdclass={"build_ext": BuildExtensions},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
