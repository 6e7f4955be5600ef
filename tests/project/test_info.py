"""python -m gankernels.info."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from support.waits import standing_in

from gankernels import info, ops, reference
from gankernels.ops import _operator

FLAGS = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=compute_90",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_120,code=sm_120",
]


def run(*arguments):
    command = [sys.executable, "-m", "gankernels.info", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_text():
    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert torch.__version__ in done.stdout
    assert "spectral_normalize" in done.stdout
    assert "FAILED" not in done.stdout


@pytest.mark.slow
def test_json():
    done = run("--json")
    facts = json.loads(done.stdout)
    assert done.returncode == 0
    assert facts["healthy"]
    assert set(facts["extensions"]) == {"_C", "_C_cuda"}
    assert {test["op"] for test in facts["self_test"]} == set(facts["backends"])
    for gap in facts["missing"]:
        assert gap["what"]
        assert gap["why"]
        assert gap["cure"]


def test_the_cpu_kernels_are_there():
    facts = info.collect()
    assert facts["extensions"]["_C"]["loaded"]
    assert facts["build"]["torch"]
    assert facts["cpu"]["instruction_set"]
    assert facts["backends"]["spectral_normalize"]["cpu"] == "native"


def test_a_wrong_kernel_is_found(monkeypatch, capsys):
    right = ops.spectral_normalize

    def wrong(**arguments):
        outputs, sigma = right(**arguments)
        return [out * 1.001 for out in outputs], sigma

    monkeypatch.setattr(ops, "spectral_normalize", wrong)
    assert info.main([]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "missing: a right spectral_normalize on cpu" in shown
    assert "cure:" in shown


def test_a_kernel_that_raises_is_told(monkeypatch, capsys):
    def broken(*arguments, **keywords):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(ops, "power_iteration_", broken)
    assert info.main(["--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert any("out of luck" in gap["why"] for gap in facts["missing"])


def test_not_a_number_fails(monkeypatch):
    monkeypatch.setattr(info, "_error", lambda found, expected: float("nan"))
    assert not info._judge("spectral_norm", "cpu")["passed"]


def test_arguments_that_moved_are_compared(monkeypatch):
    monkeypatch.setattr(
        ops, "power_iteration_", lambda weights, u, v, n: reference_of(weights, u, v)
    )
    assert not info._judge("power_iteration_", "cpu")["passed"]


def reference_of(weights, u, v):
    """What the iteration finds, without moving u and v."""
    copies = [x.clone() for x in u], [x.clone() for x in v]
    return reference.power_iteration_(weights, *copies, 2)


def test_why_cuda_was_left_out(monkeypatch):
    status = info._library.ExtensionStatus(False, reason="it was not built", cure="build it")
    monkeypatch.setitem(info._library.EXTENSIONS, "_C_cuda", status)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    build = {"cuda": {"left_out": "no nvcc was found", "cure": "install one"}}
    shown = info.extension("_C_cuda", build)
    assert shown["reason"] == "it was not built: no nvcc was found"
    assert shown["cure"] == "install one"


def test_architectures():
    assert info.architectures(FLAGS) == ["8.0", "9.0", "9.0+PTX", "12.0"]


@pytest.mark.parametrize(
    ("device", "covered"),
    [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((10, 0), True)],
)
def test_covers(device, covered):
    assert info.covers(FLAGS, device) is covered


def test_a_gpu_that_the_kernels_do_not_cover():
    facts = {
        "extensions": {"_C_cuda": {"loaded": True}},
        "gpu": {"name": "GPU", "architecture": "7.5", "compiled": ["8.0"], "covered": False},
        "self_test": [],
    }
    (gap,) = info.missing(facts)
    assert gap["cure"] == 'reinstall with TORCH_CUDA_ARCH_LIST="7.5"'


def without_kernels(monkeypatch, name="Tesla T4", major=7, minor=5):
    """A machine whose GPU the CUDA kernels were not compiled for."""
    library = info._library
    properties = types.SimpleNamespace(name=name, major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(library, "_TARGETS", library._parse([FLAGS[0], FLAGS[2]]))
    monkeypatch.setattr(library, "_COMPILED", "8.0, 9.0")
    monkeypatch.setattr(library, "_gaps", {})


def filtered():
    x = torch.randn(2, 3, 30, 30)
    return ops.image_filter(x, torch.ones(2, 4)), ops.gradient_penalty(x)


def test_a_gpu_without_kernels_takes_the_reference(monkeypatch, caplog):
    with standing_in(), info._library.fallbacks() as fell_back:
        without_kernels(monkeypatch)
        monkeypatch.setattr(_operator, "kernels", None)  # no kernel is called
        for _ in range(2):
            filtered()
    assert {op for op, _ in fell_back} == {"image_filter", "gradient_penalty"}
    (record,) = caplog.records
    assert record.getMessage() == (
        "gankernels.image_filter takes the slower PyTorch reference: the kernels were compiled for "
        "8.0, 9.0, and Tesla T4 is of architecture 7.5; reinstall gankernels with "
        'TORCH_CUDA_ARCH_LIST="7.5"'
    )


def test_a_wheel_without_cuda_says_once_what_to_do(monkeypatch, caplog):
    library = info._library
    status = library.ExtensionStatus(False, reason="it was not built", cure="build it")
    left_out = {"left_out": "this is a CPU build", "cure": "install a wheel with CUDA kernels"}
    monkeypatch.setitem(library.EXTENSIONS, "_C_cuda", status)
    monkeypatch.setattr(library, "build_info", lambda: {"cuda": left_out})
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    with standing_in(), monkeypatch.context() as patch, library.fallbacks() as fell_back:
        patch.setattr(library, "NATIVE_DEVICES", frozenset({"cpu"}))
        patch.setattr(_operator, "kernels", None)  # no kernel is called
        filtered()
    assert {op for op, _ in fell_back} == {"image_filter", "gradient_penalty"}
    (record,) = caplog.records
    assert record.getMessage() == (
        "gankernels.image_filter takes the slower PyTorch reference: gankernels._C_cuda is "
        "missing: it was not built: this is a CPU build; install a wheel with CUDA kernels"
    )


def test_a_gpu_with_kernels_takes_them(monkeypatch):
    with standing_in(), info._library.fallbacks() as fell_back:
        without_kernels(monkeypatch, "A10", 8, 6)
        filtered()
    assert not fell_back


def test_backends_of_a_gpu_without_kernels(monkeypatch):
    monkeypatch.setattr(info._library, "NATIVE_DEVICES", frozenset({"cpu", "cuda"}))
    for covered in (True, False):
        monkeypatch.setattr(info, "gpu", lambda build, covered=covered: {"covered": covered})
        found = info.op_backends()["image_filter"]
        assert found == {"cpu": "native", "cuda": "native" if covered else "reference"}


def copy_of_the_package(folder, compiled):
    package = folder / "gankernels"
    ignored = shutil.ignore_patterns("__pycache__", *(() if compiled else ("*.so", "_build_info*")))
    shutil.copytree(info._library.PACKAGE, package, ignore=ignored)
    return package


def run_in(folder, *packages):
    """`python -m gankernels.info` with torch and these packages, but no editable installation."""
    torch_folder = Path(torch.__file__).parent.parent
    path = os.pathsep.join(str(entry) for entry in (*packages, torch_folder))
    command = [sys.executable, "-S", "-m", "gankernels.info"]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.mark.slow
def test_the_sources_hide_the_installed_copy(tmp_path):
    """After `pip install .` in the clone: it names the copy that is compiled, and fails."""
    sources = copy_of_the_package(tmp_path / "clone", compiled=False)
    installed = copy_of_the_package(tmp_path / "site", compiled=True)
    hidden = run_in(sources.parent, installed.parent)
    assert hidden.returncode == 1, hidden.stdout + hidden.stderr
    assert f"hides the copy in {installed}" in hidden.stdout
    assert f"imports gankernels from {sources}, where it was not built" in hidden.stdout
    assert f"start Python in another folder: the compiled copy is in {installed}" in hidden.stdout
    assert "reinstall gankernels where" not in hidden.stdout
    found = run_in(tmp_path, installed.parent)
    assert found.returncode == 0, found.stdout + found.stderr
    assert str(installed) in found.stdout
    assert "missing: gankernels._C\n" not in found.stdout


@pytest.mark.slow
def test_sources_that_were_never_built_fail(tmp_path):
    sources = copy_of_the_package(tmp_path, compiled=False)
    done = run_in(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert str(sources) in done.stdout
    assert "missing: gankernels._C\n" in done.stdout
    assert "hides" not in done.stdout


def test_a_gpu_without_kernels_is_not_healthy():
    status = {"loaded": False, "reason": "it was not built", "cure": "build it"}
    facts = {"extensions": {"_C_cuda": status}, "self_test": []}
    assert [gap["needed"] for gap in info.missing({**facts, "gpu": None})] == [False]
    device = {"name": "GPU", "architecture": "9.0", "compiled": [], "covered": False}
    assert [gap["needed"] for gap in info.missing({**facts, "gpu": device})] == [True]


def test_without_a_gpu_nothing_looks_tried():
    facts = info.collect()
    device = {"name": "GPU", "architecture": "9.0", "compiled": ["9.0"], "covered": True}
    for gpu, said in ((None, "cuda (not tried: no gpu)"), (device, "cuda")):
        (head,) = re.findall(r"^operator .*", info.render(facts | {"gpu": gpu}), re.MULTILINE)
        assert head.endswith(f"cpu         {said}")


def test_names_stand_apart_from_what_follows():
    facts = info.collect()
    text = info.render(facts)
    for name in facts["backends"]:
        assert re.search(rf"^  {name} +(native|reference) ", text, re.MULTILINE)
