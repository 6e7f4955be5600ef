"""The layers: who may include whom, and one stem in every layer."""

import ast
import re
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.penalties import PENALTIES

from gankernels import ops, penalties, reference
from gankernels.ops._operator import EXAMPLES
from tools import mutate_kernels

CSRC = ROOT / "csrc"
SUFFIXES = (".h", ".inc", ".cuh", ".cpp", ".cu")
SOURCES = sorted(path for path in CSRC.rglob("*") if path.suffix in SUFFIXES)
CONTRACTS = sorted(CSRC.glob("*.h"))

#: By stem, wherever one was begun.
OPERATORS = {
    path.stem
    for folder, pattern in [
        ("csrc/cpu", "*.cpp"),
        ("csrc/cuda", "*.cu"),
        ("csrc/bindings", "*.cpp"),
        ("gankernels/ops", "*.py"),
        ("gankernels/reference", "*.py"),
    ]
    for path in (ROOT / folder).glob(pattern)
    if path.name[0] != "_" and path.name != "module.cpp"
}

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
SHARED_WITH_BINDINGS = {"cpu/memory/pool.h", "cpu/simd/isa.h"}
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


def registrations_of_operator(stem: str) -> dict[str, bool]:
    """Every place that an operator has, and whether it is there. CONTRIBUTING.md lists the same."""
    files = [
        f"csrc/{stem}.h",
        f"csrc/cpu/{stem}.cpp",
        f"csrc/cuda/{stem}.cu",
        f"csrc/bindings/{stem}.cpp",
        f"gankernels/reference/{stem}.py",
        f"gankernels/ops/{stem}.py",
    ]
    found = {path: (ROOT / path).exists() for path in files}
    found["gankernels/ops/__init__.py"] = (
        f"gankernels.ops.{stem} " in (ROOT / "gankernels/ops/__init__.py").read_text()
    )
    found[f"tests/*/test_{stem}.py"] = any(ROOT.glob(f"tests/*/test_{stem}.py"))
    # Sizes around its constants are where a kernel breaks; one without any has no fuzzer.
    if constants_of(ROOT / f"csrc/cpu/{stem}.cpp"):
        fuzzer = f"tests/cpp/fuzz_{stem}.cpp"
        found[fuzzer] = (ROOT / fuzzer).exists()
    for name in functions_of(stem):
        found[f'EXAMPLES["{name}"] in gankernels/ops/{stem}.py'] = name in EXAMPLES
        found[f"{name} in gankernels/reference/{stem}.py"] = hasattr(reference, name)
    return found


def constants_of(path: Path) -> list[str]:
    """What a kernel cuts its work by."""
    if not path.exists():
        return []
    return re.findall(r"constexpr int(?:64_t)? (k\w+) =", path.read_text())


def functions_of(stem: str) -> list[str]:
    """The public functions of an operator's file, those that ops exports."""
    module = sys.modules.get(f"gankernels.ops.{stem}")
    return (
        [name for name in ops.__all__ if getattr(ops, name).__module__ == vars(module)["__name__"]]
        if module
        else []
    )


@pytest.mark.parametrize("stem", sorted({path.stem for path in CONTRACTS} | OPERATORS))
def test_an_operator_is_in_every_place(stem):
    missing = [place for place, there in registrations_of_operator(stem).items() if not there]
    assert not missing, f"{stem}: CONTRIBUTING.md, add an operator; missing: {', '.join(missing)}"


#: Public functions of the files of penalties.
WRITTEN = {
    node.name
    for path in (ROOT / "gankernels/penalties").glob("*.py")
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name[0] != "_"
}


@pytest.mark.parametrize("name", sorted(WRITTEN | set(penalties.__all__)))
def test_a_penalty_is_in_every_place(name):
    places = {
        "a function in gankernels/penalties/*.py": name in WRITTEN,
        "gankernels/penalties/__init__.py": name in penalties.__all__,
        f'PENALTIES["{name}"] in tests/support/penalties.py': name in PENALTIES,
    }
    missing = [place for place, there in places.items() if not there]
    assert not missing, f"{name}: CONTRIBUTING.md, add a penalty; missing: {', '.join(missing)}"


def test_a_slot_of_scratch_memory_serves_one_operator():
    """A slot asked for while another use of it goes on would be corrupted silently."""
    text = (CSRC / "cpu/memory/scratch.h").read_text()
    listed = re.search(r"enum class Slot \{(.*?)\};", text, re.DOTALL)
    assert listed
    slots = re.findall(r"^\s*(k\w+),", listed[1], re.MULTILINE)
    users: dict[str, set[str]] = {slot: set() for slot in slots}
    for path in SOURCES:
        for slot in re.findall(r"\bSlot::(k\w+)", path.read_text()):
            operator = path.relative_to(CSRC / "cpu").with_suffix("").parts[0]
            users[slot].add(operator)
    assert users
    assert {slot: found for slot, found in users.items() if len(found) != 1} == {}


def test_no_folder_is_crowded():
    """A dozen sources at one level, X.h, X.cpp and X_part.h as one, so that a newcomer finds the
    room; a subject's tests may be more."""
    crowded = {}
    for top in ("csrc", "gankernels", "benchmarks", "build_support", "tools", "tests/support"):
        for folder in (ROOT / top, *(ROOT / top).rglob("*/")):
            sources = {path.stem for path in folder.iterdir() if path.suffix in (".py", *SUFFIXES)}
            sources -= {"__init__", "__main__", "_build_info"}
            parts = {x for x in sources for y in sources if x.startswith(f"{y}_")}
            if len(sources - parts) > 12:
                crowded[name(folder)] = len(sources)
    assert not crowded


def test_no_import_circles():
    """Modules import each other downwards: whoever reads one need not read those above it."""
    imports = {name: imported(path) for name, path in modules().items()}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            path.append(name)
            for other in sorted(imports[name]):
                visit(other)
            path.pop()
            done.add(name)

    for name in imports:
        visit(name)


def modules() -> dict[str, Path]:
    """The modules and packages of the package."""
    files = (ROOT / "gankernels").rglob("*.py")
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in files
        if path.name != "_build_info.py"
    }


def imported(path: Path) -> set[str]:
    """What a module imports of the package, wherever it does: of ``from a import b`` the module
    a.b, or a where b is no module."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in known else node.module for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known.keys()


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
