"""The device of tests that name none, and the pretended GPU that tests them."""

import copy
import os
import subprocess
import sys
import types

import pytest
import torch
from support import ROOT, devices, pretended
from torch import nn

from gankernels import ops
from gankernels.augment import ADAPipe


@pytest.fixture
def gpu():
    """A pretended GPU, with what CPU tests in this process see of it."""
    with pretended.use(strict=True):
        yield "cuda"


def test_tensors_say_where_they_are(gpu):
    a = torch.arange(6.0).view(2, 3).to(gpu)
    derived = (a, a[0], a.t(), a * 2, a.double(), a.detach(), copy.deepcopy(a), torch.zeros_like(a))
    for x in derived:
        assert x.is_cuda
        assert x.device == torch.device("cuda", 0)
    assert not a.cpu().is_cuda
    assert torch.equal(a.cpu(), torch.arange(6.0).view(2, 3))
    with pytest.raises(TypeError, match="numpy"):
        a.numpy()
    module = copy.deepcopy(nn.Linear(3, 2).to(gpu))
    module(a).sum().backward()
    assert module.weight.grad.is_cuda
    leaf = torch.ones(2, requires_grad=True)
    leaf.to(gpu).sum().backward()
    assert not leaf.grad.is_cuda


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a + b,
        lambda a, b: torch.cat([a, b]),
        lambda a, b: a @ b,
        lambda a, b: a.add_(b),
        lambda a, b: torch.equal(a, b),
        lambda a, b: b.sum().add_(a.sum()),
        lambda a, b: torch.stack([a.sum(), b.sum()]),
        lambda a, b: a.normal_(generator=torch.Generator()),
    ],
    ids=["add", "cat", "matmul", "add_", "equal", "scalar on the CPU", "stack", "generator"],
)
def test_two_devices_do_not_mix(gpu, mix):
    with pytest.raises(RuntimeError, match=r"on the same device|generator of the device"):
        mix(torch.ones(3).to(gpu), torch.ones(3))


def test_what_torch_lets_mix(gpu):
    a, b = torch.ones(3).to(gpu), torch.ones(3)
    assert (a * torch.tensor(2.0)).is_cuda
    assert a[torch.tensor([0, 1])].is_cuda
    a.copy_(b)
    assert a.is_cuda


def test_operators_refuse_what_is_not_on_the_gpu(gpu):
    w, one = torch.ones(3, 2), torch.ones(1)
    with pytest.raises(RuntimeError, match="expected CUDA tensors, got one on the CPU"):
        ops.spectral_normalize([w], [torch.ones(3)], [torch.ones(2)], one)
    args = ([x.to(gpu)] for x in (w, torch.ones(3), torch.ones(2)))
    (out,), _ = ops.spectral_normalize(*args, one.to(gpu))
    assert out.is_cuda


def _library_call():
    return torch.zeros(3)


def test_only_what_tests_make_is_moved(gpu, monkeypatch):
    module = types.ModuleType("tests")
    module.X = torch.ones(2)
    package = types.FunctionType(
        _library_call.__code__.replace(co_filename=f"{devices._PACKAGE}/x.py"), globals()
    )
    with devices.use("cuda", module, monkeypatch):
        assert module.X.is_cuda
        assert torch.zeros(3).is_cuda
        assert torch.ones(3, requires_grad=True).is_leaf
        assert nn.Linear(2, 2).weight.is_cuda
        assert ADAPipe("bg").p.is_cuda
        assert not torch.zeros(3, device="cpu").is_cuda
        assert not package().is_cuda
        torch.manual_seed(0)
        on_gpu = [torch.randn(3), nn.Linear(3, 2).weight]
    torch.manual_seed(0)
    for x, y in zip(on_gpu, [torch.randn(3), nn.Linear(3, 2).weight], strict=True):
        assert torch.equal(x.cpu(), y)
    assert not torch.zeros(3).is_cuda


def test_a_process_in_which_cuda_ended_runs_no_more_tests(request, monkeypatch):
    plugins = request.config.pluginmanager.get_plugins()
    (hook,) = (
        p.pytest_runtest_logfinish
        for p in plugins
        if getattr(p, "__file__", "") == str(ROOT / "tests" / "conftest.py")
    )
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    hook()
    assert not ended

    def fault():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fault)
    hook()
    assert ended == [70]
    monkeypatch.delenv("PYTEST_XDIST_WORKER")
    hook()
    assert ended == [70]


# --- the tests of CUDA, on the pretended GPU ----------------------------------------------------

#: What must be among the tests of CUDA, with the least number of them.
AREAS = {
    "spectral_norm/test_spectral_norm.py": 300,
    "spectral_norm/test_fuse_spectral_norm.py": 50,
    "spectral_norm/test_nn_spectral_norm.py": 50,
    "spectral_norm/test_nn_parametrizations.py": 20,
    "weight_norm/test_weight_norm.py": 200,
    "penalties/test_gradient_penalty.py": 100,
    "penalties/test_penalties.py": 100,
    "augment/test_affine_resample.py": 300,
    "augment/test_ada_parameters.py": 100,
    "augment/test_image_filter.py": 30,
    "augment/test_augment_pipe.py": 20,
    "augment/test_augment_controller.py": 50,
    "augment/test_augment_diff_augment.py": 30,
    "training/test_ema.py": 50,
}


def _run(*arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--pretended-gpu"]
    return subprocess.run(
        [*command, "-k", "[cuda or -cuda", *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.slow
def test_every_area_has_tests_on_cuda():
    done = _run("--collect-only", *(f"tests/{area}" for area in AREAS))
    found = [line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line]
    counts = {area: found.count(f"tests/{area}") for area in AREAS}
    assert {a: n for a, n in counts.items() if n < AREAS[a]} == {}


@pytest.mark.slow
def test_tests_of_cuda_hand_over_cuda_tensors():
    """Those that are quick; `make test-pretended` runs all."""
    chosen = ("spectral_norm/test_spectral_norm_errors.py", "augment/test_augment_diff_augment.py")
    exact = "tests/spectral_norm/test_spectral_norm.py"
    only = [f"{exact}::{name}" for name in ("test_float16_edges", "test_rounding_of_float16")]
    done = _run(*(f"tests/{path}" for path in chosen), *only)
    assert done.returncode == 0, done.stdout[-4000:]
