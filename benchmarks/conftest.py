"""Where micro-benchmarks run: `pytest benchmarks/ --benchmark-only --device cuda`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks.core.contest import finished
from gankernels import _library

THREADS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", default="cpu", choices=("cpu", "cuda"), help="what operators are timed on"
    )
    parser.addoption(
        "--isa",
        action="append",
        help="what the CPU kernels run on, avx2 for example; may be given again: default, the best",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("_isa", metafunc.config.getoption("isa") or [""], indirect=True)


@pytest.fixture(autouse=True)
def _isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set of this benchmark."""
    kernels: Any = _library._C
    if request.param and not kernels.set_isa(request.param):
        pytest.skip(f"this processor has {', '.join(kernels.isas())}, not {request.param}")
    yield request.param
    if request.param:
        kernels.set_isa("")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """The device of --device."""
    chosen: str = request.config.getoption("device")
    if chosen == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU that torch can use")
    kernels = _library.EXTENSIONS["_C_cuda" if chosen == "cuda" else "_C"]
    if not kernels.loaded:
        pytest.fail(f"the kernels are not loaded, {kernels.reason}: {kernels.cure}")
    return chosen


@pytest.fixture
def measure(device: str, benchmark: Any, _isa: str) -> Callable[..., None]:
    """Times a call, until the device is done with it; `facts` stand in the data."""

    def run(call: Callable[[], object], *, group: str, name: str, **facts: Any) -> None:
        benchmark.group = group
        benchmark.name = f"{name}, {_isa}" if _isa else name
        benchmark.extra_info.update(
            device=device, threads=THREADS, torch=torch.__version__, **facts
        )
        benchmark(finished(call, device) if device == "cuda" else call)

    return run
