"""The wheel: one binary for every torch from 2.11, every CPython from 3.10 and glibc from 2.28.

`make try-wheel` installs it beside other versions of torch and uses it.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch
from project.test_manylinux import newer
from support import ROOT

from build_support import manylinux

PARTS = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "build_support"]

pytestmark = pytest.mark.slow

#: Symbols without a version come from torch's stable C interface or Python's limited one ...
STABLE = re.compile(r"aoti_torch_\w+|torch_\w+|_?Py\w+|_ITM_\w+|__gmon_start__|__tls_get_addr")
#: ... all others from these libraries of the system, which version their symbols; but where torch
#: exports one of libstdc++ as well, the linker takes that, which has no version.
SYSTEM = re.compile(r"@+(GLIBC|GLIBCXX|CXXABI|GCC|GOMP|OMP)_|^_ZNK?St")
LIBRARIES = re.compile(r"lib(torch_cpu|stdc\+\+|m|gcc_s|gomp|c|pthread|dl|rt)\.so|ld-linux")


def run(*command, **keywords):
    command = [str(part) for part in command]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **keywords
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this source tree, built from a copy."""
    folder = tmp_path_factory.mktemp("wheel")
    tree = folder / "tree"
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.py")
    for part in [*PARTS, "csrc", "gankernels"]:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, tree / part, ignore=unwanted)
        else:
            tree.mkdir(exist_ok=True)
            shutil.copy(ROOT / part, tree / part)
    flags = manylinux.write(folder / "libraries")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    status, output = run(
        *[*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, tree],
        env={
            "MAX_JOBS": str(os.cpu_count()),
            **os.environ,
            "GANKERNELS_CUDA": "0",
            "LDFLAGS": " ".join(flags),
        },
    )
    assert status == 0, output
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def extension(wheel, tmp_path_factory):
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract("gankernels/_C.abi3.so", tmp_path_factory.mktemp("unpacked")))


def test_tag(wheel):
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-cp310-abi3-{platform}.whl")


def test_contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        facts = archive.read("gankernels/_build_info.py").decode()
        binary = archive.read("gankernels/_C.abi3.so")
    top = {name.split("/")[0] for name in names}
    assert {part for part in top if not part.endswith(".dist-info")} == {"gankernels"}
    assert "gankernels/py.typed" in names
    assert any(name.endswith("LICENSE") for name in names)
    assert "left_out" in facts
    for folder in (wheel.parent, Path(sys.prefix), Path(torch.__file__).parent, Path.home()):
        for text in (facts.encode(), binary):
            assert str(folder).encode() not in text, "the wheel tells where it was built"


def test_symbols(extension):
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    status, output = run("nm", "-D", "--undefined-only", extension)
    assert status == 0, output
    symbols = [line.split()[-1] for line in output.splitlines()]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    foreign = [s for s in symbols if not STABLE.fullmatch(s) and not SYSTEM.search(s)]
    assert foreign == [], "outside torch's stable interface"
    assert newer(extension) == [], "newer than the wheels' tag allows"


def test_libraries(extension):
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    status, output = run("readelf", "-d", extension)
    assert status == 0, output
    needed = re.findall(r"NEEDED.*\[(.+)\]", output)
    assert "libtorch_cpu.so" in needed
    assert [library for library in needed if not LIBRARIES.match(library)] == []
