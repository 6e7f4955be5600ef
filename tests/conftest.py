"""The fixtures of all tests."""

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from support import backends, devices

from gankernels import _library, _warnings


def pytest_sessionfinish() -> None:
    backends.write_coverage()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pretended-gpu",
        action="store_true",
        help='run tests of the backend "cuda" without a GPU: tests/support/pretended.py',
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--pretended-gpu"):
        from support import pretended

        pretended.install()
        backends.on_gpu = pretended.use


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish() -> None:
    """A fault in a kernel ends CUDA in its process. xdist starts another for the tests left."""
    if "PYTEST_XDIST_WORKER" in os.environ and torch.cuda.is_initialized():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(70)


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same numbers in every run, and warnings anew: what fails, fails every time."""
    torch.manual_seed(0)
    _warnings._warned.clear()
    _warnings._calls.clear()


@pytest.fixture(params=list(backends.BACKENDS))
def backend(request, monkeypatch) -> Iterator[torch.device]:
    """The device to test on. A test that was answered by the reference after all has failed."""
    kernels = backends.use(request.param, request.node.nodeid, monkeypatch)
    with kernels as device, _library.fallbacks() as fell_back:
        yield device
    assert not fell_back, f"expected the kernels, got the reference: {fell_back}"


@pytest.fixture(params=["cpu", "cuda"])
def device(request, monkeypatch) -> Iterator[torch.device]:
    """Where a test that names no device makes its tensors, and what it then tests."""
    with contextlib.ExitStack() as stack:
        if request.param == "cuda":
            backends.BACKENDS["cuda"]()
            stack.enter_context(backends.on_gpu(strict=False))
        yield stack.enter_context(devices.use(request.param, request.module, monkeypatch))


@pytest.fixture
def cpu_backend() -> None:
    """For what only the CPU kernels have."""
    backends.BACKENDS["cpu"]()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads for the length of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def isa() -> Iterator[Callable[[str], None]]:
    """Chooses among ``instruction_sets()`` for the length of a test."""
    from gankernels import _C

    yield backends.choose_isa
    _C.set_isa("")
