"""The wheel: one binary for every torch from 2.11 and every CPython from 3.10."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from support import ROOT

OTHER_TORCH = "2.13.0"  # its CPU build installs quickly
PARTS = ["setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "build_support"]

pytestmark = pytest.mark.slow

#: Symbols without a version come from torch's stable C interface or Python's limited one ...
STABLE = re.compile(r"aoti_torch_\w+|torch_\w+|_?Py\w+|_ITM_\w+|__gmon_start__|__tls_get_addr")
#: ... all others from these libraries of the system, which version their symbols; but where torch
#: exports one of libstdc++ as well, the linker has met that first, which has no version.
SYSTEM = re.compile(r"@+(GLIBC|GLIBCXX|CXXABI|GCC|GOMP|OMP)_|^_ZNSt15__exception_ptr")
LIBRARIES = re.compile(r"lib(torch_cpu|stdc\+\+|m|gcc_s|gomp|c|pthread|dl|rt)\.so|ld-linux")

USE = """
import torch, gankernels
from gankernels import _library, info, ops
assert torch.__version__.startswith({torch!r}), torch.__version__
assert _library.EXTENSIONS["_C"].loaded, _library.EXTENSIONS["_C"]
assert not _library.EXTENSIONS["_C_cuda"].loaded
assert all(test["passed"] for test in info.self_test()), info.self_test()

torch.manual_seed(0)
# One singular value is far above the others: the iteration converges for any draw.
weight = (5 + torch.randn(8, 6)).requires_grad_()
u, v = [torch.randn(8)], [torch.randn(6)]
u, v, sigma = ops.power_iteration_([weight], u, v, n=50)
(out,), _ = ops.spectral_normalize([weight], u, v, sigma)
torch.testing.assert_close(torch.linalg.matrix_norm(out, 2), torch.tensor(1.0))
out.sum().backward()
assert weight.grad is not None
print("ran under torch", torch.__version__)
"""


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
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel"]
    status, output = run(
        *[*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, tree],
        env={"MAX_JOBS": str(os.cpu_count()), **os.environ, "GANKERNELS_CUDA": "0"},
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
    for text in (facts.encode(), binary):
        assert str(wheel.parent).encode() not in text, "the wheel tells where it was built"


def test_symbols(extension):
    if shutil.which("nm") is None:
        pytest.skip("nm (binutils) is not installed")
    status, output = run("nm", "-D", "--undefined-only", extension)
    assert status == 0, output
    symbols = [line.split()[-1] for line in output.splitlines()]
    assert any(symbol.startswith("aoti_torch_") for symbol in symbols)
    foreign = [s for s in symbols if not STABLE.fullmatch(s) and not SYSTEM.search(s)]
    assert foreign == [], "outside torch's stable interface"


def test_libraries(extension):
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not installed")
    status, output = run("readelf", "-d", extension)
    assert status == 0, output
    needed = re.findall(r"NEEDED.*\[(.+)\]", output)
    assert "libtorch_cpu.so" in needed
    assert [library for library in needed if not LIBRARIES.match(library)] == []


@pytest.fixture
def other_python(tmp_path):
    """The interpreter of a fresh virtual environment, which is large and removed afterwards."""
    venv.create(tmp_path / "venv", with_pip=True)
    yield tmp_path / "venv" / "bin" / "python"
    shutil.rmtree(tmp_path / "venv")


def test_runs_under_another_torch(wheel, other_python, tmp_path):
    """Built with the torch of this environment, run with an older one."""
    pip = [other_python, "-m", "pip", "--disable-pip-version-check", "install"]
    status, output = run(*pip, f"torch=={OTHER_TORCH}")
    if status != 0:
        error = [line for line in output.splitlines() if line.startswith("ERROR")] or [output]
        pytest.skip(f"torch {OTHER_TORCH} cannot be installed here: {error[-1]}")
    status, output = run(*pip, wheel)
    assert status == 0, output
    program = tmp_path / "use.py"
    program.write_text(USE.format(torch=OTHER_TORCH))
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    status, output = run(other_python, program, cwd=tmp_path, env=environ)
    assert status == 0, output
    assert f"ran under torch {OTHER_TORCH}" in output
