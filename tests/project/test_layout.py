"""The layers: who may include whom, and one stem in every layer."""

import re
from pathlib import Path

import pytest
from support import ROOT

from tools import mutate_kernels

CSRC = ROOT / "csrc"
SUFFIXES = (".h", ".inc", ".cuh", ".cpp", ".cu")
SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in SUFFIXES)
CONTRACTS = sorted(CSRC.glob("*.h"))

#: What the files of a folder of csrc/ may include of csrc/; "" are the contracts, csrc/*.h.
MAY_INCLUDE = {
    "": {"", "common"},
    "common": {"common"},
    "cpu": {"", "common", "cpu"},
    "cuda": {"", "common", "cuda"},
    "bindings": {"", "common", "bindings"},
    "emu": {"common", "emu"},
}
#: What the bindings see of cpu/ beyond the contracts: the pool of outputs, the instruction set.
SHARED_WITH_BINDINGS = {"cpu/pool.h", "cpu/isa.h"}
#: The one door between the kernels and whoever runs them.
PLATFORM = {"csrc/common/platform.h": "emu/device.h"}
TORCH_STABLE = ("torch/csrc/stable/", "torch/headeronly/", "torch/csrc/inductor/aoti_torch/c/")
CUDA_HEADER = re.compile(r"cuda|cub/|cooperative_groups|curand|mma\.h|nv/")


def layer(path: Path) -> str:
    return "" if path.parent == CSRC else path.relative_to(CSRC).parts[0]


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^">]+)[">]', path.read_text(), re.MULTILINE)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def project_files() -> list[Path]:
    """Every text file that belongs to the project."""
    folders = [
        "csrc",
        "gankernels",
        "build_support",
        "tests",
        "benchmarks",
        "examples",
        "tools",
        ".ci",
    ]
    found = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    for folder in folders:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    binary = {".so", ".pyc", ".png", ".npz"}
    return [path for path in found if path.suffix not in binary and "results" not in path.parts]


def test_there_is_something_to_check():
    assert CONTRACTS
    assert {layer(path) for path in SOURCES} >= {"", "common", "cpu", "bindings"}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_includes(path):
    here = layer(path)
    assert here in MAY_INCLUDE, f"csrc/{here} is no layer: expected one of {sorted(MAY_INCLUDE)}"
    for header in includes(path):
        if (CSRC / header).exists():
            there = layer(CSRC / header)
            allowed = there in MAY_INCLUDE[here] or PLATFORM.get(name(path)) == header
            allowed |= here == "bindings" and header in SHARED_WITH_BINDINGS
            assert allowed, f'{name(path)}: csrc/{here or "*.h"} may not include "{header}"'
        elif header.startswith(("torch/", "ATen/", "c10/")):
            stable = here == "bindings" and header.startswith(TORCH_STABLE)
            assert stable, f"{name(path)}: <{header}>: only bindings include torch, its stable part"
        elif header == "Python.h":
            assert name(path) == "csrc/bindings/module.cpp"
        elif header.startswith("pybind11/"):
            assert name(path) == "csrc/emu/module.cpp"
        elif CUDA_HEADER.match(header):
            allowed = name(path) == "csrc/common/platform.h"
            assert allowed, f"{name(path)}: <{header}>: CUDA comes through common/platform.h only"
        else:
            standard = "/" not in header or header.startswith("sys/")
            assert standard, f"{name(path)}: <{header}> is not of the standard library"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_kernels_are_launched_through_the_platform(path):
    if name(path) == "csrc/common/platform.h":
        return
    text = re.sub(r"//.*", "", path.read_text())
    assert "<<<" not in text, f"{name(path)}: use launch() of common/platform.h"
    assert "extern __shared__" not in text, f"{name(path)}: use common/platform.h"


@pytest.mark.parametrize("contract", CONTRACTS, ids=name)
def test_one_stem_in_every_layer(contract):
    stem = contract.stem
    expected = [
        f"csrc/cpu/{stem}.cpp",
        f"csrc/cuda/{stem}.cu",
        f"csrc/bindings/{stem}.cpp",
        f"gankernels/ops/{stem}.py",
        f"gankernels/reference/{stem}.py",
        f"tests/cpp/fuzz_{stem}.cpp",
        f"benchmarks/micro/bench_{stem}.py",
    ]
    missing = [path for path in expected if not (ROOT / path).exists()]
    tests = f"tests/*/test_{stem}.py"
    if not list(ROOT.glob(tests)):
        missing.append(tests)
    assert missing == []


def test_no_layer_has_an_operator_of_its_own():
    stems = {path.stem for path in CONTRACTS}
    for folder, pattern in [
        ("csrc/cuda", "*.cu"),
        ("gankernels/ops", "*.py"),
        ("gankernels/reference", "*.py"),
    ]:
        found = {path.stem for path in (ROOT / folder).glob(pattern) if path.name[0] != "_"}
        assert found <= stems, f"{folder}: no contract csrc/*.h for {sorted(found - stems)}"


def test_the_project_stands_alone():
    outside = "../" + "shared"
    found = [name(path) for path in project_files() if outside in path.read_text(errors="replace")]
    assert found == []


def test_sources_are_apache_licensed():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tests/cpp").glob("*.cpp")), ids=lambda path: path.name
)
def test_programs_of_tests_can_fail(path):
    # CHECK counts; what is returned is up to main.
    assert "return failures == 0 ? 0 : 1;" in path.read_text()


def test_mutations_find_their_places():
    """What ``mutate_kernels`` replaces is in the kernels, once; it says what is not."""
    assert len(mutate_kernels.find_mutations(ROOT)) > 200
