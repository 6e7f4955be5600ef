"""The layout of the Hugging Face kernels hub; `make hub` compiles, and loads it as users do."""

import json
import subprocess
import sys
import zipfile

import pytest
from support import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import hub


def test_names_are_replaced_and_words_are_not():
    source = (
        "import gankernels\n"
        "from gankernels.ops import x  # of gankernels\n"
        'kernels = torch.ops.gankernels, "gankernels: expected", gankernels_more\n'
    )
    assert hub.renamed(source, "_a") == (
        "import _a\n"
        "from _a.ops import x  # of gankernels\n"
        'kernels = torch.ops._a, "gankernels: expected", gankernels_more\n'
    )


#: Both packages in one process: losses and penalties by the operators of either.
PROGRAM = """
import sys, torch
import gankernels, _another
assert _another.__file__.startswith(sys.path[0])
there, here = torch.ops._another.gradient_penalty, torch.ops.gankernels.gradient_penalty
assert there.default is not here.default

def step(package):
    torch.manual_seed(0)
    critic = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.SiLU(), torch.nn.Linear(6, 1))
    package.nn.utils.parametrizations.spectral_norm(critic[0])
    package.fuse_spectral_norm(critic)
    real = torch.randn(4, 6, requires_grad=True)
    scores = critic(real)
    loss = package.losses.hinge.discriminator(scores, -scores)
    (loss + package.r1_penalty(scores, real)).backward()
    pipe = package.augment.ADAPipe("bgc", p=0.5)
    return [*(p.grad for p in critic.parameters()), pipe(torch.randn(2, 3, 8, 8))]

mine = [name for name in sys.modules if name.partition(".")[0] == "_another"]
with _another.backend("reference"), gankernels.backend("reference"):
    for a, b in zip(step(_another), step(gankernels), strict=True):
        assert torch.equal(a, b)
for name in mine:
    for x in vars(sys.modules[name]).values():
        assert not str(getattr(x, "__module__", "")).startswith("gankernels"), (name, x)
"""


#: The other one alone, as on the hub: warnings, and why something does not compile, are of users.
ALONE = """
import sys, warnings, torch
sys.modules["gankernels"] = None
import _another

def told(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [(str(w.message), w.filename) for w in found]

((said, where),) = told(lambda: _another.augment.ADAPipe("bgc")(torch.full((2, 3, 8, 8), 255.0)))
assert said.startswith("ADAPipe: expected images in [-1, 1]") and where == "<string>", where

critic = torch.nn.Linear(3, 1)
def loss(x):
    torch._dynamo.graph_break()
    return critic(x).mean()

step = _another.compile_step(loss, critic, backend="eager")
((said, where),) = told(lambda: step(torch.ones(2, 3)))
assert "graph_break" in said and where == "<string>", (said, where)
"""


@pytest.fixture
def another(tmp_path):
    """A folder with the package under another name, and without extension modules."""
    for path in (ROOT / "gankernels").rglob("*.py"):
        if path.name != "_build_info.py":
            copy = tmp_path / "_another" / path.relative_to(ROOT / "gankernels")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(hub.renamed(path.read_text(), "_another"))
    return tmp_path


@pytest.mark.parametrize("program", [PROGRAM, ALONE], ids=["beside", "alone"])
def test_a_package_of_another_name(another, program):
    """Nothing in it says the usual name to Python."""
    program = f"import sys; sys.path.insert(0, {str(another)!r})\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr


def wheel_of(folder, **modules):
    """A wheel as small as can be: its modules' bytes by name."""
    facts = {
        "torch_target": "2.11",
        "cuda": {"nvcc": "13.0", "arch_flags": ["-gencode=arch=compute_80,code=sm_80"]}
        if "_C_cuda" in modules
        else {"left_out": "CPU", "cure": "none"},
    }
    path = folder / "some.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("gankernels/__init__.py", "import gankernels.ops\n")
        archive.writestr("gankernels/ops/__init__.py", "")
        archive.writestr("gankernels/_build_info.py", f'"""How."""\nBUILD_INFO = {facts!r}\n')
        archive.writestr("gankernels-1.dist-info/licenses/LICENSE", "Apache")
        for name, content in modules.items():
            archive.writestr(f"gankernels/{name}.abi3.so", content)
    return path


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_a_build(tmp_path, backend):
    name = hub.unique_name(backend)
    modules = {"_C": name.encode()} | ({"_C_cuda": name.encode()} if backend == "cuda" else {})
    place = hub.make(wheel_of(tmp_path, **modules), tmp_path / "hub")
    assert place.parent == tmp_path / "hub" / "build"
    wanted = {"cpu": "cpu", "cuda": "cu130"}[backend]
    assert place.name.startswith(f"torch-stable-abi211-{wanted}-")
    assert (place / "__init__.py").read_text() == f"import {name}.ops\n"
    assert (place / "ops" / "__init__.py").exists()
    assert (place / "LICENSE").read_text() == "Apache"
    facts = json.loads((place / "metadata.json").read_text())
    assert (facts["id"], facts["name"]) == (name, "gankernels")
    archs = {"archs": ["8.0"]} if backend == "cuda" else {}
    assert facts["backend"] == {"type": backend, **archs}
    assert not (tmp_path / "hub" / "new").exists()
    # Again, over what is there.
    assert hub.make(wheel_of(tmp_path, **modules), tmp_path / "hub") == place


def test_a_module_of_the_usual_namespace_is_refused(tmp_path):
    with pytest.raises(
        SystemExit, match=r"expected _C\.abi3\.so to be compiled with -Dgankernels=_"
    ):
        hub.make(wheel_of(tmp_path, _C=b"gankernels"), tmp_path / "hub")
    assert not (tmp_path / "hub" / "build").exists()


def test_other_sources_have_another_name(tmp_path, monkeypatch):
    for folder in ("csrc", "gankernels"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(hub, "ROOT", tmp_path)
    names = {hub.unique_name("cpu"), hub.unique_name("cuda")}
    for path in ("csrc/a.h", "gankernels/a.py", "setup.py"):
        (tmp_path / path).write_text("one")
        names.add(hub.unique_name("cpu"))
        (tmp_path / path).write_text("two")
        names.add(hub.unique_name("cpu"))
    assert len(names) == 8
    (tmp_path / "gankernels" / "_build_info.py").write_text("of this machine")
    assert hub.unique_name("cpu") in names
